//! The node's session with a manager: one bidirectional stream, kept up for as long as the agent lives.
//!
//! Used by the agent. Everything here, the connection's I/O included, runs on a single-threaded runtime on a thread of its
//! own, so that heartbeats never wait behind an unpack, a plan or an fsync of the main runtime. It must never touch
//! containers: losing every manager changes nothing on the node.
//!
//! Channels: the agent reads [`FromManager`] from an unbounded channel (the thread must never wait for the agent, or
//! heartbeats would; what managers send is bounded by what they assign); statuses wait in the [`Outbox`].

mod patience;
mod stream;

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::Rng;
use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::{Assignments, LogRequest, ManagerAddr, NetworkCheckRequest, NodeDescription, TaskStatus};
use tokio::sync::{Notify, mpsc, watch};
use tonic::transport::Channel;

use crate::executor::HeldImages;
use crate::managers::ManagerPicker;
use crate::networks::TablePort;
use crate::outbox::Outbox;
use crate::record::SessionMark;
use patience::Patience;

/// Why no connection came about.
pub type ConnectError = Box<dyn Error + Send + Sync>;

/// Opens connections with the node's identity; given by the node, so that TLS stays out of the worker.
#[tonic::async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects to a manager of this swarm at `host:port`. The connection's tasks run where this is called.
    async fn manager(&self, addr: &str) -> Result<Channel, ConnectError>;
    /// Connects to the peer service of node `node` at `host:port`.
    async fn peer(&self, node: NodeId, addr: &str) -> Result<Channel, ConnectError>;
    /// Takes the nodes that were removed from the swarm, all of them, whenever a manager tells a change: whoever serves or
    /// calls other nodes refuses these. Called on the session's thread; it must not block. Where this host is a manager
    /// too, its own state says the same, and says it first.
    fn denied(&self, nodes: &BTreeSet<NodeId>) {
        let _ = nodes;
    }
    /// Takes the swarm's root certificates (PEM), at the beginning of each session and when they change: others are not trusted
    /// any more. Called on the session's thread; it must not block.
    fn roots(&self, certs_pem: &str) {
        let _ = certs_pem;
    }
    /// Whether a manager closed the connection because this node was removed from the swarm.
    fn is_removal(&self, error: &(dyn Error + 'static)) -> bool {
        let _ = error;
        false
    }
}

/// How the session stands, for `skep info` and for tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionState {
    /// Looking for a manager. `None`: the first try is not over.
    Connecting {
        /// Why the last try failed or the last session ended.
        error: Option<String>,
    },
    /// A manager took the node in.
    Connected {
        /// Its address.
        addr: String,
    },
    /// The node was removed from the swarm; nothing is tried any more.
    Removed,
    /// The agent closed it.
    Closed,
}

/// The manager of the moment, for calls beside the session.
#[derive(Debug, Clone)]
pub struct ManagerLink {
    /// Its address.
    pub addr: String,
    /// The session's own connection: for small calls only, bulk data takes one of its own.
    pub channel: Channel,
}

/// What the session hands to the agent.
#[derive(Debug)]
pub enum FromManager {
    /// A message of assignments, in order. `session_id` says in which session.
    Assignments {
        /// The session it belongs to.
        session_id: Arc<[u8]>,
        /// The message.
        message: Assignments,
    },
    /// These statuses are stored.
    Acknowledged(Vec<(TaskId, TaskStatus)>),
    /// The managers there are.
    Managers(Vec<ManagerAddr>),
    /// Log lines are asked for.
    LogRequest(LogRequest),
    /// No longer.
    LogCancel(u64),
    /// How networks are is asked for.
    NetworkCheck(NetworkCheckRequest),
    /// The certificate is to be renewed.
    RenewCertificate,
    /// The connection is gone; log streams end with it.
    Disconnected,
    /// The node is no longer in the swarm.
    Removed,
}

/// Time limits of a session.
#[derive(Debug, Clone, Copy)]
pub struct SessionTiming {
    /// For the connection, TLS included, where there is but one manager.
    pub connect: Duration,
    /// The same where there are others to turn to.
    pub connect_one_of_many: Duration,
    /// Until the manager answers `register`.
    pub register: Duration,
    /// Until the goodbye is out.
    pub goodbye: Duration,
}

