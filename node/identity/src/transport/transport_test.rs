//! Real handshakes over loopback: who gets in, who does not, and who is thrown out.
#![allow(clippy::unwrap_used)]

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use skep_proto::id::{ClientId, NodeId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::Status;
use tonic::transport::Channel;

use crate::deny::MAX_OF_NODE;
use crate::testing::{DAY, HOUR, Host, ask, cluster, grant, live, member, member_since, now, soon, until};
use crate::transport::{AcceptLimits, ChannelOptions, Refusal, channel, connect, connect_stream, refusal};
use crate::{
    Anonymous, ClientCredentials, ClientGrant, ClientKey, ClientTls, Credentials, DenyList, Expected, JoinError,
    JoinToken, LiveCredentials, NextRoot, NodeKey, Role, RootBundle, RootCa, RootMismatch, TokenSecret, chain,
    join_channel, pem,
};

fn call(host: &Host, credentials: &LiveCredentials, expected: Expected) -> Channel {
    let tls = ClientTls::member(credentials, &DenyList::new(), expected);
    channel(host.addrs(), tls, ChannelOptions::NODES)
}

fn refused(result: Result<String, Status>) -> (Option<Refusal>, String) {
    let status = result.unwrap_err();
    let mut text = status.to_string();
    let mut cause = status.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    (refusal(&status), text)
}

/// A client that presents `credentials` while it trusts `roots`: no honest node is made like that.
fn impostor(credentials: &Credentials, roots: &RootBundle) -> ClientTls {
    let mut tls = ClientTls::joining(roots.clone());
    let mut config = ClientConfig::builder_with_provider(chain::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots.store().clone())
        .with_client_auth_cert(credentials.chain().to_vec(), credentials.key().to_rustls())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    tls.config = Arc::new(config);
    tls
}

#[tokio::test]
async fn members_are_known_by_their_certificates() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    let worker = call(&host, &live(&ca, 2, Role::Worker), Expected::manager());
    assert_eq!(ask(&worker, "who").await.unwrap(), "worker 2");
    let manager = call(&host, &live(&ca, 3, Role::Manager), Expected::manager_node(NodeId::new(1)));
    assert_eq!(ask(&manager, "who").await.unwrap(), "manager 3");
    assert_eq!(host.deny.connections(NodeId::new(2)), 1);
    drop(worker);
    until(|| host.deny.connections(NodeId::new(2)) == 0).await;
}

#[tokio::test]
async fn without_a_certificate_a_caller_is_anonymous() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    let joining = channel(host.addrs(), ClientTls::joining(ca.bundle()), ChannelOptions::NODES);
    assert_eq!(ask(&joining, "who").await.unwrap(), "anonymous 127.0.0.1");
}

#[tokio::test]
async fn without_a_certificate_a_closed_port_refuses() {
    let ca = cluster(1);
    let credentials = live(&ca, 1, Role::Manager);
    let host = Host::start_with(&credentials, Anonymous::Refused, AcceptLimits::default(), String::new()).await;
    let joining = channel(host.addrs(), ClientTls::joining(ca.bundle()), ChannelOptions::NODES);
    let (why, text) = refused(ask(&joining, "who").await);
    assert_eq!(why, Some(Refusal::CertificateRequired), "{text}");
    assert!(host.asked().is_empty());
}

#[tokio::test]
async fn a_foreign_cluster_is_refused_by_both_sides() {
    let (ours, theirs) = (cluster(1), cluster(2));
    let host = Host::start(&live(&ours, 1, Role::Manager)).await;
    let stranger = live(&theirs, 2, Role::Manager);
    let (why, text) = refused(ask(&call(&host, &stranger, Expected::manager()), "who").await);
    assert_eq!(why, Some(Refusal::Peer), "{text}");
    assert!(text.contains("it belongs to another cluster"), "{text}");

    let tls = impostor(&stranger.current(), &ours.bundle());
    let (why, text) = refused(ask(&channel(host.addrs(), tls, ChannelOptions::NODES), "who").await);
    assert_eq!(why, Some(Refusal::OtherCluster), "{text}");
    assert!(host.asked().is_empty());
}

