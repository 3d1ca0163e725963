//! The role manager: makes Raft's members what operators want of their nodes. It runs on the leader, follows the nodes
//! and Raft's status, and takes one step of `skep_core::roles::plan` at a time; it also asks nodes whose role has changed
//! to renew their certificate. Whatever fails is planned again from what is then there.
//!
//! Also here: Raft as this manager sees it, for the control API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_core::change::{Change, Group};
use skep_core::object::Node;
use skep_core::roles::{self, MemberView, RaftView, Step, Waiting};
use skep_core::store::State;
use skep_proto::id::NodeId;
use skep_proto::v1::{NodeRole, NodeState};
use skep_raft::{Consensus, Member, RaftId, Status};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::dispatch::Dispatcher;
use crate::store::Store;
use crate::topic::Topic;

/// How long one change of membership may take before it is looked at again.
const STEP: Duration = Duration::from_secs(10);
/// How long a hand-over may take.
const HAND_OVER: Duration = Duration::from_secs(5);
/// Everything is looked at this often, though nothing asks for it …
const FULL_PASS: Duration = Duration::from_secs(5);
/// … and this often while a role is not yet as wanted: nobody tells when a learner has caught up.
const WAITING: Duration = Duration::from_millis(250);
/// Pause after a step that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Shortest pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// A node that was asked to renew its certificate is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Runs as long as it lives, which is as long as this manager leads.
#[must_use = "it stops when it is dropped"]
pub(crate) struct RoleManager {
    _tasks: JoinSet<()>,
}

impl RoleManager {
    /// Starts it. Call it within a tokio runtime.
    pub(crate) fn start<C: Consensus>(raft: Arc<C>, store: Store, dispatcher: Dispatcher) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(manage(raft, store.clone()));
        tasks.spawn(ask_renewals(store, dispatcher));
        Self { _tasks: tasks }
    }

    /// Without nodes' sessions, so that nobody is asked to renew.
    #[cfg(feature = "sim")]
    pub(crate) fn simulated<C: Consensus>(raft: Arc<C>, store: Store) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(manage(raft, store));
        Self { _tasks: tasks }
    }
}

