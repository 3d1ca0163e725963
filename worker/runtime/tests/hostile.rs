//! Images and specs that try to lead a container's creation out of the container, on the real kernel, as root.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use common::*;
use skep_runtime::{ContainerSpec, Mount, MountKind, Propagation, RuntimeError};

fn bind(source: &Path, target: &str, propagation: Propagation) -> Mount {
    let kind = MountKind::Bind { source: source.to_owned(), propagation, recursive: true };
    Mount { target: target.into(), read_only: false, kind }
}

fn memory(target: &str) -> Mount {
    Mount { target: target.into(), read_only: false, kind: MountKind::Tmpfs { size_bytes: 1 << 20, mode: 0o755 } }
}

/// Why a container that must not start does not.
async fn refusal(world: &World, spec: ContainerSpec) -> String {
    match world.runtime.create(spec).await {
        Err(RuntimeError::NotStarted { code: 125, sentence }) => sentence,
        Err(other) => panic!("{other:?}"),
        Ok(container) => {
            container.remove().await.unwrap();
            panic!("it runs")
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_place_of_kernel_folders_are_refused() {
    for (path, target) in [("proc", "etc"), ("proc", "/"), ("dev", "/"), ("dev", "../../.."), ("sys", "/srv")] {
        let world = World::new();
        symlink(target, world.dir.path().join("layer").join(path)).unwrap();
        let sentence = refusal(&world, world.spec("a", "true")).await;
        assert!(sentence.contains(&format!("the image's /{path} is not a folder")), "{sentence}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_any_folder_for_mounts_is_enough() {
    let world = World::new();
    let source = world.dir.path().join("source");
    fs::write(&source, "read\n").unwrap();
    let layer = world.dir.path().join("layer");
    for missing in ["proc", "sys", "dev", "run"] {
        assert!(!layer.join(missing).exists());
    }
    let script = "cat /run/new/file; touch /new 2>/dev/null || echo ro; echo x > /dev/null; test -d /sys/kernel/mm && echo sys; \
                  test -e /proc/self/status && echo proc; test -L /dev/stdin && echo link";
    let mut spec = world.spec("a", script);
    spec.read_only_root = true;
    spec.mounts = vec![bind(&source, "/run/new/file", Propagation::Private)];
    let (status, out, err) = world.run(spec).await;
    assert_eq!((status.code, out.as_str()), (0, "read\nro\nsys\nproc\nlink\n"), "{err}");
    let made = ["proc", "run"].map(|name| layer.join(name).exists());
    assert_eq!(made, [false, false], "the image's layer is nobody's to change");
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_lead_out_end_inside() {
    let world = World::new();
    let layer = world.dir.path().join("layer");
    let source = world.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("told"), "mounted\n").unwrap();
    // What the links seem to lead to is there on the host, and stays as it is.
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(format!("../../../../../..{}", outside.display()), layer.join("relative")).unwrap();
    symlink(&outside, layer.join("absolute")).unwrap();
    symlink("nowhere/yet", layer.join("dangling")).unwrap();
    let places = ["/relative/in", "/absolute/in2", "/dangling/in", "/../../../up", "/srv/../../.././up2"];
    let mut spec = world.spec("a", &format!("cat {}", places.map(|place| format!("{place}/told")).join(" ")));
    spec.mounts = places.map(|place| bind(&source, place, Propagation::Private)).to_vec();
    let (_, out, err) = world.run(spec).await;
    assert_eq!(out, "mounted\n".repeat(places.len()), "{err}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!Path::new("/up").exists() && !Path::new("/up2").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_on_the_root_or_in_proc_are_refused() {
    let world = World::new();
    let layer = world.dir.path().join("layer");
    symlink("../../..", layer.join("root")).unwrap();
    symlink("/proc", layer.join("data")).unwrap();
    symlink("/proc/1/root/srv", layer.join("magic")).unwrap();
    symlink("loop", layer.join("loop")).unwrap();
    let file = world.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let cases = [
        (memory("/"), "root"),
        (memory("/root"), "root"),
        (memory("/srv/.."), "root"),
        (memory("/proc"), "not a proc file system"),
        (memory("/data"), "inside the container's /proc"),
        (memory("/data/sys"), "inside the container's /proc"),
        (memory("/proc/../proc"), "inside the container's /proc"),
        (bind(&file, "/proc/sys/kernel/core_pattern", Propagation::Private), "inside the container's /proc"),
        (bind(&file, "/proc/self/attr/exec", Propagation::Private), "inside the container's /proc"),
        (memory("/magic"), "Too many levels of symbolic links"),
        (memory("/loop/x"), "Too many levels of symbolic links"),
    ];
    for (mount, part) in cases {
        let mut spec = world.spec("a", "true");
        let target = mount.target.clone();
        spec.mounts = vec![mount];
        let sentence = refusal(&world, spec).await;
        assert!(sentence.contains(part), "{target}: {sentence}");
    }
    let mut spec = world.spec("a", "cat /proc/uptime");
    fs::write(&file, "feigned\n").unwrap();
    spec.mounts = vec![bind(&file, "/proc/uptime", Propagation::Private)];
    assert_eq!(world.run(spec).await.1, "feigned\n", "what lxcfs does is allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_working_directory_is_inside() {
    let world = World::new();
    let layer = world.dir.path().join("layer");
    for number in 3..12 {
        symlink(format!("/proc/self/fd/{number}"), layer.join(format!("fd{number}"))).unwrap();
        for cwd in [format!("/proc/self/fd/{number}"), format!("/fd{number}/../../..")] {
            let mut spec = world.spec(&format!("a{number}"), "cat /etc/passwd");
            spec.cwd = cwd.clone();
            let sentence = refusal(&world, spec).await;
            assert!(sentence.contains("working directory"), "{cwd}: {sentence}");
        }
    }
    symlink("../../../../made/by/link", layer.join("cwd")).unwrap();
    let mut spec = world.spec("b", "pwd -P; ls /made/by");
    spec.cwd = "/cwd".into();
    assert_eq!(world.run(spec).await.1, "/made/by/link\nlink\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_host_is_open_or_mounted() {
    let world = World::new();
    let out = world.out("ls -l /proc/self/fd; cat /proc/self/mountinfo").await;
    let files: Vec<&str> = out.lines().filter(|line| line.contains(" -> ")).collect();
    // The program that lists them has closed its own.
    assert_eq!(files.len(), 3, "{out}");
    let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let kind = |line: &str| line.split(" - ").nth(1).map(|rest| rest.split(' ').take(2).collect::<Vec<_>>().join(" "));
    let device = |line: &str| line.split(' ').nth(2).map(str::to_owned);
    let host: Vec<_> = host.lines().filter(|line| !line.contains(" - cgroup")).filter_map(device).collect();
    for line in out.lines().filter(|line| line.contains(" - ")) {
        let shared = ["sysfs", "cgroup", "cgroup2"].iter().any(|known| kind(line).unwrap().starts_with(known));
        assert!(shared || !host.contains(&device(line).unwrap()), "a mount of the host's: {line}");
        assert!(!line.contains("shared:"), "mounts made in it would show elsewhere: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_files_are_covered_and_the_covers_are_its_own() {
    let world = World::new();
    // A change to a cover must stay in the container.
    let before = fs::metadata("/dev/null").unwrap();
    let script = "cat /proc/keys /proc/timer_list; ls /proc/acpi /sys/firmware; chmod 600 /proc/keys /dev/null; \
                  chmod 600 /dev/stdin; echo x > /proc/sys/kernel/domainname || echo refused; \
                  rmdir /proc/acpi 2>/dev/null; touch /sys/firmware/x 2>/dev/null || echo sealed";
    let (_, out, err) = world.run(world.spec("a", script)).await;
    let lines: Vec<&str> = out.lines().filter(|line| !line.ends_with(':') && !line.is_empty()).collect();
    assert_eq!(lines, ["refused", "sealed"], "{out}{err}");
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!(before.permissions(), after.permissions());
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_of_the_host_arrive_only_where_they_are_asked_for() {
    let world = World::new();
    let shared = world.dir.path().join("shared");
    fs::create_dir_all(shared.join("later")).unwrap();
    let run = |args: &[&str]| assert!(Command::new("mount").args(args).status().unwrap().success(), "mount {args:?}");
    let (path, later) = (shared.to_string_lossy().into_owned(), shared.join("later").to_string_lossy().into_owned());
    run(&["-t", "tmpfs", "none", &path]);
    run(&["--make-shared", &path]);
    fs::create_dir(&later).unwrap();
    let mut spec =
        world.spec("a", "while [ ! -e /slave/later/file ]; do sleep 0.05; done; ls /private/later; echo end");
    spec.mounts = vec![bind(&shared, "/slave", Propagation::Slave), bind(&shared, "/private", Propagation::Private)];
    let log_dir = spec.log_dir.clone();
    let container = world.runtime.create(spec).await.unwrap();
    run(&["-t", "tmpfs", "none", &later]);
    fs::write(shared.join("later/file"), "").unwrap();
    let ended = tokio::time::timeout(SOON, container.wait()).await;
    assert!(Command::new("umount").args(["-R", &path]).status().unwrap().success());
    assert!(ended.is_ok(), "the mount arrived");
    let (out, err) = said(&log_dir).await;
    container.remove().await.unwrap();
    assert_eq!(out, "end\n", "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_cannot_smuggle_other_values_in() {
    let world = World::new();
    let mut spec = world.spec("a", "true");
    spec.env.push("A=b\0capabilities=2199023255551".into());
    let error = world.runtime.create(spec).await.err().unwrap();
    assert!(matches!(error, RuntimeError::Io { .. }), "{error:?}");
    assert_eq!(fs::read_dir(world.dir.path().join("containers/run")).unwrap().count(), 0);
}

/// A host that may make no devices, as a confined one: everything below runs without CAP_MKNOD.
#[test]
fn without_the_right_to_make_devices_they_are_the_hosts() {
    const CAP_MKNOD: libc::c_ulong = 27;
    let confined = std::thread::spawn(|| {
        // SAFETY: plain numbers; it holds for this thread, for those that it starts, and for their programs.
        assert_eq!(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_MKNOD, 0, 0, 0) }, 0);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let script = "echo x > /dev/null && head -c 3 /dev/zero | wc -c; grep -c ' /dev/urandom ' /proc/mounts";
            let mut spec = world.spec("a", script);
            spec.capabilities.retain(|name| name != "MKNOD");
            world.run(spec).await
        })
    });
    let (status, out, err) = confined.join().unwrap();
    assert_eq!((status.code, out.as_str()), (0, "3\n1\n"), "{err}");
}
