//! What overlays carry between two hosts: plain ones next to VXLAN as one makes it with ip(8), encrypted ones next to
//! the cipher's limit and others' userspace WireGuard. All paths are there from the start, and are measured turn by turn.

use anyhow::Result;
use skep_netlink::Namespace;

use super::Net;
use super::bare::{self, Bare, Program};
use super::cipher;
use super::netd::Netd;
use super::table::{Network, Row};
use super::traffic::Path;
use super::underlay::{Host, Underlay};
use crate::metric::{self, Metric};
use crate::report::Peer;
use crate::samples::{Samples, median};

/// Of what is compared with a bound that is near: more of them tell more than longer ones.
const MANY: u32 = 5;
/// Of what is far from its bound.
const FEW: u32 = 3;

/// Two hosts with a netd each, and a network with a task on each.
struct Pair<'a> {
    netds: Vec<Netd<'a>>,
    sandboxes: Vec<Namespace>,
    network: Network,
}

impl<'a> Pair<'a> {
    fn start(net: &'a Net<'_>, hosts: &[Host], number: u8, encrypted: bool) -> Result<Self> {
        let network = Network::new(number, encrypted);
        let mut pair = Self { netds: Vec::new(), sandboxes: Vec::new(), network };
        for host in hosts {
            let netd = Netd::start(net.run, &net.runtime, &format!("pair{number}-{}", host.number), host)?;
            netd.apply(pair.network.whole(1, &[1, 2], [1, 2].map(|host| Row::serving(host, host.into())).into_iter()))?;
            pair.sandboxes.push(netd.attach(pair.network.attach(host.number.into()))?);
            pair.netds.push(netd);
        }
        Ok(pair)
    }

