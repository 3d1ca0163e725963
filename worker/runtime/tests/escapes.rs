//! Known ways out of a container, tried on real ones, as root: each is refused. What would work without the confinement is
//! tried without it, too, so that a refusal tells something.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::calls::{self, Arg, Number, Text, Way};
use common::users::Users;
use common::*;
use skep_runtime::{AppArmor, CAPABILITIES, ContainerSpec, Mount, MountKind, Propagation, Seccomp};

/// A system call that must not be possible by default.
struct Call {
    name: &'static str,
    number: i64,
    args: &'static [Arg],
    /// What it gives to a process that may do everything, as proof that it is the confinement that refuses it: an errno, 0 for
    /// success. `None`: this depends on the kernel.
    free: Option<i32>,
    /// The same with `--cap-add SYS_ADMIN` under the default profile, as Docker has it.
    admin: i32,
}

const fn call(name: &'static str, number: i64, args: &'static [Arg], free: Option<i32>, admin: i32) -> Call {
    Call { name, number, args, free, admin }
}

const NULL: Arg = Number(0);
/// No descriptor.
const NONE: Arg = Number(-1);
/// A number that no kernel knows.
const ODD: Arg = Number(0x7fff_0000);
const REFUSED: i32 = libc::EPERM;

/// The numbers are x86-64's, the arguments such that nothing of the host changes where one works.
#[rustfmt::skip]
const CALLS: &[Call] = &[
    // Mounts, the old way and the new.
    call("mount", 165, &[Text("x"), Text("/srv"), Text("tmpfs"), NULL, NULL], Some(0), 0),
    call("bind-proc", 165, &[Text("/proc"), Text("/srv"), NULL, Number(4096), NULL], Some(0), 0),
    call("umount", 166, &[Text("/proc/keys"), Number(2)], Some(0), 0),
    call("pivot_root", 155, &[Text("/"), Text("/")], Some(libc::EBUSY), REFUSED),
    call("move_mount", 429, &[NONE, Text("a"), NONE, Text("b"), NULL], Some(libc::EBADF), libc::EBADF),
    call("fsopen", 430, &[Text("tmpfs"), NULL], Some(0), 0),
    call("fsconfig", 431, &[NONE, Number(6), NULL, NULL, NULL], Some(libc::EINVAL), libc::EINVAL),
    call("fsmount", 432, &[NONE, NULL, NULL], Some(libc::EBADF), libc::EBADF),
    call("fspick", 433, &[NONE, Text("x"), NULL], Some(libc::EBADF), libc::EBADF),
    call("open_tree", 428, &[Number(-100), Text("/srv"), Number(1)], Some(0), 0),
    call("mount_setattr", 442, &[NONE, Text("x"), NULL, NULL, NULL], Some(libc::EINVAL), libc::EINVAL),
    // Namespaces.
    call("unshare-user", 272, &[Number(0x1000_0000)], Some(0), 0),
    call("unshare-mounts", 272, &[Number(0x0002_0000)], Some(0), 0),
    call("clone-user", 56, &[Number(0x1000_0011), NULL, NULL, NULL, NULL], Some(0), 0),
    call("setns", 308, &[NONE, NULL], Some(libc::EBADF), libc::EBADF),
    call("sethostname", 170, &[NULL, NONE], Some(libc::EINVAL), libc::EINVAL),
    // The kernel itself.
    call("bpf", 321, &[ODD, NULL, NULL], Some(libc::EINVAL), libc::EINVAL),
    call("perf_event_open", 298, &[NULL, NULL, NONE, NONE, NULL], Some(libc::EFAULT), libc::EFAULT),
    call("userfaultfd", 323, &[NULL], Some(0), REFUSED),
    call("io_uring_setup", 425, &[Number(1), NULL], Some(libc::EFAULT), REFUSED),
    call("init_module", 175, &[NULL, NULL, NULL], None, REFUSED),
    call("finit_module", 313, &[NONE, NULL, NULL], None, REFUSED),
    call("delete_module", 176, &[Text("no-such-module"), NULL], None, REFUSED),
    call("kexec_load", 246, &[NULL, NULL, NULL, ODD], None, REFUSED),
    call("reboot", 169, &[NULL, NULL, NULL, NULL], Some(libc::EINVAL), REFUSED),
    call("syslog", 103, &[Number(9), NULL, NULL], None, REFUSED),
    call("acct", 163, &[Text("/no/such/file")], None, REFUSED),
    call("swapon", 167, &[Text("/no/such/file"), NULL], None, REFUSED),
    call("clock_settime", 227, &[ODD, NULL], Some(libc::EINVAL), REFUSED),
    call("iopl", 172, &[Number(99)], None, REFUSED),
    call("quotactl", 179, &[Number(0x7fff_00ff), NULL, NULL, NULL], None, libc::EINVAL),
    call("personality", 135, &[Number(0x0004_0000)], Some(0), REFUSED),
    call("vhangup", 153, &[], None, REFUSED),
    // Other processes, and files by number.
    call("open_by_handle_at", 304, &[NONE, NULL, NULL], Some(libc::EFAULT), REFUSED),
    call("kcmp", 312, &[Number(1), Number(1), Number(2), NULL, NULL], None, REFUSED),
    call("pidfd_getfd", 438, &[NONE, NULL, NULL], Some(libc::EBADF), REFUSED),
    // The keyrings that no namespace divides.
    call("add_key", 248, &[Text("user"), Text("skep-test"), NULL, NULL, Number(-3)], None, REFUSED),
    call("request_key", 249, &[Text("user"), Text("skep-test"), NULL, NULL], None, REFUSED),
    call("keyctl", 250, &[NULL, Number(-3), NULL], Some(0), REFUSED),
    // The hypervisor.
    call("vsock", 41, &[Number(40), Number(1), NULL], None, REFUSED),
];

