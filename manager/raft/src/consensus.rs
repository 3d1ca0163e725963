//! The consensus trait: everything the rest of the manager may know about Raft.
//!
//! The sequencer proposes through it, readers pass its barrier, the role manager changes membership and
//! `Leadership` follows its status. No type of the engine behind it (today openraft 0.9) appears here, so another
//! engine can take its place. It must never grow a method that only one engine can serve.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::watch;

/// A Raft node id. It comes from a log index and is never used twice, not even for the same host: a wiped node that
/// answers under its old id could vote twice in one term.
pub type RaftId = u64;

/// An entry that a quorum holds on disk and that this node has applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed<R> {
    /// Index in the log. Indexes have gaps from the proposer's view: leaders and membership changes take some.
    pub index: u64,
    /// Term under which it was appended.
    pub term: u64,
    /// What the state machine answered when it applied the entry.
    pub response: R,
}

/// Why a proposal has no committed result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The entry was not appended, or was removed again by a newer leader: it has no effect and never will.
    #[error("this manager is not the leader{}", leader_hint(.leader))]
    NotLeader {
        /// The leader that this node follows; None while there is none.
        leader: Option<Member>,
    },
    /// Nothing was proposed: this leader has not heard a quorum of the managers for too long.
    #[error(
        "no quorum: a majority of the managers has not answered for {silent_ms} ms; bring managers back or wait for the network"
    )]
    NoQuorum {
        /// Milliseconds since the last answer of a quorum.
        silent_ms: u64,
    },
    /// The entry was proposed, and it is not known whether it is or will be committed.
    #[error(
        "result unknown: the change was proposed but not confirmed within {waited_ms} ms; it may still take effect"
    )]
    ResultUnknown {
        /// Milliseconds waited since the proposal.
        waited_ms: u64,
    },
    /// Nothing was proposed: the entry is larger than the log takes.
    #[error("entry of {bytes} bytes is too large, the limit is {limit} bytes; split the change")]
    TooLarge {
        /// Size of the entry in bytes.
        bytes: usize,
        /// The largest entry accepted, in bytes.
        limit: usize,
    },
    /// Nothing was proposed: this leader is handing over to another manager. Try again in a second, with the new one.
    #[error("this manager is handing the lead over to another one; try again")]
    HandingOver,
    /// Nothing was proposed: the leader's disk is nearly full. It takes proposals again by itself when there is space.
    #[error(
        "the disk of the manager's data directory is full ({free_bytes} bytes are free, {needed_bytes} are needed): \
         make space; the manager goes on by itself"
    )]
    DiskFull {
        /// Bytes that are free.
        free_bytes: u64,
        /// Bytes that must be free for proposals.
        needed_bytes: u64,
    },
    /// Nothing was proposed: the node is stopped, or stops.
    #[error("consensus is stopped: {reason}")]
    Stopped {
        /// Why: "shut down", or the failure.
        reason: Arc<str>,
    },
    /// Nothing was proposed: the storage or the state machine failed, and the node stopped for it. The text names the
    /// file or the entry.
    #[error("this manager stopped after a failure: {0}")]
    Storage(Arc<str>),
}

/// Why a read barrier or an order to the node was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// Only the leader can confirm that nothing newer was committed.
    #[error("this manager is not the leader{}", leader_hint(.leader))]
    NotLeader {
        /// The leader that this node follows; None while there is none.
        leader: Option<Member>,
    },
    /// A quorum did not confirm the leader, or not within the deadline.
    #[error("no quorum: a majority of the managers did not confirm the leader within {waited_ms} ms")]
    NoQuorum {
        /// Milliseconds waited.
        waited_ms: u64,
    },
    /// The node is stopped, or stops.
    #[error("consensus is stopped: {reason}")]
    Stopped {
        /// Why: "shut down", or the failure.
        reason: Arc<str>,
    },
}

/// Why the membership was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader changes membership.
    #[error("this manager is not the leader{}", leader_hint(.leader))]
    NotLeader {
        /// The leader that this node follows; None while there is none.
        leader: Option<Member>,
    },
    /// The transport given at start reaches no peers, so a second member could never answer.
    #[error("not supported yet: {0}")]
    NotSupported(&'static str),
    /// The change is against the rules of Raft (another one in progress, unknown member, no voter left).
    #[error("membership change refused: {0}")]
    Refused(String),
    /// The change was proposed, and it is not known whether it is or will be committed.
    #[error("result unknown: the membership change was proposed but not confirmed within {waited_ms} ms")]
    ResultUnknown {
        /// Milliseconds waited since the proposal.
        waited_ms: u64,
    },
    /// The node is stopped, or stops.
    #[error("consensus is stopped: {reason}")]
    Stopped {
        /// Why: "shut down", or the failure.
        reason: Arc<str>,
    },
}

