//! Who may call what, over real connections: every method by a worker's certificate and by none, and people by theirs.

use std::time::{Duration, SystemTime};

use skep_core::change::{Change, Op};
use skep_identity::ca::RootCa;
use skep_identity::transport::{ChannelOptions, Refusal, channel, refusal};
use skep_identity::{ClientCredentials, ClientGrant, ClientKey, ClientTls};
use skep_proto::access;
use skep_proto::id::{ClientId, ClusterId};
use skep_proto::v1::clients_client::ClientsClient;
use skep_proto::v1::clusters_client::ClustersClient;
use skep_proto::v1::nodes_client::NodesClient;
use skep_proto::v1::secrets_client::SecretsClient;
use skep_proto::v1::watch_client::WatchClient;
use skep_proto::v1::{
    ClientRole, CreateClientRequest, CreateClientResponse, CreateSecretRequest, GetSecretRequest, JoinTokenRequest,
    ListClientsRequest, ListNodesRequest, RemoveClientRequest, RenewClientRequest, RotateRootRequest, SecretSpec,
    UpdateNodeRequest, WatchRequest, WriteOptions,
};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::swarm::{Swarm, soon};

/// Calls a method with one empty message and says what comes first: the code of a refusal, or `Ok`.
async fn call(channel: &Channel, rule: access::Rule) -> Status {
    let mut grpc = Grpc::new(channel.clone());
    let path = PathAndQuery::try_from(format!("/skep.v1.{}/{}", rule.service, rule.method)).unwrap();
    let asked = async {
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let request = Request::new(futures::stream::iter([()]));
        let mut answers = grpc.streaming(request, path, ProstCodec::<(), ()>::default()).await?.into_inner();
        answers.message().await
    };
    match soon(&rule.to_string(), asked).await {
        Ok(_) => Status::ok(""),
        Err(status) => status,
    }
}

/// What a person has.
pub(crate) struct Person {
    pub(crate) id: ClientId,
    pub(crate) credentials: ClientCredentials,
    pub(crate) channel: Channel,
}

impl Person {
    pub(crate) fn new(swarm: &Swarm, key: &ClientKey, made: &CreateClientResponse) -> Self {
        let credentials =
            ClientCredentials::from_pem(&made.root_cert_pem, &made.cert_chain_pem, &key.to_pem()).unwrap();
        let channel = person_channel(swarm, &credentials);
        Self { id: ClientId::from_wire(&made.id).unwrap(), credentials, channel }
    }
}

pub(crate) fn person_channel(swarm: &Swarm, credentials: &ClientCredentials) -> Channel {
    channel(vec![swarm.addr.to_string()], ClientTls::client(credentials).unwrap(), ChannelOptions::NODES)
}

fn request(name: &str, role: ClientRole, key: &ClientKey) -> CreateClientRequest {
    let csr_pem = key.signing_request_pem().unwrap();
    CreateClientRequest { name: name.into(), role: role.into(), csr_pem, ..CreateClientRequest::default() }
}

/// Has a client made.
pub(crate) async fn person(swarm: &Swarm, name: &str, role: ClientRole) -> Person {
    let key = ClientKey::generate().unwrap();
    let made = ClientsClient::new(swarm.operator()).create(request(name, role, &key)).await.unwrap().into_inner();
    assert_eq!(made.managers, [swarm.addr.to_string()]);
    Person::new(swarm, &key, &made)
}

/// Has another certificate made for a client, with a key of its own.
pub(crate) async fn renewed(swarm: &Swarm, name: &str) -> Person {
    let key = ClientKey::generate().unwrap();
    let made = ClientsClient::new(swarm.operator()).renew(renewal(name, &key)).await.unwrap().into_inner();
    Person::new(swarm, &key, &made)
}

fn renewal(name: &str, key: &ClientKey) -> RenewClientRequest {
    let csr_pem = key.signing_request_pem().unwrap();
    RenewClientRequest { reference: name.into(), csr_pem, ..RenewClientRequest::default() }
}

async fn remove(swarm: &Swarm, name: &str) {
    let request = RemoveClientRequest { reference: name.into(), write: None };
    ClientsClient::new(swarm.operator()).remove(request).await.unwrap();
}