/// The same by other doors: 32-bit programs, and the x32 numbers (bit 30). Kernels without these say ENOSYS or kill.
const OTHER_DOORS: [(&str, Way, i64, &[Arg]); 4] = [
    ("old-mount", Way::Old, 21, &[Text("x"), Text("/srv"), Text("tmpfs"), NULL, NULL]),
    ("old-unshare", Way::Old, 310, &[Number(0x1000_0000)]),
    ("x32-mount", Way::Native, 0x4000_0000 + 165, &[Text("x"), Text("/srv"), Text("tmpfs"), NULL, NULL]),
    ("x32-unshare", Way::Native, 0x4000_0000 + 272, &[Number(0x1000_0000)]),
];

/// Puts the programs into the image.
fn install_calls(world: &World) {
    let folder = world.dir.path().join("layer/bin");
    for call in CALLS {
        calls::install(&folder, &format!("call-{}", call.name), &calls::program(Way::Native, call.number, call.args));
    }
    for (name, way, number, args) in OTHER_DOORS {
        calls::install(&folder, &format!("call-{name}"), &calls::program(way, number, args));
    }
}

/// Runs each in a container as `change` makes it: the exit code of each.
async fn results(world: &World, id: &str, change: impl FnOnce(&mut ContainerSpec)) -> BTreeMap<String, i32> {
    let script = "for call in /bin/call-*; do $call 2>/dev/null; echo \"$call $?\"; done";
    let mut spec = world.spec(id, script);
    // Of its own: a change of the name must not be the host's.
    spec.hostname = "victim".into();
    change(&mut spec);
    let (_, out, err) = world.run(spec).await;
    let read = |line: &str| {
        let (name, code) = line.split_once(' ')?;
        Some((name.strip_prefix("/bin/call-")?.to_owned(), code.parse().ok()?))
    };
    let found: BTreeMap<String, i32> = out.lines().filter_map(read).collect();
    assert_eq!(found.len(), CALLS.len() + OTHER_DOORS.len(), "{out}{err}");
    found
}

