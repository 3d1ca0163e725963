//! The server on real sockets: UDP, TCP, many sandboxes, and clients that behave badly.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use super::*;
use crate::upstream::upstream_test::{Fake, good, no_name, silent};
use crate::upstream::{Origin, Upstream};
use crate::view::Network;
use crate::zone::{Endpoint, EndpointId, Service, ServiceId, Serving};

/// Loopback sockets with one port number, in place of 127.0.0.11:53 in a namespace.
pub(crate) fn sockets() -> (std::net::UdpSocket, std::net::TcpListener, SocketAddr) {
    loop {
        let udp = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = udp.local_addr().unwrap();
        if let Ok(tcp) = std::net::TcpListener::bind(address) {
            return (udp, tcp, address);
        }
    }
}

/// `web` with a virtual address, `db` with dnsrr and so many tasks.
pub(crate) fn network(tasks: u32) -> Arc<Network> {
    let network = Network::new("one", &[(IpAddr::from([10, 1, 0, 0]), 16)]);
    network.change(|zone| {
        let vip = vec![IpAddr::from([10, 1, 255, 2])];
        zone.put_service(ServiceId([1; 16]), &Service { names: vec!["web".to_owned()], virtual_addresses: vip });
        zone.put_service(ServiceId([2; 16]), &Service { names: vec!["db".to_owned()], virtual_addresses: vec![] });
        (0..tasks).for_each(|task| zone.put_endpoint(endpoint_id(task), &endpoint(task, true)));
    });
    network
}

pub(crate) fn endpoint_id(task: u32) -> EndpointId {
    EndpointId((u128::from(task) << 96 | 7).to_be_bytes())
}

pub(crate) fn endpoint(task: u32, serving: bool) -> Endpoint {
    Endpoint {
        service: Some(ServiceId([2; 16])),
        addresses: vec![Ipv4Addr::from(0x0a01_0010 + task).into()],
        names: vec![format!("db.{task}.q8xnzk5r2v7c1m4t9w3e6y0a{task}")],
        serving: if serving { Serving::Yes } else { Serving::No },
    }
}

fn server() -> Server {
    Server::new(Handle::current(), "/nonexistent/resolv.conf".into())
}

fn serve(server: &Server, id: &str, view: View) -> SocketAddr {
    let (udp, tcp, address) = sockets();
    server.add(id, udp, tcp, view).unwrap();
    address
}

pub(crate) fn query(name: &str, kind: RecordType, id: u16, size: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message.edns = size.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns
    });
    message.to_vec().unwrap()
}

/// Asks over UDP, once. `None`: no answer for ten seconds.
async fn udp(server: SocketAddr, query: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(query).await.unwrap();
    let mut buffer = vec![0; 65_536];
    let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.ok()?.unwrap();
    Some(Message::from_vec(&buffer[..length]).unwrap())
}

async fn ask(server: SocketAddr, name: &str) -> Message {
    udp(server, &query(name, RecordType::A, 5, None)).await.unwrap()
}

fn first(message: &Message) -> Option<IpAddr> {
    message.answers.first().and_then(|record| record.data.ip_addr())
}

/// Asks these over one connection, sending all before reading anything.
fn tcp(server: SocketAddr, queries: &[Vec<u8>]) -> Vec<Message> {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for query in queries {
        stream.write_all(&(query.len() as u16).to_be_bytes()).unwrap();
        stream.write_all(query).unwrap();
    }
    queries.iter().map(|_| receive(&mut stream)).collect()
}

fn receive(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).unwrap();
    Message::from_vec(&reply).unwrap()
}

/// Whether the other end has closed it.
fn closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    !matches!(stream.read(&mut [0]), Ok(1..))
}

