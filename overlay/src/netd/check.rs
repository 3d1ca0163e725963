//! A check of this host's networks: gathers the facts, sends packets to the other hosts, and asks [`crate::check`] what all
//! that means. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skep_proto::cidr::address_to_wire;
use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1::{self, CheckArea, NetworkFinding};

use super::attach::device;
use super::state::{Looked, Trial};
use super::{Netd, NetdError, lock, text};
use crate::check::paths::{self, Path, Underlay};
use crate::check::probe::{self, Outcome, Target};
use crate::check::{About as _, devices, error, finding};
use crate::table::Peer;

/// How long a check takes at most, where nobody says.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// What is left of the time for everything but packets.
const RESERVE: Duration = Duration::from_millis(500);
/// Networks that are tried at the same time.
const AT_ONCE: usize = 16;
/// Addresses of the host's own bridge.
const LEASES: usize = 65_533;

impl Netd {
    pub(super) fn examine(&self, request: &v1::CheckRequest) -> Result<v1::CheckResponse, NetdError> {
        let limit = match request.time_limit_ms {
            0 => TIME_LIMIT,
            limit => Duration::from_millis(limit.into()),
        };
        let deadline = Instant::now() + limit.saturating_sub(RESERVE);
        let read = |id: &Vec<u8>| NetworkId::from_wire(id).map_err(|source| NetdError::Id("network", source));
        let only: BTreeSet<NetworkId> = request.network_ids.iter().map(read).collect::<Result<_, _>>()?;
        let mut findings = Vec::new();
        let (mut looked, mut live, mut outs) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for network in self.all_networks() {
            let state = lock(&network);
            let seen = state.look(self, device);
            if seen.is_live {
                live.insert(state.id);
            }
            outs.extend(seen.out.clone());
            if only.is_empty() || only.contains(&state.id) {
                looked.push(seen);
            }
        }
        findings.extend(self.look_at_host(&live, &outs));
        let paths = self.try_paths(&mut looked, deadline, &mut findings);
        for seen in looked {
            findings.extend(seen.findings);
        }
        let own = self.config().node.map(NodeId::to_vec).unwrap_or_default();
        for finding in &mut findings {
            finding.node_id.clone_from(&own);
        }
        let check = v1::NetworkCheck { findings, paths, applied: self.applied() };
        Ok(v1::CheckResponse { check: Some(check) })
    }

    /// What belongs to no network, or to all.
    fn look_at_host(&self, live: &BTreeSet<NetworkId>, outs: &BTreeSet<String>) -> Vec<NetworkFinding> {
        let mut found = self.host.look(!outs.is_empty()).unwrap_or_else(|refused| {
            let problem = format!("rules of this host cannot be looked at: {}", text(&refused));
            vec![error(CheckArea::Rules, problem, "look at netd's log on that host")]
        });
        let links = self.host.links().unwrap_or_default();
        let stray: Vec<String> = links
            .into_iter()
            .filter(|link| link.name.starts_with("sk-") && !outs.contains(&link.name))
            .map(|link| link.name)
            .collect();
        let dirs = std::fs::read_dir(self.networks_dir()).into_iter().flatten().flatten();
        let namespaces: Vec<String> = dirs
            .filter(|entry| {
                let id = entry.file_name().to_str().and_then(|name| name.parse::<NetworkId>().ok());
                crate::network::is_there(&entry.path()) && id.is_none_or(|id| !live.contains(&id))
            })
            .map(|entry| entry.path().to_string_lossy().into_owned())
            .collect();
        found.extend(devices::left_over(&stray, &namespaces));
        found.extend(self.missing_findings());
        found.extend(devices::leases(lock(&self.leases).len(), LEASES));
        for note in self.mesh.notes(self.host.has_wireguard()) {
            found.push(finding(CheckArea::Mesh, v1::CheckSeverity::Ok, note, String::new()));
        }
        found
    }