/// What of the table is otherwise than `expected` says.
fn wrong(found: &BTreeMap<String, i32>, expected: impl Fn(&Call) -> Option<i32>) -> Vec<String> {
    let wrong = CALLS.iter().filter_map(|call| {
        let (expected, found) = (expected(call)?, *found.get(call.name)?);
        (found != expected).then(|| format!("{}: errno {found}, not {expected}", call.name))
    });
    wrong.collect()
}

#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "multi_thread")]
async fn system_calls_that_lead_out_are_refused() {
    let world = World::new();
    install_calls(&world);
    let none: Vec<String> = Vec::new();
    let default = results(&world, "default", |_| {}).await;
    assert_eq!(wrong(&default, |_| Some(REFUSED)), none, "by default");
    for (name, ..) in OTHER_DOORS {
        assert_ne!(default[name], 0, "{name}");
    }
    let user = results(&world, "user", |spec| spec.user = "web".into()).await;
    assert_eq!(wrong(&user, |_| Some(REFUSED)), none, "as another user");
    let gains = results(&world, "gains", |spec| spec.allow_new_privileges = true).await;
    assert_eq!(wrong(&gains, |_| Some(REFUSED)), none, "with set-uid programs");
    // Without system calls to refuse, capabilities still do, where one is needed at all.
    let admin = results(&world, "admin", |spec| {
        spec.capabilities.push("SYS_ADMIN".into());
        // Its default profile refuses mounts, too, as Docker's.
        spec.apparmor = AppArmor::Unconfined;
    })
    .await;
    // Older kernels (6.1) take it for CAP_SYSLOG.
    let expected = |call: &Call| (call.name != "syslog").then_some(call.admin);
    assert_eq!(wrong(&admin, expected), none, "with CAP_SYS_ADMIN, as Docker has it");
    let free = results(&world, "free", |spec| {
        spec.apparmor = AppArmor::Unconfined;
        spec.seccomp = Seccomp::Unconfined;
        spec.capabilities = held_here();
    })
    .await;
    assert_eq!(wrong(&free, |call| call.free), none, "the control: without confinement each does something");
    let still: Vec<&str> =
        CALLS.iter().filter(|call| call.free.is_none() && free[call.name] == REFUSED).map(|call| call.name).collect();
    assert!(still.len() < 6, "these would be refused anyhow: {still:?}");
}

#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "multi_thread")]
async fn without_a_filter_and_with_ids_of_its_own_the_host_is_out_of_reach() {
    let world = World::new();
    install_calls(&world);
    let users = Users::new();
    let found = results(&world, "a", |spec| {
        spec.apparmor = AppArmor::Unconfined;
        spec.seccomp = Seccomp::Unconfined;
        spec.capabilities = CAPABILITIES.map(str::to_owned).to_vec();
        (spec.users, spec.network) = (Some(users.namespace()), users.network());
    })
    .await;
    // All capabilities, but of its own namespace: what is the host's stays so.
    // It is the lack of a right that refuses them, not what they were called with; a kernel may lack the calls, too.
    let of_host = ["init_module", "finit_module", "delete_module", "kexec_load", "reboot", "syslog", "acct", "swapon"];
    let is_refused = |name: &&str| [REFUSED, libc::ENOSYS].contains(&found[*name]);
    let open: Vec<_> = of_host.into_iter().filter(|name| !is_refused(name)).map(|name| (name, found[name])).collect();
    assert_eq!(found["reboot"], REFUSED, "every kernel has it");
    assert!(open.is_empty(), "{open:?}");
    assert_eq!(found["mount"], 0, "what it mounts is its own: {found:?}");
    assert_ne!(found["umount"], 0, "what covers the kernel's files stays");
}

/// The capabilities that this process has: what is confined itself can give no more.
fn held_here() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
    CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(bit, _)| mask & (1 << bit) != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

