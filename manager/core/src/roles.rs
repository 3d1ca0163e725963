//! Which nodes are managers: from the roles that operators want, and what the leader sees of Raft, to the next step of
//! membership. Called by the role manager on the leader, by the control API before it takes a wish, and by the
//! certificate authority; pure.
//!
//! A promotion: the wish is in the node's spec → its certificate says so → its daemon starts a manager, which enters
//! and is written down in `Node::manager` → learner → caught up → voter. A demotion goes back: the lead is handed over,
//! the vote goes, the entry in `Node::manager` goes, then the certificate. One step at a time, and none that would
//! leave fewer voters answering than a majority.

mod view;

#[cfg(test)]
mod roles_test;

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_proto::id::NodeId;
use skep_proto::v1::NodeRole;

use crate::change::{Change, Op};
use crate::object::{ManagerStatus, Node};
use crate::store::State;
pub use view::{CAUGHT_UP, GIVE_UP, MemberView, REACHABLE, RaftView};

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RolePlan {
    /// The next change of Raft's membership. `None`: there is none, or one is under way.
    pub step: Option<Step>,
    /// Writes, each of which stands alone.
    pub changes: Vec<Change>,
    /// Whose role is not yet as wanted, and why.
    pub waiting: BTreeMap<NodeId, Waiting>,
}

/// A change of Raft's membership, or what must come before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The log goes to this manager from now on.
    AddLearner { raft_id: u64, addr: String },
    /// It has the log: it may vote.
    Promote { raft_id: u64 },
    /// It leaves Raft for good.
    Remove { raft_id: u64 },
    /// The leader is to leave: another one leads, and removes it.
    HandOver { to: u64 },
}

/// Why a node's role is not yet as wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    #[error("becomes a manager: its daemon has not started one yet")]
    Start,
    #[error("becomes a manager: it is given the log, {behind} entries to go")]
    CatchingUp { behind: u64 },
    #[error("becomes a manager: it does not answer the leader")]
    Silent,
    #[error("stays a manager for now: it is the last one")]
    LastManager,
    #[error("stays a manager for now: it leads, and no other manager answers and has the whole log")]
    NoSuccessor,
    #[error("stays a manager for now: {0}")]
    Quorum(Quorum),
    #[error("stops being a manager")]
    Leaving,
}

/// A removal that would leave too few voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("without it {reachable} of the {voters} other managers would answer, and {needed} are needed")]
pub struct Quorum {
    pub reachable: usize,
    pub voters: usize,
    pub needed: usize,
}

/// Why a manager cannot be demoted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DemotionRefused {
    #[error("attempting to demote the last manager of the swarm")]
    LastManager,
    #[error("demoting this manager would cost the swarm its quorum: {0}; bring the others back first")]
    Quorum(#[from] Quorum),
}

/// The role that a node's certificate gives it: a manager's from the wish until it is out of Raft.
pub fn certificate_role(node: &Node) -> NodeRole {
    match (node.spec.role(), &node.manager) {
        (NodeRole::Manager, _) | (NodeRole::Worker, Some(_)) => NodeRole::Manager,
        (NodeRole::Worker, None) => NodeRole::Worker,
    }
}

/// Nodes that must renew their certificate, since their role has changed to this one.
pub fn renewals(state: &State) -> impl Iterator<Item = (NodeId, NodeRole)> {
    let roles = state.nodes().map(|node| (node, certificate_role(node)));
    roles.filter(|(node, role)| node.role != *role).map(|(node, role)| (node.id, role))
}

/// Whether a manager may be demoted: another one must be there to go on, and enough of them.
pub fn check_demotion(state: &State, view: &RaftView, node: &Node) -> Result<(), DemotionRefused> {
    let stays = |other: &&Arc<Node>| other.id != node.id && other.spec.role() == NodeRole::Manager;
    let has_vote = |node: &Node| node.manager.as_ref().is_some_and(|own| view.voters.contains_key(&own.raft_id));
    if !state.nodes().filter(stays).any(|other| has_vote(other)) {
        return Err(DemotionRefused::LastManager);
    }
    match &node.manager {
        Some(own) if view.voters.contains_key(&own.raft_id) => Ok(view.without(own.raft_id)?),
        _ => Ok(()),
    }
}

