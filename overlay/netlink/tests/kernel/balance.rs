//! Real connections through VIPs and published ports.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use skep_netlink::conntrack::{Connection, Filter};
use skep_netlink::nft::{Backend, Backends, Balancer, Frontend, Service, Transaction, Transport};
use skep_netlink::sysctl::Sysctl;

use crate::lab::{Network, Place, lines, root};

const LONG: Duration = Duration::from_secs(5);

/// A backend that says its name to whoever connects, and again for every byte; over UDP for every datagram.
struct Server {
    place: Place,
    v4: IpAddr,
    v6: IpAddr,
}

impl Server {
    fn new(network: &Network, name: u8, port: u16) -> Self {
        let (place, v4, v6) = network.sandbox();
        for address in [v4, v6] {
            let (tcp, udp) = place.inside(|inside| {
                (inside.tcp((address, port).into()).unwrap(), inside.udp((address, port).into()).unwrap())
            });
            // These threads end with the test's process.
            std::thread::spawn(move || serve_tcp(&tcp, name));
            std::thread::spawn(move || serve_udp(&udp, name));
        }
        Self { place, v4, v6 }
    }

    fn backend(&self, ipv6: bool, port: Option<u16>) -> Backend {
        Backend { address: if ipv6 { self.v6 } else { self.v4 }, port }
    }
}

fn serve_tcp(listener: &TcpListener, name: u8) {
    for connection in listener.incoming() {
        let mut connection = connection.unwrap();
        std::thread::spawn(move || {
            let mut byte = [0];
            while connection.write_all(&[name]).is_ok() && connection.read_exact(&mut byte).is_ok() {}
        });
    }
}

fn serve_udp(socket: &UdpSocket, name: u8) {
    let mut buffer = [0; 16];
    while let Ok((_, from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&[name], from);
    }
}

/// A connection, and who answered.
fn connect(place: &Place, to: SocketAddr) -> std::io::Result<(TcpStream, u8)> {
    let mut stream = place.inside(move |_| TcpStream::connect_timeout(&to, LONG))?;
    stream.set_read_timeout(Some(LONG))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok((stream, byte[0]))
}

/// Who answers on a connection that is open.
fn ask(stream: &mut TcpStream) -> std::io::Result<u8> {
    let mut byte = [0];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Who answers a datagram.
fn datagram(place: &Place, to: SocketAddr) -> std::io::Result<u8> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = place.inside(move |inside| inside.udp((any, 0).into()).unwrap());
    socket.set_read_timeout(Some(LONG))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut byte = [0];
    socket.recv(&mut byte)?;
    Ok(byte[0])
}

/// How often each of `count` answers came.
fn tally(count: usize, mut one: impl FnMut() -> u8) -> HashMap<u8, usize> {
    let mut tally = HashMap::new();
    (0..count).for_each(|_| *tally.entry(one()).or_default() += 1);
    tally
}

/// Of 120 connections to 3 backends, fewer than 15 on one has a chance of 1 in 100 million.
fn is_spread(tally: &HashMap<u8, usize>, names: &[u8]) {
    assert_eq!(tally.len(), names.len(), "{tally:?}");
    assert!(names.iter().all(|name| tally.get(name).is_some_and(|count| *count >= 15)), "{tally:?}");
}

fn commit(place: &Place, fill: impl FnOnce(&mut Transaction)) {
    let mut transaction = Transaction::new();
    fill(&mut transaction);
    place.nft.commit(&transaction).unwrap();
}

const VIPS: [(bool, &str); 2] = [(false, "10.5.200.1"), (true, "fd05::c8:1")];

fn web(frontends: &[Frontend], ports: bool) -> Service {
    Service { number: 7, name: "web".to_owned(), frontends: frontends.to_vec(), ports }
}

