//! A netd that was killed, or replaced, is whole again by itself: nobody tells it anything.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use skep_netlink::Namespace;
use skep_proto::id::NetworkId;
use skep_proto::v1;

use crate::lab::*;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 6, 0, 2);

/// A host with all kinds of networks: sealed 6, the routing mesh's 9, the host's own bridge.
struct World<'a> {
    hosts: [Host<'a>; 2],
    sealed: v1::Network,
    mesh: v1::Network,
    sandboxes: Vec<Namespace>,
    local: Namespace,
}

fn address(network: u8, last: u8) -> IpAddr {
    match network {
        9 => IpAddr::from([10, 255, 1, last]),
        _ => IpAddr::from([10, network, 1, last]),
    }
}

fn published(port: u32, mode: v1::PublishMode) -> v1::PortSpec {
    v1::PortSpec { published_port: port, target_port: 80, mode: mode.into(), ..v1::PortSpec::default() }
}

impl<'a> World<'a> {
    fn new(lab: &'a Lab) -> Self {
        let hosts = [lab.host(1), lab.host(2)];
        let sealed = network(6, |spec| spec.options.clear());
        let mesh = network(9, |spec| spec.ingress = true);
        let mut world = World { hosts, sealed, mesh, sandboxes: Vec::new(), local: lab.outside.try_clone().unwrap() };
        for host in &world.hosts {
            host.follow(&[world.table(6, 1), world.table(9, 1)]);
            let number = host.number;
            let ends = [(&world.sealed, address(6, number)), (&world.mesh, address(9, number))];
            let mut request = attach_request(number.into(), &ends);
            request.host_ports = vec![published(8100 + u32::from(number), v1::PublishMode::Host)];
            let sandbox = host.attach(&request);
            serve(&sandbox, 80, &format!("task{number}"));
            world.sandboxes.push(sandbox);
        }
        let request = v1::AttachRequest {
            local_bridge: true,
            host_ports: vec![published(8200, v1::PublishMode::Host)],
            ..attach_request(40, &[])
        };
        world.local = world.hosts[0].attach(&request);
        serve(&world.local, 80, "local");
        world
    }

    fn table(&self, number: u8, version: u64) -> v1::NetworkTable {
        let (net, vip, ports) = match number {
            6 => (&self.sealed, VIP, Vec::new()),
            _ => (&self.mesh, Ipv4Addr::new(10, 255, 9, 9), vec![published(8080, v1::PublishMode::Ingress)]),
        };
        let mut table = whole(net, version);
        table.put_services = vec![service(9, "web", vip, ports)];
        table.put_peers = vec![peer(1), peer(2)];
        table.put_endpoints = [1, 2].map(|host| endpoint(host, host.into(), 9, address(number, host), true)).to_vec();
        table
    }

    /// Everything works.
    fn check(&self, lab: &Lab) {
        for (number, sandbox) in self.sandboxes.iter().enumerate() {
            assert_eq!(resolve(sandbox, "web"), [VIP]);
            let (own, other) = (number as u8 + 1, 2 - number as u8);
            assert_eq!(resolve(sandbox, &format!("task{other}")), [Ipv4Addr::new(10, 6, 1, other)]);
            // On a host under load a handshake may be lost, and comes again after some seconds.
            assert!(ping(sandbox, &format!("10.6.1.{other}")));
            let mut answers: Vec<String> =
                (0..40).map(|_| who(sandbox, SocketAddr::from((VIP, 80))).unwrap()).collect();
            answers.sort();
            answers.dedup();
            assert_eq!(answers.len(), 2, "{answers:?}");
            let at = |port: u16| SocketAddr::from(([10, 77, 0, own], port));
            assert!(who(&lab.outside, at(8080)).is_ok());
            assert_eq!(who(&lab.outside, at(8100 + u16::from(own))).unwrap(), format!("task{own}"));
        }
        assert_eq!(who(&lab.outside, SocketAddr::from(([10, 77, 0, 1], 8200))).unwrap(), "local");
        assert!(ping(&self.local, "10.77.0.100"));
    }
}

