//! Bad input to networks, end to end: each mistake gets its exit code and a sentence that says what to do, and leaves nothing
//! behind; what a host's settings break is mended.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::Value;
use skep_tests::{IDLE, Lab, Output, Running, addresses, nginx, until, until_some};

const SOON: Duration = Duration::from_secs(30);
const FAILED: i32 = 1;
const USAGE: i32 = 64;
const UNSUPPORTED: i32 = 78;

/// Whether a host has a namespace of a network.
fn holds(lab: &Lab, host: u32) -> bool {
    !lab.exec(host, &["ls", "/run/skep/skep.netd/networks"]).stdout.trim().is_empty()
}

/// Nothing is left of networks and services: no object, no allocation, no namespace, no rule, no device.
#[track_caller]
fn nothing_left(lab: &Lab, hosts: u32) {
    assert_eq!(lab.run(&["service", "ls", "-q"]).ok(), "");
    assert_eq!(lab.run(&["network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"]).ok(), "");
    let mesh = lab.run(&["network", "ls", "--filter", "type=builtin", "-q"]).ok();
    if !mesh.is_empty() {
        let taken = lab.run(&["network", "inspect", "-f", "{{range .AddressUse}}{{.Taken}}{{end}}", &mesh]);
        assert_eq!(taken.ok(), hosts.to_string(), "the routing mesh's own addresses on its hosts, and no more");
    }
    let doctor = lab.run(&["swarm", "doctor"]);
    assert_eq!(doctor.code, 0, "{doctor:?}");
    for host in 1..=hosts {
        until(&format!("host{host} to hold no network"), SOON, || !holds(lab, host));
        let links = lab.exec(host, &["ip", "-o", "link"]).ok();
        let ours: Vec<&str> =
            links.lines().filter(|line| !line.contains(": lo:") && !line.contains(": eth0@")).collect();
        assert_eq!(ours, Vec::<&str>::new());
        let rules = lab.exec(host, &["nft", "list", "ruleset"]).ok();
        assert!(!rules.contains("tcp . ") && !rules.contains("udp . "), "published ports: {rules}");
    }
}

/// Waits until a task of the service says why it does not run.
#[track_caller]
fn task_says(lab: &Lab, service: &str, part: &str) {
    until_some(&format!("a task of {service} to say {part:?}"), SOON, || {
        let tasks = lab.tasks(service);
        let told = |task: &Value| {
            ["Error", "CurrentState"].iter().any(|field| task[field].as_str().is_some_and(|text| text.contains(part)))
        };
        if tasks.iter().any(told) { Ok(()) } else { Err(format!("{tasks:#?}")) }
    });
}

fn create(lab: &Lab, args: &[&str]) -> Output {
    lab.run(&[&["network", "create"], args].concat())
}

/// A service whose tasks, if any, wait.
fn serve(lab: &Lab, name: &str, args: &[&str]) -> Output {
    lab.run(&[&["service", "create", "--detach", "--name", name], args, &["busybox:1"], &IDLE].concat())
}

#[test]
fn networks_and_services_with_mistakes_are_refused_and_leave_nothing() {
    let lab = Lab::with_busybox("netinput", 1);
    networks_that_cannot_be(&lab);
    services_that_cannot_attach(&lab);
    ports_that_are_taken(&lab);
    references(&lab);
    the_routing_mesh_is_made_anew(&lab);
    nothing_left(&lab, 1);
}

