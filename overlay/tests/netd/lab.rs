//! Hosts: network namespaces on one bridge, with a netd in each, driven over its socket.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use skep_fabric::PrivateKey;
use skep_netlink::link::{Bridge, LinkChange, LinkKind, NewLink};
use skep_netlink::{Changes, Inside, Namespace, NetlinkError, Rtnetlink};
use skep_overlay::netd::Choice;
use skep_proto::id::{NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::v1;
use skep_proto::v1::netd_client::NetdClient;
use tonic::transport::{Channel, Endpoint};

/// Set for the process that is a netd.
pub(crate) const NETD: &str = "SKEP_TEST_NETD";

/// Set to choose the device of encrypted networks: kernel, userspace or auto. On each host: `kernel,userspace` gives the
/// first one the kernel's and the second one skep's own.
const MESH: &str = "SKEP_TEST_MESH";
/// Set for the process that is a netd: its host's number.
const NUMBER: &str = "SKEP_TEST_HOST";

/// The device that the host of a number is to have.
pub(crate) fn choice_of(number: u8) -> Choice {
    let chosen = std::env::var(MESH).unwrap_or_default();
    let mut of_hosts = chosen.split(',').cycle().skip(usize::from(number.saturating_sub(1)));
    of_hosts.next().filter(|text| !text.is_empty()).map(|text| text.parse().unwrap()).unwrap_or_default()
}

/// The device that the host of a number has, as netd names it.
pub(crate) fn device_of(number: u8) -> &'static str {
    let there = || Namespace::anonymous(|inside| inside.wireguard().map(drop)).is_ok();
    match choice_of(number) {
        Choice::Kernel => "kernel",
        Choice::Auto if there() => "kernel",
        Choice::Auto | Choice::Userspace => "userspace",
    }
}

/// The device that this process is to have.
pub(crate) fn choice() -> Choice {
    choice_of(std::env::var(NUMBER).ok().and_then(|number| number.parse().ok()).unwrap_or(1))
}

/// How long an answer may take that is sure to come, on a machine under load.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the test can run. Says so if not.
pub(crate) fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Waits until something is so.
pub(crate) fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The underlay: a bridge; with an outside that is no host, at 10.77.0.100.
pub(crate) struct Lab {
    pub(crate) runtime: tokio::runtime::Runtime,
    underlay: Namespace,
    rtnetlink: Rtnetlink,
    pub(crate) outside: Namespace,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn place() -> (Namespace, Rtnetlink) {
    Namespace::anonymous(Inside::rtnetlink).unwrap()
}

impl Lab {
    pub(crate) fn new() -> Self {
        let (underlay, rtnetlink) = place();
        let mut changes = Changes::new();
        let bridge = LinkKind::Bridge(Bridge::default());
        changes.add_link(&NewLink { index: Some(2), up: true, ..NewLink::new("br0", bridge) });
        rtnetlink.apply(&changes).unwrap();
        let (outside, outer) = place();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let lab = Self { runtime, underlay, rtnetlink, outside, dir: tempfile::tempdir().unwrap() };
        lab.join(&lab.outside, &outer, 100);
        lab
    }

    fn join(&self, namespace: &Namespace, rtnetlink: &Rtnetlink, number: u8) {
        let _ = &self.underlay;
        let peer = NewLink { namespace: Some(namespace.as_fd()), ..NewLink::new("eth0", LinkKind::Peer) };
        let kind = LinkKind::Veth(Box::new(peer));
        let mut changes = Changes::new();
        changes.add_link(&NewLink { master: Some(2), up: true, ..NewLink::new(format!("h{number}"), kind) });
        self.rtnetlink.apply(&changes).unwrap();
        let mut changes = Changes::new();
        changes.change_link(2, &LinkChange { up: Some(true), ..LinkChange::default() });
        changes.add_address(2, format!("10.77.0.{number}/24").parse().unwrap());
        changes.add_address(2, format!("fd77::{number}/64").parse().unwrap());
        rtnetlink.apply(&changes).unwrap();
    }

