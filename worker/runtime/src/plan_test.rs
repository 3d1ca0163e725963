//! Plans on machines of each kind.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;
use crate::spec::Ulimit;

const V1: &str = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
    31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
    32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
    33 30 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
    34 30 0:30 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n\
    35 30 0:31 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n";
const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

fn made_on(machine: &str, change: impl FnOnce(&mut ContainerSpec)) -> Result<Plan, String> {
    let mut spec = ContainerSpec { args: vec!["sh".into()], ..ContainerSpec::default() };
    spec.capabilities = vec!["KILL".into()];
    change(&mut spec);
    let place = Place {
        cgroups: &Cgroups::parse(machine),
        containers: Path::new("skep/containers"),
        group: Path::new("skep/containers/x"),
        shim: "/shim",
        ulimits: &[ulimit("core", 5, 7), ulimit("nofile", OPEN_FILES, OPEN_FILES)],
        filter: None,
        apparmor: String::new(),
    };
    plan(&spec, &place)
}

fn made(change: impl FnOnce(&mut ContainerSpec)) -> Plan {
    made_on(V1, change).unwrap()
}

fn at<'a>(plan: &'a Plan, target: &str) -> Option<&'a PlanMount> {
    plan.mounts.iter().find(|mount| mount.target == target)
}

fn ulimit(name: &str, soft: u64, hard: u64) -> Ulimit {
    Ulimit { name: name.to_owned(), soft, hard }
}

fn tmpfs(target: &str) -> Mount {
    Mount { target: target.into(), read_only: false, kind: MountKind::Tmpfs { size_bytes: 0, mode: 0o1777 } }
}

fn bound(target: &str) -> Mount {
    let kind = MountKind::Bind { source: "/src".into(), propagation: Propagation::Slave, recursive: true };
    Mount { target: target.into(), read_only: true, kind }
}

/// They are written as the host's root.
#[test]
fn groups_in_a_kernel_parameter_are_those_of_the_container() {
    let range = |inside, outside, count| ids::IdRange { inside, outside, count };
    let with = |groups: &str, remapped: bool| {
        made_on(V1, |spec| {
            let gids = vec![range(0, 100_000, 1000), range(1000, 500_000, 10)];
            spec.network = NetworkNamespace::Path("/n".into());
            spec.users = remapped.then(|| UserNamespace { path: "/u".into(), uids: gids.clone(), gids });
            spec.sysctls.insert(PING_GROUPS.into(), groups.into());
        })
        .map(|plan| plan.sysctls[0].1.clone())
    };
    assert_eq!(with("0 999", false).unwrap(), "0 999");
    for (groups, expected) in [("0 999", "100000 100999"), ("1\t0", "100001 100000"), ("1000 1009", "500000 500009")] {
        assert_eq!(with(groups, true).unwrap(), expected);
    }
    assert_eq!(with("all", true).unwrap(), "all", "the kernel refuses it");
    for groups in ["0 2147483647", "0 1000", "5000 5000"] {
        assert!(with(groups, true).unwrap_err().contains("does not have all"), "{groups}");
    }
}

#[test]
fn safe_by_default() {
    let plan = made(|_| {});
    assert!(plan.no_new_privileges);
    assert_eq!(plan.capabilities, 1 << 5);
    assert!(plan.masked.contains(&"/proc/kcore".to_owned()) && plan.read_only.contains(&"/proc/sys".to_owned()));
    let core = Rlimit { resource: libc::RLIMIT_CORE, soft: 5, hard: 7 };
    let files = Rlimit { resource: libc::RLIMIT_NOFILE, soft: OPEN_FILES, hard: OPEN_FILES };
    assert_eq!(plan.rlimits, [core, files]);
    assert!(!made(|spec| spec.allow_new_privileges = true).no_new_privileges);
    assert_eq!(plan.settings[0].value, "a", "all devices are denied before some are allowed");
    assert!(plan.settings.iter().all(|setting| setting.file.contains("/devices/skep/containers/x/devices.")));
}

#[test]
fn a_container_has_groups_where_they_count_and_sees_where_programs_look() {
    let plan = made(|_| {});
    let joined = ["cpu,cpuacct", "memory", "devices"];
    assert_eq!(plan.join, joined.map(|name| format!("/sys/fs/cgroup/{name}/skep/containers/x/tasks")));
    let cpuset = at(&plan, "/sys/fs/cgroup/cpuset").unwrap();
    assert_eq!(cpuset.what, bind(Path::new("/sys/fs/cgroup/cpuset/skep/containers"), false, Propagation::Private));
    assert!(at(&plan, "/sys/fs/cgroup/devices").is_none() && at(&plan, "/sys/fs/cgroup/blkio").is_none());
    for view in plan.mounts.iter().filter(|mount| mount.target.starts_with(CGROUP_ROOT)) {
        assert_ne!(view.attributes & libc::MOUNT_ATTR_RDONLY, 0, "{view:?}");
    }
    assert!(plan.links.contains(&("/sys/fs/cgroup/cpuacct".to_owned(), "cpu,cpuacct".to_owned())));
    let own = made(|spec| spec.mounts = vec![tmpfs("/sys/fs/cgroup/")]);
    assert_eq!(own.mounts.iter().filter(|mount| mount.target.starts_with(CGROUP_ROOT)).count(), 1);
    assert!(own.links.iter().all(|(at, _)| at.starts_with("/dev/")));
}

