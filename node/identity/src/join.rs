//! The order in which a joining node trusts: fetch the root from a stranger, compare its digest with the token's, connect
//! again to a manager of that root, and only then speak. Used by `swarm join`; the RPCs are the caller's.

use std::future::Future;

use tonic::transport::Channel;

use crate::tls::ClientTls;
use crate::token::{JoinToken, RootMismatch};
use crate::transport::{ChannelOptions, ConnectError, connect};
use crate::{RootBundle, RootCert};

/// Why a node does not get as far as saying its token. `E` is the error of the caller's fetch.
#[derive(Debug, thiserror::Error)]
pub enum JoinError<E: std::error::Error + 'static> {
    /// No manager answers at the address.
    #[error("cannot reach a manager")]
    Unreachable(#[source] ConnectError),
    /// The manager does not hand out its root certificate.
    #[error("cannot fetch the root certificate")]
    Fetch(#[source] E),
    /// The root is not the token's.
    #[error("this manager is not trusted")]
    Root(#[source] RootMismatch),
    /// The address no longer answers, or answers with a certificate that the root did not sign.
    #[error("cannot connect to a manager of the token's cluster")]
    Untrusted(#[source] ConnectError),
}

/// Opens the channel over which a joining node may say its token, and the root to believe from then on.
///
/// `fetch_root` gets a channel to a stranger: it asks for the root certificates (PEM) and nothing else, and must not say
/// the token's secret.
pub async fn join_channel<F, Fut, E>(
    addrs: Vec<String>,
    token: &JoinToken,
    options: ChannelOptions,
    fetch_root: F,
) -> Result<(RootCert, Channel), JoinError<E>>
where
    F: FnOnce(Channel) -> Fut,
    Fut: Future<Output = Result<String, E>>,
    E: std::error::Error + 'static,
{
    let stranger = connect(addrs.clone(), ClientTls::bootstrap(), options).await.map_err(JoinError::Unreachable)?;
    let root_pem = fetch_root(stranger).await.map_err(JoinError::Fetch)?;
    let root = token.check_root(&root_pem).map_err(JoinError::Root)?;
    let trusted = ClientTls::joining(RootBundle::from(root.clone()));
    let channel = connect(addrs, trusted, options).await.map_err(JoinError::Untrusted)?;
    Ok((root, channel))
}
