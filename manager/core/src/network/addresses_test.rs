//! Addresses of tasks: never doubled, all freed, given again, rotating.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use skep_proto::id::{NetworkId, ServiceId};
use skep_proto::v1::{EndpointMode, EndpointSpec, NetworkSpec, RestartPolicy, SubnetSpec, TaskState, TaskTemplate};

use super::testing::{FRONT, Leader, MESH, attachment, ip, publish};
use super::*;
use crate::example::network;
use crate::store::State;

#[test]
fn tasks_and_services_get_addresses_until_there_is_none() {
    // 14 hosts: the gateway, one virtual address, twelve tasks.
    let mut leader = Leader::new("10.1.0.0/28");
    assert_eq!(leader.create(1, 14, |_, _| {}), "");
    leader.loops();
    assert_eq!(leader.held(FRONT).len(), 12);
    assert_eq!(leader.errors(), vec!["no free address in network front"; 2]);
    let task = leader.state.pending_tasks().next().unwrap();
    assert_eq!(
        (&*task.status.refusals[0].reason, task.status.refusals[0].nodes),
        ("no free address in network front", 2)
    );
    leader.check();
    let refused = leader.create(2, 1, |_, _| {});
    assert_eq!(refused, "no free address in network front for the service's virtual address");
    // One that ends makes room.
    let ended = leader.state.tasks_on_network(FRONT).next().unwrap().id;
    leader.observe(ended, TaskState::Failed);
    assert_eq!(leader.held(FRONT).len(), 11);
    leader.loops();
    assert_eq!(leader.held(FRONT).len(), 12);
    leader.check();
}

#[test]
fn a_freed_address_rests_until_all_others_were_given() {
    let mut leader = Leader::new("10.1.0.0/28");
    leader.create(1, 1, |spec, template| {
        spec.endpoint = Some(EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..EndpointSpec::default() });
        template.restart = Some(RestartPolicy { delay_ms: -1, ..RestartPolicy::default() });
    });
    let mut given = Vec::new();
    for _ in 0..26 {
        leader.loops();
        given.extend(leader.held(FRONT));
        let task = leader.state.tasks_on_network(FRONT).next().unwrap().id;
        leader.observe(task, TaskState::Failed);
        leader.check();
    }
    assert_eq!(given[..13].iter().collect::<BTreeSet<_>>().len(), 13, "{given:?}");
    assert_eq!(given[..13], given[13..]);
    assert_eq!(given[0], ip("10.1.0.2"));
}

#[test]
fn a_new_leader_goes_on_behind_the_newest_task() {
    let mut leader = Leader::new("10.1.0.0/24");
    leader.create(1, 5, |_, _| {});
    leader.loops();
    let mut before = leader.held(FRONT);
    before.sort();
    leader.cursors = Cursors::default();
    leader.observe(leader.tasks()[0], TaskState::Failed);
    let freed: Vec<_> = before.iter().filter(|address| !leader.held(FRONT).contains(address)).copied().collect();
    leader.loops();
    assert_eq!(freed.len(), 1);
    assert!(!leader.held(FRONT).contains(&freed[0]));
}

#[test]
fn fixed_addresses_wait_for_their_holder() {
    let mut leader = Leader::new("10.1.0.0/24");
    let fixed = |template: &mut TaskTemplate| template.networks = vec![attachment(FRONT, &["10.1.0.77"])];
    assert_eq!(leader.create(1, 1, |_, template| fixed(template)), "");
    leader.loops();
    assert_eq!(leader.held(FRONT), [ip("10.1.0.77")]);
    assert_eq!(leader.create(2, 1, |_, template| fixed(template)), "");
    leader.loops();
    let holder = leader.tasks().into_iter().find(|id| leader.state.task(*id).unwrap().node.is_some()).unwrap();
    assert_eq!(leader.errors(), [format!("address 10.1.0.77 of network front is taken by task {holder}")]);
    leader.observe(holder, TaskState::Failed);
    leader.remove(1);
    leader.loops();
    assert_eq!((leader.held(FRONT), leader.errors()), (vec![ip("10.1.0.77")], vec![]));
    let outside = leader.create(3, 1, |_, template| template.networks = vec![attachment(FRONT, &["10.9.0.1"])]);
    assert_eq!(outside, "address 10.9.0.1 is outside network front");
    let gateway = leader.create(4, 1, |_, template| template.networks = vec![attachment(FRONT, &["10.1.0.1"])]);
    assert_eq!(gateway, "address 10.1.0.1 of network front is its gateway: choose another");
    leader.check();
}

