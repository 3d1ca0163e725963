//! Services on three hosts: images from a real registry, scaling, replacement, global services, logs.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use skep_tests::{Lab, Registry, busybox, nginx, redis, until_some};

const SOON: Duration = Duration::from_secs(30);

fn hosts(running: &[skep_tests::Running]) -> BTreeSet<&str> {
    running.iter().map(|task| task.node.as_str()).collect()
}

#[test]
fn busybox_nginx_and_redis_from_a_registry_run_on_all_hosts() {
    let lab = Lab::up("registry", 3, &["--insecure-registry", &Registry::address_on(1)]);
    let registry = Registry::start(&lab, 1);

    let image = registry.push(&lab, &nginx("nginx:1"));
    lab.skep(1, &["service", "create", "--detach", "--name", "web", "--replicas", "3", "--network", "host", &image])
        .ok();
    let running = lab.running("web", 3, SOON);
    assert_eq!(hosts(&running), BTreeSet::from(["host1", "host2", "host3"]));
    for host in 1..=3 {
        let page = lab.exec(host, &["curl", "-s", "--max-time", "5", "http://127.0.0.1:8080/"]).ok();
        assert_eq!(page, "hello from nginx");
    }

    let image = registry.push(&lab, &redis("redis:7"));
    lab.skep(1, &["service", "create", "--detach", "--name", "cache", "--mode", "global", "--network", "host", &image])
        .ok();
    let running = lab.running("cache", 3, SOON);
    assert_eq!(hosts(&running), BTreeSet::from(["host1", "host2", "host3"]));
    for host in 1..=3 {
        let pong = until_some("redis to answer", SOON, || {
            let said = lab.exec(host, &["redis-cli", "ping"]);
            if said.stdout.trim() == "PONG" { Ok(said.stdout) } else { Err(format!("{said:?}")) }
        });
        assert_eq!(pong.trim(), "PONG");
    }

    let image = registry.push(&lab, &busybox("busybox:1"));
    lab.skep(1, &["service", "create", "--name", "idle", "--replicas", "3", &image, "sleep", "1000"]).ok();
    lab.running("idle", 3, SOON);
    lab.skep(1, &["service", "scale", "idle=30"]).ok();
    let running = lab.running("idle", 30, Duration::from_secs(60));
    for host in ["host1", "host2", "host3"] {
        assert_eq!(running.iter().filter(|task| task.node == host).count(), 10, "spread evenly");
    }
    lab.skep(1, &["service", "scale", "idle=0"]).ok();
    lab.running("idle", 0, Duration::from_secs(60));
    until_some("the tasks to be gone", SOON, || {
        let left = lab.tasks("idle");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });

    for service in ["web", "cache", "idle"] {
        lab.skep(1, &["service", "rm", service]).ok();
    }
    assert_eq!(lab.list(1, &["service", "ls"]), Vec::<serde_json::Value>::new());
}

#[test]
fn an_image_that_one_host_holds_runs_on_all_without_a_registry() {
    let lab = Lab::up("peers", 3, &[]);
    let image = busybox("tool:1");
    lab.skep_with_input(1, &["image", "load"], &image.archive()).ok();
    lab.skep(1, &["service", "create", "--detach", "--name", "tool", "--mode", "global", "tool:1", "sleep", "1000"])
        .ok();
    let running = lab.running("tool", 3, SOON);
    assert_eq!(hosts(&running).len(), 3);
    // A killed container is replaced in its place after the restart delay.
    let victim = running.iter().find(|task| task.node == "host2").unwrap();
    let pid = lab.pid(&victim.id).to_string();
    lab.exec(2, &["kill", "-9", &pid]).ok();
    until_some("a replacement on host2", SOON, || {
        let tasks = lab.tasks("tool");
        let replaced = tasks.iter().any(|task| {
            task["Node"] == "host2"
                && task["ID"] != victim.id.as_str()
                && task["CurrentState"].as_str().is_some_and(|state| state.starts_with("Running"))
        });
        if replaced { Ok(()) } else { Err(format!("{tasks:#?}")) }
    });
    let failed = lab.task(&victim.id);
    assert_eq!(failed["Status"]["ContainerStatus"]["ExitCode"], 137, "{failed:#}");
}

#[test]
fn logs_come_from_every_host() {
    let lab = Lab::up("logs", 2, &[]);
    lab.skep_with_input(1, &["image", "load"], &busybox("busybox:1").archive()).ok();
    let script = "echo out $NODE; echo err $NODE >&2; sleep 1000";
    lab.skep(
        1,
        &[
            "service",
            "create",
            "--name",
            "talk",
            "--mode",
            "global",
            "-e",
            "NODE={{.Node.Hostname}}",
            "busybox:1",
            "sh",
            "-c",
            script,
        ],
    )
    .ok();
    let running = lab.running("talk", 2, SOON);
    let said = until_some("lines of both hosts", SOON, || {
        let logs = lab.skep(1, &["service", "logs", "--raw", "talk"]);
        let lines: BTreeSet<String> = logs.stdout.lines().chain(logs.stderr.lines()).map(str::to_owned).collect();
        if lines.len() == 4 { Ok(lines) } else { Err(format!("{lines:?}")) }
    });
    assert_eq!(said, ["err host1", "err host2", "out host1", "out host2"].map(str::to_owned).into());
    let remote = running.iter().find(|task| task.node == "host2").unwrap();
    let one = lab.skep(1, &["task", "logs", "--raw", "--tail", "1", &remote.id]);
    assert!(format!("{}{}", one.stdout, one.stderr).contains("host2"), "{one:?}");
}

#[test]
fn a_task_that_cannot_be_placed_says_why() {
    let lab = Lab::up("stuck", 2, &[]);
    lab.skep_with_input(1, &["image", "load"], &busybox("busybox:1").archive()).ok();
    let create = ["service", "create", "--detach", "--name"];
    lab.skep(1, &[&create[..], &["picky", "--constraint", "node.labels.gpu==yes", "busybox:1", "sleep", "1"]].concat())
        .ok();
    lab.skep(1, &[&create[..], &["big", "--reserve-memory", "900g", "busybox:1", "sleep", "1"]].concat()).ok();
    for (service, reason) in [
        ("picky", "constraint node.labels.gpu==yes is not met on 2 nodes"),
        ("big", "not enough memory left to reserve on 2 nodes"),
    ] {
        until_some("the reason to be told", SOON, || {
            let tasks = lab.tasks(service);
            let told = tasks.iter().any(|task| task["Error"].as_str().is_some_and(|error| error.contains(reason)));
            if told { Ok(()) } else { Err(format!("{tasks:#?}")) }
        });
    }
}
