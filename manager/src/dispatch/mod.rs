//! The dispatcher: nodes' sessions. A node registers, sends heartbeats and what it observes, and gets what it is to run.
//!
//! | file | job |
//! |---|---|
//! | `service.rs` | the gRPC service |
//! | `session.rs` | one node's session, from registration to its end |
//! | `sessions.rs` | who is connected; what was sent, for resuming |
//! | `number.rs` | assignment messages, numbered and cut to size |
//! | `statuses.rs`, `reports.rs` | what nodes report: checked, then written together |
//! | `health.rs`, `pulse.rs` | who is silent; the thread that notices |
//! | `observe.rs` | the changes to a node's observed part |
//! | `images.rs`, `sources.rs` | who holds which image; where to fetch one |
//! | `cluster.rs`, `limits.rs` | what all sessions are told; every bound |
//!
//! It runs on the leader only: [`Dispatcher::lead`] gives a guard, and without one every session is refused. Nothing
//! here decides what a node runs, and nothing waits for a node.

mod cluster;
mod health;
mod images;
pub(crate) mod limits;
mod number;
mod observe;
mod pulse;
mod reports;
mod service;
mod session;
pub(crate) mod sessions;
mod sources;
mod statuses;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use skep_identity::LiveCredentials;
use skep_proto::id::NodeId;
use skep_proto::v1::dispatch_server::DispatchServer;
use skep_proto::v1::{NodeState, RenewCertificate, session_down};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::cluster::ClusterView;
use self::health::{Health, Lost};
use self::images::ImageIndex;
pub(crate) use self::observe::{is_hostname, stored_role};
use self::pulse::{Pulse, PulseThread};
use self::reports::Reports;
use self::sessions::{End, Sessions};
use crate::logs::LogStreams;
use crate::store::Store;
use crate::topic::Topic;

/// How long changes of nodes gather before the view that sessions share is made anew.
const VIEW_PAUSE: Duration = Duration::from_millis(100);
/// How often what is kept for nodes that are gone is thrown away.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Pause before a failed write about lost nodes is tried again.
const DOWN_RETRY: Duration = Duration::from_millis(500);

/// The dispatcher. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Dispatcher(Arc<Shared>);

struct Shared {
    store: Store,
    credentials: LiveCredentials,
    images: ImageIndex,
    sessions: Sessions,
    logs: LogStreams,
    leading: RwLock<Option<Arc<Leading>>>,
}

/// What sessions use while this manager leads.
struct Leading {
    reports: Reports,
    pulse: Pulse,
    view: watch::Receiver<ClusterView>,
}

/// While it lives, this manager takes sessions. Dropped when leadership is lost: all sessions end.
#[must_use = "sessions are refused once it is dropped"]
pub struct DispatcherLead {
    dispatcher: Dispatcher,
    /// Stops with the guard.
    _thread: PulseThread,
    _tasks: JoinSet<()>,
}

impl Dispatcher {
    /// A dispatcher that refuses sessions until it leads. `credentials` sign image tickets.
    pub fn new(store: Store, credentials: LiveCredentials) -> Self {
        let sessions = Sessions::new();
        Self(Arc::new(Shared {
            logs: LogStreams::new(sessions.clone()),
            store,
            credentials,
            images: ImageIndex::default(),
            sessions,
            leading: RwLock::default(),
        }))
    }

    /// The gRPC service, for a server with mutual TLS.
    pub fn service(&self) -> DispatchServer<Self> {
        DispatchServer::new(self.clone())
    }

