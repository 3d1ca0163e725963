//! Hosts that are somebody else's too: firewalls that drop, forwarding that was off, another netd beside this one.

use std::net::{IpAddr, SocketAddr};

use skep_netlink::Namespace;
use skep_proto::v1;

use crate::lab::*;

fn done(namespace: &Namespace, command: &str) -> String {
    let output = run(namespace, command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn script(namespace: &Namespace, dir: &std::path::Path, text: &str) {
    let path = dir.join("script");
    std::fs::write(&path, text).unwrap();
    done(namespace, &format!("nft -f {}", path.display()));
}

/// A task with a way out and a port of mode host.
fn task(host: &Host<'_>, net: &v1::Network, last: u8, published_port: u32) -> Namespace {
    host.know(net);
    let mut request = attach_request(last.into(), &[(net, IpAddr::from([10, net_number(net), 1, last]))]);
    let mode = v1::PublishMode::Host.into();
    request.host_ports = vec![v1::PortSpec { published_port, target_port: 80, mode, ..v1::PortSpec::default() }];
    let sandbox = host.attach(&request);
    serve(&sandbox, 80, &format!("task{last}"));
    sandbox
}

fn net_number(net: &v1::Network) -> u8 {
    net.id[0]
}

#[test]
fn a_firewall_that_drops_by_default_is_told_of_ours_and_keeps_its_rules() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    for program in ["iptables-nft", "iptables-legacy"] {
        let mut host = lab.host(if program == "iptables-nft" { 1 } else { 2 });
        let at = SocketAddr::from(([10, 77, 0, host.number], 8080));
        let listed = || done(&host.namespace, &format!("{program} -S FORWARD"));
        done(&host.namespace, &format!("{program} -P FORWARD DROP"));
        done(&host.namespace, &format!("{program} -A FORWARD -s 10.77.0.66 -j DROP"));
        done(&host.namespace, &format!("{program} -A FORWARD -i docker0 -j ACCEPT"));
        let before = listed();
        let net = network(5, |_| {});
        let sandbox = task(&host, &net, 1, 8080);
        assert!(ping(&sandbox, "10.77.0.100"), "{}", listed());
        assert_eq!(who(&lab.outside, at).unwrap(), "task1");
        // Behind the others', which still count.
        let with = listed();
        assert!(with.starts_with(before.trim_end()), "{with}");
        assert_eq!(with.lines().count(), before.lines().count() + 2, "{with}");
        done(&lab.outside, "ip address add 10.77.0.66/24 dev eth0");
        assert!(ping(&lab.outside, &format!("-I 10.77.0.66 10.77.0.{}", host.number)));
        let from_bad = format!("curl -s -m 1 --interface 10.77.0.66 telnet://10.77.0.{}:8080", host.number);
        assert_eq!(run(&lab.outside, &from_bad).status.code(), Some(28), "dropped, not refused");
        done(&lab.outside, "ip address del 10.77.0.66/24 dev eth0");
        // Loaded afresh, by whoever it belongs to: found missing, and put again.
        done(&host.namespace, &format!("{program} -F FORWARD"));
        done(&host.namespace, "nft flush ruleset");
        done(&host.namespace, &format!("{program} -P FORWARD DROP"));
        until("not repaired", || (ping(&sandbox, "10.77.0.100") && who(&lab.outside, at).is_ok()).then_some(()));
        // Nothing is left.
        done(&host.namespace, &format!("{program} -A FORWARD -i docker0 -j ACCEPT"));
        host.shutdown();
        let after = done(&host.namespace, &format!("{program} -S FORWARD"));
        assert_eq!(after, "-P FORWARD DROP\n-A FORWARD -i docker0 -j ACCEPT\n");
    }
}

#[test]
fn a_chain_that_is_nobodys_we_know_is_told_of() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let rules = "table inet mine { chain forward { type filter hook forward priority 0; policy drop;\n }\n }\n\
                 table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10;\n }\n }\n";
    script(&host.namespace, &host.dir, rules);
    let sandbox = task(&host, &network(5, |_| {}), 1, 8080);
    assert!(is_silent(&sandbox, "10.77.0.100"));
    let notes = host.state().notes;
    let note =
        |text: &str| notes.iter().find(|note| note.contains(text)).unwrap_or_else(|| panic!("{text}: {notes:?}"));
    note("firewalld runs");
    // What it says helps.
    let text = note("chain forward of nftables' table inet mine");
    let commands = text.split('`').filter(|part| part.starts_with("nft "));
    let script_text: Vec<String> = commands.map(|command| command.replacen("nft ", "", 1)).collect();
    assert_eq!(script_text.len(), 2);
    script(&host.namespace, &host.dir, &script_text.join("\n"));
    assert!(ping(&sandbox, "10.77.0.100"));
}

