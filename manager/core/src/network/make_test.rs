//! Networks that are made and removed: subnets that overlap with nothing, pools that run out, a network in use.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1::{FabricEndpoint, NetworkDriver, NetworkSpec, SubnetSpec, TaskState};

use super::testing::{FRONT, Leader, MESH, publish};
use super::*;
use crate::change::{Change, Group, Op, Plan};
use crate::example::{network, swarm};
use crate::object::{Cluster, Network, Node};
use crate::store::ObjectKey;

#[test]
fn pools_give_what_overlaps_with_nothing() {
    let mut leader = Leader::new("10.0.0.0/23");
    let mut node = Node::clone(leader.state.node(NodeId::new(1)).unwrap());
    node.status.addr = "10.0.3.7".to_owned();
    leader.state.put(node);
    let named = |name: &str| NetworkSpec { name: name.into(), ipv6: true, ..NetworkSpec::default() };
    let mut made: Vec<Network> = Vec::new();
    for number in 20..24 {
        let network = make(&leader.state, NetworkId::new(number), named(&format!("n{number}"))).unwrap();
        assert_eq!(leader.apply(vec![Group(vec![Change::create(Op::PutNetwork(network.clone()))])]), [""; 0]);
        made.push(network);
    }
    let v4: Vec<_> = made.iter().map(|network| network.subnets[0].cidr.to_string()).collect();
    assert_eq!(v4, ["10.0.2.0/24", "10.0.4.0/24", "10.0.5.0/24", "10.0.6.0/24"]);
    assert!(made.iter().all(|network| network.subnets[1].cidr.length() == 64));
    let vnis: BTreeSet<u32> = made.iter().filter_map(|network| network.vni).collect();
    assert_eq!(vnis.len(), made.len());
    assert!(vnis.iter().all(|vni| (vni::FIRST..=vni::LAST).contains(vni)));
    leader.check();
    let asked = |cidr: &str| {
        let subnet = SubnetSpec { subnet: cidr.into(), ..SubnetSpec::default() };
        make(&leader.state, NetworkId::new(30), NetworkSpec { subnets: vec![subnet], ..named("asked") })
    };
    let overlaps = "subnet 10.0.0.0/8 overlaps with 10.255.0.0/28 of network ingress: choose another, or leave it out";
    assert_eq!(asked("10.0.0.0/8").unwrap_err().to_string(), overlaps);
    let within = "subnet 10.0.3.0/24 contains 10.0.3.7, an address of a host: choose another, or leave it out";
    assert_eq!(asked("10.0.3.0/24").unwrap_err().to_string(), within);
    assert!(asked("192.168.7.0/24").is_ok());
    let twice = make(&leader.state, NetworkId::new(30), named("front")).unwrap_err().to_string();
    assert!(twice.starts_with("network front is there already"), "{twice}");
}

#[test]
fn managers_without_networks_are_waited_for() {
    let mut leader = Leader::new("10.1.0.0/24");
    let mut cluster = Cluster::clone(leader.state.cluster().unwrap());
    cluster.feature_level = FEATURE_LEVEL - 1;
    leader.state.put(cluster);
    let mut node = Node::clone(leader.state.node(NodeId::new(1)).unwrap());
    Arc::make_mut(node.description.as_mut().unwrap()).fabric = Some(FabricEndpoint::default());
    leader.state.put(node);
    let spec = NetworkSpec { name: "back".into(), ..NetworkSpec::default() };
    assert_eq!(make(&leader.state, NetworkId::new(2), spec), Err(NetworkError::OldManagers));
    assert_eq!(plan_nodes(&leader.state, &mut leader.cursors), Plan::default());
}