/// Files of the kernel by which a container would change the host, or leave.
const WRITTEN: [&str; 24] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hotplug",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/kernel/shmmax",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/fs/file-max",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/kcore",
    "/proc/kmem",
    "/proc/timer_stats",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/profiling",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/module/overlay/parameters/metacopy",
    "/sys/power/state",
    "/sys/block",
];

/// Files of it that tell about the host.
const COVERED: [&str; 11] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/interrupts",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/acpi",
    "/proc/asound",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_kernel_are_not_written_and_not_read() {
    let world = World::new();
    let users = Users::new();
    // Opened alone: nothing is written where that works.
    let script = format!(
        "for file in {} $(echo /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs \
         /sys/fs/cgroup/*/notify_on_release /sys/fs/cgroup/*/devices.allow /sys/fs/cgroup/*/memory.limit_in_bytes \
         /sys/fs/cgroup/memory.max); do ( : >> $file ) 2>/dev/null && echo written $file; done; \
         for file in {}; do ( cat $file; ls $file ) 2>/dev/null | grep -v ^$file'$' | head -n 1 | tr -c '' x | grep -q x && echo read $file; done; \
         mkdir /sys/fs/cgroup/x 2>/dev/null && echo made a group; echo end",
        WRITTEN.join(" "),
        COVERED.join(" ")
    );
    let with_users = |spec: &mut ContainerSpec| {
        (spec.users, spec.network) = (Some(users.namespace()), users.network());
    };
    let all = |spec: &mut ContainerSpec| spec.allow_new_privileges = true;
    for (id, change) in [
        ("default", &(|_: &mut ContainerSpec| {}) as &dyn Fn(&mut ContainerSpec)),
        ("gains", &all),
        ("users", &with_users),
    ] {
        let mut spec = world.spec(id, &script);
        change(&mut spec);
        let (_, out, err) = world.run(spec).await;
        assert_eq!(out, "end\n", "{id}: {err}");
    }
    // The control: the host's root can, so it is the container that cannot.
    let writable = WRITTEN.iter().filter(|path| fs::OpenOptions::new().append(true).open(path).is_ok());
    assert!(writable.count() >= 12, "the host's root may open most of them");
    let readable = COVERED.iter().filter(|path| match fs::metadata(path) {
        Ok(found) if found.is_dir() => fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()),
        Ok(_) => fs::read(path).is_ok_and(|bytes| !bytes.is_empty()),
        Err(_) => false,
    });
    assert!(readable.count() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_the_host_do_not_open() {
    let world = World::new();
    let disk = fs::metadata("/").unwrap().dev();
    let disk = (libc::major(disk), libc::minor(disk));
    let nodes = [
        ("b", disk.0, disk.1),
        ("c", 1, 1),
        ("c", 1, 4),
        ("c", 1, 11),
        ("c", 10, 200),
        ("c", 10, 229),
        ("c", 10, 232),
        ("c", 10, 237),
        ("c", 4, 0),
    ];
    let made: Vec<String> = nodes
        .iter()
        .map(|(kind, major, minor)| format!("mknod /tmp/{kind}-{major}-{minor} {kind} {major} {minor} && echo made"))
        .collect();
    // Nodes may be made, as in Docker's containers; that gives no access.
    let script = format!(
        "{}; for node in $(ls /tmp | grep ^[bc]-); do node=/tmp/$node; ( : < $node ) 2>/dev/null && echo open $node; ( : >> $node ) 2>/dev/null && echo open $node; done; \
         ( : < /dev/null ) && ( : < /dev/urandom ) && echo harmless",
        made.join("; ")
    );
    let (_, out, err) = world.run(world.spec("a", &script)).await;
    assert_eq!(out, format!("{}harmless\n", "made\n".repeat(nodes.len())), "{err}");
    let mut spec = world.spec("admin", &script);
    spec.capabilities = held_here();
    spec.seccomp = Seccomp::Unconfined;
    let (_, out, err) = world.run(spec).await;
    assert_eq!(out, format!("{}harmless\n", "made\n".repeat(nodes.len())), "with all capabilities: {err}");
    // With ids of its own it may not even make them.
    let users = Users::new();
    let mut spec = world.spec("users", &script);
    (spec.users, spec.network) = (Some(users.namespace()), users.network());
    assert_eq!(world.run(spec).await.1, "harmless\n");
    // The control: outside, such a node opens.
    let kmsg = world.dir.path().join("kmsg");
    let status = std::process::Command::new("mknod").arg(&kmsg).args(["c", "1", "11"]).status().unwrap();
    assert!(status.success() && fs::File::open(&kmsg).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn set_uid_programs_gain_nothing_unless_they_may() {
    let world = World::new();
    let shell = world.dir.path().join("layer/bin/su-id");
    fs::copy("/bin/busybox", &shell).unwrap();
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o4755)).unwrap();
    // Busybox gives such rights up itself, but for this applet; a program of one call tells.
    calls::install(
        &world.dir.path().join("layer/bin"),
        "become-root",
        &calls::program(Way::Native, libc::SYS_setuid, &[NULL]),
    );
    fs::set_permissions(world.dir.path().join("layer/bin/become-root"), fs::Permissions::from_mode(0o4755)).unwrap();
    for (gains, expected) in [(false, format!("{}\n", libc::EPERM)), (true, "0\n".to_owned())] {
        let mut spec = world.spec(&format!("a{gains}"), "become-root; echo $?");
        (spec.user, spec.allow_new_privileges) = ("web".into(), gains);
        let (_, out, err) = world.run(spec).await;
        assert_eq!(out, expected, "{gains}: {err}");
    }
}

/// keyctl(2) and add_key(2) of this thread, as the control.
fn add_key(name: &std::ffi::CStr) -> i64 {
    // SAFETY: C strings and bytes that live through the call; -3 is the session's keyring.
    unsafe { libc::syscall(libc::SYS_add_key, c"user".as_ptr(), name.as_ptr(), c"secret".as_ptr(), 6, -3) }
}

#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_a_keyring_of_its_own() {
    // keyctl(KEYCTL_SEARCH, session keyring, "user", name, 0)
    const SEARCH: [Arg; 5] = [Number(10), Number(-3), Text("user"), Text("skep-escape-test"), NULL];
    let found = tokio::task::spawn_blocking(|| {
        // Of this thread's, for the test alone; its children would have it too.
        // SAFETY: KEYCTL_JOIN_SESSION_KEYRING (1) without a name.
        unsafe { libc::syscall(libc::SYS_keyctl, 1, std::ptr::null::<libc::c_char>()) };
        assert!(add_key(c"skep-escape-test") > 0, "{}", std::io::Error::last_os_error());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        calls::install(dir.path(), "search", &calls::program(Way::Native, libc::SYS_keyctl, &SEARCH));
        let outside = std::process::Command::new(dir.path().join("search")).status().unwrap();
        let world = World::new();
        fs::copy(dir.path().join("search"), world.dir.path().join("layer/bin/search")).unwrap();
        let out = runtime.block_on(async {
            let mut out = String::new();
            for seccomp in [Seccomp::Default, Seccomp::Unconfined] {
                let mut spec = world.spec(&format!("{seccomp:?}"), "search; echo $?");
                spec.seccomp = seccomp;
                out += &world.run(spec).await.1;
            }
            // Nor has a command in it the agent's.
            let mut spec = world.spec("commands", "sleep 1000");
            spec.seccomp = Seccomp::Unconfined;
            let container = world.runtime.create(spec.clone()).await.unwrap();
            let running = world.runtime.exec(&container, Arc::new(spec), vec!["search".into()]).await.unwrap();
            out += &format!("{:?}\n", running.finish(SOON, 64).await.unwrap().0);
            container.remove().await.unwrap();
            out
        });
        (outside.code(), out)
    })
    .await
    .unwrap();
    assert_eq!(found.0, Some(0), "the control: a child of the thread has its keyring");
    assert_eq!(found.1, format!("{}\n{}\nExited({})\n", libc::EPERM, libc::ENOKEY, libc::ENOKEY));
}