    /// Sends packets through all networks, and to the hosts themselves; notes what that means.
    fn try_paths(
        &self,
        looked: &mut [Looked],
        deadline: Instant,
        findings: &mut Vec<NetworkFinding>,
    ) -> Vec<v1::NetworkPath> {
        let trials: Vec<Trial> = looked.iter_mut().filter_map(|seen| seen.trial.take()).collect();
        let tried: BTreeSet<NodeId> = trials.iter().flat_map(|trial| &trial.paths).map(|path| path.peer).collect();
        let mut underlays = self.underlays(looked, &tried);
        let rounds = trials.len().div_ceil(AT_ONCE).max(1);
        let each = deadline.saturating_duration_since(Instant::now()) / u32::try_from(rounds).unwrap_or(u32::MAX);
        let mut paths = Vec::new();
        let mut trials = trials.into_iter().peekable();
        std::thread::scope(|scope| {
            let outside = scope.spawn(|| self.try_underlays(&mut underlays, deadline));
            while trials.peek().is_some() {
                let end = deadline.min(Instant::now() + each);
                let threads: Vec<_> =
                    trials.by_ref().take(AT_ONCE).map(|trial| scope.spawn(move || try_all(trial, end))).collect();
                for thread in threads {
                    match thread.join() {
                        Ok(Ok(done)) => paths.extend(done),
                        Ok(Err(refused)) => findings.push(*refused),
                        Err(_) => {}
                    }
                }
            }
            let _ = outside.join();
        });
        let paths = best(paths);
        // A mesh that cannot be read says nothing.
        let status = self.mesh.status().unwrap_or_default();
        let mesh = status.peers.into_iter().filter_map(|peer| Some((NodeId::from_wire(&peer.node_id).ok()?, peer)));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now_ms = i64::try_from(now).unwrap_or(i64::MAX);
        findings.extend(paths::findings(&paths, &underlays, &mesh.collect(), now_ms));
        if status.device == "none" && looked.iter().any(|seen| seen.encrypted) {
            let problem = "encrypted networks stand still on this host: the device of the mesh does not run";
            findings.push(error(CheckArea::Mesh, problem, "look at netd's log on that host, then restart netd there"));
        }
        paths.iter().map(to_wire).collect()
    }

    /// Where the other hosts are outside of all networks.
    fn underlays(&self, looked: &[Looked], tried: &BTreeSet<NodeId>) -> BTreeMap<NodeId, Underlay> {
        let config = self.config().request;
        let own = config.wireguard_addr.parse::<SocketAddr>().map(|listen| listen.ip());
        let own = own.ok().or_else(|| config.vxlan_addr.parse::<IpAddr>().ok());
        let mtu = own.and_then(|own| self.host.underlay_mtu(own).ok()).unwrap_or(1500);
        let of = |(node, row): &(NodeId, std::sync::Arc<Peer>)| {
            let mesh = row.endpoint.wireguard_addr.parse::<SocketAddr>().map(|end| end.ip());
            let address = mesh.ok().or_else(|| row.endpoint.vxlan_addr.parse().ok())?;
            let mesh = row.endpoint.wireguard_addr.clone();
            Some((*node, Underlay { address, mesh, mtu, outcome: Outcome::default() }))
        };
        let peers = looked.iter().flat_map(|seen| &seen.peers).filter(|(node, _)| tried.contains(node));
        peers.filter_map(of).collect()
    }

    fn try_underlays(&self, underlays: &mut BTreeMap<NodeId, Underlay>, deadline: Instant) {
        let targets: Vec<Target> =
            underlays.values().map(|each| Target { address: each.address, mtu: each.mtu }).collect();
        // A host where no socket can be opened knows nothing of the others, and says nothing of them.
        let outcomes = probe::run(self.host.namespace(), None, &targets, deadline).unwrap_or_default();
        for (underlay, outcome) in underlays.values_mut().zip(outcomes) {
            underlay.outcome = outcome;
        }
    }
}

fn try_all(mut trial: Trial, deadline: Instant) -> Result<Vec<Path>, Box<NetworkFinding>> {
    let targets: Vec<Target> = trial.paths.iter().map(|path| Target { address: path.address, mtu: path.mtu }).collect();
    match probe::run(&trial.namespace, trial.source, &targets, deadline) {
        Ok(outcomes) => {
            for (path, outcome) in trial.paths.iter_mut().zip(outcomes) {
                path.outcome = outcome;
            }
            Ok(trial.paths)
        }
        Err(refused) => {
            let problem = format!("this host cannot try its networks: {}", text(&refused));
            let network = trial.paths.first().map(|path| path.network);
            let finding = error(CheckArea::Reachability, problem, "look at netd's log on that host");
            Err(Box::new(match network {
                Some(network) => finding.of_network(network),
                None => finding,
            }))
        }
    }
}

/// Of several tasks of a host on one network the one that answered best: one that does not may be about to end.
fn best(paths: Vec<Path>) -> Vec<Path> {
    let mut best: BTreeMap<(NetworkId, NodeId), Path> = BTreeMap::new();
    for path in paths {
        let rank = |path: &Path| (path.outcome.round_trip.is_some(), path.outcome.largest);
        match best.get(&(path.network, path.peer)) {
            Some(known) if rank(known) >= rank(&path) => {}
            _ => drop(best.insert((path.network, path.peer), path)),
        }
    }
    best.into_values().collect()
}

fn to_wire(path: &Path) -> v1::NetworkPath {
    let round_trip = path.outcome.round_trip.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1));
    v1::NetworkPath {
        node_id: Vec::new(),
        network_id: path.network.to_vec(),
        peer_id: path.peer.to_vec(),
        address: address_to_wire(path.address),
        round_trip_us: round_trip.unwrap_or_default(),
        largest: path.outcome.largest,
        mtu: path.mtu,
    }
}
