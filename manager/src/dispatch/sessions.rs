//! Which nodes have a session, how to reach them, and what was sent to them: the last sets outlive a session for a
//! minute, so that a node that comes back gets differences. Used by sessions, the log broker and image sources.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rand::RngCore as _;
use rand::rngs::OsRng;
use skep_core::assign::AssignmentSet;
use skep_proto::id::{NodeId, SessionId};
use skep_proto::v1::{SessionDown, session_down};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use super::homes::{Open, Registered};
use super::limits::{KEPT_SETS, RESUME_WITHIN};

/// A message on its way down, or the end of the session with its reason.
pub(crate) type Down = Result<SessionDown, Status>;

/// Why a session is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The node opened another one, here or at another manager.
    Replaced,
    /// This manager stops.
    Stopping,
    /// The node is to come back (its role changed).
    Reconnect,
}

/// The node has no session, or reads nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotConnected;

/// All sessions. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sessions(Arc<Shared>);

struct Shared {
    table: Mutex<Table>,
    /// Counts comings and goings, for those who wait for a node.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Table {
    nodes: HashMap<NodeId, Entry>,
    next_connection: u64,
}

struct Entry {
    session: SessionId,
    registered: Registered,
    sent: Sent,
    line: Line,
}

enum Line {
    Open {
        /// Tells this connection from others of the node.
        connection: u64,
        urgent: mpsc::Sender<Down>,
        end: oneshot::Sender<End>,
    },
    /// The session ended; its sets are kept until then.
    Closed { until: Instant },
}

/// Sets sent in a session, oldest first, each with its sequence: from the last one that the node acknowledged on.
#[derive(Clone, Default)]
struct Sent(VecDeque<(u64, Arc<AssignmentSet>)>);

/// A session that has begun.
pub(crate) struct Begun {
    pub(crate) session: SessionId,
    pub(crate) connection: u64,
    /// What the node has: the sequence and its set. `None`: it needs a complete one.
    pub(crate) resumed: Option<(u64, Arc<AssignmentSet>)>,
    /// Told when the session is to end.
    pub(crate) ended: oneshot::Receiver<End>,
}

impl Sent {
    fn at(&self, sequence: u64) -> Option<&Arc<AssignmentSet>> {
        let found = self.0.iter().find(|(number, _)| *number == sequence);
        found.map(|(_, set)| set)
    }

    fn push(&mut self, sequence: u64, set: Arc<AssignmentSet>) {
        self.0.push_back((sequence, set));
        if self.0.len() > KEPT_SETS {
            self.0.pop_front();
        }
    }

