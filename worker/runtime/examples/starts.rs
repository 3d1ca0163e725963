//! Measures starts: `starts [containers] [at once]`, as root. Prints starts a second, CPU per container and the memory of
//! a monitor. Uses a busybox image and the creator that cargo built beside this program.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use skep_runtime::cgroup::Cgroups;
use skep_runtime::{
    Container, ContainerSpec, DEFAULT_CAPABILITIES, OciRuntime, ResourceLimits, Runtime, RuntimeConfig, State,
};

const CGROUP: &str = "skep/bench-starts";

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1).map(|number| number.parse::<usize>().unwrap());
    let (count, at_once) = (args.next().unwrap_or(50), args.next().unwrap_or(4));
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    fs::create_dir_all(layer.join("bin")).unwrap();
    fs::copy("/bin/busybox", layer.join("bin/sleep")).unwrap();
    let creator = std::env::current_exe().unwrap().parent().unwrap().join("../skep-runtime-creator");
    let runtime = Runtime::new(RuntimeConfig {
        dir: dir.path().join("containers"),
        creator,
        cgroup_parent: PathBuf::from(CGROUP),
        runtime: OciRuntime::Libcontainer,
    })
    .unwrap();
    let cgroups = Cgroups::detect().unwrap().unwrap();
    // In a group under the same parent as the containers: the parent's counter then holds all that a start costs.
    for folder in cgroups.folders(&Path::new(CGROUP).join("agent")) {
        fs::create_dir_all(&folder).unwrap();
        if folder.to_string_lossy().contains("/cpuset/") {
            continue;
        }
        fs::write(folder.join("cgroup.procs"), "0").unwrap();
    }
    // The first one pays for cold caches.
    start(&runtime, dir.path(), "warm".to_owned()).await.remove().await.unwrap();

    let cpu_ns = || cgroups.usage(Path::new(CGROUP)).cpu_ns;
    let (cpu, begun) = (cpu_ns(), Instant::now());
    let mut running = Vec::new();
    let mut starting = tokio::task::JoinSet::new();
    for number in 0..count {
        if starting.len() == at_once {
            running.push(starting.join_next().await.unwrap().unwrap());
        }
        let (runtime, dir) = (runtime.clone(), dir.path().to_owned());
        starting.spawn(async move { start(&runtime, &dir, format!("c{number}")).await });
    }
    while let Some(container) = starting.join_next().await {
        running.push(container.unwrap());
    }
    let took = begun.elapsed();
    let cpu_ms = (cpu_ns() - cpu) as f64 / 1e6 / count as f64;
    println!(
        "{count} starts, {at_once} at once: {:.3} s, {:.1}/s, {cpu_ms:.1} ms CPU each",
        took.as_secs_f64(),
        count as f64 / took.as_secs_f64()
    );
    println!("monitor: {} kB PSS", monitor_pss_kb(&running[0]));

    let begun = Instant::now();
    let mut ending = tokio::task::JoinSet::new();
    for container in running {
        ending.spawn(async move { container.remove().await.unwrap() });
    }
    ending.join_all().await;
    println!("all killed and removed: {:.3} s", begun.elapsed().as_secs_f64());
    for hierarchy in cgroups.folders(Path::new("")) {
        // Back to the root, or the group could not be removed. cpuset was never left.
        let _ = fs::write(hierarchy.join("cgroup.procs"), "0");
    }
    cgroups.remove(Path::new(CGROUP));
}

async fn start(runtime: &Runtime, dir: &Path, id: String) -> Container {
    let spec = ContainerSpec {
        layers: vec![dir.join("layer")],
        args: vec!["sleep".to_owned(), "1000".to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        hostname: id.clone(),
        capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
        resources: ResourceLimits { memory_bytes: 64 << 20, pids: 100, nano_cpus: 500_000_000, ..Default::default() },
        log_dir: dir.join("logs").join(&id),
        id,
        ..ContainerSpec::default()
    };
    runtime.create(spec).await.unwrap()
}

fn monitor_pss_kb(container: &Container) -> u64 {
    let State::Running { pid, .. } = container.state() else { return 0 };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent: u32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    let rollup = fs::read_to_string(format!("/proc/{parent}/smaps_rollup")).unwrap();
    rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok()).unwrap()
}
