//! The dispatcher: nodes' sessions. A node registers, sends heartbeats and what it observes, and gets what it is to run.
//!
//! | file | job |
//! |---|---|
//! | `service.rs` | the gRPC service |
//! | `session.rs` | one node's session, from registration to its end |
//! | `sessions.rs` | who is connected; what was sent, for resuming |
//! | `registrations.rs` | one registration of each node at a time |
//! | `number.rs` | assignment messages, numbered and cut to size |
//! | `statuses.rs`, `gather.rs`, `reports.rs` | what nodes report: checked, the latest of each node, written together |
//! | `observe.rs` | the changes to a node's observed part |
//! | `lead.rs` | what the leader does beside: who is silent, and writing it down |
//! | `health.rs`, `pulse.rs` | who is silent; the thread that notices |
//! | `relay/`, `links.rs` | between managers: what this one tells the leader, what the leader tells it |
//! | `bond.rs` | whether a leader is heard, so that sessions may stand |
//! | `homes.rs`, `reach.rs` | where nodes have their sessions, and the way there |
//! | `networks.rs` | the tables of networks that nodes hear, and how far they are with them |
//! | `checks.rs` | asks nodes how their networks are |
//! | `images.rs`, `sources.rs` | who holds which image; where to fetch one |
//! | `cluster.rs`, `limits.rs` | what all sessions are told; every bound |
//!
//! It runs on every manager: assignments are computed from this manager's own applied state, and what nodes report is
//! written by the store, which hands it to the leader. Only the leader judges who is silent ([`Dispatcher::lead`]). A
//! manager that hears no leader refuses and ends sessions. Nothing here decides what a node runs, and nothing waits for a
//! node.

mod bond;
pub(crate) mod checks;
mod cluster;
mod gather;
mod health;
pub(crate) mod homes;
mod images;
mod lead;
pub(crate) mod limits;
mod links;
pub(crate) mod networks;
mod number;
mod observe;
mod pulse;
pub(crate) mod reach;
mod registrations;
mod relay;
mod reports;
mod service;
mod session;
pub(crate) mod sessions;
mod sources;
mod statuses;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use skep_core::network::table;
use skep_core::orchestrate::Drained;
use skep_core::store::State;
use skep_identity::LiveCredentials;
use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1::dispatch_server::DispatchServer;
use skep_proto::v1::logs_server::{Logs, LogsServer};
use skep_proto::v1::relay_client::RelayClient;
use skep_proto::v1::relay_server::RelayServer;
use skep_proto::v1::{HoldersRequest, NetworkDriver, RenewCertificate, session_down};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use self::bond::Bond;
use self::checks::NodeChecks;
use self::cluster::ClusterView;
use self::images::ImageIndex;
pub use self::lead::DispatcherLead;
use self::lead::Leading;
use self::limits::{HOLDERS_WITHIN, MORE_HOLDERS_WITHIN, RELAY_MESSAGE};
pub use self::links::{Alone, LeaderLink, ManagerLinks};
pub(crate) use self::networks::Behind;
use self::networks::{AppliedTables, NodesView};
pub use self::networks::{Follower, NetworkTables};
pub(crate) use self::observe::{is_hostname, stored_role};
use self::reach::{Reach, Route};
use self::registrations::Registrations;
use self::relay::Order;
use self::reports::Reports;
use self::sessions::{End, Sessions};
use crate::logs::{LogBroker, LogStreams};
use crate::store::Store;
use crate::topic::Topic;

/// How long changes of nodes gather before the view that sessions share is made anew.
const VIEW_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// How often what is kept for nodes that are gone is thrown away.
const SWEEP_EVERY: std::time::Duration = std::time::Duration::from_secs(30);

/// The dispatcher. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Dispatcher(Arc<Shared>);

struct Shared {
    /// This manager's node.
    me: NodeId,
    store: Store,
    credentials: LiveCredentials,
    links: Arc<dyn ManagerLinks>,
    images: ImageIndex,
    networks: NetworkTables,
    applied: AppliedTables,
    sessions: Sessions,
    registrations: Registrations,
    reach: Reach,
    logs: LogStreams,
    checks: NodeChecks,
    reports: Reports,
    view: watch::Sender<ClusterView>,
    bond: Bond,
    /// Nodes heard here since the leader was told.
    heard: Mutex<BTreeSet<NodeId>>,
    leading: watch::Sender<Option<Arc<Leading>>>,
}

