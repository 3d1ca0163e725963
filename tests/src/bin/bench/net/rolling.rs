//! A service behind a published port on three hosts, and all its tasks replaced under load: what a client sees of it.

use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_tests::{Lab, nginx};

use super::Net;
use crate::command::wait_for;
use crate::failover::running;
use crate::metric;

const HOSTS: u32 = 3;
const REPLICAS: usize = 6;
/// How long the load lasts. All tasks are replaced again and again meanwhile.
const SECONDS: u64 = 24;
/// Connections at a time: most of the machine stays for what is measured.
const CONNECTIONS: &str = "8";
/// Of one question at most, in which it counts as failed.
const TIMEOUT: &str = "5s";
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const SETTLE: Duration = Duration::from_secs(60);
/// The lab's first host, asked from the last one.
const URL: &str = "http://10.90.0.1:8080/";

/// What wrk(1) says of its requests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Load {
    requests: u64,
    failed: u64,
}

impl Load {
    fn parse(text: &str) -> Option<Self> {
        let number = |word: &str| word.trim_matches(|letter: char| !letter.is_ascii_digit()).parse::<u64>().ok();
        let requests = text.lines().find(|line| line.contains(" requests in "))?.split_whitespace().next()?;
        let errors = text.lines().find_map(|line| line.split("Socket errors:").nth(1)).unwrap_or_default();
        let bad = text.lines().find_map(|line| line.split("Non-2xx or 3xx responses:").nth(1)).unwrap_or_default();
        let failed = errors.split_whitespace().chain(bad.split_whitespace()).filter_map(number).sum();
        Some(Self { requests: number(requests)?, failed })
    }
}

/// [`metric::NET_ROLLING`].
pub(super) fn measure(net: &Net<'_>) -> Result<()> {
    let lab = Lab::at(net.run.lab_name(), net.run.lab_dir(), HOSTS, &["--managers", "1"]);
    lab.skep_with_input(1, &["image", "load"], &nginx("nginx:bench").archive()).ok();
    let replicas = REPLICAS.to_string();
    let publish = ["--publish", "published=8080,target=8080", "nginx:bench"];
    let create = ["service", "create", "--detach", "--name", "web", "--replicas", &replicas];
    lab.run(&[&create[..], &publish].concat()).ok();
    lab.running("web", REPLICAS, SETTLE);
    wait_for("the published port", LOOK_AGAIN, || Ok(lab.exec(HOSTS, &["curl", "-sf", "-m", "2", URL]).code == 0))?;
    for (close, metric) in [(true, &metric::ROLLING_FAILED), (false, &metric::ROLLING_KEPT_FAILED)] {
        if !net.selection.has(metric) {
            continue;
        }
        let (load, replaced) = roll(&lab, close)?;
        eprintln!("bench: {replaced} tasks replaced under load: {} requests, {} failed", load.requests, load.failed);
        net.at_most(metric, Some(load.failed as f64), close.then_some(0.0))?;
        if close && net.selection.has(&metric::ROLLING_RATE) {
            net.ratio(&metric::ROLLING_RATE, Some(load.requests as f64 / SECONDS as f64), None, None)?;
        }
    }
    Ok(())
}

/// Load, and all tasks replaced as often as can be meanwhile. Returns how many were.
fn roll(lab: &Lab, close: bool) -> Result<(Load, usize)> {
    let started = Instant::now();
    let load = start_load(lab, close)?;
    thread::sleep(Duration::from_secs(1));
    let mut replaced = 0;
    // The last one begins early enough to end under load on a machine that is as fast as now.
    let mut longest = Duration::ZERO;
    while started.elapsed() + longest < Duration::from_secs(SECONDS) {
        let began = Instant::now();
        replace_all(lab)?;
        replaced += REPLICAS;
        longest = longest.max(began.elapsed());
    }
    let late = started.elapsed().saturating_sub(Duration::from_secs(SECONDS));
    ensure!(replaced > REPLICAS || late.is_zero(), "replacing all tasks takes longer than the load lasts");
    let output = load.wait_with_output().context("cannot wait for wrk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let load = Load::parse(&text).with_context(|| format!("wrk says {text:?}"))?;
    ensure!(load.requests > 0, "wrk got no answer");
    let of_what = |line: &&str| line.contains("Socket errors:") || line.contains("Non-2xx");
    text.lines().filter(of_what).for_each(|line| eprintln!("bench: wrk: {}", line.trim()));
    Ok((load, replaced))
}

fn start_load(lab: &Lab, close: bool) -> Result<Child> {
    let time = format!("{SECONDS}s");
    let mut args = vec!["wrk", "-t", "1", "-c", CONNECTIONS, "-d", &time, "--timeout", TIMEOUT];
    if close {
        // Each request on a connection of its own: balanced on its own, and ended by the application, which says so. A
        // connection that is kept is ended between two requests, which wrk counts as a failure of the next.
        args.extend(["-H", "Connection: close"]);
    }
    let mut command = lab.on(HOSTS, &[&args[..], &[URL]].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot run wrk")
}

fn replace_all(lab: &Lab) -> Result<()> {
    let old: Vec<String> = lab.running("web", REPLICAS, SETTLE).into_iter().map(|task| task.id).collect();
    lab.run(&["service", "update", "--detach", "--force", "web"]).ok();
    let is_new = |task: &Value| !old.iter().any(|id| task["ID"] == id.as_str());
    wait_for("the tasks to be replaced", LOOK_AGAIN, || Ok(running(lab, "web", is_new) == REPLICAS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says() {
        let good = "Running 1s test @ http://10.90.0.1:8080/\n  1 threads and 8 connections\n  8712 requests in 1.10s, 2.19MB read\n";
        assert_eq!(Load::parse(good), Some(Load { requests: 8712, failed: 0 }));
        let bad = format!(
            "{good}  Socket errors: connect 1, read 20, write 0, timeout 3\n  Non-2xx or 3xx responses: 400\nRequests/sec: 7920.00\n"
        );
        assert_eq!(Load::parse(&bad), Some(Load { requests: 8712, failed: 424 }));
        assert_eq!(Load::parse("unable to connect to 10.90.0.1:8080 Connection refused\n"), None);
    }
}
