//! What can go wrong in a lab, in sentences that say what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A failed `skep lab` command.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Not run as root.
    #[error("skep lab makes namespaces, mounts and cgroups, so it needs root")]
    NotRoot,
    /// Called on a host of the very lab, which sees neither the machine's boot id nor the other hosts.
    #[error("this is a host of lab {0:?}; use skep lab on the machine itself")]
    Inside(String),
    /// No such lab.
    #[error("there is no lab {name:?} in {}; make one with: skep lab up --name {name}", dir.display())]
    NotUp {
        /// The lab's name.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// `up` for a lab that is up.
    #[error("lab {name:?} is already up (its state is in {})", dir.display())]
    AlreadyUp {
        /// The lab's name.
        name: String,
        /// Its directory.
        dir: PathBuf,
    },
    /// A lab of that name has its state in another directory.
    #[error("lab {name:?} is already up, with its state in {0}; add: --lab-dir {0}", dir.display())]
    Elsewhere {
        /// The lab's name.
        name: String,
        /// Its directory.
        dir: PathBuf,
    },
    /// Remains of an earlier lab.
    #[error("lab {name:?} {what}; remove it first with: skep lab down --name {name}")]
    Remains {
        /// The lab's name.
        name: String,
        /// "was left half made" and the like.
        what: &'static str,
    },
    /// The lab directory is something else's.
    #[error("{} is not empty and does not hold this lab; give another --lab-dir", .0.display())]
    ForeignDirectory(PathBuf),
    /// The lab directory would be hidden by the hosts' own /run.
    #[error("{} lies under /run, which every host has for itself; give another --lab-dir", .0.display())]
    UnderRun(PathBuf),
    /// More managers than hosts.
    #[error("{managers} managers do not fit on {nodes} host(s); give fewer --managers or more --nodes")]
    TooManyManagers {
        /// As asked.
        managers: u16,
        /// As asked.
        nodes: u16,
    },
    /// A host that the lab does not have.
    #[error("lab {name:?} has no host {number}; it has 1 to {count}")]
    NoSuchHost {
        /// The lab's name.
        name: String,
        /// As asked.
        number: u16,
        /// How many hosts there are.
        count: usize,
    },
    /// A host was asked to do something while off.
    #[error("host {0} is powered off; start it with: skep lab start {0}")]
    PoweredOff(u16),
    /// `kill` without a daemon.
    #[error("the daemon of host {0} is not running")]
    DaemonNotRunning(u16),
    /// `stop` without success.
    #[error("the daemon of host {host} did not stop within {} s; kill it with: skep lab kill {host}", within.as_secs())]
    DaemonDoesNotStop {
        /// Which.
        host: u16,
        /// How long was waited.
        within: Duration,
    },
    /// The daemon ended before it was ready.
    #[error("the daemon of host {host} ended before it was ready; end of its log:\n{log}")]
    DaemonEnded {
        /// Which.
        host: u16,
        /// The last lines.
        log: String,
    },
    /// The daemon runs, but its socket does not accept.
    #[error("the daemon of host {host} was not ready within {} s; end of its log:\n{log}", within.as_secs())]
    DaemonNotReady {
        /// Which.
        host: u16,
        /// How long was waited.
        within: Duration,
        /// The last lines.
        log: String,
    },
    /// A command on a host failed.
    #[error("`{command}` failed on host {host} ({outcome}): {output}\nend of the daemon's log:\n{log}")]
    HostCommand {
        /// Which.
        host: u16,
        /// As a shell would show it; tokens are left out.
        command: String,
        /// Exit code, signal or "no answer within …".
        outcome: String,
        /// What it wrote to stderr.
        output: String,
        /// The last lines of the daemon's log.
        log: String,
    },
    /// The swarm did not come together.
    #[error("host {host} is not ready after {} s ({state}); end of its log:\n{log}", within.as_secs())]
    NodeNotReady {
        /// The first host that is not ready.
        host: u16,
        /// How long was waited.
        within: Duration,
        /// What `skep node ls` said of it.
        state: String,
        /// The last lines of its daemon's log.
        log: String,
    },
    /// A partition between a host and itself.
    #[error("host {0} is on both sides of the partition")]
    BothSides(u16),
    /// No cgroup hierarchy can be used.
    #[error("no cgroup hierarchy is mounted writable here; skep lab cannot keep its processes together")]
    NoCgroups,
    /// Processes that do not die.
    #[error("processes of lab {name:?} do not end after SIGKILL: {pids:?}")]
    Undead {
        /// The lab's name.
        name: String,
        /// Which.
        pids: Vec<i32>,
    },
    /// A program of the system is missing.
    #[error("the program `{tool}` is not installed; install the package {package}")]
    ToolMissing {
        /// Its name.
        tool: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// A program of the system failed.
    #[error("`{tool}` failed: {output}")]
    Tool {
        /// Its name.
        tool: &'static str,
        /// What it wrote to stderr.
        output: String,
    },
    /// The process that keeps a host's namespaces did not come up.
    #[error("cannot make {which}: {reason}")]
    Holder {
        /// "host 2" or "the bridge".
        which: String,
        /// What it said.
        reason: String,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// A lab file that cannot be read.
    #[error("{} is damaged", path.display())]
    BadState {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Anything of the operating system.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The verb, such as "create".
        what: &'static str,
        /// The object.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Short form of results in this crate.
pub(crate) type Result<T> = std::result::Result<T, LabError>;

/// Names the object of a failed system call.
pub(crate) trait Context<T> {
    fn context(self, what: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| LabError::Io { what, path: path.as_ref().to_owned(), source: source.into() })
    }
}
