//! What is killed comes back: agents, managers, hosts. Containers do not notice.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use skep_tests::{Lab, alive, busybox, until, until_some};

const SOON: Duration = Duration::from_secs(30);

fn log_lines(lab: &Lab, task: &str) -> Vec<String> {
    let logs = lab.skep(1, &["task", "logs", "--raw", task]);
    logs.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn a_killed_agent_finds_its_containers_logs_and_exit_codes_again() {
    let lab = Lab::up("agent", 2, &[]);
    lab.skep_with_input(1, &["image", "load"], &busybox("busybox:1").archive()).ok();
    let on_two = ["--constraint", "node.hostname==host2"];
    let counting = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done";
    let create = ["service", "create", "--detach", "--name"];
    lab.skep(1, &[&create[..], &["count"], &on_two, &["busybox:1", "sh", "-c", counting]].concat()).ok();
    // Ends with 7 when told to; while its agent is away.
    let waiting = "while [ ! -e /stop/now ]; do sleep 0.05; done; exit 7";
    let stop = lab.dir().join("stop");
    std::fs::create_dir_all(&stop).unwrap();
    let mount = format!("type=bind,source={},target=/stop", stop.display());
    let once = ["--restart-condition", "none", "--mount", &mount];
    lab.skep(1, &[&create[..], &["once"], &once, &on_two, &["busybox:1", "sh", "-c", waiting]].concat()).ok();
    let counter = lab.running("count", 1, SOON);
    let once = lab.running("once", 1, SOON).remove(0);
    let before = lab.pids(&counter);

    lab.command(&["kill", "2"]).ok();
    let written = log_lines(&lab, &counter[0].id).len();
    std::fs::write(stop.join("now"), "").unwrap();
    let once_pid = lab.pid(&once.id);
    until("the container to end without its agent", SOON, || !alive(once_pid));
    assert!(before.values().all(|pid| alive(*pid)));
    lab.command(&["start", "2"]).ok();

    until_some("the exit code to be known", SOON, || {
        let status = lab.task(&once.id);
        let code = &status["Status"]["ContainerStatus"]["ExitCode"];
        if code == 7 { Ok(()) } else { Err(format!("{status:#}")) }
    });
    let after = lab.running("count", 1, SOON);
    assert_eq!(after, counter, "the same task");
    assert_eq!(lab.pids(&after), before, "the same process");
    until("the log to go on without a gap", SOON, || {
        let lines = log_lines(&lab, &counter[0].id);
        lines.len() > written + 5 && lines.iter().enumerate().all(|(index, line)| *line == index.to_string())
    });
}

#[test]
fn a_restarted_manager_knows_everything_and_containers_run_on() {
    let lab = Lab::up("manager", 3, &[]);
    lab.skep_with_input(1, &["image", "load"], &busybox("busybox:1").archive()).ok();
    lab.skep(1, &["service", "create", "--detach", "--name", "web", "--replicas", "6", "busybox:1", "sleep", "1000"])
        .ok();
    let before = lab.running("web", 6, SOON);
    let processes = lab.pids(&before);
    for way in ["kill", "stop"] {
        lab.command(&[way, "1"]).ok();
        assert!(processes.values().all(|pid| alive(*pid)), "containers outlive the manager");
        lab.command(&["start", "1"]).ok();
        until("all nodes to be ready again", SOON, || {
            lab.list(1, &["node", "ls"]).iter().filter(|node| node["Status"] == "Ready").count() == 3
        });
        let mut after = lab.running("web", 6, SOON);
        let mut expected = before.clone();
        after.sort();
        expected.sort();
        assert_eq!(after, expected, "after {way}: the same tasks");
        assert_eq!(lab.pids(&after), processes, "after {way}: the same processes");
    }
    // It still takes orders.
    lab.skep(1, &["service", "scale", "web=8"]).ok();
    lab.running("web", 8, SOON);
}

#[test]
fn a_powered_off_host_loses_its_tasks_and_comes_back_clean() {
    let lab = Lab::up("power", 3, &[]);
    lab.skep_with_input(1, &["image", "load"], &busybox("busybox:1").archive()).ok();
    lab.skep(1, &["service", "create", "--detach", "--name", "web", "--replicas", "6", "busybox:1", "sleep", "1000"])
        .ok();
    let before = lab.running("web", 6, SOON);
    let lost: Vec<u64> = before.iter().filter(|task| task.node == "host3").map(|task| lab.pid(&task.id)).collect();
    assert_eq!(lost.len(), 2);
    lab.command(&["power-off", "3"]).ok();
    until("its processes to be gone", SOON, || lost.iter().all(|pid| !alive(*pid)));
    let moved = until_some("its tasks to run elsewhere", SOON, || {
        let running = lab.running("web", 6, SOON);
        if running.iter().all(|task| task.node != "host3") { Ok(running) } else { Err(format!("{running:?}")) }
    });
    let processes = lab.pids(&moved);

    lab.command(&["start", "3"]).ok();
    until("host3 to be ready", SOON, || {
        lab.list(1, &["node", "ls"]).iter().any(|node| node["Hostname"] == "host3" && node["Status"] == "Ready")
    });
    let mut after = lab.running("web", 6, SOON);
    let mut expected = moved.clone();
    after.sort();
    expected.sort();
    assert_eq!(after, expected, "nothing moves back by itself");
    assert_eq!(lab.pids(&after), processes);
    until("the lost tasks to be reported as ended", SOON, || {
        lab.tasks("web")
            .iter()
            .filter(|task| task["Node"] == "host3")
            .all(|task| !task["CurrentState"].as_str().unwrap_or_default().starts_with("Running"))
    });
    lab.skep(1, &["service", "scale", "web=9"]).ok();
    let scaled = lab.running("web", 9, SOON);
    assert_eq!(scaled.iter().filter(|task| task.node == "host3").count(), 3, "it takes new tasks");
}
