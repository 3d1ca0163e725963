//! Who is out: nodes removed from the cluster, refused at every handshake, and the live connections that end with them.
//!
//! One `DenyList` per daemon is shared by all its listeners and channels. The manager feeds it from the replicated state,
//! a worker from its session. Admission and denial take one lock, so no connection slips in between.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::SystemTime;

use futures::task::AtomicWaker;
use rustls::pki_types::CertificateDer;
use skep_proto::id::NodeId;
use tracing::debug;

use crate::RootBundle;
use crate::chain::{self, CLOCK_TOLERANCE};
use crate::client::ClientIdentity;
use crate::peer::PeerIdentity;

/// Connections without a certificate at a time: joining nodes, which need a second each. Beyond it the oldest ends.
pub(crate) const MAX_ANONYMOUS: usize = 256;
/// Connections that one node has made to this daemon at a time, on all its ports together. An honest one has a session, two
/// for Raft, one to renew by, one for each image that it fetches: a dozen. Beyond it the oldest ends, not the newest: what a
/// node left half open on its side of a cut must not keep it out.
pub(crate) const MAX_OF_NODE: usize = 64;
/// The same for one person, whose certificate a whole pipeline may share: each command that waits or follows has one.
pub(crate) const MAX_OF_CLIENT: usize = 256;

/// The node was removed from the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("node {0} was removed from the cluster")]
pub struct Denied(pub NodeId);

/// Removed nodes and live connections. Cheap to clone; all clones are one list.
#[derive(Debug, Clone, Default)]
pub struct DenyList(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    denied: HashSet<NodeId>,
    /// By order of arrival.
    live: BTreeMap<u64, Live>,
    next: u64,
}

#[derive(Debug)]
struct Live {
    party: Party,
    side: Side,
    /// What it showed, its own certificate first.
    shown: Arc<[CertificateDer<'static>]>,
    closer: Arc<Closer>,
}

/// A live connection, for [`DenyList::close_each`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId(u64);

/// Which end of a connection this daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The other one came: how often is the other's doing, and so bounded.
    Accepted,
    /// This daemon went: nobody else can make these many, nor have them closed by coming often.
    Made,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Party {
    /// No certificate was presented.
    Anonymous,
    Node(PeerIdentity),
    Client(ClientIdentity),
}

impl Party {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Node(peer) => Some(peer.node_id),
            Self::Anonymous | Self::Client(_) => None,
        }
    }

    fn not_after(&self) -> Option<SystemTime> {
        match self {
            Self::Anonymous => None,
            Self::Node(peer) => Some(peer.not_after),
            Self::Client(client) => Some(client.not_after),
        }
    }

    /// How many connections it may have made here at a time.
    fn most(&self) -> usize {
        match self {
            Self::Anonymous => MAX_ANONYMOUS,
            Self::Node(_) => MAX_OF_NODE,
            Self::Client(_) => MAX_OF_CLIENT,
        }
    }

    /// Whether both are one, as far as bounds go: those without a certificate share theirs.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::Node(one), Self::Node(other)) => one.node_id == other.node_id,
            (Self::Client(one), Self::Client(other)) => one.client_id == other.client_id,
            _ => false,
        }
    }

    /// Whether what it showed leads to one of the roots; when it ends is another matter.
    fn is_trusted(&self, shown: &[CertificateDer<'_>], roots: &RootBundle) -> bool {
        let verified = |(leaf, others): (&CertificateDer<'_>, &[CertificateDer<'_>])| match self {
            Self::Anonymous => true,
            Self::Node(peer) => chain::verify(roots, leaf, others, peer.not_after).is_ok(),
            Self::Client(client) => chain::verify_client(roots, leaf, others, client.not_after).is_ok(),
        };
        matches!(self, Self::Anonymous) || shown.split_first().is_some_and(verified)
    }
}

impl DenyList {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses a node from now on and closes its connections, both ways, at once. Says how many were closed.
    ///
    /// A call of the node that meets the end of its connection fails as on any connection that is cut (`UNAVAILABLE`,
    /// `CANCELLED` where it had not gone out, `UNKNOWN`). Calls after it make a new one, and are told by its handshake that
    /// the node was removed ([`Refusal::Removed`](crate::transport::Refusal::Removed)).
    pub fn deny(&self, node: NodeId) -> usize {
        let mut inner = self.lock();
        inner.denied.insert(node);
        inner.close(|party| party.node() == Some(node))
    }

    /// Replaces the whole list, as read from the replicated state: closes the connections of all nodes on it, admits
    /// those no longer on it. Says how many were closed. A node's id may be dropped from the list only when its last
    /// certificate has ended for longer than [`CLOCK_TOLERANCE`].
    pub fn set(&self, nodes: impl IntoIterator<Item = NodeId>) -> usize {
        let mut inner = self.lock();
        inner.denied = nodes.into_iter().collect();
        inner.close(|party| party.node().is_some_and(|node| inner.denied.contains(&node)))
    }

