//! The metrics: names, units, and which of them a command line selects. Names are stable: results of different versions
//! are compared by them.

/// Something measured.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// Which figures are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// It is a cost.
    Less,
    /// It is what is got.
    More,
}

impl Metric {
    /// How many times better skep's figure is.
    pub(crate) fn ratio(&self, skep: f64, peer: f64) -> f64 {
        match self.better {
            Better::Less => peer / skep,
            Better::More => skep / peer,
        }
    }
}

const fn metric(name: &'static str, unit: &'static str) -> Metric {
    Metric { name, unit, better: Better::Less }
}

const fn more(name: &'static str, unit: &'static str) -> Metric {
    Metric { name, unit, better: Better::More }
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
/// Secrets of 64 bytes, each acknowledged, by 16 writers at a time to one manager.
pub(crate) const SECRET_CREATE: Metric = more("secret.create.16_writers.per_s", "1/s");
/// One pass of the scheduler over 100,000 pending tasks of one service and 1,000 nodes.
pub(crate) const SCHEDULER_100K: Metric = metric("scheduler.1k_nodes_100k_tasks.seconds", "s");
/// From `swarm ca --rotate` until the old root is not trusted any more, in a swarm of one manager and 1,000 simulated nodes:
/// real keys, connections and sessions.
pub(crate) const CA_ROTATE_1000: Metric = metric("ca.rotate_1000.s", "s");
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

/// Of `make bench-net`: between two tasks on two hosts, over a network without encryption.
pub(crate) const PLAIN_TCP_1: Metric = more("net.plain.tcp_1_stream.gbits", "Gbit/s");
pub(crate) const PLAIN_TCP_4: Metric = more("net.plain.tcp_4_streams.gbits", "Gbit/s");
/// The same over an encrypted one in user space; the hosts' own network has an MTU of 1500.
pub(crate) const ENCRYPTED_TCP_1: Metric = more("net.encrypted.tcp_1_stream.gbits", "Gbit/s");
pub(crate) const ENCRYPTED_TCP_4: Metric = more("net.encrypted.tcp_4_streams.gbits", "Gbit/s");
/// Thousand datagrams a second that arrive of as many as can be sent.
pub(crate) const ENCRYPTED_UDP_64: Metric = more("net.encrypted.udp_64_bytes.kpps", "kpps");
pub(crate) const ENCRYPTED_UDP_1300: Metric = more("net.encrypted.udp_1300_bytes.kpps", "kpps");
/// Median round trip.
pub(crate) const ENCRYPTED_PING: Metric = metric("net.encrypted.ping.us", "µs");
/// CPU seconds of the processes that move the packets, on both hosts, for a Gbit of TCP with one stream.
pub(crate) const ENCRYPTED_CPU: Metric = metric("net.encrypted.cpu_s_per_gbit", "s");
/// One host sends to fifty at once, by TCP over an encrypted network: all that arrives, and its device's CPU.
pub(crate) const FIFTY_TCP: Metric = more("net.encrypted.50_peers.tcp.gbits", "Gbit/s");
pub(crate) const FIFTY_CPU: Metric = metric("net.encrypted.50_peers.cpu_s_per_gbit", "s");
/// A byte there and back on an open connection to a service's virtual address; median.
pub(crate) const VIP_ROUND_TRIP: Metric = metric("net.vip.round_trip.us", "µs");
/// A connection with a byte there and back; median.
pub(crate) const VIP_CONNECT: Metric = metric("net.vip.connect.us", "µs");
/// A service's name, asked of a sandbox's name server: answers a second with 64 questions under way, and the time to one
/// alone; median.
pub(crate) const NAMES_RATE: Metric = more("net.names.answers_per_s", "1/s");
pub(crate) const NAMES_TIME: Metric = metric("net.names.answer.us", "µs");
/// A task's sandbox with an end on a network where a service has 1,000 tasks: CPU of netd, and time until it is there.
pub(crate) const ATTACH_CPU: Metric = metric("net.endpoint.attach.cpu_ms", "ms");
pub(crate) const ATTACH_WALL: Metric = metric("net.endpoint.attach.ms", "ms");
pub(crate) const DETACH_CPU: Metric = metric("net.endpoint.detach.cpu_ms", "ms");
pub(crate) const DETACH_WALL: Metric = metric("net.endpoint.detach.ms", "ms");
/// One of the 1,000 comes or goes, on a node with 200 tasks of the network.
pub(crate) const CHANGE_WALL: Metric = metric("net.change.1000_backends_200_tasks.ms", "ms");
pub(crate) const CHANGE_CPU: Metric = metric("net.change.1000_backends_200_tasks.cpu_ms", "ms");
/// A network's table with 10,000 tasks, from nothing; and one more of them.
pub(crate) const TABLE_WALL: Metric = metric("net.table.10000_endpoints.ms", "ms");
pub(crate) const TABLE_CPU: Metric = metric("net.table.10000_endpoints.cpu_ms", "ms");
pub(crate) const TABLE_CHANGE_WALL: Metric = metric("net.table.10000_endpoints.change.ms", "ms");
pub(crate) const TABLE_CHANGE_CPU: Metric = metric("net.table.10000_endpoints.change.cpu_ms", "ms");
/// As [`START_50`], of 200 containers on an overlay, and on the host's network.
pub(crate) const START_200_OVERLAY: Metric = metric("net.start.200_replicas_overlay.seconds", "s");
pub(crate) const START_200_HOST: Metric = metric("net.start.200_replicas_host_network.seconds", "s");
/// CPU of all processes of the orchestrator and of the containers meanwhile, by 200: it says more on a busy machine.
pub(crate) const START_200_OVERLAY_CPU: Metric = metric("net.start.200_replicas_overlay.cpu_ms_per_container", "ms");
pub(crate) const START_200_HOST_CPU: Metric = metric("net.start.200_replicas_host_network.cpu_ms_per_container", "ms");
/// HTTP requests to a published port that fail while all tasks of the service are replaced, and what is answered a second.
pub(crate) const ROLLING_FAILED: Metric = metric("net.rolling.failed_requests", "");
pub(crate) const ROLLING_RATE: Metric = more("net.rolling.requests_per_s", "1/s");
/// The same by connections that are kept open, which applications end between two requests.
pub(crate) const ROLLING_KEPT_FAILED: Metric = metric("net.rolling.kept_connections.failed_requests", "");

pub(crate) const NET_PLAIN: &[&Metric] = &[&PLAIN_TCP_1, &PLAIN_TCP_4];
pub(crate) const NET_ENCRYPTED: &[&Metric] =
    &[&ENCRYPTED_TCP_1, &ENCRYPTED_TCP_4, &ENCRYPTED_UDP_64, &ENCRYPTED_UDP_1300, &ENCRYPTED_PING, &ENCRYPTED_CPU];
pub(crate) const NET_FIFTY: &[&Metric] = &[&FIFTY_TCP, &FIFTY_CPU];
pub(crate) const NET_VIP: &[&Metric] = &[&VIP_ROUND_TRIP, &VIP_CONNECT];
pub(crate) const NET_NAMES: &[&Metric] = &[&NAMES_RATE, &NAMES_TIME];
pub(crate) const NET_ENDPOINTS: &[&Metric] =
    &[&ATTACH_CPU, &ATTACH_WALL, &DETACH_CPU, &DETACH_WALL, &CHANGE_WALL, &CHANGE_CPU];
pub(crate) const NET_TABLES: &[&Metric] = &[&TABLE_WALL, &TABLE_CPU, &TABLE_CHANGE_WALL, &TABLE_CHANGE_CPU];
pub(crate) const NET_START: &[&Metric] =
    &[&START_200_OVERLAY, &START_200_OVERLAY_CPU, &START_200_HOST, &START_200_HOST_CPU];
pub(crate) const NET_ROLLING: &[&Metric] = &[&ROLLING_FAILED, &ROLLING_RATE, &ROLLING_KEPT_FAILED];

/// Those of `make bench-net`, in the order of printing.
pub(crate) const NET: &[&[&Metric]] =
    &[NET_PLAIN, NET_ENCRYPTED, NET_FIFTY, NET_VIP, NET_NAMES, NET_ENDPOINTS, NET_TABLES, NET_START, NET_ROLLING];

/// Those that a swarm of several managers is needed for.
pub(crate) const FAILOVER: &[&Metric] =
    &[&START_200_ON_LEADER, &UPHEAVALS_200_ON_LEADER, &UPDATE_10, &LEADER_KILLED, &LEADER_LOST, &WORKER_LOST];

/// Those that a running orchestrator is needed for.
pub(crate) const CONTAINERS: &[&Metric] = &[
    &START_1,
    &START_10,
    &START_50,
    &START_50_HOST,
    &START_CPU,
    &STOP_50,
    &MEMORY_CONTAINER,
    &MEMORY_IDLE,
    &SECRET_CREATE,
];

/// Those of `make bench`, in the order of printing.
const OWN: &[&Metric] = &[
    &SCHEDULER_100K,
    &CA_ROTATE_1000,
    &START_1,
    &START_10,
    &START_50,
    &START_50_HOST,
    &START_CPU,
    &STOP_50,
    &MEMORY_CONTAINER,
    &MEMORY_IDLE,
    &SECRET_CREATE,
    &START_200_ON_LEADER,
    &UPHEAVALS_200_ON_LEADER,
    &UPDATE_10,
    &LEADER_KILLED,
    &LEADER_LOST,
    &WORKER_LOST,
];

/// All, in the order of printing.
pub(crate) fn all() -> impl Iterator<Item = &'static Metric> {
    OWN.iter().chain(NET.iter().copied().flatten()).copied()
}

