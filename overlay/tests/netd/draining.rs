//! Backends that go: open connections end by themselves while the backend drains, and what is left when it is gone moves on
//! at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use skep_netlink::Namespace;
use skep_proto::v1;

use crate::lab::*;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 2);
/// How long a sender of datagrams may be without answers.
const SOON: Duration = Duration::from_secs(1);

/// A sender of datagrams that keeps its port.
#[derive(Debug)]
struct Flow(UdpSocket);

impl Flow {
    fn new(from: &Namespace, to: SocketAddr) -> Self {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = from.enter(|inside| inside.udp(SocketAddr::new(any, 0))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket.connect(to).unwrap();
        Self(socket)
    }

    /// Who answers; `None`: nobody.
    fn ask(&self) -> Option<String> {
        self.0.send(b"?").ok()?;
        let mut buffer = [0; 64];
        let length = self.0.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Waits until the answers come from another one.
    fn moves_to(&self, name: &str) {
        let start = Instant::now();
        while self.ask().as_deref() != Some(name) {
            assert!(start.elapsed() < SOON, "no answer of {name}");
        }
    }
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 5, 1, last])
}

fn remove(net: &v1::Network, version: u64, task: u128) -> v1::NetworkTable {
    let mut change = difference(net, version);
    change.remove_endpoints = vec![task_id(task).to_vec()];
    change
}

/// The same address of the other family.
fn six(last: u8) -> IpAddr {
    IpAddr::from([0xfd05, 0, 0, 0, 0, 0, 1, last.into()])
}

const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 2));

/// A task's row with addresses of both families.
fn both(host: u8, last: u8, serving: bool) -> v1::NetworkEndpoint {
    let mut row = endpoint(host, last.into(), 9, address(last), serving);
    row.addresses.push(skep_proto::cidr::address_to_wire(six(last)));
    row
}

fn attach(host: &Host<'_>, net: &v1::Network, last: u8) -> Namespace {
    let mut request = attach_request(last.into(), &[(net, address(last))]);
    request.endpoints[0].addresses.push(skep_proto::cidr::address_to_wire(six(last)));
    host.attach(&request)
}

/// What two clients have open to a service of two backends, by both families.
struct Open {
    flows: Vec<Flow>,
    names: Vec<String>,
    streams: Vec<TcpStream>,
    before: Vec<String>,
}

impl Open {
    fn new(clients: &[Namespace; 2]) -> Self {
        let targets = [IpAddr::from(VIP), VIP6];
        let flows: Vec<Flow> = (0..20)
            .flat_map(|number| targets.map(|vip| Flow::new(&clients[number % 2], SocketAddr::new(vip, 80))))
            .collect();
        let names = flows.iter().map(|flow| until(&format!("no answer {flow:?}"), || flow.ask())).collect();
        let mut streams: Vec<_> = (0..20).map(|_| connect(&clients[0], SocketAddr::from((VIP, 80))).unwrap()).collect();
        let before = streams.iter_mut().map(|stream| ask(stream).unwrap()).collect();
        let open = Self { flows, names, streams, before };
        for name in ["task2", "task3"] {
            assert!(open.names.iter().any(|found| found == name) && open.before.iter().any(|found| found == name));
        }
        open
    }

    /// All of it goes on as it was.
    fn goes_on(&mut self) {
        for (flow, name) in self.flows.iter().zip(&self.names) {
            assert_eq!(flow.ask().as_deref(), Some(name.as_str()));
        }
        for (stream, name) in self.streams.iter_mut().zip(&self.before) {
            assert_eq!(ask(stream).unwrap(), *name);
        }
    }

    /// Connections to all others have ended, datagrams go there.
    fn moves_to(&mut self, name: &str) {
        let start = Instant::now();
        for flow in &self.flows {
            flow.moves_to(name);
        }
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        for (stream, before) in self.streams.iter_mut().zip(&self.before) {
            assert_eq!(ask(stream).is_ok(), before == name, "{before}");
        }
    }
}

