//! Joining and renewing.

use skep_core::change::{Change, Op};
use skep_core::object::Cluster;
use skep_identity::ca::RootCa;
use skep_identity::{Credentials, JoinToken, NodeKey, Role, TokenSecret};
use skep_proto::id::{ClusterId, NodeId, RequestId};
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::v1::{Availability, GetRootRequest, IssueRequest, NodeRole, NodeState, RenewRequest};
use tonic::Code;

use crate::swarm::{Swarm, WORKER_SECRET, soon};

fn request(token: String) -> IssueRequest {
    IssueRequest { token, hostname: "host2".into(), ..IssueRequest::default() }
}

#[tokio::test]
async fn a_worker_token_makes_a_worker() {
    let swarm = Swarm::start().await;
    let mut stranger = CertificateAuthorityClient::new(swarm.stranger());
    let root = soon("root", stranger.get_root(GetRootRequest {})).await.unwrap().into_inner();
    assert_eq!(root.root_cert_pem, swarm.ca.cert().to_pem());

    let key = NodeKey::generate().unwrap();
    let drained = IssueRequest {
        availability: Availability::Drain.into(),
        request_id: RequestId::new(5).to_vec(),
        ..request(swarm.token(WORKER_SECRET))
    };
    let issued = swarm.issue(&key, drained.clone()).await.unwrap();
    let credentials = Credentials::new(key, &issued.cert_chain_pem, swarm.ca.bundle()).unwrap();
    let id = credentials.node_id();
    assert_eq!((id.to_vec(), credentials.role()), (issued.node_id.clone(), Role::Worker));
    let node = swarm.node(id);
    assert_eq!((node.role, node.spec.availability()), (NodeRole::Worker, Availability::Drain));
    assert_eq!((node.hostname(), node.status.state), ("host2", NodeState::Unknown));

    // A retry makes no second node, though its key is another.
    let again = swarm.issue(&NodeKey::generate().unwrap(), drained).await.unwrap();
    assert_eq!(again.node_id, issued.node_id);
    assert_eq!(swarm.state().node_count(), 2);
    swarm.stop().await;
}

#[tokio::test]
async fn wrong_tokens_are_refused_and_make_nothing() {
    let swarm = Swarm::start().await;
    let key = NodeKey::generate().unwrap();
    let foreign = RootCa::generate(ClusterId::new(1), std::time::SystemTime::now()).unwrap();
    let foreign = JoinToken::new(foreign.cert().digest(), TokenSecret::new(WORKER_SECRET)).to_string();
    let cases = [
        (swarm.token([1; 16]), Code::PermissionDenied, "the join token is not valid (it may have been rotated)"),
        (foreign, Code::PermissionDenied, "belongs to another swarm"),
        ("SWMTKN-1-abc".into(), Code::InvalidArgument, "cut off"),
        ("x".repeat(10_000), Code::InvalidArgument, "too long"),
    ];
    for (token, code, words) in cases {
        let status = swarm.issue(&key, request(token)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(words), "{status:?}");
    }
    assert_eq!(swarm.state().node_count(), 1);
    swarm.stop().await;
}

#[tokio::test]
async fn a_rotated_token_lets_nobody_in() {
    let swarm = Swarm::start().await;
    let old = swarm.token(WORKER_SECRET);
    let mut rotated = Cluster::clone(swarm.state().cluster().unwrap());
    rotated.worker_token_secret = [9; 16];
    swarm.write(vec![Change::update(rotated.meta.version, Op::PutCluster(rotated))]).await;
    let key = NodeKey::generate().unwrap();
    let status = swarm.issue(&key, request(old)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("skep swarm join-token worker"), "{status:?}");
    swarm.issue(&key, request(swarm.token([9; 16]))).await.unwrap();
    swarm.stop().await;
}

#[tokio::test]
async fn a_request_that_cannot_be_signed_makes_no_node() {
    let swarm = Swarm::start().await;
    let mut stranger = CertificateAuthorityClient::new(swarm.stranger());
    for csr_pem in ["", "not a request", &"x".repeat(100_000)] {
        let bad = IssueRequest { csr_pem: csr_pem.to_owned(), ..request(swarm.token(WORKER_SECRET)) };
        let status = soon("issue", stranger.issue(bad)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    let key = NodeKey::generate().unwrap();
    let nameless = IssueRequest { hostname: "a b".into(), ..request(swarm.token(WORKER_SECRET)) };
    assert_eq!(swarm.issue(&key, nameless).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(swarm.state().node_count(), 1);
    swarm.stop().await;
}

#[tokio::test]
async fn a_node_renews_for_itself_until_it_is_removed() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let key = NodeKey::generate().unwrap();
    let renew = RenewRequest { csr_pem: key.signing_request_pem().unwrap() };
    let mut client = CertificateAuthorityClient::new(host.channel.clone());
    let renewed = soon("renew", client.renew(renew.clone())).await.unwrap().into_inner();
    let credentials = Credentials::new(key, &renewed.cert_chain_pem, swarm.ca.bundle()).unwrap();
    assert_eq!((credentials.node_id(), credentials.role()), (host.id, Role::Worker));

    let mut stranger = CertificateAuthorityClient::new(swarm.stranger());
    let status = soon("renew", stranger.renew(renew.clone())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);

    // A manager renews as a manager.
    let mut manager = CertificateAuthorityClient::new(swarm.operator());
    let renewed = soon("renew", manager.renew(renew.clone())).await.unwrap().into_inner();
    assert_eq!(renewed.role(), NodeRole::Manager);

    swarm.remove_node(host.id).await;
    assert!(soon("renew", client.renew(renew)).await.is_err());
    assert_eq!(NodeId::from_wire(&renewed.node_id).unwrap(), crate::swarm::MANAGER);
    swarm.stop().await;
}
