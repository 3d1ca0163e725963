//! The end of a rotation, whom it asks, and, as a property, that any history of nodes that renew, go, come back and are
//! removed ends with nobody cut off.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use skep_proto::v1::{NodeDescription, Severity};

use super::*;
use crate::doctor;
use crate::example::swarm;
use crate::store::ObjectKey;

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];
const DAY: i64 = 86_400_000;
const NOW: UnixMs = UnixMs(100 * DAY);

fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

#[test]
fn a_roots_end_is_told_of_in_time() {
    let (life, year) = (|days: i64| RootLife { not_before: UnixMs(0), not_after: UnixMs(days * DAY) }, 365);
    for (days, late_at) in [(20 * year, 20 * year - 90), (year, year - 90), (30, 20)] {
        assert!(!life(days).is_late(UnixMs(late_at * DAY)), "{days} days");
        assert!(life(days).is_late(UnixMs(late_at * DAY + 1)), "{days} days");
    }
    // A certificate is accepted for a while after its end.
    let end = UnixMs(30 * DAY).plus(CLOCK_TOLERANCE);
    assert!(!life(30).has_ended(end) && life(30).has_ended(UnixMs(end.0 + 1)));
    let said = |now| {
        let report = doctor::report(&State::default(), Some(life(30)), now);
        report
            .findings
            .into_iter()
            .map(|finding| format!("{}: {}", finding.object, finding.message))
            .collect::<Vec<_>>()
    };
    assert_eq!(said(UnixMs(19 * DAY)), Vec::<String>::new());
    let late = said(UnixMs(25 * DAY));
    assert!(late[0].starts_with("the root certificate: it ends in 5 d") && late[0].contains("ca --rotate"), "{late:?}");
    assert!(said(UnixMs(32 * DAY))[0].starts_with("the root certificate: it ended 2 d ago"));
}

fn rotation(digest: [u8; 32]) -> RootRotation {
    RootRotation {
        root_cert_pem: format!("root {digest:?}"),
        root_key_pem: format!("key {digest:?}"),
        cross_signed_pem: "cross".to_owned(),
        digest,
        started_at: NOW,
    }
}

fn rotate(state: &mut State, digest: [u8; 32]) {
    let cluster = begun(state.cluster().unwrap(), rotation(digest));
    state.put(cluster);
}

fn say(state: &mut State, number: u128, issuer: Option<[u8; 32]>, not_after: UnixMs) {
    let mut node = Node::clone(state.node(NodeId::new(number)).unwrap());
    let certificate = issuer.map(|issuer| NodeCertificate {
        issuer: issuer.to_vec(),
        not_before_ms: not_after.0 - 10 * DAY,
        not_after_ms: not_after.0,
        key: Vec::new(),
    });
    let description = NodeDescription::clone(node.description.as_ref().unwrap());
    node.description = Some(Arc::new(NodeDescription { certificate, ..description }));
    state.put(node);
}

fn set_state(state: &mut State, number: u128, to: NodeState) {
    let mut node = Node::clone(state.node(NodeId::new(number)).unwrap());
    node.status.state = to;
    state.put(node);
}

#[test]
fn every_node_that_can_still_use_the_old_root_keeps_it_trusted() {
    let mut state = swarm(4);
    assert_eq!(progress(&state, NOW), None);
    rotate(&mut state, NEW);
    let later = NOW.plus(days(1));
    for number in 1..=4 {
        say(&mut state, number, Some(OLD), later);
    }
    say(&mut state, 1, Some(NEW), later);
    say(&mut state, 2, None, later);
    set_state(&mut state, 3, NodeState::Down);
    let found = progress(&state, NOW).unwrap();
    let waiting = [(2, Why::Silent), (3, Why::Away(NodeState::Down)), (4, Why::Renewing)];
    assert_eq!(found.waiting, waiting.map(|(number, why)| (NodeId::new(number), why)).into());
    assert_eq!((found.done, found.ended, found.is_done()), (1, 0, false));

    // It may have renewed by the old root, and gone before it could say so.
    say(&mut state, 2, Some(NEW), later);
    say(&mut state, 4, Some(NEW), later);
    let end = later.plus(days(90)).plus(CLOCK_TOLERANCE);
    assert_eq!(progress(&state, end).unwrap().waiting, [(NodeId::new(3), Why::Ended)].into());
    let found = progress(&state, UnixMs(end.0 + 1)).unwrap();
    assert_eq!((found.is_done(), found.ended), (true, 1));
}

