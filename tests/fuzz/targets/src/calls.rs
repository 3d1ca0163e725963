//! Calls to a manager, as they come off the wire: every method that people, nodes and other managers have, by every kind of
//! caller. The manager is the real one (`skep_manager::fuzzing`), with a service, its tasks and a secret in its state.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, BufMut as _};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use skep_core::object::{Client, Cluster, Data, ManagerStatus, Meta, ParcelId, ParcelSpec};
use skep_core::parcels;
use skep_core::store::State;
use skep_identity::ca::{DEFAULT_NODE_VALIDITY, NodeGrant, RootCa};
use skep_identity::transport::ConnectionInfo;
use skep_identity::{Caller, ClientIdentity, Credentials, LiveCredentials, NodeKey, PeerIdentity, Role};
use skep_image::Reference;
use skep_manager::fuzzing::Alone;
use skep_manager::images::{Name, Registries, RemoteImage, ResolveError};
use skep_proto::id::{ClientId, ClusterId, NodeId, SecretId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{self, ClientRole, NodeRole, RegistryAuth};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status, Streaming};

use crate::{api, choose, halves, text};

/// Of the base state's secret: in no answer but those to nodes.
const SECRET: &[u8] = b"the secret that nobody is told";
/// Where they are told it.
const NODES_SERVICE: &str = "skep.v1.Dispatch/";
/// The nodes of the base state; the last one is this manager's.
const NODES: [u128; 3] = [1, 2, 3];
/// How often what waits is looked at again. Whoever waits for time to pass waits in vain, and hangs up.
const PATIENCE: usize = 100;
/// Calls of one input.
const CALLS: usize = 8;
/// Messages of an answer that are read.
const ANSWERS: usize = 32;

/// Calls, one after the other: who calls, the method with its length before it (`Services/Create`), its messages with their
/// lengths before them, and before these all their length.
pub fn manager_calls(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let Ok(manager) = Alone::start(BASE.state.clone(), &BASE.credentials, Arc::new(Named)) else { return };
        let mut rest = data;
        for _ in 0..CALLS {
            let (caller, call) = choose(rest);
            let (method, call) = halves(call);
            let (messages, behind) = halves(call);
            let _ = within(make(&manager, caller, text(method), pieces(messages))).await;
            if behind.is_empty() {
                break;
            }
            rest = behind;
        }
        api::check(&manager.state());
    });
}

/// Why another manager refused a part of a write, and what this one would tell its caller.
pub fn refusals(data: &[u8]) {
    // One of a later version becomes a sentence, and then a sentence of its own: from then on it stays.
    let told_on = |told: Vec<u8>| skep_manager::fuzzing::refusal(&told).unwrap_or_default();
    if let Some(told) = skep_manager::fuzzing::refusal(data).map(told_on) {
        assert_eq!(told_on(told.clone()), told, "a refusal is told on as it was");
    }
}

/// One call, and its answer as far as it comes.
async fn make(manager: &Alone, caller: u8, method: &str, messages: Vec<Vec<u8>>) {
    let Ok(path) = PathAndQuery::try_from(format!("/skep.v1.{method}")) else { return };
    let is_nodes = path.path().contains(NODES_SERVICE);
    let mut request = Request::new(futures::stream::iter(messages));
    request.extensions_mut().insert(connection(caller));
    let mut client = Grpc::new(manager.routes());
    let answered = within(client.streaming(request, path, Raw)).await;
    let Some(Ok(answer)) = answered.map(|answered| answered.map_err(|refusal| not_told(refusal.message().as_bytes())))
    else {
        return;
    };
    let mut answer: Streaming<Vec<u8>> = answer.into_inner();
    for _ in 0..ANSWERS {
        match within(answer.message()).await {
            Some(Ok(Some(message))) if !is_nodes => not_told(&message),
            Some(Ok(Some(_))) => {}
            Some(Err(refusal)) => return not_told(refusal.message().as_bytes()),
            Some(Ok(None)) | None => return,
        }
    }
}

