//! Many containers at once on the node of the leader: how long it takes, and what else happens. A leader that changes, or
//! a node that goes down, because of it is counted from the daemons' logs. skep alone.

use std::time::{Duration, Instant};

use anyhow::Result;
use skep_tests::Lab;

use crate::command::wait_for;
use crate::failover::running;
use crate::metric;
use crate::report::Report;

const CONTAINERS: usize = 200;
/// Listing that many tasks is work too.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Starts them, and takes them away again.
pub(crate) fn measure(lab: &Lab, report: &mut Report) -> Result<()> {
    let leader = lab.leader();
    let before = lab.upheavals();
    let constraint = format!("node.hostname==host{leader}");
    let replicas = CONTAINERS.to_string();
    let started = Instant::now();
    lab.create("many", &["--replicas", &replicas, "--constraint", &constraint], &["sleep", "1000"]);
    wait_for("the containers on the leader's node", LOOK_AGAIN, || Ok(running(lab, "many", |_| true) == CONTAINERS))?;
    let seconds = started.elapsed().as_secs_f64();
    let after = lab.upheavals();
    let (leaders, downs) = (after.leaders - before.leaders, after.downs - before.downs);
    eprintln!(
        "bench: {CONTAINERS} containers on the leader's node: {leaders} leader changes, {downs} times nodes went down"
    );
    report.add(&metric::START_200_ON_LEADER, seconds, None)?;
    let count = u32::try_from(leaders + downs).unwrap_or(u32::MAX);
    report.add(&metric::UPHEAVALS_200_ON_LEADER, f64::from(count), None)?;
    lab.run(&["service", "rm", "many"]).ok();
    wait_for("the containers to be gone", LOOK_AGAIN, || {
        Ok(lab.skep(leader, &["info", "--format", "{{.ContainersRunning}}"]).ok() == "0")
    })
}