impl Default for SessionTiming {
    fn default() -> Self {
        Self {
            // A second after the third SYN: on to the next try within the managers' patience (`ManagerPicker::heartbeat`).
            connect: Duration::from_secs(4),
            // A host that lost its power answers nothing: on to the next one, well before three heartbeats are missed.
            connect_one_of_many: Duration::from_millis(800),
            register: Duration::from_secs(5),
            goodbye: Duration::from_millis(500),
        }
    }
}

/// How a session is opened.
pub struct SessionConfig {
    /// The node.
    pub node_id: NodeId,
    /// Opens connections.
    pub connector: Arc<dyn Connector>,
    /// Managers to try besides those the record knows.
    pub seeds: Vec<String>,
    /// Managers that the record knows.
    pub known: Vec<ManagerAddr>,
    /// The session to resume.
    pub resume: SessionMark,
    /// What the node says of itself; changes are pushed.
    pub description: watch::Receiver<NodeDescription>,
    /// Held images; changes are pushed.
    pub images: watch::Receiver<HeldImages>,
    /// Tables of networks; what is held of them is told.
    pub tables: TablePort,
    /// Time limits.
    pub timing: SessionTiming,
}

impl fmt::Debug for SessionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionConfig").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

/// What the thread and the agent share.
struct Shared {
    outbox: Mutex<Outbox>,
    outbox_changed: Notify,
    /// Last assignments message in the record.
    applied: Mutex<SessionMark>,
    resync: Notify,
    state: watch::Sender<SessionState>,
    link: watch::Sender<Option<ManagerLink>>,
}

/// The agent's handle; clones are cheap.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

/// Why the session's thread ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The daemon stops; containers go on.
    Stops,
    /// The node leaves the swarm.
    Leaves,
}

/// Ends the session's thread.
#[derive(Debug)]
pub struct SessionGuard {
    stop: watch::Sender<Option<Why>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("state", &*self.shared.state.borrow()).finish_non_exhaustive()
    }
}

impl Session {
    /// Starts the thread. It tries managers until it is closed or the node is removed.
    pub fn start(config: SessionConfig) -> (Self, SessionGuard, mpsc::UnboundedReceiver<FromManager>) {
        let shared = Arc::new(Shared {
            outbox: Mutex::default(),
            outbox_changed: Notify::new(),
            applied: Mutex::new(config.resume.clone()),
            resync: Notify::new(),
            state: watch::channel(SessionState::Connecting { error: None }).0,
            link: watch::channel(None).0,
        });
        let (to_agent, from_manager) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(None);
        let runner = Runner { shared: Arc::clone(&shared), config, to_agent, stopped, patience: Patience::default() };
        let thread = std::thread::Builder::new()
            .name("skep-session".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime needs an epoll descriptor at start");
                runtime.block_on(runner.run());
            })
            .expect("a thread can be spawned at start");
        (Self { shared }, SessionGuard { stop, thread: Some(thread) }, from_manager)
    }

    /// Puts a task's status in line for the managers.
    pub fn report(&self, task: TaskId, status: TaskStatus) {
        self.shared.outbox().push(task, status, Instant::now());
        self.shared.outbox_changed.notify_one();
    }

    /// Drops what is in line for a task that is no longer assigned.
    pub fn forget(&self, task: TaskId) {
        self.shared.outbox().forget(task);
    }

    /// Whether the managers know everything.
    pub fn all_acknowledged(&self) -> bool {
        self.shared.outbox().is_empty()
    }

    /// That message is in the record; the next heartbeat says so.
    pub fn applied(&self, session_id: &[u8], sequence: u64) {
        *self.shared.applied() = SessionMark { session_id: session_id.to_vec(), sequence };
    }

    /// Asks for a complete set: a message did not fit.
    pub fn resync(&self) {
        self.shared.resync.notify_one();
    }

    /// How it stands, now and later.
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.shared.state.subscribe()
    }

    /// Whether a manager has the node.
    pub fn is_connected(&self) -> bool {
        matches!(*self.shared.state.borrow(), SessionState::Connected { .. })
    }

    /// The manager of the moment.
    pub fn link(&self) -> watch::Receiver<Option<ManagerLink>> {
        self.shared.link.subscribe()
    }
}