/// What a container that has got hold of `/proc/<pid>/exe` of its makers could overwrite (CVE-2019-5736).
#[tokio::test(flavor = "multi_thread")]
async fn the_programs_that_make_containers_are_not_overwritten() {
    let world = World::new();
    let bin = world.dir.path().join("containers/bin");
    let programs = || -> Vec<(String, Vec<u8>)> {
        let files = fs::read_dir(&bin)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("skep-shim"));
        files.map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap())).collect()
    };
    let before = programs();
    assert_eq!(before.len(), 1);
    // A loop that writes to every program that it can see, own ones included; its own copy is the control.
    let script = "cp /bin/busybox /tmp/own; echo begun; while true; do for exe in /proc/[0-9]*/exe /sbin/docker-init /tmp/own; \
                  do ( echo overwritten > $exe ) 2>/dev/null; done; done";
    let mut spec = world.spec("a", script);
    (spec.init, spec.capabilities) = (true, held_here());
    spec.seccomp = Seccomp::Unconfined;
    let (log_dir, spec) = (spec.log_dir.clone(), Arc::new(spec));
    let container = world.runtime.create(ContainerSpec::clone(&spec)).await.unwrap();
    until("it has begun", || fs::read_to_string(log_dir.join("container.log")).is_ok_and(|log| log.contains("begun")))
        .await;
    for _ in 0..20 {
        let command = ["sh", "-c", "cat /tmp/own | head -c 11"].map(str::to_owned).to_vec();
        let running = world.runtime.exec(&container, Arc::clone(&spec), command).await.unwrap();
        let (end, out) = running.finish(SOON, 4096).await.unwrap();
        assert_eq!(end, skep_runtime::ExecEnd::Exited(0), "the way in is whole: {out:?}");
        assert!(out.is_empty() || out == b"overwritten" || out.starts_with(b"\x7fELF"), "{out:?}");
    }
    let own = format!("/proc/{}/root/tmp/own", pid(&container));
    until("its own file is overwritten", || fs::read(&own).is_ok_and(|bytes| bytes.starts_with(b"overwritten"))).await;
    container.remove().await.unwrap();
    assert_eq!(programs(), before);
    // An image whose command is whatever made it.
    let layer = world.dir.path().join("layer");
    fs::write(layer.join("bin/itself"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(layer.join("bin/itself"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = world.spec("b", "");
    spec.args = vec!["/bin/itself".into()];
    if let Ok(container) = world.runtime.create(spec).await {
        assert_ne!(container.wait().await.code, 0);
        container.remove().await.unwrap();
    }
    assert_eq!(programs(), before);
    assert_eq!(world.out("echo whole").await, "whole\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_the_host_are_not_seen_not_signalled_not_traced() {
    let world = World::new();
    let victim = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    // Numbers of the host's are other processes inside, or none.
    let script = format!(
        "ls /proc | grep -c '^[0-9]'; kill -9 {pid} 2>/dev/null && echo killed; kill -9 -1; \
         ls -d /proc/{pid} 2>/dev/null && echo seen; echo end",
        pid = victim.id()
    );
    let mut spec = world.spec("a", &script);
    spec.capabilities = held_here();
    spec.seccomp = Seccomp::Unconfined;
    let (_, out, err) = world.run(spec).await;
    let mut victim = victim;
    let alive = matches!(victim.try_wait(), Ok(None));
    victim.kill().unwrap();
    victim.wait().unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].parse::<u32>().unwrap() <= 4, "its own alone: {out}");
    assert_eq!((&lines[1..], alive), (&["end"][..], true), "{err}");
}

/// A container that may look into every process that it sees: one on its way into it with the host's root would be a way to
/// the host's files, one without the filter or with more capabilities another.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_on_its_way_in_has_nothing_that_the_container_has_not() {
    let world = World::new();
    assert!(held_here().contains(&"SYS_PTRACE".to_owned()));
    let secret = world.dir.path().join("secret");
    fs::write(&secret, "the host's\n").unwrap();
    let script = format!(
        "( while ! [ -e /tmp/over ]; do cat /proc/[0-9]*/status 2>/dev/null | grep -E '^(CapBnd|Seccomp):'; done | sort -u > /tmp/rights ) & \
         echo begun; while ! [ -e /tmp/over ]; do for root in /proc/[0-9]*/root; do \
         [ -e $root{secret} ] && cat $root{secret} 2>/dev/null; done; done; wait; cat /tmp/rights; echo end",
        secret = secret.display()
    );
    let mut spec = world.spec("a", &script);
    spec.capabilities.push("SYS_PTRACE".into());
    spec.apparmor = AppArmor::Unconfined;
    let (log_dir, spec) = (spec.log_dir.clone(), Arc::new(spec));
    let container = world.runtime.create(ContainerSpec::clone(&spec)).await.unwrap();
    until("it has begun", || fs::read_to_string(log_dir.join("container.log")).is_ok_and(|log| log.contains("begun")))
        .await;
    // The control: who may look, sees the host's file where the host's root is.
    assert!(fs::exists(format!("/proc/self/root{}", secret.display())).unwrap());
    for command in ["true"; 200].into_iter().chain(["echo > /tmp/over"]) {
        let command = ["sh", "-c", command].map(str::to_owned).to_vec();
        let running = world.runtime.exec(&container, Arc::clone(&spec), command).await.unwrap();
        let (end, out) = running.finish(SOON, 4096).await.unwrap();
        assert_eq!(end, skep_runtime::ExecEnd::Exited(0), "{out:?}");
    }
    container.wait().await;
    let (out, err) = said(&log_dir).await;
    container.remove().await.unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "one set of rights, and no file: {out}{err}");
    assert!(lines[1].starts_with("CapBnd:") && lines[2] == "Seccomp:\t2" && lines[3] == "end", "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_an_image_lead_nowhere_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "the host's\n").unwrap();
    let up = format!("../../../../../../../..{}", outside.path().display());
    for target in [outside.path().to_string_lossy().into_owned(), up] {
        let world = World::new();
        let layer = world.dir.path().join("layer");
        fs::create_dir_all(layer.join("run")).unwrap();
        // Where files of ours go.
        let file = format!("{target}/file");
        symlink(&target, layer.join("run/secrets")).unwrap();
        symlink(&file, layer.join("etc/resolv.conf")).unwrap();
        symlink(&file, layer.join("etc/hostname")).unwrap();
        symlink(&target, layer.join("data")).unwrap();
        let ours = world.dir.path().join("ours");
        fs::write(&ours, "ours\n").unwrap();
        let bind = |target: &str| {
            let kind = MountKind::Bind { source: ours.clone(), propagation: Propagation::Private, recursive: false };
            Mount { target: target.into(), read_only: false, kind }
        };
        let script = format!(
            "cat /etc/resolv.conf /run/secrets/x /data/y; cat {file}; echo changed > {}/file; echo end",
            target
        );
        let mut spec = world.spec("a", &script);
        spec.mounts = ["/etc/resolv.conf", "/etc/hostname", "/run/secrets/x", "/data/y"].map(bind).to_vec();
        let (_, out, err) = world.run(spec).await;
        // The link was made whole inside: its last file is where ours is mounted.
        assert_eq!(out, "ours\nours\nours\nours\nend\n", "{err}");
        assert_eq!(fs::read_to_string(&ours).unwrap(), "changed\n", "the mount, and not what the link names");
        assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), "the host's\n");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "nothing was made there");
    }
}

