//! What the tasks of a node share about the others: who answered when, whether a leader is heard, what is held still.
//!
//! Written by `network` (answers) and `inbound` (messages), read by `election`, `status`, `serve`. Times are sending
//! times for acknowledgements, so that they never claim too much.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::config::Timing;
use crate::consensus::{RaftId, StopCause};
use crate::engine;
use crate::members::Changes;
use crate::space::Space;
use crate::store::Store;
use crate::transport::Transport;
use crate::types::{Raft, StoredMembership, Vote};
use crate::wire::Head;

/// The sets of voters that must each have a majority: one, or two while a change is in progress.
pub(crate) type Voters = Vec<BTreeSet<RaftId>>;

pub(crate) fn voters(membership: &StoredMembership) -> Voters {
    membership.membership().get_joint_config().clone()
}

/// Whether these nodes decide: a majority of every set.
pub(crate) fn is_quorum(voters: &Voters, nodes: &BTreeSet<RaftId>) -> bool {
    !voters.is_empty() && voters.iter().all(|set| set.intersection(nodes).count() * 2 > set.len())
}

/// The newest time at which a quorum had acknowledged, `own` counting as now. None if there never was one.
pub(crate) fn quorum_time(
    voters: &Voters,
    own: RaftId,
    acked: &BTreeMap<RaftId, Instant>,
    now: Instant,
) -> Option<Instant> {
    let of_set = |set: &BTreeSet<RaftId>| {
        let mut times: Vec<Instant> =
            set.iter().filter_map(|id| if *id == own { Some(now) } else { acked.get(id).copied() }).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        times.get(set.len() / 2).copied()
    };
    voters.iter().map(of_set).min().flatten()
}

/// What a leader knows of the others.
#[derive(Debug, Default)]
struct Acks {
    /// The vote under which it leads; acknowledgements of other votes do not count.
    vote: Option<Vote>,
    /// When the first other member acknowledged that.
    since: Option<Instant>,
    /// Sending time of the newest append that each acknowledged.
    sent: BTreeMap<RaftId, Instant>,
    /// When each last answered.
    heard: BTreeMap<RaftId, Instant>,
}

