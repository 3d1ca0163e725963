//! Runs one seed: builds the hosts, lets things go wrong, heals everything, and asks the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use skep_raft::sim::Bug;
use skep_raft::{Membership, RaftId};

use crate::client::Client;
use crate::faults::Faults;
use crate::history::{Held, History};
use crate::host;
use crate::operator;
use crate::oracle;
use crate::plan::{Only, Plan, STORM};
use crate::watch::Watch;
use crate::wire;
use crate::world::{Phase, Running, World};

/// How long the managers may take to form their group.
const FORMING: Duration = Duration::from_secs(15);
/// How long they may take to agree and take writes after everything was healed.
const HEALING: Duration = Duration::from_secs(90);
/// How long clients may take to give up what they are doing.
const CLIENTS: Duration = Duration::from_secs(40);
/// Pause between two looks at whether the managers agree.
const LOOK: Duration = Duration::from_millis(50);
/// When the simulated world begins: 2025-01-01.
const EPOCH: Duration = Duration::from_secs(1_735_689_600);

/// Planted bugs, each of which the simulation must notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lies {
    /// A crash takes this many log entries that were synced.
    pub forgets: u64,
    /// A full disk throws writes away, and answers that they are done.
    pub swallows: bool,
    /// A recovery from a lost quorum takes this many log entries that were there.
    pub loses: u64,
    /// A manager whose files were lost comes back under its old id in Raft: a voter that forgot its log and its votes
    /// still counts.
    pub returns: bool,
    /// One that was there once.
    pub bug: Option<Bug>,
}

/// What is asked of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What is planted.
    pub lies: Lies,
    /// A storm of one kind.
    pub only: Option<Only>,
    /// Print what happens.
    pub trace: bool,
}

/// What a run came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Repeats it exactly.
    pub seed: u64,
    /// Of everything noteworthy that happened, with its time.
    pub trace_hash: String,
    /// What is wrong. Empty: nothing.
    pub wrong: Vec<String>,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Writes of which clients could not tell.
    pub unknown: usize,
    /// Reads that were answered.
    pub reads: usize,
    /// How often another manager came to lead.
    pub leaders: usize,
    /// Crashes of a host.
    pub crashes: usize,
    /// How often a manager was let in: each had another id in Raft.
    pub entered: usize,
    /// How often a disk was full.
    pub full: usize,
    /// Recoveries from a lost quorum.
    pub recoveries: usize,
    /// Simulated time.
    pub simulated: Duration,
}

