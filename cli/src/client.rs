//! The connection to a daemon's socket or to managers, and how calls are made over it. Commands use nothing else to reach
//! them.
//!
//! Calls are patient (`retry.rs`): no leader, a broken connection or an unknown result is followed by another try for some
//! seconds. A write carries one request id through all of them, so that it is done once.

use std::path::PathBuf;
use std::str::FromStr;

use skep_identity::ClientTls;
use skep_identity::transport::{ChannelOptions, ConnectError, connect, connect_unix, refusal};
use skep_proto::id::RequestId;
use skep_proto::v1::clients_client::ClientsClient;
use skep_proto::v1::clusters_client::ClustersClient;
use skep_proto::v1::configs_client::ConfigsClient;
use skep_proto::v1::daemon_client::DaemonClient;
use skep_proto::v1::images_client::ImagesClient;
use skep_proto::v1::logs_client::LogsClient;
use skep_proto::v1::networks_client::NetworksClient;
use skep_proto::v1::nodes_client::NodesClient;
use skep_proto::v1::secrets_client::SecretsClient;
use skep_proto::v1::services_client::ServicesClient;
use skep_proto::v1::tasks_client::TasksClient;
use skep_proto::v1::watch_client::WatchClient;
use skep_proto::v1::{ReadOptions, WriteOptions};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::failure::{Failure, is_connection_loss, refusal_words};
use crate::remote::hosts;
use crate::retry::Patience;

/// Where the daemon listens if nothing else is said.
pub(crate) const DEFAULT_HOST: &str = "unix:///run/skep/skep.sock";

/// Largest answer taken. Lists come in pieces far below it; an image's configuration may be large.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The address of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    path: PathBuf,
}

/// Why a text is not a daemon's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostError {
    /// Another scheme.
    #[error(
        "an address is a socket, such as {DEFAULT_HOST}; managers are reached by a context, which has a key for them: \
         `skep context create NAME --host tcp://MANAGER:2377 --bundle FILE`"
    )]
    Scheme,
    /// `unix://` and a relative path or nothing.
    #[error("the socket's path must be absolute, as in {DEFAULT_HOST}")]
    Path,
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let path = match text.strip_prefix("unix://") {
            Some(path) => path,
            None if text.starts_with('/') => text,
            None => return Err(HostError::Scheme),
        };
        if !path.starts_with('/') || path.ends_with('/') {
            return Err(HostError::Path);
        }
        Ok(Self { path: path.into() })
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unix://{}", self.path.display())
    }
}

/// Managers that are reached as a client of their swarm.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    /// The context's name.
    pub(crate) context: String,
    /// `host:port`, tried in this order.
    pub(crate) hosts: Vec<String>,
    pub(crate) tls: ClientTls,
}

/// A daemon or a manager that answered the connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// It is a manager somewhere, not this host's daemon.
    remote: bool,
    channel: Channel,
    read: ReadOptions,
    /// The command has a flag for stale answers.
    has_stale_flag: bool,
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $client:ident),+ $(,)?) => {$(
        $(#[$doc])*
        pub(crate) fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
        }
    )+};
}

impl Client {
    /// Connects, so that a missing daemon is told apart from everything else that can go wrong.
    pub(crate) async fn connect(host: &Host) -> Result<Self, Failure> {
        match connect_unix(&host.path).await {
            Ok(channel) => Ok(Self::over(channel, false)),
            Err(error) => Err(Failure::Unreachable { host: host.to_string(), reason: connect_hint(&error) }),
        }
    }

    /// Connects to the first manager of the list that answers and is one of the context's swarm; to the next one when the
    /// connection is cut.
    pub(crate) async fn connect_remote(remote: &Remote) -> Result<Self, Failure> {
        match connect(remote.hosts.clone(), remote.tls.clone(), ChannelOptions::NODES).await {
            Ok(channel) => Ok(Self::over(channel, true)),
            Err(error) => Err(no_connection(remote, &error)),
        }
    }

    fn over(channel: Channel, remote: bool) -> Self {
        Self { channel, remote, read: ReadOptions::default(), has_stale_flag: false }
    }

    /// Whether it is a manager somewhere, so that nothing can be asked about this host.
    pub(crate) fn is_remote(&self) -> bool {
        self.remote
    }

    /// Lets reads be answered by a manager that hears no leader, as the command's flag says.
    pub(crate) fn allow_stale(mut self, allow: bool) -> Self {
        (self.read.allow_stale, self.has_stale_flag) = (allow, true);
        self
    }

    /// Makes a read, which may take all pages of a list: again where it may work later.
    pub(crate) async fn read<T>(
        &self,
        call: impl AsyncFn(Option<ReadOptions>) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let mut patience = Patience::new();
        loop {
            match call(Some(self.read)).await {
                Ok(answer) => return Ok(answer),
                Err(status) => patience.after(status).await.map_err(|status| self.explain(status))?,
            }
        }
    }

    /// A manager that refuses a stale answer does not know how a command asks for one.
    fn explain(&self, status: Status) -> Status {
        if self.has_stale_flag { name_flag(status) } else { status }
    }