impl Dispatcher {
    /// A dispatcher that refuses sessions until it runs and hears a leader. `credentials` sign image tickets, and say which
    /// node this manager is. Call it within a tokio runtime.
    pub fn new(store: Store, credentials: LiveCredentials, links: Arc<dyn ManagerLinks>) -> Self {
        let me = credentials.current().identity().node_id;
        let sessions = Sessions::new();
        let reach = Reach::new(me, sessions.clone(), Arc::clone(&links));
        let view = watch::channel(ClusterView::of(&store.state())).0;
        Self(Arc::new(Shared {
            me,
            logs: LogStreams::new(reach.clone()),
            checks: NodeChecks::new(reach.clone()),
            reports: Reports::start(store.clone()),
            networks: NetworkTables::new(store.state()),
            applied: AppliedTables::new(),
            store,
            credentials,
            links,
            images: ImageIndex::default(),
            sessions,
            registrations: Registrations::default(),
            reach,
            view,
            bond: Bond::new(),
            heard: Mutex::default(),
            leading: watch::channel(None).0,
        }))
    }

    /// The gRPC service for nodes, for a server with mutual TLS.
    pub fn service(&self) -> DispatchServer<Self> {
        DispatchServer::new(self.clone())
    }

    /// The gRPC service for other managers, for a server with mutual TLS.
    pub fn relay_service(&self) -> RelayServer<Self> {
        RelayServer::new(self.clone()).max_decoding_message_size(RELAY_MESSAGE)
    }

    /// The gRPC service that reads logs, wherever their nodes have their sessions: for a server with mutual TLS, and for
    /// the socket file.
    pub fn logs_service(&self) -> LogsServer<impl Logs> {
        LogBroker::new(self).service()
    }

    /// Runs for as long as this manager does, whoever leads: relays to the leader, watches whether one is heard. Dropping
    /// it ends all sessions.
    pub async fn run(self) {
        let _stop = StopOnDrop(self.clone());
        tokio::join!(
            relay::run(self.clone()),
            bond::watch(self.clone()),
            keep_view(self.clone()),
            keep_homes(self.clone()),
            self.0.networks.clone().run(self.0.store.clone()),
            sweep(self.clone()),
        );
    }

    /// Leadership begins: nodes that had a session have a grace to come back, and from then on silent ones are written
    /// down. Call it within a tokio runtime. Fails only if no thread can be started.
    pub fn lead(&self) -> std::io::Result<DispatcherLead> {
        DispatcherLead::begin(self)
    }

    /// Tells a node to renew its certificate now. Says whether it is known to have a session; only the leader reaches nodes
    /// whose session is at another manager.
    pub fn renew(&self, node: NodeId) -> bool {
        match self.0.reach.route(node) {
            Some(Route::Here(_)) => {
                let message = session_down::Message::RenewCertificate(RenewCertificate {});
                self.0.sessions.send(node, message).is_ok()
            }
            Some(Route::There(home)) => self.order(home.manager, Order::Renew(node)),
            None => false,
        }
    }

    /// Ends a node's session; it may come back. A removed node's session ends by itself, after it was told. Only the leader
    /// reaches nodes whose session is at another manager.
    pub fn disconnect(&self, node: NodeId) {
        match self.0.reach.route(node) {
            Some(Route::Here(_)) => self.0.sessions.close(node, End::Reconnect),
            Some(Route::There(home)) => drop(self.order(home.manager, Order::Reconnect(node))),
            None => {}
        }
    }

    fn order(&self, manager: NodeId, order: Order) -> bool {
        self.leading().is_some_and(|leading| leading.order(manager, order))
    }

