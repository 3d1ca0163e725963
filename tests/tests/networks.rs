//! Overlay networks on a lab: tasks on several hosts find each other by name, and nobody else finds them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use skep_tests::{Capture, Lab, Running, addresses, redis, until, until_some};

const SOON: Duration = Duration::from_secs(60);

/// What redis answers to a command that a task sends it by a name or an address.
fn ask_redis(lab: &Lab, task: &Running, redis: &str, command: &str) -> Result<String, String> {
    let script = format!("printf '{command}\\r\\nQUIT\\r\\n' | nc -w 3 {redis} 6379");
    let said = lab.inside(task, &["sh", "-c", &script]);
    if said.code == 0 && said.stdout.contains("+OK") { Ok(said.stdout) } else { Err(format!("{said:?}")) }
}

/// Whether a task gets an answer to a ping.
fn pings(lab: &Lab, task: &Running, to: &str) -> bool {
    lab.inside(task, &["ping", "-c", "1", "-W", "1", to]).code == 0
}

#[test]
fn tasks_reach_each_other_by_name_and_the_underlay_sees_nothing() {
    let lab = Lab::with_busybox("names", 3);
    lab.skep_with_input(1, &["image", "load"], &redis("redis:7").archive()).ok();
    lab.run(&["network", "create", "sealed"]).ok();
    lab.run(&["network", "create", "--opt", "encrypted=false", "open"]).ok();
    for (name, network) in [("store", "sealed"), ("shelf", "open")] {
        let on = ["--network", network, "--constraint", "node.hostname==host2", "redis:7"];
        lab.run(&[&["service", "create", "--detach", "--name", name][..], &on].concat()).ok();
    }
    let both = ["--network", "sealed", "--network", "open", "--constraint", "node.hostname==host3"];
    lab.create("client", &both, &["sleep", "1000"]);
    let client = lab.running("client", 1, SOON).remove(0);
    for name in ["store", "shelf"] {
        lab.running(name, 1, SOON);
        until_some("redis to answer", SOON, || ask_redis(&lab, &client, name, "PING"));
    }
    // The service's name is a virtual address; its tasks' is another.
    let (name, tasks) = (addresses(&lab, &client, "store"), addresses(&lab, &client, "tasks.store"));
    assert!(name.len() == 1 && tasks.len() == 1 && name != tasks, "{name:?} {tasks:?}");

    let capture = Capture::start(&lab, 2);
    let stored = |name, value: &str| ask_redis(&lab, &client, name, &format!("SET key {value}")).unwrap();
    stored("store", "mark-that-nobody-may-read");
    stored("shelf", "mark-that-anybody-may-read");
    until("the capture to see what is not sealed", SOON, || capture.saw("mark-that-anybody-may-read"));
    assert!(!capture.saw("mark-that-nobody-may-read"), "a sealed network's data is on the wire in the clear");
}

#[test]
fn networks_are_apart_internal_ones_have_no_way_out_and_names_can_be_all_addresses() {
    let lab = Lab::with_busybox("apart", 2);
    lab.run(&["network", "create", "front"]).ok();
    lab.run(&["network", "create", "--internal", "vault"]).ok();
    let wait = ["sleep", "1000"];
    lab.create("web", &["--network", "front", "--replicas", "4", "--endpoint-mode", "dnsrr"], &wait);
    lab.create("safe", &["--network", "vault", "--mode", "global"], &wait);
    lab.create("loner", &["--network", "none"], &wait);
    lab.create("plain", &["--mode", "global"], &wait);
    let (web, safe) = (lab.running("web", 4, SOON), lab.running("safe", 2, SOON));
    let (loner, plain) = (lab.running("loner", 1, SOON).remove(0), lab.running("plain", 2, SOON));

    // All addresses of the service's tasks, by both names.
    let all = until_some("all addresses of web", SOON, || {
        let found = addresses(&lab, &web[0], "web");
        if found.len() == 4 { Ok(found) } else { Err(format!("{found:?}")) }
    });
    assert_eq!(addresses(&lab, &web[0], "tasks.web"), all);
    assert!(all.iter().all(|address| pings(&lab, &web[0], address)), "{all:?}");
    let vaults = addresses(&lab, &safe[0], "tasks.safe");
    assert_eq!(vaults.len(), 2);
    assert!(vaults.iter().all(|address| pings(&lab, &safe[0], address)), "{vaults:?}");

    // Neither names nor addresses of a network that a task is not on.
    for outsider in [&safe[0], &loner, &plain[0]] {
        assert_eq!(addresses(&lab, outsider, "web"), BTreeSet::new());
        assert!(!all.iter().any(|address| pings(&lab, outsider, address)));
    }
    assert!(!vaults.iter().any(|address| pings(&lab, &web[0], address)));
    // The ways out: the hosts' own network stands for the world.
    let out = |task: &Running| (1..=2).all(|host| pings(&lab, task, &format!("10.90.0.{host}")));
    assert!(out(&web[0]) && out(&plain[0]) && out(&plain[1]));
    assert!(!out(&safe[0]) && !out(&loner));

    // In use, a network stays; a host with no task on it holds nothing of it.
    lab.run(&["network", "rm", "front"]).fails(1, "web");
    let id = lab.run(&["network", "inspect", "--format", "{{.ID}}", "front"]).ok();
    let held = |host| lab.exec(host, &["ls", "/run/skep/skep.netd/networks"]).ok().contains(id.trim());
    assert!((1..=2).all(held));
    lab.run(&["service", "rm", "web"]).ok();
    until("the hosts to hold nothing of the network", SOON, || !(1..=2).any(held));
    until_some("the network to be free", SOON, || {
        let removed = lab.run(&["network", "rm", "front"]);
        if removed.code == 0 { Ok(()) } else { Err(format!("{removed:?}")) }
    });
    lab.run(&["network", "inspect", "front"]).fails(1, "front");
}

