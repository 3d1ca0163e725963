//! What it costs netd to keep up: endpoints made and removed, one change where many look on, tables of ten thousand.

use std::time::Instant;

use anyhow::Result;

use super::Net;
use super::netd::Netd;
use super::table::{Network, Row};
use super::underlay::Underlay;
use crate::metric::{self, Metric};
use crate::samples::Samples;

/// Tasks of the service on another host.
const BACKENDS: u32 = 1000;
/// Tasks on this host, and how many are made before the time is looked at.
const SANDBOXES: u32 = 200;
const BATCH: u32 = 40;
const CHANGES: u64 = 11;
/// Endpoints of the large network.
const ENDPOINTS: u32 = 10_000;
/// The first task here; those of the other host come before.
const HERE: u32 = 20_000;

/// What a piece of work takes.
struct Meter<'a> {
    netd: &'a Netd<'a>,
    samples: Samples,
}

impl Meter<'_> {
    /// Adds the milliseconds of wall and of netd's CPU time of `count` pieces, for each.
    fn time(&mut self, wall: &Metric, cpu: &Metric, count: u32, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let (started, before) = (Instant::now(), self.netd.cpu()?);
        work()?;
        let took = started.elapsed();
        let used = self.netd.cpu()?.saturating_sub(before);
        self.samples.add(wall, took.as_secs_f64() * 1000.0 / f64::from(count));
        self.samples.add(cpu, used.as_secs_f64() * 1000.0 / f64::from(count));
        Ok(())
    }

    fn report(&self, net: &Net<'_>, metric: &'static Metric, most: Option<f64>) -> Result<()> {
        if !net.selection.has(metric) {
            return Ok(());
        }
        net.at_most(metric, self.samples.figure(metric), most)
    }
}

/// [`metric::NET_ENDPOINTS`]: 200 sandboxes in a network with a service of 1,000 tasks, one of which comes and goes.
pub(super) fn endpoints(net: &Net<'_>) -> Result<()> {
    let underlay = Underlay::new()?;
    let host = underlay.host(1)?;
    let netd = Netd::start(net.run, &net.runtime, "endpoints", &host)?;
    let mut meter = Meter { netd: &netd, samples: Samples::default() };
    let network = Network::new(8, false);
    netd.apply(network.whole(1, &[1, 2], (1..=BACKENDS).map(|task| Row::serving(2, task))))?;
    // The first one makes the network.
    netd.attach(network.attach(HERE))?;
    let tasks: Vec<u32> = (HERE + 1..=HERE + SANDBOXES).collect();
    for batch in tasks.chunks(BATCH as usize) {
        meter.time(&metric::ATTACH_WALL, &metric::ATTACH_CPU, BATCH, || {
            batch.iter().try_for_each(|task| netd.attach(network.attach(*task)).map(drop))
        })?;
    }
    for version in 2..2 + CHANGES {
        let change = network.change(version, &Row { host: 2, task: 1, serving: version % 2 == 1 });
        meter.time(&metric::CHANGE_WALL, &metric::CHANGE_CPU, 1, || netd.apply(change))?;
    }
    for batch in tasks.chunks(BATCH as usize) {
        meter.time(&metric::DETACH_WALL, &metric::DETACH_CPU, BATCH, || {
            batch.iter().try_for_each(|task| netd.detach(*task))
        })?;
    }
    meter.report(net, &metric::ATTACH_CPU, Some(5.0))?;
    meter.report(net, &metric::ATTACH_WALL, None)?;
    meter.report(net, &metric::DETACH_CPU, None)?;
    meter.report(net, &metric::DETACH_WALL, None)?;
    meter.report(net, &metric::CHANGE_WALL, Some(20.0))?;
    meter.report(net, &metric::CHANGE_CPU, Some(20.0))
}

/// [`metric::NET_TABLES`]: a network of 10,000 tasks on other hosts, all at once and then one by one.
pub(super) fn tables(net: &Net<'_>) -> Result<()> {
    let underlay = Underlay::new()?;
    let host = underlay.host(1)?;
    let netd = Netd::start(net.run, &net.runtime, "tables", &host)?;
    let mut meter = Meter { netd: &netd, samples: Samples::default() };
    let hosts: Vec<u8> = (1..=100).collect();
    // On hosts 2 to 100.
    let rows = || (1..=ENDPOINTS).map(|task| Row::serving(u8::try_from(2 + task % 99).unwrap_or(2), task));
    for round in 0..3 {
        let network = Network::new(9 + round, false);
        netd.apply(network.whole(1, &[1], std::iter::empty()))?;
        netd.attach(network.attach(HERE))?;
        meter.time(&metric::TABLE_WALL, &metric::TABLE_CPU, 1, || netd.apply(network.whole(2, &hosts, rows())))?;
        for version in 3..8 {
            let change = network.change(version, &Row::serving(2, ENDPOINTS + u32::try_from(version)?));
            meter.time(&metric::TABLE_CHANGE_WALL, &metric::TABLE_CHANGE_CPU, 1, || netd.apply(change))?;
        }
    }
    meter.report(net, &metric::TABLE_WALL, Some(2000.0))?;
    meter.report(net, &metric::TABLE_CPU, None)?;
    meter.report(net, &metric::TABLE_CHANGE_WALL, Some(20.0))?;
    meter.report(net, &metric::TABLE_CHANGE_CPU, Some(20.0))
}
