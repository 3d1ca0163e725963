//! The accepting side of mutual TLS, as a stream for tonic's `serve_with_incoming_shutdown`.
//!
//! Every handshake is a task of its own with a deadline, so a silent or slow client holds up nobody. At the bound the
//! oldest unfinished handshake gives way: honest ones take milliseconds, so a flood of silent clients only evicts itself.
//! Who is through is bounded too: in number by the deny list (`deny.rs`), and in silence, until HTTP/2 has begun and its
//! keepalive takes over.
//! Dropping the stream closes the listener and aborts unfinished handshakes; nothing outlives it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use crate::client::{self, ClientIdentity};
use crate::deny::{Denied, Party, Side};
use crate::peer::{PeerError, PeerIdentity};
use crate::tls::ServerTls;
use crate::transport::refusal::explain;
use crate::transport::{Caller, ConnectionInfo, ServerConnection};

/// Pause after a failed accept (no file descriptors left, mostly), so that the loop does not spin.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds of what is no connection in use yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptLimits {
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// How many may be unfinished at a time, at least 1.
    pub unfinished: usize,
    /// How long a caller may take after it to begin to speak HTTP/2.
    pub preface_timeout: Duration,
}

impl Default for AcceptLimits {
    /// 5 s, and 512: a thousand nodes that reconnect at once, with room, at two file descriptors a connection in all. 10 s:
    /// honest callers speak at once, however busy their host is.
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(5), unfinished: 512, preface_timeout: Duration::from_secs(10) }
    }
}

/// Connections whose handshake succeeded. Never ends and never yields an error: failures are logged and passed over.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    tls: ServerTls,
    limits: AcceptLimits,
    handshakes: JoinSet<Result<ServerConnection, HandshakeError>>,
    /// In order of arrival; finished ones are swept when the bound is reached.
    order: VecDeque<AbortHandle>,
    pause: Option<Pin<Box<Sleep>>>,
}

/// Accepts mutual TLS connections. Call it within a tokio runtime.
pub fn incoming(listener: TcpListener, tls: ServerTls, limits: AcceptLimits) -> Incoming {
    Incoming { listener, tls, limits, handshakes: JoinSet::new(), order: VecDeque::new(), pause: None }
}

impl Incoming {
    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn start(&mut self, stream: TcpStream, addr: SocketAddr) {
        if self.order.len() >= self.limits.unfinished {
            self.order.retain(|handshake| !handshake.is_finished());
        }
        if self.order.len() >= self.limits.unfinished
            && let Some(oldest) = self.order.pop_front()
        {
            debug!("too many unfinished handshakes: gave up the oldest");
            oldest.abort();
        }
        let handshake = accept(stream, addr, self.tls.clone(), self.limits);
        self.order.push_back(self.handshakes.spawn(handshake));
    }

    /// Takes in what waits at the listener.
    fn poll_listener(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Some(pause) = &mut self.pause {
                if pause.as_mut().poll(cx).is_pending() {
                    return;
                }
                self.pause = None;
            }
            match self.listener.poll_accept(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok((stream, addr))) => self.start(stream, addr),
                Poll::Ready(Err(error)) => {
                    warn!(%error, "cannot accept a connection");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<ServerConnection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_listener(cx);
        // An empty set answers `None`: then the listener wakes this task.
        while let Poll::Ready(Some(done)) = self.handshakes.poll_join_next(cx) {
            match done {
                Ok(Ok(connection)) => return Poll::Ready(Some(Ok(connection))),
                Ok(Err(error)) => error.log(),
                Err(join) if join.is_cancelled() => {}
                Err(join) => warn!(error = %join, "a handshake panicked"),
            }
        }
        Poll::Pending
    }
}

/// Why a connection was not taken in.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("no handshake from {addr} within {} ms", .within.as_millis())]
    Timeout { addr: SocketAddr, within: Duration },
    #[error("handshake with {addr} failed")]
    Tls {
        addr: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the certificate of {addr} cannot be read")]
    Peer {
        addr: SocketAddr,
        #[source]
        source: PeerError,
    },
    #[error("refused a connection from {addr}")]
    Denied {
        addr: SocketAddr,
        #[source]
        source: Denied,
    },
}

impl HandshakeError {
    /// Scans and cut connections are everyday; refused certificates are worth a line.
    fn log(&self) {
        let cause = std::error::Error::source(self).map(ToString::to_string).unwrap_or_default();
        match self {
            Self::Tls { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                info!("{self}: {cause}")
            }
            Self::Peer { .. } | Self::Denied { .. } => info!("{self}: {cause}"),
            Self::Timeout { .. } | Self::Tls { .. } => debug!("{self}: {cause}"),
        }
    }
}

async fn accept(
    stream: TcpStream,
    addr: SocketAddr,
    tls: ServerTls,
    limits: AcceptLimits,
) -> Result<ServerConnection, HandshakeError> {
    let within = limits.handshake_timeout;
    // A failure costs latency, not correctness.
    let _ = stream.set_nodelay(true);
    let stream = tokio::time::timeout(within, TlsAcceptor::from(Arc::clone(&tls.config)).accept(stream))
        .await
        .map_err(|_| HandshakeError::Timeout { addr, within })?
        .map_err(|source| HandshakeError::Tls { addr, source: explain(source) })?;
    // The verifier accepted this certificate a moment ago; none means that none was asked for in vain.
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let party = match shown.first() {
        None => Ok(Party::Anonymous),
        Some(leaf) if client::is_client(leaf) => ClientIdentity::read(leaf).map(Party::Client),
        Some(leaf) => PeerIdentity::read(leaf).map(Party::Node),
    };
    let party = party.map_err(|source| HandshakeError::Peer { addr, source })?;
    let caller = match party.clone() {
        Party::Anonymous => Caller::Anonymous { addr },
        Party::Node(peer) => Caller::Node(peer),
        Party::Client(client) => Caller::Client(client),
    };
    let admission = tls.deny.admit(Side::Accepted, party, shown);
    let admission = admission.map_err(|source| HandshakeError::Denied { addr, source })?;
    let info = ConnectionInfo { caller, remote: Some(addr) };
    Ok(ServerConnection::new(stream, admission, info, limits.preface_timeout))
}