#[test]
fn forwarding_is_ours_alone_and_the_last_one_puts_it_back() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host(1);
    // A second leg, that nobody reached through this host before.
    let (inner, rtnetlink) = place();
    lab.link(&host.namespace, &inner);
    for (namespace, device, address) in [(&host.namespace, "leg", "10.88.0.1/24"), (&inner, "eth0", "10.88.0.2/24")] {
        done(namespace, &format!("ip link set {device} up"));
        done(namespace, &format!("ip address add {address} dev {device}"));
    }
    drop(rtnetlink);
    done(&inner, "ip route add default via 10.88.0.1");
    done(&lab.outside, "ip route add 10.88.0.0/24 via 10.77.0.1");
    let forward = |host: &Host<'_>| host.sysctl("net.ipv4.ip_forward");
    // A namespace has what the machine has.
    done(&host.namespace, "sysctl -w net.ipv4.ip_forward=0");
    let shut = || is_silent(&lab.outside, "10.88.0.2");
    assert!(ping(&inner, "10.88.0.1") && shut());

    let one = task(&host, &network(5, |_| {}), 1, 8080);
    assert_eq!(forward(&host), "1");
    assert!(ping(&one, "10.77.0.100") && ping(&one, "10.88.0.2") && shut());
    assert!(host.state().notes.iter().any(|note| note.contains("did not forward IPv4")), "{:?}", host.state().notes);

    // Another one on the same machine: its own rules, its own addresses.
    let mut other = host.beside();
    let two = task(&other, &network(6, |_| {}), 2, 8090);
    let at = |port: u16| SocketAddr::from(([10, 77, 0, 1], port));
    let all_work = || {
        assert_eq!(who(&lab.outside, at(8080)).unwrap(), "task1");
        assert_eq!(who(&lab.outside, at(8090)).unwrap(), "task2");
        assert!(ping(&one, "10.77.0.100") && ping(&two, "10.77.0.100"));
        // Each other's published ports, and nothing else of each other.
        assert_eq!(who(&one, at(8090)).unwrap(), "task2");
        assert!(is_silent(&one, "10.6.1.2"));
    };
    all_work();
    let rules = done(&host.namespace, "nft list ruleset");
    other.detach(task_id(2));
    let two = task(&other, &network(6, |_| {}), 2, 8090);
    assert_eq!(done(&host.namespace, "nft list ruleset"), rules);
    drop(two);
    // On the same network it cannot be, and says so; the first one's is left alone.
    let shared = network(8, |spec| {
        spec.driver = v1::NetworkDriver::Bridge.into();
        spec.options.clear();
    });
    let third = task(&host, &shared, 3, 8100);
    other.know(&shared);
    let error = other.try_attach(&attach_request(4, &[(&shared, IpAddr::from([10, 8, 1, 4]))])).unwrap_err();
    assert!(error.message().contains("need a network namespace each"), "{error}");
    assert!(ping(&third, "10.77.0.100"));
    assert_eq!(who(&lab.outside, at(8100)).unwrap(), "task3");
    // The first one goes; the second still works, and turns the light off.
    host.shutdown();
    assert_eq!(forward(&host), "1");
    assert_eq!(who(&lab.outside, at(8090)).unwrap(), "task2");
    assert!(shut());
    other.shutdown();
    assert_eq!(forward(&host), "0");
    assert_eq!(done(&host.namespace, "nft list ruleset"), "");

    // Where it was on, it stays, and others' packets pass.
    done(&host.namespace, "sysctl -w net.ipv4.ip_forward=1");
    assert!(ping(&lab.outside, "10.88.0.2"));
    host.start();
    let one = task(&host, &network(5, |_| {}), 1, 8080);
    assert!(ping(&lab.outside, "10.88.0.2") && ping(&one, "10.77.0.100"));
    host.shutdown();
    assert_eq!(forward(&host), "1");
    assert!(ping(&lab.outside, "10.88.0.2"));
}

#[test]
fn bridges_are_kept_out_of_the_rules_of_routers() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let net = network(5, |_| {});
    let _sandbox = task(&host, &net, 1, 8080);
    let inside = std::fs::read_dir(host.dir.join("networks")).unwrap().next().unwrap().unwrap().path().join("net");
    let inside = Namespace::open(&inside).unwrap();
    let name = "net.bridge.bridge-nf-call-iptables";
    if !run(&inside, &format!("sysctl -n {name}")).status.success() {
        eprintln!("skipped: this kernel has no br_netfilter");
        return;
    }
    assert_eq!(done(&inside, &format!("sysctl -n {name}")), "0\n");
    // As when the module is loaded.
    done(&inside, &format!("sysctl -w {name}=1"));
    until("still on", || (done(&inside, &format!("sysctl -n {name}")) == "0\n").then_some(()));
}
