//! Promotions and demotions step by step; then any history of wishes, failures and changes of leader as a property.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use skep_proto::id::NodeId;
use skep_proto::v1::NodeRole;

use super::*;
use crate::example::{node, swarm};
use crate::store::{Object, ObjectKey};

/// A swarm and its Raft group, both played: what the leader is told to do happens at once.
struct World {
    state: State,
    /// Raft ids with a vote, and learners with what they hold.
    voters: BTreeSet<u64>,
    learners: BTreeMap<u64, Option<u64>>,
    leader: u64,
    /// Daemons that run.
    up: BTreeSet<u64>,
    next_raft_id: u64,
    /// For how long members that are down have been silent.
    silent: Duration,
}

const LAST_LOG: u64 = 1_000;

impl World {
    /// `managers` voters out of `nodes` nodes; the node's number is its Raft id at first.
    fn new(nodes: u64, managers: u64) -> Self {
        let mut state = swarm(0);
        for number in 1..=nodes {
            let mut node = node(number.into()).build();
            if number <= managers {
                wish(&mut node, NodeRole::Manager);
                node.role = NodeRole::Manager;
                node.manager = Some(ManagerStatus { raft_id: number, addr: format!("10.0.0.{number}:2377") });
            }
            state.put(node);
        }
        Self {
            state,
            voters: (1..=managers).collect(),
            learners: BTreeMap::new(),
            leader: 1,
            up: (1..=nodes).collect(),
            next_raft_id: nodes + 1,
            silent: Duration::from_secs(10),
        }
    }

    fn node(&self, number: u64) -> Option<Node> {
        self.state.node(NodeId::new(number.into())).map(|node| Node::clone(node))
    }

    fn set_role(&mut self, number: u64, role: NodeRole) {
        if let Some(mut node) = self.node(number) {
            wish(&mut node, role);
            self.state.put(node);
        }
    }

    /// Whether the daemon of the node that has this Raft id runs.
    fn is_up(&self, raft_id: u64) -> bool {
        let has = |node: &&Arc<Node>| node.manager.as_ref().is_some_and(|own| own.raft_id == raft_id);
        let number = self.state.nodes().find(has).map(|node| node.id.value());
        number.is_some_and(|number| self.up.iter().any(|up| u128::from(*up) == number))
    }

    fn view(&self) -> RaftView {
        let member = |raft_id: u64, matched| MemberView {
            matched,
            silent: if self.is_up(raft_id) { Duration::ZERO } else { self.silent },
        };
        RaftView {
            me: self.leader,
            voters: self.voters.iter().map(|id| (*id, member(*id, Some(LAST_LOG)))).collect(),
            learners: self.learners.iter().map(|(id, matched)| (*id, member(*id, *matched))).collect(),
            changing: false,
            last_log: LAST_LOG,
        }
    }

    fn has_quorum(&self) -> bool {
        let reachable = self.voters.iter().filter(|id| self.is_up(**id)).count();
        reachable > self.voters.len() / 2
    }

    fn plan(&self) -> RolePlan {
        plan(&self.state, &self.view())
    }

    /// Daemons of nodes that are managers by certificate enter; learners that are up catch up.
    fn daemons_act(&mut self) {
        let nodes: Vec<Node> = self.state.nodes().map(|node| Node::clone(node)).collect();
        for mut node in nodes {
            let number = u64::try_from(node.id.value()).unwrap();
            if !self.up.contains(&number) {
                continue;
            }
            node.role = certificate_role(&node);
            if node.spec.role() == NodeRole::Manager && node.manager.is_none() {
                let raft_id = self.next_raft_id;
                self.next_raft_id += 1;
                node.manager = Some(ManagerStatus { raft_id, addr: format!("10.0.0.{number}:2377") });
            }
            self.state.put(node);
        }
        let up: Vec<u64> = self.learners.keys().copied().filter(|id| self.is_up(*id)).collect();
        for id in up {
            self.learners.insert(id, Some(LAST_LOG - 1));
        }
    }