#[tokio::test]
async fn an_expired_certificate_is_refused_after_the_tolerance() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    let just = LiveCredentials::new(member_since(&ca, 2, Role::Worker, now() - HOUR * 3 / 2, HOUR));
    assert_eq!(ask(&call(&host, &just, Expected::manager()), "who").await.unwrap(), "worker 2");
    let long = LiveCredentials::new(member_since(&ca, 3, Role::Worker, now() - 3 * HOUR, HOUR));
    let (why, text) = refused(ask(&call(&host, &long, Expected::manager()), "who").await);
    assert_eq!(why, Some(Refusal::Expired), "{text}");
    assert_eq!(host.asked(), ["who"]);
}

#[tokio::test]
async fn another_role_or_node_than_called_is_refused() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Worker)).await;
    let caller = live(&ca, 2, Role::Manager);
    let (why, text) = refused(ask(&call(&host, &caller, Expected::manager()), "who").await);
    assert_eq!(why, Some(Refusal::Peer), "{text}");
    assert!(text.contains("expected a manager there"), "{text}");
    let (why, text) = refused(ask(&call(&host, &caller, Expected::node(NodeId::new(9))), "who").await);
    assert_eq!(why, Some(Refusal::Peer), "{text}");
    assert!(text.contains("expected node"), "{text}");
    let tls = ClientTls::joining(ca.bundle());
    assert!(connect(host.addrs(), tls, ChannelOptions::NODES).await.is_err(), "a worker admits nobody");
    assert!(host.asked().is_empty());
    assert_eq!(ask(&call(&host, &caller, Expected::node(NodeId::new(1))), "who").await.unwrap(), "manager 2");
}

#[tokio::test]
async fn a_removed_node_is_thrown_out_and_stays_out() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    let (bad, good) = (live(&ca, 2, Role::Worker), live(&ca, 3, Role::Worker));
    let (bad, good) = (call(&host, &bad, Expected::manager()), call(&host, &good, Expected::manager()));
    assert_eq!(ask(&good, "who").await.unwrap(), "worker 3");
    let held = {
        let bad = bad.clone();
        tokio::spawn(async move { ask(&bad, "hold").await })
    };
    until(|| host.asked().contains(&"hold".to_owned())).await;

    let removed = Instant::now();
    assert_eq!(host.deny.deny(NodeId::new(2)), 1);
    assert!(soon(held).await.unwrap().is_err());
    until(|| host.asked().contains(&"released".to_owned())).await;
    assert!(removed.elapsed() < Duration::from_secs(2), "{:?}", removed.elapsed());
    until(|| host.deny.connections(NodeId::new(2)) == 0).await;

    let (why, text) = refused(ask(&bad, "who").await);
    assert_eq!(why, Some(Refusal::Removed), "{text}");
    assert_eq!(ask(&good, "who").await.unwrap(), "worker 3");
    assert_eq!(host.deny.connections(NodeId::new(3)), 1, "the good connection was not touched");

    assert_eq!(host.deny.set([]), 0);
    assert_eq!(ask(&bad, "who").await.unwrap(), "worker 2");
}

#[tokio::test]
async fn a_connection_to_a_removed_manager_is_closed_too() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    let deny = DenyList::new();
    let tls = ClientTls::member(&live(&ca, 2, Role::Manager), &deny, Expected::manager());
    let channel = channel(host.addrs(), tls, ChannelOptions::MANAGERS);
    assert_eq!(ask(&channel, "who").await.unwrap(), "manager 2");
    assert_eq!(deny.set([NodeId::new(1)]), 1);
    until(|| deny.connections(NodeId::new(1)) == 0).await;
    let (why, text) = refused(ask(&channel, "who").await);
    assert_eq!(why, Some(Refusal::Peer), "{text}");
    assert!(text.contains("that node was removed"), "{text}");
}

#[tokio::test]
async fn connections_end_with_their_certificates() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    let worker = live(&ca, 2, Role::Worker);
    let channel = call(&host, &worker, Expected::manager());
    assert_eq!(ask(&channel, "who").await.unwrap(), "worker 2");
    let end = worker.current().not_after() + chain::CLOCK_TOLERANCE;
    assert_eq!(host.deny.close_expired(end), 0);
    assert_eq!(host.deny.close_expired(end + Duration::from_secs(1)), 1);
    until(|| host.deny.connections(NodeId::new(2)) == 0).await;
    assert_eq!(ask(&channel, "who").await.unwrap(), "worker 2", "it comes back, and is checked again");
}

