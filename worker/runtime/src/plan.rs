//! From what a container is to be to the plan that its monitor carries out: Docker's defaults around what the spec says, in
//! the kernel's numbers. Pure.

use std::path::Path;

use skep_shim::entry::Rlimit;
use skep_shim::ids;
use skep_shim::plan::{Mount as PlanMount, Plan, What};

use crate::caps;
use crate::cgroup::{Cgroups, View, devices};
use crate::spec::{
    ContainerSpec, Mount, MountKind, NetworkNamespace, Propagation, ResourceLimits, Ulimit, UserNamespace,
};

/// Paths that are covered, and paths that are made read-only; moby `oci/defaults.go`.
pub(crate) const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
pub(crate) const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Bytes of /dev/shm. Docker's figure.
pub(crate) const SHM_BYTES: u64 = 64 << 20;
/// Microseconds over which a CPU limit is measured. The kernel's default.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;
/// Open files, where nobody says otherwise and this process may grant them. Docker's figure; 1024 breaks redis and nginx.
const OPEN_FILES: u64 = 1_048_576;
/// Where cgroups are mounted, on hosts and in containers.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Where the tiny init appears in the container.
pub(crate) const INIT_PATH: &str = "/sbin/docker-init";

/// Who may send echo requests (icmp(7)).
const PING_GROUPS: &str = "net.ipv4.ping_group_range";
/// The group of terminals (Debian's and Docker's number).
const TTY: u32 = 5;

const READ_ONLY_MOUNT: u64 = libc::MOUNT_ATTR_RDONLY;
const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NO_DEV: u64 = libc::MOUNT_ATTR_NODEV;
const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// setrlimit(2), in the order of the numbers that Linux gives them on all processors that skep runs on.
const RLIMITS: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// The nodes of a container's own `/dev` (opencontainers/runtime-spec, `config-linux.md`), as name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Links in it (runc `rootfs_linux.go`).
const DEVICE_LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/core", "/proc/kcore"),
];

/// What of this host goes into a plan.
pub(crate) struct Place<'a> {
    pub(crate) cgroups: &'a Cgroups,
    /// Group of all containers, and of this one, relative to each hierarchy.
    pub(crate) containers: &'a Path,
    pub(crate) group: &'a Path,
    /// The monitor's program, which is the tiny init too.
    pub(crate) shim: &'a str,
    /// Limits that a container gets where nobody says otherwise.
    pub(crate) ulimits: &'a [Ulimit],
    /// Its seccomp program; `None`: it is not confined.
    pub(crate) filter: Option<&'a [u8]>,
    /// Its AppArmor profile; empty: none.
    pub(crate) apparmor: String,
}

/// Plans a container. The error is a sentence for the user.
pub(crate) fn plan(spec: &ContainerSpec, place: &Place<'_>) -> Result<Plan, String> {
    if spec.users.is_some() && spec.network == NetworkNamespace::Host {
        return Err("a container with a user namespace of its own cannot be on the host's network".to_owned());
    }
    let (cgroups, group) = (place.cgroups, place.group);
    let unified = cgroups.unified_folder(group);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let own_dev = !replaced_by_bind(spec, "/dev");
    let views = if replaced(spec, CGROUP_ROOT) { Vec::new() } else { cgroups.views(place.containers, group) };
    let mut links: Vec<(String, String)> = views.iter().flat_map(view_links).collect();
    if own_dev {
        links.extend(DEVICE_LINKS.map(|(at, to)| (at.to_owned(), to.to_owned())));
    }
    let wrapper = [INIT_PATH, "init", "--"].map(str::to_owned);
    let wrapper = if spec.init { &wrapper[..] } else { &[] };
    Ok(Plan {
        settings: cgroups.settings(group, &spec.resources),
        join: cgroups.join_files(group).iter().map(|file| text(file)).collect(),
        device_filter: if unified.is_some() { devices::program() } else { Vec::new() },
        namespaces: namespaces(spec, unified.is_some()),
        unified: unified.as_deref().map(text).unwrap_or_default(),
        network: match &spec.network {
            NetworkNamespace::Host => String::new(),
            NetworkNamespace::Path(path) => text(path),
        },
        user_namespace: spec.users.as_ref().map(|users| text(&users.path)).unwrap_or_default(),
        uids: spec.users.as_ref().map(|users| users.uids.clone()).unwrap_or_default(),
        gids: spec.users.as_ref().map(|users| users.gids.clone()).unwrap_or_default(),
        apparmor: place.apparmor.clone(),
        hostname: spec.hostname.clone(),
        mounts: mounts(spec, place, &views),
        links,
        devices: if own_dev { own_devices() } else { Vec::new() },
        sysctls: sysctls(spec)?,
        masked: MASKED.map(str::to_owned).to_vec(),
        read_only: READ_ONLY.map(str::to_owned).to_vec(),
        read_only_root: spec.read_only_root,
        user: spec.user.clone(),
        groups: spec.groups.clone(),
        capabilities: caps::mask(&spec.capabilities),
        no_new_privileges: !spec.allow_new_privileges,
        oom_score_adj: spec.oom_score_adj,
        rlimits: rlimits(spec, place.ulimits)?,
        cwd: spec.cwd.clone(),
        wrapped: wrapper.len() as u32,
        args: [wrapper, &spec.args].concat(),
        env: spec.env.clone(),
        filter: place.filter.map(<[u8]>::to_vec).unwrap_or_default(),
    })
}

