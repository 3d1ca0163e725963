//! What became of packets to other hosts: one finding for each host and cause, however many networks it concerns.

use std::collections::BTreeMap;
use std::net::IpAddr;

use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1::{CheckArea, MeshPeer, NetworkFinding};

use super::probe::Outcome;
use super::{About as _, error, names, warning};

/// Age of a handshake after which its keys are thrown away (WireGuard's `REJECT_AFTER_TIME`), in milliseconds.
const KEYS_LIVE_MS: i64 = 180_000;

/// How packets of a network come to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Through the encrypted mesh.
    Mesh,
    /// As they are, to this UDP port.
    Plain(u16),
}

/// Packets through a network to another host, tried.
#[derive(Clone, Debug)]
pub struct Path {
    pub network: NetworkId,
    /// The network's name.
    pub name: String,
    pub peer: NodeId,
    /// Who was to answer.
    pub address: IpAddr,
    /// What the network is to carry.
    pub mtu: u32,
    pub way: Way,
    pub outcome: Outcome,
}

/// The way to another host outside of all networks, tried.
#[derive(Clone, Debug)]
pub struct Underlay {
    /// The host's own address.
    pub address: IpAddr,
    /// Its end of the mesh, `ip:port`; empty where it has none.
    pub mesh: String,
    /// What this host's device to there carries.
    pub mtu: u32,
    pub outcome: Outcome,
}

/// What all that means.
pub fn findings(
    paths: &[Path],
    underlays: &BTreeMap<NodeId, Underlay>,
    mesh: &BTreeMap<NodeId, MeshPeer>,
    now_ms: i64,
) -> Vec<NetworkFinding> {
    let mut of_peer: BTreeMap<NodeId, Vec<&Path>> = BTreeMap::new();
    for path in paths {
        of_peer.entry(path.peer).or_default().push(path);
    }
    let mut found = Vec::new();
    for (peer, paths) in of_peer {
        let underlay = underlays.get(&peer);
        let dead: Vec<&Path> = paths.iter().copied().filter(|path| path.outcome.round_trip.is_none()).collect();
        if dead.is_empty() {
            found.extend(narrow(peer, &paths, underlay));
            continue;
        }
        let alive = |way: Way| paths.iter().any(|path| path.way == way && path.outcome.round_trip.is_some());
        let answers = underlay.is_some_and(|underlay| underlay.outcome.round_trip.is_some());
        if dead.len() == paths.len() && !answers {
            found.push(unreachable(peer, &dead, underlay));
            continue;
        }
        let mut ways: Vec<Way> = dead.iter().map(|path| path.way).collect();
        ways.sort_unstable();
        ways.dedup();
        for way in ways {
            let dead: Vec<&Path> = dead.iter().copied().filter(|path| path.way == way).collect();
            match alive(way) {
                true => found.extend(dead.iter().map(|path| silent(path))),
                false => found.push(blocked(peer, way, &dead, underlay, mesh.get(&peer), now_ms)),
            }
        }
        let alive: Vec<&Path> = paths.iter().copied().filter(|path| path.outcome.round_trip.is_some()).collect();
        found.extend(narrow(peer, &alive, underlay));
    }
    found
}

fn listed(paths: &[&Path]) -> String {
    let mut all: Vec<&str> = paths.iter().map(|path| path.name.as_str()).collect();
    all.sort_unstable();
    all.dedup();
    let noun = if all.len() == 1 { "network" } else { "networks" };
    format!("{noun} {}", names(all))
}

/// The network, where it is one only.
fn about(finding: NetworkFinding, peer: NodeId, paths: &[&Path]) -> NetworkFinding {
    let one = paths.first().map(|path| path.network).filter(|id| paths.iter().all(|path| path.network == *id));
    let finding = finding.of_peer(peer);
    match one {
        Some(network) => finding.of_network(network),
        None => finding,
    }
}

fn host(underlay: Option<&Underlay>) -> String {
    underlay.map_or_else(|| "the other host".to_owned(), |underlay| format!("the host at {}", underlay.address))
}

/// Nothing comes back at all.
fn unreachable(peer: NodeId, dead: &[&Path], underlay: Option<&Underlay>) -> NetworkFinding {
    let problem = format!("{} answers neither by itself nor through {}", host(underlay), listed(dead));
    let advice = "check that it runs, and that the network between the two hosts works";
    about(error(CheckArea::Reachability, problem, advice), peer, dead)
}

