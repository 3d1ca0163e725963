//! Prints what the network costs: time and CPU of a complete endpoint, of a backend that changes in 200 namespaces,
//! and of tables of ten thousands. Needs root. `cargo run -p skep-netlink --example figures [endpoints] [changes]
//! [connections] [neighbours]`
//!
//! CPU is the whole process's, in the kernel and outside; what the kernel does later on threads of its own is not in
//! it.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use skep_netlink::conntrack::{Conntrack, Filter};
use skep_netlink::link::{Bridge, LinkChange, LinkKind, NewLink, Vxlan};
use skep_netlink::neighbour::{Neighbour, NeighbourChange};
use skep_netlink::nft::{Backend, Backends, Balancer, Frontend, Nft, Service, Transaction};
use skep_netlink::route::Route;
use skep_netlink::sysctl::{Scope, Sysctl};
use skep_netlink::{Changes, Inside, MacAddress, Namespace, NetlinkError, Prefix, Rtnetlink};

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|each| each == part);
    if is_wanted("endpoints") {
        endpoints();
    }
    if is_wanted("changes") {
        backend_changes(200, 1, 10);
        backend_changes(200, 1, 1000);
        backend_changes(20, 1000, 3);
    }
    if is_wanted("connections") {
        connections();
    }
    if is_wanted("neighbours") {
        neighbours();
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().try_into().unwrap(), u32::try_from(time.tv_usec()).unwrap() * 1000)
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// Prints time and CPU of `work`, for each of `times`.
fn measure<T>(what: &str, times: u32, work: impl FnOnce() -> T) -> T {
    let (started, before) = (Instant::now(), cpu());
    let value = work();
    let (wall, used) = (started.elapsed() / times, (cpu() - before) / times);
    println!("{what:<84} {:>9.3} ms wall {:>9.3} ms CPU", wall.as_secs_f64() * 1e3, used.as_secs_f64() * 1e3);
    value
}

fn backend(number: u32) -> Backend {
    Backend { address: Ipv4Addr::from(0x0a05_2000 + number).into(), port: None }
}

fn services(count: u32, backends: u32) -> Vec<(Service, Backends)> {
    (0..count)
        .map(|number| {
            let vip: IpAddr = Ipv4Addr::from(0x0a05_f000 + number).into();
            let frontends = vec![Frontend::Address(vip)];
            let mut list = Backends::new();
            list.change(&(0..backends).map(backend).collect::<Vec<_>>(), &[]);
            (Service { number: number.try_into().unwrap(), name: format!("s{number}"), frontends, ports: false }, list)
        })
        .collect()
}

fn table(services: &[(Service, Backends)]) -> Transaction {
    let balancer = Balancer::sandbox("skep", false);
    let mut transaction = Transaction::new();
    balancer.create(&mut transaction, None);
    services.iter().for_each(|(service, backends)| balancer.add_service(&mut transaction, service, backends));
    transaction
}

/// A network's namespace with its bridge, number 2.
fn network() -> (Namespace, Rtnetlink) {
    let made = Namespace::anonymous(|inside| {
        inside.write_sysctls(&[(Sysctl::BridgeCallIptables, "0"), (Sysctl::BridgeCallIp6tables, "0")])?;
        inside.rtnetlink()
    });
    let (namespace, rtnetlink) = made.unwrap();
    let mut changes = Changes::new();
    let bridge = LinkKind::Bridge(Bridge::default());
    changes.add_link(&NewLink { index: Some(2), up: true, ..NewLink::new("br0", bridge) });
    rtnetlink.apply(&changes).unwrap();
    (namespace, rtnetlink)
}

/// What is kept of an endpoint.
struct Endpoint {
    namespace: Namespace,
    rtnetlink: Rtnetlink,
    _nft: Nft,
    _conntrack: Conntrack,
    _dns: (std::net::UdpSocket, std::net::TcpListener),
}

