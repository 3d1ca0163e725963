//! What the dispatcher does while this manager leads: it judges which nodes are silent, wherever their sessions are, and
//! writes it down. [`DispatcherLead`] is its life.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use skep_core::object::Node;
use skep_proto::id::NodeId;
use skep_proto::v1::NodeState;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::cluster::ClusterView;
use super::health::{Health, Lost};
use super::limits::HOMES_KEPT;
use super::pulse::{Pulse, PulseThread};
use super::relay::Order;
use super::{Dispatcher, VIEW_PAUSE, observe};
use crate::topic::Topic;

/// Pause before a failed write about lost nodes is tried again.
const DOWN_RETRY: Duration = Duration::from_millis(500);

/// What the dispatcher has while this manager leads.
pub(super) struct Leading {
    pub(super) pulse: Pulse,
    links: Mutex<Links>,
}

/// Managers that relay to this one.
#[derive(Default)]
struct Links {
    open: HashMap<NodeId, (u64, mpsc::UnboundedSender<Order>)>,
    next: u64,
}

/// While it lives, this manager judges who is silent.
#[must_use = "nobody judges who is silent once it is dropped"]
pub struct DispatcherLead {
    dispatcher: Dispatcher,
    /// Stops with the guard.
    _thread: PulseThread,
    _tasks: JoinSet<()>,
}

impl Leading {
    /// A manager relays from now on. A newer link of the same manager takes the older one's place.
    pub(super) fn begin_link(&self, manager: NodeId) -> (u64, mpsc::UnboundedReceiver<Order>) {
        let (orders, received) = mpsc::unbounded_channel();
        let mut links = self.links();
        let number = links.next;
        links.next += 1;
        links.open.insert(manager, (number, orders));
        (number, received)
    }

    /// Whether the link is still the manager's.
    pub(super) fn has_link(&self, manager: NodeId, number: u64) -> bool {
        self.links().open.get(&manager).is_some_and(|(own, _)| *own == number)
    }

    /// The link is over. Says whether it was still the manager's.
    pub(super) fn end_link(&self, manager: NodeId, number: u64) -> bool {
        let mut links = self.links();
        let own = links.open.get(&manager).is_some_and(|(own, _)| *own == number);
        if own {
            links.open.remove(&manager);
        }
        own
    }

    /// Tells another manager what to do. Says whether it is linked.
    pub(super) fn order(&self, manager: NodeId, order: Order) -> bool {
        self.links().open.get(&manager).is_some_and(|(_, orders)| orders.send(order).is_ok())
    }

    fn is_linked(&self, manager: NodeId) -> bool {
        self.links().open.contains_key(&manager)
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the state says that the node has a session, or had one a moment ago. A node that joined but never had one has
/// nothing to lose: it stays as it is until it registers.
fn should_be_heard(node: &Node) -> bool {
    let away = matches!(node.status.state, NodeState::Ready | NodeState::Disconnected | NodeState::Unknown);
    away && !node.status.addr.is_empty()
}

impl DispatcherLead {
    pub(super) fn begin(dispatcher: &Dispatcher) -> std::io::Result<Self> {
        let state = dispatcher.store().state();
        let mut health = Health::new(ClusterView::of(&state).window());
        let known = state.nodes().filter(|node| should_be_heard(node));
        health.await_nodes(known.map(|node| node.id), Instant::now());

        let (lost, losses) = mpsc::unbounded_channel();
        let tell = move |nodes: Vec<Lost>| {
            // An error: leadership is over.
            let _ = lost.send(nodes);
        };
        let (pulse, thread) = Pulse::start(health, tokio::runtime::Handle::current(), tell)?;
        let leading = Arc::new(Leading { pulse: pulse.clone(), links: Mutex::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(mark_down(dispatcher.clone(), pulse.clone(), losses));
        tasks.spawn(keep_watch(dispatcher.clone(), pulse.clone()));
        tasks.spawn(forget_homes(dispatcher.clone(), Arc::clone(&leading)));
        dispatcher.0.leading.send_replace(Some(leading));
        dispatcher.take_heard().into_iter().for_each(|node| pulse.heard(node));
        dispatcher.0.bond.heard();
        Ok(Self { dispatcher: dispatcher.clone(), _thread: thread, _tasks: tasks })
    }
}

impl Drop for DispatcherLead {
    fn drop(&mut self) {
        let shared = &self.dispatcher.0;
        shared.leading.send_replace(None);
        // Sessions stand while a new leader is being found.
        shared.bond.renewed();
        // What others relayed is not kept up to date any more.
        shared.images.retain(|node| shared.sessions.connection(node).is_some());
    }
}

/// Writes down which nodes are lost. A node that is heard again meanwhile is not.
async fn mark_down(dispatcher: Dispatcher, pulse: Pulse, mut losses: mpsc::UnboundedReceiver<Vec<Lost>>) {
    let store = dispatcher.store();
    while let Some(mut lost) = losses.recv().await {
        loop {
            while let Ok(more) = losses.try_recv() {
                lost.extend(more);
            }
            lost.retain(|lost| !pulse.hears(lost.node));
            let state = store.state();
            let changes: Vec<_> =
                lost.iter().filter_map(|lost| observe::down(state.node(lost.node)?, *lost, store.now())).collect();
            if changes.is_empty() {
                break;
            }
            info!(nodes = changes.len(), "nodes are silent: they are down");
            match dispatcher.0.reports.store(changes).await {
                Ok(_) => break,
                Err(error) => warn!(%error, "cannot write down which nodes are down"),
            }
            tokio::time::sleep(DOWN_RETRY).await;
        }
    }
}

/// Keeps in step with the state who is to be watched: a manager that wrote a node down as ready may be lost before it told
/// that it heard it.
async fn keep_watch(dispatcher: Dispatcher, pulse: Pulse) {
    let store = dispatcher.store();
    let mut nodes = store.watch(Topic::Nodes);
    let mut view = dispatcher.0.view.subscribe();
    loop {
        let window = view.borrow_and_update().window();
        pulse.set_window(window);
        let state = store.state();
        let expected: Vec<NodeId> = state.nodes().filter(|node| should_be_heard(node)).map(|node| node.id).collect();
        pulse.expect(&expected, |node| state.node(node).is_some());
        drop(state);
        tokio::select! {
            () = nodes.changed() => {}
            _ = view.changed() => {}
        }
        tokio::time::sleep(VIEW_PAUSE).await;
    }
}

/// Sessions of managers that did not come to the new leader in time are over: those managers are gone.
async fn forget_homes(dispatcher: Dispatcher, leading: Arc<Leading>) {
    tokio::time::sleep(HOMES_KEPT).await;
    let me = dispatcher.0.me;
    dispatcher.reach().update(|homes| homes.retain_managers(|manager| manager == me || leading.is_linked(manager)));
}