/// Why the lead was not handed over. The node leads on as before, unless it lost the lead otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Only the leader hands over.
    #[error("this manager is not the leader{}", leader_hint(.leader))]
    NotLeader {
        /// The leader that this node follows; None while there is none.
        leader: Option<Member>,
    },
    /// Nobody can take over, or not now.
    #[error("the lead cannot be handed over: {0}")]
    Refused(String),
    /// The other manager did not lead in time. It may still do so.
    #[error("the lead was not taken over within {waited_ms} ms; this manager leads on")]
    TimedOut {
        /// Milliseconds waited.
        waited_ms: u64,
    },
    /// The node is stopped, or stops.
    #[error("consensus is stopped: {reason}")]
    Stopped {
        /// Why: "shut down", or the failure.
        reason: Arc<str>,
    },
}

/// Why a node stopped, for what to do about it; [`Status::stopped`] has the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopCause {
    /// Stopped on purpose.
    ShutDown,
    /// The disk was full at a write that could not wait. Nothing acknowledged is lost: start again when there is space.
    DiskFull,
    /// A file cannot be read or written, or its content cannot be trusted.
    Storage,
    /// The state machine refused a committed entry or a snapshot: an unknown kind, a broken invariant.
    StateMachine,
    /// This manager's state differs from the others' at the same log index.
    Diverged,
    /// The cluster was recovered from lost quorum without this manager: leave and join again.
    LeftBehind,
    /// The engine ended in another way.
    Engine,
}

fn leader_hint(leader: &Option<Member>) -> String {
    match leader {
        Some(leader) => format!(", raft node {} at {:?} is", leader.id, leader.address),
        None => ", and no leader is known".to_owned(),
    }
}

/// What this node is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows the log without a vote.
    Learner,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads, or believes so: also look at the age of the last quorum answer.
    Leader,
    /// Stopped; [`Status::stopped`] says why.
    Stopped,
}

/// A member of the group as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    /// Raft node id.
    pub id: RaftId,
    /// Where its transport listens, in a form only the transport reads.
    pub address: String,
}

/// The members of the group, as of the newest membership entry in this node's log (committed or not).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// Log index of that entry; None before the first.
    pub index: Option<u64>,
    /// Members with a vote. During a change this is the union of the old and the new voters.
    pub voters: BTreeMap<RaftId, Member>,
    /// Members without a vote.
    pub learners: BTreeMap<RaftId, Member>,
    /// A change of voters is in progress (joint consensus).
    pub changing: bool,
}

/// The newest snapshot on this node's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Last log index it contains.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Digest of the state, if the state machine computes one: equal on all managers for the same index.
    pub digest: Option<[u8; 32]>,
}

/// A view of the node, published on every change; but the mere passing of acknowledgements ([`Self::quorum_acked_at`],
/// [`Self::heard`]) wakes nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node's id.
    pub id: RaftId,
    /// What it is.
    pub role: Role,
    /// Current term; 0 before the first.
    pub term: u64,
    /// The leader of this term as far as known; for a leader that is itself.
    pub leader: Option<Member>,
    /// Index of the last log entry on this node; None if the log never had one.
    pub last_log: Option<u64>,
    /// Index of the last entry applied to the state machine; None if none.
    pub last_applied: Option<u64>,
    /// On a leader: when a quorum last confirmed it; a sole voter is its own quorum at all times. None elsewhere.
    pub quorum_acked_at: Option<Instant>,
    /// On a leader: whether a quorum confirmed it recently enough to go on (CheckQuorum). A leader without quorum takes
    /// no proposals; whatever runs because this node leads should stop. False elsewhere.
    pub has_quorum: bool,
    /// On a leader: when each other member last answered. Empty elsewhere, and without those that never did.
    pub heard: BTreeMap<RaftId, Instant>,
    /// On a follower or learner: when its leader was last heard. None before the first time, and on a leader.
    pub leader_heard_at: Option<Instant>,
    /// Whether this node knows a leader that can be relied on: itself with a quorum, or one heard within the longest
    /// election timeout and a half. Where it is false, reads are stale and sessions should look for another manager.
    pub hears_leader: bool,
    /// This leader is handing over, and takes no proposals.
    pub handing_over: bool,
    /// The disk is nearly full: this node takes no proposals and no entries, and gives no votes, until there is space.
    pub disk_full: bool,
    /// How often the group was recovered from lost quorum.
    pub recovery_epoch: u64,
    /// Who belongs to the group.
    pub membership: Arc<Membership>,
    /// On a leader: last index known to be on each member's disk. Empty elsewhere.
    pub matched: BTreeMap<RaftId, Option<u64>>,
    /// The newest snapshot on this node's disk; None if none was made.
    pub snapshot: Option<SnapshotInfo>,
    /// First index still in the log; 0 if nothing was purged.
    pub first_log: u64,
    /// Why the node stopped; None while it runs.
    pub stopped: Option<Arc<str>>,
    /// The same for programs; None while it runs.
    pub stop_cause: Option<StopCause>,
}

