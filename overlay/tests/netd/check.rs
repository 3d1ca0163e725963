//! A check of a host's networks: says nothing where all is well, and finds each fault that is made.

use std::net::Ipv4Addr;

use skep_netlink::link::LinkChange;
use skep_netlink::{Changes, Inside, Namespace};
use skep_proto::v1;
use skep_proto::v1::CheckArea::{Devices, Mtu, Reachability, Rules, Settings};

use crate::lab::*;

fn check(host: &Host<'_>) -> v1::NetworkCheck {
    let request = v1::CheckRequest { network_ids: Vec::new(), time_limit_ms: 4000 };
    host.lab.runtime.block_on(host.client().check(request)).unwrap().into_inner().check.unwrap()
}

/// What is wrong: area, problem, advice.
fn faults(host: &Host<'_>) -> Vec<(v1::CheckArea, String, String)> {
    let found = check(host).findings;
    assert!(found.iter().all(|finding| finding.node_id == host.node().to_vec()));
    let wrong = found.into_iter().filter(|finding| finding.severity() != v1::CheckSeverity::Ok);
    wrong.map(|finding| (finding.area(), finding.problem, finding.advice)).collect()
}

/// Exactly one fault, of this area, with these words in what is wrong and in what is to be done.
#[track_caller]
fn one(host: &Host<'_>, area: v1::CheckArea, problem: &str, advice: &str) {
    let found = faults(host);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].0, area, "{found:#?}");
    assert!(found[0].1.contains(problem) && found[0].2.contains(advice), "{found:#?}");
}