#[test]
fn datagrams_and_connections_move_on_when_their_backend_is_gone() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let net = network(5, |spec| spec.ipv6 = true);
    let mut table = whole(&net, 1);
    let mut web = service(9, "web", VIP, Vec::new());
    web.virtual_addresses.push(skep_proto::cidr::address_to_wire(VIP6));
    table.put_services = vec![web];
    table.put_peers = vec![peer(1), peer(2)];
    table.put_endpoints = vec![both(2, 2, true), both(2, 3, true), both(1, 1, false), both(1, 11, false)];
    let follow = |table: &v1::NetworkTable| hosts.iter().for_each(|host| host.follow(std::slice::from_ref(table)));
    follow(&table);
    // Sent to before it is a virtual address: goes nowhere, and must not stay there.
    let clients = [attach(&hosts[0], &net, 1), attach(&hosts[0], &net, 11)];
    let early = Flow::new(&clients[0], SocketAddr::from(([10, 5, 0, 3], 80)));
    assert_eq!(early.ask(), None);
    for last in [2, 3] {
        let sandbox = attach(&hosts[1], &net, last);
        serve(&sandbox, 80, &format!("task{last}"));
        serve6(&sandbox, 80, &format!("task{last}"));
    }
    let mut open = Open::new(&clients);
    // It drains: what is open goes on.
    let mut change = difference(&net, 2);
    change.put_endpoints = vec![both(2, 2, false)];
    change.put_services = vec![service(8, "early", Ipv4Addr::new(10, 5, 0, 3), Vec::new())];
    follow(&change);
    open.goes_on();
    // It is gone, though it goes on to answer: connections end, datagrams go to the other one; the rest stays.
    follow(&remove(&net, 3, 2));
    open.moves_to("task3");
    // The service that came has a backend now.
    let mut change = difference(&net, 4);
    change.put_endpoints =
        vec![v1::NetworkEndpoint { service_id: skep_proto::id::ServiceId::new(8).to_vec(), ..both(2, 3, true) }];
    hosts[0].follow(&[change]);
    early.moves_to("task3");
}

#[test]
fn datagrams_to_published_ports_move_on() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let (net, mesh) = (network(5, |_| {}), network(9, |spec| spec.ingress = true));
    let port = |mode: v1::PublishMode, published_port| v1::PortSpec {
        published_port,
        target_port: 80,
        protocol: v1::Protocol::Udp.into(),
        mode: mode.into(),
    };
    let at = |port| SocketAddr::from(([10, 77, 0, 1], port));
    // Sent to before anything is published there.
    let flows: Vec<Flow> = (0..10).map(|_| Flow::new(&lab.outside, at(8053))).collect();
    let single = Flow::new(&lab.outside, at(8054));
    assert!(flows.iter().chain([&single]).all(|flow| flow.ask().is_none()));
    let ingress = |last: u8| IpAddr::from([10, 255, 1, last]);
    let mut table = whole(&mesh, 1);
    table.put_services =
        vec![service(9, "web", Ipv4Addr::new(10, 255, 9, 9), vec![port(v1::PublishMode::Ingress, 8053)])];
    table.put_peers = vec![peer(1), peer(2)];
    table.put_endpoints = vec![endpoint(2, 2, 9, ingress(2), true), endpoint(2, 3, 9, ingress(3), true)];
    let other = network(6, |_| {});
    for host in &hosts {
        host.know(&net);
        host.know(&other);
        host.follow(&[table.clone()]);
    }
    for last in [2, 3] {
        let request = attach_request(last.into(), &[(&net, address(last)), (&mesh, ingress(last))]);
        serve(&hosts[1].attach(&request), 80, &format!("task{last}"));
    }
    let names: Vec<String> = flows.iter().map(|flow| until(&format!("no answer {flow:?}"), || flow.ask())).collect();
    assert!(names.iter().any(|name| name == "task2") && names.iter().any(|name| name == "task3"), "{names:?}");
    for host in &hosts {
        host.follow(&[remove(&mesh, 2, 2)]);
    }
    for flow in &flows {
        flow.moves_to("task3");
    }
    // Nobody is left; then somebody comes.
    for host in &hosts {
        host.follow(&[remove(&mesh, 3, 3)]);
    }
    assert!(flows.iter().all(|flow| flow.ask().is_none()));
    let mut change = difference(&mesh, 4);
    change.put_endpoints = vec![endpoint(2, 2, 9, ingress(2), true)];
    for host in &hosts {
        host.follow(&[change.clone()]);
    }
    for flow in &flows {
        flow.moves_to("task2");
    }

    // Mode host: the next task on the same port may be on another network.
    for (task, net, last) in [(21, &net, 21), (22, &other, 22), (23, &net, 23)] {
        let own = IpAddr::from([10, if last == 22 { 6 } else { 5 }, 1, last]);
        let mut request = attach_request(task, &[(net, own)]);
        request.host_ports = vec![port(v1::PublishMode::Host, 8054)];
        serve(&hosts[0].attach(&request), 80, &format!("task{task}"));
        single.moves_to(&format!("task{task}"));
        hosts[0].detach(task_id(task));
    }
}
