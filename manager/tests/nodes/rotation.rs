//! A change of the root, as nodes see it, and the way back of a node whose certificate ran out.

use std::time::{Duration, SystemTime};

use skep_core::object::Cluster;
use skep_identity::ca::{NodeGrant, RootCa};
use skep_identity::{Credentials, JoinToken, LiveCredentials, NextRoot, NodeKey, Role, RootBundle, TokenSecret};
use skep_proto::id::{ClusterId, NodeId};
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::v1::clients_client::ClientsClient;
use skep_proto::v1::clusters_client::ClustersClient;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::{
    ClientRole, GetClusterRequest, GetRootRequest, IssueRequest, ListClientsRequest, NodeDescription, Register,
    RenewRequest, ReturningNode, RotateRootRequest, WriteOptions,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::access::{Person, person, person_channel, renewed};
use crate::agent::{Agent, description};
use crate::swarm::{MANAGER, MANAGER_SECRET, Swarm, WORKER_SECRET, member_channel, soon};

const HOUR: Duration = Duration::from_secs(3600);

/// A node that does what daemons do: it trusts what it is told, renews when it is asked, and says what it uses.
struct Host {
    hostname: &'static str,
    live: LiveCredentials,
    agent: Agent,
    channel: Channel,
}

fn described(hostname: &str, live: &LiveCredentials) -> NodeDescription {
    NodeDescription { certificate: Some(live.current().facts()), ..description(hostname) }
}

impl Host {
    async fn connect(swarm: &Swarm, hostname: &'static str, live: &LiveCredentials) -> Self {
        let channel = member_channel(live, swarm.addr);
        let register = Register { description: Some(described(hostname, live)), ..Register::default() };
        let agent = Agent::register(&channel, register).await.unwrap();
        Self { hostname, live: live.clone(), agent, channel }
    }

    async fn join(swarm: &Swarm, hostname: &'static str) -> Self {
        let member = swarm.join(hostname).await;
        Self::connect(swarm, hostname, &member.credentials).await
    }

    fn id(&self) -> NodeId {
        self.live.current().node_id()
    }

    /// Waits to be told of so many roots with this one as the newest, and trusts them.
    async fn trust(&mut self, count: usize, newest: &[u8]) {
        let what = format!("{} is told of {count} roots", self.hostname);
        let is_it = |roots: &RootBundle| {
            let last = roots.certs().last().map(|root| root.digest());
            roots.certs().len() == count && last.is_some_and(|digest| digest.as_bytes() == newest)
        };
        let bundle = self.agent.wait_for(&what, |message| match message {
            Down::Roots(told) => RootBundle::from_pem(&told.root_certs_pem).ok().filter(is_it),
            _ => None,
        });
        let bundle = bundle.await;
        self.live.replace(self.live.current().with_roots(bundle).unwrap());
        self.agent.say(Up::Description(described(self.hostname, &self.live))).await;
    }

    async fn asked(&mut self) {
        let what = format!("{} is asked to renew", self.hostname);
        self.agent.wait_for(&what, |message| matches!(message, Down::RenewCertificate(_)).then_some(())).await;
    }

    async fn renew(&mut self) -> usize {
        let key = NodeKey::generate().unwrap();
        let request = RenewRequest { csr_pem: key.signing_request_pem().unwrap() };
        let mut client = CertificateAuthorityClient::new(self.channel.clone());
        let issued = soon("renew", client.renew(request)).await.unwrap().into_inner();
        let roots = RootBundle::from_pem(&issued.root_cert_pem).unwrap();
        self.live.replace(Credentials::new(key, &issued.cert_chain_pem, roots).unwrap());
        self.agent.say(Up::Description(described(self.hostname, &self.live))).await;
        issued.cert_chain_pem.matches("BEGIN CERTIFICATE").count()
    }
}

async fn rotate(swarm: &Swarm, request: RotateRootRequest) -> Result<Vec<u8>, Status> {
    let answer = soon("rotate", ClustersClient::new(swarm.operator()).rotate_root(request)).await?;
    Ok(answer.into_inner().digest)
}

async fn progress(swarm: &Swarm) -> Option<(u32, u32, Vec<String>)> {
    let answer = soon("get", ClustersClient::new(swarm.operator()).get(GetClusterRequest::default())).await.unwrap();
    let status = answer.into_inner().root_rotation?;
    Some((status.done, status.total, status.waiting.into_iter().map(|wait| wait.reason).collect()))
}

fn cluster(swarm: &Swarm) -> Cluster {
    Cluster::clone(swarm.state().cluster().unwrap())
}

#[tokio::test]
async fn a_new_root_is_in_force_when_every_node_has_its_certificate() {
    let swarm = Swarm::start().await;
    let before = swarm.credentials.current();
    let mut manager = Host::connect(&swarm, "manager", &swarm.credentials.clone()).await;
    let (mut a, mut b) = (Host::join(&swarm, "a").await, Host::join(&swarm, "b").await);
    a.trust(1, swarm.ca.cert().digest().as_bytes()).await;
    let digest = rotate(&swarm, RotateRootRequest::default()).await.unwrap();
    assert_ne!(digest, swarm.ca.cert().digest().as_bytes());
    for host in [&mut manager, &mut a, &mut b] {
        host.trust(2, &digest).await;
        host.asked().await;
    }
    assert_eq!(a.renew().await, 2, "the new root as the old one signed it comes with the certificate");
    // A host that joins meanwhile needs no renewal: its token is still of the old root.
    let mut c = Host::join(&swarm, "c").await;
    assert_eq!(c.live.current().facts().issuer, Vec::<u8>::new(), "it knows the token's root only, so far");
    c.trust(2, &digest).await;
    assert_eq!(c.live.current().facts().issuer, digest);
    swarm
        .until("the joined node's certificate", |state| {
            let certificate = skep_core::ca::certificate(state.node(c.id()).unwrap()).cloned();
            certificate.is_some_and(|certificate| certificate.issuer == digest)
        })
        .await;
    manager.renew().await;
    swarm
        .until("two wait no more", |state| {
            let told =
                |id| skep_core::ca::certificate(state.node(id).unwrap()).is_some_and(|known| known.issuer == digest);
            told(a.id()) && told(MANAGER)
        })
        .await;
    // One is off: the old root stays.
    let (done, total, waiting) = progress(&swarm).await.unwrap();
    assert_eq!((done, total, waiting), (3, 4, vec!["is renewing its certificate".to_owned()]));
    assert_eq!(cluster(&swarm).root_cert_pem, swarm.ca.cert().to_pem());
    let stranger = CertificateAuthorityClient::new(swarm.stranger()).get_root(GetRootRequest {}).await.unwrap();
    assert_eq!(stranger.into_inner().root_cert_pem, swarm.ca.cert().to_pem());

    b.renew().await;
    for host in [&mut manager, &mut a, &mut b, &mut c] {
        host.trust(1, &digest).await;
        assert_eq!(host.live.current().facts().issuer, digest);
    }
    let after = cluster(&swarm);
    assert_eq!((after.root_rotation.is_none(), progress(&swarm).await), (true, None));
    let root = RootBundle::from_pem(&after.root_cert_pem).unwrap();
    assert_eq!(root.certs()[0].digest().as_bytes().to_vec(), digest);
    assert!(after.worker_token_secret != WORKER_SECRET && after.manager_token_secret != MANAGER_SECRET);

    // The old root is of no use any more, neither as a certificate nor in a token.
    let key = NodeKey::generate().unwrap();
    let issued = swarm.ca.issue(
        &key.signing_request().unwrap(),
        &NodeGrant { node_id: a.id(), role: Role::Manager, validity: 24 * HOUR },
        SystemTime::now(),
    );
    let forged = Credentials::new(key, &issued.unwrap().chain_pem, swarm.ca.bundle()).unwrap();
    for old in [forged, before.with_roots(before.roots().clone()).unwrap()] {
        let mut client = ClustersClient::new(member_channel(&LiveCredentials::new(old), swarm.addr));
        assert!(soon("refused", client.get(GetClusterRequest::default())).await.is_err());
    }
    let trusting = skep_identity::ClientTls::joining(root.clone());
    let addr = vec![swarm.addr.to_string()];
    let channel = skep_identity::transport::channel(addr, trusting, skep_identity::transport::ChannelOptions::NODES);
    let mut authority = CertificateAuthorityClient::new(channel);
    let issue = |token: String| IssueRequest {
        csr_pem: NodeKey::generate().unwrap().signing_request_pem().unwrap(),
        token,
        hostname: "d".to_owned(),
        ..IssueRequest::default()
    };
    let status = soon("issue", authority.issue(issue(swarm.token(WORKER_SECRET)))).await.unwrap_err();
    assert!(status.message().contains("belongs to another swarm"), "{status:?}");
    let fresh = JoinToken::new(root.certs()[0].digest(), TokenSecret::new(after.worker_token_secret)).to_string();
    soon("issue", authority.issue(issue(fresh))).await.unwrap();
    swarm.stop().await;
}

#[tokio::test]
async fn another_change_takes_the_place_of_one_that_waits_and_a_retry_begins_none() {
    let swarm = Swarm::start().await;
    let mut manager = Host::connect(&swarm, "manager", &swarm.credentials.clone()).await;
    let mut a = Host::join(&swarm, "a").await;
    let write = Some(WriteOptions { request_id: vec![3; 16] });
    let request = RotateRootRequest { write, node_cert_expiry_ms: 7_200_000, ..RotateRootRequest::default() };
    let first = rotate(&swarm, request.clone()).await.unwrap();
    assert_eq!(rotate(&swarm, request).await.unwrap(), first, "a retry");
    assert_eq!(cluster(&swarm).spec.node_cert_expiry_ms, 7_200_000);
    a.trust(2, &first).await;
    a.asked().await;
    a.renew().await;
    let life = a.live.current().not_after().duration_since(SystemTime::now()).unwrap();
    assert!(life <= 2 * HOUR && life > HOUR, "{life:?}");

    let second = rotate(&swarm, RotateRootRequest::default()).await.unwrap();
    assert_ne!(first, second);
    for host in [&mut manager, &mut a] {
        // Also who has a certificate of the root that was given up is believed, and renews.
        host.trust(2, &second).await;
        host.asked().await;
        host.renew().await;
    }
    for host in [&mut manager, &mut a] {
        host.trust(1, &second).await;
        assert_eq!(host.live.current().facts().issuer, second);
    }
    swarm.stop().await;
}

#[tokio::test]
async fn people_need_a_certificate_of_the_new_root_before_the_old_one_goes() {
    let swarm = Swarm::start().await;
    let looks = async |person: &Person| {
        let channel = person_channel(&swarm, &person.credentials);
        soon("look", ClientsClient::new(channel).list(ListClientsRequest { read: None })).await.map(drop)
    };
    let mut manager = Host::connect(&swarm, "manager", &swarm.credentials.clone()).await;
    let ann = person(&swarm, "ann", ClientRole::Viewer).await;
    let digest = rotate(&swarm, RotateRootRequest::default()).await.unwrap();
    let (bob, renewed) = (person(&swarm, "bob", ClientRole::Admin).await, renewed(&swarm, "ann").await);
    for made in [&bob, &renewed] {
        assert_eq!(made.credentials.roots().certs().len(), 2, "good before and after");
    }
    // Before the manager knows the new root itself, and after; as long as both are trusted.
    for is_told in [false, true] {
        if is_told {
            manager.trust(2, &digest).await;
            manager.asked().await;
        }
        for person in [&ann, &bob, &renewed] {
            looks(person).await.unwrap();
        }
    }
    manager.renew().await;
    manager.trust(1, &digest).await;
    for person in [&bob, &renewed] {
        looks(person).await.unwrap();
    }
    assert!(looks(&ann).await.is_err(), "her first certificate is of the old root");
    swarm.stop().await;
}

#[tokio::test]
async fn a_retry_of_a_given_root_is_answered_when_the_change_is_over() {
    let swarm = Swarm::start().await;
    let mut manager = Host::connect(&swarm, "manager", &swarm.credentials.clone()).await;
    let own = RootCa::generate(ClusterId::new(9), SystemTime::now()).unwrap();
    let request = RotateRootRequest {
        root_cert_pem: own.cert().to_pem(),
        root_key_pem: own.key_pem(),
        write: Some(WriteOptions { request_id: vec![4; 16] }),
        ..RotateRootRequest::default()
    };
    let digest = rotate(&swarm, request.clone()).await.unwrap();
    manager.trust(2, &digest).await;
    manager.asked().await;
    manager.renew().await;
    manager.trust(1, &digest).await;
    assert_eq!(rotate(&swarm, request.clone()).await.unwrap(), digest);
    let another = RotateRootRequest { write: None, ..request };
    assert!(rotate(&swarm, another).await.unwrap_err().message().contains("is the swarm's root already"));
    swarm.stop().await;
}

#[tokio::test]
async fn what_is_no_root_of_this_swarm_is_refused() {
    let swarm = Swarm::start().await;
    let given = |root: &RootCa, key: &RootCa| RotateRootRequest {
        root_cert_pem: root.cert().to_pem(),
        root_key_pem: key.key_pem().to_string(),
        ..RotateRootRequest::default()
    };
    let now = SystemTime::now();
    let (other, own) =
        (RootCa::generate(ClusterId::new(8), now).unwrap(), RootCa::generate(ClusterId::new(9), now).unwrap());
    let mut short = given(&own, &own);
    short.node_cert_expiry_ms = 60_000;
    let mut half = given(&own, &own);
    half.root_key_pem.clear();
    let cases = [
        (given(&other, &other), "has to name this swarm"),
        (given(&own, &other), "does not belong to its certificate"),
        (given(&swarm.ca, &swarm.ca), "is the swarm's root already"),
        (short, "must be between 1 hour"),
        (half, "go together"),
    ];
    for (request, words) in cases {
        let status = rotate(&swarm, request).await.unwrap_err();
        assert!(status.message().contains(words), "{words}: {status:?}");
    }
    assert!(cluster(&swarm).root_rotation.is_none());
    // And one that is.
    let digest = rotate(&swarm, given(&own, &own)).await.unwrap();
    assert_eq!(digest, own.cert().digest().as_bytes());
    // Only operators may.
    let worker = swarm.join("a").await;
    let mut clusters = ClustersClient::new(worker.channel.clone());
    let status = soon("rotate", clusters.rotate_root(RotateRootRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    swarm.stop().await;
}

/// What a node had last, made for a moment in the past.
fn ended(ca: &RootCa, node: NodeId, role: Role) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let grant = NodeGrant { node_id: node, role, validity: 2 * HOUR };
    let issued = ca.issue(&key.signing_request().unwrap(), &grant, SystemTime::now() - 10 * HOUR).unwrap();
    Credentials::new(key, &issued.chain_pem, ca.bundle()).unwrap()
}

async fn come_back(swarm: &Swarm, token: String, was: &Credentials) -> Result<Credentials, Status> {
    let key = NodeKey::generate().unwrap();
    let csr_pem = key.signing_request_pem().unwrap();
    let (cert_chain_pem, signature) = was.prove_return(&csr_pem).unwrap();
    let request = IssueRequest {
        csr_pem,
        token,
        hostname: "ignored".to_owned(),
        returning: Some(ReturningNode { cert_chain_pem, signature }),
        ..IssueRequest::default()
    };
    let issued = soon("issue", CertificateAuthorityClient::new(swarm.stranger()).issue(request)).await?.into_inner();
    Ok(Credentials::new(key, &issued.cert_chain_pem, swarm.ca.bundle()).unwrap())
}

#[tokio::test]
async fn a_node_whose_certificate_ran_out_comes_back_as_itself_and_nobody_else_does() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let was = ended(&swarm.ca, host.id, Role::Worker);
    // It told of another certificate, which is newer: somebody has an old copy.
    let status = come_back(&swarm, swarm.token(WORKER_SECRET), &was).await.unwrap_err();
    assert!(status.message().contains("newer certificate"), "{status:?}");

    let old = LiveCredentials::new(was.with_roots(was.roots().clone()).unwrap());
    let agent = Agent::connect(&host, "host2").await;
    agent.say(Up::Description(described("host2", &old))).await;
    swarm
        .until("what it told of", |state| {
            skep_core::ca::certificate(state.node(host.id).unwrap()) == Some(&was.facts())
        })
        .await;
    // The handshake is closed to it, and only the right token opens the way back.
    let mut closed = ClustersClient::new(member_channel(&old, swarm.addr));
    assert!(soon("refused", closed.get(GetClusterRequest::default())).await.is_err());
    for (token, words) in
        [([1; 16], "not valid"), (MANAGER_SECRET, "is a worker: its way back needs that role's token")]
    {
        let status = come_back(&swarm, swarm.token(token), &was).await.unwrap_err();
        assert!(status.message().contains(words), "{status:?}");
    }
    let nodes = swarm.state().node_count();
    let fresh = come_back(&swarm, swarm.token(WORKER_SECRET), &was).await.unwrap();
    assert_eq!((fresh.node_id(), fresh.role(), swarm.state().node_count()), (host.id, Role::Worker, nodes));
    Host::connect(&swarm, "host2", &LiveCredentials::new(fresh)).await;

    // Its root was changed while it was away: then the key that it told of speaks for it.
    let next = NextRoot::generate(&swarm.ca, SystemTime::now()).unwrap();
    let of_gone = ended(&next.root, host.id, Role::Worker);
    let status = come_back(&swarm, swarm.token(WORKER_SECRET), &of_gone).await.unwrap_err();
    assert!(status.message().contains("not of a root that this swarm trusts"), "{status:?}");
    let mut agent = Agent::connect(&host, "host2").await;
    let facts = LiveCredentials::new(of_gone.with_roots(next.root.bundle()).unwrap());
    agent.say(Up::Description(described("host2", &facts))).await;
    swarm
        .until("what it told of", |state| {
            skep_core::ca::certificate(state.node(host.id).unwrap()) == Some(&of_gone.facts())
        })
        .await;
    assert_eq!(come_back(&swarm, swarm.token(WORKER_SECRET), &of_gone).await.unwrap().node_id(), host.id);
    agent.hang_up();

    // A removed node stays out.
    swarm.remove_node(host.id).await;
    let status = come_back(&swarm, swarm.token(WORKER_SECRET), &was).await.unwrap_err();
    assert!(status.code() == Code::PermissionDenied && status.message().contains("removed"), "{status:?}");
    swarm.stop().await;
}

#[tokio::test]
async fn the_only_manager_renews_its_own_certificate() {
    let swarm = Swarm::start().await;
    let key = NodeKey::generate().unwrap();
    let issued = swarm.manager().renew_own(&key.signing_request_pem().unwrap()).unwrap();
    let credentials = Credentials::new(key, &issued.cert_chain_pem, swarm.ca.bundle()).unwrap();
    assert_eq!((credentials.node_id(), credentials.role()), (MANAGER, Role::Manager));
    swarm.stop().await;
}
