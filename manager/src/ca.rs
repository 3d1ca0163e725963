//! The certificate authority's service: how a host becomes a node, and how a node renews its certificate. Every manager
//! has the root and signs; what it signs for is written by the leader.
//!
//! `signing.rs` has what it signs with, `rotation.rs` changes the root, `returning.rs` says which nodes may come back after
//! their certificate ran out. Anyone can reach the service, so it decides by the token and by the caller's certificate alone;
//! nothing that a request says of itself counts. Keys and token secrets never reach a log.

mod returning;
pub(crate) mod rotation;
pub(crate) mod signing;

use std::sync::Arc;
use std::time::Duration;

use rand::RngCore as _;
use rand::rngs::OsRng;
use skep_core::apply::Refused;
use skep_core::change::{Change, NodeObserved, Op};
use skep_core::object::{Cluster, Meta, Node, NodeStatus};
use skep_core::roles;
use skep_core::store::State;
use skep_identity::ca::{DEFAULT_NODE_VALIDITY, MIN_NODE_VALIDITY};
use skep_identity::{
    CaError, Caller, ClientGrant, DenyList, IssuedCertificate, JoinToken, NodeGrant, PeerIdentity, Role, TokenSecret,
    verify_return,
};
use skep_proto::id::{NodeId, RequestId};
use skep_proto::v1::certificate_authority_server::{
    CertificateAuthority as AuthorityService, CertificateAuthorityServer,
};
use skep_proto::v1::{
    Availability, GetRootRequest, GetRootResponse, IssueRequest, IssueResponse, NodeCertificate, NodeDescription,
    NodeRole, NodeSpec, NodeState, RenewRequest, ReturningNode,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::store::{Store, WriteError};
use signing::{Signing, SigningCache};

/// A refused token is answered this late …
const REFUSAL_DELAY: Duration = Duration::from_millis(500);
/// … and so many of them wait at a time; others are refused unheard. A secret has 128 bits: this is not what keeps a
/// guesser out, it keeps him from being a burden.
const REFUSALS: usize = 16;
/// Bytes of a certificate request; one of a P-256 key has about 400.
const REQUEST_BYTES: usize = 16 << 10;
/// Bytes of a token; a valid one has 85.
const TOKEN_BYTES: usize = 256;

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CertificateAuthority {
    store: Store,
    deny: DenyList,
    signing: SigningCache,
    refusals: Arc<Semaphore>,
}

/// What a token lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Role(Role),
    /// Not a secret of this swarm, or one of the past.
    WrongSecret,
    /// Made for another root.
    OtherSwarm,
}

impl CertificateAuthority {
    /// `deny` names the nodes whose certificates are not renewed.
    pub(crate) fn new(store: Store, deny: DenyList) -> Self {
        Self { store, deny, signing: SigningCache::default(), refusals: Arc::new(Semaphore::new(REFUSALS)) }
    }

    /// The gRPC service, for the managers' port, where anonymous callers are let in.
    pub(crate) fn service(&self) -> CertificateAuthorityServer<Self> {
        CertificateAuthorityServer::new(self.clone())
    }

    /// Signs a request, which was checked by nobody yet.
    #[allow(clippy::result_large_err)]
    fn sign(&self, cluster: &Cluster, csr_pem: &str, node_id: NodeId, role: Role) -> Result<IssuedCertificate, Status> {
        if csr_pem.len() > REQUEST_BYTES {
            return Err(Status::invalid_argument("the certificate request is too long"));
        }
        let grant = NodeGrant { node_id, role, validity: validity(cluster) };
        let signed = self.signing.get(cluster).and_then(|signing| signing.issue(csr_pem.as_bytes(), &grant));
        signed.map_err(sign_status)
    }

    /// Signs a person's request, which was checked by nobody yet.
    #[allow(clippy::result_large_err)]
    pub(crate) fn sign_client(
        &self,
        cluster: &Cluster,
        csr_pem: &str,
        grant: &ClientGrant,
    ) -> Result<IssuedCertificate, Status> {
        if csr_pem.len() > REQUEST_BYTES {
            return Err(Status::invalid_argument("the certificate request is too long"));
        }
        let signing = self.signing.get(cluster).map_err(sign_status)?;
        signing.issue_client(csr_pem.as_bytes(), grant).map_err(sign_status)
    }

    /// The node that an earlier request of this id made.
    fn made_before(state: &State, request: Option<RequestId>) -> Option<Arc<Node>> {
        let record = state.request(request?)?;
        state.node(NodeId::from_wire(&record.object_id).ok()?).cloned()
    }

