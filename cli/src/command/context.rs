//! What every command that talks to a daemon gets.

use crate::client::{Client, Host};
use crate::failure::Failure;

/// Where the daemon is; nothing is connected before a command asks.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    host: Host,
}

impl Context {
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }

    /// Connects to the daemon.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.host).await
    }
}