/// The metrics that a command line asks for.
pub(crate) struct Selection(Vec<&'static str>);

impl Selection {
    /// Prefixes of names; none means all of `make bench`.
    ///
    /// # Errors
    /// A sentence, where a prefix matches nothing.
    pub(crate) fn parse(prefixes: &[String]) -> Result<Self, String> {
        if prefixes.is_empty() {
            return Ok(Self(OWN.iter().map(|metric| metric.name).collect()));
        }
        let mut selected = Vec::new();
        for prefix in prefixes {
            let before = selected.len();
            selected.extend(all().map(|metric| metric.name).filter(|name| name.starts_with(prefix.as_str())));
            if selected.len() == before {
                return Err(format!("no metric starts with {prefix:?}; see bench --list"));
            }
        }
        Ok(Self(selected))
    }

    pub(crate) fn has(&self, metric: &Metric) -> bool {
        self.0.contains(&metric.name)
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
    fn ratios_say_how_many_times_better() {
        assert_eq!((START_1.ratio(2.0, 6.0), PLAIN_TCP_1.ratio(6.0, 2.0)), (3.0, 3.0));
    }

    #[test]
    fn prefixes_select_and_unknown_ones_are_refused() {
        let all = selection(&[]).unwrap();
        assert!(OWN.iter().all(|metric| all.has(metric)) && !all.has(&PLAIN_TCP_1));
        let net = selection(&["net."]).unwrap();
        assert!(NET.iter().all(|metrics| net.has_any(metrics)) && !net.has(&START_1));
        let start = selection(&["start.1_", "memory"]).unwrap();
        assert!(start.has(&START_1) && start.has(&MEMORY_IDLE) && start.has_any(CONTAINERS));
        assert!(!start.has(&START_10) && !start.has(&SCHEDULER_100K));
        assert!(selection(&["start", "nothing"]).err().unwrap().contains("\"nothing\""));
    }
}
