//! The clock of node health: a thread of its own that nothing in the async runtime can delay. It sleeps until the next
//! deadline, and hands on the nodes that were silent for too long.
//!
//! Heartbeats are read by sessions in the async runtime, though. When that runtime is starved (or this process was
//! stopped), silence is the manager's fault: before a node is lost, the thread sends a probe through the runtime, and
//! if the probe is late, the nodes are excused.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use skep_proto::id::NodeId;
use tokio::runtime::Handle;
use tracing::warn;

use super::health::{Health, Lost};

/// A probe or a wake-up that is later than this excuses the nodes.
const LATE: Duration = Duration::from_millis(500);

/// Says that nodes live. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pulse(Arc<Shared>);

struct Shared {
    watched: Mutex<Watched>,
    /// Told when the next deadline came nearer, or the thread is to end.
    changed: Condvar,
}

struct Watched {
    health: Health,
    stopped: bool,
}

/// The thread; told to end when this is dropped. Nobody waits for it: it may be in the middle of a probe, which needs
/// the runtime that would wait. It tells nothing from then on.
pub(crate) struct PulseThread(Pulse);

impl Pulse {
    /// Starts the thread. `lost` is called by it, with nodes that were silent for too long; it must not block.
    pub(crate) fn start(
        health: Health,
        runtime: Handle,
        lost: impl Fn(Vec<Lost>) + Send + 'static,
    ) -> std::io::Result<(Self, PulseThread)> {
        let watched = Watched { health, stopped: false };
        let pulse = Self(Arc::new(Shared { watched: Mutex::new(watched), changed: Condvar::new() }));
        let shared = Arc::clone(&pulse.0);
        let thread = std::thread::Builder::new().name("skep-health".to_owned());
        thread.spawn(move || run(&shared, &runtime, &lost))?;
        Ok((pulse.clone(), PulseThread(pulse)))
    }

    /// The node said something to this manager, just now.
    pub(crate) fn heard(&self, node: NodeId) {
        self.change(|health| health.heard(node, None, Instant::now()));
    }

    /// Another manager says which nodes it heard since it last said so; none is a sign of life, too.
    pub(crate) fn relayed(&self, relay: NodeId, nodes: impl IntoIterator<Item = NodeId>) {
        self.change(|health| {
            let now = Instant::now();
            health.relay_heard(relay, now);
            nodes.into_iter().for_each(|node| health.heard(node, Some(relay), now));
        });
    }

    /// Another manager relays no more.
    pub(crate) fn relay_lost(&self, relay: NodeId) {
        self.change(|health| health.relay_lost(relay, Instant::now()));
    }

    /// What the state says: these nodes should have sessions, and all others but `known` do not exist.
    pub(crate) fn expect(&self, nodes: &[NodeId], known: impl Fn(NodeId) -> bool) {
        self.change(|health| {
            health.retain(known);
            let now = Instant::now();
            nodes.iter().for_each(|node| health.expect(*node, now));
        });
    }

    /// Whether the node was heard and is not lost.
    pub(crate) fn hears(&self, node: NodeId) -> bool {
        self.0.lock().health.hears(node)
    }

    /// Silence after which a node is lost, from now on.
    pub(crate) fn set_window(&self, window: Duration) {
        self.change(|health| health.set_window(window));
    }

    fn change(&self, change: impl FnOnce(&mut Health)) {
        let mut watched = self.0.lock();
        let before = watched.health.next_deadline();
        change(&mut watched.health);
        let after = watched.health.next_deadline();
        let nearer = after.is_some_and(|after| before.is_none_or(|before| after < before));
        drop(watched);
        if nearer {
            self.0.changed.notify_one();
        }
    }
}

impl Drop for PulseThread {
    fn drop(&mut self) {
        self.0.0.lock().stopped = true;
        self.0.0.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        // Each change is one call of `Health`, which does not panic in between.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until a deadline has passed, and says how late it woke. `None`: it is to end.
    fn wait_for_deadline(&self) -> Option<Duration> {
        let mut watched = self.lock();
        loop {
            if watched.stopped {
                return None;
            }
            let now = Instant::now();
            watched = match watched.health.next_deadline() {
                Some(deadline) if deadline <= now => return Some(now - deadline),
                Some(deadline) => {
                    let waited = self.changed.wait_timeout(watched, deadline - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(watched).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

fn run(shared: &Shared, runtime: &Handle, lost: &impl Fn(Vec<Lost>)) {
    while let Some(woke_late) = shared.wait_for_deadline() {
        let late = woke_late.max(probe(runtime));
        let mut watched = shared.lock();
        let now = Instant::now();
        if late > LATE {
            warn!(?late, "the manager is too busy to hear its nodes: their deadlines are put off");
            watched.health.excuse(now);
        }
        let gone = watched.health.expired(now);
        if watched.stopped {
            return;
        }
        drop(watched);
        if !gone.is_empty() {
            lost(gone);
        }
    }
}

/// How long a task takes from one end of the async runtime to the other: what is ready before it has then been polled.
fn probe(runtime: &Handle) -> Duration {
    let (done, wait) = mpsc::sync_channel(1);
    let started = Instant::now();
    runtime.spawn(async move {
        tokio::task::yield_now().await;
        // The thread stops waiting after a while.
        let _ = done.try_send(());
    });
    // An error: the runtime did not come to it, or is shutting down.
    let _ = wait.recv_timeout(4 * LATE);
    started.elapsed()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const WINDOW: Duration = Duration::from_millis(60);

    fn start(runtime: &Handle) -> (Pulse, PulseThread, mpsc::Receiver<Vec<Lost>>) {
        let (told, tell) = mpsc::channel();
        let lost = move |nodes| told.send(nodes).unwrap();
        let (pulse, thread) = Pulse::start(Health::new(WINDOW), runtime.clone(), lost).unwrap();
        (pulse, thread, tell)
    }

    #[test]
    fn a_silent_node_is_told_in_time_and_the_thread_ends() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (pulse, thread, lost) = start(runtime.handle());
        let heard = Instant::now();
        pulse.heard(NodeId::new(1));
        assert!(pulse.hears(NodeId::new(1)));
        let nodes = lost.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(nodes[0].node, NodeId::new(1));
        assert!(nodes[0].silent >= WINDOW && heard.elapsed() >= WINDOW);
        assert!(!pulse.hears(NodeId::new(1)));
        drop(thread);
        assert!(lost.recv().is_err(), "the thread has ended");
    }

    #[test]
    fn a_starved_runtime_loses_nobody() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (pulse, _thread, lost) = start(runtime.handle());
        pulse.heard(NodeId::new(1));
        let beat = pulse.clone();
        // The only worker is busy for longer than a window and then reads the heartbeat that came meanwhile.
        runtime.spawn(async move {
            std::thread::sleep(LATE + WINDOW * 3);
            beat.heard(NodeId::new(1));
        });
        let nodes = lost.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(nodes[0].silent < LATE, "it was excused: {nodes:?}");
    }
}
