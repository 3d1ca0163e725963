//! Does what the plan says, and takes it back when its time is over.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use turmoil::Sim;

use crate::host;
use crate::plan::{Fault, Plan, Unsynced, Who};
use crate::wire;
use crate::world::World;

/// How long a hand-over may take.
const HAND_OVER: Duration = Duration::from_secs(2);

/// Something that is wrong until a moment.
struct Lasting {
    until: Duration,
    what: What,
}

enum What {
    /// Messages from the first of each pair to the second do not arrive.
    Cut(BTreeSet<(u64, u64)>),
    Down(u64),
    SlowDisk(u64),
    Loss,
    Lag,
}

/// See the module.
pub(crate) struct Faults {
    world: Rc<World>,
    plan: Plan,
    forgets: u64,
    begun: Duration,
    next: usize,
    lasting: Vec<Lasting>,
    cut: BTreeSet<(u64, u64)>,
    pub(crate) crashes: usize,
}

impl Faults {
    pub(crate) fn new(world: Rc<World>, plan: Plan, forgets: u64) -> Self {
        let (lasting, cut) = (Vec::new(), BTreeSet::new());
        Self { world, plan, forgets, begun: Duration::ZERO, next: 0, lasting, cut, crashes: 0 }
    }

    /// The world as it is while nothing is wrong.
    pub(crate) fn calm(&self, sim: &mut Sim<'_>) {
        sim.set_fail_rate(0.0);
        sim.set_max_message_latency(self.plan.latency);
        for (disk, sync) in self.world.disks.values().zip(&self.plan.sync) {
            disk.set_flush_delay(*sync);
        }
    }

    /// The plan's times count from now.
    pub(crate) fn begin(&mut self, now: Duration) {
        self.begun = now;
    }

    /// Ends what is over, begins what is due.
    pub(crate) fn advance(&mut self, sim: &mut Sim<'_>) {
        let now = sim.elapsed();
        let (over, rest) = std::mem::take(&mut self.lasting).into_iter().partition(|it| it.until <= now);
        self.lasting = rest;
        let over: Vec<Lasting> = over;
        for lasting in over {
            self.end(sim, &lasting.what);
        }
        while let Some((_, fault)) = self.plan.faults.get(self.next).filter(|(at, _)| self.begun + *at <= now).cloned()
        {
            self.next += 1;
            self.world.note(|| format!("fault: {fault:?}"));
            self.begin_fault(sim, fault);
        }
    }

    /// Ends everything.
    pub(crate) fn heal(&mut self, sim: &mut Sim<'_>) {
        for lasting in std::mem::take(&mut self.lasting) {
            self.end(sim, &lasting.what);
        }
        self.calm(sim);
    }

    fn leader(&self) -> u64 {
        let running = self.world.running.borrow();
        running.iter().find(|(_, it)| it.status.borrow().leads()).map_or(1, |(id, _)| *id)
    }

    fn resolve(&self, who: Who) -> u64 {
        match who {
            Who::This(id) => id,
            Who::Leader => self.leader(),
        }
    }

    /// Every way from one of these managers to one of the others.
    fn ways_from(&self, side: &[u64]) -> BTreeSet<(u64, u64)> {
        let others = |id: &u64| !side.contains(id);
        let all = 1..=self.plan.managers;
        all.filter(others).flat_map(|other| side.iter().map(move |one| (*one, other))).collect()
    }

