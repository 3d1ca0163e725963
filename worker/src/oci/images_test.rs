//! Images between two stores over the real peer protocol (TCP, without TLS), and the order of sources.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use skep_image::{ImportOptions, Registry, RegistryConfig, Store, StoreOptions, Timeouts};
use skep_proto::id::{CredentialId, NodeId, ServiceId, TaskId};
use skep_proto::v1::peer_server::PeerServer;
use skep_proto::v1::{ImagePeer, ImageSourcesResponse, Revision, TaskTemplate};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::*;
use crate::peer::{CHUNK_BYTES, Grant, PeerService, TicketCheck};
use crate::session::ConnectError;

struct Plain;

#[tonic::async_trait]
impl Connector for Plain {
    async fn manager(&self, _addr: &str) -> Result<Channel, ConnectError> {
        Err("not in this test".into())
    }
    async fn peer(&self, _node: NodeId, addr: &str) -> Result<Channel, ConnectError> {
        Ok(Endpoint::from_shared(format!("http://{addr}"))?.connect().await?)
    }
}

/// Accepts `ticket for <digest>`, of a node whose number may stand after a space.
struct Tickets;

impl TicketCheck for Tickets {
    fn image(&self, _request: &Request<()>, ticket: &[u8]) -> Result<Grant, Status> {
        let text = String::from_utf8_lossy(ticket);
        let text = text.strip_prefix("ticket for ").ok_or_else(|| Status::permission_denied("expired"))?;
        let (image, bearer) = text.split_once(' ').unwrap_or((text, "1"));
        Ok(Grant { image: image.to_owned(), bearer: NodeId::new(bearer.parse().unwrap()) })
    }
}

/// What a manager would answer.
#[derive(Default)]
struct Manager {
    peers: Mutex<Vec<SocketAddr>>,
    /// The first ticket is one that has expired.
    stale_first: bool,
    asked: Mutex<usize>,
    told: Mutex<Vec<String>>,
}

#[tonic::async_trait]
impl Supplies for Manager {
    fn progress(&self, message: String) {
        self.told.lock().unwrap().push(message);
    }
    async fn credential(&self, _id: CredentialId) -> Credential {
        std::future::pending().await
    }
    async fn payloads(&self, _ids: &[crate::payload::PayloadId]) -> crate::payload::Payloads {
        std::future::pending().await
    }
    async fn image_sources(&self, digest: &str) -> Result<ImageSourcesResponse, ExecError> {
        let asked = {
            let mut asked = self.asked.lock().unwrap();
            *asked += 1;
            *asked
        };
        let peers = self.peers.lock().unwrap().clone();
        let ticket = if self.stale_first && asked == 1 { "old".to_owned() } else { format!("ticket for {digest}") };
        Ok(ImageSourcesResponse {
            peers: peers
                .iter()
                .map(|addr| ImagePeer { node_id: NodeId::new(9).to_vec(), addr: addr.to_string() })
                .collect(),
            ticket: ticket.into_bytes(),
        })
    }
}

fn images(dir: &std::path::Path) -> Images {
    let timeouts = Timeouts { connect: Duration::from_secs(2), idle: Duration::from_secs(2) };
    let registry = Registry::new(RegistryConfig {
        insecure: vec!["127.0.0.1".parse().unwrap()],
        timeouts,
        ..RegistryConfig::default()
    });
    Images::new(Store::open(dir, StoreOptions::default()).unwrap(), registry)
}

async fn import(images: &Images) -> Digest {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    // More than one chunk, and not compressible away.
    let content: Vec<u8> = (0..700_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "bin/x", &content[..]).unwrap();
    let bytes = tar.into_inner().unwrap();
    images.import(&bytes[..], ImportOptions::default(), Progress::none()).await.unwrap().digest
}

async fn serve(images: &Images) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let service = PeerServer::new(PeerService::new(images.store().clone(), Arc::new(Tickets)));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    addr
}

async fn until(condition: impl Fn() -> bool) {
    let reached = tokio::time::timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    });
    assert!(reached.await.is_ok());
}

fn job(credential: bool) -> TaskJob {
    let credential_id = if credential { CredentialId::new(1).to_vec() } else { Vec::new() };
    let template = Some(TaskTemplate { credential_id, ..TaskTemplate::default() });
    TaskJob {
        id: TaskId::new(1),
        service_id: ServiceId::new(1),
        slot: 1,
        revision: Arc::new(Revision { template, ..Revision::default() }),
        networks: Vec::new(),
        ports: Vec::new(),
    }
}

