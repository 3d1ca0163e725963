//! The managers' port in the simulated network: tonic over turmoil's TCP, with the product's keepalive and deadlines.
//! Every connection counts as that of the calling host's node, and as a manager's, as there is no TLS here. Nodes that were
//! removed are refused.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use hyper_util::rt::TokioIo;
use skep_identity::transport::{self, Caller, ChannelOptions, ConnectionInfo, Keepalive};
use skep_identity::{PeerIdentity, Role};
use skep_manager::sim::Connect;
use skep_manager::store::Store;
use skep_proto::id::{ClusterId, NodeId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use turmoil::net::{TcpListener, TcpStream};

use crate::world::World;

/// The managers' port.
const PORT: u16 = 2377;
/// How long a refused connection takes.
const REFUSAL: std::time::Duration = std::time::Duration::from_millis(5);

/// The host name of a manager.
pub(crate) fn host(id: u64) -> String {
    format!("m{id}")
}

/// `host:port` of a manager, as it is stored in Raft's membership.
pub(crate) fn address(id: u64) -> String {
    format!("{}:{PORT}", host(id))
}

/// Channels as the product makes them, without TLS. Who does not answer either `refuses` soon, as a host without a manager
/// does, or is silent.
pub(crate) fn connect(refuses: bool) -> Connect {
    Arc::new(move |addr: &str| {
        let host = addr.split(':').next().unwrap_or_default().to_owned();
        channel(host, refuses)
    })
}

fn channel(host: String, refuses: bool) -> Channel {
    let options = ChannelOptions::MANAGERS;
    let connector = tower::service_fn(move |_| {
        let host = host.clone();
        async move {
            let connecting = async {
                let connected = TcpStream::connect((host.as_str(), PORT)).await;
                if connected.is_err() {
                    // turmoil fails at once, in no time at all.
                    tokio::time::sleep(if refuses { REFUSAL } else { options.connect_timeout }).await;
                }
                connected
            };
            match tokio::time::timeout(options.connect_timeout, connecting).await {
                Ok(stream) => stream.map(TokioIo::new),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
            }
        }
    });
    Endpoint::from_static("http://skep")
        .http2_keep_alive_interval(options.keepalive.interval)
        .keep_alive_timeout(options.keepalive.timeout)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector)
}

/// The node at the other end of a connection.
fn caller(world: &World, ip: std::net::IpAddr) -> Option<NodeId> {
    let host = turmoil::reverse_lookup(ip)?.strip_prefix('m')?.parse().ok()?;
    Some(world.seat(host, |seat| seat.node))
}

/// Serves until the host ends.
pub(crate) async fn serve(world: Rc<World>, store: Store, routes: Routes) -> turmoil::Result {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let admit = move |(stream, from): (TcpStream, std::net::SocketAddr)| match caller(&world, from.ip()) {
        Some(node) if !store.state().is_denied(node) => Some(Accepted { stream, node }),
        _ => None,
    };
    // The connections' tasks are to be free of the world, which is this thread's alone.
    let (sender, accepted) = tokio::sync::mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        loop {
            let connection = listener.accept().await.map(&admit);
            if let Some(connection) = connection.transpose()
                && sender.send(connection).is_err()
            {
                return;
            }
        }
    });
    let incoming = futures::stream::unfold(accepted, |mut accepted| async {
        let next = accepted.recv().await?;
        Some((next, accepted))
    });
    transport::server(Keepalive::MANAGERS).add_routes(routes).serve_with_incoming(incoming).await?;
    Ok(())
}

/// A connection that says who calls.
struct Accepted {
    stream: TcpStream,
    node: NodeId,
}

impl Connected for Accepted {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        let peer = PeerIdentity {
            node_id: self.node,
            role: Role::Manager,
            cluster_id: ClusterId::new(1),
            not_after: SystemTime::UNIX_EPOCH,
        };
        ConnectionInfo { caller: Caller::Node(peer), remote: None }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