/// Two containers with one volume: the one swaps a folder for a link while the other is made (CVE-2021-30465).
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_changes_meanwhile_leads_nowhere_outside() {
    let world = World::new();
    let outside = tempfile::tempdir().unwrap();
    let volume = world.dir.path().join("volume");
    fs::create_dir_all(volume.join("folder")).unwrap();
    symlink(format!("/../../../../../../..{}", outside.path().display()), volume.join("link")).unwrap();
    let (over, swapped) = (Arc::new(AtomicBool::new(false)), volume.clone());
    let stop = Arc::clone(&over);
    let swapper = std::thread::spawn(move || {
        let mut swaps = 0u64;
        let path = |name: &str| std::ffi::CString::new(swapped.join(name).to_str().unwrap()).unwrap();
        let (folder, link) = (path("folder"), path("link"));
        while !stop.load(Ordering::Relaxed) {
            // SAFETY: C strings that live through the call; the two change places.
            let done = unsafe {
                libc::renameat2(libc::AT_FDCWD, folder.as_ptr(), libc::AT_FDCWD, link.as_ptr(), libc::RENAME_EXCHANGE)
            };
            swaps += u64::from(done == 0);
        }
        swaps
    });
    let (mut made, mut refused) = (0, 0);
    for number in 0..40 {
        let mut spec = world.spec(&format!("a{number}"), "true");
        let bind = MountKind::Bind { source: volume.clone(), propagation: Propagation::Private, recursive: true };
        let memory = MountKind::Tmpfs { size_bytes: 1 << 20, mode: 0o755 };
        let at = |target: &str, kind| Mount { target: target.into(), read_only: false, kind };
        spec.mounts =
            vec![at("/volume", bind), at("/volume/folder/in/it", memory.clone()), at("/volume/link/x", memory)];
        match world.runtime.create(spec).await {
            Ok(container) => {
                container.wait().await;
                container.remove().await.unwrap();
                made += 1;
            }
            Err(_) => refused += 1,
        }
    }
    over.store(true, Ordering::Relaxed);
    assert!(swapper.join().unwrap() > 1000);
    assert!(made > 0, "{refused} were refused");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{made} made, {refused} refused");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*outside.path().to_string_lossy()));
}