/// The host answers, and nothing comes through the networks that go this way.
fn blocked(
    peer: NodeId,
    way: Way,
    dead: &[&Path],
    underlay: Option<&Underlay>,
    mesh: Option<&MeshPeer>,
    now_ms: i64,
) -> NetworkFinding {
    let problem = format!("packets do not come through {} to {}", listed(dead), host(underlay));
    let check = "look what the check of that host finds";
    let (problem, advice) = match way {
        Way::Plain(port) => {
            (problem, format!("let UDP port {port} pass between the two hosts, in both directions; {check}"))
        }
        Way::Mesh => {
            let port = underlay.and_then(|underlay| underlay.mesh.rsplit_once(':')).map_or("51820", |(_, port)| port);
            let open = format!("let UDP port {port} pass between the two hosts, in both directions");
            match mesh {
                None => (
                    format!("{problem}: the mesh on this host does not know it"),
                    format!("{check}; its daemon tells its key when its netd runs"),
                ),
                Some(mesh) if mesh.last_handshake_ms == 0 => {
                    (format!("{problem}: the two have never agreed on keys"), format!("{open}; {check}"))
                }
                Some(mesh) if now_ms - mesh.last_handshake_ms > KEYS_LIVE_MS => {
                    let seconds = (now_ms - mesh.last_handshake_ms) / 1000;
                    (format!("{problem}: they last agreed on keys {seconds} s ago"), format!("{open}; {check}"))
                }
                Some(_) => (format!("{problem}, though they have agreed on keys"), format!("{check}; {open}")),
            }
        }
    };
    about(error(CheckArea::Reachability, problem, advice), peer, dead)
}

/// Of several networks that go the same way, this one does not work.
fn silent(path: &Path) -> NetworkFinding {
    let problem = format!("{} does not answer on network {}, though others on that host do", path.address, path.name);
    let advice = "look what the check of that host finds; if nothing, replace the task (`skep service update --force`)";
    error(CheckArea::Reachability, problem, advice).of_network(path.network).of_peer(path.peer)
}

