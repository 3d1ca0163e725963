//! Ports that a process of the host has, and ports that it would like to have: nobody loses one unseen.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::socket::{Shutdown, shutdown};
use skep_netlink::{Inside, Namespace, NetlinkError};
use skep_proto::v1;
use tonic::Code;

use crate::lab::*;

/// What a local process answers.
const LOCAL: &str = "local";

/// A process of the host, as far as its kernel sees: it answers every connection with its name, and closes it first.
struct Local {
    listener: TcpListener,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Local {
    fn listen(at: &Namespace, address: &str) -> Result<Self, ErrorKind> {
        let address: SocketAddr = address.parse().unwrap();
        // std's listeners set SO_REUSEADDR.
        let listen = |_: &Inside| Ok::<_, NetlinkError>(TcpListener::bind(address));
        let listener = at.enter(listen).unwrap().map_err(|error| error.kind())?;
        let accepting = listener.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            for stream in accepting.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.write_all(LOCAL.as_bytes());
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        shutdown(self.listener.as_raw_fd(), Shutdown::Both).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn port(number: u32, udp: bool, mode: v1::PublishMode) -> v1::PortSpec {
    v1::PortSpec { published_port: number, target_port: 80, protocol: i32::from(udp), mode: mode.into() }
}

/// The routing mesh with one task on host 1, that serves: its network, and a table with these ports.
fn mesh(ipv6: bool, ports: Vec<v1::PortSpec>) -> (v1::Network, v1::NetworkTable) {
    let mesh = network(9, |spec| (spec.ingress, spec.ipv6) = (true, ipv6));
    let mut table = whole(&mesh, 1);
    table.put_services = vec![service(9, "web", Ipv4Addr::new(10, 255, 9, 9), ports)];
    table.put_peers = vec![peer(1), peer(2)];
    table.put_endpoints = vec![endpoint(1, 1, 9, IpAddr::from([10, 255, 1, 1]), true)];
    (mesh, table)
}

/// Starts the task of the mesh.
fn task(host: &Host<'_>, mesh: &v1::Network) {
    let net = network(5, |_| {});
    host.know(&net);
    let ends = [(&net, IpAddr::from([10, 5, 1, 1])), (mesh, IpAddr::from([10, 255, 1, 1]))];
    serve(&host.attach(&attach_request(1, &ends)), 80, "task");
}

fn at(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 77, 0, host], port))
}

/// What netd says about a port.
fn told(host: &Host<'_>, port: &str) -> Option<String> {
    host.state().notes.into_iter().find(|note| note.contains(port))
}

/// What a check says about ports.
fn findings(host: &Host<'_>) -> Vec<v1::NetworkFinding> {
    let request = v1::CheckRequest { time_limit_ms: 600, ..v1::CheckRequest::default() };
    let checked = host.lab.runtime.block_on(host.client().check(request)).unwrap().into_inner();
    let mut found = checked.check.unwrap().findings;
    found.retain(|finding| finding.area() == v1::CheckArea::Ports);
    found
}

/// Whether a process of the host gets a port, as one that listens.
fn gets(host: &Host<'_>, address: &str) -> bool {
    match Local::listen(&host.namespace, address) {
        Ok(_) => true,
        Err(kind) => {
            assert_eq!(kind, ErrorKind::AddrInUse);
            false
        }
    }
}