#[tokio::test]
async fn connections_end_with_the_root_that_they_led_to() {
    let old = cluster(1);
    let next = NextRoot::generate(&old, now()).unwrap();
    let (new, intermediate) = (next.root, pem::certificates(&next.cross_signed_pem).unwrap());
    let both = RootBundle::new([old.cert().clone(), new.cert().clone()]).unwrap();
    let server = LiveCredentials::new(member(&old, 1, Role::Manager).with_roots(both.clone()).unwrap());
    let host = Host::start(&server).await;
    let dial = |credentials: Credentials| {
        let credentials = LiveCredentials::new(credentials.with_roots(both.clone()).unwrap());
        call(&host, &credentials, Expected::manager())
    };
    // One has not renewed; one has, and shows what both believe; one shows the new certificate alone.
    let (stale, fresh) = (dial(member(&old, 2, Role::Worker)), dial(member(&new, 4, Role::Worker)));
    let key = NodeKey::generate().unwrap();
    let issued = new.issue(&key.signing_request().unwrap(), &grant(3, Role::Worker), now()).unwrap();
    let chain_pem = issued.chain_pem + &pem::encode_certificates(&intermediate);
    let crossed = dial(Credentials::new(key, &chain_pem, both.clone()).unwrap());
    let person = call_as(&host, &person(&old, 9));
    for channel in [&stale, &fresh, &crossed, &person] {
        ask(channel, "who").await.unwrap();
    }
    let joining = channel(host.addrs(), ClientTls::joining(both.clone()), ChannelOptions::NODES);
    ask(&joining, "who").await.unwrap();
    assert_eq!(host.deny.untrusted(&both), []);
    let held = {
        let stale = stale.clone();
        tokio::spawn(async move { ask(&stale, "hold").await })
    };
    until(|| host.asked().contains(&"hold".to_owned())).await;

    server.replace(member(&new, 1, Role::Manager));
    let untrusted = host.deny.untrusted(&new.bundle());
    assert_eq!(untrusted.len(), 2, "the node and the person of the old root");
    assert_eq!(host.deny.close_each(&untrusted), 2);
    assert_eq!(host.deny.close_each(&untrusted), 0, "closed once only");
    assert!(soon(held).await.unwrap().is_err());
    until(|| host.deny.connections(NodeId::new(2)) == 0).await;
    let (why, text) = refused(ask(&stale, "who").await);
    assert_eq!(why, Some(Refusal::OtherCluster), "{text}");
    assert!(ask(&person, "who").await.is_err());
    assert_eq!(ask(&crossed, "who").await.unwrap(), "worker 3");
    assert_eq!(ask(&fresh, "who").await.unwrap(), "worker 4");
    assert_eq!([3, 4].map(|node| host.deny.connections(NodeId::new(node))), [1, 1], "they were not touched");
}

#[tokio::test]
async fn renewed_certificates_are_used_by_the_next_handshake() {
    let ca = cluster(1);
    let (server, client) = (live(&ca, 1, Role::Worker), live(&ca, 2, Role::Worker));
    let host = Host::start(&server).await;
    let before = call(&host, &client, Expected::node(NodeId::new(1)));
    assert_eq!(ask(&before, "who").await.unwrap(), "worker 2");

    server.replace(member(&ca, 1, Role::Manager));
    client.replace(member(&ca, 2, Role::Manager));
    // The listener and the client's configuration are the same objects as before.
    let after = call(&host, &client, Expected::manager());
    assert_eq!(ask(&after, "who").await.unwrap(), "manager 2");
    assert_eq!(ask(&before, "who").await.unwrap(), "worker 2", "a live connection stays what it was");
    assert_eq!(host.deny.close(NodeId::new(2)), 2);
    until(|| host.deny.connections(NodeId::new(2)) == 0).await;
    assert_eq!(ask(&before, "who").await.unwrap(), "manager 2", "and returns as what it has become");
}

