//! A command inside a running container: with the container's namespaces, cgroups, user, rights and limits.
//!
//! The agent's executor calls [`Runtime::exec`](crate::Runtime::exec). A small process of the monitor's program
//! (`skep-shim exec`) does the rest; it does not need the monitor, so a check costs about a millisecond
//! of CPU and goes on working whatever version the container's monitor is of.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use skep_shim::entry::Entry;
use skep_shim::user as ids;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::cgroup::Cgroups;
use crate::error::RuntimeError;
use crate::spec::{ContainerSpec, Ulimit};
use crate::{caps, plan, user};

/// The group that holds what one command starts: at most one command of that name runs in a container.
const GROUP: &str = "exec";
/// After a command was killed, how long its helper may take to say so.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// Exit code; 128 + signal.
    Exited(i32),
    /// It never ran. The code is Docker's (125: the way into the container failed, 126, 127).
    NotRun {
        /// See above.
        code: i32,
        /// Why, for the user.
        sentence: String,
    },
    /// It took too long and was killed, with all that it had started.
    TimedOut,
}

/// What a running container is to a command: its first process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
}

/// A command that runs. Dropping it kills the command.
#[derive(Debug)]
pub struct Exec {
    control: Option<UnixStream>,
    output: pipe::Receiver,
    /// `None`: reaped.
    helper: Option<Child>,
}

/// Everything about the command but its seccomp filter. Looks into the container's own files, so it may block.
pub(crate) fn entry(
    spec: &ContainerSpec,
    apparmor: String,
    args: Vec<String>,
    target: Target,
    cgroups: &Cgroups,
    group: &Path,
    defaults: &[Ulimit],
) -> Result<Entry, RuntimeError> {
    let refused = |sentence| RuntimeError::NotStarted { code: 125, sentence };
    let root = format!("/proc/{}/root", target.pid);
    let opened = File::open(&root).map_err(RuntimeError::io("open", &root))?;
    let passwd = user::read_inside(&opened, "etc/passwd");
    let groups = user::read_inside(&opened, "etc/group");
    let user = ids::resolve(&passwd, &groups, &spec.user, &spec.groups).map_err(refused)?;
    let mut env = spec.env.clone();
    ids::add_home(&mut env, &user.home);
    let own = cgroups.inner_group(group, GROUP).ok_or(RuntimeError::NoCgroups)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ok(Entry {
        pid: i32::try_from(target.pid).unwrap_or(0),
        start_ticks: target.start_ticks,
        group: text(&own.folder),
        kill_file: own.kill_file.as_deref().map(text).unwrap_or_default(),
        freezer: own.freezer.as_deref().map(text).unwrap_or_default(),
        procs_file: text(&own.folder.join("cgroup.procs")),
        join: own.join.iter().map(|file| text(file)).collect(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        capabilities: caps::mask(&spec.capabilities),
        no_new_privileges: !spec.allow_new_privileges,
        apparmor,
        oom_score_adj: spec.oom_score_adj,
        rlimits: plan::rlimits(spec, defaults).map_err(refused)?,
        cwd: if spec.cwd.is_empty() { "/".to_owned() } else { spec.cwd.clone() },
        args,
        env,
        filter: Vec::new(),
    })
}

/// Starts the helper. Blocks for as long as a spawn takes; must run within a tokio runtime.
pub(crate) fn spawn(program: &OwnedFd, entry: &Entry) -> io::Result<Exec> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let (output, output_write) = io::pipe()?;
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg("exec").env_clear().stdin(OwnedFd::from(theirs)).stdout(output_write.try_clone()?).stderr(output_write);
    let helper = command.spawn()?;
    // It holds the other ends too: the helper alone may, so that its end is seen.
    drop(command);
    ours.set_nonblocking(false)?;
    let told = entry.send(&ours).and_then(|()| ours.set_nonblocking(true));
    nix::fcntl::fcntl(&output, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    let output = pipe::Receiver::from_owned_fd(output.into())?;
    let mut exec = Exec { control: None, output, helper: Some(helper) };
    told?;
    exec.control = Some(UnixStream::from_std(ours)?);
    Ok(exec)
}

impl Exec {
    /// Waits for the end, or kills the command after `timeout`. Returns the first `keep` bytes of its output, too; the
    /// rest is read and dropped. What the command left running in the background may write on, unheard.
    pub async fn finish(mut self, timeout: Duration, keep: usize) -> io::Result<(ExecEnd, Vec<u8>)> {
        let mut control = self.control.take().ok_or(io::Error::from(io::ErrorKind::NotConnected))?;
        let (mut said, mut kept, mut chunk) = (Vec::new(), Vec::new(), vec![0; 4096]);
        let (mut silent, mut timed_out) = (false, false);
        let mut deadline = tokio::time::Instant::now() + timeout;
        loop {
            tokio::select! {
                read = control.read_buf(&mut said) => if read? == 0 { break },
                read = self.output.read(&mut chunk), if !silent => match read {
                    Ok(0) | Err(_) => silent = true,
                    Ok(count) => keep_first(&mut kept, &chunk[..count], keep),
                },
                () = tokio::time::sleep_until(deadline) => {
                    if timed_out {
                        // The kernel does not let the command go: whoever waits for it must not wait for ever.
                        break;
                    }
                    timed_out = true;
                    deadline += KILLED_WITHIN;
                    control.shutdown().await?;
                }
            }
        }
        while let Ok(count @ 1..) = self.output.try_read(&mut chunk) {
            keep_first(&mut kept, &chunk[..count], keep);
        }
        drop(control);
        if timed_out {
            return Ok((ExecEnd::TimedOut, kept));
        }
        verdict(&String::from_utf8_lossy(&said)).map(|end| (end, kept))
    }
}

impl Drop for Exec {
    /// The end of the connection makes the helper kill the command and go; somebody has to reap it.
    fn drop(&mut self) {
        self.control = None;
        let Some(mut helper) = self.helper.take() else { return };
        if matches!(helper.try_wait(), Ok(Some(_))) {
            return;
        }
        // Without a runtime this process is about to end, and init reaps.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || helper.wait());
        }
    }
}