#[test]
fn ranges_gateways_and_reservations_are_respected() {
    let mut leader = Leader::new("10.1.0.0/24");
    let subnet = SubnetSpec {
        subnet: "10.2.0.0/24".into(),
        gateway: "10.2.0.66".into(),
        ip_range: "10.2.0.64/29".into(),
        reserved_addresses: [("router".to_owned(), "10.2.0.67".to_owned())].into(),
    };
    let spec = NetworkSpec { name: "back".into(), subnets: vec![subnet], ..NetworkSpec::default() };
    let network = make(&leader.state, NetworkId::new(2), spec).unwrap();
    leader.state.put(network);
    leader.create(1, 9, |spec, template| {
        template.networks = vec![attachment(NetworkId::new(2), &[])];
        spec.endpoint = Some(EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..EndpointSpec::default() });
    });
    leader.loops();
    let mut held = leader.held(NetworkId::new(2));
    held.sort();
    assert_eq!(held, [64, 65, 68, 69, 70, 71].map(|last| IpAddr::from([10, 2, 0, last])));
    leader.check();
}

/// Ten thousand tasks, and then a subnet that is nearly full: no step looks at all others.
#[test]
fn a_large_network_is_fast() {
    let mut state = State::default();
    state.put(network(1, "front", "10.0.0.0/16", false));
    let mut cursors = Cursors::default();
    let began = Instant::now();
    let mut addresses = Addresses::new(&state, &mut cursors);
    let mut given = BTreeSet::new();
    for _ in 0..65_533 {
        let found = addresses.find(FRONT, &[]).unwrap();
        addresses.take(&found);
        given.extend(found.iter());
    }
    assert_eq!(given.len(), 65_533);
    for _ in 0..10_000 {
        assert_eq!(addresses.find(FRONT, &[]), Err(NoAddress::Full("front".into())));
    }
    // 2.5 µs each on an idle machine; a scan would take minutes.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[derive(Clone, Debug)]
enum Step {
    Create(u128, u64, bool),
    Remove(u128),
    Loops,
    Observe(usize, TaskState),
    NewLeader,
}

fn step() -> impl Strategy<Value = Step> {
    let state = prop_oneof![Just(TaskState::Running), Just(TaskState::Failed), Just(TaskState::Shutdown)];
    prop_oneof![
        2 => (1..4u128, 0..5u64, any::<bool>()).prop_map(|(id, replicas, vip)| Step::Create(id, replicas, vip)),
        1 => (1..4u128).prop_map(Step::Remove),
        4 => Just(Step::Loops),
        4 => (any::<usize>(), state).prop_map(|(task, state)| Step::Observe(task, state)),
        1 => Just(Step::NewLeader),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn addresses_are_never_doubled_and_all_come_back(steps in vec(step(), 1..50)) {
        let mut leader = Leader::new("10.1.0.0/29");
        for step in steps {
            match step {
                Step::Create(id, replicas, vip) if leader.state.service(ServiceId::new(id)).is_none() => {
                    leader.create(id, replicas, |spec, _| {
                        publish(spec, if vip { &[0] } else { &[] });
                        if !vip {
                            spec.endpoint.as_mut().unwrap().mode = EndpointMode::Dnsrr.into();
                        }
                    });
                }
                Step::Create(..) => {}
                Step::Remove(id) => drop(leader.remove(id)),
                Step::Loops => leader.loops(),
                Step::Observe(index, state) => {
                    let tasks = leader.tasks();
                    if let Some(task) = tasks.get(index % tasks.len().max(1)) {
                        leader.observe(*task, state);
                    }
                }
                Step::NewLeader => leader.cursors = Cursors::default(),
            }
            leader.check();
        }
        for id in 1..4 {
            leader.remove(id);
        }
        for task in leader.tasks() {
            leader.observe(task, TaskState::Shutdown);
        }
        leader.loops();
        // The gateways alone are left; all else can be given again.
        prop_assert_eq!(leader.state.addresses_of(FRONT).count(), 1);
        prop_assert_eq!(leader.state.addresses_of(MESH).count(), 1);
        prop_assert_eq!(leader.create(50, 5, |_, _| {}), "");
        leader.loops();
        let failed = leader.tasks().into_iter().filter(|id| leader.state.task(*id).unwrap().node.is_none()).count();
        prop_assert_eq!((leader.held(FRONT).len(), failed), (4, 1));
    }
}