    /// Makes the node of a checked request, or finds the one that its first try made.
    async fn make_node(&self, request: Option<RequestId>, node: Node) -> Result<NodeId, Status> {
        let id = node.id;
        let changes = vec![Change::create(Op::PutNode(node))];
        let written = self.store.write(request, id.to_vec(), changes).await.map_err(write_status)?;
        self.store.applied(written.version).await;
        NodeId::from_wire(&written.object_id)
            .map_err(|_| Status::invalid_argument("the request id was used for something else"))
    }
}

#[tonic::async_trait]
impl AuthorityService for CertificateAuthority {
    async fn get_root(&self, request: Request<GetRootRequest>) -> Result<Response<GetRootResponse>, Status> {
        Caller::of(&request)?;
        let state = self.store.state();
        let root_cert_pem = cluster(&state)?.root_cert_pem.clone();
        Ok(Response::new(GetRootResponse { root_cert_pem }))
    }

    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let caller = Caller::of(&request)?.clone();
        let request = request.into_inner();
        let token = parse_token(&request.token)?;
        let (state, role) = self.admit(&caller, &token).await?;
        if let Some(returning) = request.returning {
            return self.readmit(role, &request.csr_pem, &returning).await.map(Response::new);
        }
        let mut cluster = Arc::clone(cluster(&state)?);
        let request_id = RequestId::from_wire_opt(&request.request_id)
            .map_err(|error| Status::invalid_argument(format!("the request id: {error}")))?;
        let availability = Availability::try_from(request.availability)
            .map_err(|_| Status::invalid_argument("the availability is none of active, pause, drain"))?;
        if !crate::dispatch::is_hostname(&request.hostname) {
            return Err(Status::invalid_argument("the hostname is empty, too long, or not printable"));
        }
        let known = Self::made_before(&state, request_id);
        let fresh = known.map_or_else(random_node, |node| node.id);
        // Signed first: a request that cannot be signed makes no node.
        let mut signed = self.sign(&cluster, &request.csr_pem, fresh, role)?;
        let node = joining_node(fresh, role, availability, request.hostname.clone(), signed.facts.clone());
        let id = self.make_node(request_id, node).await?;
        let state = self.store.state();
        let Some(node) = state.node(id).cloned() else {
            return Err(Status::invalid_argument("the request id was used for something else"));
        };
        let before = std::mem::replace(&mut cluster, Arc::clone(self::cluster(&state)?));
        if self.admission(&cluster, &token)? != Admission::Role(role) {
            // Rotated on another manager, unseen by this one until its write came after it.
            if id == fresh {
                self.take_back(&node).await;
            }
            return Err(token_status(Admission::WrongSecret));
        }
        // The change of the root began, unseen by this one as well.
        if id != fresh || before.trusted_roots_pem() != cluster.trusted_roots_pem() {
            signed = self.sign(&cluster, &request.csr_pem, id, role)?;
        }
        info!(node = %id, %role, hostname = request.hostname, "a node has joined");
        Ok(Response::new(answer(&cluster, id, role, signed)))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<IssueResponse>, Status> {
        let peer = Caller::of(&request)?.require_node()?.clone();
        // The wish for another role may not have reached this manager yet. Without a leader there is none.
        let state = self.store.fresh().await.unwrap_or_else(|_| self.store.state());
        let cluster = Arc::clone(cluster(&state)?);
        let role = self.renewable(&state, &peer)?;
        let signed = self.sign(&cluster, &request.get_ref().csr_pem, peer.node_id, role)?;
        self.note_role(&state, peer.node_id, role).await?;
        info!(node = %peer.node_id, %role, "a certificate was renewed");
        Ok(Response::new(answer(&cluster, peer.node_id, role, signed)))
    }
}

impl CertificateAuthority {
    /// The role that a token gives, and the state that says so.
    async fn admit(&self, caller: &Caller, token: &JoinToken) -> Result<(State, Role), Status> {
        let state = self.store.state();
        if let Admission::Role(role) = self.admission(cluster(&state)?, token)? {
            return Ok((state, role));
        }
        let Ok(_permit) = self.refusals.try_acquire() else {
            return Err(Status::resource_exhausted("too many hosts try to join with a wrong token: try again later"));
        };
        // It may be a new one, of which this manager has not heard yet.
        let state = self.store.fresh().await.map_err(write_status)?;
        let refused = match self.admission(cluster(&state)?, token)? {
            Admission::Role(role) => return Ok((state, role)),
            refused @ (Admission::WrongSecret | Admission::OtherSwarm) => refused,
        };
        warn!(?caller, ?refused, "a host tried to join with a token that is not valid");
        // Late, so that nobody tries many.
        tokio::time::sleep(REFUSAL_DELAY).await;
        Err(token_status(refused))
    }