#[test]
fn connections_spread_stay_and_drain() {
    if !root() {
        return;
    }
    let network = Network::new();
    let servers: Vec<Server> = (1..=4).map(|name| Server::new(&network, name, 80)).collect();
    let (client, ..) = network.sandbox();
    for (ipv6, vip) in VIPS {
        let (balancer, address) = (Balancer::sandbox("skep", ipv6), vip.parse::<IpAddr>().unwrap());
        let to = SocketAddr::new(address, 80);
        let service = web(&[Frontend::Address(address)], false);
        let backend = |name: usize| servers[name - 1].backend(ipv6, None);
        let mut backends = Backends::new();
        backends.change(&[backend(1), backend(2), backend(3)], &[]);
        commit(&client, |transaction| {
            balancer.create(transaction, None);
            balancer.add_service(transaction, &service, &backends);
        });
        let mut open = Vec::new();
        let tcp = tally(120, || {
            let (stream, name) = connect(&client, to).unwrap();
            open.push((stream, name));
            name
        });
        is_spread(&tcp, &[1, 2, 3]);
        is_spread(&tally(120, || datagram(&client, to).unwrap()), &[1, 2, 3]);

        // 2 drains, 4 comes: who is connected stays connected, also to 2; new ones go elsewhere.
        let change = backends.change(&[backend(4)], &[backend(2)]);
        commit(&client, |transaction| balancer.change_backends(transaction, &service, &change));
        assert!(open.iter_mut().all(|(stream, name)| ask(stream).unwrap() == *name));
        is_spread(&tally(120, || connect(&client, to).unwrap().1), &[1, 3, 4]);
        let change = backends.change(&[], &[backend(1), backend(3)]);
        assert_eq!((change.before, change.count), (3, 1));
        commit(&client, |transaction| balancer.change_backends(transaction, &service, &change));
        assert_eq!(tally(20, || connect(&client, to).unwrap().1), HashMap::from([(4, 20)]));
        assert!(open.iter_mut().all(|(stream, name)| ask(stream).unwrap() == *name));

        // Made afresh as a whole, as a process does that does not know what there is: nobody notices.
        commit(&client, |transaction| {
            balancer.create(transaction, None);
            balancer.add_service(transaction, &service, &backends);
        });
        assert!(open.iter_mut().all(|(stream, name)| ask(stream).unwrap() == *name));

        // The rest of 2's connections end; the others do not.
        let conntrack = client.inside(|inside| inside.conntrack().unwrap());
        let twos = Filter { destination: Some(address), reply_source: Some(backend(2).address), ..Filter::default() };
        let tcp_only = Filter { protocol: Some(Transport::Tcp.number()), ..twos };
        let before = conntrack.count().unwrap();
        let expected = tcp[&2];
        assert_eq!(conntrack.list(&tcp_only).unwrap().len(), expected);
        assert!(conntrack.delete(&twos).unwrap() > expected, "datagrams' entries too");
        assert!(conntrack.count().unwrap() < before && conntrack.list(&twos).unwrap().is_empty());
        for (stream, name) in &mut open {
            stream.set_read_timeout(Some(Duration::from_millis(if *name == 2 { 50 } else { 5000 }))).unwrap();
            assert_eq!(ask(stream).is_ok(), *name != 2);
        }

        // Without backends connections are refused at once; with one again they work; without the service they are not
        // redirected.
        let change = backends.change(&[], &[backend(4)]);
        commit(&client, |transaction| balancer.change_backends(transaction, &service, &change));
        let started = std::time::Instant::now();
        let refused = connect(&client, to).unwrap_err();
        assert!(started.elapsed() < Duration::from_millis(900), "refused by its first packet");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{vip} {}", client.ruleset());
        assert_eq!(datagram(&client, to).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        let change = backends.become_these(&[backend(3)]);
        commit(&client, |transaction| balancer.change_backends(transaction, &service, &change));
        assert_eq!(connect(&client, to).unwrap().1, 3);
        // Removed while it has backends, and while it has none.
        let change = backends.become_these(&[]);
        commit(&client, |transaction| balancer.change_backends(transaction, &service, &change));
        commit(&client, |transaction| balancer.remove_service(transaction, &service, &backends));
        let listed = client.ruleset();
        assert!(!listed.contains("web") && !listed.contains("elements") && listed.contains("map vips"), "{listed}");
        commit(&client, |transaction| transaction.remove_table(&balancer.table));
    }
}

/// Whatever the filters, and whoever looks for what matches: the kernel or this crate.
#[test]
fn exactly_what_matches_is_forgotten() {
    if !root() {
        return;
    }
    let network = Network::new();
    let servers = [1, 2].map(|name| Server::new(&network, name, 80));
    let (client, ..) = network.sandbox();
    let conntrack = client.inside(|inside| inside.conntrack().unwrap());
    let table = skep_netlink::nft::Table::new(skep_netlink::nft::Family::Inet, "track");
    commit(&client, |transaction| {
        use skep_netlink::nft::{BaseChain, ChainType, ConnectionState, Hook, Rule, Verdict};
        transaction.add_table(&table);
        transaction.add_base_chain(&table, "output", BaseChain::new(ChainType::Filter, Hook::Output, 0));
        let tracked = Rule::new(table.family).state(ConnectionState::NEW).verdict(Verdict::Accept);
        transaction.add_rule(&table, "output", &tracked);
    });
    let open = || {
        for server in &servers {
            for address in [server.v4, server.v6] {
                connect(&client, (address, 80).into()).unwrap();
                datagram(&client, (address, 80).into()).unwrap();
            }
        }
    };
    let to = |address| Filter { destination: Some(address), ..Filter::default() };
    let from = |address| Filter { reply_source: Some(address), ..Filter::default() };
    let (v4, v6, other) = (servers[0].v4, servers[0].v6, servers[1].v4);
    let udp = Some(Transport::Udp.number());
    let lists = [
        vec![to(v4)],
        vec![from(v6)],
        vec![Filter { reply_source: Some(v4), ..to(v4) }, from(other)],
        vec![Filter { reply_source: Some(other), ..to(v4) }],
        vec![Filter { protocol: udp, destination_port: Some(80), ..to(v4) }],
        vec![Filter { protocol: udp, destination_port: Some(81), ..to(v4) }],
        // These the kernel cannot be asked for.
        vec![Filter { protocol: udp, ..Filter::default() }, to(v6)],
        vec![Filter { destination_port: Some(80), ..from(v4) }],
        vec![from(v6); 40],
        vec![],
    ];
    for filters in lists {
        open();
        let all = conntrack.list(&Filter::default()).unwrap();
        assert!(all.len() >= 8, "{all:?}");
        let hit = |connection: &Connection| filters.iter().any(|filter| filter.matches(connection));
        let kept: HashSet<_> = all.iter().filter(|each| !hit(each)).map(|each| each.original).collect();
        conntrack.forget(&filters).unwrap();
        let left: HashSet<_> = conntrack.list(&Filter::default()).unwrap().iter().map(|each| each.original).collect();
        assert_eq!(left, kept, "{filters:?}");
    }
    assert!(conntrack.forget(&[Filter::default()]).is_err(), "all of them at once is never meant");
}

#[test]
fn a_port_leads_to_another_port_and_a_server_reaches_itself() {
    if !root() {
        return;
    }
    let network = Network::new();
    let (one, two) = (Server::new(&network, 1, 8080), Server::new(&network, 2, 8080));
    for (ipv6, vip) in VIPS {
        let (balancer, address) = (Balancer::sandbox("skep", ipv6), vip.parse::<IpAddr>().unwrap());
        let mut backends = Backends::new();
        backends.change(&[one.backend(ipv6, Some(8080)), two.backend(ipv6, Some(8080))], &[]);
        let service = web(&[Frontend::Port(address, Transport::Tcp, 80)], true);
        commit(&one.place, |transaction| {
            balancer.create(transaction, None);
            balancer.add_service(transaction, &service, &backends);
        });
        let to = SocketAddr::new(address, 80);
        // From a backend: also to itself.
        is_spread(&tally(60, || connect(&one.place, to).unwrap().1), &[1, 2]);
        // Other ports and protocols of the address are not the service's.
        let rest = Duration::from_millis(100);
        let other = SocketAddr::new(address, 81);
        assert!(one.place.inside(move |_| TcpStream::connect_timeout(&other, rest)).is_err());
        let listed = one.place.ruleset();
        let family = if ipv6 { "dnat ip6 to" } else { "dnat ip to" };
        for meant in [
            "meta priority set numgen random mod 2 offset 458752 goto redirect_with_ports".to_owned(),
            format!("{family} meta priority map @backends_with_ports"),
            format!("{vip} . tcp . 80 : goto to_web"),
            "meta l4proto . th dport vmap @services".to_owned(),
            "daddr vmap @vips".to_owned(),
        ] {
            assert!(listed.contains(&meant), "{meant}: {listed}");
        }
        // Two services cannot have the same frontend; the second one leaves nothing behind.
        let mut transaction = Transaction::new();
        balancer.add_service(
            &mut transaction,
            &Service { number: 8, name: "other".to_owned(), ..service.clone() },
            &backends,
        );
        let error = one.place.nft.commit(&transaction).unwrap_err();
        assert!(crate::lab::text(&error).starts_with("cannot add elements to set services in table ip"), "{error}");
        assert_eq!(one.place.ruleset(), listed);
        commit(&one.place, |transaction| balancer.create(transaction, None));
        assert!(!one.place.ruleset().contains("web"), "made afresh");
        commit(&one.place, |transaction| balancer.add_service(transaction, &service, &Backends::new()));
        assert_eq!(connect(&one.place, to).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        commit(&one.place, |transaction| transaction.remove_table(&balancer.table));
    }
}

/// A host with the network's bridge: clients outside, the host itself, and a container reach a published port.
#[test]
fn a_published_port_leads_into_the_network() {
    if !root() {
        return;
    }
    let (outside, network) = (Network::new(), Network::new());
    let servers = [Server::new(&network, 1, 8080), Server::new(&network, 2, 8080)];
    let (client, ..) = outside.sandbox();
    let host = &network.place;
    // The host's leg in the outer network, which is another 10.5: so the client knows the host as 10.6.0.1.
    crate::lab::join(host, &outside.place, &client);
    let sysctls = [
        (Sysctl::Ipv4Forward, "1"),
        (Sysctl::Ipv6Forward, "1"),
        // Or the backends' own connections are redirected within the bridge, and get lost.
        (Sysctl::BridgeCallIptables, "0"),
        (Sysctl::BridgeCallIp6tables, "0"),
    ];
    host.inside(|inside| inside.write_sysctls(&sysctls).unwrap());
    for (ipv6, address) in [(false, "10.6.0.1"), (true, "fd06::1")] {
        let balancer = Balancer::ingress("skep-ingress", ipv6);
        let published = [Frontend::Published(Transport::Tcp, 80), Frontend::Published(Transport::Udp, 53)];
        let service = web(&published, true);
        let mut backends = Backends::new();
        backends.change(&servers.each_ref().map(|server| server.backend(ipv6, Some(8080))), &[]);
        commit(host, |transaction| {
            balancer.create(transaction, Some("br0"));
            balancer.add_service(transaction, &service, &backends);
        });
        let address = address.parse::<IpAddr>().unwrap();
        let to = SocketAddr::new(address, 80);
        is_spread(&tally(60, || connect(&client, to).unwrap().1), &[1, 2]);
        is_spread(&tally(60, || datagram(&client, SocketAddr::new(address, 53)).unwrap()), &[1, 2]);
        is_spread(&tally(60, || connect(host, to).unwrap().1), &[1, 2]);
        // A backend through its own host, back to itself too.
        is_spread(&tally(60, || connect(&servers[0].place, to).unwrap().1), &[1, 2]);
        let listed = host.ruleset();
        for meant in [
            "fib daddr type local meta l4proto . th dport vmap @published",
            r#"oifname "br0" ct status dnat masquerade"#,
        ] {
            assert!(listed.contains(meant), "{meant}: {listed}");
        }
    }
}

#[test]
fn the_listing_of_a_sandbox_and_of_an_ingress() {
    if !root() {
        return;
    }
    let place = Place::new();
    let backend = |last, port| Backend { address: [10, 5, 1, last].into(), port };
    let vip = |last| IpAddr::from([10, 5, 200, last]);
    let mut some = Backends::new();
    some.change(&[backend(1, None), backend(2, None)], &[]);
    let with_ports = Backends::numbered(&[backend(3, Some(8080))]);
    let frontends = [Frontend::Port(vip(2), Transport::Tcp, 80)];
    let sandbox = Balancer::sandbox("skep", false);
    commit(&place, |transaction| {
        sandbox.create(transaction, None);
        let any = Service { number: 1, ..web(&[Frontend::Address(vip(1))], false) };
        sandbox.add_service(transaction, &any, &some);
        let ports = Service { number: 2, name: "api".to_owned(), ..web(&frontends, true) };
        sandbox.add_service(transaction, &ports, &with_ports);
        let down = Service { number: 3, name: "down".to_owned(), ..web(&[Frontend::Address(vip(3))], false) };
        sandbox.add_service(transaction, &down, &Backends::new());
    });
    let ingress = Balancer::ingress("skep-ingress", false);
    commit(&place, |transaction| {
        ingress.create(transaction, Some("ing"));
        let published = Service { number: 0, ..web(&[Frontend::Published(Transport::Tcp, 80)], true) };
        ingress.add_service(transaction, &published, &with_ports);
    });
    assert_eq!(lines(&place.ruleset()), lines(include_str!("balance.nft")));
}
