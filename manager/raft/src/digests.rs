//! Comparison of the managers' states: each computes a digest at the same log indexes, and the leader compares.
//!
//! A digest costs a walk over the state, so it is computed on a thread of its own from a frozen copy, at every index
//! that [`crate::Limits::digest_every`] divides. Whoever differs from the majority stops: it may be the leader itself.
//! Snapshots carry the digest of their own index beside this, which is checked after they are restored.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::ServerState;
use tokio::sync::watch;

use crate::consensus::{Member, RaftId, StopCause};
use crate::engine;
use crate::network::{LeftBehind, Line};
use crate::priority;
use crate::shared::Shared;
use crate::state_machine::Snapshot;
use crate::transport::MessageKind;
use crate::types::{Raft, Vote};
use crate::wire::{self, Control, ControlAnswer, Digest};

/// Digests kept, so that one that lags can be asked a little later.
const KEPT: usize = 8;
/// How often a manager that does not know its digest yet is asked again, and the pause before.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// The newest digests of this node.
#[derive(Debug)]
pub(crate) struct Digests {
    every: u64,
    kept: Mutex<VecDeque<(u64, Digest)>>,
    newest: watch::Sender<Option<(u64, Digest)>>,
}

impl Digests {
    /// Computes one at every index that `every` divides; none at all if it is 0.
    pub(crate) fn new(every: u64) -> Self {
        Self { every, kept: Mutex::default(), newest: watch::channel(None).0 }
    }

    /// Whether the state after the entry at `index` is to be looked at.
    pub(crate) fn is_due(&self, index: u64) -> bool {
        self.every > 0 && index > 0 && index.is_multiple_of(self.every)
    }

    /// Computes the digest of a frozen state in the background.
    pub(crate) fn compute(self: &Arc<Self>, index: u64, state: impl Snapshot) {
        let this = Arc::clone(self);
        let work = move || {
            if let Some(digest) = priority::lowered(|| state.digest()) {
                this.add(index, digest);
            }
        };
        if engine::is_simulated() || tokio::runtime::Handle::try_current().is_err() {
            work();
        } else {
            // Nobody waits for it: it shows in `newest`.
            drop(tokio::task::spawn_blocking(work));
        }
    }

    fn add(&self, index: u64, digest: Digest) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((index, digest));
        drop(kept);
        self.newest.send_replace(Some((index, digest)));
    }

    /// The digest at an index, if it is known.
    pub(crate) fn at(&self, index: u64) -> Option<Digest> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(at, _)| *at == index).map(|(_, digest)| *digest)
    }
}

/// The message of a node that differs.
pub(crate) fn diverged(index: u64, yours: &Digest, ours: &Digest) -> String {
    let hex = |digest: &Digest| digest[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!(
        "the state of this manager differs from the others' at log index {index}: its digest is {}…, theirs {}…; \
         let it leave the cluster and join again as a new manager",
        hex(yours),
        hex(ours)
    )
}

/// Who has to stop, and what the right digest is: the one of a majority of all voters, or the leader's when every voter
/// has answered and there is none. None while it cannot be said.
fn judge(leader: RaftId, voters: usize, known: &BTreeMap<RaftId, Digest>) -> Option<(Digest, Vec<RaftId>)> {
    let own = known.get(&leader)?;
    let count = |digest: &Digest| known.values().filter(|other| *other == digest).count();
    let right = match known.values().find(|digest| count(digest) * 2 > voters) {
        Some(right) => right,
        None if known.len() == voters => own,
        None => return None,
    };
    let wrong = known.iter().filter(|(_, digest)| *digest != right).map(|(id, _)| *id).collect();
    Some((*right, wrong))
}

/// Compares while this node leads. One task of the Raft runtime; ends with the engine.
pub(crate) async fn compare(raft: Raft, shared: Arc<Shared>, left_behind: LeftBehind, digests: Arc<Digests>) {
    let mut newest = digests.newest.subscribe();
    let mut metrics = raft.metrics();
    loop {
        tokio::select! {
            biased;
            changed = newest.changed() => if changed.is_err() { return },
            // Only to see the end.
            changed = metrics.wait_for(|now| now.running_state.is_err()) => {
                let _ = changed;
                return;
            }
        }
        let Some((index, digest)) = *newest.borrow_and_update() else { continue };
        let now = raft.metrics().borrow().clone();
        if now.state != ServerState::Leader {
            continue;
        }
        let voters: Vec<Member> = now
            .membership_config
            .nodes()
            .filter(|(id, _)| now.membership_config.voter_ids().any(|voter| voter == **id))
            .map(|(id, node)| Member { id: *id, address: node.addr.clone() })
            .collect();
        if voters.len() < 2 {
            continue;
        }
        let round = Round { raft: &raft, shared: &shared, left_behind: &left_behind, vote: now.vote, index };
        round.run(digest, &voters).await;
    }
}

struct Round<'a> {
    raft: &'a Raft,
    shared: &'a Arc<Shared>,
    left_behind: &'a LeftBehind,
    vote: Vote,
    index: u64,
}

