//! What every command that talks to a daemon or to managers gets.

use clap::Args;
use skep_identity::ClientTls;

use crate::client::{Client, Host, Remote};
use crate::failure::Failure;
use crate::remote::choice::{Choice, DEFAULT, Said, choose};
use crate::remote::store::Store;

/// How commands that only read are answered.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct ReadFlags {
    /// Show what this manager knows although it hears no leader; it may be out of date.
    #[arg(long)]
    allow_stale: bool,
}

/// Where the daemon or the managers are; nothing is connected before a command asks.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    target: Target,
}

#[derive(Debug, Clone)]
enum Target {
    Local(Host),
    Remote(Box<Remote>),
}

impl Context {
    /// Finds out what was said where; reads the context's file.
    pub(crate) fn resolve(said: &Said) -> Result<Self, Failure> {
        // Who has no home directory has chosen nothing.
        let current = || Store::of_user().map_or_else(|_| Ok(DEFAULT.to_owned()), |store| store.current());
        let target = match choose(said, current)? {
            Choice::Socket(host) => Target::Local(host),
            Choice::Context(context) => {
                let (bundle, credentials) = Store::of_user()?.read(&context)?;
                let tls = ClientTls::client(&credentials).map_err(|error| {
                    Failure::Failed(format!("the key of context {context} cannot be used: {error}"))
                })?;
                Target::Remote(Box::new(Remote { context, hosts: bundle.hosts, tls }))
            }
        };
        Ok(Self { target })
    }

    /// Connects to the daemon or to a manager.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        match &self.target {
            Target::Local(host) => Client::connect(host).await,
            Target::Remote(remote) => Client::connect_remote(remote).await,
        }
    }

    /// Refuses a command that is about the daemon of one host, unless it goes to that.
    pub(crate) fn only_here(&self, command: &str) -> Result<(), Failure> {
        match &self.target {
            Target::Local(_) => Ok(()),
            Target::Remote(remote) => Err(Failure::Failed(format!(
                "`skep {command}` is about the daemon of a host, and context {} leads to the managers of a swarm: run it on \
                 that host, with `--context default`",
                remote.context
            ))),
        }
    }

    /// Connects for a command that only reads.
    pub(crate) async fn connect_to_read(&self, flags: ReadFlags) -> Result<Client, Failure> {
        Ok(self.connect().await?.allow_stale(flags.allow_stale))
    }
}