async fn manage<C: Consensus>(raft: Arc<C>, store: Store) {
    // tokio's clock, here and in `view`, as a simulation moves it by hand.
    let since = tokio::time::Instant::now();
    let (mut nodes, mut status) = (store.watch(Topic::Nodes), raft.status());
    let mut told = BTreeMap::new();
    loop {
        let state = store.state();
        let seen = status.borrow_and_update().clone();
        let plan = roles::plan(&state, &view(&seen, &state, since.elapsed()));
        tell(&state, &mut told, &plan.waiting);
        let mut pause = if plan.waiting.is_empty() { FULL_PASS } else { WAITING };
        if !write(&store, plan.changes).await {
            pause = RETRY;
        }
        if let Some(step) = plan.step {
            match take(&*raft, &step).await {
                // Its effect shows as another membership.
                Ok(()) => info!(?step, "the managers have changed"),
                Err(error) => {
                    warn!(?step, %error, "the managers could not be changed: it is tried again");
                    pause = RETRY;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = nodes.changed() => {}
            () = other_members(&mut status, &seen) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Returns when the membership is another than was seen. Status changes with every entry; most of them do not matter.
async fn other_members(status: &mut watch::Receiver<Status>, seen: &Status) {
    let same = |now: &Status| now.membership.index == seen.membership.index;
    if status.wait_for(|now| !same(now)).await.is_err() {
        // Raft has ended, and this task with it.
        std::future::pending::<()>().await;
    }
}

async fn take<C: Consensus>(raft: &C, step: &Step) -> anyhow::Result<()> {
    match step {
        Step::AddLearner { raft_id, addr } => {
            raft.add_learner(Member { id: *raft_id, address: addr.clone() }, STEP).await?;
        }
        Step::Promote { raft_id } => raft.promote(*raft_id, STEP).await?,
        Step::Remove { raft_id } => raft.remove(*raft_id, STEP).await?,
        Step::HandOver { to } => {
            raft.transfer_leadership(Some(*to), HAND_OVER).await?;
        }
    }
    Ok(())
}

/// Says whether all is written; what was overtaken is planned again.
async fn write(store: &Store, changes: Vec<Change>) -> bool {
    if changes.is_empty() {
        return true;
    }
    let groups = changes.into_iter().map(|change| Group(vec![change])).collect();
    match store.write_groups(groups).await {
        Ok(written) => {
            store.applied(written.version).await;
            for (_, reason) in &written.refused {
                debug!(%reason, "a change of a manager was overtaken");
            }
            written.refused.is_empty()
        }
        Err(error) => {
            warn!(%error, "cannot write down who is a manager");
            false
        }
    }
}

/// Logs what is waited for, once for each kind of reason.
fn tell(
    state: &State,
    told: &mut BTreeMap<NodeId, std::mem::Discriminant<Waiting>>,
    waiting: &BTreeMap<NodeId, Waiting>,
) {
    told.retain(|node, _| waiting.contains_key(node));
    for (node, why) in waiting {
        let kind = std::mem::discriminant(why);
        if told.insert(*node, kind) != Some(kind) {
            info!(%node, hostname = state.node(*node).map_or("", |node| node.hostname()), "a node {why}");
        }
    }
}

/// Asks nodes whose role has changed to renew their certificate, again and again until they have.
async fn ask_renewals(store: Store, dispatcher: Dispatcher) {
    let mut nodes = store.watch(Topic::Nodes);
    // For which role, and when.
    let mut asked: BTreeMap<NodeId, (NodeRole, Instant)> = BTreeMap::new();
    loop {
        let due: BTreeMap<NodeId, NodeRole> = roles::renewals(&store.state()).collect();
        asked.retain(|node, (role, at)| due.get(node) == Some(role) && at.elapsed() < ASK_AGAIN);
        let mut pause = FULL_PASS;
        for (node, role) in due {
            if asked.contains_key(&node) {
                continue;
            }
            if dispatcher.renew(node) {
                info!(%node, "a node is asked to renew its certificate: its role has changed");
                asked.insert(node, (role, Instant::now()));
            } else {
                // Its session may be on its way.
                pause = RETRY;
            }
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = nodes.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Raft as this manager sees it. The leader hears the members itself; the others go by what the state says of their
/// nodes: good enough to show and to refuse early, as the leader judges again before it acts. `unheard` is for how long a member that the leader never heard counts as silent.
pub(crate) fn view(status: &Status, state: &State, unheard: Duration) -> RaftView {
    let now = tokio::time::Instant::now().into_std();
    let there: BTreeMap<RaftId, bool> = if status.is_leader() {
        BTreeMap::new()
    } else {
        let is_gone = |node: &Node| matches!(node.status.state, NodeState::Down | NodeState::Disconnected);
        let own = |node: &Arc<Node>| Some((node.manager.as_ref()?.raft_id, !is_gone(node)));
        state.nodes().filter_map(own).collect()
    };
    let silent = |id: &RaftId| match (*id == status.id, status.is_leader()) {
        (true, _) => Duration::ZERO,
        (false, true) => status.heard.get(id).map_or(unheard, |at| now.saturating_duration_since(*at)),
        (false, false) if there.get(id) == Some(&true) => Duration::ZERO,
        (false, false) => Duration::MAX,
    };
    let members = |members: &BTreeMap<RaftId, Member>| {
        let matched = |id: &RaftId| if *id == status.id { status.last_log } else { *status.matched.get(id)? };
        members.keys().map(|id| (*id, MemberView { matched: matched(id), silent: silent(id) })).collect()
    };
    RaftView {
        me: status.id,
        voters: members(&status.membership.voters),
        learners: members(&status.membership.learners),
        changing: status.membership.changing,
        last_log: status.last_log.unwrap_or(0),
    }
}

/// The managers as answers show them.
pub(crate) struct Seen {
    view: RaftView,
    leader: Option<RaftId>,
    waiting: BTreeMap<NodeId, Waiting>,
}

impl Seen {
    /// Looks at every node.
    pub(crate) fn of(status: &Status, state: &State) -> Self {
        let view = view(status, state, Duration::MAX);
        let leader = match &status.leader {
            Some(leader) if leader.id == status.id => status.leads().then_some(leader.id),
            other => other.as_ref().filter(|_| status.hears_leader).map(|leader| leader.id),
        };
        let mut waiting = roles::plan(state, &view).waiting;
        if !status.is_leader() {
            // How far a learner is, only the leader knows.
            waiting.retain(|_, why| matches!(why, Waiting::Start | Waiting::LastManager | Waiting::Leaving));
        }
        Self { view, leader, waiting }
    }

    /// For decisions about demotions.
    pub(crate) fn view(&self) -> &RaftView {
        &self.view
    }

    pub(crate) fn leads(&self, raft_id: RaftId) -> bool {
        self.leader == Some(raft_id)
    }

    pub(crate) fn is_reachable(&self, raft_id: RaftId) -> bool {
        self.view.is_reachable(raft_id)
    }

    /// Why a node's role is not yet as wanted.
    pub(crate) fn waiting(&self, node: NodeId) -> Option<&Waiting> {
        self.waiting.get(&node)
    }
}