    /// Leadership begins: sessions are taken, and nodes that had one have a grace to come back. Call it within a tokio
    /// runtime. Fails only if no thread can be started.
    pub fn lead(&self) -> std::io::Result<DispatcherLead> {
        let store = &self.0.store;
        let state = store.state();
        let view = ClusterView::of(&state);
        let mut health = Health::new(view.window());
        let away = |state| matches!(state, NodeState::Ready | NodeState::Disconnected | NodeState::Unknown);
        // A node that joined but never had a session has nothing to lose: it stays as it is until it registers.
        let known = state.nodes().filter(|node| !node.status.addr.is_empty() && away(node.status.state));
        health.await_nodes(known.map(|node| node.id), Instant::now());

        let (lost, losses) = mpsc::unbounded_channel();
        let tell = move |nodes: Vec<Lost>| {
            // An error: leadership is over.
            let _ = lost.send(nodes);
        };
        let (pulse, thread) = Pulse::start(health, tokio::runtime::Handle::current(), tell)?;
        let reports = Reports::start(store.clone());
        let (viewed, view) = watch::channel(view);
        let mut tasks = JoinSet::new();
        tasks.spawn(mark_down(store.clone(), reports.clone(), pulse.clone(), losses));
        tasks.spawn(keep_view(self.clone(), pulse.clone(), viewed));
        tasks.spawn(sweep(self.clone()));
        self.set_leading(Some(Arc::new(Leading { reports, pulse, view })));
        Ok(DispatcherLead { dispatcher: self.clone(), _thread: thread, _tasks: tasks })
    }

    /// Tells a node to renew its certificate now. Says whether it has a session.
    pub fn renew(&self, node: NodeId) -> bool {
        let message = session_down::Message::RenewCertificate(RenewCertificate {});
        self.0.sessions.send(node, message).is_ok()
    }

    /// Ends a node's session; it may come back. A removed node's session ends by itself, after it was told.
    pub fn disconnect(&self, node: NodeId) {
        self.0.sessions.close(node, End::Reconnect);
    }

    /// Whether the node has a session here.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.0.sessions.connection(node).is_some()
    }

    /// Nodes that say that they hold an image (digest of a manifest or index), by id. A hint, not a promise.
    pub fn holders(&self, digest: &str) -> Vec<NodeId> {
        self.0.images.holders(digest)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    pub(crate) fn log_streams(&self) -> &LogStreams {
        &self.0.logs
    }

    fn leading(&self) -> Option<Arc<Leading>> {
        self.0.leading.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_leading(&self, leading: Option<Arc<Leading>>) {
        *self.0.leading.write().unwrap_or_else(PoisonError::into_inner) = leading;
    }
}

impl Drop for DispatcherLead {
    fn drop(&mut self) {
        // First nobody new, then nobody at all.
        self.dispatcher.set_leading(None);
        self.dispatcher.0.sessions.close_all(End::NotLeading);
        self.dispatcher.0.images.clear();
    }
}

/// Writes down which nodes are lost. A node that is heard again meanwhile is not.
async fn mark_down(store: Store, reports: Reports, pulse: Pulse, mut losses: mpsc::UnboundedReceiver<Vec<Lost>>) {
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
            match reports.store(changes).await {
                Ok(_) => break,
                Err(error) => warn!(%error, "cannot write down which nodes are down"),
            }
            tokio::time::sleep(DOWN_RETRY).await;
        }
    }
}

/// Keeps what all sessions are told up to date.
async fn keep_view(dispatcher: Dispatcher, pulse: Pulse, view: watch::Sender<ClusterView>) {
    let store = dispatcher.store();
    let (mut nodes, mut cluster) = (store.watch(Topic::Nodes), store.watch(Topic::Cluster));
    loop {
        let now = ClusterView::of(&store.state());
        pulse.set_window(now.window());
        view.send_if_modified(|view| {
            let changed = *view != now;
            *view = now;
            changed
        });
        tokio::select! {
            () = nodes.changed() => {}
            () = cluster.changed() => {}
        }
        tokio::time::sleep(VIEW_PAUSE).await;
    }
}

/// Throws away what is kept for nodes that are gone.
async fn sweep(dispatcher: Dispatcher) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        dispatcher.0.sessions.sweep(Instant::now());
        let state = dispatcher.0.store.state();
        dispatcher.0.images.retain(|node| state.node(node).is_some());
    }
}
