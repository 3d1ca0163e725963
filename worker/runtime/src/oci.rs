//! The OCI runtime configuration of a container (opencontainers/runtime-spec) for an external runtime: Docker's defaults
//! around what the spec says. What only the image can tell (user, HOME, capabilities of a user) the monitor adds.

use serde_json::{Value, json};
use skep_shim::config::External;
use skep_shim::files::IN_BUNDLE;

use crate::plan::{CGROUP_ROOT, CPU_PERIOD_US, INIT_PATH, MASKED, READ_ONLY, SHM_BYTES, cpu_quota, ulimits};
use crate::seccomp;
use crate::spec::{ContainerSpec, Mount, MountKind, NetworkNamespace, Propagation, Ulimit};

/// What of this host goes into the configuration.
pub(crate) struct Place<'a> {
    /// The runtime's program.
    pub(crate) program: &'a str,
    /// The folder of the host that is the bundle, in the monitor's own namespace.
    pub(crate) bundle: &'a str,
    /// Group of the container, relative to each hierarchy.
    pub(crate) cgroup: &'a str,
    /// Whether cgroup2 is the only hierarchy: then the container gets a cgroup namespace.
    pub(crate) unified: bool,
    /// Where the v1 hierarchies are mounted; empty where there are none.
    pub(crate) v1_mounts: &'a [String],
    /// The monitor's program, which is the tiny init too.
    pub(crate) shim: &'a str,
    /// Limits that a container gets where nobody says otherwise.
    pub(crate) ulimits: &'a [Ulimit],
    /// Its AppArmor profile; empty: none.
    pub(crate) apparmor: &'a str,
}

/// The parts of `config.json`.
pub(crate) fn external(spec: &ContainerSpec, place: &Place<'_>) -> Result<External, String> {
    let names: Vec<String> = spec.capabilities.iter().map(|name| format!("CAP_{name}")).collect();
    Ok(External {
        program: place.program.to_owned(),
        id: spec.id.clone(),
        config: config(spec, place)?.to_string(),
        process: process(spec, place).to_string(),
        capabilities: json!(names).to_string(),
    })
}

fn config(spec: &ContainerSpec, place: &Place<'_>) -> Result<Value, String> {
    let mut config = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": spec.read_only_root },
        "mounts": mounts(spec, place),
        "linux": {
            "cgroupsPath": format!("/{}", place.cgroup),
            "namespaces": namespaces(spec, place),
            "resources": resources(spec),
            "maskedPaths": MASKED,
            "readonlyPaths": read_only(spec, place),
            "sysctl": spec.sysctls,
            "seccomp": seccomp::profile_of(spec)?,
        },
    });
    if !spec.hostname.is_empty() {
        config["hostname"] = json!(spec.hostname);
    }
    Ok(config)
}

/// What is remounted read-only, v1 hierarchies too: not every runtime heeds the options of the cgroup mount, and a
/// container's root could raise its own limits.
fn read_only(spec: &ContainerSpec, place: &Place<'_>) -> Vec<String> {
    let own = spec.mounts.iter().any(|mount| mount.target == CGROUP_ROOT);
    let cgroups = place.v1_mounts.iter().filter(|mount| !own && mount.starts_with(CGROUP_ROOT)).cloned();
    let root = (!own && !place.v1_mounts.is_empty()).then(|| CGROUP_ROOT.to_owned());
    // The folder that holds them comes last: it takes its mounts along.
    READ_ONLY.iter().map(|path| (*path).to_owned()).chain(cgroups).chain(root).collect()
}

fn process(spec: &ContainerSpec, place: &Place<'_>) -> Value {
    let mut args = spec.args.clone();
    if spec.init {
        args.splice(0..0, [INIT_PATH, "init", "--"].map(str::to_owned));
    }
    let mut process = json!({
        "terminal": false,
        "args": args,
        "cwd": if spec.cwd.is_empty() { "/" } else { &spec.cwd },
        "rlimits": rlimits(spec, place.ulimits),
        "oomScoreAdj": spec.oom_score_adj,
        "noNewPrivileges": !spec.allow_new_privileges,
    });
    if !place.apparmor.is_empty() {
        process["apparmorProfile"] = json!(place.apparmor);
    }
    process
}

fn rlimits(spec: &ContainerSpec, defaults: &[Ulimit]) -> Vec<Value> {
    let one = |limit: &Ulimit| {
        let kind = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
        json!({ "type": kind, "soft": limit.soft, "hard": limit.hard })
    };
    ulimits(spec, defaults).map(one).collect()
}

