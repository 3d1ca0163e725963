//! Who calls an RPC. The gate (`gate.rs`) has let him through before a handler sees him; handlers ask [`Caller::of`] where
//! the answer depends on who it is.

use std::fmt;
use std::net::SocketAddr;

use skep_proto::id::NodeId;
use tonic::{Request, Status};

use crate::{ClientIdentity, PeerIdentity, Role};

/// The other end of the connection that a request came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A process on this host, by the socket file.
    Local {
        /// Its user, as the kernel says.
        uid: u32,
    },
    /// A member of the cluster, by its verified certificate.
    Node(PeerIdentity),
    /// A person, by a verified certificate. What he may do the managers' state says.
    Client(ClientIdentity),
    /// Someone without a certificate: a node that wants to join.
    Anonymous {
        /// From where.
        addr: SocketAddr,
    },
}

/// What the transport puts into a request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Who calls.
    pub caller: Caller,
    /// From where; `None` on a socket file.
    pub remote: Option<SocketAddr>,
}

impl ConnectionInfo {
    /// The connection of a request; `None` if it did not come through this crate's transport.
    pub fn of<T>(request: &Request<T>) -> Option<&Self> {
        request.extensions().get::<Self>()
    }
}

impl Caller {
    /// Who makes this request. A request that did not come through this crate's transport is refused.
    // Statuses are tonic's own currency between a handler and its helpers.
    #[allow(clippy::result_large_err)]
    pub fn of<T>(request: &Request<T>) -> Result<&Self, Status> {
        ConnectionInfo::of(request)
            .map(|info| &info.caller)
            .ok_or_else(|| Status::unauthenticated("the connection does not say who calls"))
    }

    /// The caller as a member of the cluster, of either role; else `PERMISSION_DENIED`.
    #[allow(clippy::result_large_err)]
    pub fn require_node(&self) -> Result<&PeerIdentity, Status> {
        match self {
            Self::Node(peer) => Ok(peer),
            Self::Local { .. } | Self::Client(_) | Self::Anonymous { .. } => {
                Err(Status::permission_denied("only a node of the cluster may do this"))
            }
        }
    }

    /// The caller as a manager; else `PERMISSION_DENIED`.
    #[allow(clippy::result_large_err)]
    pub fn require_manager(&self) -> Result<&PeerIdentity, Status> {
        match self {
            Self::Node(peer) if peer.role == Role::Manager => Ok(peer),
            Self::Node(_) | Self::Local { .. } | Self::Client(_) | Self::Anonymous { .. } => {
                Err(Status::permission_denied("only a manager may do this"))
            }
        }
    }

    /// The node that calls, if it is one.
    pub fn node_id(&self) -> Option<NodeId> {
        match self {
            Self::Node(peer) => Some(peer.node_id),
            Self::Local { .. } | Self::Client(_) | Self::Anonymous { .. } => None,
        }
    }
}

impl fmt::Display for Caller {
    /// "node 3kd…", for a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid } => write!(f, "user {uid}"),
            Self::Node(peer) => write!(f, "node {}", peer.node_id),
            Self::Client(client) => write!(f, "client {}", client.client_id),
            Self::Anonymous { addr } => write!(f, "{addr}"),
        }
    }
}