#[test]
fn on_v2_it_begins_in_its_group_with_a_namespace_and_a_program_for_devices() {
    let plan = made_on(V2, |spec| spec.resources.memory_bytes = 1 << 20).unwrap();
    assert_eq!(plan.unified, "/sys/fs/cgroup/skep/containers/x");
    assert_eq!(plan.join, ["/sys/fs/cgroup/skep/containers/x/cgroup.procs"]);
    assert_ne!(plan.namespaces & libc::CLONE_NEWCGROUP.cast_unsigned(), 0);
    assert_eq!(plan.device_filter.len() % 8, 0);
    assert!(!plan.device_filter.is_empty());
    assert_eq!(plan.settings.len(), 1);
    assert_eq!(plan.settings[0].file, "/sys/fs/cgroup/skep/containers/x/memory.max");
    let what = &at(&plan, CGROUP_ROOT).unwrap().what;
    assert!(matches!(what, What::New { kind, .. } if kind == "cgroup2"));
}

#[test]
fn limits_are_written_as_each_version_takes_them() {
    let limits = ResourceLimits { memory_bytes: 9, memory_reservation_bytes: 5, nano_cpus: 1_500_000_000, pids: 7 };
    let files = |unified| {
        let files = limit_files(&limits, unified).into_iter();
        files.map(|(file, _, value)| format!("{file}={value}")).collect::<Vec<_>>().join(" ")
    };
    let v1 = "memory.limit_in_bytes=9 memory.soft_limit_in_bytes=5 \
              cpu.cfs_period_us=100000 cpu.cfs_quota_us=150000 pids.max=7";
    assert_eq!(files(false), v1);
    assert_eq!(files(true), "memory.max=9 memory.low=5 cpu.max=150000 100000 pids.max=7");
    assert!(limit_files(&ResourceLimits::default(), true).is_empty());
    assert_eq!(cpu_quota(1), 1_000, "the kernel takes no less");
}

#[test]
fn own_mounts_replace_defaults_and_parents_come_first() {
    let plan = made(|spec| spec.mounts = vec![tmpfs("/a/b"), tmpfs("/a"), tmpfs("/dev/shm"), bound("/dev")]);
    let targets: Vec<&str> = plan.mounts.iter().map(|mount| mount.target.as_str()).collect();
    let place = |target: &str| targets.iter().position(|found| *found == target).unwrap();
    for (once, parent) in [("/dev/shm", "/dev"), ("/a/b", "/a"), ("/sys/fs/cgroup/memory", "/sys/fs/cgroup")] {
        assert_eq!(targets.iter().filter(|target| **target == once).count(), 1);
        assert!(place(parent) < place(once), "{targets:?}");
    }
    let dev = at(&plan, "/dev").unwrap();
    assert!(!dev.standard && dev.attributes == libc::MOUNT_ATTR_RDONLY);
    let what = What::Bind { source: "/src".into(), recursive: true, propagation: libc::MS_SLAVE };
    assert_eq!(dev.what, what);
    assert!(plan.devices.is_empty(), "the host's devices are not added to");
    assert!(plan.links.iter().all(|(at, _)| !at.starts_with("/dev/")));
}

#[test]
fn a_tiny_init_is_around_the_command() {
    let plan = made(|spec| spec.init = true);
    assert_eq!(plan.args, [INIT_PATH, "init", "--", "sh"]);
    assert_eq!(plan.command(), ["sh"]);
    assert_ne!(at(&plan, INIT_PATH).unwrap().attributes & libc::MOUNT_ATTR_RDONLY, 0);
}

#[test]
fn ulimits_have_the_kernels_numbers() {
    for (name, number) in [("nofile", libc::RLIMIT_NOFILE), ("rttime", libc::RLIMIT_RTTIME), ("as", libc::RLIMIT_AS)] {
        let spec = ContainerSpec { ulimits: vec![ulimit(name, 1, 2)], ..ContainerSpec::default() };
        let asked = Rlimit { resource: number, soft: 1, hard: 2 };
        assert_eq!(rlimits(&spec, &[]).unwrap(), [asked]);
        assert_eq!(rlimits(&spec, &[ulimit(name, 9, 9)]).unwrap(), [asked], "what is asked for goes first");
    }
    let odd = ulimit("nofiles", 1, 2);
    assert!(made_on(V1, |spec| spec.ulimits = vec![odd]).unwrap_err().contains("nofiles"));
}