impl Round<'_> {
    async fn say(&self, to: &Member, word: Control) -> Option<ControlAnswer> {
        let line =
            Line { shared: Arc::clone(self.shared), left_behind: Arc::clone(self.left_behind), target: to.clone() };
        say(&line, &self.vote, word).await
    }

    async fn run(&self, own: Digest, voters: &[Member]) {
        let mut known = BTreeMap::from([(self.shared.id, own)]);
        for _ in 0..TRIES {
            for member in voters {
                if known.contains_key(&member.id) {
                    continue;
                }
                if let Some(ControlAnswer::Digest(Some(digest))) =
                    self.say(member, Control::Digest { index: self.index }).await
                {
                    known.insert(member.id, digest);
                }
            }
            if known.len() == voters.len() || self.raft.metrics().borrow().vote != self.vote {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        let Some((right, wrong)) = judge(self.shared.id, voters.len(), &known) else { return };
        for id in wrong {
            let Some(theirs) = known.get(&id).copied() else { continue };
            if id == self.shared.id {
                self.shared.stop(self.raft, StopCause::Diverged, diverged(self.index, &theirs, &right));
            } else if let Some(member) = voters.iter().find(|member| member.id == id) {
                tracing::error!(
                    id,
                    index = self.index,
                    "a manager's state differs from the others'; it is told to stop"
                );
                self.say(member, Control::Diverged { index: self.index, yours: theirs, ours: right }).await;
            }
        }
    }
}

/// Says a leader's word to another member. None if no answer came in time.
pub(crate) async fn say(line: &Line, vote: &Vote, word: Control) -> Option<ControlAnswer> {
    let mut message = line.begin();
    wire::put_control(&mut message, vote, &word);
    let timeout = line.shared.timing.election_max;
    let answer = tokio::time::timeout(timeout, line.call(MessageKind::Control, message, timeout)).await;
    wire::get_control_answer(answer.ok()?.ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(digests: &[(RaftId, u8)]) -> BTreeMap<RaftId, Digest> {
        digests.iter().map(|(id, byte)| (*id, [*byte; 32])).collect()
    }

    #[test]
    fn the_majority_is_right_and_may_be_against_the_leader() {
        assert_eq!(judge(1, 3, &known(&[(1, 7), (2, 7), (3, 7)])), Some(([7; 32], vec![])));
        assert_eq!(judge(1, 3, &known(&[(1, 7), (2, 7), (3, 8)])), Some(([7; 32], vec![3])));
        assert_eq!(judge(1, 3, &known(&[(1, 8), (2, 7), (3, 7)])), Some(([7; 32], vec![1])));
        assert_eq!(judge(1, 3, &known(&[(1, 8), (2, 7)])), None);
        assert_eq!(judge(1, 2, &known(&[(1, 8), (2, 7)])), Some(([8; 32], vec![2])));
        assert_eq!(judge(1, 3, &known(&[(1, 8), (2, 7), (3, 6)])), Some(([8; 32], vec![2, 3])));
    }
}
