//! What goes wrong in bad moments: kills in the middle of starts, a manager away for longer than anyone's patience, hasty
//! changes, containers that reach for their own limits.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use skep_tests::{IDLE, Lab, until, until_some};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn an_agent_killed_again_and_again_fails_no_start() {
    let lab = Lab::with_busybox("kills", 2);
    lab.create("web", &["--replicas", "2"], &IDLE);
    lab.running("web", 2, SOON);
    lab.skep(1, &["service", "scale", "--detach", "web=40"]).ok();
    for _ in 0..8 {
        lab.command(&["kill", "2"]).ok();
        lab.command(&["start", "2"]).ok();
    }
    lab.running("web", 40, SOON);
    let ended: Vec<_> = lab.tasks("web").into_iter().filter(|task| task["DesiredState"] != "Running").collect();
    assert!(ended.is_empty(), "{ended:#?}");
    assert_eq!(lab.skep(1, &["swarm", "doctor"]).code, 0);
}

#[test]
fn a_manager_that_was_away_for_long_finds_every_node_again() {
    let lab = Lab::with_busybox("away", 2);
    lab.create("web", &["--replicas", "9"], &IDLE);
    let before = lab.running("web", 9, SOON);
    for _ in 0..3 {
        lab.command(&["kill", "1"]).ok();
        // Longer than it takes for the pauses between the workers' tries to reach their limit.
        std::thread::sleep(Duration::from_secs(12));
        lab.command(&["start", "1"]).ok();
        // Twice the silence after which a node counts as down.
        std::thread::sleep(Duration::from_secs(6));
        let states = lab.list(1, &["node", "ls"]);
        assert!(states.iter().all(|node| node["Status"] == "Ready"), "{states:#?}");
        let mut after = lab.running("web", 9, SOON);
        let mut expected = before.clone();
        after.sort();
        expected.sort();
        assert_eq!(after, expected);
    }
}

#[test]
fn hasty_scaling_leaves_nothing_behind() {
    let lab = Lab::with_busybox("hasty", 1);
    lab.create("web", &["--replicas", "0"], &IDLE);
    for replicas in ["60", "0", "40", "5", "30", "0", "50", "0"] {
        lab.skep(1, &["service", "scale", "--detach", &format!("web={replicas}")]).ok();
    }
    lab.skep(1, &["service", "scale", "web=3"]).ok();
    lab.running("web", 3, SOON);
    let sandboxes = lab.dir().join("hosts/1/data/sandboxes").display().to_string();
    until_some("only the sandboxes of running tasks", SOON, || {
        // The sandboxes lie on a mount that only the host sees.
        let listed = lab.exec(1, &["ls", &sandboxes]).ok();
        let containers = lab.exec(1, &["ls", &sandboxes.replace("/sandboxes", "/runtime/run")]).ok();
        let counts = (listed.lines().count(), containers.lines().count());
        if counts == (3, 3) { Ok(()) } else { Err(format!("{counts:?}")) }
    });
    lab.skep(1, &["service", "rm", "web"]).ok();
    until("every sandbox to go", SOON, || lab.exec(1, &["ls", &sandboxes]).ok().is_empty());
    assert_eq!(lab.skep(1, &["swarm", "doctor"]).code, 0);
}

#[test]
fn a_container_cannot_lift_its_own_limits() {
    let lab = Lab::with_busybox("limits", 1);
    let script = "for file in $(find /sys/fs/cgroup -type f); do echo max > $file; echo -1 > $file; done 2>/dev/null; \
                  mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x; echo through; exec sleep 1000";
    let flags = ["--limit-memory", "64m", "--limit-pids", "20", "--stop-signal", "KILL"];
    lab.create("web", &flags, &["sh", "-c", script]);
    let task = lab.running("web", 1, SOON).remove(0);
    let pid = lab.pid(&task.id);
    until("the script to get through", SOON, || lab.skep(1, &["task", "logs", &task.id]).stdout.contains("through"));
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |controller: &str| {
        let v1 = groups.lines().find(|line| line.split(':').nth(1).is_some_and(|names| names == controller));
        let (root, line) = match v1 {
            Some(line) => (format!("/sys/fs/cgroup/{controller}"), line),
            None => ("/sys/fs/cgroup".to_owned(), groups.lines().find(|line| line.starts_with("0::")).unwrap()),
        };
        (format!("{root}{}", line.splitn(3, ':').nth(2).unwrap()), v1.is_some())
    };
    let (memory, v1) = of("memory");
    let file = if v1 { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(fs::read_to_string(format!("{memory}/{file}")).unwrap().trim(), (64 << 20).to_string());
    let (pids, _) = of("pids");
    assert_eq!(fs::read_to_string(format!("{pids}/pids.max")).unwrap().trim(), "20");
}