    /// Whether a node is refused.
    pub fn is_denied(&self, node: NodeId) -> bool {
        self.lock().denied.contains(&node)
    }

    /// Closes a node's connections without refusing it: its role changed, so it has to come back with a new certificate.
    pub fn close(&self, node: NodeId) -> usize {
        self.lock().close(|party| party.node() == Some(node))
    }

    /// Closes connections whose certificate has ended (beyond the clock tolerance): handshakes check a certificate only
    /// once. To be called on a timer, every minute or so.
    pub fn close_expired(&self, now: SystemTime) -> usize {
        self.lock().close(|party| party.not_after().is_some_and(|end| end + CLOCK_TOLERANCE < now))
    }

    /// Connections whose certificate leads to none of these roots: handshakes check that only once, and a root may have gone
    /// since. Checks a signature for each, and holds up nobody meanwhile.
    pub fn untrusted(&self, roots: &RootBundle) -> Vec<ConnectionId> {
        let entry = |(id, live): (&u64, &Live)| (ConnectionId(*id), live.party.clone(), Arc::clone(&live.shown));
        let all: Vec<_> = self.lock().live.iter().map(entry).collect();
        let untrusted = all.into_iter().filter(|(_, party, shown)| !party.is_trusted(shown, roots));
        untrusted.map(|(id, ..)| id).collect()
    }

    /// Closes these connections, as far as they still live. Says how many were closed.
    pub fn close_each(&self, connections: &[ConnectionId]) -> usize {
        let inner = self.lock();
        let live = connections.iter().filter_map(|connection| inner.live.get(&connection.0));
        live.filter(|live| live.closer.close()).count()
    }

    /// Closes all connections: the node leaves, or stops. Says how many.
    pub fn close_all(&self) -> usize {
        self.lock().close(|_| true)
    }

    /// Live connections with a node, in both directions.
    pub fn connections(&self, node: NodeId) -> usize {
        self.lock().live.values().filter(|live| live.party.node() == Some(node)).count()
    }