fn networks_that_cannot_be(lab: &Lab) {
    create(lab, &["--subnet", "10.50.0.0/24", "fifty"]).ok();
    let refused: [(&[&str], i32, &str); 27] = [
        (&["--subnet", "10.50.0.0/24", "x"], FAILED, "overlaps with 10.50.0.0/24 of network fifty"),
        (&["--subnet", "10.50.0.128/25", "x"], FAILED, "overlaps with 10.50.0.0/24 of network fifty"),
        (&["--subnet", "10.48.0.0/12", "x"], FAILED, "overlaps with 10.50.0.0/24 of network fifty"),
        (&["--subnet", "10.90.0.0/24", "x"], FAILED, "contains 10.90.0.1, an address of a host"),
        (&["--subnet", "10.51.0.7/24", "x"], USAGE, "10.51.0.0/24 is meant"),
        (&["--subnet", "10.51.0.0/31", "x"], USAGE, "no room for tasks"),
        (&["--subnet", "127.1.0.0/16", "x"], USAGE, "not for hosts"),
        (&["--subnet", "fe80::/64", "x"], USAGE, "not for hosts"),
        (&["--subnet", "fifty", "x"], USAGE, "is not a range of addresses"),
        (&["--subnet", "10.51.0.0/24", "--gateway", "10.52.0.1", "x"], USAGE, "no matching subnet for gateway"),
        (&["--subnet", "10.51.0.0/24", "--gateway", "10.51.0.255", "x"], USAGE, "not an address of a host"),
        (&["--subnet", "10.51.0.0/24", "--ip-range", "10.52.0.0/25", "x"], USAGE, "no matching subnet for range"),
        (&["--subnet", "10.51.0.0/24", "--ip-range", "10.48.0.0/12", "x"], USAGE, "no matching subnet for range"),
        (
            &["--subnet", "10.51.0.0/24", "--aux-address", "a=10.52.0.1", "x"],
            USAGE,
            "no matching subnet for aux-address",
        ),
        (&["--gateway", "10.51.0.1", "x"], USAGE, "must have a corresponding subnet"),
        (&["--opt", "mtu=50", "x"], USAGE, "options.mtu: must be 68 to 65535"),
        (&["--opt", "mtu=1000", "--ipv6", "x"], USAGE, "options.mtu: must be 1280 to 65535"),
        (&["--opt", "mtu=70000", "x"], USAGE, "options.mtu"),
        (&["--opt", "colour=red", "x"], USAGE, "colour"),
        (&["--driver", "macvlan", "--subnet", "10.51.0.0/24", "x"], USAGE, "options.parent"),
        (&["--driver", "ipvlan", "x"], UNSUPPORTED, "not supported yet: --driver ipvlan"),
        (&["--ipv4=false", "--ipv6", "x"], UNSUPPORTED, "not supported yet: --ipv4=false"),
        (&["fifty"], FAILED, "network fifty is there already"),
        (&["bridge"], USAGE, "predefined"),
        (&["--driver", "host", "x"], USAGE, "only one instance"),
        (&["a network"], USAGE, "not a valid name"),
        (&["--ingress", "x"], FAILED, "network ingress is the routing mesh's"),
    ];
    for (args, code, part) in refused {
        create(lab, args).fails(code, part);
    }
    assert_eq!(lab.run(&["network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"]).ok(), "fifty");
    // What was asked for and refused is free.
    create(lab, &["--subnet", "10.51.0.0/24", "x"]).ok();
    assert_eq!(lab.run(&["network", "rm", "x", "fifty"]).ok(), "x\nfifty");
}

fn services_that_cannot_attach(lab: &Lab) {
    let subnet = ["--subnet", "10.50.0.0/24", "--aux-address", "nas=10.50.0.9", "fifty"];
    create(lab, &subnet).ok();
    let refused: [(&[&str], i32, &str); 12] = [
        (&["--network", "nowhere"], FAILED, "network nowhere not found: see `skep network ls`"),
        (&["--network", "fifty", "--network", "nowhere"], FAILED, "network nowhere not found"),
        (&["--network", "ingress"], USAGE, "publish a port instead"),
        (&["--network", "fifty", "--network", "fifty"], USAGE, "named twice"),
        (&["--network", "fifty", "--network", "host"], USAGE, "do not go together"),
        (&["--network", "name=fifty,alias=not a name"], USAGE, "not a valid name"),
        (&["--network", "name=fifty,alias=-x"], USAGE, "not a valid name"),
        (&["--network", "name=fifty,ip=10.51.0.7"], USAGE, "10.51.0.7 is outside network fifty"),
        (&["--network", "name=fifty,ip=10.50.0.1"], USAGE, "is its gateway"),
        (&["--network", "name=fifty,ip=10.50.0.9"], USAGE, "is its own reservation"),
        (&["--network", "name=fifty,ip=10.50.0"], USAGE, "not an IP address"),
        (&["--replicas", "2", "--network", "name=fifty,ip=10.50.0.7"], USAGE, "one replica at most"),
    ];
    for (args, code, part) in refused {
        serve(lab, "web", args).fails(code, part);
    }
    assert_eq!(lab.run(&["service", "ls", "-q"]).ok(), "", "nothing is half-made");
    serve(lab, "web", &["--replicas", "0", "--network", "fifty"]).ok();
    let update = |args: &[&str]| lab.run(&[&["service", "update", "--detach"], args, &["web"]].concat());
    update(&["--network-add", "nowhere"]).fails(FAILED, "network nowhere not found");
    let said = update(&["--network-rm", "nowhere"]);
    assert!(said.code == 0 && said.stderr.contains("--network-rm nowhere: the service does not have it"), "{said:?}");
    lab.run(&["network", "rm", "fifty"]).fails(FAILED, "network fifty is in use by service web: remove it there");

    // An address that somebody has: the second task waits, and says for what.
    serve(lab, "first", &["--network", "name=fifty,ip=10.50.0.7"]).ok();
    lab.running("first", 1, SOON);
    serve(lab, "second", &["--network", "name=fifty,ip=10.50.0.7"]).ok();
    serve(lab, "third", &["--network", "name=fifty,ip=10.50.0.7"]).ok();
    for waiting in ["second", "third"] {
        task_says(lab, waiting, "address 10.50.0.7 of network fifty is taken by");
    }
    lab.run(&["service", "rm", "first", "third"]).ok();
    let second = lab.running("second", 1, SOON).remove(0);
    until("its own name", SOON, || addresses(lab, &second, "tasks.second").contains("10.50.0.7"));
    // A network is removed though its last task is only stopping: that is waited for.
    lab.run(&["service", "rm", "web", "second"]).ok();
    assert_eq!(lab.run(&["network", "rm", "fifty"]).ok(), "fifty");
}

