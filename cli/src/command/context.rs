//! What every command that talks to a daemon gets.

use clap::Args;

use crate::client::{Client, Host};
use crate::failure::Failure;

/// How commands that only read are answered.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct ReadFlags {
    /// Show what this manager knows although it hears no leader; it may be out of date.
    #[arg(long)]
    allow_stale: bool,
}

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

    /// Connects for a command that only reads.
    pub(crate) async fn connect_to_read(&self, flags: ReadFlags) -> Result<Client, Failure> {
        Ok(self.connect().await?.allow_stale(flags.allow_stale))
    }
}
