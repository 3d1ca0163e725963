//! The metrics: names, units, and which of them a command line selects. Names are stable: results of different versions
//! are compared by them.

/// Something measured. All of them are costs: less is better.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
}

const fn metric(name: &'static str, unit: &'static str) -> Metric {
    Metric { name, unit }
}

/// From the start of `service create --detach` until the manager reports all replicas running; one node, image local.
pub(crate) const START_1: Metric = metric("start.1_replicas.seconds", "s");
pub(crate) const START_10: Metric = metric("start.10_replicas.seconds", "s");
pub(crate) const START_50: Metric = metric("start.50_replicas.seconds", "s");
/// The same by containers on the host's network.
pub(crate) const START_50_HOST: Metric = metric("start.50_replicas_host_network.seconds", "s");
/// CPU of all processes of the orchestrator and of the containers, from `service create` until 50 run, by 50.
pub(crate) const START_CPU: Metric = metric("start.cpu_ms_per_container", "ms");
/// From the start of `service rm` until no process of the 50 containers is left.
pub(crate) const STOP_50: Metric = metric("stop.50_replicas.seconds", "s");
/// (PSS of the orchestrator's processes at 50 containers − at 0) / 50; not the containers' own processes.
pub(crate) const MEMORY_CONTAINER: Metric = metric("memory.per_container_kb", "kB");
/// PSS of the idle daemons, of a swarm of one node without services.
pub(crate) const MEMORY_IDLE: Metric = metric("memory.daemon_idle_mb", "MB");
/// One pass of the scheduler over 100,000 pending tasks of one service and 1,000 nodes.
pub(crate) const SCHEDULER_100K: Metric = metric("scheduler.1k_nodes_100k_tasks.seconds", "s");
/// Five hosts, three managers, default settings: from the kill of the leader until the next write is acknowledged; median.
pub(crate) const LEADER_KILLED: Metric = metric("failover.leader_killed.write_gap.seconds", "s");
/// From the leader's loss of power until its tasks run elsewhere.
pub(crate) const LEADER_LOST: Metric = metric("failover.leader_lost.tasks_elsewhere.seconds", "s");
/// From a worker's loss of power until its tasks run elsewhere.
pub(crate) const WORKER_LOST: Metric = metric("failover.worker_lost.tasks_elsewhere.seconds", "s");
/// Ten replicas updated one at a time, until the tenth new one runs.
pub(crate) const UPDATE_10: Metric = metric("update.10_replicas.seconds", "s");
/// From the start of `service create` until 200 containers run on the leader's node, in a swarm of three managers.
pub(crate) const START_200_ON_LEADER: Metric = metric("start.200_on_leader.seconds", "s");
/// Leaders that changed and nodes that went down meanwhile.
pub(crate) const UPHEAVALS_200_ON_LEADER: Metric = metric("start.200_on_leader.upheavals", "");

/// Those that a swarm of several managers is needed for.
pub(crate) const FAILOVER: &[&Metric] =
    &[&START_200_ON_LEADER, &UPHEAVALS_200_ON_LEADER, &UPDATE_10, &LEADER_KILLED, &LEADER_LOST, &WORKER_LOST];

/// Those that a running orchestrator is needed for.
pub(crate) const CONTAINERS: &[&Metric] =
    &[&START_1, &START_10, &START_50, &START_50_HOST, &START_CPU, &STOP_50, &MEMORY_CONTAINER, &MEMORY_IDLE];

/// All, in the order of printing.
pub(crate) const ALL: &[&Metric] = &[
    &SCHEDULER_100K,
    &START_1,
    &START_10,
    &START_50,
    &START_50_HOST,
    &START_CPU,
    &STOP_50,
    &MEMORY_CONTAINER,
    &MEMORY_IDLE,
    &START_200_ON_LEADER,
    &UPHEAVALS_200_ON_LEADER,
    &UPDATE_10,
    &LEADER_KILLED,
    &LEADER_LOST,
    &WORKER_LOST,
];

/// The metrics that a command line asks for.
pub(crate) struct Selection(Vec<String>);

impl Selection {
    /// Prefixes of names; none means all.
    ///
    /// # Errors
    /// A sentence, where a prefix matches nothing.
    pub(crate) fn parse(prefixes: &[String]) -> Result<Self, String> {
        match prefixes.iter().find(|prefix| !ALL.iter().any(|metric| metric.name.starts_with(prefix.as_str()))) {
            Some(prefix) => Err(format!("no metric starts with {prefix:?}; see bench --list")),
            None => Ok(Self(prefixes.to_vec())),
        }
    }

    pub(crate) fn has(&self, metric: &Metric) -> bool {
        self.0.is_empty() || self.0.iter().any(|prefix| metric.name.starts_with(prefix))
    }

    pub(crate) fn has_any(&self, metrics: &[&Metric]) -> bool {
        metrics.iter().any(|metric| self.has(metric))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn selection(prefixes: &[&str]) -> Result<Selection, String> {
        Selection::parse(&prefixes.iter().map(|prefix| (*prefix).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn prefixes_select_and_unknown_ones_are_refused() {
        let all = selection(&[]).unwrap();
        assert!(ALL.iter().all(|metric| all.has(metric)));
        let start = selection(&["start.1_", "memory"]).unwrap();
        assert!(start.has(&START_1) && start.has(&MEMORY_IDLE) && start.has_any(CONTAINERS));
        assert!(!start.has(&START_10) && !start.has(&SCHEDULER_100K));
        assert!(selection(&["start", "nothing"]).err().unwrap().contains("\"nothing\""));
    }
}
