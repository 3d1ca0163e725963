//! Connections for tonic without tonic's own TLS: listeners that tell handlers who calls, channels that check who answers.
//!
//! `incoming.rs` accepts mutual TLS, `outgoing.rs` connects by it, `unix.rs` does both on a socket file; `gate.rs` lets
//! callers through to handlers, `caller.rs` is what these see, `connection.rs` the stream itself, `refusal.rs` says why the
//! other side hung up.

mod caller;
mod connection;
mod gate;
mod incoming;
mod outgoing;
mod refusal;
mod unix;

#[cfg(test)]
mod gate_test;
#[cfg(test)]
mod transport_test;
#[cfg(test)]
mod unix_test;

use std::time::Duration;

pub use caller::{Caller, ConnectionInfo};
pub use connection::{ClientConnection, ServerConnection};
pub use gate::{ByCertificate, Judge, Known, gated};
pub use incoming::{AcceptLimits, Incoming, incoming};
pub use outgoing::{ChannelOptions, ConnectError, channel, connect, connect_stream};
pub use refusal::{Refusal, refusal};
pub use unix::{UnixConnection, UnixIncoming, bind_unix, bind_unix_for, connect_unix, unix_channel, unix_incoming};

/// HTTP/2 keepalive: without it a connection cut off by the network looks alive for many minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// How long a connection may be silent before it is asked.
    pub interval: Duration,
    /// How long the answer may take before the connection is given up.
    pub timeout: Duration,
}

impl Keepalive {
    /// Between managers: a partition that heals must not leave one behind on a half-open connection.
    pub const MANAGERS: Self = Self { interval: Duration::from_millis(500), timeout: Duration::from_millis(500) };
    /// Between a node and a manager, and between nodes.
    pub const NODES: Self = Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(5) };
}

/// A tonic server with the keepalive set: it also finds dead clients, whose streams would otherwise pile up.
pub fn server(keepalive: Keepalive) -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(keepalive.interval))
        .http2_keepalive_timeout(Some(keepalive.timeout))
}