#[tokio::test]
async fn silent_clients_hold_up_nobody() {
    let ca = cluster(1);
    let limits = AcceptLimits { handshake_timeout: DAY, unfinished: 4, ..AcceptLimits::default() };
    let host = Host::start_with(&live(&ca, 1, Role::Manager), Anonymous::Allowed, limits, String::new()).await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(host.addr).await.unwrap());
    }
    let worker = call(&host, &live(&ca, 2, Role::Worker), Expected::manager());
    assert_eq!(ask(&worker, "who").await.unwrap(), "worker 2");
    // The oldest were given up: the bound holds although no handshake ever times out.
    let mut byte = [0];
    for stream in &mut silent[..28] {
        assert!(matches!(soon(stream.read(&mut byte)).await, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn a_silent_client_is_hung_up_on() {
    let ca = cluster(1);
    let limits = AcceptLimits { handshake_timeout: Duration::from_millis(50), ..AcceptLimits::default() };
    let host = Host::start_with(&live(&ca, 1, Role::Manager), Anonymous::Allowed, limits, String::new()).await;
    let mut silent = TcpStream::connect(host.addr).await.unwrap();
    silent.write_all(&[22, 3, 1]).await.unwrap();
    assert!(matches!(soon(silent.read(&mut [0])).await, Ok(0) | Err(_)));
}

/// A member's TLS connection that says nothing.
async fn silent_member(host: &Host, tls: &ClientTls) -> tokio_rustls::client::TlsStream<TcpStream> {
    let stream = TcpStream::connect(host.addr).await.unwrap();
    let name = ServerName::try_from("skep-manager").unwrap();
    soon(tokio_rustls::TlsConnector::from(Arc::clone(&tls.config)).connect(name, stream)).await.unwrap()
}

/// Until the other side has hung up.
async fn hung_up(mut stream: tokio_rustls::client::TlsStream<TcpStream>) {
    soon(async { while !matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)) {} }).await;
}

#[tokio::test]
async fn a_member_that_never_speaks_is_hung_up_on() {
    let ca = cluster(1);
    let limits = AcceptLimits { preface_timeout: Duration::from_millis(50), ..AcceptLimits::default() };
    let host = Host::start_with(&live(&ca, 1, Role::Manager), Anonymous::Allowed, limits, String::new()).await;
    let tls = impostor(&member(&ca, 2, Role::Worker), &ca.bundle());
    hung_up(silent_member(&host, &tls).await).await;
    // Nor does it help to begin and never end.
    let mut slow = silent_member(&host, &tls).await;
    slow.write_all(b"PRI * HTTP/2.0").await.unwrap();
    hung_up(slow).await;
    until(|| host.deny.connections(NodeId::new(2)) == 0).await;
    // Who has spoken may be silent for as long as keepalive finds it there.
    let honest = call(&host, &live(&ca, 3, Role::Worker), Expected::manager());
    assert_eq!(ask(&honest, "who").await.unwrap(), "worker 3");
    hung_up(silent_member(&host, &tls).await).await;
    assert_eq!(host.deny.connections(NodeId::new(3)), 1);
    assert_eq!(ask(&honest, "who").await.unwrap(), "worker 3");
}

#[tokio::test]
async fn a_flood_of_one_members_connections_ends_its_own_oldest_alone() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    let good = call(&host, &live(&ca, 3, Role::Worker), Expected::manager());
    assert_eq!(ask(&good, "who").await.unwrap(), "worker 3");
    let tls = impostor(&member(&ca, 2, Role::Worker), &ca.bundle());
    let mut silent = std::collections::VecDeque::new();
    for _ in 0..MAX_OF_NODE + 8 {
        silent.push_back(silent_member(&host, &tls).await);
    }
    for oldest in silent.drain(..8) {
        hung_up(oldest).await;
    }
    until(|| host.deny.connections(NodeId::new(2)) == MAX_OF_NODE).await;
    // The node itself is let in all the same, whatever it left behind.
    let back = call(&host, &live(&ca, 2, Role::Worker), Expected::manager());
    assert_eq!(ask(&back, "who").await.unwrap(), "worker 2");
    assert_eq!(ask(&good, "who").await.unwrap(), "worker 3");
    assert_eq!(host.deny.connections(NodeId::new(3)), 1, "the good connection was not touched");
}

