//! A swarm is made with this host as its first manager, or made anew with this manager as its only one.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use skep_identity::ca::{DEFAULT_NODE_VALIDITY, MIN_NODE_VALIDITY};
use skep_identity::{Credentials, JoinToken, NodeGrant, NodeKey, Role, RootBundle, RootCa, UnlockKey};
use skep_manager::Bootstrap;
use skep_proto::id::{ClusterId, NodeId};
use skep_proto::v1::{ClusterSpec, NodeRole, NodeSpec, SwarmInitRequest, SwarmState};
use tracing::{info, warn};

use super::{FIRST_SESSION, LOCKED, MemberGuard, Membership};
use crate::host::Host;
use crate::sealing::Sealing;
use crate::seat::First;

impl Membership {
    /// Makes a swarm with this host as its first manager, or makes this manager the only one of its swarm.
    pub(crate) async fn init(&self, request: SwarmInitRequest) -> anyhow::Result<Founded> {
        let mut member = self.transition().await?;
        if self.standing().state == SwarmState::Locked {
            bail!("{LOCKED}");
        }
        if request.force_new_cluster {
            return self.recover(&mut member, request).await;
        }
        self.refuse_if_member(&member)?;
        self.refuse_leftovers()?;
        let record = self.record(&request.listen_addr, &request.advertise_addr)?;
        let founding = found(&self.host, &request)?;
        let (node, token) = (founding.credentials.node_id(), founding.token);
        let advertise_addr = record.advertise_addr;
        let unlock_key = founding.bootstrap.unlock_key.map(UnlockKey::new);
        let sealing = Sealing::new(self.host.identity_dir(), unlock_key.clone(), Vec::new());
        let first = First::Found(Box::new(founding.bootstrap));
        self.enter(&mut member, founding.credentials, record, first, sealing).await?;
        if let Some(member) = member.as_ref() {
            // Returning earlier would let the next command find it starting. The swarm is made either way.
            let _ = tokio::time::timeout(FIRST_SESSION, member.seat.settled()).await;
        }
        info!(%node, "a swarm was made");
        Ok(Founded { node, token, advertise_addr, unlock_key })
    }

    async fn recover(&self, member: &mut MemberGuard, request: SwarmInitRequest) -> anyhow::Result<Founded> {
        let addressed = SwarmInitRequest {
            listen_addr: request.listen_addr.clone(),
            advertise_addr: request.advertise_addr.clone(),
            force_new_cluster: true,
            ..SwarmInitRequest::default()
        };
        if request != addressed {
            bail!(
                "--force-new-cluster keeps the swarm's settings: it goes with --listen-addr and --advertise-addr only"
            );
        }
        let Some(member) = member.as_ref() else {
            bail!("this node holds no manager's state to go on from: use `skep swarm init` without --force-new-cluster")
        };
        let addrs = match (request.listen_addr.as_str(), request.advertise_addr.as_str()) {
            ("", "") => None,
            (listen, advertise) => {
                let record = self.record(listen, advertise)?;
                Some((record.listen_addr, record.advertise_addr))
            }
        };
        let token = member.seat.recover(addrs).await?;
        let node = member.live.current().node_id();
        warn!(%node, "this manager is the only one of its swarm now; the others have to join again");
        Ok(Founded { node, token, advertise_addr: member.record.get().advertise_addr, unlock_key: None })
    }
}

/// A swarm that was made, or made anew with this manager alone.
#[derive(Debug)]
pub(crate) struct Founded {
    pub(crate) node: NodeId,
    /// The worker's.
    pub(crate) token: JoinToken,
    /// What others are told.
    pub(crate) advertise_addr: SocketAddr,
    /// With autolock.
    pub(crate) unlock_key: Option<UnlockKey>,
}

/// What a new swarm begins with.
struct Founding {
    credentials: Credentials,
    bootstrap: Bootstrap,
    token: JoinToken,
}

fn found(host: &Host, request: &SwarmInitRequest) -> anyhow::Result<Founding> {
    let validity = match u64::try_from(request.node_cert_expiry_ms) {
        Ok(0) => DEFAULT_NODE_VALIDITY,
        Ok(ms) => Duration::from_millis(ms),
        Err(_) => Duration::ZERO,
    };
    if validity < MIN_NODE_VALIDITY {
        bail!("the life of node certificates must be at least one hour");
    }
    let spec = ClusterSpec {
        task_history_limit: request.task_history_limit,
        heartbeat_period_ms: request.heartbeat_period_ms,
        node_cert_expiry_ms: request.node_cert_expiry_ms,
        address_pools: request.address_pools.clone(),
        subnet_length: request.subnet_length,
        data_path_port: request.data_path_port,
        autolock: request.autolock,
        ..ClusterSpec::default()
    };
    skep_proto::validate::cluster_spec(&spec)?;
    let (cluster, node) = (ClusterId::new(rand::random()), NodeId::new(rand::random()));
    let now = SystemTime::now();
    let authority = RootCa::generate(cluster, now)?;
    let key = NodeKey::generate()?;
    let grant = NodeGrant { node_id: node, role: Role::Manager, validity };
    let issued = authority.issue(&key.signing_request()?, &grant, now)?;
    let credentials = Credentials::new(key, &issued.chain_pem, RootBundle::from(authority.cert().clone()))?;
    let bootstrap = Bootstrap {
        cluster,
        spec,
        root_cert_pem: authority.cert().to_pem(),
        root_key_pem: authority.key_pem().to_string(),
        worker_token_secret: rand::random(),
        manager_token_secret: rand::random(),
        unlock_key: request.autolock.then(|| *UnlockKey::generate().expose()),
        node_spec: NodeSpec {
            role: NodeRole::Manager.into(),
            availability: request.availability,
            ..NodeSpec::default()
        },
        hostname: host.hostname.clone(),
    };
    let secret = skep_identity::TokenSecret::new(bootstrap.worker_token_secret);
    let token = JoinToken::new(authority.cert().digest(), secret);
    Ok(Founding { credentials, bootstrap, token })
}