/// Pings until it is stopped, every 20 ms.
fn pings(from: &Namespace, to: &str) -> Child {
    use std::os::fd::{AsFd, AsRawFd};
    let net = format!("--net=/proc/{}/fd/{}", std::process::id(), from.as_fd().as_raw_fd());
    let mut command = Command::new("nsenter");
    command.arg(net).args(["ping", "-n", "-i", "0.02", "-W", "1", to]);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// How many of them are sent in that time.
fn pings_in(time: Duration) -> usize {
    usize::try_from(time.as_millis() / 20).unwrap()
}

/// How many of them got no answer.
fn lost(pings: Child) -> usize {
    let pid = nix::unistd::Pid::from_raw(pings.id().try_into().unwrap());
    nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
    let text = String::from_utf8(pings.wait_with_output().unwrap().stdout).unwrap();
    let numbers: Vec<usize> = text
        .lines()
        .rfind(|line| line.contains("packets transmitted"))
        .unwrap()
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    numbers[0] - numbers[1]
}

/// What came of connections.
#[derive(Debug, Default)]
struct Knocks {
    all: usize,
    failed: usize,
    slowest: Duration,
}

/// Connects again and again to published ports.
fn knock(from: &Namespace, ports: &'static [u16]) -> (Arc<AtomicBool>, std::thread::JoinHandle<Knocks>) {
    let (from, stop) = (from.try_clone().unwrap(), Arc::new(AtomicBool::new(false)));
    let told = Arc::clone(&stop);
    let knocking = std::thread::spawn(move || {
        let mut knocks = Knocks::default();
        while !told.load(Ordering::SeqCst) {
            for port in ports {
                let start = Instant::now();
                knocks.all += 1;
                knocks.failed += usize::from(who(&from, SocketAddr::from(([10, 77, 0, 1], *port))).is_err());
                knocks.slowest = knocks.slowest.max(start.elapsed());
            }
        }
        knocks
    });
    (stop, knocking)
}

#[test]
fn a_killed_one_is_whole_again_by_itself() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut world = World::new(&lab);
    world.check(&lab);
    let before = world.hosts[0].state();
    assert_eq!((before.networks.len(), before.sandboxes.len()), (2, 2));
    for (signal, version) in [(Signal::SIGKILL, 2), (Signal::SIGKILL, 3), (Signal::SIGTERM, 4)] {
        // Both ways: the other host does not know that the sessions are gone.
        let running = [pings(&world.sandboxes[0], "10.6.1.2"), pings(&world.sandboxes[1], "10.6.1.1")];
        let (stop, knocking) = knock(&lab.outside, &[8101, 8200]);
        until("no pings", || (world.hosts[0].mesh().peers[0].received_bytes > 10_000).then_some(()));
        let start = Instant::now();
        world.hosts[0].signal(signal);
        let gone = start.elapsed();
        let after = world.hosts[0].start_alone();
        let answers = start.elapsed();
        assert_eq!((&after.networks, &after.sandboxes), (&world.hosts[0].state().networks, &before.sandboxes));
        assert_eq!(after.networks[0].version, version - 1, "{:?}", after.notes);
        assert_eq!(resolve(&world.sandboxes[0], "web"), [VIP]);
        let names = start.elapsed();
        assert!(ping(&world.sandboxes[1], "10.6.1.1"));
        let lost = running.map(lost);
        stop.store(true, Ordering::SeqCst);
        let knocks = knocking.join().unwrap();
        eprintln!(
            "{signal}: gone after {gone:?}, answers after {answers:?}, names after {names:?}, pings lost each way \
             (20 ms): {lost:?}, connections to published ports: {knocks:?}"
        );
        // Until it answers, which takes long on a busy machine, and three seconds.
        let most = answers + Duration::from_secs(3);
        assert!(lost.iter().all(|lost| *lost < pings_in(most)), "{lost:?}");
        assert!(knocks.failed == 0 && knocks.slowest < most, "{knocks:?}");
        world.check(&lab);
        // It goes on from there, and keeps that too.
        let changes = [&world.sealed, &world.mesh].map(|net| difference(net, version));
        world.hosts.iter().for_each(|host| host.follow(&changes));
    }
    // Nothing of it stays.
    for host in &mut world.hosts {
        host.detach(task_id(host.number.into()));
        host.shutdown();
        let links: Vec<String> = host.rtnetlink.links().unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(links, ["lo", "eth0"]);
        assert!(!host.dir.join("kept").exists());
    }
}