#[test]
fn small_pools_run_out() {
    let mut state = swarm(1);
    let mut cluster = Cluster::clone(state.cluster().unwrap());
    cluster.spec.address_pools = vec!["172.20.0.0/30".into(), "172.21.0.0/29".into()];
    cluster.spec.subnet_length = 30;
    state.put(cluster);
    let mut cidrs = Vec::new();
    let error = (1..).find_map(|number| {
        let spec = NetworkSpec { name: format!("n{number}"), ..NetworkSpec::default() };
        match make(&state, NetworkId::new(number), spec) {
            Ok(network) => {
                cidrs.push(network.subnets[0].cidr.to_string());
                state.put(network);
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_eq!(cidrs, ["172.20.0.0/30", "172.21.0.0/30", "172.21.0.4/30"]);
    assert_eq!(error, Some(NetworkError::PoolsExhausted));
    state.remove(&ObjectKey::Network(NetworkId::new(2)));
    let spec = NetworkSpec { name: "again".into(), ..NetworkSpec::default() };
    assert_eq!(make(&state, NetworkId::new(9), spec).unwrap().subnets[0].cidr.to_string(), "172.21.0.0/30");
}

#[test]
fn the_mesh_gets_its_usual_subnet_or_another() {
    let state = swarm(1);
    let usual = make_ingress(&state, MESH).unwrap();
    assert_eq!(usual.subnets[0].cidr.to_string(), "10.255.0.0/16");
    assert!(usual.spec.ingress && usual.spec.driver() == NetworkDriver::Overlay && usual.vni.is_some());
    let mut state = swarm(1);
    state.put(network(3, "other", "10.255.3.0/24", false));
    assert_eq!(make_ingress(&state, MESH).unwrap().subnets[0].cidr.to_string(), "10.0.0.0/16");
    // Of pools that are small it takes a quarter at most, but a usual subnet at least.
    for (pool, length, wanted) in [
        ("10.20.0.0/14", 24, "10.20.0.0/16"),
        ("10.20.0.0/16", 24, "10.20.0.0/18"),
        ("10.20.0.0/20", 24, "10.20.0.0/22"),
        ("10.20.0.0/23", 24, "10.20.0.0/24"),
        ("10.20.0.0/24", 24, "10.20.0.0/24"),
    ] {
        let mut state = swarm(1);
        let mut cluster = Cluster::clone(state.cluster().unwrap());
        (cluster.spec.address_pools, cluster.spec.subnet_length) = (vec![pool.into()], length);
        state.put(cluster);
        assert_eq!(make_ingress(&state, MESH).unwrap().subnets[0].cidr.to_string(), wanted, "{pool}");
    }
}

#[test]
fn a_network_in_use_stays_and_names_its_users() {
    let mut leader = Leader::new("10.1.0.0/24");
    leader.create(1, 1, |spec, _| publish(spec, &[8080]));
    leader.loops();
    let remove = |leader: &mut Leader, id| leader.apply(vec![Group(vec![Change::any(Op::RemoveNetwork(id))])]);
    assert_eq!(remove(&mut leader, FRONT), ["network front is in use by service s1"]);
    assert_eq!(remove(&mut leader, MESH), ["network ingress is in use by service s1"]);
    leader.remove(1);
    let task = leader.tasks()[0];
    let stopping = "network front is in use by 1 task of the removed service s1, which is stopping";
    assert_eq!(remove(&mut leader, FRONT), [stopping]);
    let users = |leader: &Leader| crate::apply::network_users(&leader.state, leader.state.network(FRONT).unwrap());
    assert!(users(&leader).unwrap().are_leaving(), "waiting helps");
    leader.observe(task, TaskState::Shutdown);
    assert_eq!((remove(&mut leader, FRONT), remove(&mut leader, MESH)), (vec![], vec![]));
    leader.check();
    let refused = leader.create(2, 1, |spec, template| {
        template.networks.clear();
        publish(spec, &[80]);
    });
    assert!(refused.starts_with("there is no network for the routing mesh"), "{refused}");
    let id = FRONT;
    assert_eq!(leader.create(3, 1, |_, _| {}), format!("network {id} is not there (any more)"));
}

#[test]
fn another_network_gets_another_vni_also_when_the_first_is_gone() {
    let mut state = swarm(1);
    let first = make_ingress(&state, MESH).unwrap();
    let again = make_ingress(&state, NetworkId::new(77)).unwrap();
    assert_ne!(first.vni, again.vni);
    // Taken by another: the next one.
    let own = first.vni.unwrap();
    state.put(Network { vni: Some(own), ..network(3, "other", "10.77.3.0/24", false) });
    assert_eq!(make_ingress(&state, MESH).unwrap().vni, Some(own + 1));
}