fn ports_that_are_taken(lab: &Lab) {
    let published = |name: &str, port: &str| serve(lab, name, &["--replicas", "0", "--publish", port]);
    let (mesh, host) = ("published=8080,target=80", "published=8080,target=80,mode=host");
    for (one, other) in [(mesh, mesh), (mesh, host), (host, mesh)] {
        published("one", one).ok();
        published("two", other).fails(FAILED, "port 8080/tcp is taken by service one: choose another");
        published("two", "published=8080,target=80,protocol=udp").ok();
        let add = ["service", "update", "--detach", "--publish-add", other, "two"];
        lab.run(&add).fails(FAILED, "port 8080/tcp is taken by service one");
        lab.run(&["service", "rm", "one"]).ok();
        lab.run(&add).ok();
        lab.run(&["service", "rm", "two"]).ok();
    }
    published("one", "published=2377,target=80").fails(FAILED, "the managers' API");
    published("one", "published=99999,target=80").fails(USAGE, "65535");
    serve(lab, "one", &["--publish", "80:80", "--publish", "80:81"]).fails(USAGE, "published twice");
    serve(lab, "one", &["--publish", "80:80", "--endpoint-mode", "dnsrr"]).fails(USAGE, "dnsrr");
}

fn references(lab: &Lab) {
    for noun in [&["network", "inspect"][..], &["network", "rm"], &["network", "doctor"]] {
        lab.run(&[noun, &["nowhere"]].concat()).fails(FAILED, "no such network: nowhere");
    }
    assert_eq!(lab.run(&["network", "rm", "--force", "nowhere"]).ok(), "");
    let names: Vec<String> = (0..40).map(|number| format!("n{number}")).collect();
    let ids: Vec<String> = names.iter().map(|name| create(lab, &["--driver", "bridge", name]).ok()).collect();
    // 40 ids over 36 first digits: two must share one.
    let shared = ids.iter().map(|id| &id[..1]).find(|digit| ids.iter().filter(|id| id.starts_with(*digit)).count() > 1);
    for verb in ["inspect", "rm"] {
        lab.run(&["network", verb, shared.unwrap()]).fails(USAGE, "more than one network");
    }
    lab.run(&["network", "inspect", &ids[7][..12]]).ok();
    lab.run(&["network", "inspect", "-f", "{{.Spec.Name}}", "n7"]).fails(USAGE, "field Spec: did you mean .Name?");
    lab.run(&["network", "prune"]).fails(FAILED, "nothing was removed");
    serve(lab, "user", &["--replicas", "0", "--network", "n3"]).ok();
    let pruned = lab.run(&["network", "prune", "--force"]).ok();
    assert_eq!(pruned.lines().count(), 1 + 39, "{pruned}");
    assert!(!pruned.lines().any(|line| line == "n3" || line == "ingress"), "{pruned}");
    lab.run(&["service", "rm", "user"]).ok();
    assert_eq!(lab.run(&["network", "prune", "-f"]).ok(), "Deleted Networks:\nn3");
}

