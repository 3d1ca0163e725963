//! The process that keeps one host's namespaces alive, `skep lab-host`, and how `skep lab` starts it.
//!
//! It joins the host's cgroup, makes the namespaces and mounts, says `ready`, and then waits for one byte: it lives on
//! only after `skep lab` has recorded it. If `skep lab` dies before, the byte never comes and the holder ends, and with
//! it everything that it made. It never does anything else.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{pause, sethostname, setsid};

use crate::cgroup::CgroupTree;
use crate::error::{Context, LabError, Result};
use crate::lab::{Lab, host_cgroup};
use crate::mounts;
use crate::process::ProcessId;
use crate::state::host_name;

/// The hidden subcommand.
pub(crate) const HOLDER_COMMAND: &str = "lab-host";
/// Stands for the bridge where else a host's number stands.
const BRIDGE: &str = "bridge";
const READY: &str = "ready";

/// Cgroup of the bridge's holder, below the lab's.
pub(crate) const BRIDGE_CGROUP: &str = "bridge";

/// Cgroup of a host's holder and of what `skep lab exec` runs: v2 wants processes in leaves only.
pub(crate) fn exec_cgroup(number: u16) -> String {
    format!("{}/exec", host_cgroup(number))
}

/// Which namespaces a holder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Bridge,
    Host(u16),
}

impl Held {
    fn to_arg(self) -> String {
        match self {
            Self::Bridge => BRIDGE.to_owned(),
            Self::Host(number) => number.to_string(),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Bridge => "the bridge".to_owned(),
            Self::Host(number) => format!("host {number}"),
        }
    }

    fn cgroup(self) -> String {
        match self {
            Self::Bridge => BRIDGE_CGROUP.to_owned(),
            Self::Host(number) => exec_cgroup(number),
        }
    }
}

/// A holder that has been started; dropped without [`Self::keep`] it ends by itself.
pub(crate) struct NewHolder {
    held: Held,
    child: Child,
}

impl NewHolder {
    /// Starts it; its cgroup must exist.
    pub(crate) fn start(lab: &Lab, exe: &Path, held: Held) -> Result<Self> {
        let child = Command::new(exe)
            .arg(HOLDER_COMMAND)
            .arg(&lab.dir)
            .arg(&lab.name)
            .arg(held.to_arg())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("run", exe)?;
        Ok(Self { held, child })
    }

    /// Waits until the namespaces are there.
    pub(crate) fn wait_ready(&mut self) -> Result<ProcessId> {
        let mut line = String::new();
        let stdout = self.child.stdout.take().expect("stdout is piped and taken once");
        BufReader::new(stdout).read_line(&mut line).context("read from", HOLDER_COMMAND)?;
        let failed = |reason: &str| LabError::Holder { which: self.held.describe(), reason: reason.to_owned() };
        match line.trim_end() {
            READY => {
                let pid = i32::try_from(self.child.id()).expect("a pid fits");
                ProcessId::of(pid).ok_or_else(|| failed("its process ended"))
            }
            "" => Err(failed("its process ended")),
            reason => Err(failed(reason)),
        }
    }

    /// Lets it live on; call once it is recorded.
    pub(crate) fn keep(mut self) -> Result<()> {
        let mut stdin = self.child.stdin.take().expect("stdin is piped and taken once");
        stdin.write_all(b"k").context("write to", HOLDER_COMMAND)
    }
}

/// Entry of `skep lab-host LAB_DIR LAB NUMBER|bridge`; `args` are what follows the subcommand.
pub fn holder_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = HolderArgs::parse(args).and_then(|args| args.set_up());
    let line = match &outcome {
        Ok(()) => READY.to_owned(),
        Err(reason) => reason.replace('\n', "; "),
    };
    if writeln!(std::io::stdout(), "{line}").is_err() || outcome.is_err() {
        return ExitCode::FAILURE;
    }
    if !matches!(std::io::stdin().read(&mut [0]), Ok(1)) {
        // Not recorded: nobody would ever take this host down.
        return ExitCode::FAILURE;
    }
    if let Err(error) = crate::enter::silence_stdio() {
        eprintln!("skep lab-host: cannot let go of the terminal: {error}");
        return ExitCode::FAILURE;
    }
    loop {
        pause();
    }
}

struct HolderArgs {
    lab: Lab,
    held: Held,
}

impl HolderArgs {
    fn parse(args: impl IntoIterator<Item = OsString>) -> std::result::Result<Self, String> {
        let usage = || "usage: skep lab-host LAB_DIR LAB NUMBER|bridge".to_owned();
        let args: Vec<_> = args.into_iter().collect();
        let [dir, name, held] = args.as_slice() else { return Err(usage()) };
        let held = match held.to_str() {
            Some(BRIDGE) => Held::Bridge,
            Some(number) => Held::Host(number.parse().map_err(|_| usage())?),
            None => return Err(usage()),
        };
        let name = name.to_str().ok_or_else(usage)?.to_owned();
        Ok(Self { lab: Lab { name, dir: PathBuf::from(dir) }, held })
    }

    fn set_up(&self) -> std::result::Result<(), String> {
        self.make_namespaces().map_err(|error| error_chain(&error))
    }

    fn make_namespaces(&self) -> Result<()> {
        crate::enter::close_inherited().context("close", "inherited descriptors")?;
        // Already a leader only when started by hand; then there is nothing to leave.
        let _ = setsid();
        std::env::set_current_dir("/").context("enter", "/")?;
        CgroupTree::discover(&self.lab.name)?.join(&self.held.cgroup())?;
        match self.held {
            Held::Bridge => unshare(CloneFlags::CLONE_NEWNET).context("unshare", "network"),
            Held::Host(number) => {
                let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
                unshare(flags).context("unshare", "network, mount and UTS namespaces")?;
                sethostname(host_name(number)).context("set the name", host_name(number))?;
                mounts::set_up(&self.lab.host_dir(number).etc())
            }
        }
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The directory of the lab whose holder this process is; None if it is none.
///
/// Used for processes already known to be in the cgroups of a lab, never to look for any.
pub(crate) fn lab_dir_of(pid: i32) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut args = cmdline.split(|byte| *byte == 0).skip(1);
    (args.next()? == HOLDER_COMMAND.as_bytes()).then_some(())?;
    Some(PathBuf::from(OsString::from_vec(args.next()?.to_vec())))
}
