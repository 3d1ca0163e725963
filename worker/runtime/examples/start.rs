//! Starts containers of a busybox root file system and prints what it costs: `start [count] [at once]`, as root. With
//! EXECS=n in the environment, runs n commands in each, too; with SECRETS=n, each has n secrets of 1 KiB; with USERNS, ids that are nobody's. RUNTIME names an external runtime. GROUP names a v1 cgroup
//! that this program is in: then only the CPU of that is counted, whatever else the machine does.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use skep_runtime::{
    ContainerSpec, DEFAULT_CAPABILITIES, Files, IdRange, MemoryFile, MemoryPlace, Mount, MountKind, NetworkNamespace,
    OciRuntime, Runtime, RuntimeConfig, Seccomp, UserNamespace,
};

/// What SECRETS asks for.
fn secrets() -> Option<Files> {
    let count: u32 = std::env::var("SECRETS").ok()?.parse().unwrap();
    let data = std::sync::Arc::new(zeroize::Zeroizing::new(vec![b'x'; 1024]));
    let file = |number| {
        let place = MemoryPlace::Swappable(format!("secret{number}"));
        MemoryFile { place, uid: 0, gid: 0, mode: 0o444, data: data.clone() }
    };
    (count > 0).then(|| Files { version: 1, files: (0..count).map(file).collect() })
}

