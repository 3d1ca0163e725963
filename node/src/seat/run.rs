//! The seat's task: compares what the certificate says with what runs, takes one step, waits for the next event.

use std::sync::Arc;
use std::time::Duration;

use skep_identity::{Credentials, JoinToken, Role};
use skep_manager::Ended;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::open::{How, Manager};
use super::{First, Order, SeatParts, SeatState};
use crate::backoff::{Backoff, is_disk_full, may_pass, words};
use crate::membership::{SeatPhase, SeatRecord};
use crate::switch::{Control, Counts};

/// A manager that ran this long before it ended did start well.
const RAN_WELL: Duration = Duration::from_secs(30);
/// A manager that hears no leader for this long answers calls itself: it knows best why.
const ANNOUNCE: Duration = Duration::from_secs(3);
/// A recovered manager is alone and elects itself at once.
const RECOVERY: Duration = Duration::from_secs(20);
const STARTING: &str = "this node's manager is starting: try again in a moment";

pub(super) struct Runner {
    parts: SeatParts,
    state: watch::Sender<SeatState>,
    orders: mpsc::Receiver<Order>,
    stop: watch::Receiver<bool>,
    credentials: watch::Receiver<Arc<Credentials>>,
    /// Told what became of the first try.
    first: Option<oneshot::Sender<anyhow::Result<()>>>,
    backoff: Backoff,
    /// The certificate that was acted upon last. One that says `manager` is acted upon once; what fails then is tried
    /// again by the clock, or, where Raft does not know this node any more, with the next certificate only.
    settled: Option<Arc<Credentials>>,
}

/// The manager while it runs.
struct Held {
    manager: Manager,
    since: Instant,
    ready: bool,
    announced: bool,
    disk_full: bool,
}

impl Held {
    fn new(manager: Manager) -> Box<Self> {
        Box::new(Self { manager, since: Instant::now(), ready: false, announced: false, disk_full: false })
    }
}

enum Event {
    Stop,
    /// The certificate is another.
    Identity,
    Order(Order),
    Ended(Ended),
    /// It hears a leader, or its state is not this node's.
    Ready(anyhow::Result<()>),
    /// It hears none for a while.
    Announce,
    /// Its disk is full, or has space again; it goes on without writing.
    Disk,
    Retry,
}

/// Between two events.
enum Now {
    Running(Box<Held>),
    /// Nothing runs. `Some`: try again after this.
    Idle(Option<Duration>),
}

impl Runner {
    pub(super) fn new(
        parts: SeatParts,
        state: watch::Sender<SeatState>,
        orders: mpsc::Receiver<Order>,
        stop: watch::Receiver<bool>,
        first: oneshot::Sender<anyhow::Result<()>>,
    ) -> Self {
        let credentials = parts.live.subscribe();
        Self { parts, state, orders, stop, credentials, first: Some(first), backoff: Backoff::default(), settled: None }
    }

    pub(super) async fn run(mut self, first: First) {
        let mut now = match first {
            First::Resume => Now::Idle(Some(Duration::ZERO)),
            First::Found(bootstrap) => {
                let Ok(held) = self.take(How::Found(bootstrap)).await else { return };
                Now::Running(held)
            }
        };
        loop {
            now = self.settle(now).await;
            let event = self.next(&now).await;
            now = match (event, now) {
                (Event::Stop, now) => {
                    if let Now::Running(held) = now {
                        held.manager.close().await;
                    }
                    return;
                }
                (Event::Order(Order::Recover { addrs, answer }), now) => {
                    let (now, outcome) = self.recover(now, addrs).await;
                    // An error: who asked has gone.
                    let _ = answer.send(outcome);
                    now
                }
                (Event::Order(Order::Renew { csr_pem, answer }), now) => {
                    let signed = match &now {
                        Now::Running(held) => held.manager.renew_own(&csr_pem),
                        Now::Idle(_) => Err(anyhow::anyhow!("it does not run")),
                    };
                    // As above.
                    let _ = answer.send(signed);
                    now
                }
                (Event::Ended(why), Now::Running(held)) => self.ended(held, why).await,
                (Event::Ready(Ok(())), Now::Running(held)) => Now::Running(self.announce(held, true)),
                (Event::Ready(Err(error)), Now::Running(held)) => Now::Running(self.refuse(held, &error)),
                (Event::Announce, Now::Running(held)) => Now::Running(self.announce(held, false)),
                (Event::Disk, Now::Running(held)) => Now::Running(self.disk(held)),
                (Event::Retry, Now::Idle(_)) => Now::Idle(Some(Duration::ZERO)),
                (_, now) => now,
            };
        }
    }