    fn begin_fault(&mut self, sim: &mut Sim<'_>, fault: Fault) {
        let (now, all) = (sim.elapsed(), self.world.running.borrow().clone());
        match fault {
            Fault::Cut { side, lasts } => self.cut(sim, &side, now + lasts),
            Fault::CutLeader { lasts } => self.cut(sim, &[self.leader()], now + lasts),
            Fault::Mute { who, lasts } => {
                let ways = self.ways_from(&[self.resolve(who)]);
                self.lasting.push(Lasting { until: now + lasts, what: What::Cut(ways) });
                self.apply_cuts(sim);
            }
            Fault::Crash { who, lasts, unsynced } => {
                for id in who.into_iter().map(|who| self.resolve(who)).collect::<BTreeSet<_>>() {
                    self.crash(sim, id, now + lasts, unsynced);
                }
            }
            Fault::SlowDisk { who, sync, lasts } => {
                let id = self.resolve(who);
                self.world.disks[&id].set_flush_delay(sync);
                self.lasting.push(Lasting { until: now + lasts, what: What::SlowDisk(id) });
            }
            Fault::Loss { per_mille, lasts } => {
                sim.set_fail_rate(f64::from(per_mille) / 1000.0);
                self.lasting.push(Lasting { until: now + lasts, what: What::Loss });
            }
            Fault::Lag { longest, lasts } => {
                sim.set_max_message_latency(longest);
                self.lasting.push(Lasting { until: now + lasts, what: What::Lag });
            }
            Fault::ClockStep { who, seconds } => host::step_clock(self.resolve(who), seconds * 1_000_000),
            // It is tried on the leader's own runtime, and may fail.
            Fault::HandOver => {
                if let Some(manager) = all.get(&self.leader()) {
                    manager.hand_over.send_replace(Some(HAND_OVER));
                }
            }
        }
    }

    fn cut(&mut self, sim: &mut Sim<'_>, side: &[u64], until: Duration) {
        let ways = self.ways_from(side).into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect();
        self.lasting.push(Lasting { until, what: What::Cut(ways) });
        self.apply_cuts(sim);
    }

    /// Cuts may overlap: a way is open when none of them closes it.
    fn apply_cuts(&mut self, sim: &Sim<'_>) {
        let wanted: BTreeSet<(u64, u64)> = self.lasting.iter().flat_map(|it| it.what.cut().iter().copied()).collect();
        for (from, to) in self.cut.difference(&wanted) {
            sim.repair_oneway(wire::host(*from), wire::host(*to));
        }
        for (from, to) in wanted.difference(&self.cut) {
            sim.partition_oneway(wire::host(*from), wire::host(*to));
        }
        self.cut = wanted;
    }

    fn crash(&mut self, sim: &mut Sim<'_>, id: u64, until: Duration, unsynced: Unsynced) {
        if self.world.running.borrow_mut().remove(&id).is_none() {
            return;
        }
        self.crashes += 1;
        sim.crash(wire::host(id));
        let disk = &self.world.disks[&id];
        if let Unsynced::Kept(percent) = unsynced {
            disk.keep_unflushed(disk.unflushed() * percent / 100);
        }
        disk.crash();
        if self.forgets > 0 {
            disk.forget(self.forgets);
        }
        self.lasting.push(Lasting { until, what: What::Down(id) });
    }

    fn end(&mut self, sim: &mut Sim<'_>, what: &What) {
        match what {
            What::Cut(_) => self.apply_cuts(sim),
            What::Down(id) => {
                self.world.note(|| format!("manager {id} is started again"));
                sim.bounce(wire::host(*id));
            }
            What::SlowDisk(id) => {
                let usual = usize::try_from(*id).ok().and_then(|id| self.plan.sync.get(id - 1));
                self.world.disks[id].set_flush_delay(usual.copied().unwrap_or_default());
            }
            What::Loss => {
                sim.set_fail_rate(0.0);
            }
            What::Lag => {
                sim.set_max_message_latency(self.plan.latency);
            }
        }
    }
}

impl What {
    fn cut(&self) -> &BTreeSet<(u64, u64)> {
        static NONE: BTreeSet<(u64, u64)> = BTreeSet::new();
        match self {
            Self::Cut(ways) => ways,
            Self::Down(_) | Self::SlowDisk(_) | Self::Loss | Self::Lag => &NONE,
        }
    }
}