fn keep_first(kept: &mut Vec<u8>, bytes: &[u8], keep: usize) {
    let room = keep.saturating_sub(kept.len()).min(bytes.len());
    kept.extend_from_slice(&bytes[..room]);
}

/// Reads the helper's one line.
fn verdict(line: &str) -> io::Result<ExecEnd> {
    let line = line.trim_end_matches('\n');
    if let Some(code) = line.strip_prefix("exited ").and_then(|code| code.parse().ok()) {
        return Ok(ExecEnd::Exited(code));
    }
    match line.strip_prefix("failed ").and_then(|rest| rest.split_once(' ')) {
        Some((code, sentence)) => {
            Ok(ExecEnd::NotRun { code: code.parse().unwrap_or(125), sentence: sentence.to_owned() })
        }
        None => Err(io::Error::other("the helper ended without a word")),
    }
}

/// The monitor's program as a file in memory that nobody can write to any more. A process in a container may see it
/// through `/proc/<pid>/exe`, and must not be able to change a program of the host by it (CVE-2019-5736).
pub(crate) fn sealed(program: &[u8]) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::Write;

    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Where `vm.memfd_noexec` is set, it has to be said that it is to be run; kernels before 6.3 do not know the flag.
    let runnable = MFdFlags::from_bits_retain(libc::MFD_EXEC);
    let made = memfd_create(c"skep-shim", flags | runnable).or_else(|_| memfd_create(c"skep-shim", flags))?;
    let mut file = File::from(made);
    file.write_all(program)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    // One that was opened for writing would be "busy" to execve(2).
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mut first = [0; 4];
    (&read_only).read_exact(&mut first)?;
    Ok(read_only.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn verdicts_are_read() {
        assert_eq!(verdict("exited 3\n").unwrap(), ExecEnd::Exited(3));
        let sentence = "exec: \"x\": permission denied".to_owned();
        assert_eq!(verdict(&format!("failed 126 {sentence}\n")).unwrap(), ExecEnd::NotRun { code: 126, sentence });
        assert!(verdict("").is_err());
    }

    #[test]
    fn the_program_in_memory_cannot_be_written() {
        let program = sealed(b"#!/bin/true\n").unwrap();
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let written = std::fs::OpenOptions::new().write(true).open(path).and_then(|mut file| {
            use std::io::Write;
            file.write_all(b"x")
        });
        assert!(written.is_err());
    }
}
