//! The connecting side of mutual TLS: a tonic channel over one or several addresses, reconnecting by itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{Either, ready};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::deny::{Party, Side};
use crate::peer::PeerIdentity;
use crate::tls::ClientTls;
use crate::transport::refusal::explain;
use crate::transport::{ClientConnection, Keepalive};

/// How a channel behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelOptions {
    /// For TCP and TLS together, each address anew.
    pub connect_timeout: Duration,
    /// Sent also while no call is under way.
    pub keepalive: Keepalive,
}

impl ChannelOptions {
    /// Between managers.
    pub const MANAGERS: Self = Self { connect_timeout: Duration::from_millis(1000), keepalive: Keepalive::MANAGERS };
    /// From a node to a manager or another node.
    pub const NODES: Self = Self { connect_timeout: Duration::from_secs(5), keepalive: Keepalive::NODES };
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address was given.
    #[error("there is no address to connect to")]
    NoAddress,
    /// The only or last address failed.
    #[error("cannot connect to {addr}")]
    Io {
        /// `host:port`.
        addr: String,
        /// The cause; [`crate::transport::refusal`] finds a refused certificate in it.
        #[source]
        source: io::Error,
    },
    /// TCP works but HTTP/2 does not.
    #[error("cannot start HTTP/2")]
    Http(#[source] tonic::transport::Error),
}

/// A channel that connects at its first call and again whenever it is cut. Addresses are `host:port`, tried in order from
/// the last good one (call it within a tokio runtime); names are resolved at each attempt. A failed call carries the cause (see [`crate::transport::refusal`]).
pub fn channel(addrs: Vec<String>, tls: ClientTls, options: ChannelOptions) -> Channel {
    let connector = Arc::new(Connector { addrs, tls, options, next: AtomicUsize::new(0) });
    endpoint(options).connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let connector = Arc::clone(&connector);
        async move { connector.connect().await.map(TokioIo::new) }
    }))
}

/// Like [`channel`], but connects at once. In TLS 1.3 a refused client certificate shows only at the first call.
pub async fn connect(addrs: Vec<String>, tls: ClientTls, options: ChannelOptions) -> Result<Channel, ConnectError> {
    let connector = Arc::new(Connector { addrs, tls, options, next: AtomicUsize::new(0) });
    let first = connector.connect().await?;
    let reconnect = move || {
        let connector = Arc::clone(&connector);
        async move { connector.connect().await }
    };
    begin_with(first, reconnect, endpoint(options)).await
}

/// A channel over a stream that is already there, so that its error kept its type, and over new ones once it is cut.
pub(crate) async fn begin_with<S, F, Fut>(first: S, reconnect: F, endpoint: Endpoint) -> Result<Channel, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn() -> Fut + Send + 'static,
    Fut: Future<Output = Result<S, ConnectError>> + Send + 'static,
{
    let mut first = Some(first);
    let service = tower::service_fn(move |_: Uri| {
        let next = match first.take() {
            Some(stream) => Either::Left(ready(Ok(stream))),
            None => Either::Right(reconnect()),
        };
        async move { next.await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(service).await.map_err(ConnectError::Http)
}

/// One bare TLS connection, for protocols other than gRPC.
pub async fn connect_stream(addr: &str, tls: &ClientTls, timeout: Duration) -> Result<ClientConnection, ConnectError> {
    let failed = |source| ConnectError::Io { addr: addr.to_owned(), source };
    match tokio::time::timeout(timeout, handshake(addr, tls)).await {
        Ok(result) => result.map_err(|error| failed(explain(error))),
        Err(_) => {
            let text = format!("no answer within {} ms", timeout.as_millis());
            Err(failed(io::Error::new(io::ErrorKind::TimedOut, text)))
        }
    }
}

fn endpoint(options: ChannelOptions) -> Endpoint {
    // The authority of every request; the connector decides where they really go.
    Endpoint::from_static("http://skep")
        .http2_keep_alive_interval(options.keepalive.interval)
        .keep_alive_timeout(options.keepalive.timeout)
        .keep_alive_while_idle(true)
}

struct Connector {
    addrs: Vec<String>,
    tls: ClientTls,
    options: ChannelOptions,
    /// Index of the address to begin with.
    next: AtomicUsize,
}

impl Connector {
    async fn connect(&self) -> Result<ClientConnection, ConnectError> {
        let start = self.next.load(Ordering::Relaxed);
        let mut result = Err(ConnectError::NoAddress);
        for offset in 0..self.addrs.len() {
            let index = (start + offset) % self.addrs.len();
            result = connect_stream(&self.addrs[index], &self.tls, self.options.connect_timeout).await;
            if result.is_ok() {
                self.next.store(index, Ordering::Relaxed);
                break;
            }
        }
        result
    }
}

async fn handshake(addr: &str, tls: &ClientTls) -> io::Result<ClientConnection> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let stream = TlsConnector::from(Arc::clone(&tls.config)).connect(tls.name.clone(), stream).await?;
    let admission = match &tls.deny {
        None => None,
        Some(deny) => {
            let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let leaf = shown.first().ok_or_else(|| io::Error::other("the server showed no certificate"))?;
            let peer = PeerIdentity::read(leaf).map_err(io::Error::other)?;
            Some(deny.admit(Side::Made, Party::Node(peer), shown).map_err(io::Error::other)?)
        }
    };
    Ok(ClientConnection::new(stream, admission))
}