#[tokio::test]
async fn a_worker_and_a_stranger_are_refused_whatever_is_not_theirs() {
    let swarm = Swarm::start().await;
    let worker = swarm.join("host2").await;
    let stranger = swarm.stranger();
    for rule in access::rules() {
        let by_worker = call(&worker.channel, rule).await;
        if rule.callers.has(access::Standing::Worker) {
            assert!(!matches!(by_worker.code(), Code::PermissionDenied | Code::Unauthenticated), "{rule}: {by_worker}");
        } else {
            assert_eq!(by_worker.code(), Code::PermissionDenied, "{rule}: {by_worker}");
            let who = format!("node {} (a worker) may not call {rule}: it is for ", worker.id);
            assert!(by_worker.message().starts_with(&who), "{by_worker}");
        }
        let by_stranger = call(&stranger, rule).await;
        if rule.callers.has(access::Standing::Anonymous) {
            assert!(!by_stranger.message().contains("may not call"), "{rule}: {by_stranger}");
        } else {
            assert_eq!(by_stranger.code(), Code::Unauthenticated, "{rule}: {by_stranger}");
            assert!(by_stranger.message().contains("(no certificate) may not call"), "{by_stranger}");
        }
    }
    swarm.stop().await;
}

#[tokio::test]
async fn people_may_do_what_their_role_says() {
    let swarm = Swarm::start().await;
    let roles = [
        (ClientRole::Viewer, access::Standing::Viewer),
        (ClientRole::Operator, access::Standing::Operator),
        (ClientRole::Admin, access::Standing::Admin),
    ];
    for (role, standing) in roles {
        let person = person(&swarm, standing.to_string().as_str(), role).await;
        for rule in access::rules() {
            let answer = call(&person.channel, rule).await;
            let refused = format!("client {standing} ({standing}) may not call {rule}: it is for ");
            assert_eq!(answer.message().starts_with(&refused), !rule.callers.has(standing), "{rule}: {answer}");
            assert_eq!(answer.code() == Code::PermissionDenied, !rule.callers.has(standing), "{rule}: {answer}");
        }
    }
    swarm.stop().await;
}

#[tokio::test]
async fn a_viewer_looks_and_gets_neither_secrets_nor_tokens() {
    const DATA: &[u8] = b"nobody is told this";
    let swarm = Swarm::start().await;
    let (viewer, operator) =
        (person(&swarm, "vera", ClientRole::Viewer).await, person(&swarm, "otto", ClientRole::Operator).await);
    let secret = CreateSecretRequest {
        spec: Some(SecretSpec { name: "db".into(), ..SecretSpec::default() }),
        data: DATA.to_vec(),
        write: None,
    };
    let denied = SecretsClient::new(viewer.channel.clone()).create(secret.clone()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    SecretsClient::new(operator.channel.clone()).create(secret).await.unwrap();
    let get = GetSecretRequest { reference: "db".into(), read: None };
    let seen = SecretsClient::new(viewer.channel.clone()).get(get).await.unwrap().into_inner();
    let seen = prost::Message::encode_to_vec(&seen);
    assert!(!seen.windows(DATA.len()).any(|part| part == DATA));
    assert_eq!(seen.windows(2).filter(|part| part == b"db").count(), 1, "the control: its name is there");
    // All that there is to be kept from them.
    let mut cluster = skep_core::object::Cluster::clone(swarm.state().cluster().unwrap());
    cluster.unlock_key = Some([5; 32]);
    swarm.write(vec![Change::update(cluster.meta.version, Op::PutCluster(cluster))]).await;
    ClustersClient::new(swarm.operator()).rotate_root(RotateRootRequest::default()).await.unwrap();
    let nodes = NodesClient::new(viewer.channel.clone()).list(ListNodesRequest { read: None }).await.unwrap();
    assert_eq!(nodes.into_inner().message().await.unwrap().unwrap().nodes.len(), 1);
    for person in [&viewer, &operator] {
        let mut clusters = ClustersClient::new(person.channel.clone());
        let token = clusters.join_token(JoinTokenRequest::default()).await.unwrap_err();
        assert_eq!(token.code(), Code::PermissionDenied);
        let cluster = clusters.get(skep_proto::v1::GetClusterRequest { read: None }).await.unwrap().into_inner();
        let cluster = cluster.cluster.unwrap();
        let kept = [&cluster.root_key_pem, &cluster.unlock_key];
        assert!(kept.into_iter().all(|secret| secret.is_empty()), "{cluster:?}");
        assert!(cluster.worker_token_secret.is_empty() && cluster.manager_token_secret.is_empty(), "{cluster:?}");
        let next = cluster.root_rotation.expect("it was begun");
        assert!(next.root_key_pem.is_empty() && !next.root_cert_pem.is_empty(), "{next:?}");
        let update = UpdateNodeRequest { reference: "self".into(), ..UpdateNodeRequest::default() };
        let update = NodesClient::new(person.channel.clone()).update(update).await.unwrap_err();
        assert_eq!(update.code(), Code::PermissionDenied);
    }
    swarm.stop().await;
}

#[tokio::test]
async fn a_removed_client_is_out_at_once_also_where_it_listens() {
    let swarm = Swarm::start().await;
    let alice = person(&swarm, "alice", ClientRole::Admin).await;
    let watch = WatchRequest { nodes: true, ..WatchRequest::default() };
    let mut changes = WatchClient::new(alice.channel.clone()).watch(watch.clone()).await.unwrap().into_inner();
    assert!(soon("the first round", changes.message()).await.unwrap().is_some());
    remove(&swarm, "alice").await;
    let ended = async {
        loop {
            match changes.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ends without a word"),
                Err(status) => return status,
            }
        }
    };
    let status = soon("the stream to end", ended).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains(&format!("no client {} (any more)", alice.id)), "{status}");
    // On the same connection, and on a new one.
    for channel in [alice.channel.clone(), person_channel(&swarm, &alice.credentials)] {
        for rule in access::rules().filter(|rule| rule.callers.has(access::Standing::Viewer)) {
            assert_eq!(call(&channel, rule).await.code(), Code::Unauthenticated, "{rule}");
        }
    }
    // The name is free, and the one who has it now is another.
    let again = person(&swarm, "alice", ClientRole::Viewer).await;
    let clients = ClientsClient::new(again.channel.clone()).list(ListClientsRequest { read: None }).await.unwrap();
    assert_eq!(clients.into_inner().clients.len(), 1);
    assert!(WatchClient::new(alice.channel).watch(watch).await.is_err());
    swarm.stop().await;
}

