//! Connections between nodes with this node's identity: to managers, to other nodes' image service, and the image
//! service that this node offers.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use skep_identity::transport::{
    self, AcceptLimits, ByCertificate, ChannelOptions, Keepalive, Refusal, connect, refusal,
};
use skep_identity::{Anonymous, Caller, ClientTls, DenyList, Expected, LiveCredentials, Role, ServerTls, ticket};
use skep_proto::id::NodeId;
use skep_proto::v1::peer_server::PeerServer;
use skep_worker::{ConnectError, Connector, Grant, TicketCheck};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tracing::warn;

use crate::host::Host;

/// Opens connections as this node.
#[derive(Clone)]
pub(crate) struct Links {
    live: LiveCredentials,
    deny: DenyList,
    /// The swarm's roots as a manager said last, PEM. Empty: nothing was said yet.
    roots: watch::Sender<String>,
}

impl Links {
    pub(crate) fn new(live: &LiveCredentials, deny: &DenyList) -> Arc<Self> {
        Arc::new(Self { live: live.clone(), deny: deny.clone(), roots: watch::Sender::default() })
    }

    /// Follows what managers say of the swarm's roots.
    pub(crate) fn trusted(&self) -> watch::Receiver<String> {
        self.roots.subscribe()
    }

    async fn open(&self, addr: &str, expected: Expected) -> Result<Channel, ConnectError> {
        let tls = ClientTls::member(&self.live, &self.deny, expected);
        Ok(connect(vec![addr.to_owned()], tls, ChannelOptions::NODES).await?)
    }
}

#[tonic::async_trait]
impl Connector for Links {
    async fn manager(&self, addr: &str) -> Result<Channel, ConnectError> {
        self.open(addr, Expected::manager()).await
    }

    async fn peer(&self, node: NodeId, addr: &str) -> Result<Channel, ConnectError> {
        self.open(addr, Expected::node(node)).await
    }

    fn denied(&self, nodes: &BTreeSet<NodeId>) {
        match self.live.current().role() {
            Role::Worker => {
                self.deny.set(nodes.iter().copied());
            }
            // Its own manager keeps the list; a session at another one may be a moment behind, and must not shorten it.
            Role::Manager => nodes.iter().for_each(|node| {
                self.deny.deny(*node);
            }),
        }
    }

    fn roots(&self, certs_pem: &str) {
        self.roots.send_replace(certs_pem.to_owned());
    }

    fn is_removal(&self, error: &(dyn Error + 'static)) -> bool {
        refusal(error) == Some(Refusal::Removed)
    }
}

/// Judges the tickets that other nodes show.
struct Tickets {
    live: LiveCredentials,
    deny: DenyList,
}

impl TicketCheck for Tickets {
    fn image(&self, request: &Request<()>, bytes: &[u8]) -> Result<Grant, Status> {
        let bearer = Caller::of(request)?.require_node()?.node_id;
        let own = self.live.current();
        let ticket = ticket::verify(bytes, own.roots(), own.cluster_id(), bearer, SystemTime::now())
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        if self.deny.is_denied(ticket.signer.node_id) {
            return Err(Status::permission_denied("the ticket's signer was removed from the swarm"));
        }
        Ok(Grant { image: ticket.digest, bearer })
    }
}

/// Serves this node's images to other nodes, in a task of `listeners`.
pub(crate) async fn serve_peers(
    host: &Host,
    live: &LiveCredentials,
    deny: &DenyList,
    listeners: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let port = host.config.peer_port;
    let listener = bind_any(port).await.with_context(|| {
        format!("cannot listen on port {port}, where other nodes fetch images: choose another with --peer-port")
    })?;
    let tickets = Tickets { live: live.clone(), deny: deny.clone() };
    let service = PeerServer::new(skep_worker::PeerService::new(host.images.store().clone(), Arc::new(tickets)));
    let tls = ServerTls::new(live, deny, Anonymous::Refused);
    let incoming = transport::incoming(listener, tls, AcceptLimits::default());
    let routes = transport::gated(Routes::new(service), Arc::new(ByCertificate));
    let server = transport::server(Keepalive::NODES).add_routes(routes);
    listeners.spawn(async move {
        if let Err(error) = server.serve_with_incoming(incoming).await {
            warn!(%error, "the image port is closed");
        }
    });
    Ok(())
}

/// All addresses of both families, or of IPv4 where the host has no IPv6.
async fn bind_any(port: u16) -> std::io::Result<tokio::net::TcpListener> {
    match tokio::net::TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        Err(_) => tokio::net::TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
    }
}
