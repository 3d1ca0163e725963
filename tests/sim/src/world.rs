//! What the driver, the managers' hosts and the clients of one simulation share. One thread; nothing here is waited for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use skep_manager::store::Store;
use skep_raft::Status;
use skep_raft::sim::SimDisk;
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
}

/// A running manager.
pub(crate) struct Running {
    pub(crate) store: Store,
    pub(crate) status: watch::Receiver<Status>,
    /// The leader is to hand over within this time. Taken by the host, on its own runtime.
    pub(crate) hand_over: watch::Sender<Option<Duration>>,
}

/// See the module.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) managers: u64,
    /// Whether a host that does not answer refuses connections, or is silent.
    pub(crate) refuses: bool,
    pub(crate) disks: BTreeMap<u64, SimDisk>,
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
            disks: (1..=managers).map(|id| (id, SimDisk::new())).collect(),
            running: RefCell::default(),
            history: RefCell::default(),
            busy: Cell::new(0),
            probed: RefCell::default(),
            phase: Cell::new(Phase::Forming),
            now: Cell::new(0),
            trace: RefCell::new(Trace { hash: Sha256::new(), printed }),
        })
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