const MANY: tokio::runtime::RuntimeFlavor = tokio::runtime::RuntimeFlavor::MultiThread;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_answered_over_udp_and_tcp() {
    assert_eq!(Handle::current().runtime_flavor(), MANY);
    let server = server();
    let address = serve(&server, "a", View::new(vec![network(300)]));
    assert_eq!(first(&ask(address, "web").await), Some([10, 1, 255, 2].into()));
    assert_eq!(ask(address, "nobody").await.metadata.response_code, ResponseCode::NXDomain);
    let cut = ask(address, "db").await;
    assert!(cut.metadata.truncation && cut.answers.len() == 30);
    let wide = udp(address, &query("db", RecordType::A, 5, Some(4096))).await.unwrap();
    assert!(wide.metadata.truncation && wide.answers.len() == (4096 - 31) / 16 && wide.edns.is_some());
    let queries = ["db", "web", "nobody"].map(|name| query(name, RecordType::A, 6, None));
    let replies = tokio::task::spawn_blocking(move || tcp(address, &queries)).await.unwrap();
    let counts: Vec<usize> = replies.iter().map(|reply| reply.answers.len()).collect();
    assert_eq!(counts, [300, 1, 0]);
    assert!(replies.iter().all(|reply| !reply.metadata.truncation && reply.metadata.id == 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_network_is_seen_by_all_its_sandboxes_at_once_and_by_no_other() {
    let server = server();
    let (shared, other) = (network(0), network(0));
    let on = [
        serve(&server, "a", View::new(vec![Arc::clone(&shared)])),
        serve(&server, "b", View::new(vec![Arc::clone(&shared)])),
    ];
    let off = serve(&server, "c", View::new(vec![other]));
    for (serving, count) in [(true, 1), (false, 0), (true, 1)] {
        shared.change(|zone| zone.put_endpoint(endpoint_id(3), &endpoint(3, serving)));
        for address in on {
            assert_eq!(ask(address, "db").await.answers.len(), count);
        }
        assert_eq!(ask(off, "db").await.answers.len(), 0);
    }
    assert!(server.update("c", View::new(vec![shared])));
    assert_eq!(ask(off, "db").await.answers.len(), 1);
    assert!(!server.update("d", View::default()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_sandbox_leaves_its_sockets_free() {
    let server = server();
    let mute = Fake::start(silent, None);
    let view = View::new(vec![network(1)]).upstream(Upstream::servers(&[mute.address], Origin::Host));
    let address = serve(&server, "a", view);
    // A connection that rests and a question that is under way do not keep it.
    let mut resting = TcpStream::connect(address).unwrap();
    let mut asking = TcpStream::connect(address).unwrap();
    let question = query("example.org", RecordType::A, 1, None);
    asking.write_all(&(question.len() as u16).to_be_bytes()).unwrap();
    asking.write_all(&question).unwrap();
    let client = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.send_to(&question, address).unwrap();
    until("both questions are forwarded", || mute.asked.load(std::sync::atomic::Ordering::SeqCst) >= 2).await;
    let (udp, tcp, _) = sockets();
    assert!(matches!(server.add("a", udp, tcp, View::default()), Err(ServerError::Taken(_))));
    assert_eq!(server.ids(), ["a"]);
    let start = Instant::now();
    assert!(server.remove("a").await);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(closed(&mut resting) && closed(&mut asking));
    std::net::UdpSocket::bind(address).unwrap();
    assert!(TcpStream::connect(address).is_err());
    assert!(!server.remove("a").await && server.ids().is_empty());
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hosts_name_servers_are_those_of_its_file() {
    let (fake, dir) = (Fake::start(no_name, None), tempfile::tempdir().unwrap());
    let path = dir.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 127.0.0.254\n").unwrap();
    let server = Server::new(Handle::current(), path);
    let view = View::new(vec![network(1)]).search(&["test".to_owned()]);
    let host = serve(&server, "host", view.clone().upstream(Upstream::Host));
    let own = serve(&server, "own", view.clone().upstream(Upstream::servers(&[fake.address], Origin::Host)));
    let none = serve(&server, "none", view);
    // Nobody listens at 127.0.0.254:53, so the question went to the file's server and failed.
    assert_eq!(ask(host, "example.org").await.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(ask(own, "example.org").await.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(ask(none, "example.org").await.metadata.response_code, ResponseCode::NXDomain);
    for address in [host, own, none] {
        assert_eq!(first(&ask(address, "web.test").await), Some([10, 1, 255, 2].into()), "not known outside");
    }
    let before = fake.asked.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(before, 2);
    ask(own, "web").await;
    ask(own, "tasks.web").await;
    assert_eq!(fake.asked.load(std::sync::atomic::Ordering::SeqCst), before, "ours do not leave");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_domains_own_hosts_come_first() {
    let (fake, server) = (Fake::start(good, None), server());
    let view = View::new(vec![network(1)]).search(&["test".to_owned()]);
    let address = serve(&server, "a", view.upstream(Upstream::servers(&[fake.address], Origin::Host)));
    assert_eq!(first(&ask(address, "web.test").await), Some([192, 0, 2, 1].into()));
    assert_eq!(first(&ask(address, "web").await), Some([10, 1, 255, 2].into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_names_work_while_the_name_servers_are_gone() {
    let (mute, server) = (Fake::start(silent, None), server());
    let view = View::new(vec![network(1)]).search(&["test".to_owned()]);
    let address = serve(&server, "a", view.upstream(Upstream::servers(&[mute.address], Origin::Host)));
    let start = Instant::now();
    assert_eq!(first(&ask(address, "web.test").await), Some([10, 1, 255, 2].into()));
    assert!(start.elapsed() < Duration::from_millis(2400), "before musl asks again: {:?}", start.elapsed());
    assert_eq!(ask(address, "example.org").await.metadata.response_code, ResponseCode::ServFail);
}

/// One that forwards all it may to a mute server, floods, and holds connections, while another is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_sandbox_harms_itself_only() {
    let (mute, server) = (Fake::start(silent, None), server());
    let upstream = Upstream::servers(&[mute.address], Origin::Host);
    let hostile = serve(&server, "hostile", View::new(vec![network(1)]).upstream(upstream));
    let good = serve(&server, "good", View::new(vec![network(1)]));
    // More than its share of connections: those above it are closed at once.
    let mut held: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(hostile).unwrap()).collect();
    let mut open = 0;
    for stream in &mut held {
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let waiting = stream.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        open += usize::from(waiting);
    }
    assert_eq!(open, 32);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flood = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let questions =
                [query("example.org", RecordType::A, 1, None), query("db", RecordType::A, 1, None), vec![7; 900]];
            let mut sent = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                for question in &questions {
                    sent += u64::from(socket.send_to(question, hostile).is_ok());
                }
            }
            sent
        }
    });
    until("its questions go out", || mute.asked.load(std::sync::atomic::Ordering::SeqCst) > 50).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..200 {
        let start = Instant::now();
        assert!(first(&ask(good, "web").await).is_some());
        slowest = slowest.max(start.elapsed());
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let sent = flood.join().unwrap();
    eprintln!("slowest answer beside {sent} flooded questions: {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let asked = mute.asked.load(std::sync::atomic::Ordering::SeqCst);
    // Its share at a time, each asked twice in 4.5 s; the flood takes less than ten.
    assert!(asked <= crate::sandbox::FORWARDED_AT_ONCE * 2 * 3, "{asked} of {sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rude_connections_are_closed() {
    let server = server();
    let address = serve(&server, "a", View::new(vec![network(1)]));
    tokio::task::spawn_blocking(move || {
        let mut long = TcpStream::connect(address).unwrap();
        let mut oversized = query("web", RecordType::A, 8, None);
        // What follows must not be taken for questions.
        oversized.resize(20_000, 1);
        long.write_all(&20_000_u16.to_be_bytes()).unwrap();
        long.write_all(&oversized).unwrap();
        assert_eq!(receive(&mut long).metadata.response_code, ResponseCode::FormErr);
        assert!(closed(&mut long));
        // A response is no query.
        let mut response = TcpStream::connect(address).unwrap();
        let mut octets = query("web", RecordType::A, 8, None);
        octets[2] |= 0x80;
        response.write_all(&(octets.len() as u16).to_be_bytes()).unwrap();
        response.write_all(&octets).unwrap();
        assert!(closed(&mut response));
        // Half a question.
        let mut half = TcpStream::connect(address).unwrap();
        half.write_all(&[0]).unwrap();
        half.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let start = Instant::now();
        assert_eq!(half.read(&mut [0]).unwrap(), 0);
        assert!(start.elapsed() > Duration::from_secs(8), "{:?}", start.elapsed());
    })
    .await
    .unwrap();
}

/// Another implementation's client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_understands_the_answers() {
    if Command::new("dig").arg("-v").output().is_err() {
        eprintln!("skipped: dig is not installed (Debian: bind9-dnsutils)");
        return;
    }
    let (fake, server) = (Fake::start(good, None), server());
    let upstream = Upstream::servers(&[fake.address], Origin::Host);
    let address = serve(&server, "a", View::new(vec![network(300)]).upstream(upstream));
    tokio::task::spawn_blocking(move || {
        let dig = |arguments: &[&str]| {
            let port = address.port().to_string();
            let output =
                Command::new("dig").args(["@127.0.0.1", "-p", &port, "+tries=1"]).args(arguments).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success() && !text.contains("WARNING") && !text.contains("Warning"), "{text}");
            text
        };
        let text = dig(&["web", "A"]);
        assert!(text.contains("status: NOERROR") && text.contains("web.\t\t\t0\tIN\tA\t10.1.255.2"), "{text}");
        assert!(text.contains("EDNS: version: 0") && text.contains("flags: qr aa rd ra;"), "{text}");
        assert!(dig(&["+tcp", "web"]).contains("10.1.255.2"));
        let text = dig(&["web", "AAAA"]);
        assert!(text.contains("status: NOERROR") && text.contains("ANSWER: 0"), "{text}");
        // It comes back over TCP by itself.
        let text = dig(&["tasks.db", "+bufsize=512"]);
        assert!(text.contains("ANSWER: 300") && text.contains("(TCP)"), "{text}");
        assert!(dig(&["tasks.db", "+ignore", "+noedns"]).contains("flags: qr aa tc rd ra;"));
        assert!(dig(&["-x", "10.1.0.16"]).contains("PTR\tdb.0.q8xnzk5r2v7c1m4t9w3e6y0a0."));
        assert!(dig(&["-x", "10.1.99.99"]).contains("status: NXDOMAIN"));
        assert!(dig(&["example.org", "TYPE65280"]).contains("192.0.2.1"));
        assert!(dig(&["web", "+opcode=NOTIFY"]).contains("status: NOTIMP"));
        assert!(dig(&["web", "+edns=1", "+noednsnegotiation"]).contains("status: BADVERS"));
        assert!(dig(&["version.bind", "CH", "TXT"]).contains("status: REFUSED"));
    })
    .await
    .unwrap();
}
