//! Commands inside running containers, on the real kernel, as root: what they see, what they may, and how they end.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use skep_runtime::{Container, ContainerSpec, ExecEnd, RuntimeError, Seccomp, Ulimit};

const LONG: Duration = Duration::from_secs(20);

/// A container that only waits.
async fn idle(world: &World, id: &str, change: impl FnOnce(&mut ContainerSpec)) -> (Container, Arc<ContainerSpec>) {
    let mut spec = world.spec(id, "trap 'exit 0' TERM; while true; do sleep 1; done");
    change(&mut spec);
    (world.runtime.create(spec.clone()).await.unwrap(), Arc::new(spec))
}

async fn exec(
    world: &World,
    of: &(Container, Arc<ContainerSpec>),
    args: &[&str],
    timeout: Duration,
) -> (ExecEnd, String) {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let running = world.runtime.exec(&of.0, Arc::clone(&of.1), args).await.unwrap();
    let (end, output) = running.finish(timeout, 4096).await.unwrap();
    (end, String::from_utf8(output).unwrap())
}

async fn shell(world: &World, of: &(Container, Arc<ContainerSpec>), script: &str) -> String {
    let (end, output) = exec(world, of, &["sh", "-c", script], LONG).await;
    assert_eq!(end, ExecEnd::Exited(0), "{script}: {output}");
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_told_apart_by_its_end_and_its_words() {
    let world = World::new();
    let of = idle(&world, "a", |_| {}).await;
    assert_eq!(
        exec(&world, &of, &["sh", "-c", "echo one; echo two >&2; exit 4"], LONG).await,
        (ExecEnd::Exited(4), "one\ntwo\n".to_owned())
    );
    assert_eq!(exec(&world, &of, &["sh", "-c", "kill -9 $$"], LONG).await.0, ExecEnd::Exited(137));
    let cases = [
        (&["nosuch"][..], 127, "executable file not found in $PATH"),
        (&["/bin/nosuch"], 127, "no such file or directory"),
        (&["noexec"], 126, "permission denied"),
        (&["garbage"], 126, "exec format error"),
    ];
    for (args, code, words) in cases {
        let (end, _) = exec(&world, &of, args, LONG).await;
        match end {
            ExecEnd::NotRun { code: got, sentence } => {
                assert_eq!(got, code, "{sentence}");
                assert!(sentence.contains(words), "{sentence}");
            }
            other => panic!("{args:?}: {other:?}"),
        }
    }
    let (_, output) = exec(&world, &of, &["seq", "100000"], LONG).await;
    assert_eq!(output.len(), 4096, "the rest is read and dropped");
    of.0.remove().await.unwrap();
    let refused = world.runtime.exec(&of.0, of.1, vec!["true".into()]).await;
    assert!(matches!(refused, Err(RuntimeError::NotRunning(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_in_the_container_with_its_user_environment_and_limits() {
    let world = World::new();
    let change = |spec: &mut ContainerSpec| {
        spec.user = "web".to_owned();
        spec.groups = vec!["4000".to_owned()];
        spec.cwd = "/srv".to_owned();
        spec.env.push("MINE=yes".to_owned());
        spec.hostname = "inside".to_owned();
        spec.resources.memory_bytes = 64 << 20;
        spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 99, hard: 100 }];
        spec.oom_score_adj = 77;
    };
    let of = idle(&world, "a", change).await;
    let said = shell(&world, &of, "id; pwd; echo $MINE $HOME; hostname; ulimit -n; cat /proc/self/oom_score_adj").await;
    assert_eq!(said, "uid=33(web) gid=34(web) groups=77(extra),4000\n/srv\nyes /srv\ninside\n99\n77\n");
    // The same mounts, processes and network: told by the kernel's names of the namespaces.
    let namespaces = "for n in ipc mnt net pid uts; do stat -L -c %i /proc/1/ns/$n /proc/self/ns/$n; done";
    let root = idle(&world, "b", |_| {}).await;
    let numbers = shell(&world, &root, namespaces).await;
    for pair in numbers.lines().collect::<Vec<_>>().chunks(2) {
        assert_eq!(pair[0], pair[1], "{numbers}");
    }
    // Every v1 hierarchy, or the one of v2: the container's group, or the one inside it.
    let groups = shell(&world, &root, "cat /proc/1/cgroup; echo; cat /proc/self/cgroup").await;
    let (first, own) = groups.split_once("\n\n").unwrap();
    // A hierarchy that the container's runtime leaves alone has it where its monitor is.
    for (first, own) in first.lines().zip(own.lines()).filter(|(first, _)| !first.ends_with("/shims")) {
        // On v2 it sees its own group as the root of all.
        let inside = format!("{}/exec", first.trim_end_matches('/'));
        assert!(own == first || own == inside, "first process {first:?}, command {own:?}");
    }
    assert_eq!(groups.matches("/exec").count(), 1, "{groups}");
    for container in [of.0, root.0] {
        container.remove().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_rights_are_the_containers() {
    let world = World::new();
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; unshare -m true 2>&1; ls -l /proc/self/fd";
    for (id, change) in [
        ("root", (|_| {}) as fn(&mut ContainerSpec)),
        ("web", |spec| spec.user = "web".to_owned()),
        ("gains", |spec| spec.allow_new_privileges = true),
        ("few", |spec| spec.capabilities = vec!["KILL".to_owned()]),
        ("free", |spec| spec.seccomp = Seccomp::Unconfined),
    ] {
        let of = idle(&world, id, change).await;
        let (_, said) = exec(&world, &of, &["sh", "-c", script], LONG).await;
        let pid = pid(&of.0);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let first: Vec<&str> = status
            .lines()
            .filter(|line| ["Cap", "NoNewPrivs", "Seccomp:"].iter().any(|name| line.starts_with(name)))
            .collect();
        let own: Vec<&str> = said.lines().take(first.len()).collect();
        assert_eq!(own, first, "{id}: what the first process has, it has");
        assert!(said.contains("ot permitted"), "{id}: {said}");
        // The shell keeps its input a second time.
        let files = said.lines().filter(|line| line.contains(" -> ") && !line.contains("/dev/null"));
        let pipes: Vec<&str> = files.filter(|line| !line.contains("/proc/")).collect();
        assert_eq!(pipes.len(), 2, "{id}: no file of the host is open in it: {pipes:?}");
        of.0.remove().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_time_all_that_it_started_is_killed() {
    let world = World::new();
    let of = idle(&world, "a", |_| {}).await;
    // One in the background, one in a session of its own with another parent, one that ignores signals.
    let script = "echo begun; sleep 777 & (setsid sleep 777 &) ; trap '' TERM INT HUP; while true; do sleep 777; done";
    let began = Instant::now();
    let (end, output) = exec(&world, &of, &["sh", "-c", script], Duration::from_millis(500)).await;
    assert_eq!((end, output.as_str()), (ExecEnd::TimedOut, "begun\n"));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(shell(&world, &of, "ps | grep '[s]leep 777' || true").await, "", "nothing of it is left");
    assert!(alive(pid(&of.0)));
    // A dropped one is killed just so.
    let args = ["sh", "-c", "sleep 777"].map(str::to_owned).to_vec();
    let dropped = world.runtime.exec(&of.0, Arc::clone(&of.1), args).await.unwrap();
    let sleeping = || world_processes("sleep\u{0}777");
    until("the command to run", || sleeping() == 1).await;
    drop(dropped);
    until("the command to be killed", || sleeping() == 0).await;
    of.0.remove().await.unwrap();
}

/// Processes of this machine's tests with that command line.
fn world_processes(line: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|text| text.starts_with(line)))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_end_is_not_kept_waiting_by_what_it_left() {
    let world = World::new();
    let of = idle(&world, "a", |_| {}).await;
    let began = Instant::now();
    let said = shell(&world, &of, "sleep 30 & echo done").await;
    assert_eq!(said, "done\n");
    assert!(began.elapsed() < Duration::from_secs(5));
    of.0.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ends_ends_its_commands() {
    let world = World::new();
    let of = idle(&world, "a", |_| {}).await;
    let args = ["sleep", "778"].map(str::to_owned).to_vec();
    let running = world.runtime.exec(&of.0, Arc::clone(&of.1), args).await.unwrap();
    until("the command to run", || world_processes("sleep\u{0}778") == 1).await;
    of.0.kill_all().await.unwrap();
    assert_eq!(running.finish(LONG, 100).await.unwrap().0, ExecEnd::Exited(137));
    of.0.remove().await.unwrap();
}

/// CVE-2019-5736: a hostile image has itself run by "whatever runs me now", and could keep that program open to write to
/// it later. It is in memory, where nobody can.
#[tokio::test(flavor = "multi_thread")]
async fn no_program_of_the_host_can_be_written_from_inside() {
    let world = World::new();
    let layer = world.dir.path().join("layer");
    fs::write(layer.join("hostile"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(layer.join("hostile"), fs::Permissions::from_mode(0o755)).unwrap();
    let programs = || -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(world.dir.path().join("containers/bin")).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.to_string_lossy().contains("skep-"));
        paths.sort();
        paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    };
    let before = programs();

    // The program that runs a first process until the container's own takes over is that of its monitor, which knows no
    // such command.
    let mut spec = world.spec("first", "");
    spec.args = vec!["/hostile".to_owned()];
    let (status, out, err) = world.run(spec).await;
    assert!(status.code != 0 && err.contains("skep-shim: cannot enter /hostile"), "{out}{err}");

    let of = idle(&world, "second", |_| {}).await;
    let (end, output) = exec(&world, &of, &["/hostile"], LONG).await;
    assert!(end != ExecEnd::Exited(0) && output.contains("skep-shim: cannot enter /hostile"), "{output}");

    let stat = fs::read_to_string(format!("/proc/{}/stat", pid(&of.0))).unwrap();
    let monitor: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    let program = fs::File::open(format!("/proc/{monitor}/exe")).unwrap();
    // SAFETY: the descriptor is open; plain numbers. On a file that is not in memory it is an error, -1.
    let seals = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&program), libc::F_GET_SEALS) };
    let whole = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    assert!(seals >= 0 && seals & whole == whole, "{seals:#x}");
    assert!(fs::OpenOptions::new().write(true).open(format!("/proc/{monitor}/exe")).is_err());
    assert!(before == programs(), "a program of the host was changed");
    of.0.remove().await.unwrap();
}
