//! `make bench-net`: what networks cost and carry. Traffic is measured between hosts that this program makes, each with
//! the binary's `skep netd`, driven over its socket as the agent drives it; starts and rolling updates on a lab, by the
//! command line. What a figure ought to be is said on stderr, with those that are not.

mod bare;
mod cipher;
mod fifty;
mod machine;
mod names;
mod netd;
mod paths;
mod rolling;
mod scale;
mod start;
mod table;
mod traffic;
mod underlay;
mod vip;

use std::cell::{Cell, RefCell};
use std::fs;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

use crate::cgroup::Hierarchies;
use crate::metric::{self, Better, Metric, Selection};
use crate::report::{Peer, Report};
use crate::run::Run;

/// What all sections share.
struct Net<'a> {
    run: &'a Run,
    selection: &'a Selection,
    runtime: Runtime,
    report: RefCell<&'a mut Report>,
    verdicts: RefCell<Vec<Verdict>>,
    complete: Cell<bool>,
}

/// Whether a figure is what it ought to be.
struct Verdict {
    met: bool,
    text: String,
}

/// One section: the metrics that it measures, and how.
type Section = (&'static [&'static Metric], fn(&Net<'_>) -> Result<()>);

/// Those that cannot go wrong for all come first: a lab that fails ends the program.
const SECTIONS: [Section; 9] = [
    (metric::NET_PLAIN, paths::plain),
    (metric::NET_ENCRYPTED, paths::encrypted),
    (metric::NET_FIFTY, fifty::measure),
    (metric::NET_VIP, vip::measure),
    (metric::NET_NAMES, names::measure),
    (metric::NET_ENDPOINTS, scale::endpoints),
    (metric::NET_TABLES, scale::tables),
    (metric::NET_START, start::measure),
    (metric::NET_ROLLING, rolling::measure),
];

/// Measures what is selected of it; false if something is missing.
pub(crate) fn measure(run: &Run, selection: &Selection, report: &mut Report) -> Result<bool> {
    join_cgroup(run)?;
    let runtime = Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    let (report, verdicts) = (RefCell::new(report), RefCell::default());
    let net = Net { run, selection, runtime, report, verdicts, complete: Cell::new(true) };
    let watch = machine::Watch::start();
    for (metrics, section) in SECTIONS {
        if !selection.has_any(metrics) {
            continue;
        }
        let name = metrics.first().map_or("", |metric| metric.name);
        watch.say(&format!("{name} and the like"))?;
        if let Err(error) = section(&net) {
            eprintln!("bench: {name} and the like: {error:#}");
            net.complete.set(false);
        }
    }
    watch.say("the end")?;
    net.say_verdicts();
    Ok(net.complete.get())
}

/// What this process starts can be found, and is ended by the supervisor.
fn join_cgroup(run: &Run) -> Result<()> {
    let procs = Hierarchies::discover()?.create(&run.peer_cgroup().join("net"))?.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("cannot join {}", procs.display()))
}

impl Net<'_> {
    /// A figure next to a peer's. `least`: what the ratio ought to be.
    fn ratio(&self, metric: &Metric, skep: Option<f64>, peer: Option<Peer>, least: Option<f64>) -> Result<()> {
        let Some(skep) = skep else {
            self.complete.set(false);
            return self.report.borrow_mut().missing(metric, peer.as_ref());
        };
        self.report.borrow_mut().add(metric, skep, peer.as_ref())?;
        if let (Some(least), Some(peer)) = (least, peer) {
            let ratio = metric.ratio(skep, peer.value);
            let text = format!("{} by {}'s: {ratio:.2}, wanted {least:.2} at least", metric.name, peer.name);
            self.verdicts.borrow_mut().push(Verdict { met: ratio >= least, text });
        }
        Ok(())
    }

    /// A figure alone. `most`: what it ought to be.
    fn at_most(&self, metric: &Metric, skep: Option<f64>, most: Option<f64>) -> Result<()> {
        self.ratio(metric, skep, None, None)?;
        if let (Some(skep), Some(most)) = (skep, most) {
            let text = format!("{}: {skep:.2} {}, wanted {most} at most", metric.name, metric.unit);
            self.verdicts.borrow_mut().push(Verdict { met: skep <= most, text });
        }
        debug_assert!(metric.better == Better::Less, "a limit from above is for costs");
        Ok(())
    }

    fn say_verdicts(&self) {
        let verdicts = self.verdicts.borrow();
        for verdict in verdicts.iter() {
            eprintln!("bench: {}: {}", if verdict.met { "met" } else { "MISSED" }, verdict.text);
        }
        let missed = verdicts.iter().filter(|verdict| !verdict.met).count();
        eprintln!("bench: {} of {} figures are as wanted", verdicts.len() - missed, verdicts.len());
    }
}