    /// Does what the plan says. Says whether there was anything.
    fn role_manager_acts(&mut self) -> bool {
        let RolePlan { step, changes, .. } = self.plan();
        for change in &changes {
            let Op::PutNode(node) = &change.op else { panic!("it writes {change:?}") };
            self.state.put(node.clone());
        }
        let quorum_before = self.has_quorum();
        let voters_before = self.voters.len();
        match &step {
            Some(Step::AddLearner { raft_id, .. }) => {
                assert!(!self.voters.contains(raft_id));
                self.learners.insert(*raft_id, None);
            }
            Some(Step::Promote { raft_id }) => {
                assert!(self.learners.remove(raft_id).flatten().is_some(), "it has the log");
                self.voters.insert(*raft_id);
            }
            Some(Step::Remove { raft_id }) => {
                assert_ne!(*raft_id, self.leader, "the leader hands over first");
                assert!(self.voters.remove(raft_id) || self.learners.remove(raft_id).is_some(), "it is a member");
            }
            Some(Step::HandOver { to }) => {
                assert!(self.voters.contains(to) && self.is_up(*to));
                self.leader = *to;
            }
            None => {}
        }
        assert!(!self.voters.is_empty(), "someone is left");
        assert!(!quorum_before || self.has_quorum(), "{step:?} costs the quorum");
        assert!(self.voters.len().abs_diff(voters_before) <= 1, "one at a time");
        step.is_some() || !changes.is_empty()
    }

    /// A leader that is up: without one, nothing happens.
    fn elect(&mut self) -> bool {
        if !self.has_quorum() {
            return false;
        }
        if !self.voters.contains(&self.leader) || !self.is_up(self.leader) {
            self.leader = self.voters.iter().copied().find(|id| self.is_up(*id)).unwrap();
        }
        true
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            self.daemons_act();
            if self.elect() && !self.role_manager_acts() {
                return;
            }
        }
        panic!("it does not come to rest: {:?} {:?}", self.plan(), self.view());
    }

    fn managers(&self) -> BTreeSet<u64> {
        let managers = self.state.nodes().filter(|node| node.manager.is_some());
        managers.map(|node| u64::try_from(node.id.value()).unwrap()).collect()
    }
}

fn wish(node: &mut Node, role: NodeRole) {
    Arc::make_mut(&mut node.spec).role = role.into();
}

#[test]
fn a_promotion_waits_for_the_daemon_then_for_the_log() {
    let mut world = World::new(2, 1);
    world.set_role(2, NodeRole::Manager);
    let waiting = NodeId::new(2);
    assert_eq!(certificate_role(&world.node(2).unwrap()), NodeRole::Manager);
    assert_eq!(renewals(&world.state).collect::<Vec<_>>(), [(waiting, NodeRole::Manager)]);
    assert_eq!((world.plan().step, world.plan().waiting[&waiting].clone()), (None, Waiting::Start));

    world.daemons_act();
    assert_eq!(renewals(&world.state).count(), 0);
    assert_eq!(world.plan().step, Some(Step::AddLearner { raft_id: 3, addr: "10.0.0.2:2377".into() }));
    world.role_manager_acts();
    assert_eq!(world.plan().step, None, "it has nothing yet");
    world.learners.insert(3, Some(LAST_LOG - CAUGHT_UP - 1));
    let plan = world.plan();
    assert_eq!((plan.step, plan.waiting[&waiting].clone()), (None, Waiting::CatchingUp { behind: CAUGHT_UP + 1 }));
    world.learners.insert(3, Some(LAST_LOG - CAUGHT_UP));
    assert_eq!(world.plan().step, Some(Step::Promote { raft_id: 3 }));
    world.up.remove(&2);
    assert_eq!((world.plan().step, world.plan().waiting[&waiting].clone()), (None, Waiting::Silent));
    world.up.insert(2);
    world.settle();
    assert_eq!(world.plan(), RolePlan::default());
    assert_eq!(world.voters, BTreeSet::from([1, 3]));
}

