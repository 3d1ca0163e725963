//! One node's session: registration, then two loops side by side, one that reads what the node says and one that sends
//! what it is to run. A task of its own for each session; it ends with the connection, with the node's next session at
//! whatever manager, or when this manager hears no leader any more.
//!
//! A slow node hurts only itself: messages to it wait in bounded channels, and what it says waits unread while its
//! reports are being stored.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt as _, Stream, StreamExt as _};
use skep_core::assign::AssignmentSet;
use skep_core::change::Change;
use skep_core::network::table::networks_of_node;
use skep_core::object::Node;
use skep_identity::PeerIdentity;
use skep_proto::id::{NodeId, SessionId};
use skep_proto::v1;
use skep_proto::v1::session_down::Message as DownMessage;
use skep_proto::v1::session_up::Message as UpMessage;
use skep_proto::v1::{
    Assignments, Denied, Heartbeat, HeartbeatAck, HeldImages, NodeDescription, NodeState, Register, Removed,
    SessionDown, SessionUp, StatusAck, StatusBatch, TrustedRoots,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Status;
use tracing::{debug, info, warn};

use super::cluster::{ClusterView, heartbeat_period_ms};
use super::gather::Gather;
use super::homes::Registered;
use super::limits::{
    ASSIGN_EVERY, COMPLETE_BYTES, DIFFERENCE_BYTES, FAREWELL_WITHIN, PENDING_BATCHES, REGISTER_WITHIN,
};
use super::networks::Follower;
use super::number::{self, Sizes};
use super::service::no_leader;
use super::sessions::{Begun, Down, End};
use super::{Dispatcher, observe, statuses};
use crate::store::WriteError;
use crate::topic::Topic;

const SIZES: Sizes = Sizes { complete: COMPLETE_BYTES, difference: DIFFERENCE_BYTES };

/// One connection of a node that asks for a session.
pub(super) struct Session {
    pub(super) dispatcher: Dispatcher,
    pub(super) peer: PeerIdentity,
    /// From where, without the port; empty if the transport does not say.
    pub(super) addr: String,
    /// Acknowledgements and requests; sent before assignments.
    pub(super) urgent: mpsc::Sender<Down>,
    pub(super) bulk: mpsc::Sender<Down>,
}

/// A node that is written down as ready.
struct Registration {
    begun: Begun,
    registered: Registered,
    /// What the node is told of the swarm at first.
    told: ClusterView,
    tables: Follower,
    /// What it says of itself, if that came too soon after the last time.
    description: Option<NodeDescription>,
}

/// How a session comes to its end.
enum Over {
    /// The connection is gone: there is nobody to tell.
    Gone,
    /// The node was told that it was removed.
    Removed,
    /// The node is told why.
    Refused(Status),
}

/// What the reading loop waits for before it is done with a message.
enum Work {
    /// The statuses of these batches are stored.
    Batches(Vec<u64>),
    /// Something of the node itself is stored.
    Node,
}

type WorkDone = BoxFuture<'static, Result<Work, WriteError>>;
type Works = FuturesOrdered<WorkDone>;

impl From<Status> for Over {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl Session {
    /// Runs to the end.
    pub(super) async fn run(self, mut up: impl Stream<Item = Result<SessionUp, Status>> + Unpin + Send) {
        let (node, urgent) = (self.peer.node_id, self.urgent.clone());
        let mut bond = self.dispatcher.0.bond.subscribe();
        let registered = tokio::select! {
            biased;
            _ = bond.wait_for(|holds| !holds) => Err(no_leader().into()),
            registered = self.register(&mut up) => registered,
        };
        let over = match registered {
            Ok(registration) => {
                let connection = registration.begun.connection;
                let over = tokio::select! {
                    biased;
                    _ = bond.wait_for(|holds| !holds) => no_leader().into(),
                    over = self.serve(registration, up) => over,
                };
                match over {
                    Over::Removed => self.dispatcher.sessions().forget(node, connection),
                    Over::Gone | Over::Refused(_) => self.dispatcher.sessions().end(node, connection),
                }
                over
            }
            Err(over) => over,
        };
        match over {
            Over::Gone => debug!(%node, "the session's connection is gone"),
            Over::Removed => info!(%node, "the session of a removed node has ended"),
            Over::Refused(status) => {
                info!(%node, reason = status.message(), "the session has ended");
                // An error: the node has hung up, or reads nothing.
                let _ = timeout(FAREWELL_WITHIN, urgent.send(Err(status))).await;
            }
        }
    }

    fn node(&self) -> NodeId {
        self.peer.node_id
    }

    /// Takes the first message, and writes the node down as ready.
    async fn register(
        &self,
        up: &mut (impl Stream<Item = Result<SessionUp, Status>> + Unpin + Send),
    ) -> Result<Registration, Over> {
        let Register { description, session_id, sequence, networks } = first(up).await?;
        let mut description =
            observe::checked(description).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let session = SessionId::from_wire_opt(&session_id)
            .map_err(|error| Status::invalid_argument(format!("the session id: {error}")))?;

        let registrations = &self.dispatcher.0.registrations;
        let Some(_turn) = registrations.turn(self.node()).await else {
            return Err(end_status(End::Replaced).into());
        };
        let store = self.dispatcher.store();
        let Some(known) = store.state().node(self.node()).cloned() else {
            return Err(self.unknown().await);
        };
        self.check_fabric(&mut description);
        let (description, later) = self.when_to_describe(&known, description);
        // From here on silence counts, so that a node that is written down as ready is watched.
        self.dispatcher.heard(self.node());
        let change = observe::registered(&known, description, self.peer.role, self.addr.clone(), store.now());
        let stored = self.dispatcher.0.reports.store(vec![change]).await.map_err(|error| unavailable(&error))?;
        // Whatever any manager sent the node before is in this manager's state from here on: a set never goes back.
        store.applied(stored.version).await;
        let state = store.state();
        if state.node(self.node()).is_none() {
            return Err(self.removed().await);
        }
        // Not from the shared view, which may be a moment old: a node that knows no manager is lost with this one.
        let told = ClusterView::of(&state);
        let resume = session.map(|session| (session, sequence));
        // Nothing is waited for from here to `serve`, so that what begins is ended.
        let registered = Registered { version: stored.version, at: store.now() };
        let begun = self.dispatcher.sessions().begin(self.node(), registered, resume, self.urgent.clone());
        self.dispatcher.0.applied.update(self.node(), &networks);
        let tables = self.dispatcher.0.networks.follow(self.node(), &networks);
        Ok(Registration { begun, registered, told, tables, description: later })
    }

    /// A description to be written with the registration, or one that is to wait: it is news, and another was written a moment
    /// ago.
    fn when_to_describe(
        &self,
        known: &Node,
        description: NodeDescription,
    ) -> (Option<NodeDescription>, Option<NodeDescription>) {
        if known.description.as_deref() == Some(&description) {
            return (None, None);
        }
        let (registrations, now) = (&self.dispatcher.0.registrations, Instant::now());
        // A node that is not described yet cannot wait: nothing could be placed on it.
        if known.description.is_some() && registrations.describe_at(self.node()).is_some_and(|at| at > now) {
            return (None, Some(description));
        }
        registrations.described(self.node(), now);
        (Some(description), None)
    }

    /// The state does not know the node: it was removed, or this manager is behind.
    async fn unknown(&self) -> Over {
        if self.dispatcher.store().state().is_denied(self.node()) {
            return self.removed().await;
        }
        Status::unavailable("this manager does not know the node yet: try another one").into()
    }

    /// Says that the node is registered, then reads and sends until the session ends. Its own end comes first, since it
    /// may already be another's turn.
    async fn serve(
        &self,
        registration: Registration,
        up: impl Stream<Item = Result<SessionUp, Status>> + Unpin + Send,
    ) -> Over {
        let Registration { begun, registered, told, tables, description } = registration;
        let Begun { session, connection, resumed, ended } = begun;
        if self.dispatcher.reach().is_superseded(self.node(), registered) {
            return end_status(End::Replaced).into();
        }
        let answer = v1::Registered {
            session_id: session.to_vec(),
            heartbeat_period_ms: i64::try_from(told.period.as_millis()).unwrap_or(i64::MAX),
            managers: Some(told.managers.clone()),
            resumed: resumed.is_some(),
        };
        info!(node = %self.node(), addr = self.addr, resumed = answer.resumed, "a node has registered");
        if let Err(over) = self.tell(DownMessage::Registered(answer)).await {
            return over;
        }
        tokio::select! {
            biased;
            why = ended => end_status(why.unwrap_or(End::Stopping)).into(),
            over = self.read(connection, description, up) => over,
            over = self.assign(connection, resumed, told, tables) => over,
        }
    }

    /// Tells the node that it was removed.
    async fn removed(&self) -> Over {
        let told = self.tell(DownMessage::Removed(Removed {})).await;
        told.err().unwrap_or(Over::Removed)
    }

    async fn tell(&self, message: DownMessage) -> Result<(), Over> {
        self.urgent.send(Ok(SessionDown { message: Some(message) })).await.map_err(|_| Over::Gone)
    }

    // --- what the node says ---

    /// `description` waits since the registration.
    async fn read(
        &self,
        connection: u64,
        description: Option<NodeDescription>,
        mut up: impl Stream<Item = Result<SessionUp, Status>> + Unpin,
    ) -> Over {
        let mut working = Works::new();
        let describe_at = self.dispatcher.0.registrations.describe_at(self.node());
        let mut gather = Gather::new(describe_at.unwrap_or_else(Instant::now));
        if let Some(description) = description {
            gather.describe(description);
        }
        let mut leaving = false;
        loop {
            working.extend(self.statuses(&mut gather));
            let full = working.len() >= PENDING_BATCHES || gather.is_full();
            let describe_at = gather.description_due().filter(|_| !full);
            let period = self.dispatcher.0.view.borrow().period;
            tokio::select! {
                Some(done) = working.next() => {
                    if let Err(over) = self.acknowledge(done, &mut gather).await {
                        return over;
                    }
                }
                () = sleep_until(describe_at.unwrap_or_else(Instant::now)), if describe_at.is_some() => {
                    working.extend(self.describe(&mut gather));
                }
                message = up.next(), if !full => {
                    let message = match message {
                        Some(Ok(SessionUp { message: Some(message) })) => message,
                        // A kind of message that this version does not know.
                        Some(Ok(SessionUp { message: None })) => continue,
                        Some(Err(_)) => return Over::Gone,
                        None => return self.finish(working, gather).await,
                    };
                    self.dispatcher.heard(self.node());
                    let work = match message {
                        UpMessage::Heartbeat(heartbeat) => self.heartbeat(connection, &heartbeat, leaving),
                        UpMessage::Statuses(batch) => {
                            self.reported(batch, &mut gather);
                            None
                        }
                        UpMessage::Description(description) => {
                            self.described(description, &mut gather);
                            None
                        }
                        UpMessage::Images(held) => self.images(&held),
                        UpMessage::Goodbye(goodbye) => {
                            if !std::mem::replace(&mut leaving, true) {
                                self.goodbye(goodbye.leaving);
                            }
                            None
                        }
                        UpMessage::Register(_) => {
                            return Status::invalid_argument("the session is registered already").into();
                        }
                    };
                    working.extend(work);
                }
                // It is the store that is slow, not the node.
                () = sleep(period), if full => self.dispatcher.heard(self.node()),
            }
        }
    }

    /// The node has said all it wants to say: what it said last is stored and acknowledged, at its time.
    async fn finish(&self, mut working: Works, mut gather: Gather) -> Over {
        loop {
            working.extend(self.statuses(&mut gather));
            let describe_at = gather.description_due();
            tokio::select! {
                Some(done) = working.next() => {
                    if let Err(over) = self.acknowledge(done, &mut gather).await {
                        return over;
                    }
                }
                () = sleep_until(describe_at.unwrap_or_else(Instant::now)), if describe_at.is_some() => {
                    working.extend(self.describe(&mut gather));
                }
                else => return Over::Gone,
            }
        }
    }

    /// In order: an acknowledgement stands for all batches before it, too.
    async fn acknowledge(&self, done: Result<Work, WriteError>, gather: &mut Gather) -> Result<(), Over> {
        match done {
            Ok(Work::Node) => Ok(()),
            Ok(Work::Batches(batches)) => {
                gather.written();
                for batch in batches {
                    self.tell(DownMessage::StatusAck(StatusAck { batch })).await?;
                }
                Ok(())
            }
            Err(error) => Err(unavailable(&error).into()),
        }
    }

    /// Acknowledges at once, and writes the node down as ready if something else is written there.
    fn heartbeat(&self, connection: u64, heartbeat: &Heartbeat, leaving: bool) -> Option<WorkDone> {
        let store = self.dispatcher.store();
        let state = store.state();
        let ack = DownMessage::HeartbeatAck(HeartbeatAck { heartbeat_period_ms: heartbeat_period_ms(&state) });
        // A node that does not read its acknowledgements has enough of them.
        let _ = self.urgent.try_send(Ok(SessionDown { message: Some(ack) }));
        self.dispatcher.sessions().applied(self.node(), connection, heartbeat.applied_sequence);
        self.dispatcher.0.applied.update(self.node(), &heartbeat.networks);

        let node = state.node(self.node())?;
        if leaving || node.status.state == NodeState::Ready {
            return None;
        }
        info!(node = %self.node(), "a node that was down is heard again");
        Some(self.observe(observe::ready(node, self.addr.clone(), store.now())))
    }

    fn reported(&self, batch: StatusBatch, gather: &mut Gather) {
        let number = batch.batch;
        let store = self.dispatcher.store();
        let checked = statuses::check(&store.state(), self.node(), batch.statuses, store.now());
        if checked.foreign > 0 || checked.malformed > 0 {
            let (foreign, malformed) = (checked.foreign, checked.malformed);
            warn!(node = %self.node(), foreign, malformed, "reports that the node cannot make are left out");
        }
        gather.statuses(number, checked.changes);
    }

    /// Writes the statuses that came together, if none are being written.
    fn statuses(&self, gather: &mut Gather) -> Option<WorkDone> {
        let (batches, changes) = gather.next()?;
        let reports = self.dispatcher.0.reports.clone();
        let stored = async move {
            // An empty batch waits for its turn only.
            if !changes.is_empty() {
                reports.store(changes).await?;
            }
            Ok(Work::Batches(batches))
        };
        Some(stored.boxed())
    }

    fn described(&self, description: NodeDescription, gather: &mut Gather) {
        match observe::checked(Some(description)) {
            Ok(mut description) => {
                self.check_fabric(&mut description);
                gather.describe(description);
            }
            Err(error) => warn!(node = %self.node(), %error, "a description is left out"),
        }
    }

    fn check_fabric(&self, description: &mut NodeDescription) {
        let state = self.dispatcher.store().state();
        if let Some(why) = observe::without_bad_fabric(&state, self.node(), description) {
            warn!(node = %self.node(), why, "the node takes no part in networks: other hosts are not told of it");
        }
    }

    /// Writes what the node says of itself, if that is news.
    fn describe(&self, gather: &mut Gather) -> Option<WorkDone> {
        let now = Instant::now();
        let description = gather.description(now)?;
        let state = self.dispatcher.store().state();
        if state.node(self.node())?.description.as_deref() == Some(&description) {
            return None;
        }
        self.dispatcher.0.registrations.described(self.node(), now);
        Some(self.observe(observe::described(self.node(), description)))
    }

    fn images(&self, held: &HeldImages) -> Option<WorkDone> {
        let passed_over = self.dispatcher.0.images.update(self.node(), held);
        if passed_over > 0 {
            warn!(node = %self.node(), passed_over, "held images are left out: not digests, or too many");
        }
        None
    }

    /// The connection may be gone before this is stored, so it is stored apart.
    fn goodbye(&self, leaves: bool) {
        let (store, node) = (self.dispatcher.store(), self.node());
        let state = store.state();
        let Some(known) = state.node(node) else { return };
        let change = if leaves { observe::left(known, store.now()) } else { observe::stopping(known, store.now()) };
        let leaving = self.observe(change);
        tokio::spawn(async move {
            if let Err(error) = leaving.await {
                debug!(%node, %error, "cannot write down that a node is leaving");
            }
        });
    }

    fn observe(&self, change: Change) -> WorkDone {
        let reports = self.dispatcher.0.reports.clone();
        async move { reports.store(vec![change]).await.map(|_| Work::Node) }.boxed()
    }

    // --- what the node is to run ---

    /// Sends the node's set, then what changes in it: the first change at once, a burst of them together.
    /// `told` is what it knows of the swarm, but for the nodes that are out.
    async fn assign(
        &self,
        connection: u64,
        resumed: Option<(u64, Arc<AssignmentSet>)>,
        mut told: ClusterView,
        mut tables: Follower,
    ) -> Over {
        let store = self.dispatcher.store();
        let mut own = store.watch(Topic::Node(self.node()));
        let mut view = self.dispatcher.0.view.subscribe();
        // Whatever came since the registration is news.
        view.mark_changed();
        let mut sent = resumed;
        // What it is to run, not only its networks.
        let mut is_changed = true;
        let all = denied(true, &BTreeSet::new(), &told.denied);
        if let Err(over) = self.tell(DownMessage::Denied(all)).await {
            return over;
        }
        if let Err(over) = self.tell(roots(&told)).await {
            return over;
        }
        loop {
            let looked = Instant::now();
            let state = store.state();
            if state.node(self.node()).is_none() {
                return self.removed().await;
            }
            // A task's networks come before it, and go after it.
            let needed = networks_of_node(&state, self.node());
            let news = tables.news(&state, &needed).await;
            if let Err(over) = self.send_tables(news).await {
                return over;
            }
            let set = is_changed.then(|| Arc::new(AssignmentSet::of(&state, self.node())));
            drop(state);
            let messages = match (&sent, &set) {
                (_, None) => Vec::new(),
                (None, Some(set)) => number::complete(set.complete(), SIZES),
                (Some((sequence, old)), Some(set)) => number::difference(old.difference(set), *sequence, SIZES),
            };
            if let Some((last, set)) = messages.last().map(|message| message.sequence).zip(set) {
                if !self.dispatcher.sessions().sending(self.node(), connection, last, &set) {
                    return end_status(End::Replaced).into();
                }
                sent = Some((last, set));
                if let Err(over) = self.send_all(messages).await {
                    return over;
                }
            }
            if let Err(over) = self.send_tables(tables.gone(&needed)).await {
                return over;
            }
            is_changed = false;
            tokio::select! {
                () = own.changed() => is_changed = true,
                () = tables.changed() => {}
                changed = view.changed() => {
                    if changed.is_err() {
                        return end_status(End::Stopping).into();
                    }
                    let now = view.borrow_and_update().clone();
                    if let Err(over) = self.tell_view(&told, &now).await {
                        return over;
                    }
                    told = now;
                }
            }
            sleep_until(looked + ASSIGN_EVERY).await;
        }
    }

    /// Tells what changed in the swarm.
    async fn tell_view(&self, told: &ClusterView, now: &ClusterView) -> Result<(), Over> {
        if told.managers != now.managers {
            self.tell(DownMessage::Managers(now.managers.clone())).await?;
        }
        if told.denied != now.denied {
            self.tell(DownMessage::Denied(denied(false, &told.denied, &now.denied))).await?;
        }
        if told.roots != now.roots {
            self.tell(roots(now)).await?;
        }
        Ok(())
    }

    async fn send_tables(&self, messages: Vec<Bytes>) -> Result<(), Over> {
        for message in messages {
            let message = SessionDown { message: Some(DownMessage::Network(message)) };
            self.bulk.send(Ok(message)).await.map_err(|_| Over::Gone)?;
        }
        Ok(())
    }

    async fn send_all(&self, messages: Vec<Assignments>) -> Result<(), Over> {
        for message in messages {
            let message = SessionDown { message: Some(DownMessage::Assignments(message)) };
            self.bulk.send(Ok(message)).await.map_err(|_| Over::Gone)?;
        }
        Ok(())
    }
}

/// The first message, which must be `register`, and must come soon.
async fn first(up: &mut (impl Stream<Item = Result<SessionUp, Status>> + Unpin + Send)) -> Result<Register, Over> {
    match timeout(REGISTER_WITHIN, up.next()).await {
        Ok(Some(Ok(SessionUp { message: Some(UpMessage::Register(register)) }))) => Ok(register),
        Ok(Some(Ok(_))) => Err(Status::invalid_argument("the first message of a session is `register`").into()),
        Ok(Some(Err(_)) | None) => Err(Over::Gone),
        Err(_) => Err(Status::deadline_exceeded("the session did not register in time").into()),
    }
}

/// Which nodes are out, to one who knows `told`.
fn denied(complete: bool, told: &BTreeSet<NodeId>, now: &BTreeSet<NodeId>) -> Denied {
    let ids = |nodes: std::collections::btree_set::Difference<'_, NodeId>| nodes.map(|node| node.to_vec()).collect();
    Denied { complete, added: ids(now.difference(told)), removed: ids(told.difference(now)) }
}

/// Whom the node is to trust.
fn roots(view: &ClusterView) -> DownMessage {
    DownMessage::Roots(TrustedRoots { root_certs_pem: view.roots.to_string() })
}

fn end_status(why: End) -> Status {
    match why {
        End::Replaced => Status::aborted("the node has opened another session"),
        End::Stopping => Status::unavailable("this manager is stopping: try another one"),
        End::Reconnect => Status::unavailable("the manager asks the node to connect again"),
    }
}

/// The node keeps what was not stored, and says it again in its next session.
fn unavailable(error: &WriteError) -> Status {
    Status::unavailable(format!("the node's reports could not be stored: {error}"))
}
