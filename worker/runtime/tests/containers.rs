//! Containers on the real kernel, as root: what they may and may not, how they end, and what survives the agent.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use common::*;
use skep_runtime::{
    ContainerSpec, LogLimits, Mount, MountKind, NetworkNamespace, Propagation, RuntimeError, Seccomp, State, Ulimit,
};

#[tokio::test(flavor = "multi_thread")]
async fn output_exit_codes_and_signals_are_told() {
    let world = World::new();
    let (status, out, err) = world.run(world.spec("a", "echo out; echo err >&2; exit 7")).await;
    assert_eq!((status.code, status.signal, status.oom_killed), (7, 0, false));
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert!(status.started_at_ms > 0 && status.finished_at_ms >= status.started_at_ms);
    let container = world.runtime.create(world.spec("b", "sleep 100")).await.unwrap();
    container.kill(libc::SIGKILL).await.unwrap();
    let status = container.wait().await;
    assert_eq!((status.code, status.signal), (137, 9));
    container.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_asks_first_and_kills_after_the_grace_period() {
    let world = World::new();
    let graceful = "trap 'echo bye; exit 3' TERM; echo up; while true; do sleep 0.05; done";
    let container = world.runtime.create(world.spec("kind", graceful)).await.unwrap();
    let logs = world.dir.path().join("logs/kind/container.log");
    until("the trap to be set", || fs::read_to_string(&logs).is_ok_and(|text| text.contains("up"))).await;
    let status = container.stop(libc::SIGTERM, Duration::from_secs(10)).await.unwrap();
    assert_eq!(status.code, 3);
    container.remove().await.unwrap();
    let container =
        world.runtime.create(world.spec("stubborn", "trap '' TERM; while true; do sleep 1; done")).await.unwrap();
    let started = Instant::now();
    let status = container.stop(libc::SIGTERM, Duration::from_millis(300)).await.unwrap();
    assert_eq!(status.signal, 9);
    assert!(started.elapsed() < Duration::from_secs(5));
    container.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_so_and_leaves_nothing() {
    let world = World::new();
    type Case = (&'static str, fn(&mut ContainerSpec), i32, &'static str);
    let cases: [Case; 8] = [
        ("nosuch", |spec| spec.args = vec!["nosuch".into()], 127, "executable file not found in $PATH"),
        ("path", |spec| spec.args = vec!["/bin/nosuch".into()], 127, "no such file"),
        ("noexec", |spec| spec.args = vec!["noexec".into()], 126, "permission denied"),
        ("dir", |spec| spec.args = vec!["/srv".into()], 126, "is a directory"),
        ("format", |spec| spec.args = vec!["garbage".into()], 126, "exec format error"),
        ("interpreter", |spec| spec.args = vec!["script".into()], 127, "interpreter"),
        ("user", |spec| spec.user = "nobodyknows".into(), 125, "nobodyknows"),
        ("bind", |spec| spec.mounts = vec![bind("/no/such/source", "/x")], 125, "/no/such/source"),
    ];
    for (id, change, code, part) in cases {
        let mut spec = world.spec(id, "");
        change(&mut spec);
        match world.runtime.create(spec).await {
            Err(RuntimeError::NotStarted { code: got, sentence }) => {
                assert_eq!(got, code, "{id}: {sentence}");
                assert!(sentence.contains(part), "{id}: {sentence}");
            }
            Err(other) => panic!("{id}: {other:?}"),
            Ok(_) => panic!("{id} runs"),
        }
    }
    assert_eq!(fs::read_dir(world.dir.path().join("containers/run")).unwrap().count(), 0);
    assert!(matches!(world.runtime.create(world.spec("../x", "")).await, Err(RuntimeError::Id(_))));
    let (status, ..) = world.run(world.spec("fine", "exit 0")).await;
    assert_eq!(status.code, 0, "a failure does not disturb the next");
}

fn bind(source: &str, target: &str) -> Mount {
    let kind = MountKind::Bind { source: source.into(), propagation: Propagation::Private, recursive: true };
    Mount { target: target.into(), read_only: false, kind }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_groups_directories_and_environment_are_as_asked() {
    let world = World::new();
    let mut spec = world.spec("user", "id; pwd; echo $HOME $A; hostname");
    spec.user = "web".into();
    spec.groups = vec!["5000".into()];
    spec.cwd = "/made/here".into();
    spec.env.push("A=b c".into());
    spec.hostname = "named".into();
    let (_, out, err) = world.run(spec).await;
    assert!(
        out.contains("uid=33(web) gid=34(web) groups=34(web),77(extra),5000") || out.contains("groups=77(extra),5000"),
        "{out}{err}"
    );
    assert!(out.ends_with("/made/here\n/srv b c\nnamed\n"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileges_are_few() {
    let world = World::new();
    let status = world.out("cat /proc/self/status").await;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("CapEff:"), "00000000a80425fb", "Docker's default set");
    assert_eq!(field("CapBnd:"), "00000000a80425fb");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    for refused in [
        "mount -t tmpfs none /tmp",
        "unshare -m true",
        "hostname other",
        "echo 1 > /proc/sys/kernel/hostname",
        "echo b > /proc/sysrq-trigger",
        "cat /proc/kcore | head -c 1 | grep .",
        "dd if=/dev/mem of=/tmp/x count=1",
        "mkdir /sys/fs/cgroup/x",
        "mkdir /sys/fs/cgroup/memory/x",
        "echo 1g > /sys/fs/cgroup/memory/memory.limit_in_bytes",
        "for file in $(find /sys/fs/cgroup -name 'pids.max'); do echo max > $file && exit 0; done; exit 1",
    ] {
        let out = world.out(&format!("({refused}) >/dev/null 2>&1 && echo DONE || echo REFUSED")).await;
        assert_eq!(out, "REFUSED\n", "{refused}");
    }
    let score = world.out("cat /proc/self/oom_score_adj").await;
    assert_eq!(score, "0\n", "the monitor's protection is not inherited");
    let mut spec = world.spec("dropped", "cat /proc/self/status | grep CapEff");
    spec.capabilities = vec!["KILL".into()];
    assert!(world.run(spec).await.1.contains("0000000000000020"));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_privileges_are_allowed_only_when_asked_and_the_filter_stays() {
    let world = World::new();
    let mut spec = world.spec("asked", "cat /proc/self/status; unshare -m true || echo REFUSED");
    spec.allow_new_privileges = true;
    let (_, out, err) = world.run(spec).await;
    let field = |name: &str| out.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("0", "2"), "{out}{err}");
    assert!(out.ends_with("REFUSED\n"), "{out}{err}");
    let mut spec = world.spec("unconfined", "grep Seccomp: /proc/self/status");
    spec.seccomp = Seccomp::Unconfined;
    assert_eq!(world.run(spec).await.1, "Seccomp:\t0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_user_can_open_its_output_anew() {
    let world = World::new();
    let mut spec = world.spec("reopen", "echo out > /dev/stdout; echo err > /dev/stderr");
    spec.user = "web".into();
    let (status, out, err) = world.run(spec).await;
    assert_eq!((status.code, out.as_str(), err.as_str()), (0, "out\n", "err\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_and_read_only_roots_hold() {
    let world = World::new();
    let shared = world.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let script = "touch /file 2>/dev/null || echo ro; echo x > /data/new; touch /fixed/no 2>/dev/null || echo fixed; \
                  touch /scratch/ok && stat -c %a /scratch; grep ' /scratch ' /proc/mounts";
    let mut spec = world.spec("mounts", script);
    spec.read_only_root = true;
    let source = shared.to_string_lossy().into_owned();
    let tmpfs = Mount {
        target: "/scratch".into(),
        read_only: false,
        kind: MountKind::Tmpfs { size_bytes: 1 << 20, mode: 0o700 },
    };
    spec.mounts = vec![bind(&source, "/data"), Mount { read_only: true, ..bind(&source, "/fixed") }, tmpfs];
    // Mount points must be in the image, for the root is read-only.
    for point in ["data", "fixed", "scratch"] {
        fs::create_dir_all(world.dir.path().join("layer").join(point)).unwrap();
    }
    let (_, out, err) = world.run(spec).await;
    assert!(out.starts_with("ro\nfixed\n700\n"), "{out}{err}");
    assert!(out.contains("size=1024k"), "{out}");
    assert_eq!(fs::read_to_string(shared.join("new")).unwrap(), "x\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_enforced() {
    let world = World::new();
    let mut spec = world.spec("memory", "dd if=/dev/zero of=/dev/null bs=200M count=1");
    spec.resources.memory_bytes = 32 << 20;
    let (status, ..) = world.run(spec).await;
    assert!(status.code == 137 && status.oom_killed, "{status:?}");
    let mut spec = world.spec("pids", "for i in $(seq 30); do sleep 5 & done; echo all");
    spec.resources.pids = 10;
    let (_, out, err) = world.run(spec).await;
    assert!(!out.contains("all") || err.contains("fork"), "{out}{err}");
    let mut spec = world.spec("files", "ulimit -n; ulimit -Hn");
    spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 100, hard: 200 }];
    assert_eq!(world.run(spec).await.1, "100\n200\n");
    let files: u64 = world.out("ulimit -n").await.trim().parse().unwrap();
    assert!(files > 4096, "1,048,576, or what a confined machine may grant: {files}");
    let mut spec = world.spec("cpu", "while true; do :; done");
    spec.resources.nano_cpus = 100_000_000;
    let container = world.runtime.create(spec).await.unwrap();
    let (from, begun) = (container.stats().cpu_ns, Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let share = (container.stats().cpu_ns - from) as f64 / begun.elapsed().as_nanos() as f64;
    container.remove().await.unwrap();
    assert!(share < 0.3, "a tenth of a CPU was asked, {share} used");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_is_the_host_s_or_the_given_one() {
    let world = World::new();
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    let container = world.runtime.create(world.spec("host", "sleep 100")).await.unwrap();
    assert_eq!(fs::read_link(format!("/proc/{}/ns/net", pid(&container))).unwrap(), host);
    container.remove().await.unwrap();
    let mut holder = Command::new("unshare").args(["-n", "sleep", "100"]).spawn().unwrap();
    let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
    until("the namespace", || fs::read_link(&path).is_ok_and(|link| link != host)).await;
    let mut spec = world.spec("own", "sleep 100");
    spec.network = NetworkNamespace::Path(path.clone());
    let container = world.runtime.create(spec).await.unwrap();
    let (inside, given) = (fs::read_link(format!("/proc/{}/ns/net", pid(&container))), fs::read_link(&path));
    container.remove().await.unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(inside.unwrap(), given.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tiny_init_reaps_and_forwards() {
    let world = World::new();
    let script = "trap 'exit 5' TERM; (sleep 0.1 &) ; (sleep 0.1 &); sleep 0.5; ps | grep -c sleep; echo up; while true; do sleep 0.05; done";
    let mut spec = world.spec("init", script);
    spec.init = true;
    let log = spec.log_dir.join("container.log");
    let container = world.runtime.create(spec).await.unwrap();
    until("it to be up", || fs::read_to_string(&log).is_ok_and(|text| text.contains("up"))).await;
    let status = container.stop(libc::SIGTERM, Duration::from_secs(10)).await.unwrap();
    assert_eq!(status.code, 5);
    container.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_rotate_and_can_be_followed() {
    let world = World::new();
    let mut spec = world.spec("rotate", "for i in $(seq 20000); do echo line $i; done");
    spec.log = LogLimits { max_bytes: 200_000, max_files: 3 };
    let dir = spec.log_dir.clone();
    let container = world.runtime.create(spec).await.unwrap();
    container.wait().await;
    let names: BTreeSet<String> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, ["container.log", "container.log.1", "container.log.2"].map(str::to_owned).into());
    let (out, _) = said(&dir).await;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.last(), Some(&"line 20000"));
    assert!(lines.len() > 3_000 && lines.len() < 20_000, "{}", lines.len());
    container.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_agent() {
    let world = World::new();
    let runs = world
        .runtime
        .create(world.spec("runs", "i=0; while true; do echo $i; i=$((i+1)); sleep 0.02; done"))
        .await
        .unwrap();
    let ends = world.runtime.create(world.spec("ends", "sleep 0.3; exit 9")).await.unwrap();
    let (pid_before, ends_pid) = (pid(&runs), pid(&ends));
    drop((runs, ends));
    // The agent is gone: another one comes after the second container has ended.
    until("the container to end unseen", || !alive(ends_pid)).await;
    until("its record", || world.dir.path().join("containers/run/ends/exit.json").exists()).await;
    let again = World::runtime(world.dir.path(), &world.cgroup);
    let found = again.recover().await.unwrap();
    assert_eq!(found.len(), 2);
    for recovered in found {
        match (recovered.container.id(), &recovered.state) {
            ("runs", State::Running { pid, .. }) => {
                assert_eq!(*pid, pid_before);
                let log = world.dir.path().join("logs/runs/container.log");
                let before = fs::read_to_string(&log).unwrap().lines().count();
                until("the log to go on", || fs::read_to_string(&log).unwrap().lines().count() > before + 3).await;
                let status = recovered.container.stop(libc::SIGKILL, Duration::from_secs(1)).await.unwrap();
                assert_eq!(status.code, 137);
            }
            ("ends", State::Exited(status)) => assert_eq!((status.code, status.lost), (9, false)),
            other => panic!("{other:?}"),
        }
        recovered.container.remove().await.unwrap();
    }
    let (out, _) = said(&world.dir.path().join("logs/runs")).await;
    assert!(out.lines().enumerate().all(|(index, line)| line == index.to_string()), "no line is missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_monitor_ends_its_container_and_counts_as_lost() {
    let world = World::new();
    let container = world.runtime.create(world.spec("lost", "sleep 100")).await.unwrap();
    let first = pid(&container);
    let stat = fs::read_to_string(format!("/proc/{first}/stat")).unwrap();
    let monitor: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    // SAFETY: a plain signal to the monitor that this test made.
    unsafe { libc::kill(monitor, libc::SIGKILL) };
    let status = container.wait().await;
    assert!(status.lost, "{status:?}");
    until("the container to end", || !alive(first)).await;
    container.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_an_agent_s_death_cut_short_was_none() {
    let world = World::new();
    let run = world.dir.path().join("containers/run");
    // The agent died between the folder and the monitor; and after the monitor, before its start message.
    fs::create_dir_all(run.join("folder/upper")).unwrap();
    fs::create_dir_all(run.join("silent/upper")).unwrap();
    let (agent, monitor) = std::os::unix::net::UnixStream::pair().unwrap();
    let bin = world.dir.path().join("containers/bin");
    let shim = fs::read_dir(bin).unwrap().map(|entry| entry.unwrap().path());
    let shim = shim.into_iter().find(|path| path.to_string_lossy().contains("skep-shim")).unwrap();
    let mut child =
        Command::new(shim).arg(run.join("silent")).stdin(std::os::fd::OwnedFd::from(monitor)).spawn().unwrap();
    drop(agent);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(!run.join("silent/exit.json").exists(), "nothing ended");
    assert!(world.runtime.recover().await.unwrap().is_empty());
    world.runtime.sweep(&BTreeSet::new()).await.unwrap();
    assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_removes_what_belongs_to_nobody() {
    let world = World::new();
    let keep = world.runtime.create(world.spec("keep", "sleep 100")).await.unwrap();
    let stray = world.runtime.create(world.spec("stray", "sleep 100")).await.unwrap();
    let stray_pid = pid(&stray);
    world.runtime.sweep(&BTreeSet::from(["keep".to_owned()])).await.unwrap();
    until("the stray to end", || !alive(stray_pid)).await;
    assert!(alive(pid(&keep)));
    keep.remove().await.unwrap();
    world.runtime.sweep(&BTreeSet::new()).await.unwrap();
    assert_eq!(fs::read_dir(world.dir.path().join("containers/run")).unwrap().count(), 0);
}