#[tokio::test]
async fn a_role_is_the_states_word_not_the_certificates() {
    let swarm = Swarm::start().await;
    let alice = person(&swarm, "alice", ClientRole::Admin).await;
    let mut clusters = ClustersClient::new(alice.channel.clone());
    clusters.join_token(JoinTokenRequest::default()).await.unwrap();
    let mut stored = skep_core::object::Client::clone(swarm.state().client(alice.id).unwrap());
    stored.role = ClientRole::Viewer;
    swarm.write(vec![Change::update(stored.meta.version, Op::PutClient(stored))]).await;
    let refused = clusters.join_token(JoinTokenRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    swarm.stop().await;
}

#[tokio::test]
async fn a_client_is_made_once_and_with_sense() {
    let swarm = Swarm::start().await;
    let mut clients = ClientsClient::new(swarm.operator());
    let key = ClientKey::generate().unwrap();
    let write = Some(WriteOptions { request_id: vec![7; 16] });
    let wanted = CreateClientRequest { write, ..request("alice", ClientRole::Viewer, &key) };
    let first = clients.create(wanted.clone()).await.unwrap().into_inner();
    let again = clients.create(wanted).await.unwrap().into_inner();
    assert_eq!((&first.id, first.version), (&again.id, again.version));
    for made in [&first, &again] {
        let person = Person::new(&swarm, &key, made);
        ClientsClient::new(person.channel).list(ListClientsRequest { read: None }).await.unwrap();
    }
    let refused = [
        (request("alice", ClientRole::Admin, &key), Code::AlreadyExists),
        (request("", ClientRole::Viewer, &key), Code::InvalidArgument),
        (request("a b", ClientRole::Viewer, &key), Code::InvalidArgument),
        (CreateClientRequest { role: 9, ..request("bob", ClientRole::Viewer, &key) }, Code::InvalidArgument),
        (CreateClientRequest { cert_expiry_ms: 1, ..request("bob", ClientRole::Viewer, &key) }, Code::InvalidArgument),
        (
            CreateClientRequest { csr_pem: "x".into(), ..request("bob", ClientRole::Viewer, &key) },
            Code::InvalidArgument,
        ),
    ];
    for (request, code) in refused {
        assert_eq!(clients.create(request.clone()).await.unwrap_err().code(), code, "{request:?}");
    }
    assert_eq!(swarm.state().client_count(), 1);
    swarm.stop().await;
}

#[tokio::test]
async fn a_renewed_client_is_the_same_one() {
    let swarm = Swarm::start().await;
    let mut clients = ClientsClient::new(swarm.operator());
    let before = person(&swarm, "alice", ClientRole::Viewer).await;
    let (key, day_ms) = (ClientKey::generate().unwrap(), 24 * 3_600_000);
    let write = Some(WriteOptions { request_id: vec![8; 16] });
    let wanted = RenewClientRequest { write, cert_expiry_ms: day_ms, ..renewal("alice", &key) };
    let first = clients.renew(wanted.clone()).await.unwrap().into_inner();
    let again = clients.renew(wanted).await.unwrap().into_inner();
    assert_eq!((&first.id, first.version), (&again.id, again.version), "a retry");
    let stored = swarm.state().client(before.id).cloned().unwrap();
    assert_eq!((stored.name.as_str(), stored.role, swarm.state().client_count()), ("alice", ClientRole::Viewer, 1));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let ends_in = stored.cert_not_after.0 - i64::try_from(now).unwrap();
    assert!((day_ms - 600_000..=day_ms).contains(&ends_in), "{ends_in} ms");
    // The old one is good until it ends, or until its client goes.
    let after = Person::new(&swarm, &key, &first);
    assert_eq!(after.id, before.id);
    for person in [&before, &after] {
        ClientsClient::new(person.channel.clone()).list(ListClientsRequest { read: None }).await.unwrap();
        let denied = ClientsClient::new(person.channel.clone()).renew(renewal("alice", &key)).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "not by its holder");
    }
    let refused = [
        (renewal("bob", &key), Code::NotFound),
        (RenewClientRequest { cert_expiry_ms: 1, ..renewal("alice", &key) }, Code::InvalidArgument),
        (RenewClientRequest { csr_pem: "x".into(), ..renewal("alice", &key) }, Code::InvalidArgument),
    ];
    for (request, code) in refused {
        assert_eq!(clients.renew(request.clone()).await.unwrap_err().code(), code, "{request:?}");
    }
    assert_eq!(swarm.state().client(before.id).unwrap().meta.version, stored.meta.version, "nothing was written");
    remove(&swarm, "alice").await;
    for person in [&before, &after] {
        let gone = ClientsClient::new(person.channel.clone()).list(ListClientsRequest { read: None }).await;
        assert_eq!(gone.unwrap_err().code(), Code::Unauthenticated);
    }
    swarm.stop().await;
}