    /// Whether the node has a session, here or at another manager.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.0.reach.route(node).is_some()
    }

    /// Whether this manager takes sessions: it leads, or hears who does.
    pub fn takes_sessions(&self) -> bool {
        self.0.bond.holds()
    }

    /// Nodes that say that they hold an image (digest of a manifest or index), by id. A hint, not a promise. Asks the
    /// leader, a second at most, or a tenth where some are known here; without it, the nodes of this manager.
    pub async fn holders(&self, digest: &str) -> Vec<NodeId> {
        let here = self.0.images.holders(digest);
        let LeaderLink::Other(leader) = self.0.links.leader() else { return here };
        // What is left of sessions that went elsewhere is old: the leader knows better.
        let here = here.into_iter().filter(|node| self.0.sessions.connection(*node).is_some());
        let mut holders: BTreeSet<NodeId> = here.collect();
        let mut leader = RelayClient::new(leader);
        let within = if holders.is_empty() { HOLDERS_WITHIN } else { MORE_HOLDERS_WITHIN };
        let asked = timeout(within, leader.holders(HoldersRequest { digest: digest.to_owned() }));
        match asked.await {
            Ok(Ok(answer)) => {
                let nodes = answer.into_inner().node_ids;
                holders.extend(nodes.iter().filter_map(|id| NodeId::from_wire(id).ok()));
            }
            Ok(Err(error)) => debug!(%error, "the leader does not say who holds an image"),
            Err(_) => debug!("the leader does not say in time who holds an image"),
        }
        holders.into_iter().collect()
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    pub(crate) fn reach(&self) -> &Reach {
        &self.0.reach
    }

    pub(crate) fn log_streams(&self) -> &LogStreams {
        &self.0.logs
    }

    /// Asks nodes how their networks are.
    pub(crate) fn checks(&self) -> &NodeChecks {
        &self.0.checks
    }

    /// The versions of network tables that are here now.
    pub(crate) fn table_versions(&self) -> std::collections::BTreeMap<NetworkId, u64> {
        self.0.networks.versions()
    }

    /// Which versions of network tables nodes have applied; of all nodes while this manager leads.
    pub(crate) fn applied_tables(&self) -> &AppliedTables {
        &self.0.applied
    }

    /// Whether the connected nodes that hold a network's table have applied a version, as far as this manager, which leads,
    /// was told. `behind` remembers who had not, so that asking again costs what has changed since.
    pub(crate) fn drained(&self, state: &State, network: NetworkId, since: u64, behind: &mut Behind) -> Drained {
        // A node without an end in the mesh takes no part in overlays, the routing mesh's among them.
        let is_overlay = state.network(network).is_some_and(|network| network.spec.driver() == NetworkDriver::Overlay);
        let takes_part = |node: NodeId| {
            let description = state.node(node).and_then(|node| node.description.as_ref());
            !is_overlay || description.is_some_and(|description| description.fabric.is_some())
        };
        let counts = |node: NodeId| takes_part(node) && self.is_connected(node);
        if !table::any_member(state, network, counts) {
            return Drained::NoNode;
        }
        let view = NodesView {
            members: || table::members(state, network),
            // Where it is no member any more it was told to forget the table.
            counts: |node| table::is_member(state, network, node) && counts(node),
            version: |node| self.0.applied.version(node, network),
        };
        if behind.all_have(network, since, view) { Drained::All } else { Drained::Waiting }
    }

    /// A node said something here: the leader hears of it, at once or with the next message.
    fn heard(&self, node: NodeId) {
        match self.leading() {
            Some(leading) => leading.pulse.heard(node),
            None => drop(self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(node)),
        }
    }

    /// Nodes heard since the last call.
    fn take_heard(&self) -> BTreeSet<NodeId> {
        std::mem::take(&mut *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn leading(&self) -> Option<Arc<Leading>> {
        self.0.leading.borrow().clone()
    }
}

/// Ends all sessions when the dispatcher stops.
struct StopOnDrop(Dispatcher);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // First nobody new, then nobody at all.
        self.0.0.bond.stop();
        self.0.0.sessions.close_all(End::Stopping);
    }
}

/// Keeps what all sessions are told up to date.
async fn keep_view(dispatcher: Dispatcher) {
    let store = dispatcher.store();
    let (mut nodes, mut cluster) = (store.watch(Topic::Nodes), store.watch(Topic::Cluster));
    loop {
        let now = ClusterView::of(&store.state());
        dispatcher.0.view.send_if_modified(|view| {
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

/// Keeps the leader's table of homes right about the leader's own sessions; everyone else is told by the leader.
async fn keep_homes(dispatcher: Dispatcher) {
    let (me, reach) = (dispatcher.0.me, dispatcher.reach());
    let mut changed = dispatcher.sessions().watch();
    let mut leading = dispatcher.0.leading.subscribe();
    loop {
        changed.mark_unchanged();
        let leads = leading.borrow_and_update().is_some();
        if leads {
            let mut own = reach.homes(Clone::clone);
            own.replace(me, dispatcher.sessions().open());
            // Only then, since an update counts as a change itself.
            if reach.homes(|homes| *homes != own) {
                reach.update(|homes| homes.replace(me, dispatcher.sessions().open()));
            }
        }
        tokio::select! {
            _ = changed.changed() => {}
            _ = leading.changed() => {}
        }
        tokio::time::sleep(limits::RELAY_NEWS_EVERY).await;
    }
}

/// Throws away what is kept for nodes that are gone.
async fn sweep(dispatcher: Dispatcher) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        dispatcher.0.sessions.sweep(Instant::now());
        dispatcher.0.registrations.sweep(tokio::time::Instant::now());
        let state = dispatcher.0.store.state();
        dispatcher.0.images.retain(|node| state.node(node).is_some());
        dispatcher.0.applied.retain(|node| state.node(node).is_some());
        dispatcher.0.networks.sweep();
    }
}