fn endpoint(path: &Path, number: u32, network: &Rtnetlink, rules: &Transaction) -> Result<Endpoint, NetlinkError> {
    let setup = |inside: &Inside| {
        let peer = NewLink {
            mtu: Some(1450),
            namespace: Some(inside.namespace().as_fd()),
            ..NewLink::new("eth0", LinkKind::Peer)
        };
        let veth = LinkKind::Veth(Box::new(peer));
        let mut outside = Changes::new();
        outside.add_link(&NewLink {
            mtu: Some(1450),
            master: Some(2),
            up: true,
            ..NewLink::new(format!("veth{number}"), veth)
        });
        network.apply(&outside)?;
        let default = Scope::Default;
        inside.write_sysctls(&[(Sysctl::AcceptRa(default.clone()), "0"), (Sysctl::AcceptDad(default), "0")])?;
        let rtnetlink = inside.rtnetlink()?;
        let mut own = Changes::new();
        own.change_link(2, &LinkChange { up: Some(true), ..LinkChange::default() });
        own.add_address(2, Prefix::new(Ipv4Addr::from(0x0a05_0100 + number), 16).unwrap());
        own.add_address(2, format!("fd05::{number:x}/64").parse().unwrap());
        own.add_route(&Route::gateway(Prefix::DEFAULT_V4, [10, 5, 0, 1].into()));
        rtnetlink.apply(&own)?;
        let nft = inside.nft()?;
        nft.commit(rules)?;
        let dns = "127.0.0.11:53".parse().unwrap();
        let dns = (inside.udp(dns)?, inside.tcp(dns)?);
        Ok((rtnetlink, nft, inside.conntrack()?, dns))
    };
    let (namespace, (rtnetlink, nft, conntrack, dns)) = Namespace::create::<_, NetlinkError>(path, setup)?;
    Ok(Endpoint { namespace, rtnetlink, _nft: nft, _conntrack: conntrack, _dns: dns })
}

/// Removes the namespaces' paths also when something panics.
struct Paths(Vec<PathBuf>);

impl Drop for Paths {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| drop(Namespace::remove(path)));
    }
}

fn endpoints() {
    const COUNT: u32 = 200;
    let (_namespace, network) = network();
    let rules = measure("rules of an endpoint as bytes (10 services x 3 backends)", 1, || table(&services(10, 3)));
    let mut paths = Paths(Vec::new());
    let all =
        measure("endpoint: namespace, veth, 2 addresses, route, 10 VIPs x 3, DNS sockets, kept handles", COUNT, || {
            let make = |number: u32| {
                let path = std::env::temp_dir().join(format!("skep-netlink-figures-{}-{number}", std::process::id()));
                paths.0.push(path.clone());
                endpoint(&path, number, &network, &rules).unwrap()
            };
            (0..COUNT).map(make).collect::<Vec<_>>()
        });
    println!("{:<84} {:>9} kB", "resident memory of this process then", resident());
    measure("endpoint removed (path, handles; the kernel takes the rest down later)", COUNT, || {
        drop(all);
        drop(paths);
    });
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// One service among `services` changes, in `count` namespaces.
fn backend_changes(count: u32, number_of_services: u32, backends: u32) {
    let mut all = services(number_of_services, backends);
    let rules = table(&all);
    let places: Vec<(Namespace, (Nft, Conntrack))> = (0..count)
        .map(|_| {
            let open = |inside: &Inside| Ok::<_, NetlinkError>((inside.nft()?, inside.conntrack()?));
            Namespace::anonymous(open).unwrap()
        })
        .collect();
    measure(&format!("table with {number_of_services} services of {backends} backends, per namespace"), count, || {
        places.iter().for_each(|(_, (nft, _))| nft.commit(&rules).unwrap());
    });
    let balancer = Balancer::sandbox("skep", false);
    let (service, list) = &mut all[0];
    let mut change = |what: &str, add: &[Backend], remove: &[Backend]| {
        measure(
            &format!(
                "{what} of {backends} backends ({number_of_services} services) in {count} namespaces, all of them"
            ),
            1,
            || {
                let mut transaction = Transaction::new();
                balancer.change_backends(&mut transaction, service, &list.change(add, remove));
                places.iter().for_each(|(_, (nft, _))| nft.commit(&transaction).unwrap());
            },
        );
    };
    for round in 0..3 {
        change("one removed", &[], &[backend(round)]);
        change("one added", &[backend(backends + round)], &[]);
        change("one replaced by another", &[backend(round)], &[backend(backends + round)]);
    }
    measure(&format!("entries of one backend looked for in {count} namespaces without any, all of them"), 1, || {
        let filter = Filter { reply_source: Some(backend(1).address), ..Filter::default() };
        places.iter().for_each(|(_, (_, conntrack))| assert_eq!(conntrack.delete(&filter).unwrap(), 0));
    });
}

/// The address of each connection.
type Target = fn(u32) -> IpAddr;

/// A connection, a byte and a reset: to the server itself, and through VIPs with 1 and 1,000 backends, in turn.
fn connections() {
    const ROUNDS: u32 = 100;
    const EACH: u32 = 100;
    let (_namespace, network) = network();
    let dir = std::env::temp_dir();
    let paths = Paths((1..=2).map(|n| dir.join(format!("skep-netlink-figures-{}-c{n}", std::process::id()))).collect());
    let all = services(1, 1).into_iter().chain(services(2, 1000).into_iter().skip(1)).collect::<Vec<_>>();
    let rules = table(&all);
    let make = |number: u32| endpoint(&paths.0[number as usize - 1], number, &network, &rules).unwrap();
    let (server, client) = (make(1), make(2));
    let mut addresses = Changes::new();
    (0..1000).for_each(|number| addresses.add_address(2, Prefix::host(backend(number).address)));
    server.rtnetlink.apply(&addresses).unwrap();
    let any: std::net::SocketAddr = "0.0.0.0:80".parse().unwrap();
    let listener = server.namespace.enter(|inside| inside.tcp(any)).unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|mut stream| drop(stream.write_all(b"x"))));
    // A server that is reset has no connections left over, nor has the client.
    let visit = |round: u32, to: Target| {
        let work = move |_: &Inside| {
            for number in 0..EACH {
                let mut stream = std::net::TcpStream::connect((to(round * EACH + number), 80)).unwrap();
                stream.read_exact(&mut [0]).unwrap();
                nix::sys::socket::setsockopt(
                    &stream,
                    nix::sys::socket::sockopt::Linger,
                    &libc::linger { l_onoff: 1, l_linger: 0 },
                )
                .unwrap();
            }
            Ok::<_, NetlinkError>(())
        };
        client.namespace.enter(work).unwrap();
    };
    let targets: [(&str, Target); 4] = [
        ("the server itself", |_| [10, 5, 1, 1].into()),
        ("a VIP with 1 backend", |_| [10, 5, 240, 0].into()),
        ("1,000 addresses of the server in turn", |number| backend(number % 1000).address),
        ("a VIP with 1,000 backends", |_| [10, 5, 240, 1].into()),
    ];
    // The best of many short rounds in turn: what others take of the machine is not in it.
    let mut best = [Duration::MAX; 4];
    for round in 0..ROUNDS {
        for ((_, to), best) in targets.iter().zip(&mut best) {
            let started = Instant::now();
            visit(round, *to);
            *best = (*best).min(started.elapsed() / EACH);
        }
    }
    let conntrack = client.namespace.enter(Inside::conntrack).unwrap();
    println!("entries of connections: {}", conntrack.count().unwrap());
    let nobody = Filter { reply_source: Some([10, 9, 9, 9].into()), ..Filter::default() };
    measure("entries of one backend looked for by this crate (20 in turn)", 20, || {
        (0..20).for_each(|_| assert_eq!(conntrack.delete(&nobody).unwrap(), 0));
    });
    measure("the same by the kernel (20 in turn)", 20, || {
        (0..20).for_each(|_| conntrack.forget(&[nobody]).unwrap());
    });
    for ((what, _), best) in targets.iter().zip(best) {
        println!("{:<84} {:>9.3} ms wall", format!("connection to {what}, 1 byte, reset"), best.as_secs_f64() * 1e3);
    }
}