    #[allow(clippy::result_large_err)]
    fn read(&self, cluster: &Cluster) -> Result<Arc<Signing>, Status> {
        self.signing.get(cluster).map_err(|error| {
            warn!(%error, "the swarm's authority cannot be read");
            Status::internal("the swarm's authority cannot be read: see the manager's log")
        })
    }

    /// A new certificate for the only manager's own node.
    #[allow(clippy::result_large_err)]
    pub(crate) fn renew_own(&self, id: NodeId, csr_pem: &str) -> Result<IssueResponse, Status> {
        let state = self.store.state();
        let cluster = cluster(&state)?;
        let node = state.node(id).filter(|_| !state.is_denied(id)).ok_or_else(gone)?;
        let role = identity_role(roles::certificate_role(node));
        let signed = self.sign(cluster, csr_pem, id, role)?;
        Ok(answer(cluster, id, role, signed))
    }

    /// A new certificate for a node whose last one ran out, or is of a root that is not trusted any more. `role` is the
    /// token's.
    async fn readmit(&self, role: Role, csr_pem: &str, proof: &ReturningNode) -> Result<IssueResponse, Status> {
        if proof.cert_chain_pem.len() > REQUEST_BYTES || csr_pem.len() > REQUEST_BYTES {
            return Err(Status::invalid_argument("the node's former certificate or its request is too long"));
        }
        // Whether it was removed, the newest state knows.
        let state = self.store.fresh().await.map_err(write_status)?;
        let cluster = Arc::clone(cluster(&state)?);
        let trusted = self.read(&cluster)?.trusted().clone();
        let returned = verify_return(csr_pem, &proof.cert_chain_pem, &proof.signature, &trusted)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let id = returned.identity.node_id;
        if self.deny.is_denied(id) || state.is_denied(id) || returned.identity.cluster_id != cluster.id {
            return Err(gone());
        }
        let node = state.node(id).ok_or_else(gone)?;
        returning::check(node, &returned, crate::dispatch::stored_role(role))
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        let signed = self.sign(&cluster, csr_pem, id, role)?;
        self.note_role(&state, id, role).await?;
        info!(node = %id, %role, "a node whose certificate was of no use any more has come back");
        Ok(answer(&cluster, id, role, signed))
    }

    /// What a token lets in. Takes the same time for every secret.
    #[allow(clippy::result_large_err)]
    fn admission(&self, cluster: &Cluster, token: &JoinToken) -> Result<Admission, Status> {
        let digest = self.read(cluster)?.token_root();
        let matches = |secret| JoinToken::new(digest, TokenSecret::new(secret)).matches(token);
        let worker = matches(cluster.worker_token_secret);
        let manager = matches(cluster.manager_token_secret);
        Ok(match (worker, manager) {
            (true, _) => Admission::Role(Role::Worker),
            (false, true) => Admission::Role(Role::Manager),
            (false, false) if token.root_digest() != digest => Admission::OtherSwarm,
            (false, false) => Admission::WrongSecret,
        })
    }

    /// The role that the caller's next certificate gives it: a manager's from an operator's wish until the node is out
    /// of Raft.
    #[allow(clippy::result_large_err)]
    fn renewable(&self, state: &State, peer: &PeerIdentity) -> Result<Role, Status> {
        if self.deny.is_denied(peer.node_id) || state.is_denied(peer.node_id) {
            return Err(gone());
        }
        let node = state.node(peer.node_id).ok_or_else(gone)?;
        Ok(identity_role(roles::certificate_role(node)))
    }

    /// Writes down the role that a node's new certificate gives it.
    async fn note_role(&self, state: &State, node: NodeId, role: Role) -> Result<(), Status> {
        let role = crate::dispatch::stored_role(role);
        if state.node(node).is_none_or(|known| known.role == role) {
            return Ok(());
        }
        let observed = NodeObserved { node: Some(node), role: Some(role), ..NodeObserved::default() };
        let changes = vec![Change::any(Op::ObserveNode(observed))];
        self.store.write(None, Vec::new(), changes).await.map_err(write_status)?;
        Ok(())
    }