#[derive(Debug)]
struct Ears {
    /// When a leader was last heard; the start of the node counts, as there may be one that was not heard yet.
    leader: Instant,
    /// Whether one really was.
    ever: bool,
    /// The timer of elections runs from here, if that is later: a vote was given, or an election was tried.
    stirred: Instant,
    /// No elections before.
    held_until: Option<Instant>,
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) id: RaftId,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) timing: Timing,
    pub(crate) space: Space,
    /// The recovery epoch; rises at most once, when a node that joins learns it.
    epoch: AtomicU64,
    acks: Mutex<Acks>,
    ears: Mutex<Ears>,
    handing_over: AtomicBool,
    /// Changes of membership that this node is making.
    pub(crate) changes: Changes,
    /// Wakes the publisher of the status.
    pub(crate) news: Notify,
    store: Weak<Store>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        id: RaftId,
        transport: Arc<dyn Transport>,
        timing: Timing,
        space: Space,
        store: &Arc<Store>,
    ) -> Self {
        let now = engine::now();
        Self {
            id,
            transport,
            timing,
            space,
            epoch: AtomicU64::new(store.epoch()),
            acks: Mutex::default(),
            ears: Mutex::new(Ears { leader: now, ever: false, stirred: now, held_until: None }),
            handing_over: AtomicBool::new(false),
            changes: Changes::default(),
            news: Notify::new(),
            store: Arc::downgrade(store),
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn head(&self, to: RaftId) -> Head {
        Head { epoch: self.epoch(), from: self.id, to }
    }

    /// Takes over the epoch of the group that this new node joins, durably. False if that failed.
    pub(crate) async fn adopt_epoch(&self, epoch: u64) -> bool {
        let Some(store) = self.store.upgrade() else { return false };
        match store.set_epoch(epoch).await {
            Ok(()) => {
                self.epoch.fetch_max(epoch, Ordering::AcqRel);
                true
            }
            Err(error) => {
                tracing::warn!(error = error.text(), "cannot store the recovery epoch");
                false
            }
        }
    }

    /// Stops the node for a reason that the operator is shown.
    pub(crate) fn stop(&self, raft: &Raft, cause: StopCause, why: String) {
        let Some(store) = self.store.upgrade() else { return };
        tracing::error!(reason = %why, "this manager stops");
        store.fail(cause, why);
        let raft = raft.clone();
        tokio::spawn(async move {
            // How it ends shows in its metrics.
            let _ = raft.shutdown().await;
        });
    }

    /// The group was recovered without this node.
    pub(crate) fn left_behind(&self, raft: &Raft, epoch: u64) {
        let ours = self.epoch();
        let why = format!(
            "this manager was left behind by a recovery of the cluster (recovery epoch {epoch}, its own is {ours}); \
             let it leave the cluster and join again"
        );
        self.stop(raft, StopCause::LeftBehind, why);
    }

    // What a leader knows.

    /// Another member answered an append that was sent at `sent` under `vote`.
    pub(crate) fn note_ack(&self, from: RaftId, vote: &Vote, sent: Instant) {
        let mut acks = locked(&self.acks);
        if acks.vote.as_ref() != Some(vote) {
            if acks.vote.as_ref() > Some(vote) {
                return;
            }
            acks.vote = Some(*vote);
            acks.since = Some(engine::now());
            acks.sent.clear();
        }
        let newest = acks.sent.entry(from).or_insert(sent);
        *newest = (*newest).max(sent);
    }

    /// Another member answered anything.
    pub(crate) fn note_answer(&self, from: RaftId) {
        locked(&self.acks).heard.insert(from, engine::now());
    }

    /// Since when this node leads under `vote`, a little late; None before the first acknowledgement.
    pub(crate) fn leads_since(&self, vote: &Vote) -> Option<Instant> {
        let acks = locked(&self.acks);
        acks.since.filter(|_| acks.vote.as_ref() == Some(vote))
    }

    /// When each other member last answered.
    pub(crate) fn heard(&self) -> BTreeMap<RaftId, Instant> {
        locked(&self.acks).heard.clone()
    }

    /// When a quorum last confirmed the lead under `vote`.
    pub(crate) fn quorum_acked_at(&self, voters: &Voters, vote: &Vote, now: Instant) -> Option<Instant> {
        let acks = locked(&self.acks);
        let none = BTreeMap::new();
        let sent = if acks.vote.as_ref() == Some(vote) { &acks.sent } else { &none };
        quorum_time(voters, self.id, sent, now)
    }

    /// A leader that no quorum has answered for this long gives up: it takes no proposals, and what runs because it leads
    /// stops. Longer than the lease, so that a late answer stops nothing; the others may have another leader before, about
    /// [`Timing::election_max`] after their last word from this one. So nothing may rely on it: proposals of a leader that
    /// was replaced are never committed, and reads are confirmed, or younger than the shortest election
    /// (`confirm_lead` of the manager).
    pub(crate) fn silence_limit(&self) -> Duration {
        self.timing.election_min + self.timing.election_max
    }

    // What a follower hears.

    /// A message of the leader came in.
    pub(crate) fn note_leader(&self) {
        let mut ears = locked(&self.ears);
        ears.leader = engine::now();
        if !ears.ever {
            ears.ever = true;
            self.news.notify_one();
        }
    }

    /// A vote was given or asked for: the timer starts anew.
    pub(crate) fn stir(&self) {
        locked(&self.ears).stirred = engine::now();
    }

    /// When a leader was last heard; None if never.
    pub(crate) fn leader_heard_at(&self) -> Option<Instant> {
        let ears = locked(&self.ears);
        ears.ever.then_some(ears.leader)
    }

    /// Whether a follower's leader may still hold its lease. The time after the start counts as if one was heard.
    pub(crate) fn in_lease(&self, now: Instant) -> bool {
        now < locked(&self.ears).leader + self.timing.election_max
    }

    /// When elections may begin at the earliest, before the random part: the lease is over, nothing is held still.
    pub(crate) fn quiet_since(&self) -> Instant {
        let ears = locked(&self.ears);
        let heard = (ears.leader + self.timing.election_max).max(ears.stirred);
        ears.held_until.map_or(heard, |until| heard.max(until))
    }

    pub(crate) fn hold(&self, time: Duration) {
        locked(&self.ears).held_until = Some(engine::now() + time);
    }

    pub(crate) fn is_held(&self, now: Instant) -> bool {
        locked(&self.ears).held_until.is_some_and(|until| now < until)
    }

    // Hand-over.

    /// Begins a hand-over; false if one is under way.
    pub(crate) fn begin_hand_over(&self) -> bool {
        let begun = !self.handing_over.swap(true, Ordering::AcqRel);
        self.news.notify_one();
        begun
    }

    pub(crate) fn end_hand_over(&self) {
        self.handing_over.store(false, Ordering::Release);
        self.news.notify_one();
    }

    pub(crate) fn is_handing_over(&self) -> bool {
        self.handing_over.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(sets: &[&[RaftId]]) -> Voters {
        sets.iter().map(|set| set.iter().copied().collect()).collect()
    }

    #[test]
    fn a_majority_of_every_set_decides() {
        let nodes = |ids: &[RaftId]| ids.iter().copied().collect::<BTreeSet<_>>();
        assert!(is_quorum(&sets(&[&[1, 2, 3]]), &nodes(&[1, 3])));
        assert!(!is_quorum(&sets(&[&[1, 2, 3]]), &nodes(&[1, 4, 5])));
        assert!(!is_quorum(&sets(&[&[1, 2, 3, 4]]), &nodes(&[1, 2])));
        assert!(!is_quorum(&sets(&[&[1, 2, 3], &[1, 4, 5]]), &nodes(&[1, 2])));
        assert!(is_quorum(&sets(&[&[1, 2, 3], &[1, 4, 5]]), &nodes(&[1, 2, 5])));
        assert!(!is_quorum(&Voters::new(), &nodes(&[1])));
    }

    #[test]
    fn the_quorums_time_is_that_of_its_slowest_member() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let acked = BTreeMap::from([(2, at(30)), (3, at(10)), (4, at(20))]);
        let now = at(100);
        assert_eq!(quorum_time(&sets(&[&[1]]), 1, &acked, now), Some(now));
        assert_eq!(quorum_time(&sets(&[&[1, 2, 3]]), 1, &acked, now), Some(at(30)));
        assert_eq!(quorum_time(&sets(&[&[1, 2, 3, 4]]), 1, &acked, now), Some(at(20)));
        assert_eq!(quorum_time(&sets(&[&[1, 2, 3, 4, 5]]), 1, &acked, now), Some(at(20)));
        assert_eq!(quorum_time(&sets(&[&[1, 2, 3], &[1, 3, 4]]), 1, &acked, now), Some(at(20)));
        assert_eq!(quorum_time(&sets(&[&[1, 5, 6]]), 1, &acked, now), None);
        // A leader that is leaving has no vote of its own.
        assert_eq!(quorum_time(&sets(&[&[2, 3, 4]]), 1, &acked, now), Some(at(20)));
    }
}