#[test]
fn tasks_join_the_hosts_network_one_of_its_interfaces_or_a_bridge() {
    let lab = Lab::with_busybox("kinds", 2);
    let lan = ["--driver", "macvlan", "--subnet", "192.168.77.0/24", "--opt", "parent=eth0"];
    lab.run(&[&["network", "create"][..], &lan, &["lan"]].concat()).ok();
    lab.run(&["network", "create", "--driver", "bridge", "own"]).ok();
    for network in ["lan", "own", "host"] {
        lab.create(&format!("on-{network}"), &["--network", network, "--mode", "global"], &["sleep", "1000"]);
    }
    let tasks = |network: &str| lab.running(&format!("on-{network}"), 2, SOON);
    let lan = tasks("lan");
    let found = until_some("both addresses", SOON, || {
        let found = addresses(&lab, &lan[0], "tasks.on-lan");
        if found.len() == 2 { Ok(found) } else { Err(format!("{found:?}")) }
    });
    assert!(found.iter().all(|address| address.starts_with("192.168.77.")), "{found:?}");
    assert!(
        lan.iter().all(|task| found.iter().all(|address| pings(&lab, task, address))),
        "over the hosts' own network"
    );
    // Outside is what is on the interface's network beside skep: its gateway, and what lies behind that.
    lab.exec(2, &["ip", "addr", "add", "192.168.77.1/24", "dev", "eth0"]).ok();
    let on_host1 = lan.iter().find(|task| task.node == "host1").unwrap();
    until("the gateway to answer", SOON, || pings(&lab, on_host1, "192.168.77.1"));
    assert!(pings(&lab, on_host1, "10.90.0.2"), "behind the gateway");
    let own = tasks("own");
    assert!(own.iter().all(|task| pings(&lab, task, "10.90.0.1") && pings(&lab, task, "10.90.0.2")), "a way out");
    let host = tasks("host");
    let links = |task: &Running| lab.inside(task, &["ip", "-o", "addr", "show", "eth0"]).ok();
    assert!(host.iter().all(|task| links(task).contains("10.90.0.")));
}

#[test]
fn tasks_have_the_names_and_name_servers_that_their_service_gives_them() {
    let lab = Lab::with_busybox("words", 2);
    lab.run(&["network", "create", "front"]).ok();
    let words = "--network front --hostname box-{{.Task.Slot}} --host db:10.1.2.3 --host six:fd00::7 --dns 10.90.0.2 \
                 --dns-search example.test --dns-option ndots:2 --constraint node.hostname==host1";
    lab.create("app", &words.split_whitespace().collect::<Vec<_>>(), &["sleep", "1000"]);
    let app = lab.running("app", 1, SOON).remove(0);
    let file = |path: &str| lab.inside(&app, &["cat", path]).ok();
    let (hosts, resolv) = (file("/etc/hosts"), file("/etc/resolv.conf"));
    assert_eq!(file("/etc/hostname"), "box-1");
    for line in ["10.1.2.3\tdb", "fd00::7\tsix"] {
        assert!(hosts.lines().any(|found| found == line), "{hosts}");
    }
    assert!(hosts.lines().any(|line| line.starts_with("10.0.") && line.ends_with("\tbox-1")), "{hosts}");
    for line in ["nameserver 127.0.0.11", "search example.test", "options ndots:2"] {
        assert!(resolv.lines().any(|found| found == line), "{resolv}");
    }
    assert_eq!(addresses(&lab, &app, "box-1"), addresses(&lab, &app, "tasks.app"));
    // What the swarm does not know is asked of the name server that was given, and of no other.
    let capture = Capture::start(&lab, 2);
    until("the given name server to be asked", SOON, || {
        addresses(&lab, &app, "mark-of-a-stranger.example");
        capture.saw("mark-of-a-stranger")
    });

    let head = ["service", "create", "--detach", "--name", "wrong"];
    let wrong = |flags: &[&str], part: &str| {
        lab.run(&[&head[..], flags, &["busybox:1"]].concat()).fails(64, part);
    };
    wrong(&["--host", "db"], "db");
    wrong(&["--host", "db:here"], "here");
    wrong(&["--dns", "here"], "here");
    wrong(&["--dns-search", "not a name"], "not a name");
    wrong(&["--hostname=-box"], "-box");
}

