//! The same rounds for every orchestrator, turn by turn, so that what disturbs the machine disturbs all of them: create
//! a service of n sleeping containers, watch until all run, look at memory, remove it, watch until all are gone.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use skep_tests::{Image, busybox};

use crate::cgroup::Hierarchies;
use crate::command::{finished, quiet, run, wait_for};
use crate::host_process::{self, in_container};
use crate::metric::{self, Metric, Selection};
use crate::report::{Peer, Report};
use crate::run::Run;
use crate::samples::Samples;
use crate::skep::Skep;
use crate::swarm::Swarm;

/// An orchestrator of one node, up and idle. The run's supervisor takes it down.
pub(crate) trait Orchestrator {
    /// With its version.
    fn name(&self) -> String;
    /// Loads a `docker save` archive into its image store.
    fn load(&self, archive: &Path) -> Command;
    /// `service create --detach` of containers that sleep, and die at once when stopped.
    fn create(&self, service: &str, replicas: u64, network: Network) -> Command;
    /// `service rm`.
    fn remove(&self, service: &str) -> Command;
    /// Replicas that the manager reports as running; 0 if it does not know the service.
    fn running(&self, service: &str) -> Result<u64>;
    /// Whether nothing is left of removed services: no tasks, no containers.
    fn is_clean(&self) -> Result<bool>;
    /// Creates a secret of each name: each list by a writer of its own, one after the other, all writers at once. Returns
    /// when the last one is acknowledged.
    fn create_secrets(&self, names: &[Vec<String>], data: &[u8]) -> Result<()>;
    /// Cgroup of all its processes and its containers'.
    fn cgroup(&self) -> &Path;
    /// A cgroup below that belongs to the surroundings, not to the orchestrator.
    fn surroundings(&self) -> Option<&Path>;
    /// The last [`LOG_LINES`] of the daemon's log.
    fn log(&self) -> String;
}

/// The containers' network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// Without a `--network` flag: what a user gets who asks for nothing. Each container has a network namespace of its
    /// own with both; Swarm also joins it to a bridge.
    Default,
    /// `--network host`: no network is made, so that both do the same.
    Host,
    /// An overlay of this name.
    Overlay(&'static str),
}

/// Name of the image in every orchestrator's store.
const IMAGE: &str = "busybox:bench";

/// What its containers run.
pub(crate) fn image() -> Image {
    busybox(IMAGE)
}

/// The flags and arguments of `service create`, which are the same for all.
pub(crate) fn service_args(service: &str, replicas: u64, network: Network) -> Vec<String> {
    let replicas = replicas.to_string();
    let mut args = vec!["--name", service, "--replicas", &replicas, "--stop-signal", "SIGKILL"];
    match network {
        Network::Default => {}
        Network::Host => args.extend(["--network", "host"]),
        Network::Overlay(name) => args.extend(["--network", name]),
    }
    args.extend([IMAGE, "sleep", "1000000"]);
    args.into_iter().map(str::to_owned).collect()
}

/// Writers of secrets, what each writes in a round, and rounds.
const SECRET_WRITERS: usize = 16;
const SECRETS_EACH: usize = 250;
const SECRET_ROUNDS: usize = 3;
const SECRET_BYTES: usize = 64;

/// Of a daemon's log, when its side fails.
pub(crate) const LOG_LINES: usize = 20;

/// The number that figures of one container are taken from.
const MANY: u64 = 50;
/// Time for an idle daemon to finish what its start has left to do.
const CALM: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Many come first: their figure of memory is that of a fresh daemon, whose heap no earlier round has widened. The
/// manager is asked more seldom where it has more to list: asking costs it time.
const SERIES: [Series; 4] = [
    Series::new(&metric::START_50, MANY, Network::Default, 3, Duration::from_millis(10)),
    Series::new(&metric::START_50_HOST, MANY, Network::Host, 3, Duration::from_millis(10)),
    Series::new(&metric::START_10, 10, Network::Default, 3, Duration::from_millis(5)),
    Series::new(&metric::START_1, 1, Network::Default, 9, Duration::from_millis(2)),
];

/// Rounds that are alike.
pub(crate) struct Series {
    /// Of the time from the creation of the service until all of it runs.
    pub(crate) metric: &'static Metric,
    replicas: u64,
    network: Network,
    rounds: u32,
    /// How often the manager is asked whether all run.
    ask_again: Duration,
    /// Of the CPU time of a replica.
    cpu: Option<&'static Metric>,
}

impl Series {
    const fn new(metric: &'static Metric, replicas: u64, network: Network, rounds: u32, ask_again: Duration) -> Self {
        Self { metric, replicas, network, rounds, ask_again, cpu: None }
    }