fn namespaces(spec: &ContainerSpec, place: &Place<'_>) -> Vec<Value> {
    let mut namespaces = vec![json!({ "type": "pid" }), json!({ "type": "ipc" }), json!({ "type": "mount" })];
    if !spec.hostname.is_empty() {
        namespaces.push(json!({ "type": "uts" }));
    }
    if let NetworkNamespace::Path(path) = &spec.network {
        namespaces.push(json!({ "type": "network", "path": path }));
    }
    if place.unified {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    namespaces
}

fn resources(spec: &ContainerSpec) -> Value {
    let limits = &spec.resources;
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if limits.memory_bytes > 0 {
        resources["memory"]["limit"] = json!(limits.memory_bytes);
    }
    if limits.memory_reservation_bytes > 0 {
        resources["memory"]["reservation"] = json!(limits.memory_reservation_bytes);
    }
    if limits.nano_cpus > 0 {
        resources["cpu"] = json!({ "quota": cpu_quota(limits.nano_cpus), "period": CPU_PERIOD_US });
    }
    if limits.pids > 0 {
        resources["pids"] = json!({ "limit": limits.pids });
    }
    resources
}

fn mounts(spec: &ContainerSpec, place: &Place<'_>) -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let shm = format!("size={SHM_BYTES}");
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(CGROUP_ROOT, "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
    ];
    // A mount of the user's takes the place of a default one.
    mounts.retain(|mount| !spec.mounts.iter().any(|own| mount["destination"] == own.target.as_str()));
    let mut own: Vec<&Mount> = spec.mounts.iter().collect();
    // Parents before what lies in them.
    own.sort_by_key(|mount| mount.target.matches('/').count());
    mounts.extend(own.into_iter().map(|mount| own_mount(mount, place.bundle)));
    if spec.init {
        let options = ["bind", "ro", "nosuid", "nodev"];
        mounts.push(json!({ "destination": INIT_PATH, "type": "bind", "source": place.shim, "options": options }));
    }
    mounts
}

fn own_mount(mount: &Mount, bundle: &str) -> Value {
    let access = if mount.read_only { "ro" } else { "rw" };
    match &mount.kind {
        MountKind::Bind { source, propagation, recursive } => {
            let (bind, propagation) = match (recursive, propagation) {
                (true, Propagation::Private) => ("rbind", "rprivate"),
                (true, Propagation::Shared) => ("rbind", "rshared"),
                (true, Propagation::Slave) => ("rbind", "rslave"),
                (false, Propagation::Private) => ("bind", "private"),
                (false, Propagation::Shared) => ("bind", "shared"),
                (false, Propagation::Slave) => ("bind", "slave"),
            };
            let options = [bind, propagation, access];
            json!({ "destination": mount.target, "type": "bind", "source": source, "options": options })
        }
        MountKind::Tmpfs { size_bytes, mode } => {
            let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), "noexec".to_owned(), access.to_owned()];
            options.push(format!("mode={mode:o}"));
            if *size_bytes > 0 {
                options.push(format!("size={size_bytes}"));
            }
            json!({ "destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options })
        }
        MountKind::Memory { path } => {
            let source = format!("{bundle}/{IN_BUNDLE}/{path}");
            let options = ["bind", "private", access, "nosuid", "nodev", "noexec"];
            json!({ "destination": mount.target, "type": "bind", "source": source, "options": options })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn made(change: impl FnOnce(&mut ContainerSpec)) -> (Value, Value) {
        let mut spec = ContainerSpec { args: vec!["sh".into()], ..ContainerSpec::default() };
        spec.capabilities = vec!["KILL".into()];
        change(&mut spec);
        let external = external(
            &spec,
            &Place {
                program: "/bin/runc",
                bundle: "/run/rootfs",
                cgroup: "skep/x",
                unified: false,
                v1_mounts: &["/sys/fs/cgroup/memory".to_owned(), "/mnt/elsewhere".to_owned()],
                shim: "/shim",
                ulimits: &[Ulimit { name: "nofile".to_owned(), soft: 1000, hard: 1000 }],
                apparmor: "skep-default",
            },
        )
        .unwrap();
        assert_eq!(external.capabilities, "[\"CAP_KILL\"]");
        (serde_json::from_str(&external.config).unwrap(), serde_json::from_str(&external.process).unwrap())
    }

    #[test]
    fn safe_by_default() {
        let (config, process) = made(|_| {});
        assert_eq!((&process["noNewPrivileges"], &process["apparmorProfile"]), (&json!(true), &json!("skep-default")));
        assert_eq!(config["linux"]["maskedPaths"][3], "/proc/kcore");
        assert_eq!(config["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(process["rlimits"][0]["hard"], 1000);
        assert_eq!(made(|spec| spec.allow_new_privileges = true).1["noNewPrivileges"], false);
    }

    #[test]
    fn v1_cgroups_are_read_only_unless_the_user_mounts_his_own() {
        let paths = |config: &Value| config["linux"]["readonlyPaths"].as_array().unwrap().clone();
        let default = paths(&made(|_| {}).0);
        assert_eq!(default[READ_ONLY.len()..], [json!("/sys/fs/cgroup/memory"), json!("/sys/fs/cgroup")]);
        let own = Mount {
            target: "/sys/fs/cgroup".into(),
            read_only: false,
            kind: MountKind::Tmpfs { size_bytes: 0, mode: 0o755 },
        };
        assert_eq!(paths(&made(|spec| spec.mounts = vec![own]).0).len(), READ_ONLY.len());
    }

    #[test]
    fn limits_and_namespaces_are_what_was_asked() {
        let (config, _) = made(|spec| {
            spec.resources.nano_cpus = 1_500_000_000;
            spec.resources.memory_bytes = 64 << 20;
            spec.resources.pids = 10;
            spec.network = NetworkNamespace::Path("/run/netns/x".into());
            spec.hostname = "web".into();
        });
        assert_eq!(config["linux"]["resources"]["cpu"]["quota"], 150_000);
        assert_eq!(config["linux"]["resources"]["memory"]["limit"], 64 << 20);
        assert_eq!(config["linux"]["resources"]["pids"]["limit"], 10);
        let kinds: Vec<&str> =
            config["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["pid", "ipc", "mount", "uts", "network"]);
    }

    #[test]
    fn own_mounts_replace_defaults_and_parents_come_first() {
        let tmpfs = |target: &str| Mount {
            target: target.into(),
            read_only: false,
            kind: MountKind::Tmpfs { size_bytes: 0, mode: 0o1777 },
        };
        let (config, _) = made(|spec| spec.mounts = vec![tmpfs("/a/b"), tmpfs("/a"), tmpfs("/dev/shm")]);
        let targets: Vec<&str> =
            config["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(targets.iter().filter(|target| **target == "/dev/shm").count(), 1);
        assert!(targets.iter().position(|t| *t == "/a") < targets.iter().position(|t| *t == "/a/b"));
    }
}