#[test]
fn a_change_under_way_is_waited_for() {
    let mut world = World::new(3, 3);
    world.set_role(3, NodeRole::Worker);
    let view = RaftView { changing: true, ..world.view() };
    assert_eq!(plan(&world.state, &view).step, None);
    let without = RaftView { changing: true, voters: BTreeMap::new(), ..world.view() };
    assert_eq!(plan(&world.state, &without).changes, vec![], "and nobody is forgotten meanwhile");
}

#[test]
fn a_manager_that_never_starts_is_forgotten_and_one_that_did_is_not() {
    let mut world = World::new(2, 1);
    world.set_role(2, NodeRole::Manager);
    world.daemons_act();
    world.role_manager_acts();
    world.up.remove(&2);
    world.silent = GIVE_UP - Duration::from_secs(1);
    assert!(!world.role_manager_acts());
    world.silent = GIVE_UP;
    let mut tried = World { state: world.state.clone(), ..World::new(2, 1) };
    tried.up.remove(&2);
    (tried.learners, tried.silent) = (BTreeMap::from([(3, Some(7))]), GIVE_UP);
    assert!(!tried.role_manager_acts(), "it took entries once");

    world.settle();
    assert_eq!((world.learners.len(), world.node(2).unwrap().manager), (0, None));
    assert_eq!(world.plan().waiting[&NodeId::new(2)], Waiting::Start);
    world.up.insert(2);
    world.settle();
    assert_eq!(world.voters, BTreeSet::from([1, 4]), "under an id of its own");
}

#[test]
fn the_leader_hands_over_before_it_is_demoted() {
    let mut world = World::new(3, 3);
    world.set_role(1, NodeRole::Worker);
    assert_eq!(world.plan().step, Some(Step::HandOver { to: 2 }));
    world.settle();
    assert_eq!((world.leader, world.voters.clone()), (2, BTreeSet::from([2, 3])));
    assert_eq!(certificate_role(&world.node(1).unwrap()), NodeRole::Worker);
    assert_eq!(world.managers(), BTreeSet::from([2, 3]));
}

#[test]
fn the_quorum_is_kept_and_the_last_manager_stays() {
    let mut world = World::new(3, 3);
    world.up.remove(&3);
    let asked = |world: &World, number| check_demotion(&world.state, &world.view(), &world.node(number).unwrap());
    assert_eq!(
        asked(&world, 2).unwrap_err().to_string(),
        "demoting this manager would cost the swarm its quorum: without it 1 of the 2 other managers would answer, \
         and 2 are needed; bring the others back first"
    );
    assert_eq!(asked(&world, 3), Ok(()));
    world.set_role(2, NodeRole::Worker);
    world.settle();
    assert_eq!(world.voters.len(), 3);
    assert!(matches!(world.plan().waiting[&NodeId::new(2)], Waiting::Quorum(_)));
    world.up.insert(3);
    world.settle();
    assert_eq!(world.voters, BTreeSet::from([1, 3]));
    world.set_role(3, NodeRole::Worker);
    world.settle();
    assert_eq!(asked(&world, 1), Err(DemotionRefused::LastManager));
    world.set_role(1, NodeRole::Worker);
    world.settle();
    assert_eq!(world.voters, BTreeSet::from([1]));
    assert_eq!(world.plan().waiting[&NodeId::new(1)], Waiting::LastManager);
}

#[test]
fn a_promoted_node_without_a_vote_does_not_count_as_a_manager_that_stays() {
    let mut world = World::new(2, 1);
    world.set_role(2, NodeRole::Manager);
    let first = world.node(1).unwrap();
    assert_eq!(check_demotion(&world.state, &world.view(), &first), Err(DemotionRefused::LastManager));
    world.settle();
    assert_eq!(check_demotion(&world.state, &world.view(), &world.node(2).unwrap()), Ok(()));
    // The other way round it would leave a vote with a host that is gone.
    world.up.remove(&2);
    assert!(matches!(
        check_demotion(&world.state, &world.view(), &world.node(1).unwrap()),
        Err(DemotionRefused::Quorum(_))
    ));
}