    /// Registers a connection, with the certificates that it showed; the answer belongs into it, and unregisters it when
    /// dropped. Of an accepted one the party's oldest gives way where it has as many as it may.
    pub(crate) fn admit(&self, side: Side, party: Party, shown: &[CertificateDer<'_>]) -> Result<Admission, Denied> {
        let shown = shown.iter().map(|cert| cert.clone().into_owned()).collect();
        let mut inner = self.lock();
        if let Some(node) = party.node().filter(|node| inner.denied.contains(node)) {
            return Err(Denied(node));
        }
        if side == Side::Accepted {
            inner.make_room(&party);
        }
        let id = inner.next;
        inner.next += 1;
        let closer = Arc::new(Closer::default());
        inner.live.insert(id, Live { party, side, shown, closer: Arc::clone(&closer) });
        Ok(Admission { list: self.clone(), id, closer })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock, and a half-done change would still refuse more, not less.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Closes what `which` says. The entries go when their connections drop.
    fn close(&self, which: impl Fn(&Party) -> bool) -> usize {
        let chosen = self.live.values().filter(|live| which(&live.party));
        chosen.filter(|live| live.closer.close()).count()
    }

    /// Closes the party's oldest accepted connection, if it has as many as it may. A look at all that are live: far less work
    /// than the handshake before it.
    fn make_room(&self, party: &Party) {
        let is_open =
            |live: &&Live| live.side == Side::Accepted && live.party.is_same(party) && !live.closer.is_closed();
        let mut open = self.live.values().filter(is_open);
        let oldest = open.next();
        if let Some(oldest) = oldest
            && open.count() + 1 >= party.most()
            && oldest.closer.close()
        {
            debug!(?party, "too many connections of one party: closed its oldest");
        }
    }
}

/// A connection's place in the list.
#[derive(Debug)]
pub(crate) struct Admission {
    list: DenyList,
    id: u64,
    closer: Arc<Closer>,
}

impl Admission {
    pub(crate) fn closer(&self) -> &Closer {
        &self.closer
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.list.lock().live.remove(&self.id);
    }
}

/// Ends a connection from outside: wakes its reader and its writer, which then see the flag.
#[derive(Debug, Default)]
pub(crate) struct Closer {
    closed: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Closer {
    /// Says whether this call was the one that closed it.
    fn close(&self) -> bool {
        let first = !self.closed.swap(true, Ordering::SeqCst);
        self.reader.wake();
        self.writer.wake();
        first
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Registers the reader and says whether the connection was closed. Registering first means no wake-up is lost.
    pub(crate) fn check_reader(&self, waker: &Waker) -> bool {
        self.reader.register(waker);
        self.is_closed()
    }

    /// The same for the writer.
    pub(crate) fn check_writer(&self, waker: &Waker) -> bool {
        self.writer.register(waker);
        self.is_closed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{RootCa, testing};

    fn node(id: u128) -> Party {
        Party::Node(PeerIdentity {
            node_id: NodeId::new(id),
            role: crate::Role::Worker,
            cluster_id: skep_proto::id::ClusterId::new(1),
            not_after: SystemTime::UNIX_EPOCH,
        })
    }

    fn client(id: u128) -> Party {
        let client_id = skep_proto::id::ClientId::new(id);
        let cluster_id = skep_proto::id::ClusterId::new(1);
        Party::Client(ClientIdentity { client_id, cluster_id, not_after: SystemTime::UNIX_EPOCH })
    }

    #[test]
    fn the_oldest_connection_of_a_party_gives_way() {
        for (party, other, most) in [
            (Party::Anonymous, node(1), MAX_ANONYMOUS),
            (node(1), node(2), MAX_OF_NODE),
            (client(1), client(2), MAX_OF_CLIENT),
        ] {
            let list = DenyList::new();
            let admit = |side, party: &Party| list.admit(side, party.clone(), &[]).unwrap();
            let others = [admit(Side::Accepted, &other), admit(Side::Made, &party)];
            let admitted: Vec<Admission> = (0..most).map(|_| admit(Side::Accepted, &party)).collect();
            assert!(admitted.iter().all(|admission| !admission.closer().is_closed()));
            let one_more = admit(Side::Accepted, &party);
            assert!(admitted[0].closer().is_closed());
            assert!(admitted[1..].iter().all(|admission| !admission.closer().is_closed()));
            let another = admit(Side::Accepted, &party);
            assert!(admitted[1].closer().is_closed());
            assert!(!one_more.closer().is_closed() && !another.closer().is_closed());
            // Neither what this daemon made itself is counted, nor are others made to pay.
            let made = admit(Side::Made, &party);
            assert!(!admitted[2].closer().is_closed() && !made.closer().is_closed());
            assert!(others.iter().all(|admission| !admission.closer().is_closed()));
        }
    }

    #[test]
    fn nobody_slips_in_between_denial_and_admission() {
        let list = DenyList::new();
        let id = NodeId::new(1);
        let before = list.admit(Side::Accepted, node(1), &[]).unwrap();
        assert_eq!(list.deny(id), 1);
        assert_eq!(list.deny(id), 0, "closed once only");
        assert!(before.closer().is_closed());
        for side in [Side::Accepted, Side::Made] {
            assert_eq!(list.admit(side, node(1), &[]).unwrap_err(), Denied(id));
        }
        drop(before);
        assert_eq!(list.connections(id), 0);
    }

    #[test]
    fn who_was_let_in_by_a_root_of_the_past_is_put_out() {
        let now = SystemTime::now();
        let (old, other) = (testing::cluster(1), testing::cluster(2));
        let next = crate::NextRoot::generate(&old, now).unwrap();
        let list = DenyList::new();
        let node = |ca: &RootCa, more: &str| {
            let key = crate::NodeKey::generate().unwrap();
            let issued = ca.issue(&key.signing_request().unwrap(), &testing::grant(7, crate::Role::Worker), now);
            let chain = crate::pem::certificates(&(issued.unwrap().chain_pem + more)).unwrap();
            list.admit(Side::Accepted, Party::Node(PeerIdentity::read(&chain[0]).unwrap()), &chain).unwrap()
        };
        let person = |ca: &RootCa| {
            let key = crate::ClientKey::generate().unwrap();
            let grant = crate::ClientGrant { client_id: skep_proto::id::ClientId::new(3), validity: testing::DAY };
            let issued = ca.issue_client(key.signing_request_pem().unwrap().as_bytes(), &grant, now).unwrap();
            let chain = crate::pem::certificates(&issued.chain_pem).unwrap();
            list.admit(Side::Accepted, Party::Client(ClientIdentity::read(&chain[0]).unwrap()), &chain).unwrap()
        };
        let stay = [
            node(&next.root, &next.cross_signed_pem),
            node(&next.root, ""),
            person(&next.root),
            list.admit(Side::Accepted, Party::Anonymous, &[]).unwrap(),
        ];
        let go = [node(&old, ""), person(&old), node(&other, "")];
        let close = |roots: &RootBundle| list.close_each(&list.untrusted(roots));
        let both = RootBundle::from_pem(&(old.cert().to_pem() + &next.root.cert().to_pem())).unwrap();
        assert_eq!(close(&both), 1, "of another cluster");
        assert_eq!(close(&next.root.bundle()), 2);
        assert!(go.iter().all(|admission| admission.closer().is_closed()));
        assert!(stay.iter().all(|admission| !admission.closer().is_closed()));
        assert_eq!(close(&next.root.bundle()), 0, "closed once only");
    }
}