#[test]
fn a_swarm_has_the_pools_and_the_data_path_port_that_it_was_made_with() {
    let lab = Lab::without_swarm("pools", 1, &[]);
    let init = |more: &[&str]| lab.run(&[&["swarm", "init", "--advertise-addr", "10.90.0.1"], more].concat());
    init(&["--default-addr-pool", "10.20.0.0/33"]).fails(64, "10.20.0.0/33");
    init(&["--default-addr-pool", "10.20.0.0/20", "--default-addr-pool-mask-length", "31"])
        .fails(64, "subnet_length: must be 8 to 30");
    init(&["--default-addr-pool", "10.20.0.0/20", "--default-addr-pool-mask-length", "16"]).fails(64, "10.20.0.0/20");
    init(&["--data-path-port", "80"]).fails(64, "data_path_port: must be 1024 to 49151");
    let pools = ["--default-addr-pool", "10.20.0.0/20", "--default-addr-pool", "10.30.0.0/24"];
    init(&[&pools[..], &["--default-addr-pool-mask-length", "24", "--data-path-port", "4999"]].concat()).ok();
    lab.load_busybox();
    let subnet = |name: &str| lab.run(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", name]).ok();
    assert_eq!(subnet("ingress"), "10.20.0.0/22", "the routing mesh leaves room for others");
    let mut made = 0;
    let full = loop {
        let name = format!("n{made}");
        let said = lab.run(&["network", "create", "--opt", "encrypted=false", &name]);
        if said.code != 0 {
            break said;
        }
        assert!(subnet(&name).ends_with(".0/24"));
        made += 1;
    };
    assert_eq!((made, subnet("n11"), subnet("n12")), (13, "10.20.15.0/24".to_owned(), "10.30.0.0/24".to_owned()));
    full.fails(1, "no subnet is free in the swarm's address pools");
    lab.run(&["network", "rm", "n5"]).ok();
    lab.run(&["network", "create", "again"]).ok();
    assert_eq!(subnet("again"), "10.20.9.0/24");

    let busy = ["service", "create", "--detach", "--publish", "4999:80/udp", "busybox:1"];
    lab.run(&busy).fails(1, "the overlays' data path");
    lab.create("app", &["--network", "n0"], &["sleep", "1000"]);
    lab.running("app", 1, SOON);
    let script =
        "for net in /run/skep/skep.netd/networks/*/net; do nsenter --net=$net ip -d link show type vxlan; done";
    let links = lab.exec(1, &["sh", "-c", script]).ok();
    assert!(links.contains("dstport 4999"), "{links}");
}

#[test]
fn two_hundred_tasks_are_on_one_network_and_a_partition_heals() {
    let lab = Lab::with_busybox("many", 3);
    lab.run(&["network", "create", "--subnet", "10.200.0.0/16", "wide"]).ok();
    lab.create("idle", &["--network", "wide", "--replicas", "197"], &["sleep", "1000"]);
    lab.create("probe", &["--network", "wide", "--mode", "global"], &["sleep", "1000"]);
    lab.running("idle", 197, Duration::from_secs(180));
    let probes = lab.running("probe", 3, SOON);
    let probe = |host: &str| probes.iter().find(|probe| probe.node == host).unwrap();
    let all = until_some("all addresses", SOON, || {
        let found = addresses(&lab, probe("host1"), "tasks.idle");
        if found.len() == 197 { Ok(found) } else { Err(format!("{} of 197", found.len())) }
    });
    for address in all.iter().step_by(20) {
        assert!(pings(&lab, probe("host2"), address), "{address}");
    }
    let of = |host: &str| addresses(&lab, probe("host1"), &format!("probe.{host}")).into_iter().next();
    // A task's own name is long; its address is what it says of itself.
    let own = |host: &str| {
        let hosts = lab.inside(probe(host), &["cat", "/etc/hosts"]).ok();
        let line = hosts.lines().find(|line| line.starts_with("10.200.")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(of("nowhere"), None);
    let (one, three) = (own("host1"), own("host3"));
    assert!(pings(&lab, probe("host3"), &one) && pings(&lab, probe("host1"), &three));
    lab.command(&["partition", "3", "1,2"]).ok();
    assert!(!pings(&lab, probe("host3"), &one), "the cut is one");
    lab.command(&["heal"]).ok();
    until_some("the hosts to reach each other", SOON, || {
        if pings(&lab, probe("host3"), &one) && pings(&lab, probe("host1"), &three) {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    });
}