fn spec(digest: &Digest) -> ContainerSpec {
    // A registry that nobody is at.
    ContainerSpec {
        image: "127.0.0.1:1/web:1".to_owned(),
        image_digest: digest.to_string(),
        ..ContainerSpec::default()
    }
}

#[tokio::test]
async fn another_node_is_asked_before_the_registry_and_before_a_missing_credential() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let holder = images(there.path());
    let digest = import(&holder).await;
    let addr = serve(&holder).await;
    let keeper = ImageKeeper::new(images(here.path()), Arc::new(Plain));
    let mut held = keeper.held();
    let manager = Arc::new(Manager { stale_first: true, ..Manager::default() });
    manager.peers.lock().unwrap().push(addr);
    let supplies: Arc<dyn Supplies> = manager.clone();
    let image = keeper.ensure(&job(true), &spec(&digest), &supplies).await.unwrap();
    assert_eq!(image.image.digest, digest);
    assert!(image.image.layer_paths[0].join("bin/x").exists());
    assert_eq!(*manager.asked.lock().unwrap(), 2, "the expired ticket was renewed");
    assert!(held.borrow_and_update().contains(&digest.to_string()));
    assert!(manager.told.lock().unwrap().iter().any(|line| line.contains("1/1 layers")));
    // Now that it is here, nobody is asked.
    keeper.ensure(&job(true), &spec(&digest), &supplies).await.unwrap();
    assert_eq!(*manager.asked.lock().unwrap(), 2);
}

#[tokio::test]
async fn many_tasks_fetch_an_image_once() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let holder = images(there.path());
    let digest = import(&holder).await;
    let addr = serve(&holder).await;
    let keeper = ImageKeeper::new(images(here.path()), Arc::new(Plain));
    let manager = Arc::new(Manager::default());
    manager.peers.lock().unwrap().push(addr);
    let supplies: Arc<dyn Supplies> = manager.clone();
    let (job, spec) = (job(false), spec(&digest));
    let all = (0..50).map(|_| keeper.ensure(&job, &spec, &supplies));
    let all = futures::future::join_all(all).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(*manager.asked.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_node_that_turns_up_late_is_found_and_nobody_at_all_is_told() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let holder = images(there.path());
    let digest = import(&holder).await;
    let addr = serve(&holder).await;
    let keeper = ImageKeeper::new(images(here.path()), Arc::new(Plain));
    let manager = Arc::new(Manager::default());
    let supplies: Arc<dyn Supplies> = manager.clone();
    let error = keeper.ensure(&job(false), &spec(&digest), &supplies).await.unwrap_err().sentence();
    assert!(error.starts_with("cannot get image 127.0.0.1:1/web:1: ") && error.contains("unreachable"), "{error}");
    assert_eq!(*manager.asked.lock().unwrap(), 2);

    let late = manager.clone();
    let (job, spec) = (job(false), spec(&digest));
    let ensure = keeper.ensure(&job, &spec, &supplies);
    let announce = async {
        while *late.asked.lock().unwrap() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        late.peers.lock().unwrap().push(addr);
    };
    assert!(futures::future::join(ensure, announce).await.0.is_ok());
}