fn not_told(answer: &[u8]) {
    let tells = |secret: &[u8]| answer.windows(secret.len()).any(|part| part == secret);
    assert!(!tells(SECRET), "a secret was told");
    assert!(!tells(&BASE.root_key), "the root's key was told");
}

/// The answer, unless it does not come when everyone else had their turn a few times.
async fn within<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    for _ in 0..PATIENCE {
        tokio::select! {
            biased;
            done = &mut work => return Some(done),
            () = tokio::task::yield_now() => {}
        }
    }
    None
}

/// Parts with their lengths before them.
fn pieces(mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let (piece, behind) = halves(rest);
        pieces.push(piece.to_vec());
        if behind.len() == rest.len() {
            break;
        }
        rest = behind;
    }
    pieces
}

/// Where a call comes from: this host, a worker, another one, this manager, a node that nobody knows, a stranger; a viewer,
/// an operator, an administrator.
fn connection(caller: u8) -> ConnectionInfo {
    let remote = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 40_000));
    let not_after = SystemTime::now() + Duration::from_secs(3600);
    let node = |number: u128, role| {
        let peer = PeerIdentity { node_id: NodeId::new(number), role, cluster_id: ClusterId::new(1), not_after };
        ConnectionInfo { caller: Caller::Node(peer), remote: Some(remote) }
    };
    let person = |number: usize| {
        let identity = ClientIdentity { client_id: client_id(number), cluster_id: ClusterId::new(1), not_after };
        ConnectionInfo { caller: Caller::Client(identity), remote: Some(remote) }
    };
    match caller % 9 {
        0 => ConnectionInfo { caller: Caller::Local { uid: 0 }, remote: None },
        1 => node(NODES[0], Role::Worker),
        2 => node(NODES[1], Role::Worker),
        3 => node(NODES[2], Role::Manager),
        4 => node(77, Role::Manager),
        5 => ConnectionInfo { caller: Caller::Anonymous { addr: remote }, remote: Some(remote) },
        other => person(usize::from(other) - 6),
    }
}

/// People in the base state.
const CLIENTS: [(&str, ClientRole); 3] =
    [("viewer", ClientRole::Viewer), ("operator", ClientRole::Operator), ("admin", ClientRole::Admin)];

fn client_id(number: usize) -> ClientId {
    ClientId::new(40 + number as u128)
}

/// Messages as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

/// Every image is there, and its digest is the same.
struct Named;

impl Registries for Named {
    fn parse(&self, reference: &str) -> Result<Name, ResolveError> {
        let reference = Reference::parse(reference).map_err(|error| ResolveError::Invalid(error.to_string()))?;
        Ok(Name {
            canonical: reference.without_digest().canonical(),
            registry: reference.domain().to_owned(),
            digest: reference.digest().map(ToString::to_string),
        })
    }

    fn resolve(
        &self,
        _reference: String,
        _auth: Option<RegistryAuth>,
    ) -> BoxFuture<'static, Result<RemoteImage, ResolveError>> {
        let digest = format!("sha256:{}", "0".repeat(64));
        async move { Ok(RemoteImage { digest, platforms: Vec::new() }) }.boxed()
    }
}

/// What every input begins with.
struct Base {
    state: State,
    /// A line of the root's private key.
    root_key: Vec<u8>,
    credentials: LiveCredentials,
}

static BASE: LazyLock<Base> = LazyLock::new(|| match base() {
    Ok(base) => base,
    Err(error) => panic!("no manager can be made: {error}"),
});