fn namespaces(spec: &ContainerSpec, unified: bool) -> u32 {
    let mut own = libc::CLONE_NEWIPC;
    if !spec.hostname.is_empty() {
        own |= libc::CLONE_NEWUTS;
    }
    if unified {
        own |= libc::CLONE_NEWCGROUP;
    }
    own.cast_unsigned()
}

fn own_devices() -> Vec<skep_shim::plan::Device> {
    let device = |(name, major, minor): (&str, _, _)| skep_shim::plan::Device { name: name.to_owned(), major, minor };
    DEVICES.map(device).to_vec()
}

fn view_links(view: &View) -> impl Iterator<Item = (String, String)> + '_ {
    view.aliases.iter().map(|alias| (format!("{CGROUP_ROOT}/{alias}"), view.name.clone()))
}

fn replaced(spec: &ContainerSpec, target: &str) -> bool {
    spec.mounts.iter().any(|own| own.target.trim_end_matches('/') == target)
}

fn replaced_by_bind(spec: &ContainerSpec, target: &str) -> bool {
    let is_bind = |own: &Mount| matches!(own.kind, MountKind::Bind { .. } | MountKind::Memory { .. });
    spec.mounts.iter().any(|own| own.target.trim_end_matches('/') == target && is_bind(own))
}

/// All mounts, folders before what lies in them; a mount of the user's takes the place of a default one.
fn mounts(spec: &ContainerSpec, place: &Place<'_>, views: &[View]) -> Vec<PlanMount> {
    let shm = format!("mode=1777,size={SHM_BYTES}");
    let sealed = NO_SUID | NO_DEV | NO_EXEC;
    // The group "tty" as the container counts: mounted by the host's root.
    let tty = spec.users.as_ref().map_or(Some(TTY), |users| ids::outside(&users.gids, TTY));
    let terminals = tty.map_or(String::new(), |gid| format!(",gid={gid}"));
    let terminals = format!("ptmxmode=0666,mode=0620{terminals}");
    let mut mounts = vec![
        standard("/proc", "proc", sealed, ""),
        standard("/dev", "tmpfs", NO_SUID | libc::MOUNT_ATTR_STRICTATIME, "mode=755,size=65536k"),
        standard("/sys", "sysfs", sealed | READ_ONLY_MOUNT, ""),
        standard("/dev/pts", "devpts", NO_SUID | NO_EXEC, &terminals),
        standard("/dev/mqueue", "mqueue", sealed, ""),
        standard("/dev/shm", "tmpfs", sealed, &shm),
    ];
    if place.cgroups.unified_folder(place.group).is_some() {
        mounts.push(standard(CGROUP_ROOT, "cgroup2", sealed | READ_ONLY_MOUNT, ""));
    } else if !views.is_empty() {
        mounts.push(standard(CGROUP_ROOT, "tmpfs", sealed | READ_ONLY_MOUNT, "mode=755"));
        mounts.extend(views.iter().map(|view| PlanMount {
            target: format!("{CGROUP_ROOT}/{}", view.name),
            attributes: sealed | READ_ONLY_MOUNT,
            what: bind(&view.folder, false, Propagation::Private),
            standard: true,
        }));
    }
    mounts.retain(|mount| !replaced(spec, &mount.target));
    mounts.extend(spec.mounts.iter().map(own_mount));
    if spec.init {
        mounts.push(PlanMount {
            target: INIT_PATH.to_owned(),
            attributes: READ_ONLY_MOUNT | NO_SUID | NO_DEV,
            what: bind(Path::new(place.shim), false, Propagation::Private),
            standard: false,
        });
    }
    mounts.sort_by_key(|mount| mount.target.split('/').filter(|part| !part.is_empty()).count());
    mounts
}

fn standard(target: &str, kind: &str, attributes: u64, options: &str) -> PlanMount {
    let what = What::New { kind: kind.to_owned(), options: options.to_owned() };
    PlanMount { target: target.to_owned(), attributes, what, standard: true }
}

fn bind(source: &Path, recursive: bool, propagation: Propagation) -> What {
    let propagation = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Slave => libc::MS_SLAVE,
    };
    What::Bind { source: source.to_string_lossy().into_owned(), recursive, propagation }
}