    /// Rounds of many replicas, as many as the caller makes. `cpu` is of each of them, as [`metric::START_CPU`].
    pub(crate) const fn many(metric: &'static Metric, cpu: &'static Metric, replicas: u64, network: Network) -> Self {
        Self { cpu: Some(cpu), ..Self::new(metric, replicas, network, 0, LOOK_AGAIN) }
    }

    /// Whether CPU, memory and the end are measured too.
    fn is_full(&self) -> bool {
        *self.metric == metric::START_50
    }

    fn is_selected(&self, selection: &Selection) -> bool {
        let full = [&metric::START_CPU, &metric::STOP_50, &metric::MEMORY_CONTAINER];
        selection.has(self.metric) || self.is_full() && selection.has_any(&full)
    }
}

/// Measures all selected metrics of [`metric::CONTAINERS`]; false if skep lacks one.
pub(crate) fn measure(run: &Run, selection: &Selection, report: &mut Report) -> Result<bool> {
    let cgroups = Hierarchies::discover()?;
    let image = image();
    let mut skep = Side::new("skep", &cgroups, Skep::start(run.clone()).map(|skep| Some(Box::new(skep) as _)));
    let swarm = Swarm::start(run, &cgroups).map(|swarm| swarm.map(|swarm| Box::new(swarm) as _));
    let mut swarm = Side::new("Docker Swarm", &cgroups, swarm);
    let mut sides = [&mut skep, &mut swarm];
    if selection.has(&metric::MEMORY_IDLE) {
        thread::sleep(CALM);
        sides.iter_mut().for_each(|side| side.attempt("idle memory", Contestant::idle_memory));
    }
    sides.iter_mut().for_each(|side| side.attempt("warming up", |it, _| it.warm_up(&image.archive())));
    for series in SERIES.iter().filter(|series| series.is_selected(selection)) {
        for round in 1..=series.rounds {
            for side in &mut sides {
                let what = format!("{}, round {round}", series.metric.name);
                side.attempt(&what, |it, samples| it.round(series, round, samples));
            }
        }
    }
    // Last: they stay, and would be memory.
    for round in (1..=SECRET_ROUNDS).filter(|_| selection.has(&metric::SECRET_CREATE)) {
        for side in &mut sides {
            side.attempt(&format!("secrets, round {round}"), |it, samples| it.secrets(round, samples));
        }
    }
    let mut complete = true;
    for metric in metric::CONTAINERS.iter().filter(|metric| selection.has(metric)) {
        let peer = swarm.samples.figure(metric).map(|value| Peer { name: swarm.name.clone(), value });
        match skep.samples.figure(metric) {
            Some(value) => report.add(metric, value, peer.as_ref())?,
            None => {
                complete = false;
                report.missing(metric, peer.as_ref())?;
            }
        }
    }
    Ok(complete)
}

/// An orchestrator's place in the contest: empty once it has failed or if it is not installed.
pub(crate) struct Side<'a> {
    pub(crate) name: String,
    contestant: Option<Contestant<'a>>,
    pub(crate) samples: Samples,
}

impl<'a> Side<'a> {
    pub(crate) fn new(kind: &str, cgroups: &'a Hierarchies, started: Result<Option<Box<dyn Orchestrator>>>) -> Self {
        let orchestrator = started.unwrap_or_else(|error| {
            eprintln!("{kind} does not come up: {error:#}");
            None
        });
        let name = orchestrator.as_ref().map_or(kind.to_owned(), |orchestrator| orchestrator.name());
        let contestant = orchestrator.map(|orchestrator| Contestant { orchestrator, cgroups });
        Self { name, contestant, samples: Samples::default() }
    }

    /// One step; who fails is out, and keeps what it has.
    pub(crate) fn attempt(&mut self, what: &str, step: impl FnOnce(&Contestant<'a>, &mut Samples) -> Result<()>) {
        let Some(contestant) = &self.contestant else { return };
        if let Err(error) = step(contestant, &mut self.samples) {
            eprintln!("{}: {what}: {error:#}\n{}", self.name, contestant.orchestrator.log());
            self.contestant = None;
        }
    }
}

/// An orchestrator that takes part.
pub(crate) struct Contestant<'a> {
    orchestrator: Box<dyn Orchestrator>,
    cgroups: &'a Hierarchies,
}