#[tokio::test]
async fn garbage_is_survived() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0; 4096], &[0x16, 3, 3, 0xff, 0xff]] {
        let mut stream = TcpStream::connect(host.addr).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let _ = soon(stream.read(&mut [0; 64])).await;
    }
    let worker = call(&host, &live(&ca, 2, Role::Worker), Expected::manager());
    assert_eq!(ask(&worker, "who").await.unwrap(), "worker 2");
}

#[tokio::test]
async fn sessions_are_never_resumed() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    // This client would resume: rustls' default keeps 256 sessions.
    let tls = impostor(&member(&ca, 2, Role::Worker), &ca.bundle());
    for _ in 0..3 {
        let stream = TcpStream::connect(host.addr).await.unwrap();
        let name = ServerName::try_from("skep-manager").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls.config));
        let mut stream = soon(connector.connect(name, stream)).await.unwrap();
        let mut settings = [0; 9];
        soon(stream.read_exact(&mut settings)).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test]
async fn channels_try_every_address_and_come_back() {
    let ca = cluster(1);
    let credentials = live(&ca, 1, Role::Manager);
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead_addr = dead.local_addr().unwrap();
    drop(dead);
    let host = Host::start(&credentials).await;
    let addr = host.addr;
    let tls = ClientTls::member(&live(&ca, 2, Role::Worker), &DenyList::new(), Expected::manager());
    let both = vec![dead_addr.to_string(), addr.to_string()];
    let channel = connect(both, tls.clone(), ChannelOptions::NODES).await.unwrap();
    assert_eq!(ask(&channel, "who").await.unwrap(), "worker 2");

    host.deny.close(NodeId::new(2));
    until(|| host.deny.connections(NodeId::new(2)) == 0).await;
    assert_eq!(ask(&channel, "who").await.unwrap(), "worker 2");

    let none = connect(Vec::new(), tls.clone(), ChannelOptions::NODES).await.unwrap_err();
    assert_eq!(none.to_string(), "there is no address to connect to");
    let down = connect(vec![dead_addr.to_string()], tls, ChannelOptions::NODES).await.unwrap_err();
    assert_eq!(down.to_string(), format!("cannot connect to {dead_addr}"));
}

#[tokio::test]
async fn a_silent_server_times_out() {
    let ca = cluster(1);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = ClientTls::joining(ca.bundle());
    let addr = silent.local_addr().unwrap().to_string();
    let error = soon(connect_stream(&addr, &tls, Duration::from_millis(30))).await.unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "no answer within 30 ms");
}

async fn join(host: &Host, token: &JoinToken) -> Result<String, JoinError<Status>> {
    let fetch = |stranger: Channel| async move { ask(&stranger, "root").await };
    let (root, channel) = join_channel(host.addrs(), token, ChannelOptions::NODES, fetch).await?;
    assert_eq!(root.digest(), token.root_digest());
    Ok(ask(&channel, &token.to_string()).await.unwrap())
}

#[tokio::test]
async fn the_secret_is_said_only_to_a_manager_of_the_tokens_root() {
    let (ours, theirs) = (cluster(1), cluster(1));
    let token = JoinToken::new(ours.cert().digest(), TokenSecret::new([9; 16]));
    let limits = AcceptLimits::default;

    let manager = live(&ours, 1, Role::Manager);
    let honest = Host::start_with(&manager, Anonymous::Allowed, limits(), ours.cert().to_pem()).await;
    assert_eq!(join(&honest, &token).await.unwrap(), "anonymous 127.0.0.1");
    assert_eq!(honest.asked(), ["root".to_owned(), token.to_string()]);

    // Another cluster, with its own root.
    let stranger = live(&theirs, 1, Role::Manager);
    let foreign = Host::start_with(&stranger, Anonymous::Allowed, limits(), theirs.cert().to_pem()).await;
    let refused = join(&foreign, &token).await;
    assert!(matches!(refused, Err(JoinError::Root(RootMismatch::Digest { .. }))), "{refused:?}");
    assert_eq!(foreign.asked(), ["root"]);

    // Someone between, who hands out the right root but cannot have a certificate by it.
    let between = Host::start_with(&stranger, Anonymous::Allowed, limits(), ours.cert().to_pem()).await;
    let refused = join(&between, &token).await;
    assert!(matches!(refused, Err(JoinError::Untrusted(_))), "{refused:?}");
    assert_eq!(between.asked(), ["root"]);

    // A worker of the right cluster.
    let worker = live(&ours, 5, Role::Worker);
    let worker = Host::start_with(&worker, Anonymous::Allowed, limits(), ours.cert().to_pem()).await;
    assert!(matches!(join(&worker, &token).await, Err(JoinError::Untrusted(_))));
    assert_eq!(worker.asked(), ["root"]);

    // Not even a certificate.
    let odd = Host::start_with(&stranger, Anonymous::Allowed, limits(), "hello".to_owned()).await;
    assert!(matches!(join(&odd, &token).await, Err(JoinError::Root(RootMismatch::Unreadable(_)))));
}