    /// The node has applied this sequence: what came before is not needed any more.
    fn acknowledge(&mut self, applied: u64) {
        while self.0.get(1).is_some_and(|(next, _)| *next <= applied) {
            self.0.pop_front();
        }
    }
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared { table: Mutex::default(), changed: watch::channel(0).0 }))
    }

    /// Begins a node's session and ends its older one. It resumes where (session, sequence) names a kept set.
    pub(crate) fn begin(
        &self,
        node: NodeId,
        registered: Registered,
        resume: Option<(SessionId, u64)>,
        urgent: mpsc::Sender<Down>,
    ) -> Begun {
        let mut table = self.lock();
        let connection = table.next_connection;
        table.next_connection += 1;
        let old = table.nodes.remove(&node);
        let resumed = resume.and_then(|(session, sequence)| {
            let old = old.as_ref().filter(|old| old.session == session)?;
            Some((session, sequence, Arc::clone(old.sent.at(sequence)?)))
        });
        let (session, sent) = match &resumed {
            // Sets that were sent after it never arrived: they are forgotten, and their numbers used again.
            Some((session, sequence, set)) => (*session, Sent([(*sequence, Arc::clone(set))].into())),
            None => (random_session(), Sent::default()),
        };
        if let Some(Entry { line: Line::Open { end, .. }, .. }) = old {
            // An error: it is ending by itself.
            let _ = end.send(End::Replaced);
        }
        let (end, ended) = oneshot::channel();
        let line = Line::Open { connection, urgent, end };
        table.nodes.insert(node, Entry { session, registered, sent, line });
        drop(table);
        self.0.changed.send_modify(|count| *count += 1);
        Begun { session, connection, resumed: resumed.map(|(_, sequence, set)| (sequence, set)), ended }
    }

    /// The session's connection is gone. A newer one of the same node stays.
    pub(crate) fn end(&self, node: NodeId, connection: u64) {
        let mut table = self.lock();
        if let Some(entry) = table.of_connection(node, connection) {
            let until = Instant::now() + RESUME_WITHIN;
            entry.line = Line::Closed { until };
        }
        drop(table);
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Notes a set before it is sent. Says whether the session is still the node's.
    pub(crate) fn sending(&self, node: NodeId, connection: u64, sequence: u64, set: &Arc<AssignmentSet>) -> bool {
        let mut table = self.lock();
        let entry = table.of_connection(node, connection);
        let still = entry.map(|entry| entry.sent.push(sequence, Arc::clone(set)));
        still.is_some()
    }

    /// The node has applied everything up to `sequence`.
    pub(crate) fn applied(&self, node: NodeId, connection: u64, sequence: u64) {
        if let Some(entry) = self.lock().of_connection(node, connection) {
            entry.sent.acknowledge(sequence);
        }
    }

    /// Sends a node something besides its assignments, and says by which connection. Never waits: a node that reads
    /// nothing counts as not connected.
    pub(crate) fn send(&self, node: NodeId, message: session_down::Message) -> Result<u64, NotConnected> {
        let table = self.lock();
        let line = table.nodes.get(&node).map(|entry| &entry.line);
        let Some(Line::Open { urgent, connection, .. }) = line else {
            return Err(NotConnected);
        };
        let message = SessionDown { message: Some(message) };
        urgent.try_send(Ok(message)).map(|()| *connection).map_err(|_| NotConnected)
    }

    /// The connection of the node's session. `None`: it has none.
    pub(crate) fn connection(&self, node: NodeId) -> Option<u64> {
        match self.lock().nodes.get(&node)?.line {
            Line::Open { connection, .. } => Some(connection),
            Line::Closed { .. } => None,
        }
    }

    /// All open sessions at this moment.
    pub(crate) fn open(&self) -> impl Iterator<Item = (NodeId, Open)> + use<> {
        let table = self.lock();
        let open = table.nodes.iter().filter_map(|(node, entry)| match entry.line {
            Line::Open { connection, .. } => Some((*node, Open { connection, registered: entry.registered })),
            Line::Closed { .. } => None,
        });
        open.collect::<Vec<_>>().into_iter()
    }

    /// Ends the session of this registration: its node has a newer one at another manager. One that was registered here
    /// since stays.
    pub(crate) fn moved(&self, node: NodeId, registered: Registered) {
        let mut table = self.lock();
        if table.nodes.get(&node).is_some_and(|entry| entry.registered == registered) {
            table.close(node, End::Replaced);
        }
        drop(table);
        self.notify();
    }

    /// Wakes those who wait: sessions elsewhere came or went.
    pub(crate) fn notify(&self) {
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Waits for sessions that come or go.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Ends one node's session from here.
    pub(crate) fn close(&self, node: NodeId, why: End) {
        self.lock().close(node, why);
        self.notify();
    }

    /// Ends all sessions and forgets what was sent.
    pub(crate) fn close_all(&self, why: End) {
        let mut table = self.lock();
        let nodes: Vec<NodeId> = table.nodes.keys().copied().collect();
        nodes.into_iter().for_each(|node| table.close(node, why));
        drop(table);
        self.notify();
    }

    /// Forgets the node altogether: it was removed.
    pub(crate) fn forget(&self, node: NodeId, connection: u64) {
        let mut table = self.lock();
        if table.of_connection(node, connection).is_some() {
            table.nodes.remove(&node);
        }
    }

    /// Forgets what was kept for nodes that did not come back in time.
    pub(crate) fn sweep(&self, now: Instant) {
        self.lock().nodes.retain(|_, entry| match entry.line {
            Line::Open { .. } => true,
            Line::Closed { until } => until > now,
        });
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Ends a node's session and forgets what was sent.
    fn close(&mut self, node: NodeId, why: End) {
        if let Some(Entry { line: Line::Open { end, .. }, .. }) = self.nodes.remove(&node) {
            // An error: it is ending by itself.
            let _ = end.send(why);
        }
    }

    /// The node's entry, if that connection is still its own.
    fn of_connection(&mut self, node: NodeId, connection: u64) -> Option<&mut Entry> {
        let entry = self.nodes.get_mut(&node)?;
        match entry.line {
            Line::Open { connection: own, .. } if own == connection => Some(entry),
            Line::Open { .. } | Line::Closed { .. } => None,
        }
    }
}

fn random_session() -> SessionId {
    let mut bytes = [0; 16];
    OsRng.fill_bytes(&mut bytes);
    SessionId::new(u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    const NODE: NodeId = NodeId::new(1);
    const REGISTERED: Registered = Registered { version: 1, at: skep_proto::time::UnixMs::ZERO };

    fn begin(sessions: &Sessions, resume: Option<(SessionId, u64)>) -> (Begun, mpsc::Receiver<Down>) {
        let (urgent, down) = mpsc::channel(1);
        (sessions.begin(NODE, REGISTERED, resume, urgent), down)
    }

    fn sent(sessions: &Sessions, begun: &Begun, sequences: impl IntoIterator<Item = u64>) {
        for sequence in sequences {
            assert!(sessions.sending(NODE, begun.connection, sequence, &Arc::default()));
        }
    }

    #[test]
    fn a_node_has_one_session_and_the_newer_one_wins() {
        let sessions = Sessions::new();
        let (mut old, _down) = begin(&sessions, None);
        assert_eq!(sessions.connection(NODE), Some(old.connection));
        let (new, mut down) = begin(&sessions, None);
        assert_eq!(old.ended.try_recv().unwrap(), End::Replaced);
        assert_ne!(old.session, new.session);
        // The old one cleans up after itself, late, and does no harm.
        assert!(!sessions.sending(NODE, old.connection, 1, &Arc::default()));
        sessions.end(NODE, old.connection);
        assert_eq!(sessions.connection(NODE), Some(new.connection));
        let ack = || session_down::Message::HeartbeatAck(Default::default());
        assert_eq!(sessions.send(NODE, ack()), Ok(new.connection));
        assert_eq!(sessions.send(NODE, ack()), Err(NotConnected), "it reads nothing");
        assert!(down.try_recv().unwrap().is_ok());
        sessions.end(NODE, new.connection);
        assert_eq!(sessions.send(NODE, ack()), Err(NotConnected));
    }

    #[test]
    fn a_node_that_has_come_back_from_elsewhere_stays() {
        let sessions = Sessions::new();
        let (urgent, _down) = mpsc::channel(1);
        let later = Registered { version: 2, ..REGISTERED };
        let mut begun = sessions.begin(NODE, later, None, urgent);
        sessions.moved(NODE, REGISTERED);
        assert_eq!(sessions.connection(NODE), Some(begun.connection));
        sessions.moved(NODE, later);
        assert_eq!((sessions.connection(NODE), begun.ended.try_recv()), (None, Ok(End::Replaced)));
    }

    #[test]
    fn a_session_resumes_at_what_the_node_has() {
        let sessions = Sessions::new();
        let (first, _down) = begin(&sessions, None);
        sent(&sessions, &first, [1, 2, 3]);
        sessions.end(NODE, first.connection);
        let (second, _down) = begin(&sessions, Some((first.session, 2)));
        assert_eq!(second.session, first.session);
        assert_eq!(second.resumed.as_ref().unwrap().0, 2);
        // What was sent after it is forgotten, so the next number is 3 again.
        sent(&sessions, &second, [3]);
        let (third, _down) = begin(&sessions, Some((first.session, 3)));
        assert_eq!(third.resumed.as_ref().unwrap().0, 3, "also while the older one still hangs");
    }

    #[test]
    fn what_is_not_known_begins_anew() {
        let sessions = Sessions::new();
        let (first, _down) = begin(&sessions, None);
        sent(&sessions, &first, [1, 2]);
        sessions.applied(NODE, first.connection, 2);
        let (second, _down) = begin(&sessions, Some((first.session, 1)));
        assert!(second.resumed.is_none(), "1 was acknowledged away");
        assert_ne!(second.session, first.session);
        let (third, _down) = begin(&sessions, Some((SessionId::new(7), 1)));
        assert!(third.resumed.is_none());
    }

    #[test]
    fn what_is_kept_is_bounded_in_number_and_time() {
        let sessions = Sessions::new();
        let (first, _down) = begin(&sessions, None);
        let most = KEPT_SETS as u64;
        sent(&sessions, &first, 1..=most + 1);
        sessions.end(NODE, first.connection);
        assert_eq!(sessions.lock().nodes[&NODE].sent.0.len(), KEPT_SETS);
        sessions.sweep(Instant::now());
        assert_eq!(sessions.lock().nodes.len(), 1);
        sessions.sweep(Instant::now() + RESUME_WITHIN + Duration::from_secs(1));
        assert!(sessions.lock().nodes.is_empty());
    }
}
