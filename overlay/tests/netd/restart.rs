//! netd that is killed disturbs nobody, and finds everything again; netd that is told to leaves nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::*;

#[test]
fn traffic_goes_on_without_netd_and_the_next_one_takes_over() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut hosts = [lab.host(1), lab.host(2)];
    let net = network(5, |_| {});
    let vip = Ipv4Addr::new(10, 5, 0, 2);
    let address = |last: u8| IpAddr::from([10, 5, 1, last]);
    let mut table = whole(&net, 1);
    table.put_services = vec![service(9, "web", vip, Vec::new())];
    table.put_peers = vec![peer(1), peer(2)];
    table.put_endpoints = vec![endpoint(1, 1, 9, address(1), true), endpoint(2, 2, 9, address(2), true)];
    let requests = [attach_request(1, &[(&net, address(1))]), attach_request(2, &[(&net, address(2))])];
    let sandboxes: Vec<_> = hosts
        .iter()
        .zip(&requests)
        .map(|(host, request)| {
            host.follow(&[table.clone()]);
            host.attach(request)
        })
        .collect();
    serve(&sandboxes[1], 80, "task2");
    let direct = SocketAddr::from((address(2), 80));
    let mut open = connect(&sandboxes[0], direct).unwrap();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        hosts[0].signal(signal);
        assert_eq!(ask(&mut open).unwrap(), "task2");
        assert_eq!(who(&sandboxes[0], direct).unwrap(), "task2");
        hosts[0].start();
        assert_eq!(ask(&mut open).unwrap(), "task2");
        // A stranger that came meanwhile, and one that went: the next whole table makes it right.
        let mut changed = table.clone();
        changed.version = 5;
        changed.put_endpoints[0].state = 0;
        changed.put_endpoints.push(endpoint(2, 3, 9, address(3), false));
        hosts[0].follow(&[changed]);
        hosts[0].attach(&requests[0]);
        assert_eq!(ask(&mut open).unwrap(), "task2");
        assert_eq!(resolve(&sandboxes[0], "web"), [vip]);
        for _ in 0..10 {
            assert_eq!(who(&sandboxes[0], SocketAddr::from((vip, 80))).unwrap(), "task2");
        }
    }
    // Another one does not run beside it.
    hosts[0].replace();
    hosts[0].attach(&requests[0]);

    // Taken off, and then nothing is left.
    hosts[0].detach(task_id(1));
    assert_eq!(std::fs::read_dir(hosts[0].dir.join("networks")).unwrap().count(), 0);
    assert!(hosts[0].rtnetlink.links().unwrap().iter().all(|link| !link.name.starts_with("sk-")));
    // What an earlier one made goes too, claimed or not.
    hosts[1].signal(Signal::SIGKILL);
    hosts[1].start();
    hosts[1].detach(task_id(2));
    assert_eq!(std::fs::read_dir(hosts[1].dir.join("networks")).unwrap().count(), 0);
    for host in &mut hosts {
        host.follow(&[table.clone()]);
        host.attach(&requests[0]);
        host.shutdown();
        let links: Vec<String> = host.rtnetlink.links().unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(links, ["lo", "eth0"]);
        let rules = run(&host.namespace, "nft list ruleset");
        assert!(rules.stdout.is_empty(), "{}", String::from_utf8_lossy(&rules.stdout));
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(host.dir.to_str().unwrap()), "{mounts}");
    }
}

/// A connection with a call that was answered, and nothing on it since: as an agent has one.
fn idle(host: &Host<'_>) -> skep_proto::v1::netd_client::NetdClient<tonic::transport::Channel> {
    let mut client = host.client();
    host.lab.runtime.block_on(client.state(skep_proto::v1::NetdStateRequest {})).unwrap();
    client
}

#[test]
fn it_ends_soon_whatever_connections_are_open() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host(1);
    for told in [false, true] {
        let (client, silent) = (idle(&host), std::os::unix::net::UnixStream::connect(host.dir.join("netd.sock")));
        let start = Instant::now();
        match told {
            true => host.shutdown(),
            false => host.signal(Signal::SIGTERM),
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        drop((client, silent));
        if !told {
            host.start();
        }
    }
}