#[test]
fn a_member_that_no_node_claims_is_removed() {
    let mut world = World::new(3, 3);
    world.learners.insert(9, None);
    world.state.remove(&ObjectKey::Node(NodeId::new(3)));
    world.settle();
    assert_eq!((world.voters.clone(), world.learners.len()), (BTreeSet::from([1, 2]), 0));
}

#[test]
fn before_the_swarm_is_made_nobody_is_removed() {
    let world = World::new(1, 1);
    assert_eq!(plan(&State::default(), &world.view()), RolePlan::default());
}

/// Something that happens to the world.
#[derive(Clone, Debug)]
enum Happening {
    Wish(u64, NodeRole),
    Dies(u64),
    Returns(u64),
    Removed(u64),
    LeaderChanges(usize),
    Silence(u64),
    DaemonsAct,
    RoleManagerActs,
}

const NODES: u64 = 6;

fn happening() -> impl Strategy<Value = Happening> {
    let number = 1..=NODES;
    let role = prop_oneof![Just(NodeRole::Manager), Just(NodeRole::Worker)];
    prop_oneof![
        4 => (number.clone(), role).prop_map(|(number, role)| Happening::Wish(number, role)),
        2 => number.clone().prop_map(Happening::Dies),
        2 => number.clone().prop_map(Happening::Returns),
        1 => number.prop_map(Happening::Removed),
        1 => (0usize..6).prop_map(Happening::LeaderChanges),
        1 => (1u64..400).prop_map(Happening::Silence),
        4 => Just(Happening::DaemonsAct),
        8 => Just(Happening::RoleManagerActs),
    ]
}

fn happen(world: &mut World, happening: &Happening) {
    match happening {
        Happening::Wish(number, role) => {
            // As the control API lets it through, or not.
            let node = world.node(*number);
            let refused = |node: &Node| check_demotion(&world.state, &world.view(), node).is_err();
            if *role == NodeRole::Manager || !node.is_some_and(|node| refused(&node)) {
                world.set_role(*number, *role);
            }
        }
        Happening::Dies(number) => {
            world.up.remove(number);
        }
        Happening::Returns(number) => {
            world.up.insert(*number);
        }
        Happening::Removed(number) => {
            // The API removes workers only; others are demoted first.
            if world.node(*number).is_some_and(|node| node.manager.is_none()) {
                world.state.remove(&ObjectKey::Node(NodeId::new((*number).into())));
            }
        }
        Happening::LeaderChanges(index) => {
            let up: Vec<u64> = world.voters.iter().copied().filter(|id| world.is_up(*id)).collect();
            if let Some(leader) = up.get(*index) {
                world.leader = *leader;
            }
        }
        Happening::Silence(seconds) => world.silent = Duration::from_secs(*seconds).max(REACHABLE),
        Happening::DaemonsAct => world.daemons_act(),
        Happening::RoleManagerActs => {
            if world.elect() {
                world.role_manager_acts();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn roles_converge_and_no_step_costs_the_quorum(history in prop::collection::vec(happening(), 1..80)) {
        let mut world = World::new(NODES, 3);
        for event in &history {
            happen(&mut world, event);
        }
        // Then all is well.
        world.up = (1..=NODES).collect();
        world.settle();
        let wanted: BTreeSet<u64> = world
            .state
            .nodes()
            .filter(|node| node.spec.role() == NodeRole::Manager)
            .map(|node| u64::try_from(node.id.value()).unwrap())
            .collect();
        prop_assert!(!wanted.is_empty(), "the last manager is never let go");
        prop_assert_eq!(world.managers(), wanted);
        let claims: BTreeSet<u64> =
            world.state.nodes().filter_map(|node| Some(node.manager.as_ref()?.raft_id)).collect();
        prop_assert_eq!(&world.voters, &claims);
        prop_assert!(world.learners.is_empty());
        prop_assert_eq!(world.plan(), RolePlan::default());
        let objects_hold = world.state.objects().all(|object| match object {
            Object::Node(node) => node.role == certificate_role(&node),
            _ => true,
        });
        prop_assert!(objects_hold, "every certificate says so");
    }
}