    /// Makes the underlay carry packets of this size, up to these hosts.
    pub(crate) fn widen(&self, mtu: u32, hosts: &[&Host<'_>]) {
        let mut changes = Changes::new();
        let change = LinkChange { mtu: Some(mtu), ..LinkChange::default() };
        for link in self.rtnetlink.links().unwrap().iter().filter(|link| link.name != "lo") {
            changes.change_link(link.index, &change);
        }
        self.rtnetlink.apply(&changes).unwrap();
        for rtnetlink in hosts.iter().map(|host| &host.rtnetlink) {
            let mut changes = Changes::new();
            changes.change_link(2, &change);
            rtnetlink.apply(&changes).unwrap();
        }
    }

    /// A cable between two: `leg` in the one, `eth0` in the other.
    pub(crate) fn link(&self, one: &Namespace, other: &Namespace) {
        let peer = NewLink { namespace: Some(other.as_fd()), ..NewLink::new("eth0", LinkKind::Peer) };
        let kind = LinkKind::Veth(Box::new(peer));
        let mut changes = Changes::new();
        changes.add_link(&NewLink { namespace: Some(one.as_fd()), ..NewLink::new("leg", kind) });
        self.rtnetlink.apply(&changes).unwrap();
    }

    /// A host with a netd that knows who it is.
    pub(crate) fn host(&self, number: u8) -> Host<'_> {
        let (namespace, rtnetlink) = place();
        self.join(&namespace, &rtnetlink, number);
        let dir = self.dir.path().join(number.to_string());
        fs::create_dir_all(&dir).unwrap();
        let who = v1::ConfigureRequest {
            node_id: NodeId::new(u128::from(number)).to_vec(),
            private_key: key(number).to_bytes().to_vec(),
            wireguard_addr: format!("10.77.0.{number}:51820"),
            vxlan_addr: format!("10.77.0.{number}"),
            previous_private_key: Vec::new(),
        };
        let mut host = Host { lab: self, number, namespace, rtnetlink, dir, who, child: None };
        host.start();
        host
    }
}

/// A host.
pub(crate) struct Host<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) number: u8,
    pub(crate) namespace: Namespace,
    pub(crate) rtnetlink: Rtnetlink,
    pub(crate) dir: PathBuf,
    /// What its netd is told about it.
    pub(crate) who: v1::ConfigureRequest,
    child: Option<Child>,
}