/// Asks for a name again and again, each time for 50 ms at most. The longest time without an answer.
fn ask_names(from: &Namespace) -> (Arc<AtomicBool>, std::thread::JoinHandle<Duration>) {
    let (stop, query) = (Arc::new(AtomicBool::new(false)), b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01");
    let told = Arc::clone(&stop);
    let socket = from.enter(|inside| inside.udp(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    let asking = std::thread::spawn(move || {
        let (mut last, mut longest, mut buffer) = (Instant::now(), Duration::ZERO, [0; 512]);
        while !told.load(Ordering::SeqCst) {
            let _ = socket.send_to(query, "127.0.0.11:53");
            if socket.recv(&mut buffer).is_ok() {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        }
        longest
    });
    (stop, asking)
}

#[test]
fn the_next_one_takes_its_place() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut world = World::new(&lab);
    world.check(&lab);
    let mut agent = world.hosts[0].client();
    let before = lab.runtime.block_on(agent.state(v1::NetdStateRequest {})).unwrap().into_inner();
    for _ in 0..3 {
        let running = [pings(&world.sandboxes[0], "10.6.1.2"), pings(&world.sandboxes[1], "10.6.1.1")];
        let (stop, knocking) = knock(&lab.outside, &[8101, 8200]);
        let (stop_asking, asking) = ask_names(&world.sandboxes[0]);
        let received = world.hosts[0].mesh().peers[0].received_bytes;
        until("no pings", || (world.hosts[0].mesh().peers[0].received_bytes > received + 5_000).then_some(()));
        let start = Instant::now();
        let after = world.hosts[0].replace();
        let took = start.elapsed();
        assert_eq!((&after.networks, &after.sandboxes), (&before.networks, &before.sandboxes));
        assert!(ping(&world.sandboxes[1], "10.6.1.1"));
        let lost = running.map(lost);
        [stop, stop_asking].iter().for_each(|stop| stop.store(true, Ordering::SeqCst));
        let (knocks, names) = (knocking.join().unwrap(), asking.join().unwrap());
        eprintln!(
            "replaced in {took:?}, {names:?} without names, pings lost each way (20 ms): {lost:?}, connections to \
             published ports: {knocks:?}"
        );
        // While the next one starts, which takes long on a busy machine, and two seconds.
        let most = took + Duration::from_secs(2);
        assert!(knocks.failed == 0 && knocks.slowest < most, "{knocks:?}");
        assert!(names < most, "{names:?}");
        assert!(lost.iter().all(|lost| *lost < pings_in(most)), "{lost:?}");
        world.check(&lab);
    }
    // The agent's connection finds the new one.
    let after = until("no answer", || lab.runtime.block_on(agent.state(v1::NetdStateRequest {})).ok()).into_inner();
    assert_eq!(after.pid, world.hosts[0].pid());
}

#[test]
fn a_mesh_that_cannot_start_is_told_and_tried_again() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut world = World::new(&lab);
    let host = &mut world.hosts[0];
    // Somebody else has the port that it is to have.
    let other = host.namespace.enter(|inside| inside.udp(SocketAddr::from(([10, 77, 0, 1], 51_999)))).unwrap();
    host.who.wireguard_addr = "10.77.0.1:51999".to_owned();
    host.configure().unwrap();
    let told =
        |host: &Host<'_>| host.state().notes.iter().any(|note| note.contains("network net6 is not as it should"));
    assert!(told(host), "{:?}", host.state().notes);
    let change = difference(&world.sealed, 2);
    let faults = host.apply(&[change]).faults;
    assert!(faults[0].error.contains("device of encrypted networks"), "{faults:?}");
    assert!(is_silent(&world.sandboxes[0], "10.6.1.2"));
    drop(other);
    until("it is not tried again", || (!told(&world.hosts[0])).then_some(()));
    let mut row = peer(1);
    row.endpoint.as_mut().unwrap().wireguard_addr = "10.77.0.1:51999".to_owned();
    let moved = v1::NetworkTable { put_peers: vec![row], ..difference(&world.sealed, 2) };
    world.hosts[1].follow(&[moved]);
    world.check(&lab);
}

/// Changes a byte in the middle of a table's file.
fn damage(host: &Host<'_>, net: &v1::Network) -> std::path::PathBuf {
    let path = host.dir.join("kept/tables").join(NetworkId::from_wire(&net.id).unwrap().to_string());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn nothing_closes_while_a_damaged_table_is_asked_for() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut world = World::new(&lab);
    world.check(&lab);
    // Of the routing mesh, of another network, of both.
    for (version, damaged) in [(2, &[9][..]), (3, &[6]), (4, &[6, 9])] {
        let (stop, knocking) = knock(&lab.outside, &[8080, 8101, 8200]);
        world.hosts[0].signal(Signal::SIGKILL);
        for number in damaged {
            damage(&world.hosts[0], if *number == 6 { &world.sealed } else { &world.mesh });
        }
        let state = world.hosts[0].start_alone();
        // That is how the agent sees it; a person sees it too.
        assert_eq!(state.networks.len(), 2 - damaged.len());
        assert_eq!(state.sandboxes, [task_id(40).to_vec()]);
        let said = |state: &v1::NetdStateResponse, text: &str| state.notes.iter().any(|note| note.contains(text));
        assert!(said(&state, "is damaged: the managers have to send it again"), "{:?}", state.notes);
        assert!(said(&state, "is not attached to its networks as it was"), "{:?}", state.notes);
        // The tables come, and nothing else is said to it: the sandbox is attached again by itself.
        let tables: Vec<v1::NetworkTable> = damaged.iter().map(|number| world.table(*number, version)).collect();
        world.hosts[0].follow(&tables);
        let state = world.hosts[0].state();
        assert_eq!((state.networks.len(), state.sandboxes.len()), (2, 2), "{:?}", state.notes);
        assert!(!said(&state, "damaged") && !said(&state, "as it was"), "{:?}", state.notes);
        stop.store(true, Ordering::SeqCst);
        let knocks = knocking.join().unwrap();
        assert_eq!(knocks.failed, 0, "{knocks:?} with tables of {damaged:?} damaged");
        world.check(&lab);
    }
    // Where nobody sends it, what is known is put in force after a while: the ports close.
    world.hosts[0].signal(Signal::SIGKILL);
    damage(&world.hosts[0], &world.mesh);
    world.hosts[0].start_alone();
    assert!(who(&lab.outside, SocketAddr::from(([10, 77, 0, 1], 8080))).is_ok());
    until("a port without a table to close", || {
        who(&lab.outside, SocketAddr::from(([10, 77, 0, 1], 8080))).is_err().then_some(())
    });
    assert_eq!(who(&lab.outside, SocketAddr::from(([10, 77, 0, 1], 8200))).unwrap(), "local");
    // Nobody wants the sandbox any more: it is not attached again.
    world.hosts[0].detach(task_id(1));
    world.hosts[0].follow(&[world.table(9, 9)]);
    let state = world.hosts[0].state();
    assert_eq!(state.sandboxes, [task_id(40).to_vec()]);
    assert!(!world.hosts[0].dir.join("sandboxes").join(task_id(1).to_string()).exists());
}

#[test]
fn what_was_damaged_is_asked_for_again() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut world = World::new(&lab);
    world.hosts[0].signal(Signal::SIGKILL);
    let path = damage(&world.hosts[0], &world.sealed);
    let state = world.hosts[0].start_alone();
    assert_eq!(state.networks.len(), 1);
    assert_eq!(state.sandboxes, [task_id(40).to_vec()]);
    let gap = world.hosts[0].apply(&[difference(&world.sealed, 2)]);
    assert!(gap.faults[0].needs_complete);
    world.hosts[0].follow(&[world.table(6, 2)]);
    let ends = [(&world.sealed, address(6, 1)), (&world.mesh, address(9, 1))];
    let mut request = attach_request(1, &ends);
    request.host_ports = vec![published(8101, v1::PublishMode::Host)];
    world.hosts[0].attach(&request);
    world.check(&lab);
    // Torn off, as by a kill while it is written: as it was before.
    world.hosts[0].follow(&[difference(&world.sealed, 3)]);
    world.hosts[0].signal(Signal::SIGKILL);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let state = world.hosts[0].start_alone();
    let versions: Vec<u64> = state.networks.iter().map(|one| one.version).collect();
    assert_eq!((versions, state.sandboxes.len()), (vec![2, 1], 2));
    world.check(&lab);
    // Who it is, and what sandboxes are, may be damaged too.
    world.hosts[0].signal(Signal::SIGKILL);
    std::fs::write(world.hosts[0].dir.join("kept/host/config"), b"what").unwrap();
    std::fs::write(world.hosts[0].dir.join("sandboxes").join(task_id(40).to_string()).join("attach"), b"").unwrap();
    let state = world.hosts[0].start_alone();
    assert!(state.sandboxes.is_empty(), "{state:?}");
    world.hosts[0].configure().unwrap();
    world.hosts[0].attach(&request);
    let request = v1::AttachRequest {
        local_bridge: true,
        host_ports: vec![published(8200, v1::PublishMode::Host)],
        ..attach_request(40, &[])
    };
    world.hosts[0].attach(&request);
    world.check(&lab);
}