fn the_routing_mesh_is_made_anew(lab: &Lab) {
    serve(lab, "web", &["--publish", "8080:80"]).ok();
    lab.running("web", 1, SOON);
    lab.run(&["network", "rm", "ingress"]).fails(FAILED, "network ingress is in use by service web");
    lab.run(&["service", "rm", "web"]).ok();
    assert_eq!(lab.run(&["network", "rm", "ingress"]).ok(), "ingress");
    serve(lab, "web", &["--publish", "8080:80"]).fails(FAILED, "there is no network for the routing mesh");
    create(lab, &["--ingress", "--subnet", "10.60.0.0/20", "mesh"]).ok();
    create(lab, &["--ingress", "mesh2"]).fails(FAILED, "network mesh is the routing mesh's");
    serve(lab, "web", &["--publish", "8080:80"]).ok();
    let web = lab.running("web", 1, SOON).remove(0);
    let ip = lab.inside(&web, &["ip", "-o", "-4", "addr"]).ok();
    assert!(ip.contains("10.60."), "{ip}");
    // Its tasks stay when it publishes nothing more, and hold the mesh until then.
    lab.run(&["service", "update", "--detach", "--publish-rm", "80", "web"]).ok();
    let kept =
        "1 task of service web with an address from when it published a port: have them replaced by `skep service";
    lab.run(&["network", "rm", "mesh"]).fails(FAILED, kept);
    lab.run(&["service", "rm", "web"]).ok();
    assert_eq!(lab.run(&["network", "rm", "mesh"]).ok(), "mesh");
    create(lab, &["--ingress", "ingress"]).ok();
}

#[test]
fn tasks_that_a_network_cannot_take_say_why_and_start_when_it_can() {
    let lab = Lab::with_busybox("netfull", 1);
    // Six addresses: the gateway's, and five for tasks.
    create(&lab, &["--subnet", "10.77.0.0/29", "tight"]).ok();
    serve(&lab, "holder", &["--replicas", "2", "--endpoint-mode", "dnsrr", "--network", "tight"]).ok();
    lab.running("holder", 2, SOON);
    serve(&lab, "many", &["--replicas", "4", "--endpoint-mode", "dnsrr", "--network", "tight"]).ok();
    task_says(&lab, "many", "no free address in network tight");
    until("three of four to run", SOON, || runs(&lab, "many").len() == 3);
    serve(&lab, "vip", &["--network", "tight"]).fails(FAILED, "no free address in network tight");
    let taken =
        lab.run(&["network", "inspect", "-f", "{{range .AddressUse}}{{.Taken}}/{{.Total}}{{end}}", "tight"]).ok();
    assert_eq!(taken, "5/5");
    lab.run(&["service", "scale", "--detach", "holder=1"]).ok();
    lab.running("many", 4, SOON);
    lab.run(&["service", "rm", "holder", "many"]).ok();
    assert_eq!(lab.run(&["network", "rm", "tight"]).ok(), "tight");
    // The smallest one there is: one task.
    create(&lab, &["--subnet", "10.77.0.0/30", "pair"]).ok();
    serve(&lab, "alone", &["--endpoint-mode", "dnsrr", "--network", "pair"]).ok();
    lab.running("alone", 1, SOON);

    // Packets that do not fit the hosts' own network.
    create(&lab, &["--opt", "mtu=9000", "large"]).ok();
    serve(&lab, "large", &["--network", "large", "--restart-condition", "none"]).ok();
    let why = "9000 does not fit: this host's underlay has an MTU of 1500, of which VXLAN in WireGuard takes 130, so that \
               1370 is the largest that fits";
    task_says(&lab, "large", why);
    create(&lab, &["--opt", "mtu=1370", "fits"]).ok();
    create(&lab, &["--opt", "mtu=576", "small"]).ok();
    for network in ["fits", "small"] {
        serve(&lab, network, &["--network", network]).ok();
        lab.running(network, 1, SOON);
    }
    let services = ["large", "fits", "small", "alone"];
    lab.run(&[&["service", "rm"], &services[..]].concat()).ok();
    lab.run(&["network", "rm", "large", "fits", "small", "pair"]).ok();
    nothing_left(&lab, 1);
}

/// Tasks that run, however many are wanted.
fn runs(lab: &Lab, service: &str) -> Vec<Value> {
    let mut tasks = lab.tasks(service);
    tasks.retain(|task| task["CurrentState"].as_str().is_some_and(|state| state.starts_with("Running")));
    tasks
}