/// Runs a program in a namespace.
pub(crate) fn run(namespace: &Namespace, command: &str) -> std::process::Output {
    let path = format!("--net=/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
    Command::new("nsenter").arg(path).args(command.split_whitespace()).output().unwrap()
}

impl Host<'_> {
    pub(crate) fn node(&self) -> NodeId {
        NodeId::new(u128::from(self.number))
    }

    /// Another netd on the same machine.
    pub(crate) fn beside(&self) -> Self {
        let dir = self.dir.join("beside");
        fs::create_dir_all(&dir).unwrap();
        let namespace = self.namespace.try_clone().unwrap();
        let rtnetlink = namespace.enter(Inside::rtnetlink).unwrap();
        let mut host =
            Self { lab: self.lab, number: self.number, namespace, rtnetlink, dir, who: self.who.clone(), child: None };
        host.start();
        host
    }

    /// A sysctl of the host.
    pub(crate) fn sysctl(&self, name: &str) -> String {
        let output = run(&self.namespace, &format!("sysctl -n {name}"));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Starts a process of netd.
    pub(crate) fn spawn(&self) -> Child {
        let net = format!("--net=/proc/{}/fd/{}", std::process::id(), self.namespace.as_fd().as_raw_fd());
        let mut command = Command::new("nsenter");
        command.arg(net).arg(std::env::current_exe().unwrap()).args(["netd_process", "--exact", "--nocapture"]);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        command.env(NETD, &self.dir).env(NUMBER, self.number.to_string());
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Starts its netd and tells it who it is.
    pub(crate) fn start(&mut self) {
        self.child = Some(self.spawn());
        until("netd does not answer", || self.configure().ok());
    }

    /// Starts its netd and tells it nothing. Returns when it answers.
    pub(crate) fn start_alone(&mut self) -> v1::NetdStateResponse {
        let child = self.spawn();
        let pid = child.id();
        self.child = Some(child);
        until("netd does not answer", || {
            let answer = self.lab.runtime.block_on(self.client().state(v1::NetdStateRequest {})).ok()?.into_inner();
            // Until then the one before it answers.
            (answer.pid == pid).then_some(answer)
        })
    }

    /// Starts another one beside its netd, which takes its place. Returns when it answers.
    pub(crate) fn replace(&mut self) -> v1::NetdStateResponse {
        let mut before = self.child.take().unwrap();
        let ended = std::thread::spawn(move || before.wait().unwrap());
        let state = self.start_alone();
        assert!(ended.join().unwrap().success());
        state
    }

    pub(crate) fn configure(&self) -> Result<v1::ConfigureResponse, tonic::Status> {
        self.lab.runtime.block_on(self.client().configure(self.who.clone())).map(tonic::Response::into_inner)
    }

    pub(crate) fn mesh(&self) -> v1::MeshResponse {
        self.lab.runtime.block_on(self.client().mesh(v1::MeshRequest {})).unwrap().into_inner()
    }

    pub(crate) fn state(&self) -> v1::NetdStateResponse {
        self.lab.runtime.block_on(self.client().state(v1::NetdStateRequest {})).unwrap().into_inner()
    }

    pub(crate) fn client(&self) -> NetdClient<Channel> {
        let socket = self.dir.join("netd.sock");
        let _inside = self.lab.runtime.enter();
        let channel = Endpoint::from_static("http://netd").connect_with_connector_lazy(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        }));
        NetdClient::new(channel)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn signal(&mut self, signal: nix::sys::signal::Signal) {
        let mut child = self.child.take().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn wait(&mut self) {
        self.child.take().unwrap().wait().unwrap();
    }

    pub(crate) fn apply(&self, tables: &[v1::NetworkTable]) -> v1::ApplyTablesResponse {
        let request = v1::ApplyTablesRequest { tables: tables.to_vec() };
        self.lab.runtime.block_on(self.client().apply(request)).unwrap().into_inner()
    }

    /// Applies tables that have to be taken.
    pub(crate) fn follow(&self, tables: &[v1::NetworkTable]) {
        let response = self.apply(tables);
        assert!(response.faults.is_empty(), "{:?}", response.faults);
    }

    /// Applies the table of a network on which nobody is yet.
    pub(crate) fn know(&self, network: &v1::Network) {
        self.follow(&[v1::NetworkTable { put_peers: vec![peer(self.number)], ..whole(network, 1) }]);
    }

    pub(crate) fn try_attach(&self, request: &v1::AttachRequest) -> Result<v1::AttachResponse, tonic::Status> {
        self.lab.runtime.block_on(self.client().attach(request.clone())).map(tonic::Response::into_inner)
    }

    pub(crate) fn attach(&self, request: &v1::AttachRequest) -> Namespace {
        let response = self.try_attach(request).unwrap();
        Namespace::open(Path::new(&response.namespace_path)).unwrap()
    }

    pub(crate) fn detach(&self, task: TaskId) {
        let request = v1::DetachRequest { task_id: task.to_vec() };
        self.lab.runtime.block_on(self.client().detach(request)).unwrap();
    }

    pub(crate) fn shutdown(&mut self) {
        self.lab.runtime.block_on(self.client().shutdown(v1::NetdShutdownRequest {})).unwrap();
        self.wait();
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("host {}: {}", self.number, fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        for folder in ["sandboxes", "networks", "fabric", "kept"] {
            if !self.dir.join(folder).exists() {
                continue;
            }
            if let Ok(found) = skep_overlay::Sandboxes::open(&self.dir.join(folder)) {
                let _ = found.close();
            }
        }
    }
}

/// A host's key.
pub(crate) fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

/// A network's definition: 10.`number`.0.0/16.
pub(crate) fn network(number: u8, change: impl FnOnce(&mut v1::NetworkSpec)) -> v1::Network {
    let mut spec = v1::NetworkSpec { name: format!("net{number}"), ..v1::NetworkSpec::default() };
    spec.options.insert("encrypted".to_owned(), "false".to_owned());
    change(&mut spec);
    let subnet = if spec.ingress { "10.255.0".to_owned() } else { format!("10.{number}.0") };
    let mut subnets = vec![v1::Subnet {
        subnet: format!("{subnet}.0/16"),
        gateway: if spec.ingress { "10.255.255.1".to_owned() } else { format!("{subnet}.1") },
        ..v1::Subnet::default()
    }];
    if spec.ipv6 {
        let prefix = if spec.ingress { "fdff".to_owned() } else { format!("fd0{number}") };
        let gateway = format!("{prefix}::{}", if spec.ingress { "ffff" } else { "1" });
        subnets.push(v1::Subnet { subnet: format!("{prefix}::/64"), gateway, ..v1::Subnet::default() });
    }
    v1::Network {
        id: NetworkId::new((u128::from(number) << 120) | 7).to_vec(),
        spec: Some(spec),
        subnets,
        vni: 4096 + u32::from(number),
        ..v1::Network::default()
    }
}

/// A network of driver macvlan with addresses of the underlay.
pub(crate) fn lan(change: impl FnOnce(&mut v1::NetworkSpec)) -> v1::Network {
    let mut lan = network(77, |spec| {
        spec.driver = v1::NetworkDriver::Macvlan.into();
        spec.options.insert("parent".into(), "eth0".into());
        change(spec);
    });
    lan.subnets[0].subnet = "10.77.0.0/24".into();
    lan.subnets[0].gateway = "10.77.0.100".into();
    lan
}

/// A row of a task.
pub(crate) fn endpoint(host: u8, task: u128, service: u128, address: IpAddr, serving: bool) -> v1::NetworkEndpoint {
    v1::NetworkEndpoint {
        task_id: task_id(task).to_vec(),
        node_id: NodeId::new(u128::from(host)).to_vec(),
        service_id: ServiceId::new(service).to_vec(),
        addresses: vec![skep_proto::cidr::address_to_wire(address)],
        names: vec![format!("task{task}")],
        state: i32::from(serving),
        last_resort: false,
    }
}

/// An id whose first characters differ.
pub(crate) fn task_id(number: u128) -> TaskId {
    TaskId::new((number << 100) | number)
}

pub(crate) fn service(id: u128, name: &str, vip: Ipv4Addr, ports: Vec<v1::PortSpec>) -> v1::NetworkService {
    v1::NetworkService {
        service_id: ServiceId::new(id).to_vec(),
        names: vec![name.to_owned()],
        virtual_addresses: vec![vip.octets().to_vec()],
        ports,
    }
}

pub(crate) fn peer(host: u8) -> v1::NetworkPeer {
    let endpoint = v1::FabricEndpoint {
        public_key: key(host).public().to_vec(),
        previous_public_key: Vec::new(),
        wireguard_addr: format!("10.77.0.{host}:51820"),
        vxlan_addr: format!("10.77.0.{host}"),
    };
    v1::NetworkPeer {
        node_id: NodeId::new(u128::from(host)).to_vec(),
        endpoint: Some(endpoint),
        fabric_number: host.into(),
        addresses: vec![vec![10, 255, 0, host]],
    }
}

/// A whole table.
pub(crate) fn whole(network: &v1::Network, version: u64) -> v1::NetworkTable {
    v1::NetworkTable {
        network_id: network.id.clone(),
        complete: true,
        version,
        end: true,
        network: Some(network.clone()),
        ..v1::NetworkTable::default()
    }
}

/// A whole table of the network of a number, on which hosts 1 and 2 have a task each that serves, with their numbers as ids
/// after `before`.
pub(crate) fn pair(network: &v1::Network, number: u8, before: u128) -> v1::NetworkTable {
    let row = |host: u8| endpoint(host, before + u128::from(host), 9, pair_address(number, host), true);
    v1::NetworkTable { put_peers: vec![peer(1), peer(2)], put_endpoints: [1, 2].map(row).to_vec(), ..whole(network, 1) }
}

/// The address that a pair's task has.
pub(crate) fn pair_address(number: u8, host: u8) -> IpAddr {
    [10, number, 1, host].into()
}

/// Gives hosts the table of a pair, and attaches their tasks with these ports.
pub(crate) fn attach_pair(
    hosts: &[Host<'_>],
    (network, number, before): (&v1::Network, u8, u128),
    table: &v1::NetworkTable,
    host_ports: &[v1::PortSpec],
) -> Vec<Namespace> {
    let attach = |host: &Host<'_>| {
        host.follow(std::slice::from_ref(table));
        let address = pair_address(number, host.number);
        let request = attach_request(before + u128::from(host.number), &[(network, address)]);
        host.attach(&v1::AttachRequest { host_ports: host_ports.to_vec(), ..request })
    };
    hosts.iter().map(attach).collect()
}

/// A difference to the version before.
pub(crate) fn difference(network: &v1::Network, version: u64) -> v1::NetworkTable {
    v1::NetworkTable {
        network_id: network.id.clone(),
        applies_to: version - 1,
        version,
        end: true,
        ..v1::NetworkTable::default()
    }
}

pub(crate) fn attach_request(task: u128, ends: &[(&v1::Network, IpAddr)]) -> v1::AttachRequest {
    let end = |(network, address): &(&v1::Network, IpAddr)| v1::SandboxEndpoint {
        network_id: network.id.clone(),
        addresses: vec![skep_proto::cidr::address_to_wire(*address)],
    };
    v1::AttachRequest {
        task_id: task_id(task).to_vec(),
        endpoints: ends.iter().map(end).collect(),
        ..v1::AttachRequest::default()
    }
}

/// Whether something answers `ping`: at last, for a packet may be lost where the machine is busy. Options may stand before
/// the address.
pub(crate) fn ping(from: &Namespace, to: &str) -> bool {
    let start = Instant::now();
    while is_silent(from, to) {
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Whether one `ping` gets no answer within a second.
pub(crate) fn is_silent(from: &Namespace, to: &str) -> bool {
    !run(from, &format!("ping -n -c 1 -W 1 {to}")).status.success()
}

/// Serves TCP and UDP in a namespace: each answer is `name`. TCP stays open and answers each byte.
pub(crate) fn serve(namespace: &Namespace, port: u16, name: &str) {
    serve_at(namespace, SocketAddr::from(([0, 0, 0, 0], port)), name);
}

/// The same over IPv6. The kernel lets a socket of this family take IPv4 too, where none of that family has it.
pub(crate) fn serve6(namespace: &Namespace, port: u16, name: &str) {
    let found: Vec<IpAddr> = namespace
        .enter(|inside| inside.rtnetlink()?.addresses())
        .unwrap()
        .iter()
        .map(|address| address.prefix.address)
        .filter(|address| matches!(address, IpAddr::V6(v6) if !v6.is_loopback() && !v6.is_unicast_link_local()))
        .collect();
    assert!(!found.is_empty());
    for address in found {
        serve_at(namespace, SocketAddr::new(address, port), name);
    }
}

fn serve_at(namespace: &Namespace, any: SocketAddr, name: &str) {
    let open = |inside: &Inside| Ok::<_, NetlinkError>((inside.tcp(any)?, inside.udp(any)?));
    let (tcp, udp) = namespace.enter(open).unwrap();
    let answer = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(answer.as_bytes(), from);
        }
    });
    let answer = name.to_owned();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let (Ok(mut stream), answer) = (stream, answer.clone()) else { return };
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(answer.as_bytes()).is_ok() {}
            });
        }
    });
}