#[test]
fn the_mesh_leaves_ports_to_who_has_them() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut hosts = [lab.host(1), lab.host(2)];
    let (tcp, udp) = (port(8080, false, v1::PublishMode::Ingress), port(8053, true, v1::PublishMode::Ingress));
    let (net, table) = mesh(false, vec![tcp, udp]);
    // On the second host a process has both, by one address only.
    let local = Local::listen(&hosts[1].namespace, "10.77.0.2:8080").unwrap();
    let datagrams = hosts[1].namespace.enter(|inside| inside.udp(at(2, 8053))).unwrap();
    hosts.iter().for_each(|host| host.follow(std::slice::from_ref(&table)));
    task(&hosts[0], &net);
    let rest = |hosts: &[Host<'_>; 2]| {
        assert_eq!(who(&lab.outside, at(1, 8080)).unwrap(), "task");
        assert_eq!(who_udp(&lab.outside, at(1, 8053)).unwrap(), "task");
        assert_eq!(who(&lab.outside, at(2, 8080)).unwrap(), LOCAL, "it has its port still");
        let note = told(&hosts[1], "8080/tcp").unwrap();
        assert!(note.contains("is in use by another process on this host ("), "{note}");
        assert!(note.contains(&format!("pid {}", std::process::id())), "{note}");
        assert!(told(&hosts[1], "8053/udp").is_some());
        assert_eq!((told(&hosts[0], "8080"), findings(&hosts[0])), (None, Vec::new()));
        let found = findings(&hosts[1]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].problem.contains("8080/tcp") && found[1].advice.contains("--publish-add"), "{found:?}");
    };
    rest(&hosts);
    // One that is killed leaves them alone as well, and so does a change of the table.
    hosts[1].signal(Signal::SIGKILL);
    hosts[1].start_alone();
    hosts[1].follow(&[difference(&net, 2)]);
    rest(&hosts);
    // As soon as they are free, the host joins in; what was left of the process is not in the way.
    drop((local, datagrams));
    until("the second host does not join in", || who(&lab.outside, at(2, 8080)).ok().filter(|who| who == "task"));
    until("nor its datagrams", || who_udp(&lab.outside, at(2, 8053)).ok().filter(|who| who == "task"));
    until("it says so still", || told(&hosts[1], "8080/tcp").or(told(&hosts[1], "8053/udp")).is_none().then_some(()));
    assert_eq!(findings(&hosts[1]), []);
}