/// What USERNS asks for: a namespace that a waiting process holds, with a network of its own.
fn users() -> Option<(Child, UserNamespace, NetworkNamespace)> {
    std::env::var_os("USERNS")?;
    let mut holder = Command::new("unshare")
        .args(["--user", "--net", "sh", "-c", "echo; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(&mut holder.stdout.take().unwrap(), &mut [0]).unwrap();
    let file = |name: &str| PathBuf::from(format!("/proc/{}/{name}", holder.id()));
    for map in ["uid_map", "gid_map"] {
        std::fs::write(file(map), "0 300000 65536\n").unwrap();
    }
    let range = vec![IdRange { inside: 0, outside: 300_000, count: 65_536 }];
    let namespace = UserNamespace { path: file("ns/user"), uids: range.clone(), gids: range };
    let network = NetworkNamespace::Path(file("ns/net"));
    Some((holder, namespace, network))
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let count: usize = args.next().and_then(|count| count.parse().ok()).unwrap_or(50);
    let at_once: usize = args.next().and_then(|at_once| at_once.parse().ok()).unwrap_or(4);
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    std::fs::create_dir_all(layer.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", layer.join("bin/sleep")).unwrap();
    let parent = std::env::var("GROUP").unwrap_or_else(|_| "skep".to_owned());
    let cgroup_parent = PathBuf::from(format!("{parent}/runtime-bench-{}", std::process::id()));
    let config = RuntimeConfig {
        dir: dir.path().join("containers"),
        cgroup_parent: cgroup_parent.clone(),
        ulimits: Vec::new(),
        runtime: std::env::var_os("RUNTIME").map_or(OciRuntime::BuiltIn, |path| OciRuntime::External(path.into())),
    };
    let runtime = Runtime::new(config).unwrap();
    let (begun, cpu0) = (Instant::now(), cpu_used());
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(at_once));
    let mut starting = tokio::task::JoinSet::new();
    let files = secrets();
    let mut users = users();
    for number in 0..count {
        let (runtime, mut spec, slots) = (runtime.clone(), spec(dir.path(), number), slots.clone());
        let files = files.clone();
        if let Some((_, namespace, network)) = &users {
            (spec.users, spec.network) = (Some(namespace.clone()), network.clone());
        }
        if let Some(file) = files.as_ref().and_then(|files| files.files.first()) {
            let kind = MountKind::Memory { path: file.place.mounted() };
            spec.mounts.push(Mount { target: "/run/secrets".to_owned(), read_only: true, kind });
        }
        starting.spawn(async move {
            let _slot = slots.acquire_owned().await.unwrap();
            let begun = Instant::now();
            let container = runtime.create_with(spec, files).await.unwrap();
            (container, begun.elapsed())
        });
    }
    let started = starting.join_all().await;
    let (wall, cpu) = (begun.elapsed(), cpu_used().saturating_sub(cpu0));
    let mut each: Vec<Duration> = started.iter().map(|(_, took)| *took).collect();
    each.sort();
    println!("{count} containers, {at_once} at once: {wall:?}, {:.0} a second", count as f64 / wall.as_secs_f64());
    println!(
        "each: median {:?}, slowest {:?}; CPU {:.1} ms each",
        each[count / 2],
        each[count - 1],
        cpu.as_secs_f64() * 1000.0 / count as f64
    );
    if let Some(rounds) = std::env::var("EXECS").ok().and_then(|rounds| rounds.parse::<u32>().ok()) {
        let (begun, cpu0) = (Instant::now(), cpu_used());
        for _ in 0..rounds {
            for (number, (container, _)) in started.iter().enumerate() {
                let spec = std::sync::Arc::new(spec(dir.path(), number));
                let command = ["/bin/sleep", "0"].map(str::to_owned).to_vec();
                let running = runtime.exec(container, spec, command).await.unwrap();
                let (end, said) = running.finish(Duration::from_secs(10), 4096).await.unwrap();
                assert_eq!(end, skep_runtime::ExecEnd::Exited(0), "{}", String::from_utf8_lossy(&said));
            }
        }
        let each = f64::from(rounds) * count as f64;
        let cpu = cpu_used().saturating_sub(cpu0).as_secs_f64() * 1000.0 / each;
        println!(
            "commands in them: {:.1} ms each; CPU {cpu:.2} ms each",
            begun.elapsed().as_secs_f64() * 1000.0 / each
        );
    }
    let begun = Instant::now();
    for (container, _) in started {
        container.remove().await.unwrap();
    }
    println!("removed one by one in {:?}", begun.elapsed());
    if let Some((holder, ..)) = &mut users {
        holder.kill().and_then(|()| holder.wait()).unwrap();
    }
    let cgroups = skep_runtime::cgroup::Cgroups::detect().unwrap().unwrap();
    // Monitors leave their group a moment after their last word.
    for _ in 0..200 {
        cgroups.remove(&cgroup_parent);
        if cgroups.folders(&cgroup_parent).iter().all(|folder| !folder.exists()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn spec(dir: &Path, number: usize) -> ContainerSpec {
    ContainerSpec {
        id: format!("bench{number}"),
        layers: vec![dir.join("layer")],
        args: ["/bin/sleep", "1000"].map(str::to_owned).to_vec(),
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        hostname: format!("bench{number}"),
        capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
        seccomp: if std::env::var_os("UNCONFINED").is_some() { Seccomp::Unconfined } else { Seccomp::Default },
        mounts: (std::env::var_os("NO_CGROUPS").is_some()).then(no_cgroups).into_iter().collect(),
        log_dir: dir.join("logs").join(number.to_string()),
        ..ContainerSpec::default()
    }
}

/// Takes the place of the container's view of its cgroups: tells what that costs.
fn no_cgroups() -> Mount {
    let kind = MountKind::Tmpfs { size_bytes: 0, mode: 0o755 };
    Mount { target: "/sys/fs/cgroup".to_owned(), read_only: true, kind }
}

/// CPU time of the group that is named, or of the machine.
fn cpu_used() -> Duration {
    let Some(group) = std::env::var_os("GROUP") else { return machine_cpu() };
    let file = Path::new("/sys/fs/cgroup/cpuacct").join(group).join("cpuacct.usage");
    Duration::from_nanos(std::fs::read_to_string(file).unwrap().trim().parse().unwrap())
}

/// CPU time of the whole machine, without idle and waiting; /proc/stat counts hundredths of a second.
fn machine_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<u64> =
        stat.lines().next().unwrap().split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect();
    let busy: u64 = fields.iter().enumerate().filter(|(at, _)| ![3, 4].contains(at)).map(|(_, n)| n).sum();
    Duration::from_millis(busy * 10)
}