pub(crate) fn connect(from: &Namespace, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = from.enter(|_| Ok::<_, NetlinkError>(TcpStream::connect_timeout(&to, PATIENCE))).unwrap()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Who answers on a connection.
pub(crate) fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"?")?;
    let mut buffer = [0; 64];
    let length = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

pub(crate) fn who(from: &Namespace, to: SocketAddr) -> std::io::Result<String> {
    ask(&mut connect(from, to)?)
}

/// Who answers a datagram.
pub(crate) fn who_udp(from: &Namespace, to: SocketAddr) -> std::io::Result<String> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = from.enter(|inside| inside.udp(SocketAddr::new(any, 0))).unwrap();
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// The IPv4 addresses of a name, as the sandbox's name server has them.
pub(crate) fn resolve(from: &Namespace, name: &str) -> Vec<Ipv4Addr> {
    let socket: UdpSocket = from.enter(|inside| inside.udp(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send_to(&query, "127.0.0.11:53").unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    let count = usize::from(u16::from_be_bytes([buffer[6], buffer[7]]));
    // Each answer ends with its address; names in them are pointers of two bytes.
    let answers = &buffer[query.len()..length];
    (0..count).map(|at| <[u8; 4]>::try_from(&answers[at * 16 + 12..at * 16 + 16]).unwrap().into()).collect()
}