/// A person's credentials, and those of another key for the same certificate.
fn person(ca: &RootCa, client: u128) -> ClientCredentials {
    let key = ClientKey::generate().unwrap();
    let grant = ClientGrant { client_id: ClientId::new(client), validity: DAY };
    let issued = ca.issue_client(key.signing_request_pem().unwrap().as_bytes(), &grant, now()).unwrap();
    ClientCredentials::from_pem(&ca.cert().to_pem(), &issued.chain_pem, &key.to_pem()).unwrap()
}

fn call_as(host: &Host, person: &ClientCredentials) -> Channel {
    channel(host.addrs(), ClientTls::client(person).unwrap(), ChannelOptions::NODES)
}

#[tokio::test]
async fn people_are_known_on_the_managers_port_alone() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    let alice = person(&ca, 7);
    assert_eq!(ask(&call_as(&host, &alice), "who").await.unwrap(), "client 7");
    // A port for nodes wants none of them.
    let nodes_only = live(&ca, 1, Role::Manager);
    let nodes_only = Host::start_with(&nodes_only, Anonymous::Refused, AcceptLimits::default(), String::new()).await;
    assert!(ask(&call_as(&nodes_only, &alice), "who").await.is_err());
    assert!(nodes_only.asked().is_empty());
}

#[tokio::test]
async fn people_speak_to_managers_of_their_swarm_alone() {
    let (ca, other) = (cluster(1), cluster(2));
    let alice = person(&ca, 7);
    let worker = Host::start(&live(&ca, 1, Role::Worker)).await;
    let (why, text) = refused(ask(&call_as(&worker, &alice), "who").await);
    assert_eq!(why, Some(Refusal::Peer), "{text}");
    assert!(text.contains("expected a manager"), "{text}");
    let foreign = Host::start(&live(&other, 1, Role::Manager)).await;
    let (why, text) = refused(ask(&call_as(&foreign, &alice), "who").await);
    assert_eq!(why, Some(Refusal::Peer), "{text}");
    assert!(text.contains("another cluster"), "{text}");
    assert!(worker.asked().is_empty() && foreign.asked().is_empty());
}

#[tokio::test]
async fn a_persons_certificate_is_no_nodes() {
    let ca = cluster(1);
    let alice = person(&ca, 7);
    assert!(Credentials::from_parts(alice.key, alice.chain.clone(), ca.bundle()).is_err());
    let at = now();
    assert!(chain::verify(&ca.bundle(), &alice.chain[0], &[], at).is_err(), "it is no server's");
    let node = member(&ca, 3, Role::Worker);
    assert!(chain::verify_client(&ca.bundle(), &node.chain()[0], &[], at).is_err(), "and a node is no person");
}

#[tokio::test]
async fn a_persons_connection_ends_with_the_certificate() {
    let ca = cluster(1);
    let host = Host::start(&live(&ca, 1, Role::Manager)).await;
    let alice = person(&ca, 7);
    let channel = call_as(&host, &alice);
    assert_eq!(ask(&channel, "who").await.unwrap(), "client 7");
    let end = alice.identity().not_after + chain::CLOCK_TOLERANCE;
    assert_eq!(host.deny.close_expired(end), 0);
    assert_eq!(host.deny.close_expired(end + Duration::from_secs(1)), 1);
}
