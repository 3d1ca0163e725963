//! Secrets and configs of containers: where they are, who sees them, how they change, and that nothing of them stays.
//! Needs root.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{SOON, World, alive, pid, said, until};
use skep_runtime::{
    ContainerSpec, ExecEnd, Files, MemoryFile, MemoryPlace, Mount, MountKind, OciRuntime, Runtime, RuntimeConfig,
};
use zeroize::Zeroizing;

fn file(place: MemoryPlace, owner: (u32, u32), mode: u32, data: &str) -> MemoryFile {
    let data = Arc::new(Zeroizing::new(data.as_bytes().to_vec()));
    MemoryFile { place, uid: owner.0, gid: owner.1, mode, data }
}

fn secret(path: &str, data: &str) -> MemoryFile {
    file(MemoryPlace::Swappable(path.to_owned()), (0, 0), 0o444, data)
}

fn mount(target: &str, place: &MemoryPlace) -> Mount {
    Mount { target: target.to_owned(), read_only: true, kind: MountKind::Memory { path: place.mounted() } }
}

/// A spec with the secrets' folder in its place.
fn with_secrets(world: &World, id: &str, script: &str) -> ContainerSpec {
    let secrets = mount("/run/secrets", &MemoryPlace::Swappable(String::new()));
    ContainerSpec { mounts: vec![secrets], ..world.spec(id, script) }
}

fn one(version: u64, data: &str) -> Files {
    Files { version, files: vec![secret("db", data)] }
}

