//! Attach, detach and tables at the same time, of the same tasks and networks: nothing is left in the end.

use std::net::{IpAddr, Ipv4Addr};

use skep_proto::v1;

use crate::lab::*;

const TASKS: u8 = 8;
const ROUNDS: u64 = 12;

#[test]
fn all_at_once_leaves_nothing() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host(1);
    let nets = [network(5, |_| {}), network(6, |_| {}), network(7, |spec| spec.internal = true)];
    for (number, net) in nets.iter().enumerate() {
        let mut table = whole(net, 1);
        table.put_peers = vec![peer(1), peer(2)];
        let vip = Ipv4Addr::new(10, 5 + number as u8, 0, 2);
        table.put_services = vec![service(9, "web", vip, Vec::new())];
        host.follow(&[table]);
    }
    let request = |task: u8| {
        let address = |net: usize| IpAddr::from([10, 5 + net as u8, 1, task]);
        let ends: Vec<_> = (0..3).filter(|net| (task >> net) & 1 == 0).map(|net| (&nets[net], address(net))).collect();
        let mut request = attach_request(task.into(), &ends);
        request.local_bridge = ends.is_empty();
        if task.is_multiple_of(4) {
            let port =
                v1::PortSpec { published_port: 8000 + u32::from(task), target_port: 80, ..v1::PortSpec::default() };
            request.host_ports = vec![v1::PortSpec { mode: v1::PublishMode::Host.into(), ..port }];
        }
        request
    };
    let client = host.client();
    let tables = async {
        for version in 2..2 + 4 * ROUNDS {
            let changed = nets.iter().enumerate().map(|(number, net)| {
                let mut change = difference(net, version);
                let task = (version % u64::from(TASKS)) as u8;
                let address = IpAddr::from([10, 5 + number as u8, 1, task]);
                change.put_endpoints = vec![endpoint(1, task.into(), 9, address, version % 3 > 0)];
                change
            });
            let request = v1::ApplyTablesRequest { tables: changed.collect() };
            let response = client.clone().apply(request).await.unwrap().into_inner();
            assert!(response.faults.is_empty(), "{:?}", response.faults);
        }
    };
    let one = |task: u8| {
        let (mut client, request) = (client.clone(), request(task));
        let gone = v1::DetachRequest { task_id: request.task_id.clone() };
        async move {
            for _ in 0..ROUNDS {
                let (mut again, mut twice) = (client.clone(), client.clone());
                let (first, second) = tokio::join!(client.attach(request.clone()), again.attach(request.clone()));
                assert_eq!(first.unwrap().into_inner(), second.unwrap().into_inner());
                let (first, second) = tokio::join!(client.detach(gone.clone()), twice.detach(gone.clone()));
                first.and(second).unwrap();
            }
        }
    };
    lab.runtime.block_on(async {
        tokio::join!(tables, futures::future::join_all((1..=TASKS).map(one)));
    });
    for folder in ["networks", "sandboxes"] {
        assert_eq!(std::fs::read_dir(host.dir.join(folder)).unwrap().count(), 0, "{folder}");
    }
    assert!(host.rtnetlink.links().unwrap().iter().all(|link| !link.name.starts_with("sk-")));
    assert!(host.state().sandboxes.is_empty());
    // A killed one finds nothing to make, and all of it can be made again.
    host.signal(nix::sys::signal::Signal::SIGKILL);
    let state = host.start_alone();
    assert_eq!((state.networks.len(), state.sandboxes.len()), (3, 0));
    for task in 1..=TASKS {
        let sandbox = host.attach(&request(task));
        let request = request(task);
        let is_open = request.endpoints.iter().any(|end| end.network_id != nets[2].id) || request.local_bridge;
        assert!(if is_open { ping(&sandbox, "10.77.0.100") } else { is_silent(&sandbox, "10.77.0.100") });
    }
}
