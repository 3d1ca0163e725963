//! Figures for Prometheus: a manager's and a worker's, served where they were asked for.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skep_tests::{IDLE, Lab, busybox, until};

const SOON: Duration = Duration::from_secs(60);
const ADDR: &str = "127.0.0.1:9323";

/// What a host answers at a path: the status, and the page.
fn ask(lab: &Lab, host: u32, path: &str) -> (String, String) {
    let url = format!("http://{ADDR}{path}");
    let said = lab.exec(host, &["curl", "-s", "--max-time", "5", "-w", "\n%{http_code}", &url]).ok();
    let (page, status) = said.rsplit_once('\n').unwrap();
    (status.to_owned(), page.to_owned())
}

/// The value of the only sample that begins so.
fn value(page: &str, sample: &str) -> Option<f64> {
    let mut found = page.lines().filter_map(|line| line.strip_prefix(sample)?.rsplit_once(' ')?.1.parse().ok());
    let value = found.next();
    assert_eq!(found.next(), None, "{sample} is there twice");
    value
}

#[test]
fn figures_are_those_of_the_swarm() {
    let lab = Lab::up("metrics", 2, &[&format!("--daemon-arg=--metrics-addr={ADDR}")]);
    lab.skep_with_input(1, &["image", "load"], &busybox("busybox:1").archive()).ok();
    lab.create("web", &["--replicas", "4"], &IDLE);
    lab.running("web", 4, SOON);
    let page = |host| {
        let (status, page) = ask(&lab, host, "/metrics");
        assert_eq!(status, "200");
        page
    };
    // A worker's report of its certificate is on its way at first.
    until("both certificates to be known", SOON, || {
        page(1).matches("skep_swarm_node_certificate_not_after_seconds{").count() == 2
    });
    let (manager, worker) = (page(1), page(2));
    assert_eq!(value(&manager, "skep_swarm_tasks{state=\"running\"}"), Some(4.0), "{manager}");
    assert_eq!(value(&manager, "skep_swarm_nodes{state=\"ready\"}"), Some(2.0));
    assert!(manager.contains("\nskep_swarm_services 1\n") && manager.contains("\nskep_manager_leads 1\n"), "{manager}");
    assert!(worker.contains("role=\"worker\",state=\"active\"} 1\n") && !worker.contains("skep_swarm"), "{worker}");
    let running = |page: &str| value(page, "skep_containers_running").unwrap();
    assert_eq!(running(&manager) + running(&worker), 4.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    for page in [&manager, &worker] {
        let days = (value(page, "skep_certificate_not_after_seconds").unwrap() - now) / 86_400.0;
        assert!((80.0..100.0).contains(&days), "{days} days");
        assert!(value(page, "skep_root_not_after_seconds").unwrap() > now + 1e8);
    }
    assert_eq!(ask(&lab, 1, "/").0, "404");

    lab.run(&["service", "scale", "web=0"]).ok();
    until("the tasks to end", SOON, || page(1).contains("skep_swarm_tasks{state=\"running\"} 0\n"));
}