/// A `/dev` of the user's, in which names of devices are something else (CVE-2025-31133, CVE-2025-52565).
#[tokio::test(flavor = "multi_thread")]
async fn a_null_device_that_is_something_else_covers_nothing_with_it() {
    let world = World::new();
    let target = world.dir.path().join("target");
    fs::write(&target, "the host's\n").unwrap();
    for links in [["null", "console"], ["null", "pts"]] {
        let dev = world.dir.path().join(links[1]);
        fs::create_dir(&dev).unwrap();
        for name in links {
            symlink("/proc/sys/kernel/core_pattern", dev.join(name)).unwrap();
        }
        let script = "cat /proc/keys; ( : >> /proc/keys ) && echo harmless; ( : >> /proc/sys/kernel/core_pattern ) 2>/dev/null && echo written; echo end";
        let mut spec = world.spec(links[1], script);
        let kind = MountKind::Bind { source: dev.clone(), propagation: Propagation::Private, recursive: false };
        spec.mounts = vec![Mount { target: "/dev".into(), read_only: false, kind }];
        match world.runtime.create(spec.clone()).await {
            Ok(container) => {
                container.wait().await;
                let (out, err) = said(&spec.log_dir).await;
                container.remove().await.unwrap();
                // The latter where what covers it is on a file system without devices.
                assert!(["harmless\nend\n", "end\n"].contains(&out.as_str()), "{out}: {err}");
            }
            Err(error) => assert!(error.to_string().contains("/dev"), "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monitor_leaves_no_core_file_and_its_memory_to_nobody() {
    let world = World::new();
    let container = world.runtime.create(world.spec("a", "sleep 1000")).await.unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", pid(&container))).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let limits = fs::read_to_string(format!("/proc/{parent}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().to_owned();
    let name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap();
    container.remove().await.unwrap();
    assert_eq!(name, "skep-shim\n");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}
