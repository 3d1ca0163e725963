//! 200 tasks at once on one node: on an overlay, next to the same on the host's network, by skep and by Swarm. (Swarm's own
//! overlays need IPVS, which not every kernel has.)

use anyhow::Result;

use super::Net;
use crate::cgroup::Hierarchies;
use crate::command::run;
use crate::contest::{self, Network, Series, Side};
use crate::metric;
use crate::report::Peer;
use crate::skep::{Skep, lab_command};
use crate::swarm::Swarm;

const REPLICAS: u64 = 200;
/// Of skep's.
const ROUNDS: u32 = 3;
/// Of Swarm's, which take a minute each.
const PEER_ROUNDS: u32 = 1;
/// With room for tasks that have not ended yet.
const CREATE_NETWORK: [&str; 6] = ["network", "create", "--driver", "overlay", "--subnet", "10.200.0.0/16"];
const NETWORK: &str = "bench";

/// [`metric::NET_START`].
pub(super) fn measure(net: &Net<'_>) -> Result<()> {
    let cgroups = Hierarchies::discover()?;
    let image = contest::image();
    let skep = Skep::start(net.run.clone()).and_then(|skep| {
        run(skep.command(&CREATE_NETWORK).arg(NETWORK))?;
        Ok(Some(Box::new(skep) as _))
    });
    let mut skep = Side::new("skep", &cgroups, skep);
    let swarm = Swarm::start(net.run, &cgroups).map(|swarm| swarm.map(|swarm| Box::new(swarm) as _));
    let mut swarm = Side::new("Docker Swarm", &cgroups, swarm);
    let overlay =
        Series::many(&metric::START_200_OVERLAY, &metric::START_200_OVERLAY_CPU, REPLICAS, Network::Overlay(NETWORK));
    let host = Series::many(&metric::START_200_HOST, &metric::START_200_HOST_CPU, REPLICAS, Network::Host);
    for side in [&mut skep, &mut swarm] {
        side.attempt("warming up", |it, _| it.warm_up(&image.archive()));
    }
    for round in 1..=ROUNDS {
        for series in [&overlay, &host] {
            skep.attempt(series.metric.name, |it, samples| it.round(series, round, samples));
        }
        if round <= PEER_ROUNDS {
            swarm.attempt(host.metric.name, |it, samples| it.round(&host, round, samples));
        }
    }
    let pairs = [
        (&metric::START_200_OVERLAY, &metric::START_200_HOST, Some(1.0 / 1.3), Some(15.0)),
        (&metric::START_200_OVERLAY_CPU, &metric::START_200_HOST_CPU, None, None),
    ];
    for (on_overlay, on_host, least, least_of_swarm) in pairs {
        let own = skep.samples.figure(on_host);
        let swarm_figure = swarm.samples.figure(on_host);
        let peer = || swarm_figure.map(|value| Peer { name: format!("{}, host's network", swarm.name), value });
        if net.selection.has(on_overlay) {
            let figure = skep.samples.figure(on_overlay);
            let host = own.map(|value| Peer { name: "skep, host's network".to_owned(), value });
            net.ratio(on_overlay, figure, host, least)?;
            net.ratio(on_overlay, figure, peer(), least_of_swarm)?;
        }
        if net.selection.has(on_host) {
            net.ratio(on_host, own, peer(), None)?;
        }
    }
    // What follows has the machine for itself.
    run(lab_command(net.run).arg("down"))?;
    cgroups.destroy(&net.run.daemon_cgroup())
}
