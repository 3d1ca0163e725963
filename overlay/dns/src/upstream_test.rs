//! Forwarding to name servers that answer, lie, cut, refuse or stay silent.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::AtomicUsize;
use std::thread;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;
use crate::message::{Parsed, parse};

/// What a fake name server makes of a query: nothing, or octets to send back.
type Behaviour = fn(Message) -> Vec<Vec<u8>>;

/// Name servers on loopback sockets: real sockets, and as rude as they come.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Arc<AtomicUsize>,
}

impl Fake {
    /// Its threads live as long as the test's process.
    pub(crate) fn start(udp: Behaviour, tcp: Option<Behaviour>) -> Self {
        // TCP and UDP ports are apart: the same number may be taken in one of them.
        let (socket, listener) = loop {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = socket.local_addr().unwrap();
            match (&tcp, TcpListener::bind(address)) {
                (None, _) => break (socket, None),
                (Some(_), Ok(listener)) => break (socket, Some(listener)),
                (Some(_), Err(_)) => {}
            }
        };
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::SeqCst);
                for reply in udp(Message::from_vec(&buffer[..length]).unwrap()) {
                    socket.send_to(&reply, client).unwrap();
                }
            }
        });
        if let (Some(listener), Some(behaviour)) = (listener, tcp) {
            thread::spawn(move || serve_tcp(&listener, behaviour));
        }
        Self { address, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn serve_tcp(listener: &TcpListener, behaviour: Behaviour) {
    use std::io::{Read, Write};
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query).unwrap();
        for reply in behaviour(Message::from_vec(&query).unwrap()) {
            stream.write_all(&(reply.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&reply).unwrap();
        }
    }
}

fn respond(query: &Message, code: ResponseCode, addresses: &[[u8; 4]]) -> Message {
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.metadata.response_code = code;
    message.add_query(query.queries[0].clone());
    for &address in addresses {
        let data = RData::A(A(Ipv4Addr::from(address)));
        message.add_answer(Record::from_rdata(query.queries[0].name().clone(), 60, data));
    }
    message
}

fn octets(message: &Message) -> Vec<Vec<u8>> {
    vec![message.to_vec().unwrap()]
}

pub(crate) fn good(query: Message) -> Vec<Vec<u8>> {
    octets(&respond(&query, ResponseCode::NoError, &[[192, 0, 2, 1]]))
}

pub(crate) fn silent(_: Message) -> Vec<Vec<u8>> {
    Vec::new()
}

pub(crate) fn no_name(query: Message) -> Vec<Vec<u8>> {
    octets(&respond(&query, ResponseCode::NXDomain, &[]))
}

fn failing(query: Message) -> Vec<Vec<u8>> {
    octets(&respond(&query, ResponseCode::ServFail, &[]))
}

fn truncated(query: Message) -> Vec<Vec<u8>> {
    let mut message = respond(&query, ResponseCode::NoError, &[]);
    message.metadata.truncation = true;
    octets(&message)
}

fn long(query: Message) -> Vec<Vec<u8>> {
    octets(&respond(&query, ResponseCode::NoError, &[[192, 0, 2, 2]; 500]))
}

/// Answers with another id, to another question and with noise first, then rightly.
fn forged_first(query: Message) -> Vec<Vec<u8>> {
    let mut id = respond(&query, ResponseCode::NoError, &[[6, 6, 6, 6]]);
    id.metadata.id ^= 1;
    let mut question = respond(&query, ResponseCode::NoError, &[[6, 6, 6, 6]]);
    question.queries[0].name = Name::from_ascii("evil.test.").unwrap();
    let mut forged = [octets(&id), octets(&question), vec![vec![0; 40]], vec![vec![]]].concat();
    forged.extend(good(query));
    forged
}

fn request(transport: Transport) -> Arc<Request> {
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A));
    match parse(&message.to_vec().unwrap(), transport) {
        Parsed::Request(request) => Arc::new(request),
        other => panic!("{other:?}"),
    }
}

fn servers(addresses: &[SocketAddr]) -> Arc<NameServers> {
    Arc::new(NameServers::new(addresses, Origin::Host))
}

async fn asked(servers: &Arc<NameServers>, transport: Transport) -> Option<Message> {
    let request = request(transport);
    let said = ask(Arc::clone(servers), Arc::clone(&request)).await?;
    Some(Message::from_vec(&request.relay(said)).unwrap())
}

/// A loopback port where nobody listens.
fn nobody() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn an_answer_comes_back_with_the_clients_id() {
    let fake = Fake::start(good, None);
    let answer = asked(&servers(&[fake.address]), Transport::Udp).await.unwrap();
    assert_eq!((answer.metadata.id, answer.answers.len()), (9, 1));
    assert_eq!(answer.answers[0].ttl, 60, "others' answers are theirs");
}