    fn path(&'a self) -> Result<Path<'a>> {
        Path::of_skep(&self.netds, &self.sandboxes, self.network.address(2))
    }
}

/// One figure of a path.
type Measure = fn(&Path<'_>) -> Result<Vec<(&'static Metric, f64)>>;

/// What is measured by it, in how many rounds, and how.
type Figure<'a> = (&'a [&'a Metric], u32, Measure);

/// Each figure of each path in each round: what disturbs the machine disturbs all.
fn rounds(net: &Net<'_>, paths: &[Path<'_>], all: &[Figure<'_>]) -> Result<Vec<Samples>> {
    let mut samples: Vec<Samples> = paths.iter().map(|_| Samples::default()).collect();
    for (_, rounds, measure) in all.iter().filter(|(metrics, ..)| net.selection.has_any(metrics)) {
        for round in 0..*rounds {
            // Who is first in a round is last in the next.
            let order: Vec<usize> =
                if round % 2 == 0 { (0..paths.len()).collect() } else { (0..paths.len()).rev().collect() };
            for at in order {
                for (metric, value) in measure(&paths[at])? {
                    samples[at].add(metric, value);
                }
            }
        }
    }
    Ok(samples)
}

fn tcp_plain(path: &Path<'_>) -> Result<Vec<(&'static Metric, f64)>> {
    Ok(vec![(&metric::PLAIN_TCP_1, path.tcp(1)?.gbits)])
}

fn tcp_plain_4(path: &Path<'_>) -> Result<Vec<(&'static Metric, f64)>> {
    Ok(vec![(&metric::PLAIN_TCP_4, path.tcp(4)?.gbits)])
}

/// [`metric::NET_PLAIN`].
pub(super) fn plain(net: &Net<'_>) -> Result<()> {
    let underlay = Underlay::new()?;
    let hosts = [underlay.host(1)?, underlay.host(2)?];
    let pair = Pair::start(net, &hosts, 5, false)?;
    let bare = Bare::vxlan([&hosts[0], &hosts[1]])?;
    let paths = [pair.path()?, Path::of_peer("ip link VXLAN", &bare)?];
    let measures: [Figure<'_>; 2] =
        [(&[&metric::PLAIN_TCP_1], MANY, tcp_plain), (&[&metric::PLAIN_TCP_4], MANY, tcp_plain_4)];
    let samples = rounds(net, &paths, &measures)?;
    for metric in metric::NET_PLAIN.iter().filter(|metric| net.selection.has(metric)) {
        let peer = peer(&paths[1], &samples[1], metric);
        net.ratio(metric, samples[0].figure(metric), peer, Some(0.95))?;
    }
    Ok(())
}

fn tcp(path: &Path<'_>) -> Result<Vec<(&'static Metric, f64)>> {
    let tcp = path.tcp(1)?;
    Ok(vec![(&metric::ENCRYPTED_TCP_1, tcp.gbits), (&metric::ENCRYPTED_CPU, tcp.cpu_per_gbit)])
}

fn tcp_4(path: &Path<'_>) -> Result<Vec<(&'static Metric, f64)>> {
    Ok(vec![(&metric::ENCRYPTED_TCP_4, path.tcp(4)?.gbits)])
}

fn small(path: &Path<'_>) -> Result<Vec<(&'static Metric, f64)>> {
    Ok(vec![(&metric::ENCRYPTED_UDP_64, path.udp(64)?)])
}

fn large(path: &Path<'_>) -> Result<Vec<(&'static Metric, f64)>> {
    Ok(vec![(&metric::ENCRYPTED_UDP_1300, path.udp(1300)?)])
}

fn ping(path: &Path<'_>) -> Result<Vec<(&'static Metric, f64)>> {
    Ok(vec![(&metric::ENCRYPTED_PING, path.ping()?)])
}

/// What skep's figure is to be, by the others'.
fn least(metric: &Metric) -> Option<f64> {
    match metric {
        metric if [&metric::ENCRYPTED_UDP_64, &metric::ENCRYPTED_UDP_1300].contains(&metric) => Some(1.5),
        metric if *metric == metric::ENCRYPTED_PING => Some(1.0),
        _ => None,
    }
}

/// [`metric::NET_ENCRYPTED`].
pub(super) fn encrypted(net: &Net<'_>) -> Result<()> {
    let underlay = Underlay::new()?;
    let hosts = [underlay.host(1)?, underlay.host(2)?];
    let pair = Pair::start(net, &hosts, 6, true)?;
    let programs = bare::programs();
    let device = |(number, program): (u8, &Program)| Bare::wireguard([&hosts[0], &hosts[1]], program, number);
    let bares = (1..).zip(&programs).map(device).collect::<Result<Vec<_>>>()?;
    let mut paths = vec![pair.path()?];
    for (bare, program) in bares.iter().zip(&programs) {
        paths.push(Path::of_peer(&program.name, bare)?);
    }
    let limit = (0..FEW).map(|_| Ok(cipher::limit()?.gbits)).collect::<Result<Vec<f64>>>()?;
    let measures: [Figure<'_>; 5] = [
        (&[&metric::ENCRYPTED_PING], MANY, ping),
        (&[&metric::ENCRYPTED_TCP_1, &metric::ENCRYPTED_CPU], FEW, tcp),
        (&[&metric::ENCRYPTED_TCP_4], FEW, tcp_4),
        (&[&metric::ENCRYPTED_UDP_64], FEW, small),
        (&[&metric::ENCRYPTED_UDP_1300], FEW, large),
    ];
    let samples = rounds(net, &paths, &measures)?;
    let limit = median(&limit).map(|value| Peer { name: "two-ended cipher limit".to_owned(), value });
    if net.selection.has(&metric::ENCRYPTED_TCP_1) {
        net.ratio(&metric::ENCRYPTED_TCP_1, samples[0].figure(&metric::ENCRYPTED_TCP_1), limit, Some(0.5))?;
    }
    for metric in metric::NET_ENCRYPTED.iter().filter(|metric| net.selection.has(metric)) {
        for (path, others) in paths.iter().zip(&samples).skip(1) {
            net.ratio(metric, samples[0].figure(metric), peer(path, others, metric), least(metric))?;
        }
        if paths.len() == 1 && *metric != &metric::ENCRYPTED_TCP_1 {
            net.ratio(metric, samples[0].figure(metric), None, least(metric))?;
        }
    }
    Ok(())
}

fn peer(path: &Path<'_>, samples: &Samples, metric: &Metric) -> Option<Peer> {
    samples.figure(metric).map(|value| Peer { name: path.name.clone(), value })
}