/// The monitor of a container.
fn monitor(init: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{init}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(pid: u32) -> Vec<PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

fn in_memory_of(pid: u32, needle: &[u8]) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().any(|line| {
        let (from, rest) = line.split_once('-').unwrap();
        let (to, rights) = rest.split_once(' ').unwrap();
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        rights.starts_with('r')
            && memory.read_exact_at(&mut bytes, from).is_ok()
            && bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn files_have_their_place_owner_and_mode_and_cannot_be_changed() {
    let world = World::new();
    let single = MemoryPlace::Single(0);
    let files = Files {
        version: 3,
        files: vec![
            file(MemoryPlace::Swappable("db".into()), (33, 34), 0o440, "hunter2\n"),
            file(single.clone(), (0, 0), 0o644, "conf\n"),
            secret("sub/key", "deep\n"),
        ],
    };
    let script = "cat /run/secrets/db /run/secrets/sub/key /etc/app/app.conf
        stat -L -c '%n %u:%g %a' /run/secrets /run/secrets/db /run/secrets/sub/key /etc/app/app.conf
        ls -a /run/secrets
        (echo x > /run/secrets/db) 2>/dev/null || echo kept
        (echo x > /etc/app/app.conf) 2>/dev/null || echo kept
        touch /run/secrets/other 2>/dev/null || echo kept
        grep -c ' /srv/run/secrets tmpfs ro,nosuid,nodev,noexec' /proc/mounts";
    let mut spec = with_secrets(&world, "files", script);
    spec.mounts.push(mount("/etc/app/app.conf", &single));
    // An image may lead elsewhere, but not out.
    symlink("../../../srv/run", world.dir.path().join("layer/run")).unwrap();
    let log_dir = spec.log_dir.clone();
    let container = world.runtime.create_with(spec, Some(files)).await.unwrap();
    assert_eq!(tokio::time::timeout(SOON, container.wait()).await.unwrap().code, 0);
    let (out, err) = said(&log_dir).await;
    let expected = "hunter2\ndeep\nconf\n/run/secrets 0:0 755\n/run/secrets/db 33:34 440\n/run/secrets/sub/key 0:0 444\n\
                    /etc/app/app.conf 0:0 644\n.\n..\n..data\n..v3\ndb\nsub\nkept\nkept\nkept\n1\n";
    assert_eq!(out, expected, "{err}");
    container.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_gets_other_files_at_once_and_is_told() {
    let world = World::new();
    let script = "trap 'echo told; cat /run/secrets/db' USR1; cat /run/secrets/db; exec 5< /run/secrets/db
        trap 'cat <&5; exit 0' TERM
        while true; do sleep 0.05; done";
    let spec = with_secrets(&world, "swap", script);
    let log_dir = spec.log_dir.clone();
    let container = world.runtime.create_with(spec.clone(), Some(one(1, "first\n"))).await.unwrap();
    let heard = async |text: &str| {
        let deadline = std::time::Instant::now() + SOON;
        while said(&log_dir).await.0 != text {
            assert!(std::time::Instant::now() < deadline, "{:?}", said(&log_dir).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    heard("first\n").await;
    let mut longer = one(2, "second, and longer\n");
    longer.files.push(secret("new", "n"));
    container.replace_files(&longer, Some(libc::SIGUSR1)).await.unwrap();
    heard("first\ntold\nsecond, and longer\n").await;
    // The same again changes nothing, and nobody is told.
    container.replace_files(&longer, Some(libc::SIGUSR1)).await.unwrap();
    container.replace_files(&one(3, "third\n"), Some(libc::SIGUSR1)).await.unwrap();
    heard("first\ntold\nsecond, and longer\ntold\nthird\n").await;
    let inside = fs::read_dir(format!("/proc/{}/root/run/secrets", pid(&container))).unwrap().flatten();
    let mut names: Vec<_> = inside.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["..data", "..v3", "db", "new"], "old versions are gone");
    // A later agent can do it, too; and what was opened before is still what it was.
    let again = World::runtime(world.dir.path(), &world.cgroup);
    let found = again.recover().await.unwrap().pop().unwrap().container;
    found.replace_files(&one(4, "fourth\n"), None).await.unwrap();
    let check =
        again.exec(&found, Arc::new(spec), ["cat", "/run/secrets/db"].map(str::to_owned).to_vec()).await.unwrap();
    let (end, output) = check.finish(SOON, 100).await.unwrap();
    assert_eq!((end, output.as_slice()), (ExecEnd::Exited(0), &b"fourth\n"[..]));
    found.kill(libc::SIGTERM).await.unwrap();
    tokio::time::timeout(SOON, found.wait()).await.unwrap();
    heard("first\ntold\nsecond, and longer\ntold\nthird\nfirst\n").await;
    found.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_and_the_monitor_knows_nothing() {
    let world = World::new();
    let marker = "correct-horse-battery-staple";
    let spec = with_secrets(&world, "left", "sleep 100");
    let plain = world.runtime.create(world.spec("plain", "sleep 100")).await.unwrap();
    let container = world.runtime.create_with(spec, Some(one(1, marker))).await.unwrap();
    let (init, shim) = (pid(&container), monitor(pid(&container)));
    let held = format!("/proc/{init}/root/run/secrets/db");
    assert_eq!(fs::read_to_string(&held).unwrap(), marker);
    let other = PathBuf::from(format!("/proc/{}/root/run/secrets", pid(&plain)));
    assert!(!other.exists(), "a container without it");
    for pid in [shim, std::process::id()] {
        let open = descriptors(pid);
        assert!(!open.is_empty() && !open.iter().any(|path| path.to_string_lossy().contains("skep-files")), "{open:?}");
    }
    assert!(in_memory_of(shim, b"container.log"), "the search finds what is there");
    assert!(!in_memory_of(shim, marker.as_bytes()));
    for pid in [shim.to_string(), "self".to_owned()] {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert!(!mounts.contains("noswap") && !mounts.contains("ramfs"), "{mounts}");
    }
    assert!(matches!(
        plain.replace_files(&one(2, marker), None).await,
        Err(error) if error.to_string().contains("cannot be replaced while it runs")
    ));

    // A file that is still open shows what becomes of it.
    let open = File::open(&held).unwrap();
    container.remove().await.unwrap();
    let mut bytes = vec![1; marker.len()];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, vec![0; marker.len()], "it was overwritten");
    plain.remove().await.unwrap();
    let found = std::process::Command::new("grep").args(["-rlF", marker]).arg(world.dir.path()).output().unwrap();
    assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_monitor_leaves_nobody_with_the_files() {
    let world = World::new();
    let container =
        world.runtime.create_with(with_secrets(&world, "lost", "sleep 100"), Some(one(1, "x"))).await.unwrap();
    let init = pid(&container);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor(init) as i32), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    assert!(tokio::time::timeout(SOON, container.wait()).await.unwrap().lost);
    until("the container's processes to go", || !alive(init)).await;
    container.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_runtime_mounts_them_too() {
    let program = Path::new("/usr/sbin/runc");
    let program = if program.exists() { program } else { Path::new("/usr/bin/runc") };
    let world = World::new();
    let runtime = Runtime::new(RuntimeConfig {
        dir: world.dir.path().join("external"),
        cgroup_parent: world.cgroup.clone(),
        ulimits: Vec::new(),
        runtime: OciRuntime::External(program.to_owned()),
    })
    .unwrap();
    let spec = with_secrets(&world, "external", "cat /run/secrets/db; echo x > /run/secrets/db || sleep 100");
    let log_dir = spec.log_dir.clone();
    let container = runtime.create_with(spec, Some(one(1, "first\n"))).await.unwrap();
    let deadline = std::time::Instant::now() + SOON;
    while said(&log_dir).await.0 != "first\n" {
        assert!(std::time::Instant::now() < deadline, "{:?}", said(&log_dir).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    container.replace_files(&one(2, "second\n"), None).await.unwrap();
    let held = format!("/proc/{}/root/run/secrets/db", pid(&container));
    assert_eq!(fs::read_to_string(held).unwrap(), "second\n");
    container.remove().await.unwrap();
}