/// Plugs hosts into a network with a task on each.
fn plug(hosts: &[Host<'_>], net: &v1::Network, number: u8) {
    let before = u128::from(number) * 10;
    let mut table = pair(net, number, before);
    table.put_services = vec![service(9, "web", Ipv4Addr::new(10, number, 0, 2), Vec::new())];
    attach_pair(hosts, (net, number, before), &table, &[]);
}

/// The namespace of a network on a host.
fn inside(host: &Host<'_>, net: &v1::Network) -> Namespace {
    let id = skep_proto::id::NetworkId::from_wire(&net.id).unwrap();
    Namespace::open(&host.dir.join("networks").join(id.to_string()).join("net")).unwrap()
}

fn change(place: &Namespace, device: &str, change: LinkChange<'_>) {
    let mut changes = Changes::new();
    changes.change_link(device, &change);
    place.enter(Inside::rtnetlink).unwrap().apply(&changes).unwrap();
}

fn up(place: &Namespace, device: &str, up: bool) {
    change(place, device, LinkChange { up: Some(up), ..LinkChange::default() });
}

fn mtu(place: &Namespace, device: &str, mtu: u32) {
    change(place, device, LinkChange { mtu: Some(mtu), ..LinkChange::default() });
}

#[track_caller]
fn nft(place: &Namespace, command: &str) {
    let output = run(place, command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn faults_of_a_host_are_found_each_by_itself() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let net = network(5, |_| {});
    plug(&hosts, &net, 5);
    assert_eq!(faults(&hosts[0]), []);
    let seen = check(&hosts[0]);
    assert_eq!((seen.paths.len(), seen.applied.len()), (1, 1));
    let path = &seen.paths[0];
    assert_eq!((path.peer_id.clone(), path.largest, path.mtu), (hosts[1].node().to_vec(), 1450, 1450));
    assert!(path.round_trip_us > 0, "{path:?}");

    let (host, place) = (&hosts[0], inside(&hosts[0], &net));
    rules(host, &place);
    settings(host, &place);
    devices(host, &place);
    underlay(host);
    balancing(host, &net);
    // Last, as `nft` would not write the rules as netd does; the network is a new one since its task was.
    gone(host, &inside(host, &net));
}

/// Rules: one that is gone, and a table of somebody else that drops.
fn rules(host: &Host<'_>, place: &Namespace) {
    let rules = run(place, "nft list chain ip skep in");
    nft(place, "nft flush chain ip skep in");
    one(host, Rules, "table ip skep of network net5 on this host has 0 rules in chain in instead of 3", "restart netd");
    std::fs::write(host.dir.join("rules"), &rules.stdout).unwrap();
    nft(place, &format!("nft -f {}", host.dir.join("rules").display()));
    assert_eq!(faults(host), []);
    // Not iptables' table: there netd lets its own packets pass by itself.
    nft(&host.namespace, "nft add table ip wall");
    nft(&host.namespace, "nft add chain ip wall FORWARD { type filter hook forward priority 0 ; policy drop ; }");
    one(host, Rules, "chain FORWARD of nftables table ip wall drops", "nft insert rule ip wall FORWARD iifname");
    for way in ["iifname", "oifname"] {
        nft(&host.namespace, &format!("nft insert rule ip wall FORWARD {way} sk-* accept"));
    }
    assert_eq!(faults(host), []);
    nft(&host.namespace, "nft delete table ip wall");
}

fn settings(host: &Host<'_>, place: &Namespace) {
    nft(place, "sysctl -qw net.ipv4.conf.all.rp_filter=1");
    let problem = "net.ipv4.conf.all.rp_filter of network net5 on this host is 1";
    one(host, Settings, problem, "net.ipv4.conf.all.rp_filter=0");
    nft(place, "sysctl -qw net.ipv4.conf.all.rp_filter=0");
    // netd turns this one on again by itself every few seconds: again, where it came first.
    let forwarding = (0..5).find_map(|_| {
        nft(&host.namespace, "sysctl -qw net.ipv4.ip_forward=0");
        Some(faults(host)).filter(|found| !found.is_empty())
    });
    nft(&host.namespace, "sysctl -qw net.ipv4.ip_forward=1");
    let forwarding = forwarding.unwrap_or_default();
    assert!(
        matches!(&forwarding[..], [(Settings, problem, advice)] if problem.contains("net.ipv4.ip_forward of this host is 0")
            && advice.contains("sysctl -w net.ipv4.ip_forward=1")),
        "{forwarding:#?}"
    );
}

fn devices(host: &Host<'_>, place: &Namespace) {
    let route = String::from_utf8(run(place, "ip route show default").stdout).unwrap();
    up(place, "out0", false);
    one(host, Devices, "the way out of network net5 on this host (device out0) is down", "restart netd");
    up(place, "out0", true);
    nft(place, &format!("ip route add {}", route.trim()));
    let links = place.enter(Inside::rtnetlink).unwrap().links().unwrap();
    let device = links.into_iter().find(|link| link.name.starts_with("v-")).unwrap().name;
    mtu(place, &device, 1400);
    // The bridge follows it, and packets to the other host show it too.
    let found = faults(host);
    for text in [
        "of a task of network net5 on this host has an MTU of 1400 instead of 1450",
        "(device br0) has an MTU of 1400",
        "packets of 1450 bytes do not come through",
    ] {
        assert!(found.iter().any(|(area, problem, _)| *area == Mtu && problem.contains(text)), "{text}: {found:#?}");
    }
    mtu(place, &device, 1450);
    mtu(place, "br0", 1450);
    assert_eq!(faults(host), []);
    nft(&host.namespace, "ip link add sk-old type veth peer name elsewhere");
    one(host, Devices, "devices of networks that are not there: sk-old", "ip link delete");
    nft(&host.namespace, "ip link delete sk-old");
}

/// The underlay is too small for the network.
fn underlay(host: &Host<'_>) {
    mtu(&host.namespace, "eth0", 1400);
    let found = faults(host);
    assert!(
        found.iter().any(|(area, problem, advice)| *area == Mtu
            && problem.contains("eth0 of this host carries 1400")
            && advice.contains("ip link set eth0 mtu 1500")
            && advice.contains("--opt mtu=1350")),
        "{found:#?}"
    );
    mtu(&host.namespace, "eth0", 1500);
}

/// The balancing in a sandbox, and entries to the other host.
fn balancing(host: &Host<'_>, net: &v1::Network) {
    let sandbox = Namespace::open(&host.dir.join("sandboxes").join(task_id(51).to_string()).join("net")).unwrap();
    nft(&sandbox, &format!("nft flush map ip skep-{} vips", skep_proto::id::NetworkId::from_wire(&net.id).unwrap()));
    one(host, Rules, "lacks 1 elements of vips", "let the task be replaced");
    assert_eq!(host.state().networks.len(), 1);
    host.detach(task_id(51));
    host.attach(&attach_request(51, &[(net, pair_address(5, 1))]));
    assert_eq!(faults(host), []);
    nft(&inside(host, net), "bridge fdb del 02:42:0a:05:01:02 dev overlay");
    let found = faults(host);
    assert!(
        found.iter().any(|(area, problem, _)| *area == Devices && problem.contains("lacks 1 entries")),
        "{found:#?}"
    );
    assert!(found.iter().any(|(area, ..)| *area == Reachability), "{found:#?}");
}

fn gone(host: &Host<'_>, place: &Namespace) {
    nft(place, "nft delete table ip skep");
    let found = faults(host);
    let text = "table ip skep of network net5 on this host is not there";
    assert!(found.iter().any(|(area, problem, _)| *area == Rules && problem == text), "{found:#?}");
}

#[test]
fn what_lies_between_hosts_is_found_from_both() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let sealed = network(6, |spec| drop(spec.options.remove("encrypted")));
    let plain = network(5, |_| {});
    plug(&hosts, &sealed, 6);
    plug(&hosts, &plain, 5);
    for host in &hosts {
        assert_eq!(faults(host), []);
        assert_eq!(check(host).paths.len(), 2);
    }
    // A port that is closed: one way of the two.
    let other = &hosts[1].namespace;
    nft(other, "nft add table inet wall");
    nft(other, "nft add chain inet wall input { type filter hook input priority 0 ; }");
    nft(other, "nft add rule inet wall input udp dport 4789 drop");
    one(&hosts[0], Reachability, "through network net5 to the host at 10.77.0.2", "let UDP port 4789 pass");
    nft(other, "nft flush chain inet wall input");
    nft(other, "nft add rule inet wall input udp dport 51820 drop");
    one(&hosts[0], Reachability, "through network net6 to the host at 10.77.0.2", "let UDP port 51820 pass");
    nft(other, "nft flush chain inet wall input");
    assert_eq!(faults(&hosts[0]), []);

    // Something in between that carries less: told with the size that passes.
    nft(other, "nft add rule inet wall input meta length > 1400 drop");
    let found = faults(&hosts[0]);
    assert!(
        found.iter().all(|(area, problem, advice)| *area == Mtu
            && problem.contains("to the host at 10.77.0.2, those of up to 1")
            && advice.contains("carry 1500 bytes: it is 1")
            && advice.contains("--opt mtu=1")),
        "{found:#?}"
    );
    assert_eq!(found.len(), 1, "{found:#?}");
    nft(other, "nft delete table inet wall");
    assert_eq!(faults(&hosts[1]), []);

    // No way at all.
    up(&hosts[1].namespace, "eth0", false);
    let networks = "answers neither by itself nor through networks net5 and net6";
    one(&hosts[0], Reachability, networks, "check that it runs");
    let silent = check(&hosts[0]).paths;
    assert!(silent.iter().all(|path| path.round_trip_us == 0 && path.largest == 0), "{silent:?}");
}