    clients! {
        /// People with certificates.
        people: ClientsClient,
        /// The swarm.
        clusters: ClustersClient,
        /// Configs.
        configs: ConfigsClient,
        /// Secrets.
        secrets: SecretsClient,
        /// Networks.
        networks: NetworksClient,
        /// Nodes.
        nodes: NodesClient,
        /// Services.
        services: ServicesClient,
        /// Tasks.
        tasks: TasksClient,
        /// Changes as they happen.
        watch: WatchClient,
        /// Logs.
        logs: LogsClient,
        /// This host's daemon.
        daemon: DaemonClient,
        /// This host's images.
        images: ImagesClient,
    }
}

/// Puts the flag in place of the manager's words for it.
fn name_flag(status: Status) -> Status {
    const WORDS: &str = "allow a stale answer";
    match status.message().contains(WORDS) {
        true => Status::new(status.code(), status.message().replace(WORDS, "take a stale answer with --allow-stale")),
        false => status,
    }
}

/// Why none of a context's managers was reached. One that answers and refuses, or is refused, is no matter of reaching it: the
/// same shows at the first call where the handshake does not tell.
fn no_connection(remote: &Remote, error: &ConnectError) -> Failure {
    let host = hosts::show(&remote.hosts);
    match refusal(error) {
        Some(refusal) => Failure::Failed(format!("{host}: {}", refusal_words(refusal, error))),
        None => Failure::Unreachable { host, reason: remote_hint(remote, error) },
    }
}

/// Why none of them answers.
fn remote_hint(remote: &Remote, error: &ConnectError) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    let which = if remote.hosts.len() == 1 { "the manager does" } else { "none of its managers does" };
    format!("{innermost} (context {}): {which} not answer", remote.context)
}

/// Why the connection failed and what to do.
fn connect_hint(error: &ConnectError) -> String {
    let mut cause: &dyn std::error::Error = error;
    loop {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                    "is it running? start it with `skep daemon`".to_owned()
                }
                std::io::ErrorKind::PermissionDenied => {
                    "permission denied: it is root's, and the group's that `skep daemon --group` names".to_owned()
                }
                std::io::ErrorKind::TimedOut => "it listens but does not answer; look at its log".to_owned(),
                _ => io.to_string(),
            };
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return cause.to_string(),
        }
    }
}

/// Makes a write: again with the same request id where the answer was UNAVAILABLE, DEADLINE_EXCEEDED or a broken
/// connection.
pub(crate) async fn write<T, F, Fut>(call: F) -> Result<T, Status>
where
    F: Fn(WriteOptions) -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    write_with(Patience::new(), call).await
}

/// The same, with patience of the caller's.
pub(crate) async fn write_with<T, F, Fut>(mut patience: Patience, call: F) -> Result<T, Status>
where
    F: Fn(WriteOptions) -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    let options = WriteOptions { request_id: RequestId::new(rand::random()).to_vec() };
    loop {
        let status = match call(options.clone()).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => status,
        };
        patience.after(status).await.map_err(|status| {
            if is_connection_loss(&status) {
                Status::deadline_exceeded(
                    "result unknown: the connection to the skep daemon broke off, so the change may or may not happen; \
                     look before you run the command again",
                )
            } else {
                status
            }
        })?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn hosts_are_unix_sockets() {
        let host: Host = "unix:///run/skep/skep.sock".parse().unwrap();
        assert_eq!(host.to_string(), "unix:///run/skep/skep.sock");
        assert_eq!("/tmp/x.sock".parse::<Host>().unwrap().to_string(), "unix:///tmp/x.sock");
        assert_eq!("tcp://127.0.0.1:1".parse::<Host>(), Err(HostError::Scheme));
        assert_eq!("unix://run/skep".parse::<Host>(), Err(HostError::Path));
        assert_eq!("unix://".parse::<Host>(), Err(HostError::Path));
    }

    #[tokio::test(start_paused = true)]
    async fn retries_have_the_same_id() {
        let seen = Mutex::new(Vec::new());
        let result: Result<(), Status> = write(|options| {
            seen.lock().unwrap().push(options.request_id);
            async { Err(Status::unavailable("no leader")) }
        })
        .await;
        assert_eq!(result.unwrap_err().message(), "no leader");
        let seen = seen.into_inner().unwrap();
        assert!(seen.len() > 2);
        assert!(seen.iter().all(|id| id.len() == 16 && *id == seen[0]));
    }

    #[test]
    fn the_flag_is_named_where_a_stale_answer_would_help() {
        let refusal = name_flag(Status::unavailable("no leader: start them, or allow a stale answer"));
        assert_eq!(refusal.code(), tonic::Code::Unavailable);
        assert_eq!(refusal.message(), "no leader: start them, or take a stale answer with --allow-stale");
        assert_eq!(name_flag(Status::not_found("no such service")).code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn a_refusal_is_not_retried() {
        let calls = Mutex::new(0);
        let result: Result<(), Status> = write(|_| {
            *calls.lock().unwrap() += 1;
            async { Err(Status::already_exists("service web exists")) }
        })
        .await;
        assert!(result.is_err());
        assert_eq!(calls.into_inner().unwrap(), 1);
    }
}