#[test]
fn the_new_root_takes_the_place_of_the_old_one_with_other_tokens() {
    let mut state = swarm(1);
    rotate(&mut state, NEW);
    let cluster = state.cluster().unwrap();
    assert!(cluster.trusted_roots_pem().contains("root [2"));
    let done = finished(cluster, [8; 16], [9; 16]).unwrap();
    let of_new = (format!("root {NEW:?}"), format!("key {NEW:?}"));
    assert_eq!((done.root_cert_pem.clone(), done.root_key_pem.clone()), of_new);
    assert_eq!((done.worker_token_secret, done.manager_token_secret, &done.root_rotation), ([8; 16], [9; 16], &None));
    assert_eq!(done.trusted_roots_pem(), done.root_cert_pem);
    assert!(finished(&done, [8; 16], [9; 16]).is_none());
    let debug = format!("{:?} {:?}", cluster.root_rotation, cluster);
    assert!(!debug.contains("key ["), "{debug}");
}

#[test]
fn few_are_asked_at_a_time_and_again_after_a_while() {
    let mut state = swarm(120);
    rotate(&mut state, NEW);
    for number in 1..=120 {
        say(&mut state, number, Some(OLD), NOW.plus(days(1)));
    }
    let found = progress(&state, NOW).unwrap();
    let mut asked = BTreeMap::new();
    let connected = |node: NodeId| node != NodeId::new(3);
    let first = to_ask(&found, &mut asked, NOW, connected);
    assert_eq!(first.len(), AT_ONCE);
    assert!(!first.contains(&NodeId::new(3)));
    assert_eq!(to_ask(&found, &mut asked, NOW, connected), []);
    // One has renewed: another takes its place.
    say(&mut state, 1, Some(NEW), NOW.plus(days(1)));
    let found = progress(&state, NOW).unwrap();
    assert_eq!(to_ask(&found, &mut asked, NOW, connected), [NodeId::new(52)]);
    // The silent ones hold up nobody.
    let again = to_ask(&found, &mut asked, NOW.plus(ASK_AGAIN), connected);
    assert_eq!((again.len(), again[0]), (AT_ONCE, NodeId::new(2)));
}

#[test]
fn the_doctor_tells_of_certificates_that_end_and_of_nodes_that_are_waited_for() {
    let mut state = swarm(3);
    for (number, left) in [(1, 5), (2, 1), (3, -1)] {
        say(&mut state, number, Some(OLD), UnixMs(NOW.0 + left * DAY));
    }
    let told = |state: &State| -> Vec<String> {
        let findings =
            doctor::report(state, None, NOW).findings.into_iter().filter(|found| found.severity() != Severity::Error);
        findings.map(|finding| format!("{}: {}", finding.object, finding.message)).collect()
    };
    let found = told(&state);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("ends in 1 d"), "{found:?}");
    assert!(found[1].contains("ended 1 d ago") && found[1].contains("swarm join --token"), "{found:?}");

    rotate(&mut state, NEW);
    assert_eq!(told(&state).len(), 2, "nodes that are there are asked: {:?}", told(&state));
    set_state(&mut state, 1, NodeState::Down);
    let found = told(&state);
    assert!(found[2].contains("waits for 1 of the nodes, which are away (host1)"), "{found:?}");
}

/// A node, played.
#[derive(Clone, Debug)]
struct Host {
    issuer: [u8; 32],
    not_after: UnixMs,
    is_up: bool,
    /// What the managers know of its certificate, which may be older.
    told: ([u8; 32], UnixMs),
}

#[derive(Clone, Debug)]
enum Step {
    Rotate,
    /// A pass of the driver: nodes that are up and asked renew.
    Pass,
    /// What a node uses now reaches the managers.
    Tell(usize),
    Off(usize),
    On(usize),
    Remove(usize),
    Days(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Rotate),
        4 => Just(Step::Pass),
        6 => (0usize..4).prop_map(Step::Tell),
        1 => (0usize..4).prop_map(Step::Off),
        2 => (0usize..4).prop_map(Step::On),
        1 => (0usize..4).prop_map(Step::Remove),
        1 => (1u64..60).prop_map(Step::Days),
    ]
}

/// Four nodes, the driver, and time.
#[derive(Debug)]
struct World {
    state: State,
    now: UnixMs,
    hosts: Vec<Option<Host>>,
    asked: BTreeMap<NodeId, UnixMs>,
    /// Of the newest root; each is used once.
    newest: u8,
    finished: usize,
}