fn neighbours() {
    let (_namespace, rtnetlink) = network();
    let mut changes = Changes::new();
    let vxlan = LinkKind::Vxlan(Vxlan { proxy: true, ..Vxlan::new(1, 4789) });
    changes.add_link(&NewLink { index: Some(5), master: Some(2), up: true, ..NewLink::new("vx0", vxlan) });
    rtnetlink.apply(&changes).unwrap();
    let entry = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        let mac = MacAddress([2, 0x42, a, b, c, d]);
        let remote = Ipv4Addr::from(0xc000_0200 + number % 100).into();
        let address = Ipv4Addr::from(0x0a05_0000 + number).into();
        [Neighbour::Tunnel { device: 5, mac, remote }, Neighbour::Host { device: 5, address, mac }]
    };
    let put: Vec<_> = (1..=10_000).flat_map(entry).map(NeighbourChange::Put).collect();
    let delete: Vec<_> = (1..=10_000).flat_map(entry).map(NeighbourChange::Delete).collect();
    measure("10,000 forwarding and 10,000 neighbour entries put", 1, || rtnetlink.change_neighbours(&put).unwrap());
    measure("the same put again", 1, || rtnetlink.change_neighbours(&put).unwrap());
    let listed = measure("listed", 1, || rtnetlink.neighbours().unwrap().len());
    assert_eq!(listed, 20_000);
    measure("one of them changed", 1, || rtnetlink.change_neighbours(&put[..2]).unwrap());
    measure("all deleted", 1, || rtnetlink.change_neighbours(&delete).unwrap());
}