#[tokio::test]
async fn forged_answers_are_passed_over() {
    let fake = Fake::start(forged_first, None);
    let answer = asked(&servers(&[fake.address]), Transport::Udp).await.unwrap();
    assert_eq!(answer.answers[0].data.ip_addr(), Some([192, 0, 2, 1].into()));
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails_or_is_gone() {
    let (bad, fine) = (Fake::start(failing, None), Fake::start(good, None));
    let start = Instant::now();
    let answer = asked(&servers(&[nobody(), bad.address, fine.address]), Transport::Udp).await.unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(start.elapsed() < PATIENCE, "without waiting: {:?}", start.elapsed());
    assert_eq!((bad.asked(), fine.asked()), (1, 1));
    // What is wrong is told when nothing better comes; a name that does not exist is an answer.
    let answer = asked(&servers(&[bad.address, nobody()]), Transport::Udp).await.unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let absent = Fake::start(no_name, None);
    let answer = asked(&servers(&[absent.address, fine.address]), Transport::Udp).await.unwrap();
    assert_eq!((answer.metadata.response_code, fine.asked()), (ResponseCode::NXDomain, 1));
}

#[tokio::test]
async fn a_silent_server_costs_its_patience_once() {
    let (mute, fine) = (Fake::start(silent, None), Fake::start(good, None));
    let both = servers(&[mute.address, fine.address]);
    let start = Instant::now();
    assert!(asked(&both, Transport::Udp).await.is_some());
    assert!((PATIENCE..PATIENCE * 2).contains(&start.elapsed()), "{:?}", start.elapsed());
    let start = Instant::now();
    assert!(asked(&both, Transport::Udp).await.is_some());
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!((mute.asked(), fine.asked()), (1, 2));
}

#[tokio::test]
async fn a_slow_answer_still_counts() {
    /// Answers nothing but the first query, and that late.
    fn slow(query: Message) -> Vec<Vec<u8>> {
        static FIRST: AtomicUsize = AtomicUsize::new(0);
        if FIRST.fetch_add(1, Ordering::SeqCst) > 0 {
            return Vec::new();
        }
        thread::sleep(PATIENCE + PATIENCE / 2);
        good(query)
    }
    let fake = Fake::start(slow, None);
    assert!(asked(&servers(&[fake.address]), Transport::Udp).await.is_some());
}

#[tokio::test]
async fn in_the_end_nobody_answered() {
    let mute = Fake::start(silent, None);
    let start = Instant::now();
    assert!(asked(&servers(&[mute.address]), Transport::Udp).await.is_none());
    assert!(start.elapsed() >= DEADLINE && start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(mute.asked(), ROUNDS);
    assert!(asked(&servers(&[]), Transport::Udp).await.is_none());
    let start = Instant::now();
    assert!(asked(&servers(&[nobody()]), Transport::Udp).await.is_none());
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_cut_answer_is_fetched_over_tcp_for_those_who_take_it() {
    let fake = Fake::start(truncated, Some(long));
    let list = servers(&[fake.address]);
    let over_udp = asked(&list, Transport::Udp).await.unwrap();
    assert!(over_udp.metadata.truncation && over_udp.answers.is_empty(), "the client comes back over TCP");
    let over_tcp = asked(&list, Transport::Tcp).await.unwrap();
    assert_eq!((over_tcp.metadata.truncation, over_tcp.answers.len()), (false, 500));
    // A server without TCP: what it said is all there is.
    let short = Fake::start(truncated, None);
    assert!(asked(&servers(&[short.address]), Transport::Tcp).await.unwrap().metadata.truncation);
}

#[test]
fn a_sandbox_is_not_asked_to_ask_itself() {
    let ours: SocketAddr = "127.0.0.11:53".parse().unwrap();
    let other: SocketAddr = "192.0.2.1:53".parse().unwrap();
    assert_eq!(NameServers::new(&[ours, other], Origin::Namespace("/x".into())).addresses(), [other]);
    // In the host's namespace it is somebody else.
    assert_eq!(NameServers::new(&[ours], Origin::Host).addresses(), [ours]);
}

/// Makes a network namespace with loopback up, in which a server answers; calls it with the namespace's path.
fn in_namespace(test: impl FnOnce(std::path::PathBuf, SocketAddr)) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a network namespace takes root");
        return;
    }
    let (send, receive) = std::sync::mpsc::channel();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    let holder = thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        // The fake's threads are started from here, so they are in the namespace too.
        let fake = Fake::start(truncated, Some(long));
        let path = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
        send.send((path, fake.address)).unwrap();
        let _ = finished.recv();
    });
    let (path, address) = receive.recv().unwrap();
    test(path.into(), address);
    drop(finish);
    holder.join().unwrap();
}

#[test]
fn a_sandboxs_own_servers_are_asked_from_inside_it() {
    in_namespace(|path, address| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let inside = Arc::new(NameServers::new(&[address], Origin::Namespace(path)));
            assert_eq!(asked(&inside, Transport::Tcp).await.unwrap().answers.len(), 500);
            assert!(asked(&inside, Transport::Udp).await.unwrap().metadata.truncation);
            // From the host nobody is there.
            assert!(asked(&servers(&[address]), Transport::Udp).await.is_none());
            let gone = Arc::new(NameServers::new(&[address], Origin::Namespace("/does/not/exist".into())));
            assert!(asked(&gone, Transport::Udp).await.is_none());
        });
    });
}