/// Runs one seed on this thread. It repeats exactly as the first one of a process only: tokio ends a crashed host's tasks
/// in an order that follows from a counter which all of the process's tasks share.
pub fn run(seed: u64, options: Options) -> Report {
    let plan = options.only.map_or_else(|| Plan::new(seed), |only| Plan::only(seed, only));
    let world = World::new(seed, &plan, options.trace);
    let mut driver = Driver::new(Rc::clone(&world), plan, options);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| driver.drive()));
    let panicked = result.is_err();
    let mut wrong = match result {
        Ok(Ok(())) => Vec::new(),
        Ok(Err(why)) => vec![why],
        Err(panic) => vec![format!("panicked: {}", text_of(&*panic))],
    };
    wrong.append(&mut driver.watch.wrong);
    wrong.append(&mut world.wrong.borrow_mut());
    wrong.extend(driver.judgement.take().unwrap_or_default());
    for line in &wrong {
        world.note(|| format!("WRONG: {line}"));
    }
    let trace_hash = world.trace_hash();
    let (leaders, crashes, simulated) = (driver.watch.leaders(), driver.faults.crashes, driver.sim.elapsed());
    let (entered, full) = (world.entered.get(), driver.faults.full);
    if panicked {
        // It is not fit to be dropped: what panicked would panic again, and abort.
        std::mem::forget(driver);
    }
    let history = world.history.take();
    let (acknowledged, unknown) = history.count();
    let (reads, recoveries) = (history.reads.len(), usize::from(history.recovery.is_some()));
    Report {
        seed,
        trace_hash,
        wrong,
        acknowledged,
        unknown,
        reads,
        leaders,
        crashes,
        entered,
        full,
        recoveries,
        simulated,
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

struct Driver {
    sim: turmoil::Sim<'static>,
    world: Rc<World>,
    faults: Faults,
    watch: Watch,
    judgement: Option<Vec<String>>,
}

impl Driver {
    fn new(world: Rc<World>, plan: Plan, options: Options) -> Self {
        skep_raft::sim::seed(world.seed);
        skep_raft::sim::plant(options.lies.bug);
        skep_manager::sim::set_wall(host::wall_us);
        host::reset_clocks();
        let mut sim = turmoil::Builder::new()
            .rng_seed(world.seed)
            .epoch(UNIX_EPOCH + EPOCH)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(plan.latency)
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        for id in 1..=plan.managers {
            let shared = Rc::clone(&world);
            sim.host(wire::host(id), move || host::run(id, Rc::clone(&shared)));
        }
        for number in 0..plan.clients {
            let shared = Rc::clone(&world);
            world.busy.set(world.busy.get() + 1);
            sim.host(format!("c{number}"), move || client(Rc::clone(&shared), number));
        }
        let shared = Rc::clone(&world);
        sim.host("probe", move || probe(Rc::clone(&shared)));
        let shared = Rc::clone(&world);
        sim.host("operator", move || operator::run(Rc::clone(&shared)));
        let faults = Faults::new(Rc::clone(&world), plan, options.lies);
        Self { sim, world, faults, watch: Watch::default(), judgement: None }
    }

    /// One millisecond.
    fn step(&mut self) -> Result<(), String> {
        self.sim.step().map_err(|error| format!("a host ended: {error}"))?;
        self.world.set_now(self.sim.elapsed());
        self.watch.look(&self.world);
        self.faults.reopen(&mut self.sim);
        Ok(())
    }

    fn drive(&mut self) -> Result<(), String> {
        self.faults.calm(&mut self.sim);
        self.until("the managers do not form a group", FORMING, |world| {
            let running = world.running.borrow();
            let complete = running.values().filter(|it| {
                let now = it.status.borrow();
                is_complete(&now.membership, &running) && now.hears_leader
            });
            complete.count() as u64 == world.managers
        })?;
        self.world.enter(Phase::Storm);
        let end = self.sim.elapsed() + STORM;
        self.faults.begin(self.sim.elapsed());
        while self.sim.elapsed() < end {
            self.faults.advance(&mut self.sim);
            self.step()?;
        }
        self.world.enter(Phase::Rest);
        self.faults.heal(&mut self.sim);
        self.until("the managers do not agree after everything was healed", HEALING, |world| agreed(world).is_some())?;
        let clients_end = self.sim.elapsed() + CLIENTS;
        while self.world.busy.get() > 0 && self.sim.elapsed() < clients_end {
            self.step()?;
        }
        self.until("the managers do not agree when the clients are done", HEALING, |world| agreed(world).is_some())?;
        self.world.enter(Phase::Probe);
        self.until("a manager takes no write after everything was healed", HEALING, |world| {
            world.probed.borrow().is_some()
        })?;
        if let Some(Err(why)) = self.world.probed.borrow().clone() {
            return Err(why);
        }
        self.until("the managers do not agree in the end", HEALING, |world| agreed(world).is_some())?;
        let held = agreed(&self.world).unwrap_or_default();
        self.judgement = Some(oracle::judge(&self.world.history.borrow(), &held));
        Ok(())
    }

    /// Goes on until something is so; looks now and then.
    fn until(&mut self, why_not: &str, within: Duration, so: impl Fn(&World) -> bool) -> Result<(), String> {
        let end = self.sim.elapsed() + within;
        while self.sim.elapsed() < end {
            let next = self.sim.elapsed() + LOOK;
            while self.sim.elapsed() < next {
                self.step()?;
            }
            if so(&self.world) {
                return Ok(());
            }
        }
        let running = self.world.running.borrow();
        let demoted = self.world.demoted.borrow();
        let states: Vec<String> = running.iter().map(|(id, it)| format!("{id}: {:?}", it.status.borrow())).collect();
        Err(format!("{why_not}: demoted {demoted:?}; {}", states.join("; ")))
    }
}

/// Whether these members are the managers that run: all vote, and nobody else counts.
fn is_complete(members: &Membership, running: &BTreeMap<u64, Rc<Running>>) -> bool {
    let ids: BTreeSet<RaftId> = running.values().map(|manager| manager.raft_id).collect();
    members.voters.keys().copied().collect::<BTreeSet<_>>() == ids && members.learners.is_empty() && !members.changing
}

/// What all managers hold, if all run, follow one leader, and hold the same.
fn agreed(world: &World) -> Option<Held> {
    if !world.is_ordered() {
        return None;
    }
    let running = world.running.borrow();
    let mut states = BTreeMap::new();
    for (id, manager) in running.iter() {
        let status = manager.status.borrow();
        let is_settled = status.hears_leader && !status.disk_full && status.last_applied == status.last_log;
        if !is_settled || !is_complete(&status.membership, &running) {
            return None;
        }
        states.insert(*id, (status.last_applied, manager.store.state()));
    }
    let (first, others) = (states.get(&1)?, states.values());
    let same = states.len() as u64 == world.managers
        && others.clone().all(|it| it.0 == first.0 && it.1.version() == first.1.version());
    if !same {
        return None;
    }
    // The same log up to the same index: whether the same state came of it is another question.
    let digest = first.1.digest();
    if let Some((id, _)) = states.iter().find(|(_, it)| it.1.digest() != digest) {
        panic!("the states of managers 1 and {id} differ at the same log index {:?}", first.0);
    }
    Some(first.1.image_names().map(|name| (name.name.clone(), name.digest.clone())).collect())
}

async fn client(world: Rc<World>, number: u64) -> turmoil::Result {
    Client::new(Rc::clone(&world), number).run().await;
    world.busy.set(world.busy.get() - 1);
    Ok(())
}

/// Writes at every manager once the clients are done.
async fn probe(world: Rc<World>) -> turmoil::Result {
    while world.phase() != Phase::Probe {
        tokio::time::sleep(LOOK).await;
    }
    let mut client = Client::new(Rc::clone(&world), u64::MAX / 2);
    let mut result = Ok(());
    for id in 1..=world.managers {
        result = result.and(client.probe(id).await);
    }
    world.probed.replace(Some(result));
    Ok(())
}

impl History {
    /// Writes that were acknowledged, and those of which nobody can tell.
    fn count(&self) -> (usize, usize) {
        use crate::history::Outcome;
        let onces = self.onces.iter().flat_map(|it| [Some(&it.created), it.removed.as_ref(), it.repeated.as_ref()]);
        let all = self.appends.iter().map(|it| &it.outcome).chain(onces.flatten());
        all.fold((0, 0), |(done, unknown), it| match it {
            Outcome::Done(_) => (done + 1, unknown),
            Outcome::Unknown => (done, unknown + 1),
            Outcome::Never => (done, unknown),
        })
    }
}