fn base() -> Result<Base, Box<dyn std::error::Error>> {
    let authority = RootCa::generate(ClusterId::new(1), SystemTime::now())?;
    let key = NodeKey::generate()?;
    let node_id = NodeId::new(NODES[2]);
    let grant = NodeGrant { node_id, role: Role::Manager, validity: DEFAULT_NODE_VALIDITY };
    let issued = authority.issue(&key.signing_request()?, &grant, SystemTime::now())?;
    let credentials = LiveCredentials::new(Credentials::new(key, &issued.chain_pem, authority.bundle())?);

    let root_key_pem = authority.key_pem();
    let root_key = root_key_pem.lines().nth(2).ok_or("a key has more lines than one")?.as_bytes().to_vec();
    let mut state = api::swarm();
    if let Some(cluster) = state.cluster().map(|cluster| Cluster::clone(cluster)) {
        let root_cert_pem = authority.cert().to_pem();
        state.put(Cluster { root_cert_pem, root_key_pem, ..cluster });
    }
    let mut me = api::made(NODES[2]);
    me.role = NodeRole::Manager;
    me.manager = Some(ManagerStatus { raft_id: 1, addr: "192.0.2.1:2377".to_owned() });
    let spec = v1::NodeSpec { role: NodeRole::Manager.into(), ..v1::NodeSpec::default() };
    me.spec = Arc::new(spec);
    me.status.addr = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)).to_string();
    state.put(me);
    for (number, (name, role)) in CLIENTS.into_iter().enumerate() {
        let (id, cert_not_after) = (client_id(number), UnixMs(i64::MAX / 2));
        state.put(Client { id, meta: Meta::default(), name: name.to_owned(), role, cert_not_after });
    }
    let spec = ParcelSpec { name: "db".to_owned(), ..ParcelSpec::default() };
    let secret = parcels::creation(ParcelId::Secret(SecretId::new(3)), spec, Data::new(SECRET.to_vec()), api::NOW);
    api::store(&mut state, secret);
    if !api::service_in(&mut state, &crate::seeds::service("web")) {
        return Err("the base state takes no service".into());
    }
    Ok(Base { state, root_key, credentials })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prost::Message as _;
    use skep_proto::access;

    use super::*;

    /// The target would be blind if a call did not reach its handler.
    #[tokio::test]
    async fn calls_reach_their_handlers() {
        assert!(BASE.state.tasks().count() >= 3, "{:?}", BASE.state.tasks().count());
        let manager = Alone::start(BASE.state.clone(), &BASE.credentials, Arc::new(Named)).unwrap();
        let create = v1::CreateNetworkRequest {
            spec: Some(v1::NetworkSpec { name: "back".to_owned(), ..v1::NetworkSpec::default() }),
            ..v1::CreateNetworkRequest::default()
        };
        let networks = |manager: &Alone| manager.state().networks().count();
        let before = networks(&manager);
        make(&manager, 5, "Networks/Create", vec![create.encode_to_vec()]).await;
        assert_eq!(networks(&manager), before, "a stranger makes none");
        make(&manager, 0, "Networks/Create", vec![create.encode_to_vec()]).await;
        assert_eq!(networks(&manager), before + 1);
        let hello = v1::Register {
            description: Some(v1::NodeDescription { hostname: "new".to_owned(), ..v1::NodeDescription::default() }),
            ..v1::Register::default()
        };
        let hello = v1::SessionUp { message: Some(v1::session_up::Message::Register(hello)) };
        make(&manager, 1, "Dispatch/Session", vec![hello.encode_to_vec()]).await;
        let known = manager.state().node(NodeId::new(NODES[0])).unwrap().hostname().to_owned();
        assert_eq!(known, "new", "it registered");
    }

    /// A fuzzer does not guess the names of methods.
    #[test]
    fn every_method_has_a_seed() {
        // A node's own, another manager's Raft, other nodes' images: not what a manager serves here.
        let elsewhere = ["Daemon", "Images", "Netd", "Peer", "Quorum"];
        let seeds = crate::seeds::all();
        let calls: Vec<_> = seeds.iter().filter(|(target, ..)| *target == "manager_calls").collect();
        for rule in access::rules().filter(|rule| !elsewhere.contains(&rule.service)) {
            let name = format!("{}/{}", rule.service, rule.method);
            let named = |bytes: &[u8]| bytes.windows(name.len()).any(|part| part == name.as_bytes());
            assert!(calls.iter().any(|(.., bytes)| named(bytes)), "{name}");
        }
    }
}
