//! The namespaces of a host, found through the process that holds them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use crate::process::ProcessId;

/// Open network, UTS and mount namespaces of one holder. They stay what they are, whatever becomes of the holder.
pub(crate) struct Namespaces {
    net: OwnedFd,
    uts: OwnedFd,
    mnt: OwnedFd,
}

impl Namespaces {
    /// None if the holder is gone.
    pub(crate) fn open(holder: ProcessId) -> io::Result<Option<Self>> {
        let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", holder.pid)).map(OwnedFd::from);
        let opened = (|| Ok(Self { net: open("net")?, uts: open("uts")?, mnt: open("mnt")? }))();
        // Checked afterwards: had the pid been handed on, the namespaces could be those of a stranger.
        if !holder.is_alive() {
            return Ok(None);
        }
        opened.map(Some)
    }

    /// Puts the calling process, which must have a single thread, into all of them. Its root and working directory
    /// become the host's root.
    pub(crate) fn enter(&self) -> io::Result<()> {
        setns(&self.net, CloneFlags::CLONE_NEWNET)?;
        setns(&self.uts, CloneFlags::CLONE_NEWUTS)?;
        setns(&self.mnt, CloneFlags::CLONE_NEWNS)?;
        Ok(())
    }

    /// Makes the command run in the network namespace; it keeps the caller's mounts.
    pub(crate) fn run_in_network(self, command: &mut Command) -> &mut Command {
        let enter = move || setns(&self.net, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // SAFETY: between fork and exec the child makes one system call, which is async-signal-safe, and allocates nothing.
        unsafe { command.pre_exec(enter) }
    }
}

/// A path of the host's file system, as the machine sees it.
pub(crate) fn path_in(holder: ProcessId, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", holder.pid))
}