impl Status {
    /// A node that has not heard or done anything yet. For tests of what follows a status.
    pub fn initial(id: RaftId) -> Self {
        Self {
            id,
            role: Role::Learner,
            term: 0,
            leader: None,
            last_log: None,
            last_applied: None,
            quorum_acked_at: None,
            has_quorum: false,
            heard: BTreeMap::new(),
            leader_heard_at: None,
            hears_leader: false,
            handing_over: false,
            disk_full: false,
            recovery_epoch: 0,
            membership: Arc::default(),
            matched: BTreeMap::new(),
            snapshot: None,
            first_log: 0,
            stopped: None,
            stop_cause: None,
        }
    }

    /// Whether this node leads, by its own view.
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    /// Whether this node leads and a quorum follows: what runs on the leader only should run. Changes wake the
    /// receivers of [`Consensus::status`].
    pub fn leads(&self) -> bool {
        self.is_leader() && self.has_quorum
    }

    /// Whether this node is the only voter, so that its own disk is the quorum.
    pub fn is_sole_voter(&self) -> bool {
        self.membership.voters.len() == 1 && self.membership.voters.contains_key(&self.id)
    }

    /// Milliseconds since a quorum confirmed this leader: 0 for a sole voter, None if it does not lead or never was
    /// confirmed. Reaches past the election timeout when the node leads in name only.
    pub fn millis_since_quorum_ack(&self, now: Instant) -> Option<u64> {
        if self.is_leader() && self.is_sole_voter() {
            return Some(0);
        }
        let at = self.quorum_acked_at?;
        Some(u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX))
    }
}

/// A replicated log with a state machine behind it.
///
/// Every method may be called from any runtime; none blocks. Dropping a returned future never takes a proposal back.
pub trait Consensus: Send + Sync + 'static {
    /// What the state machine answers for an applied entry.
    type Response: Send + Sync + 'static;

    /// Proposes an entry and waits until it is committed and applied here.
    ///
    /// The entry is queued before this function returns, so calls made one after the other are appended in that order,
    /// and several may be in flight. After `timeout` the answer is [`ProposeError::ResultUnknown`].
    fn propose(
        &self,
        entry: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Committed<Self::Response>, ProposeError>>;

    /// Waits until this node has applied everything that was committed when it was called, and answers the index: a
    /// read of the applied state after it is linearizable. Calls at the same time share one round to the others.
    fn read_barrier(&self, timeout: Duration) -> BoxFuture<'static, Result<u64, BarrierError>>;

    /// The node's status, newest value first. The channel closes when the node is gone.
    fn status(&self) -> watch::Receiver<Status>;

    /// Adds a member without a vote; the leader starts to send it the log. Idempotent.
    fn add_learner(&self, member: Member, timeout: Duration) -> BoxFuture<'static, Result<(), MembershipError>>;

    /// Gives a learner a vote. The caller looks at [`Status::matched`] first: a voter that lags may cost the quorum.
    fn promote(&self, id: RaftId, timeout: Duration) -> BoxFuture<'static, Result<(), MembershipError>>;

    /// Takes the vote from a member, which stays as a learner. The last voter is refused. A leader that is asked to
    /// demote or remove itself hands the lead over and answers `NotLeader` with the new leader: ask that one.
    fn demote(&self, id: RaftId, timeout: Duration) -> BoxFuture<'static, Result<(), MembershipError>>;

    /// Removes a member, voter or learner. Its id is never used again. The last voter is refused.
    fn remove(&self, id: RaftId, timeout: Duration) -> BoxFuture<'static, Result<(), MembershipError>>;

    /// Hands the lead over to a voter, or to the one that is furthest if `to` is None, and answers who leads then.
    ///
    /// Proposals are refused meanwhile ([`ProposeError::HandingOver`]); with more than three voters the others' leases
    /// have to run out, about 0.6 s. On an error the node leads on. [`Self::shutdown`] and the demotion of a leader hand
    /// over by themselves.
    fn transfer_leadership(
        &self,
        to: Option<RaftId>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<RaftId, TransferError>> {
        let _ = (to, timeout);
        Box::pin(async { Err(TransferError::Refused("not supported yet by this engine".to_owned())) })
    }

    /// Asks for a snapshot now; it is made in the background. [`Status::snapshot`] shows it.
    fn snapshot_now(&self) -> BoxFuture<'static, Result<(), BarrierError>>;

    /// Starts an election at once, whatever the timers say. No effect on a leader. The pre-vote of several voters ends
    /// in this call.
    fn campaign(&self) -> BoxFuture<'static, Result<(), BarrierError>>;

    /// Stops the node: proposals in flight end, the disk is synced, the data directory is free when this returns.
    /// Idempotent.
    fn shutdown(&self) -> BoxFuture<'static, ()>;
}