    /// Removes a node that was made for a token that is not valid any more, and that nobody heard of.
    async fn take_back(&self, node: &Node) {
        let changes = vec![Change::update(node.meta.version, Op::RemoveNode(node.id))];
        if let Err(error) = self.store.write(None, node.id.to_vec(), changes).await {
            warn!(node = %node.id, %error, "a node that never joined could not be removed: remove it with `skep node rm`");
        }
    }
}

fn gone() -> Status {
    Status::permission_denied(
        "this node was removed from the swarm: it has to leave (`skep swarm leave --force`) and join again",
    )
}

#[allow(clippy::result_large_err)]
fn cluster(state: &State) -> Result<&Arc<Cluster>, Status> {
    state.cluster().ok_or_else(|| Status::unavailable("the swarm's state is not there yet: try again in a moment"))
}

#[allow(clippy::result_large_err)]
fn parse_token(text: &str) -> Result<JoinToken, Status> {
    if text.len() > TOKEN_BYTES {
        return Err(Status::invalid_argument("the join token is too long: paste it as it was shown"));
    }
    text.parse().map_err(|error: skep_identity::TokenError| Status::invalid_argument(error.to_string()))
}

fn token_status(refused: Admission) -> Status {
    Status::permission_denied(match refused {
        Admission::OtherSwarm => {
            "the join token belongs to another swarm: get this one's with `skep swarm join-token worker|manager` on a manager"
        }
        Admission::WrongSecret | Admission::Role(_) => {
            "the join token is not valid (it may have been rotated): get the current one with `skep swarm join-token worker|manager` on a manager"
        }
    })
}

fn sign_status(error: CaError) -> Status {
    match error {
        CaError::MalformedRequest | CaError::RequestAlgorithm | CaError::RequestSignature => {
            Status::invalid_argument(error.to_string())
        }
        CaError::RootExpired => Status::failed_precondition(error.to_string()),
        other => {
            warn!(error = %other, "cannot sign a certificate");
            Status::internal("the swarm's authority cannot sign: see the manager's log")
        }
    }
}

fn write_status(error: WriteError) -> Status {
    match error {
        WriteError::Refused(Refused::Exists { .. }) => Status::aborted("the node's id is taken: try again"),
        WriteError::Refused(refused) => Status::failed_precondition(refused.to_string()),
        WriteError::NoLeader | WriteError::Stopped(_) => Status::unavailable(error.to_string()),
        WriteError::Unknown => Status::deadline_exceeded(error.to_string()),
    }
}

/// A node as it is before its first session.
fn joining_node(
    id: NodeId,
    role: Role,
    availability: Availability,
    hostname: String,
    certificate: NodeCertificate,
) -> Node {
    let role = crate::dispatch::stored_role(role);
    let spec = NodeSpec { role: role.into(), availability: availability.into(), ..NodeSpec::default() };
    let description = NodeDescription { hostname, certificate: Some(certificate), ..NodeDescription::default() };
    Node {
        id,
        meta: Meta::default(),
        spec: Arc::new(spec),
        description: Some(Arc::new(description)),
        status: NodeStatus {
            state: NodeState::Unknown,
            message: "joined; no session yet".to_owned(),
            ..NodeStatus::default()
        },
        role,
        manager: None,
        fabric_number: None,
        ingress: None,
    }
}

fn answer(cluster: &Cluster, node: NodeId, role: Role, signed: IssuedCertificate) -> IssueResponse {
    IssueResponse {
        node_id: node.to_vec(),
        cluster_id: cluster.id.to_vec(),
        role: crate::dispatch::stored_role(role).into(),
        cert_chain_pem: signed.chain_pem,
        root_cert_pem: cluster.trusted_roots_pem(),
    }
}

/// Life of a node's certificate.
pub(crate) fn validity(cluster: &Cluster) -> Duration {
    match u64::try_from(cluster.spec.node_cert_expiry_ms) {
        Ok(0) | Err(_) => DEFAULT_NODE_VALIDITY,
        Ok(ms) => Duration::from_millis(ms).max(MIN_NODE_VALIDITY),
    }
}

fn identity_role(role: NodeRole) -> Role {
    match role {
        NodeRole::Worker => Role::Worker,
        NodeRole::Manager => Role::Manager,
    }
}

fn random_node() -> NodeId {
    let mut bytes = [0; 16];
    OsRng.fill_bytes(&mut bytes);
    NodeId::new(u128::from_be_bytes(bytes))
}
