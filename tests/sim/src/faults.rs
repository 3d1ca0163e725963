//! Does what the plan says, and takes it back when its time is over.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use turmoil::Sim;

use skep_raft::Start;
use skep_raft::sim::SimDisk;

use crate::history::{Held, Recovery};
use crate::host;
use crate::plan::{Fault, Plan, Unsynced, Who};
use crate::run::Lies;
use crate::wire;
use crate::world::{Order, World};

/// How long a hand-over may take.
const HAND_OVER: Duration = Duration::from_secs(2);
/// From the loss of the majority to the recovery: longer than any answer is on its way.
const TO_RECOVER: Duration = Duration::from_millis(4600);

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
    FullDisk(u64),
    Loss,
    Lag,
    /// The majority is lost; this one will recover, and these disks are gone.
    Lost {
        survivor: u64,
        gone: Vec<u64>,
    },
}

/// See the module.
pub(crate) struct Faults {
    world: Rc<World>,
    plan: Plan,
    lies: Lies,
    /// Nobody is started: the majority is lost, and not yet recovered from.
    lost: bool,
    begun: Duration,
    next: usize,
    lasting: Vec<Lasting>,
    cut: BTreeSet<(u64, u64)>,
    pub(crate) crashes: usize,
    /// Disks that were full for a while.
    pub(crate) full: usize,
}

impl Faults {
    pub(crate) fn new(world: Rc<World>, plan: Plan, lies: Lies) -> Self {
        let (lasting, cut) = (Vec::new(), BTreeSet::new());
        Self { world, plan, lies, lost: false, begun: Duration::ZERO, next: 0, lasting, cut, crashes: 0, full: 0 }
    }

    /// The world as it is while nothing is wrong.
    pub(crate) fn calm(&self, sim: &mut Sim<'_>) {
        sim.set_fail_rate(0.0);
        sim.set_max_message_latency(self.plan.latency);
        for host in 1..=self.plan.managers {
            self.world.seat(host, |seat| seat.disk.set_flush_delay(self.world.usual_sync(host)));
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
        self.reopen(sim);
        while let Some((_, fault)) = self.plan.faults.get(self.next).filter(|(at, _)| self.begun + *at <= now).cloned()
        {
            self.next += 1;
            self.world.note(|| format!("fault: {fault:?}"));
            self.begin_fault(sim, fault);
        }
    }

    /// Starts hosts again that asked for it.
    pub(crate) fn reopen(&mut self, sim: &mut Sim<'_>) {
        if self.lost {
            return;
        }
        for host in self.world.due() {
            self.world.note(|| format!("host {host} is started again"));
            sim.bounce(wire::host(host));
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
                self.world.seat(id, |seat| seat.disk.set_flush_delay(sync));
                self.lasting.push(Lasting { until: now + lasts, what: What::SlowDisk(id) });
            }
            Fault::FullDisk { who, room, lasts } => {
                let id = self.resolve(who);
                self.full += 1;
                self.world.seat(id, |seat| {
                    seat.tight = true;
                    seat.disk.set_room(Some(room));
                    if self.lies.swallows {
                        seat.disk.swallow_when_full();
                    }
                });
                self.lasting.push(Lasting { until: now + lasts, what: What::FullDisk(id) });
            }
            Fault::Demote { who } => self.order(Order::Demote(self.resolve(who))),
            Fault::Remove { who } => self.order(Order::Remove(self.resolve(who))),
            Fault::Promote { who } => self.order(Order::Promote(self.resolve(who))),
            Fault::Lose { survivor, disks, unsynced } => self.lose(sim, survivor, disks, unsynced),
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

    fn order(&self, order: Order) {
        self.world.orders.borrow_mut().push_back(order);
    }

    /// All hosts stop, and stay so until one recovers. Nothing happens where nobody could: a group that is just changing,
    /// or has too few voters for a majority to be lost.
    fn lose(&mut self, sim: &mut Sim<'_>, survivor: u64, disks: usize, unsynced: Unsynced) {
        let running: Vec<u64> = self.world.running.borrow().keys().copied().collect();
        let votes = |host: &u64| {
            let all = self.world.running.borrow();
            let status = all[host].status.borrow();
            let members = &status.membership;
            members.voters.contains_key(&status.id) && members.voters.len() > 1 && !members.changing
        };
        let voters: Vec<u64> = running.iter().copied().filter(votes).collect();
        let Some(survivor) = voters.iter().find(|host| **host >= survivor).or(voters.first()).copied() else { return };
        if voters.len() != running.len() || self.lost || self.world.history.borrow().recovery.is_some() {
            self.world.note(|| "nobody is lost: the managers are just changing".to_owned());
            return;
        }
        let now = sim.elapsed();
        for host in &running {
            self.crash(sim, *host, now, unsynced);
        }
        // Those that crashed before are down too. They are started by the recovery.
        self.lasting.retain(|it| !matches!(it.what, What::Down(_)));
        let others = (1..=self.plan.managers).filter(|host| *host != survivor);
        let gone = others.take(disks).collect();
        self.lost = true;
        self.lasting.push(Lasting { until: now + TO_RECOVER, what: What::Lost { survivor, gone } });
    }

    /// What `skep swarm init --force-new-cluster` does on the survivor's host; the others' operators come after it.
    fn recover(&mut self, survivor: u64, gone: &[u64]) -> anyhow::Result<()> {
        self.lost = false;
        let now = self.world.now();
        for host in 1..=self.plan.managers {
            self.world.seat(host, |seat| {
                // Space was made before.
                seat.disk.set_room(None);
                if gone.contains(&host) {
                    seat.leave(host);
                }
                seat.reopen = Some(if host == survivor { now } else { now + 700_000 * host });
            });
        }
        let raft_id = self.world.seat(survivor, |seat| seat.raft_id).unwrap_or_default();
        let config = host::config(&self.world, survivor, raft_id, Start::Existing);
        let state = skep_manager::sim::replay(&config)?;
        let kept: Held = state.image_names().map(|name| (name.name.clone(), name.digest.clone())).collect();
        let requests = state.requests().map(|request| request.request.value()).collect();
        self.world.history.borrow_mut().recovery = Some(Recovery { at: now, kept, requests });
        if self.lies.loses > 0 {
            self.world.seat(survivor, |seat| seat.disk.forget(self.lies.loses));
        }
        let recovered = skep_raft::recover(&config, &wire::address(survivor))?;
        self.world.note(|| format!("manager {survivor} recovers alone: {recovered:?}; lost for good: {gone:?}"));
        // The state calls them workers now.
        let others = (1..=self.plan.managers).filter(|host| *host != survivor);
        self.world.demoted.borrow_mut().extend(others);
        Ok(())
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
        self.world.seat(id, |seat| {
            let disk = &seat.disk;
            if let Unsynced::Kept(percent) = unsynced {
                disk.keep_unflushed(disk.unflushed() * percent / 100);
            }
            disk.crash();
            if self.lies.forgets > 0 {
                disk.forget(self.lies.forgets);
            }
            if self.lies.returns {
                seat.disk = SimDisk::new();
                seat.returns = true;
            }
        });
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
                self.world.seat(*id, |seat| seat.disk.set_flush_delay(self.world.usual_sync(*id)));
            }
            What::FullDisk(id) => self.world.seat(*id, |seat| seat.disk.set_room(None)),
            What::Lost { survivor, gone } => {
                if let Err(error) = self.recover(*survivor, gone) {
                    self.world.wrong.borrow_mut().push(format!("manager {survivor} cannot recover: {error:#}"));
                }
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
            _ => &NONE,
        }
    }
}