#[tokio::test]
async fn who_has_no_good_certificate_is_refused_at_the_handshake() {
    let swarm = Swarm::start().await;
    let key = ClientKey::generate().unwrap();
    let made_by = |ca: &RootCa, at: SystemTime| {
        let grant = ClientGrant { client_id: ClientId::new(1), validity: Duration::from_secs(3600) };
        ca.issue_client(key.signing_request_pem().unwrap().as_bytes(), &grant, at).unwrap().chain_pem
    };
    let looked = |chain: String, roots: String| {
        let credentials = ClientCredentials::from_pem(&roots, &chain, &key.to_pem()).unwrap();
        let mut nodes = NodesClient::new(person_channel(&swarm, &credentials));
        async move { nodes.list(ListNodesRequest { read: None }).await.unwrap_err() }
    };
    // Ended, beyond the hour that clocks may differ by.
    let long_ago = SystemTime::now() - Duration::from_secs(3 * 3600);
    let expired = looked(made_by(&swarm.ca, long_ago), swarm.ca.cert().to_pem()).await;
    assert_eq!(refusal(&expired), Some(Refusal::Expired), "{expired:?}");
    // Of another swarm: this side does not believe the manager.
    let other = RootCa::generate(ClusterId::new(10), SystemTime::now()).unwrap();
    let foreign = looked(made_by(&other, SystemTime::now()), other.cert().to_pem()).await;
    assert_eq!(refusal(&foreign), Some(Refusal::Peer), "{foreign:?}");
    // Well made, and never written down.
    let unknown = looked(made_by(&swarm.ca, SystemTime::now()), swarm.ca.cert().to_pem()).await;
    assert_eq!(unknown.code(), Code::Unauthenticated, "{unknown:?}");
    swarm.stop().await;
}
