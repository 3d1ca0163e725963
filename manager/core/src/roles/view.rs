//! What a manager sees of Raft, without a word of the engine's. Made by the manager from the consensus' status.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Quorum;

/// A member that answered within this is reachable: twenty heartbeats of Raft.
pub const REACHABLE: Duration = Duration::from_secs(2);
/// A learner may vote when it lacks at most this many entries: it has them before the next ones are committed.
pub const CAUGHT_UP: u64 = 100;
/// A manager that entered and then never took an entry nor answered for this long is forgotten; it enters anew.
pub const GIVE_UP: Duration = Duration::from_secs(300);

/// Raft's members as one manager sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftView {
    /// The one that looks.
    pub me: u64,
    /// Members with a vote; during a change those of before and after.
    pub voters: BTreeMap<u64, MemberView>,
    /// Members without a vote.
    pub learners: BTreeMap<u64, MemberView>,
    /// A change of voters is under way.
    pub changing: bool,
    /// Index of the last entry of its log; 0: none.
    pub last_log: u64,
}

/// One member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberView {
    /// Last entry known to be on its disk. `None`: none that is known.
    pub matched: Option<u64>,
    /// For how long it has not answered.
    pub silent: Duration,
}

impl MemberView {
    /// Whether it answered of late.
    pub fn is_reachable(&self) -> bool {
        self.silent < REACHABLE
    }
}

impl RaftView {
    /// All members, by id.
    pub fn members(&self) -> impl Iterator<Item = u64> {
        self.voters.keys().chain(self.learners.keys()).copied()
    }

    /// Whether a member answers; the one that looks does.
    pub fn is_reachable(&self, raft_id: u64) -> bool {
        let member = self.voters.get(&raft_id).or_else(|| self.learners.get(&raft_id));
        raft_id == self.me || member.is_some_and(MemberView::is_reachable)
    }

    /// Whether the other voters are a quorum without this one.
    pub fn without(&self, raft_id: u64) -> Result<(), Quorum> {
        let others: Vec<u64> = self.voters.keys().copied().filter(|other| *other != raft_id).collect();
        let reachable = others.iter().filter(|other| self.is_reachable(**other)).count();
        let (voters, needed) = (others.len(), others.len() / 2 + 1);
        if reachable >= needed { Ok(()) } else { Err(Quorum { reachable, voters, needed }) }
    }
}