const LIFE_DAYS: u64 = 90;

impl World {
    fn new() -> Self {
        let end = NOW.plus(days(LIFE_DAYS));
        let fresh = Host { issuer: OLD, not_after: end, is_up: true, told: (OLD, end) };
        let hosts = vec![Some(fresh); 4];
        Self { state: swarm(4), now: NOW, hosts, asked: BTreeMap::new(), newest: 10, finished: 0 }
    }

    fn id(at: usize) -> NodeId {
        NodeId::new(u128::try_from(at).unwrap() + 1)
    }

    fn is_live(&self, host: &Host) -> bool {
        host.not_after.plus(CLOCK_TOLERANCE) >= self.now
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Rotate => {
                self.newest += 1;
                rotate(&mut self.state, [self.newest; 32]);
            }
            Step::Pass => self.pass(),
            Step::Tell(at) => {
                if let Some(host) = self.hosts[at].as_mut().filter(|host| host.is_up) {
                    host.told = (host.issuer, host.not_after);
                }
            }
            Step::Off(at) => self.hosts[at].iter_mut().for_each(|host| host.is_up = false),
            Step::On(at) => self.hosts[at].iter_mut().for_each(|host| host.is_up = true),
            Step::Remove(at) => {
                self.hosts[at] = None;
                self.state.remove(&ObjectKey::Node(Self::id(at)));
            }
            Step::Days(count) => self.now = self.now.plus(days(count)),
        }
    }

    fn pass(&mut self) {
        for at in 0..self.hosts.len() {
            let Some(host) = self.hosts[at].clone() else { continue };
            let number = Self::id(at).value();
            say(&mut self.state, number, Some(host.told.0), host.told.1);
            set_state(&mut self.state, number, if host.is_up { NodeState::Ready } else { NodeState::Down });
        }
        let Some(found) = progress(&self.state, self.now) else { return };
        let next = self.state.cluster().unwrap().root_rotation.as_ref().unwrap().digest;
        if found.is_done() {
            for host in self.hosts.iter().flatten() {
                assert!(host.issuer == next || !self.is_live(host), "{host:?} is cut off");
            }
            let done = finished(self.state.cluster().unwrap(), [0; 16], [1; 16]).unwrap();
            self.state.put(done);
            self.finished += 1;
            return;
        }
        let up = |node: NodeId| {
            let at = usize::try_from(node.value()).unwrap() - 1;
            self.hosts[at].as_ref().is_some_and(|host| host.is_up && self.is_live(host))
        };
        for node in to_ask(&found, &mut self.asked.clone(), self.now, up) {
            let host = self.hosts[usize::try_from(node.value()).unwrap() - 1].as_mut().unwrap();
            // It has a session, in which it said what it had.
            host.told = (host.issuer, host.not_after);
            (host.issuer, host.not_after) = (next, self.now.plus(days(LIFE_DAYS)));
        }
    }
}

proptest! {
    #[test]
    fn nobody_is_cut_off_by_any_history(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        // Once all are up and heard, it ends.
        (0..4).for_each(|at| world.step(&Step::On(at)));
        world.pass();
        (0..4).for_each(|at| world.step(&Step::Tell(at)));
        world.pass();
        let is_open = |world: &World| world.state.cluster().unwrap().root_rotation.is_some();
        prop_assert!(!is_open(&world) || world.hosts.iter().flatten().any(|host| !world.is_live(host)), "{world:?}");
        // Or when nobody can come back any more.
        world.step(&Step::Days(2 * LIFE_DAYS + 1));
        world.pass();
        prop_assert!(!is_open(&world), "{world:?}");
        prop_assert!(world.finished > 0 || world.newest == 10);
    }
}

#[test]
fn an_example_of_the_property_does_end_rotations() {
    let mut world = World::new();
    let tell = || (0..4).map(Step::Tell);
    let steps = [Step::Rotate, Step::Off(0), Step::Pass].into_iter().chain(tell()).chain([Step::Pass]);
    steps.for_each(|step| world.step(&step));
    assert_eq!(world.finished, 0, "one is off");
    world.step(&Step::Days(2 * LIFE_DAYS + 1));
    (1..4).for_each(|at| world.hosts[at].as_mut().unwrap().told.1 = world.now.plus(days(1)));
    world.step(&Step::Pass);
    assert_eq!(world.finished, 1, "its certificate has ended");
}
