//! skep's side of a host: the binary's `skep netd`, driven over its socket as an agent drives it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_identity::transport::connect_unix;
use skep_netlink::Namespace;
use skep_proto::v1;
use skep_proto::v1::netd_client::NetdClient;
use skep_tests::skep_binary;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::table;
use super::underlay::{Host, Process, inside};
use crate::run::Run;

/// A netd on a host. Its mounts are its own and end with it.
pub(super) struct Netd<'a> {
    runtime: &'a Runtime,
    pub(super) process: Process,
    client: NetdClient<Channel>,
    log: PathBuf,
}

impl<'a> Netd<'a> {
    /// Starts it, and tells it who it is. `name` is unique in the run.
    pub(super) fn start(run: &Run, runtime: &'a Runtime, name: &str, host: &Host) -> Result<Self> {
        let dir = run.dir().join(name);
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let (log, socket) = (dir.join("log"), dir.join("netd.sock"));
        let mut command = inside(&host.namespace, &["unshare", "--mount", "--propagation", "private"]);
        command.arg(skep_binary()).arg("netd").arg("--dir").arg(dir.join("state"));
        command.arg("--sandboxes").arg(dir.join("sandboxes")).arg("--socket").arg(&socket);
        command.stderr(File::create(&log).with_context(|| format!("cannot create {}", log.display()))?);
        let mut process = Process::start(&mut command)?;
        let channel = process.until("waited for netd to listen", || runtime.block_on(connect_unix(&socket)).ok());
        let channel = channel.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        let client = NetdClient::new(channel).max_encoding_message_size(64 << 20);
        let netd = Self { runtime, process, client, log };
        netd.call(|mut client| async move { client.configure(table::identity(host.number)).await })?;
        Ok(netd)
    }

    fn call<T, F>(&self, ask: impl FnOnce(NetdClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let answer = self.runtime.block_on(ask(self.client.clone()));
        let answer = answer.with_context(|| std::fs::read_to_string(&self.log).unwrap_or_default())?;
        Ok(answer.into_inner())
    }

    /// Brings a table up to date.
    pub(super) fn apply(&self, table: v1::NetworkTable) -> Result<()> {
        let request = v1::ApplyTablesRequest { tables: vec![table] };
        let answer = self.call(|mut client| async move { client.apply(request).await })?;
        ensure!(answer.faults.is_empty(), "netd cannot apply a table: {:?}", answer.faults);
        Ok(())
    }

    /// Makes a sandbox.
    pub(super) fn attach(&self, request: v1::AttachRequest) -> Result<Namespace> {
        let answer = self.call(|mut client| async move { client.attach(request).await })?;
        let path = Path::new(&answer.namespace_path);
        let path = path.strip_prefix("/").context("a sandbox's path is relative")?;
        // Its mounts are seen through the process.
        Ok(Namespace::open(&PathBuf::from(format!("/proc/{}/root", self.process.id())).join(path))?)
    }

    /// Removes a sandbox.
    pub(super) fn detach(&self, task: u32) -> Result<()> {
        let request = v1::DetachRequest { task_id: table::task(task).to_vec() };
        self.call(|mut client| async move { client.detach(request).await }).map(drop)
    }

    /// CPU time so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.process.cpu()
    }
}