/// Small packets come through, full ones do not.
fn narrow(peer: NodeId, paths: &[&Path], underlay: Option<&Underlay>) -> Vec<NetworkFinding> {
    let mut found = Vec::new();
    let limit = underlay.filter(|underlay| {
        underlay.outcome.round_trip.is_some()
            && underlay.outcome.largest > 64
            && underlay.outcome.largest < underlay.mtu
    });
    let narrow: Vec<&Path> = paths.iter().copied().filter(|path| path.outcome.largest < path.mtu).collect();
    let raise = |underlay: &Underlay| {
        format!("make all devices and tunnels between the two hosts carry {} bytes", underlay.mtu)
    };
    if let Some(worst) = narrow.iter().min_by_key(|path| path.outcome.largest) {
        let passes = match worst.outcome.largest {
            0..=64 => "only small ones do".to_owned(),
            largest => format!("those of up to {largest} do"),
        };
        let problem = format!(
            "packets of {} bytes do not come through {} to {}, {passes}",
            worst.mtu,
            listed(&narrow),
            host(underlay)
        );
        let again = match worst.outcome.largest {
            0..1280 => String::new(),
            largest => format!(", or make the network again with `--opt mtu={largest}`"),
        };
        let cause = match limit {
            Some(underlay) => format!("{}: it is {} now", raise(underlay), underlay.outcome.largest),
            None => "compare the MTU of both hosts' devices, and of all between them".to_owned(),
        };
        found.push(about(error(CheckArea::Mtu, problem, format!("{cause}{again}")), peer, &narrow));
    } else if let Some(underlay) = limit {
        let problem = format!(
            "this host sends up to {} bytes to {}, and only {} come through: packets of networks are cut into pieces, \
             which is slow",
            underlay.mtu,
            host(Some(underlay)),
            underlay.outcome.largest
        );
        found.push(warning(CheckArea::Mtu, problem, raise(underlay)).of_peer(peer));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skep_proto::v1::CheckSeverity;

    use super::*;

    const GOOD: Outcome = Outcome { round_trip: Some(Duration::from_micros(300)), largest: 1500 };
    const DEAD: Outcome = Outcome { round_trip: None, largest: 0 };
    const PEER: NodeId = NodeId::new(2);

    fn path(network: u128, way: Way, outcome: Outcome) -> Path {
        let address = [10, 5, 1, 2].into();
        Path {
            network: NetworkId::new(network),
            name: format!("net{network}"),
            peer: PEER,
            address,
            mtu: 1370,
            way,
            outcome,
        }
    }

    fn small(largest: u32) -> Outcome {
        Outcome { largest, ..GOOD }
    }

    fn find(paths: &[Path], underlay: Outcome, handshake: Option<i64>) -> Vec<NetworkFinding> {
        let mesh = "192.0.2.2:51999".to_owned();
        let underlay = Underlay { address: [192, 0, 2, 2].into(), mesh, mtu: 1500, outcome: underlay };
        let peer = |last_handshake_ms| MeshPeer { last_handshake_ms, ..MeshPeer::default() };
        let mesh = handshake.map(|at| (PEER, peer(at))).into_iter().collect();
        findings(paths, &[(PEER, underlay)].into(), &mesh, 1_000_000)
    }

    fn one(paths: &[Path], underlay: Outcome, handshake: Option<i64>) -> (String, String) {
        let found = find(paths, underlay, handshake);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].severity(), found[0].peer_id.clone()), (CheckSeverity::Error, PEER.to_vec()));
        (found[0].problem.clone(), found[0].advice.clone())
    }

    #[test]
    fn all_well() {
        assert_eq!(find(&[path(1, Way::Mesh, GOOD), path(2, Way::Plain(4789), GOOD)], GOOD, Some(999_000)), []);
    }

    #[test]
    fn a_host_that_is_cut_off() {
        let (problem, advice) = one(&[path(1, Way::Mesh, DEAD), path(2, Way::Plain(4789), DEAD)], DEAD, Some(0));
        assert_eq!(problem, "the host at 192.0.2.2 answers neither by itself nor through networks net1 and net2");
        assert!(advice.contains("check that it runs"));
    }

    #[test]
    fn ports_that_are_closed() {
        let (problem, advice) = one(&[path(2, Way::Plain(4789), DEAD)], GOOD, None);
        assert_eq!(problem, "packets do not come through network net2 to the host at 192.0.2.2");
        assert!(advice.starts_with("let UDP port 4789 pass between the two hosts"));
        let mesh = [path(1, Way::Mesh, DEAD), path(2, Way::Plain(4789), GOOD)];
        let (problem, advice) = one(&mesh, GOOD, Some(0));
        assert!(problem.ends_with(": the two have never agreed on keys"), "{problem}");
        assert!(advice.starts_with("let UDP port 51999 pass"), "{advice}");
        // The host answers no echo requests: what comes through another network says that it is there.
        let (problem, _) = one(&mesh, DEAD, Some(700_000));
        assert!(problem.ends_with(": they last agreed on keys 300 s ago"), "{problem}");
        assert!(one(&mesh, GOOD, None).0.ends_with("the mesh on this host does not know it"));
        assert!(one(&mesh, GOOD, Some(990_000)).0.ends_with("though they have agreed on keys"));
        let found = find(&[path(1, Way::Mesh, DEAD), path(2, Way::Plain(4789), DEAD)], GOOD, Some(0));
        assert_eq!(found.len(), 2, "each way has its own port");
    }

    #[test]
    fn one_network_of_several() {
        let (problem, _) = one(&[path(1, Way::Mesh, DEAD), path(2, Way::Mesh, GOOD)], GOOD, Some(999_000));
        assert_eq!(problem, "10.5.1.2 does not answer on network net1, though others on that host do");
    }

    #[test]
    fn large_packets_that_are_lost() {
        let (problem, advice) =
            one(&[path(1, Way::Mesh, small(1290)), path(2, Way::Mesh, small(1310))], small(1420), Some(1));
        assert_eq!(
            problem,
            "packets of 1370 bytes do not come through networks net1 and net2 to the host at 192.0.2.2, those of up to 1290 do"
        );
        assert_eq!(
            advice,
            "make all devices and tunnels between the two hosts carry 1500 bytes: it is 1420 now, or make the network again \
             with `--opt mtu=1290`"
        );
        let (problem, advice) = one(&[path(1, Way::Mesh, small(64))], GOOD, Some(1));
        assert!(problem.ends_with("only small ones do") && advice.starts_with("compare the MTU"), "{problem} {advice}");
        let found = find(&[path(1, Way::Mesh, GOOD)], small(1400), Some(1));
        assert_eq!((found.len(), found[0].severity()), (1, CheckSeverity::Warning));
        assert!(found[0].problem.contains("cut into pieces"));
    }
}