/// The next step from what there is to what is wanted. Applied until it is empty, every manager votes and nobody else
/// does.
pub fn plan(state: &State, view: &RaftView) -> RolePlan {
    let mut plan = RolePlan::default();
    // Raft is there a moment before the swarm's first write.
    if state.cluster().is_none() {
        return plan;
    }
    let mut steps = Steps::default();
    let mut claimed: BTreeMap<u64, &Node> = BTreeMap::new();
    for node in state.nodes() {
        match (&node.manager, node.spec.role()) {
            (None, NodeRole::Worker) => {}
            (None, NodeRole::Manager) => plan.wait(node, Waiting::Start),
            (Some(own), role) => {
                claimed.insert(own.raft_id, node);
                match role {
                    NodeRole::Manager => promote(view, node, own, &mut steps, &mut plan),
                    NodeRole::Worker => demote(state, view, node, own, &mut steps, &mut plan),
                }
            }
        }
    }
    for raft_id in view.members().filter(|raft_id| !claimed.contains_key(raft_id)) {
        if let Ok(step) = removal(state, view, raft_id) {
            steps.removals.push(step);
        }
    }
    if !view.changing {
        plan.step = steps.first();
    }
    plan
}

/// What could be done, in the order of preference: more voters first, so that removals have a larger quorum.
#[derive(Default)]
struct Steps {
    learners: Vec<Step>,
    promotions: Vec<Step>,
    removals: Vec<Step>,
}

impl Steps {
    fn first(self) -> Option<Step> {
        let hand_over = |step: &Step| matches!(step, Step::HandOver { .. });
        let (hand_overs, removals): (Vec<_>, Vec<_>) = self.removals.into_iter().partition(hand_over);
        // The lead goes last: whoever has it does the rest.
        self.promotions.into_iter().chain(self.learners).chain(removals).chain(hand_overs).next()
    }
}

impl RolePlan {
    fn wait(&mut self, node: &Node, why: Waiting) {
        self.waiting.insert(node.id, why);
    }

    /// The node is no manager any more.
    fn forget(&mut self, node: &Node) {
        let changed = Node { manager: None, ..node.clone() };
        self.changes.push(Change::update(node.meta.version, Op::PutNode(changed)));
    }
}

fn promote(view: &RaftView, node: &Node, own: &ManagerStatus, steps: &mut Steps, plan: &mut RolePlan) {
    let raft_id = own.raft_id;
    if view.voters.contains_key(&raft_id) {
        return;
    }
    let Some(learner) = view.learners.get(&raft_id) else {
        steps.learners.push(Step::AddLearner { raft_id, addr: own.addr.clone() });
        plan.wait(node, Waiting::CatchingUp { behind: view.last_log });
        return;
    };
    // It never took an entry, and is not there: it has to start anew, under another id.
    if learner.matched.is_none() && learner.silent >= GIVE_UP {
        plan.forget(node);
        plan.wait(node, Waiting::Start);
        return;
    }
    let behind = view.last_log.saturating_sub(learner.matched.unwrap_or(0));
    if !learner.is_reachable() {
        plan.wait(node, Waiting::Silent);
    } else if learner.matched.is_none() || behind > CAUGHT_UP {
        plan.wait(node, Waiting::CatchingUp { behind });
    } else {
        steps.promotions.push(Step::Promote { raft_id });
        plan.wait(node, Waiting::CatchingUp { behind });
    }
}

fn demote(state: &State, view: &RaftView, node: &Node, own: &ManagerStatus, steps: &mut Steps, plan: &mut RolePlan) {
    if !view.members().any(|member| member == own.raft_id) {
        // While a change is under way the members are not settled.
        if !view.changing {
            plan.forget(node);
        }
        plan.wait(node, Waiting::Leaving);
        return;
    }
    match removal(state, view, own.raft_id) {
        Ok(step) => {
            steps.removals.push(step);
            plan.wait(node, Waiting::Leaving);
        }
        Err(why) => plan.wait(node, why),
    }
}

/// How a member leaves Raft, or why it cannot now.
fn removal(state: &State, view: &RaftView, raft_id: u64) -> Result<Step, Waiting> {
    if !view.voters.contains_key(&raft_id) {
        return Ok(Step::Remove { raft_id });
    }
    if view.voters.len() == 1 {
        return Err(Waiting::LastManager);
    }
    view.without(raft_id).map_err(Waiting::Quorum)?;
    if raft_id != view.me {
        return Ok(Step::Remove { raft_id });
    }
    successor(state, view).map(|to| Step::HandOver { to }).ok_or(Waiting::NoSuccessor)
}

/// Who could lead: a manager that is to stay one, answers, and has the log; the one with the most of it.
fn successor(state: &State, view: &RaftView) -> Option<u64> {
    let managers = state.nodes().filter(|node| node.spec.role() == NodeRole::Manager);
    let candidates = managers.filter_map(|node| {
        let raft_id = node.manager.as_ref()?.raft_id;
        let voter = view.voters.get(&raft_id)?;
        let behind = view.last_log.saturating_sub(voter.matched?);
        (raft_id != view.me && voter.is_reachable() && behind <= CAUGHT_UP).then_some((behind, raft_id))
    });
    candidates.min().map(|(_, raft_id)| raft_id)
}
