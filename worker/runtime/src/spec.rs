//! What a container is to be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use skep_shim::ids::{self, IdRange};

/// One container, with every default already filled in by the caller.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerSpec {
    /// Unique on this host; `[a-zA-Z0-9_.-]+`.
    pub id: String,
    /// Unpacked image layers, topmost first. At least one.
    pub layers: Vec<PathBuf>,
    /// Program and arguments; at least one.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute working directory; made if the image lacks it.
    pub cwd: String,
    /// `user[:group]`, by name or id, resolved in the image. Empty: root.
    pub user: String,
    /// Further groups, by name or id.
    pub groups: Vec<String>,
    /// Host name in a UTS namespace of its own. Empty: the host's.
    pub hostname: String,
    pub network: NetworkNamespace,
    pub mounts: Vec<Mount>,
    pub resources: ResourceLimits,
    pub ulimits: Vec<Ulimit>,
    /// Capabilities without `CAP_`, exactly those it gets.
    pub capabilities: Vec<String>,
    pub seccomp: Seccomp,
    pub apparmor: AppArmor,
    /// A user namespace of its own. `None`: the host's.
    pub users: Option<UserNamespace>,
    /// Whether set-uid programs may gain privileges.
    pub allow_new_privileges: bool,
    /// A tiny init as process 1.
    pub init: bool,
    pub read_only_root: bool,
    pub sysctls: BTreeMap<String, String>,
    /// -1000 to 1000.
    pub oom_score_adj: i32,
    pub log: LogLimits,
    /// Where the log files go; outlives the container's directory.
    pub log_dir: PathBuf,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Seccomp {
    /// Docker's default profile.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// A profile in Docker's JSON form.
    Profile(Arc<str>),
}

/// The AppArmor profile of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AppArmor {
    /// `skep-default` where the kernel has AppArmor, none elsewhere.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// One that is loaded on the host.
    Profile(String),
}

/// A user namespace, and the ids in it. Files of the image belong to the container's ids; those of binds stay the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNamespace {
    /// Where it is bound. It must own the network namespace.
    pub path: PathBuf,
    /// As its `uid_map` and `gid_map` have them; at least one range each.
    pub uids: Vec<IdRange>,
    pub gids: Vec<IdRange>,
}

impl UserNamespace {
    /// The host's ids of a user and a group of the container's. `None`: one of them has none.
    pub fn outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((ids::outside(&self.uids, uid)?, ids::outside(&self.gids, gid)?))
    }
}

/// The network that a container is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// The host's own.
    #[default]
    Host,
    /// The namespace bound at this path.
    Path(PathBuf),
}

/// A file system mounted into the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path in the container.
    pub target: String,
    pub read_only: bool,
    pub kind: MountKind,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A path of the host, which must exist.
    Bind { source: PathBuf, propagation: Propagation, recursive: bool },
    /// Memory. 0 bytes: no limit of its own.
    Tmpfs { size_bytes: u64, mode: u32 },
    /// Of the container's secrets and configs: [`MemoryPlace::mounted`](crate::MemoryPlace::mounted).
    Memory { path: String },
}

/// How mounts below a bind travel; mount_namespaces(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    Private,
    Shared,
    Slave,
}

/// Limits. 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    pub memory_bytes: u64,
    /// Kept when memory is short (soft limit).
    pub memory_reservation_bytes: u64,
    /// Billionths of a CPU.
    pub nano_cpus: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// setrlimit(2). `u64::MAX` is unlimited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// Lower case, without `RLIMIT_`.
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

/// Rotation of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of one file.
    pub max_bytes: u64,
    /// Files kept, the current one included.
    pub max_files: u32,
}

impl Default for LogLimits {
    /// Docker's figures where it rotates: 10 MB, 3 files.
    fn default() -> Self {
        Self { max_bytes: 10 << 20, max_files: 3 }
    }
}

/// Who creates containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OciRuntime {
    /// The monitor itself.
    #[default]
    BuiltIn,
    /// A program with runc's command line.
    External(PathBuf),
}
