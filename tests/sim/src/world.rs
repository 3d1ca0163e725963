//! What the driver, the managers' hosts and the clients of one simulation share. One thread; nothing here is waited for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use skep_manager::store::Store;
use skep_proto::id::NodeId;
use skep_raft::sim::SimDisk;
use skep_raft::{RaftId, Status};
use tokio::sync::watch;

use crate::history::{History, Micros};
use crate::plan::Plan;

/// How far a simulation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The managers find each other.
    Forming,
    /// Clients work, and things break.
    Storm,
    /// Everything was healed; clients have stopped or are about to.
    Rest,
    /// All agree: every manager is tried.
    Probe,
}

/// A running manager.
pub(crate) struct Running {
    pub(crate) raft_id: RaftId,
    pub(crate) store: Store,
    pub(crate) status: watch::Receiver<Status>,
    /// The leader is to hand over within this time. Taken by the host, on its own runtime.
    pub(crate) hand_over: watch::Sender<Option<Duration>>,
}

/// A host's seat among the managers: what its disk, its certificate and its operator keep through crashes.
pub(crate) struct Seat {
    /// Its node: another one each time that it joins anew.
    pub(crate) node: NodeId,
    /// How often it joined.
    joins: u64,
    /// Its manager's id in Raft; `None`: it was not let in yet.
    pub(crate) raft_id: Option<RaftId>,
    pub(crate) disk: SimDisk,
    /// Its disk is full, or was of late: its manager may have stopped for that.
    pub(crate) tight: bool,
    /// Planted: its files are gone, and it uses its id in Raft nevertheless.
    pub(crate) returns: bool,
    /// Its software is to be started again at this time.
    pub(crate) reopen: Option<Micros>,
}

impl Seat {
    fn new(host: u64) -> Self {
        let mut seat = Self {
            node: NodeId::new(0),
            joins: 0,
            raft_id: None,
            disk: SimDisk::new(),
            tight: false,
            returns: false,
            reopen: None,
        };
        seat.leave(host);
        seat
    }

    /// The manager goes, with its files: what comes after it has another id.
    pub(crate) fn give_up(&mut self) {
        (self.raft_id, self.disk, self.tight) = (None, SimDisk::new(), false);
    }

    /// The node leaves the swarm; the host joins it anew.
    pub(crate) fn leave(&mut self, host: u64) {
        self.give_up();
        self.joins += 1;
        self.node = NodeId::new(u128::from(host + 1000 * self.joins));
    }
}

/// What operators do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Promote(u64),
    Demote(u64),
    /// `node rm --force`; the host joins again by itself.
    Remove(u64),
}

/// See the module.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) managers: u64,
    /// Whether a host that does not answer refuses connections, or is silent.
    pub(crate) refuses: bool,
    /// How long each host's disk syncs while nothing is wrong.
    pub(crate) sync: Vec<Duration>,
    seats: RefCell<BTreeMap<u64, Seat>>,
    /// What operators are to do next.
    pub(crate) orders: RefCell<VecDeque<Order>>,
    /// Hosts whose nodes operators demoted, and did not promote again.
    pub(crate) demoted: RefCell<BTreeSet<u64>>,
    /// Orders that operators are carrying out.
    pub(crate) orders_open: Cell<usize>,
    /// Until then an order may take effect whose answer was lost.
    pub(crate) unsettled_until: Cell<Micros>,
    /// How often a host's manager was given another id in Raft.
    pub(crate) entered: Cell<usize>,
    /// What must not be, as hosts saw it.
    pub(crate) wrong: RefCell<Vec<String>>,
    pub(crate) running: RefCell<BTreeMap<u64, Rc<Running>>>,
    pub(crate) history: RefCell<History>,
    /// Clients at work.
    pub(crate) busy: Cell<usize>,
    /// What the last probe found; `None` while it is under way.
    pub(crate) probed: RefCell<Option<Result<(), String>>>,
    phase: Cell<Phase>,
    now: Cell<Micros>,
    trace: RefCell<Trace>,
}

/// Everything noteworthy, as a hash.
struct Trace {
    hash: Sha256,
    printed: bool,
}

impl World {
    pub(crate) fn new(seed: u64, plan: &Plan, printed: bool) -> Rc<Self> {
        let Plan { managers, refuses, .. } = *plan;
        Rc::new(Self {
            seed,
            managers,
            refuses,
            sync: plan.sync.clone(),
            seats: RefCell::new((1..=managers).map(|host| (host, Seat::new(host))).collect()),
            orders: RefCell::default(),
            demoted: RefCell::default(),
            orders_open: Cell::new(0),
            unsettled_until: Cell::new(0),
            entered: Cell::new(0),
            wrong: RefCell::default(),
            running: RefCell::default(),
            history: RefCell::default(),
            busy: Cell::new(0),
            probed: RefCell::default(),
            phase: Cell::new(Phase::Forming),
            now: Cell::new(0),
            trace: RefCell::new(Trace { hash: Sha256::new(), printed }),
        })
    }

    /// Looks at a host's seat, or changes it.
    pub(crate) fn seat<T>(&self, host: u64, with: impl FnOnce(&mut Seat) -> T) -> T {
        with(self.seats.borrow_mut().get_mut(&host).expect("every manager's host has a seat"))
    }

    /// How long a host's disk syncs while nothing is wrong.
    pub(crate) fn usual_sync(&self, host: u64) -> Duration {
        let index = usize::try_from(host).unwrap_or_default().checked_sub(1);
        index.and_then(|index| self.sync.get(index).copied()).unwrap_or_default()
    }

    /// Hosts whose software is to be started again by now; they are told once.
    pub(crate) fn due(&self) -> Vec<u64> {
        let now = self.now();
        let due = |(host, seat): (&u64, &mut Seat)| {
            seat.reopen.is_some_and(|at| at <= now).then(|| {
                seat.reopen = None;
                *host
            })
        };
        self.seats.borrow_mut().iter_mut().filter_map(due).collect()
    }

    /// Whether operators have nothing more to do, and nothing that they did may come late.
    pub(crate) fn is_ordered(&self) -> bool {
        let nothing = self.orders.borrow().is_empty() && self.orders_open.get() == 0;
        nothing && self.demoted.borrow().is_empty() && self.unsettled_until.get() <= self.now()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.note(|| format!("phase: {phase:?}"));
        self.phase.set(phase);
    }

    pub(crate) fn now(&self) -> Micros {
        self.now.get()
    }

    pub(crate) fn set_now(&self, elapsed: Duration) {
        self.now.set(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
    }

    /// Puts a line into the trace.
    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        let mut trace = self.trace.borrow_mut();
        let line = format!("{:>10.3} {}\n", Duration::from_micros(self.now()).as_secs_f64() * 1e3, line());
        trace.hash.update(line.as_bytes());
        if trace.printed {
            // At once: what happens next may end the process.
            print!("{line}");
        }
    }

    /// The hash of what happened so far.
    pub(crate) fn trace_hash(&self) -> String {
        let mut hex = String::new();
        for byte in self.trace.borrow().hash.clone().finalize() {
            // Writing to a string does not fail.
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }
}
