//! skep's side: a lab of one host, commands by the binary under test, and the manager asked over its own socket by one
//! connection that stays open, as light as the peers are asked.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use skep_identity::transport::connect_unix;
use skep_proto::v1::secrets_client::SecretsClient;
use skep_proto::v1::services_client::ServicesClient;
use skep_proto::v1::tasks_client::TasksClient;
use skep_proto::v1::{CreateSecretRequest, ListServicesRequest, ListTasksRequest, SecretSpec, ServiceSpec};
use skep_tests::skep_binary;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Channel;

use crate::cgroup::Hierarchies;
use crate::command::run;
use crate::contest::{LOG_LINES, Network, Orchestrator, service_args};
use crate::run::Run;

/// A lab of one host, a manager that works too.
pub(crate) struct Skep {
    lab: Run,
    /// `skep/<lab>/host1`
    cgroup: PathBuf,
    /// Where the lab's own process of the host lies, and commands run on the host.
    lab_cgroup: PathBuf,
    /// The daemon's socket, seen from outside the host.
    socket: PathBuf,
    runtime: Runtime,
    channel: Channel,
}

impl Skep {
    /// Brings up the lab and waits until it is ready.
    pub(crate) fn start(lab: Run) -> Result<Self> {
        ensure!(std::env::var_os("SKEP_BIN").is_some(), "SKEP_BIN is not set: run `make bench`");
        run(lab_command(&lab).args(["up", "--nodes", "1", "--managers", "1"]))?;
        let cgroup = Path::new("skep").join(lab.lab_name()).join("host1");
        let daemons = Hierarchies::discover()?.pids(&cgroup.join("daemon"));
        let daemon = daemons.first().context("the lab's daemon is not in its cgroup")?;
        let socket = PathBuf::from(format!("/proc/{daemon}/root/run/skep/skep.sock"));
        let runtime = Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
        let channel = runtime.block_on(connect_unix(&socket)).context("cannot connect to the daemon")?;
        Ok(Self { lab_cgroup: cgroup.join("exec"), lab, cgroup, socket, runtime, channel })
    }

    /// The command line as a user of the host would have it, without the lab's own detour.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(skep_binary());
        command.args(args).env("SKEP_HOST", format!("unix://{}", self.socket.display()));
        command
    }
}

impl Orchestrator for Skep {
    fn name(&self) -> String {
        "skep".to_owned()
    }

    fn load(&self, archive: &Path) -> Command {
        let mut command = self.command(&["image", "load", "--input"]);
        command.arg(archive);
        command
    }

    fn create(&self, service: &str, replicas: u64, network: Network) -> Command {
        let mut command = self.command(&["service", "create", "--detach"]);
        command.args(service_args(service, replicas, network));
        command
    }

    fn remove(&self, service: &str) -> Command {
        self.command(&["service", "rm", service])
    }

    fn running(&self, service: &str) -> Result<u64> {
        self.runtime.block_on(async {
            let mut client = ServicesClient::new(self.channel.clone());
            let mut answers = client.list(ListServicesRequest::default()).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                let named = |spec: &ServiceSpec| spec.name == service;
                let found = answer
                    .services
                    .iter()
                    .find(|summary| summary.service.as_ref().and_then(|it| it.spec.as_ref()).is_some_and(named));
                if let Some(summary) = found {
                    return Ok(summary.running);
                }
            }
            Ok(0)
        })
    }

    fn is_clean(&self) -> Result<bool> {
        self.runtime.block_on(async {
            let mut client = TasksClient::new(self.channel.clone());
            let mut answers = client.list(ListTasksRequest::default()).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                if !answer.tasks.is_empty() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    fn create_secrets(&self, names: &[Vec<String>], data: &[u8]) -> Result<()> {
        let writers = names.iter().map(|names| {
            let mut client = SecretsClient::new(self.channel.clone());
            async move {
                for name in names {
                    let spec = Some(SecretSpec { name: name.clone(), ..SecretSpec::default() });
                    client.create(CreateSecretRequest { spec, data: data.to_vec(), write: None }).await?;
                }
                anyhow::Ok(())
            }
        });
        self.runtime.block_on(try_join_all(writers)).map(drop)
    }

    fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    fn surroundings(&self) -> Option<&Path> {
        Some(&self.lab_cgroup)
    }

    fn log(&self) -> String {
        let lines = LOG_LINES.to_string();
        run(lab_command(&self.lab).args(["logs", "1", "--tail", &lines])).unwrap_or_else(|error| error.to_string())
    }
}

/// `skep lab` for this run's lab.
pub(crate) fn lab_command(lab: &Run) -> Command {
    let mut command = Command::new(skep_binary());
    command.args(["lab", "--name", lab.lab_name(), "--lab-dir"]).arg(lab.lab_dir());
    command
}