    /// Does what the certificate asks for.
    async fn settle(&mut self, now: Now) -> Now {
        let credentials = Arc::clone(&self.credentials.borrow_and_update());
        let role = credentials.role();
        self.parts.board.role(role);
        let is_news = self.settled.as_ref().is_none_or(|settled| !Arc::ptr_eq(settled, &credentials));
        let before = self.settled.replace(credentials).map(|settled| settled.role());
        match (role, now) {
            (Role::Worker, Now::Idle(pause)) if before == Some(Role::Worker) && pause != Some(Duration::ZERO) => {
                Now::Idle(pause)
            }
            (Role::Worker, now) => self.be_worker(now).await,
            (Role::Manager, Now::Idle(pause)) if is_news || pause == Some(Duration::ZERO) => {
                match self.take(How::Resume).await {
                    Ok(held) => Now::Running(held),
                    Err(pause) => Now::Idle(pause),
                }
            }
            (Role::Manager, now) => now,
        }
    }

    async fn next(&mut self, now: &Now) -> Event {
        let (held, pause) = match now {
            Now::Running(held) => (Some(held), None),
            Now::Idle(pause) => (None, *pause),
        };
        let ended = async {
            match held {
                Some(held) => held.manager.ended().await,
                None => std::future::pending().await,
            }
        };
        let ready = async {
            match held {
                Some(held) if !held.ready => held.manager.ready().await,
                _ => std::future::pending().await,
            }
        };
        let disk = async {
            match held {
                Some(held) => held.manager.disk_full_is_not(held.disk_full).await,
                None => std::future::pending().await,
            }
        };
        let silent = async {
            match held {
                Some(held) if !held.announced => tokio::time::sleep_until(held.since + ANNOUNCE).await,
                _ => std::future::pending().await,
            }
        };
        let retry = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // An error: the handle is gone, and nobody would stop this any more.
            _ = self.stop.wait_for(|stop| *stop) => Event::Stop,
            Ok(()) = self.credentials.changed() => Event::Identity,
            Some(order) = self.orders.recv() => Event::Order(order),
            why = ended => Event::Ended(why),
            outcome = ready => Event::Ready(outcome),
            () = silent => Event::Announce,
            () = disk => Event::Disk,
            () = retry => Event::Retry,
        }
    }

    /// Starts the manager. An error is told, and says when to try again.
    async fn take(&mut self, how: How) -> Result<Box<Held>, Option<Duration>> {
        // A reason from the last try stays on show while the next one runs.
        if !matches!(*self.state.borrow(), SeatState::Empty { .. }) {
            self.parts.board.control(Control::Starting(STARTING.to_owned()));
            self.state.send_replace(SeatState::Taking);
        }
        let mut stop = self.stop.clone();
        let taken = async {
            if self.parts.record.get().seat.is_some_and(|seat| seat.phase == SeatPhase::Leaving) {
                self.give_up().await?;
            }
            super::open::open(&self.parts, how, &mut stop).await
        };
        match taken.await {
            Ok(manager) => {
                self.told(Ok(()));
                self.state.send_replace(SeatState::Taken { ready: false });
                Ok(Held::new(manager))
            }
            Err(error) => {
                let pause = self.failed(&error);
                self.told(Err(error));
                Err(pause)
            }
        }
    }

    fn told(&mut self, outcome: anyhow::Result<()>) {
        if let Some(first) = self.first.take() {
            // An error: nobody waits for it.
            let _ = first.send(outcome);
        }
    }

    /// Puts the reason on show. Returns when to try again.
    fn failed(&mut self, error: &anyhow::Error) -> Option<Duration> {
        let reason = match is_disk_full(error) {
            true => format!("this manager's disk is full: {}; make space, and it goes on by itself", words(error)),
            false => format!("this node's manager does not run: {}", words(error)),
        };
        self.empty(reason, may_pass(error))
    }

    fn empty(&mut self, reason: String, passing: bool) -> Option<Duration> {
        let pause = passing.then(|| self.backoff.pause());
        warn!(%reason, retry_in = ?pause, "this node's manager does not run");
        self.parts.board.control(match passing {
            true => Control::Halted(reason.clone()),
            false => Control::Absent(reason.clone()),
        });
        self.state.send_replace(SeatState::Empty { reason, passing });
        pause
    }

    /// Lets calls in.
    fn announce(&self, mut held: Box<Held>, ready: bool) -> Box<Held> {
        held.announced = true;
        held.ready |= ready;
        let source = held.manager.figures();
        self.parts.board.control(Control::Served(held.manager.routes(), Counts::of(move || source.read())));
        self.state.send_replace(SeatState::Taken { ready: held.ready });
        held
    }

    /// Puts a full disk on show, or takes it away.
    fn disk(&self, mut held: Box<Held>) -> Box<Held> {
        held.disk_full = !held.disk_full;
        let dir = self.parts.host.raft_dir();
        self.parts.board.trouble(match held.disk_full {
            true => format!(
                "this manager's disk is full: it neither votes nor writes to {}; make space, and it goes on by itself",
                dir.display()
            ),
            false => String::new(),
        });
        held
    }

    /// It runs, but not as this node's manager: the agent's session will tell what became of the node.
    fn refuse(&self, mut held: Box<Held>, error: &anyhow::Error) -> Box<Held> {
        (held.ready, held.announced) = (true, true);
        let reason = format!("this node's manager cannot be used: {}", words(error));
        warn!(%reason, "the swarm's state is not this node's");
        self.parts.board.control(Control::Absent(reason.clone()));
        self.state.send_replace(SeatState::Empty { reason, passing: false });
        held
    }

    /// The manager has ended by itself.
    async fn ended(&mut self, held: Box<Held>, why: Ended) -> Now {
        self.parts.board.trouble(String::new());
        if held.since.elapsed() > RAN_WELL {
            self.backoff.reset();
        }
        held.manager.close().await;
        let pause = match why {
            Ended::DiskFull(what) => {
                self.empty(format!("this manager's disk is full: {what}; make space, and it goes on by itself"), true)
            }
            Ended::Failed(what) => self.empty(format!("this node's manager has ended: {what}"), true),
            Ended::Damaged(what) => self.empty(format!("this node's manager has ended: {what}"), false),
            Ended::LeftBehind(what) => self.empty(
                format!(
                    "this manager was left behind by a recovery of the swarm ({what}): use `skep swarm leave --force`, \
                     then join again"
                ),
                false,
            ),
            Ended::Removed => {
                self.parts.contacts.renew.notify_one();
                if let Err(error) = self.give_up().await {
                    warn!(error = %format!("{error:#}"), "Raft's files are not deleted yet");
                }
                self.empty("this node is no manager any more; its certificate is being renewed".to_owned(), true);
                // Only another certificate leads on.
                None
            }
        };
        Now::Idle(pause)
    }

    /// No manager, no port, no Raft files.
    async fn be_worker(&mut self, now: Now) -> Now {
        if let Now::Running(held) = now {
            info!("this node is a worker now; its manager stops");
            held.manager.close().await;
            info!("the manager has stopped");
        }
        self.parts.board.only_worker();
        self.state.send_replace(SeatState::None);
        let given_up = async {
            self.give_up().await?;
            // A worker is not locked.
            self.parts.sealing.reseal_alone(None).await
        };
        let given_up = given_up.await;
        let pause = match &given_up {
            Ok(()) => {
                self.backoff.reset();
                None
            }
            Err(error) => {
                warn!(error = %format!("{error:#}"), "the files of this node's former manager are still there");
                Some(self.backoff.pause())
            }
        };
        self.told(given_up);
        Now::Idle(pause)
    }

    /// Deletes the files of this node's seat, and nothing else: without a seat there is nothing of ours.
    async fn give_up(&self) -> anyhow::Result<()> {
        let Some(seat) = self.parts.record.get().seat else { return Ok(()) };
        let leaving = SeatRecord { phase: SeatPhase::Leaving, ..seat };
        self.parts.record.update(|record| record.seat = Some(leaving)).await?;
        let dir = self.parts.host.raft_dir();
        tokio::task::spawn_blocking(move || skep_manager::erase_files(&dir)).await??;
        self.parts.record.update(|record| record.seat = None).await
    }

    /// Restarts the manager as the only one of its swarm.
    async fn recover(
        &mut self,
        now: Now,
        addrs: Option<(std::net::SocketAddr, std::net::SocketAddr)>,
    ) -> (Now, anyhow::Result<JoinToken>) {
        let seat = self.parts.record.get().seat;
        if !seat.is_some_and(|seat| seat.phase == SeatPhase::Taken) || !self.parts.host.raft_dir().exists() {
            return (now, Err(anyhow::anyhow!("this node holds no manager's state to go on from")));
        }
        if let Now::Running(held) = now {
            if held.manager.has_company() {
                let refusal = anyhow::anyhow!(
                    "a majority of this swarm's managers is up and has a leader: --force-new-cluster is for a majority \
                     that is lost for good; use `skep node demote` and `skep node rm` instead"
                );
                return (Now::Running(held), Err(refusal));
            }
            held.manager.close().await;
        }
        if let Some((listen, advertise)) = addrs
            && let Err(error) = self
                .parts
                .record
                .update(|record| (record.listen_addr, record.advertise_addr) = (listen, advertise))
                .await
        {
            return (Now::Idle(Some(Duration::ZERO)), Err(error));
        }
        let mut stop = self.stop.clone();
        self.parts.board.control(Control::Starting(STARTING.to_owned()));
        match super::open::open(&self.parts, How::Recover, &mut stop).await {
            Ok(manager) => {
                let held = Held::new(manager);
                match tokio::time::timeout(RECOVERY, held.manager.ready()).await {
                    Ok(Ok(())) => {
                        let token = held.manager.worker_token();
                        (Now::Running(self.announce(held, true)), token)
                    }
                    Ok(Err(error)) => (Now::Running(self.refuse(held, &error)), Err(error)),
                    Err(_) => {
                        let late = anyhow::anyhow!("the recovered manager does not lead yet: see the daemon's log");
                        (Now::Running(self.announce(held, false)), Err(late))
                    }
                }
            }
            Err(error) => {
                let pause = self.failed(&error);
                (Now::Idle(pause), Err(error))
            }
        }
    }
}
