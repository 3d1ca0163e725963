//! `<lab-dir>/lab.json`: what a lab consists of. Written whole and atomically, before anything that it names is let run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, LabError, Result};
use crate::process::ProcessId;

/// How far a lab has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// `up` is at work, or was killed at it.
    Starting,
    /// `up` has succeeded.
    Up,
    /// Taken down with `--keep-data`: only files are left.
    Kept,
}

/// A lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LabState {
    pub(crate) name: String,
    pub(crate) phase: Phase,
    /// Boot id of the machine: after a reboot no recorded process means anything.
    pub(crate) machine_boot_id: String,
    /// Keeps the network namespace of the bridge.
    pub(crate) bridge: Option<ProcessId>,
    /// Host n is at index n − 1.
    pub(crate) hosts: Vec<HostState>,
    /// Given to every daemon at every start.
    pub(crate) daemon_args: Vec<String>,
    /// Pairs (a, b), a < b, between which nothing passes.
    pub(crate) cuts: BTreeSet<(u16, u16)>,
}

/// A host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostState {
    pub(crate) number: u16,
    /// A new one for every boot.
    pub(crate) boot_id: String,
    /// Keeps the namespaces; None while powered off.
    pub(crate) holder: Option<ProcessId>,
    /// The daemon that was started last; None after `stop` and `kill`.
    pub(crate) daemon: Option<ProcessId>,
}

impl HostState {
    pub(crate) fn is_on(&self) -> bool {
        self.holder.is_some_and(ProcessId::is_alive)
    }

    /// The running daemon.
    pub(crate) fn live_daemon(&self) -> Option<ProcessId> {
        self.daemon.filter(|daemon| daemon.is_alive())
    }

    /// `host2`
    pub(crate) fn name(&self) -> String {
        host_name(self.number)
    }
}

/// The host's name on the network, in its cgroup and its folder.
pub(crate) fn host_name(number: u16) -> String {
    format!("host{number}")
}

impl LabState {
    /// Reads it; None if there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error).context("read", path),
        };
        let mut state: Self =
            serde_json::from_slice(&text).map_err(|source| LabError::BadState { path: path.to_owned(), source })?;
        if state.machine_boot_id != machine_boot_id()? {
            state.bridge = None;
            for host in &mut state.hosts {
                (host.holder, host.daemon) = (None, None);
            }
        }
        Ok(Some(state))
    }

    /// Writes it: a reader sees the old or the new one, never half of it.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("json.new");
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|source| LabError::BadState { path: path.to_owned(), source })?;
        text.push(b'\n');
        let mut file = File::create(&new).context("create", &new)?;
        file.write_all(&text).context("write", &new)?;
        fs::rename(&new, path).context("replace", path)
    }
}

/// The boot id of this machine (or of the host, when called on one).
pub(crate) fn machine_boot_id() -> Result<String> {
    read_random("boot_id")
}

/// A fresh random UUID.
pub(crate) fn new_boot_id() -> Result<String> {
    read_random("uuid")
}

fn read_random(file: &str) -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random").join(file);
    Ok(fs::read_to_string(&path).context("read", &path)?.trim().to_owned())
}