fn own_mount(mount: &Mount) -> PlanMount {
    let access = if mount.read_only { READ_ONLY_MOUNT } else { 0 };
    let (attributes, what) = match &mount.kind {
        MountKind::Bind { source, propagation, recursive } => (access, bind(source, *recursive, *propagation)),
        MountKind::Tmpfs { size_bytes, mode } => {
            let size = if *size_bytes > 0 { format!(",size={size_bytes}") } else { String::new() };
            let options = format!("mode={mode:o}{size}");
            (access | NO_SUID | NO_DEV | NO_EXEC, What::New { kind: "tmpfs".to_owned(), options })
        }
        // What it is part of has the other attributes.
        MountKind::Memory { path } => (access, What::Memory { path: path.clone() }),
    };
    PlanMount { target: mount.target.clone(), attributes, what, standard: false }
}

/// The limits of each process. The error is a sentence.
/// Kernel parameters by their files. They are written as the host's root, which counts groups as the host does.
fn sysctls(spec: &ContainerSpec) -> Result<Vec<(String, String)>, String> {
    let value = |key: &str, value: &str| match &spec.users {
        Some(users) if key == PING_GROUPS => groups_of_host(users, value),
        _ => Ok(value.to_owned()),
    };
    spec.sysctls.iter().map(|(key, text)| Ok((key.replace('.', "/"), value(key, text)?))).collect()
}

/// The first and the last group of some that follow each other, as the host counts them.
fn groups_of_host(users: &UserNamespace, text: &str) -> Result<String, String> {
    let mut groups = text.split_whitespace().map(|group| group.parse::<u32>().ok());
    let (Some(Some(first)), Some(Some(last)), None) = (groups.next(), groups.next(), groups.next()) else {
        // The kernel says what it thinks of it.
        return Ok(text.to_owned());
    };
    // Of one range: between two of them there are groups of others.
    let both = users.gids.iter().find_map(|range| {
        let outside = |group| ids::outside(std::slice::from_ref(range), group);
        Some((outside(first)?, outside(last)?))
    });
    let (first, last) =
        both.ok_or_else(|| format!("{PING_GROUPS}={text}: the container does not have all these groups"))?;
    Ok(format!("{first} {last}"))
}

pub(crate) fn rlimits(spec: &ContainerSpec, defaults: &[Ulimit]) -> Result<Vec<Rlimit>, String> {
    let number = |name: &str| {
        let known = RLIMITS.iter().position(|known| *known == name).and_then(|at| u32::try_from(at).ok());
        known.ok_or_else(|| format!("{name:?} is not a ulimit"))
    };
    let one = |limit: &Ulimit| Ok(Rlimit { resource: number(&limit.name)?, soft: limit.soft, hard: limit.hard });
    ulimits(spec, defaults).map(one).collect()
}

/// What was asked for, and the defaults besides.
pub(crate) fn ulimits<'a>(spec: &'a ContainerSpec, defaults: &'a [Ulimit]) -> impl Iterator<Item = &'a Ulimit> {
    let is_own = |name: &str| spec.ulimits.iter().any(|limit| limit.name == name);
    spec.ulimits.iter().chain(defaults.iter().filter(move |limit| !is_own(&limit.name)))
}

/// Docker's number of open files, or as many as this process may grant: raising a hard limit takes CAP_SYS_RESOURCE
/// (setrlimit(2)), which a confined host may not have.
pub(crate) fn grantable_files() -> u64 {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    if held & (1 << CAP_SYS_RESOURCE) != 0 {
        return OPEN_FILES;
    }
    let hard = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map(|(_, hard)| hard);
    hard.unwrap_or(1024).min(OPEN_FILES)
}

/// Microseconds of CPU in a period. A thousandth of a CPU is the least that the kernel takes.
pub(crate) fn cpu_quota(nano_cpus: u64) -> u64 {
    (nano_cpus.saturating_mul(CPU_PERIOD_US) / 1_000_000_000).max(1_000)
}

/// Limits as the files of each version take them: file, v1 controller, value.
pub(crate) fn limit_files(limits: &ResourceLimits, unified: bool) -> Vec<(&'static str, &'static str, String)> {
    let quota = cpu_quota(limits.nano_cpus);
    let mut files = Vec::new();
    let mut ask =
        |given: u64, v1: &[(&'static str, &'static str, String)], v2: (&'static str, &'static str, String)| {
            if given > 0 {
                files.extend(if unified { vec![v2] } else { v1.to_vec() });
            }
        };
    let (memory, soft, pids) = (limits.memory_bytes, limits.memory_reservation_bytes, limits.pids);
    ask(
        memory,
        &[("memory.limit_in_bytes", "memory", memory.to_string())],
        ("memory.max", "memory", memory.to_string()),
    );
    ask(
        soft,
        &[("memory.soft_limit_in_bytes", "memory", soft.to_string())],
        ("memory.low", "memory", soft.to_string()),
    );
    ask(
        limits.nano_cpus,
        &[("cpu.cfs_period_us", "cpu", CPU_PERIOD_US.to_string()), ("cpu.cfs_quota_us", "cpu", quota.to_string())],
        ("cpu.max", "cpu", format!("{quota} {CPU_PERIOD_US}")),
    );
    ask(pids, &[("pids.max", "pids", pids.to_string())], ("pids.max", "pids", pids.to_string()));
    files
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod plan_test;