#[test]
fn two_labs_have_the_same_networks_addresses_and_ports_at_once() {
    let labs = ["twin1", "twin2"].map(|name| Lab::up(name, 1, &[]));
    let pages: Vec<_> = labs
        .iter()
        .map(|lab| {
            lab.skep_with_input(1, &["image", "load"], &nginx("nginx:1").archive()).ok();
            create(lab, &["--subnet", "10.88.0.0/24", "same"]).ok();
            let flags = ["--network", "name=same,ip=10.88.0.8", "--publish", "80:8080", "nginx:1"];
            lab.run(&[&["service", "create", "--detach", "--name", "web"][..], &flags].concat()).ok();
            move || lab.exec(1, &["curl", "-sS", "--max-time", "3", "http://10.90.0.1/"])
        })
        .collect();
    let answers = |page: &dyn Fn() -> Output| {
        let said = page();
        if said.stdout.trim() == "hello from nginx" { Ok(()) } else { Err(format!("{said:?}")) }
    };
    for page in &pages {
        until_some("a page of each", SOON, || answers(page));
    }
    // What one does away with the other keeps.
    labs[0].run(&["service", "rm", "web"]).ok();
    labs[0].run(&["network", "rm", "same"]).ok();
    nothing_left(&labs[0], 1);
    answers(&pages[1]).unwrap();
    assert_ne!(pages[0]().code, 0);
}

/// Sets sysctls of a host; those that this kernel does not have are passed over.
fn set(lab: &Lab, host: u32, sysctls: &[(&str, &str)]) {
    for (name, value) in sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        lab.exec(host, &["sh", "-c", &format!("[ ! -e {path} ] || echo {value} > {path}")]).ok();
    }
}

#[test]
fn settings_of_hosts_that_break_forwarding_are_mended_or_told() {
    let lab = Lab::with_busybox("settings", 2);
    lab.skep_with_input(1, &["image", "load"], &nginx("nginx:1").archive()).ok();
    // What distributions and hardening guides set; some need a module that this machine may not have loaded.
    let strict = [
        ("net.ipv4.conf.all.rp_filter", "1"),
        ("net.ipv4.conf.default.rp_filter", "1"),
        ("net.ipv4.conf.eth0.rp_filter", "1"),
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv4.conf.all.forwarding", "0"),
        ("net.ipv4.conf.default.forwarding", "0"),
        ("net.ipv4.conf.all.arp_ignore", "2"),
        ("net.ipv4.conf.all.send_redirects", "1"),
        ("net.bridge.bridge-nf-call-iptables", "1"),
        ("net.bridge.bridge-nf-call-ip6tables", "1"),
        ("net.bridge.bridge-nf-call-arptables", "1"),
    ];
    (1..=2).for_each(|host| set(&lab, host, &strict));
    create(&lab, &["front"]).ok();
    let flags = ["--network", "front", "--publish", "80:8080", "--constraint", "node.hostname==host2", "nginx:1"];
    lab.run(&[&["service", "create", "--detach", "--name", "web"][..], &flags].concat()).ok();
    lab.create("probe", &["--network", "front", "--mode", "global"], &IDLE);
    lab.running("web", 1, SOON);
    let probes = lab.running("probe", 2, SOON);
    works(&lab, &probes);
    // Somebody turns forwarding off while networks are up: told, or on again by itself; never silently broken.
    set(&lab, 1, &[("net.ipv4.ip_forward", "0")]);
    let said = lab.run(&["network", "doctor"]);
    assert!(said.code == FAILED && said.stdout.contains("net.ipv4.ip_forward=1"), "{said:?}");
    set(&lab, 1, &[("net.ipv4.ip_forward", "1")]);
    works(&lab, &probes);
    lab.run(&["service", "rm", "web", "probe"]).ok();
    lab.run(&["network", "rm", "front"]).ok();
    nothing_left(&lab, 2);
}

/// The published port on both hosts, the service's name on both, a way out from both.
#[track_caller]
fn works(lab: &Lab, probes: &[Running]) {
    let ask = |what: &str, said: &dyn Fn() -> Output| {
        until_some(what, SOON, || {
            let said = said();
            if said.code == 0 { Ok(()) } else { Err(format!("{said:?}")) }
        });
    };
    for (from, to) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let url = format!("http://10.90.0.{to}/");
        ask("a page", &|| lab.exec(from, &["curl", "-sSf", "--max-time", "3", "-o", "/dev/null", &url]));
    }
    for probe in probes {
        let web = addresses(lab, probe, "web").pop_first().unwrap();
        // A static busybox's wget dies of glibc's look-up, with numbers too.
        let get = format!(r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 3 {web} 8080 | grep -q ' 200 '");
        ask("a page by name", &|| lab.inside(probe, &["sh", "-c", &get]));
        for host in 1..=2 {
            ask("a way out", &|| lab.inside(probe, &["ping", "-c", "1", "-W", "1", &format!("10.90.0.{host}")]));
        }
    }
}