#[test]
fn nobody_gets_a_published_port() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host(1);
    let ports = vec![port(8080, false, v1::PublishMode::Ingress), port(8053, true, v1::PublishMode::Ingress)];
    let (net, table) = mesh(false, ports);
    assert!(gets(&host, "0.0.0.0:8080"));
    host.follow(&[table]);
    task(&host, &net);
    let datagrams = |host: &Host<'_>| {
        let bind = |_: &Inside| Ok::<_, NetlinkError>(UdpSocket::bind("127.0.0.1:8053"));
        host.namespace.enter(bind).unwrap().is_ok()
    };
    let held = |host: &Host<'_>| {
        for address in ["0.0.0.0:8080", "10.77.0.1:8080", "127.0.0.1:8080", "[::]:8080"] {
            assert!(!gets(host, address), "{address}");
        }
        assert!(!datagrams(host));
        // Not led on, not held.
        assert!(gets(host, "[::1]:8080"));
        assert_eq!(who(&lab.outside, at(1, 8080)).unwrap(), "task");
        assert_eq!(told(host, "port 80"), None);
    };
    held(&host);
    // The next one holds them too, and does not take the one before for a stranger.
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        host.signal(signal);
        assert!(gets(&host, "127.0.0.1:8080"));
        host.start_alone();
        held(&host);
    }
    for _ in 0..3 {
        host.replace();
        held(&host);
    }
    // Without backends the host has its port again, and says so to clients.
    let mut change = difference(&net, 2);
    change.put_endpoints = vec![endpoint(1, 1, 9, IpAddr::from([10, 255, 1, 1]), false)];
    host.follow(&[change]);
    assert_eq!(who(&lab.outside, at(1, 8080)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(gets(&host, "0.0.0.0:8080") && datagrams(&host));
}

#[test]
fn a_task_of_mode_host_is_refused_a_port_that_a_process_has() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host(1);
    let net = network(5, |_| {});
    host.know(&net);
    let local = Local::listen(&host.namespace, "127.0.0.1:8080").unwrap();
    let mut request = attach_request(1, &[(&net, IpAddr::from([10, 5, 1, 1]))]);
    request.host_ports = vec![port(8081, false, v1::PublishMode::Host), port(8080, false, v1::PublishMode::Host)];
    let refused = host.try_attach(&request).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let sentence = "port 8080/tcp is in use by another process on this host (";
    assert!(refused.message().starts_with(sentence), "{refused:?}");
    assert!(refused.message().ends_with(&format!("pid {})", std::process::id())), "{refused:?}");
    // Nothing of it stays: neither the other port nor the network.
    assert!(gets(&host, "0.0.0.0:8081"));
    assert_eq!(who(&lab.outside, at(1, 8081)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(std::fs::read_dir(host.dir.join("networks")).unwrap().count(), 0);
    // It is another task's turn as soon as the port is free.
    drop(local);
    let sandbox = host.attach(&request);
    serve(&sandbox, 80, "task");
    assert_eq!(who(&lab.outside, at(1, 8080)).unwrap(), "task");
    assert!(!gets(&host, "127.0.0.1:8080"));
    // A process that comes while no netd runs does not take a running task's port from it, and that is said.
    host.signal(Signal::SIGKILL);
    let local = Local::listen(&host.namespace, "127.0.0.1:8080").unwrap();
    host.start_alone();
    assert_eq!(host.state().sandboxes, [task_id(1).to_vec()]);
    assert_eq!(who(&lab.outside, at(1, 8080)).unwrap(), "task");
    assert!(told(&host, "8080/tcp").unwrap().contains("the port leads to a task"));
    host.attach(&request);
    drop(local);
    until("its port is not held", || told(&host, "8080/tcp").is_none().then_some(()));
    assert!(!gets(&host, "127.0.0.1:8080"));
    host.detach(task_id(1));
    assert!(gets(&host, "0.0.0.0:8080") && gets(&host, "0.0.0.0:8081"));
}

#[test]
fn a_port_that_another_network_s_task_has_by_now_stays_its() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let nets = [network(5, |_| {}), network(6, |_| {})];
    let start = |number: u8| {
        let net = &nets[usize::from(number) - 1];
        host.know(net);
        let mut request = attach_request(number.into(), &[(net, IpAddr::from([10, 4 + number, 1, 1]))]);
        request.host_ports = vec![port(8080, false, v1::PublishMode::Host)];
        serve(&host.attach(&request), 80, &format!("task {number}"));
    };
    start(1);
    assert_eq!(who(&lab.outside, at(1, 8080)).unwrap(), "task 1");
    // The scheduler frees a port when its task has ended, which is before what the task was attached to is gone.
    start(2);
    assert_eq!(who(&lab.outside, at(1, 8080)).unwrap(), "task 2");
    host.detach(task_id(1));
    assert_eq!(who(&lab.outside, at(1, 8080)).unwrap(), "task 2");
    assert!(!gets(&host, "0.0.0.0:8080"));
    host.detach(task_id(2));
    assert!(gets(&host, "0.0.0.0:8080"));
}

#[test]
fn each_family_is_held_by_itself() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let (net, mut table) = mesh(true, vec![port(8080, false, v1::PublishMode::Ingress)]);
    let (v4, v6) = (IpAddr::from([10, 255, 1, 1]), "fdff::101".parse::<IpAddr>().unwrap());
    table.put_endpoints[0].addresses.push(skep_proto::cidr::address_to_wire(v6));
    let _local = Local::listen(&host.namespace, "[fd77::1]:8080").unwrap();
    host.follow(&[table]);
    let mut request = attach_request(1, &[(&net, v4)]);
    request.endpoints[0].addresses.push(skep_proto::cidr::address_to_wire(v6));
    let sandbox = host.attach(&request);
    serve(&sandbox, 80, "task");
    serve6(&sandbox, 80, "task");
    assert_eq!(who(&lab.outside, at(1, 8080)).unwrap(), "task");
    assert_eq!(who(&lab.outside, "[fd77::1]:8080".parse().unwrap()).unwrap(), LOCAL);
    assert!(told(&host, "8080/tcp").is_some());
}

#[test]
fn a_thousand_ports_cost_little() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let ports: Vec<v1::PortSpec> = (20_000..21_000).map(|at| port(at, false, v1::PublishMode::Ingress)).collect();
    let (net, table) = mesh(false, ports);
    let open = || std::fs::read_dir(format!("/proc/{}/fd", host.pid())).unwrap().count();
    let before = open();
    let start = Instant::now();
    host.follow(&[table]);
    let (took, more) = (start.elapsed(), open() - before);
    let start = Instant::now();
    host.follow(&[difference(&net, 2)]);
    eprintln!(
        "1000 ports published in {took:?} with {more} more open files; a change after that takes {:?}",
        start.elapsed()
    );
    assert!((1000..1050).contains(&more), "{more}");
    task(&host, &net);
    assert_eq!(who(&lab.outside, at(1, 20_999)).unwrap(), "task");
    let mut change = difference(&net, 3);
    change.remove_services = vec![skep_proto::id::ServiceId::new(9).to_vec()];
    host.follow(&[change]);
    assert!(open() < before + 50, "{}", open());
}