impl SessionGuard {
    /// Says goodbye and waits for the thread, half a second at most where the manager does not answer.
    pub async fn close(self) {
        self.end(Why::Stops).await;
    }

    /// The same for a node that leaves the swarm, and whose containers are gone.
    pub async fn leave(self) {
        self.end(Why::Leaves).await;
    }

    async fn end(mut self, why: Why) {
        self.stop.send_replace(Some(why));
        if let Some(thread) = self.thread.take() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        // Not joined: a drop without `close` must not block a runtime's thread.
        self.stop.send_if_modified(|stop| stop.replace(stop.unwrap_or(Why::Stops)).is_none());
    }
}

impl Shared {
    // The lock is held for pure steps only, which do not panic; a poisoned one would still be consistent.
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn applied(&self) -> MutexGuard<'_, SessionMark> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the agent closes the session (or is gone).
async fn stop_asked(stopped: &mut watch::Receiver<Option<Why>>) -> Why {
    let asked = stopped.wait_for(Option::is_some).await;
    asked.ok().and_then(|why| *why).unwrap_or(Why::Stops)
}

/// How one connection ended.
enum End {
    /// The agent closes.
    Closed,
    /// The node was removed.
    Removed,
    /// The agent wants a complete set.
    Resync,
    /// The manager is to be told anew which tables of networks there are; the session goes on.
    Again,
    /// It was a session, and it broke.
    Lost(String),
    /// The manager did not answer a heartbeat in time.
    Silent(String),
    /// It never became a session.
    Refused(String),
}

/// The thread's own state.
struct Runner {
    shared: Arc<Shared>,
    config: SessionConfig,
    to_agent: mpsc::UnboundedSender<FromManager>,
    stopped: watch::Receiver<Option<Why>>,
    patience: Patience,
}

impl Runner {
    async fn run(mut self) {
        let config = &self.config;
        let mut picker = ManagerPicker::new(config.node_id, config.seeds.clone(), config.known.clone());
        let mut mark = self.config.resume.clone();
        let last = loop {
            if self.stopped.borrow().is_some() {
                break SessionState::Closed;
            }
            let next = picker.next(|n| if n == 0 { 0 } else { rand::thread_rng().gen_range(0..n) });
            // Without any manager (a wrong configuration) it still answers to `close`.
            let (addr, pause) = next.unwrap_or((String::new(), Duration::from_secs(1)));
            tokio::select! {
                biased;
                _ = stop_asked(&mut self.stopped) => break SessionState::Closed,
                () = tokio::time::sleep(pause) => {}
            }
            if addr.is_empty() {
                self.connecting(Some("no manager is known".to_owned()));
                continue;
            }
            let end = self.serve(&addr, &mut mark, &mut picker).await;
            self.shared.link.send_replace(None);
            self.shared.outbox().reset(Instant::now());
            let _ = self.to_agent.send(FromManager::Disconnected);
            match end {
                End::Closed => break SessionState::Closed,
                End::Removed => break SessionState::Removed,
                End::Resync => mark = SessionMark::default(),
                End::Again => {}
                End::Lost(error) => self.lost(&addr, &error, &mut picker),
                End::Silent(error) => {
                    self.patience.ran_out();
                    self.lost(&addr, &error, &mut picker);
                }
                End::Refused(error) => {
                    tracing::debug!(manager = %addr, %error, "no session");
                    self.connecting(Some(format!("{addr}: {error}")));
                }
            }
        };
        self.shared.state.send_replace(last);
    }

    fn lost(&self, addr: &str, error: &str, picker: &mut ManagerPicker) {
        tracing::warn!(manager = %addr, %error, "lost the manager; containers go on");
        picker.lost(addr);
        self.connecting(Some(format!("{addr}: {error}")));
    }

    fn connecting(&self, error: Option<String>) {
        self.shared.state.send_replace(SessionState::Connecting { error });
    }
}