#[tokio::test]
async fn only_blobs_of_the_tickets_image_are_served() {
    use skep_proto::v1::FetchBlobRequest;
    use skep_proto::v1::peer_client::PeerClient;
    let there = tempfile::tempdir().unwrap();
    let holder = images(there.path());
    let digest = import(&holder).await;
    let addr = serve(&holder).await;
    let client = PeerClient::new(Plain.peer(NodeId::new(9), &addr.to_string()).await.unwrap());
    let ask = |digest: String, ticket: String, offset| {
        let mut client = client.clone();
        async move {
            let request = FetchBlobRequest { digest, ticket: ticket.into_bytes(), offset };
            client.fetch_blob(request).await.map(tonic::Response::into_inner)
        }
    };
    let ticket = format!("ticket for {digest}");
    let other = Digest::of(b"other").to_string();
    let code = |outcome: Result<_, Status>| outcome.map(drop).unwrap_err().code();
    assert_eq!(code(ask(other.clone(), ticket.clone(), 0).await), tonic::Code::PermissionDenied);
    assert_eq!(code(ask(digest.to_string(), "forged".to_owned(), 0).await), tonic::Code::PermissionDenied);
    assert_eq!(code(ask(other.clone(), format!("ticket for {other}"), 0).await), tonic::Code::NotFound);
    assert_eq!(code(ask(digest.to_string(), ticket.clone(), 1 << 40).await), tonic::Code::OutOfRange);
    // The manifest from the middle on, as a resumed transfer asks for it.
    let mut whole = ask(digest.to_string(), ticket.clone(), 0).await.unwrap();
    let whole = whole.message().await.unwrap().unwrap();
    assert_eq!(whole.size_bytes, whole.data.len() as u64);
    let mut rest = ask(digest.to_string(), ticket, 10).await.unwrap();
    assert_eq!(rest.message().await.unwrap().unwrap().data, &whole.data[10..]);
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_else() {
    use futures::StreamExt;
    use skep_proto::v1::FetchBlobRequest;
    use skep_proto::v1::peer_server::Peer;
    let there = tempfile::tempdir().unwrap();
    let holder = images(there.path());
    let image = import(&holder).await;
    let (mut layer, mut size) = (image, 0);
    for blob in holder.store().image_closure(&image).unwrap() {
        let (bytes, _) = holder.store().open_blob(&blob).await.unwrap();
        (layer, size) = if bytes > size { (blob, bytes) } else { (layer, size) };
    }
    assert!(size > 2 * CHUNK_BYTES as u64, "one chunk waits to be read, and one to be sent");
    let service = PeerService::new(holder.store().clone(), Arc::new(Tickets)).patient_for(Duration::from_millis(200));
    let fetch = |bearer: u32| {
        let ticket = format!("ticket for {image} {bearer}").into_bytes();
        let request = FetchBlobRequest { digest: layer.to_string(), ticket, offset: 0 };
        let asked = service.fetch_blob(Request::new(request));
        async { asked.await.unwrap().into_inner() }
    };
    let free = |bearer: u128| service.free(NodeId::new(bearer));
    let whole = async |stream: <PeerService as Peer>::FetchBlobStream| {
        let lengths = stream.map(|chunk| chunk.unwrap().data.len() as u64);
        assert_eq!(lengths.fold(0, async |sum, length| sum + length).await, size);
    };
    let (of_one, of_all) = free(1);
    assert!(of_one < of_all);
    let mut unread = Vec::new();
    for _ in 0..of_one {
        unread.push(fetch(1).await);
    }
    until(|| free(1).0 == 0).await;
    let mut more = fetch(1).await;
    assert!(more.next().await.unwrap().unwrap().data.is_empty(), "it is told that its turn is still to come");
    // Another node is served as ever, as soon as it asks.
    whole(fetch(2).await).await;
    // Two of the kind have all streams, until what is not read is given up.
    for _ in 0..of_one {
        unread.push(fetch(3).await);
    }
    until(|| free(3).0 == 0).await;
    whole(fetch(4).await).await;
    until(|| free(1).1 == of_all).await;
    // Who still holds such streams open has no others for them.
    assert!(more.next().await.unwrap().unwrap().data.is_empty());
    let given_up: Vec<_> = unread.swap_remove(0).collect().await;
    let end = given_up.last().unwrap().as_ref().unwrap_err();
    assert_eq!(end.code(), tonic::Code::Aborted, "not mistaken for the end of the blob");
    whole(more).await;
    // Nor does who went away while he waited keep anything.
    drop((fetch(3).await, unread));
    until(|| free(3) == (of_one, of_all)).await;
}

#[test]
fn a_credential_goes_to_its_own_registry_only() {
    let auth =
        skep_proto::v1::RegistryAuth { username: "u".to_owned(), password: "p".to_owned(), token: String::new() };
    let credential = Credential { registry: "reg:5000".to_owned(), auth: Some(auth), ..Credential::default() };
    assert!(matches!(registry_auth(&credential, "reg:5000"), RegistryAuth::Password { .. }));
    assert!(matches!(registry_auth(&credential, "evil"), RegistryAuth::Anonymous));
    let token = skep_proto::v1::RegistryAuth { token: "t".to_owned(), ..Default::default() };
    let credential = Credential { auth: Some(token), ..credential };
    assert!(matches!(registry_auth(&credential, "reg:5000"), RegistryAuth::IdentityToken { .. }));
}