impl Contestant<'_> {
    fn idle_memory(&self, samples: &mut Samples) -> Result<()> {
        let memory = host_process::memory(&self.own_processes());
        ensure!(memory.pss > 0, "no process is found in {}", self.orchestrator.cgroup().display());
        eprintln!("{}: idle RSS {:.1} MB", self.orchestrator.name(), megabytes(memory.rss));
        samples.add(&metric::MEMORY_IDLE, megabytes(memory.pss));
        Ok(())
    }

    /// Secrets a second.
    fn secrets(&self, round: usize, samples: &mut Samples) -> Result<()> {
        let name = |writer: usize, number: usize| format!("bench-{round}-{writer}-{number}");
        let names: Vec<Vec<String>> =
            (0..SECRET_WRITERS).map(|writer| (0..SECRETS_EACH).map(|number| name(writer, number)).collect()).collect();
        let started = Instant::now();
        self.orchestrator.create_secrets(&names, &[b'x'; SECRET_BYTES])?;
        let seconds = started.elapsed().as_secs_f64();
        samples.add(&metric::SECRET_CREATE, (SECRET_WRITERS * SECRETS_EACH) as f64 / seconds);
        Ok(())
    }

    /// The image is loaded, unpacked, and has run once: what follows measures starts, not first times.
    pub(crate) fn warm_up(&self, archive: &Path) -> Result<()> {
        run(&mut self.orchestrator.load(archive))?;
        let first = Series::new(&metric::START_1, 1, Network::Default, 1, LOOK_AGAIN);
        self.round(&first, 0, &mut Samples::default())
    }

    /// One service, from creation to end.
    pub(crate) fn round(&self, series: &Series, round: u32, samples: &mut Samples) -> Result<()> {
        let group = self.orchestrator.cgroup();
        let service = format!("bench-{}-{round}", series.replicas);
        let memory_before = self.settled_memory()?;
        let cpu_before = self.cgroups.cpu_time(group)?;
        let started = self.start(&service, series)?;
        let cpu = self.cgroups.cpu_time(group)?.saturating_sub(cpu_before);
        samples.add(series.metric, started.as_secs_f64());
        // A manager that reports too much would win for nothing.
        let processes = self.container_processes() as u64;
        let replicas = series.replicas;
        ensure!(processes >= replicas, "{replicas} replicas are reported as running, but {processes} processes run");
        if let Some(metric) = series.cpu.or(series.is_full().then_some(&metric::START_CPU)) {
            samples.add(metric, cpu.as_secs_f64() * 1000.0 / replicas as f64);
        }
        if series.is_full() && round == 1 {
            let grown = self.settled_memory()?.saturating_sub(memory_before);
            samples.add(&metric::MEMORY_CONTAINER, grown as f64 / 1024.0 / replicas as f64);
        }
        let stopped = self.stop(&service)?;
        if series.is_full() {
            samples.add(&metric::STOP_50, stopped.as_secs_f64());
        }
        wait_for("nothing to be left of the service", Duration::from_millis(50), || self.orchestrator.is_clean())
    }

    /// From the start of the command until all replicas are reported as running.
    fn start(&self, service: &str, series: &Series) -> Result<Duration> {
        let mut command = self.orchestrator.create(service, series.replicas, series.network);
        let started = Instant::now();
        let mut child = quiet(&mut command).spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut failed = false;
        wait_for("the replicas to run", series.ask_again, || {
            failed = failed || child.try_wait()?.is_some_and(|status| !status.success());
            Ok(failed || self.orchestrator.running(service)? >= series.replicas)
        })?;
        let took = started.elapsed();
        finished(&command, &child.wait_with_output()?)?;
        Ok(took)
    }

    /// From the start of the command until no process of a container is left.
    fn stop(&self, service: &str) -> Result<Duration> {
        let started = Instant::now();
        run(&mut self.orchestrator.remove(service))?;
        wait_for("the containers to end", LOOK_AGAIN, || Ok(self.container_processes() == 0))?;
        Ok(started.elapsed())
    }

    fn container_processes(&self) -> usize {
        let pids = self.cgroups.pids(self.orchestrator.cgroup());
        pids.into_iter().filter(|pid| in_container(*pid)).count()
    }

    /// Daemons, monitors and helpers, without containers and surroundings.
    fn own_processes(&self) -> Vec<i32> {
        let around = self.orchestrator.surroundings().map(|group| self.cgroups.pids(group)).unwrap_or_default();
        let pids = self.cgroups.pids(self.orchestrator.cgroup());
        pids.into_iter().filter(|pid| !around.contains(pid) && !in_container(*pid)).collect()
    }

    /// PSS in bytes of the orchestrator's processes, once short-lived helpers are gone.
    fn settled_memory(&self) -> Result<u64> {
        let mut last = Vec::new();
        wait_for("processes to come to rest", CALM / 3, || {
            let now = self.own_processes();
            let same = now == last;
            last = now;
            Ok(same)
        })?;
        Ok(host_process::memory(&last).pss)
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}
