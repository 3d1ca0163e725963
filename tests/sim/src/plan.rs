//! What goes wrong in a simulation, and when: made from the seed alone, before it begins.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// How long things go wrong.
pub(crate) const STORM: Duration = Duration::from_secs(14);

/// A manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    This(u64),
    /// Whoever leads when it happens; the first one if nobody does.
    Leader,
}

/// What a crash does to what was written and not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    Lost,
    /// The first so many percent of it are kept.
    Kept(usize),
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// These managers and the others do not reach each other.
    Cut { side: Vec<u64>, lasts: Duration },
    /// The leader reaches nobody, and nobody reaches it.
    CutLeader { lasts: Duration },
    /// What this one sends does not arrive at the other managers; what they send does arrive.
    Mute { who: Who, lasts: Duration },
    /// The host stops at once, and starts again.
    Crash { who: Vec<Who>, lasts: Duration, unsynced: Unsynced },
    /// Every sync takes this long.
    SlowDisk { who: Who, sync: Duration, lasts: Duration },
    /// Of a thousand messages so many are lost, with everything that is on the way between the two hosts.
    Loss { per_mille: u32, lasts: Duration },
    /// Messages take up to this long.
    Lag { longest: Duration, lasts: Duration },
    /// The wall clock jumps.
    ClockStep { who: Who, seconds: i64 },
    /// The leader is told to hand over.
    HandOver,
    /// So many bytes are free on a disk, until somebody makes space.
    FullDisk { who: Who, room: u64, lasts: Duration },
    /// An operator demotes a manager.
    Demote { who: Who },
    /// An operator removes a manager's node by force; its host joins again as another node.
    Remove { who: Who },
    /// An operator promotes a node, whatever it is.
    Promote { who: Who },
    /// All hosts stop. The disks of so many are lost; one of the others recovers the swarm, and whoever else there is comes
    /// back with what it had.
    Lose { survivor: u64, disks: usize, unsynced: Unsynced },
}

/// What a seed's storm has beside what every one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kinds {
    members: bool,
    disks: bool,
}

/// Everything that a seed decides beforehand.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) managers: u64,
    pub(crate) clients: u64,
    /// Whether a host that does not answer refuses connections, or is silent.
    pub(crate) refuses: bool,
    /// Longest delay of a message while nothing is wrong.
    pub(crate) latency: Duration,
    /// How long each manager's disk syncs while nothing is wrong.
    pub(crate) sync: Vec<Duration>,
    /// When, counted from the storm's begin, and what. In order.
    pub(crate) faults: Vec<(Duration, Fault)>,
}

fn millis(rng: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.gen_range(range))
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let managers = if rng.gen_bool(0.65) { 3 } else { 5 };
        let clients = rng.gen_range(2..5);
        let refuses = rng.gen_bool(0.5);
        let latency = millis(&mut rng, 2..21);
        let sync = (0..managers).map(|_| millis(&mut rng, 0..8)).collect();
        let kinds = Kinds { members: rng.gen_bool(0.5), disks: rng.gen_bool(0.4) };
        let lose = rng.gen_bool(0.15).then(|| millis(&mut rng, 2000..6000));
        let mut faults = Vec::new();
        // From a calm storm to one in which nothing ever rests.
        let pause = rng.gen_range(300..2500);
        let mut at = Duration::ZERO;
        loop {
            at += millis(&mut rng, 0..2 * pause);
            if at >= STORM {
                break;
            }
            let fault = fault(&mut rng, managers, kinds);
            faults.push((at, fault));
        }
        if let Some(at) = lose {
            let survivor = rng.gen_range(1..=managers);
            // Of those that are left one recovers, and at most one comes back: never a majority without it.
            let disks = usize::try_from(managers).unwrap_or_default() - rng.gen_range(1..3);
            faults.push((at, Fault::Lose { survivor, disks, unsynced: unsynced(&mut rng) }));
            faults.sort_by_key(|(at, _)| *at);
        }
        Self { managers, clients, refuses, latency, sync, faults }
    }
}

/// A storm of one kind, for tests of what it once found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// The leader is cut off, just before another one comes back that was cut off long enough to stand for election at once.
    CutLeader,
    /// The leader's host stops and starts again before anybody notices.
    Restart,
    /// Every disk is full while writes are on their way to it, and all hosts stop before there is space again.
    FullDisks,
}

impl Plan {
    /// The same managers, clients and network as in the whole plan.
    pub(crate) fn only(seed: u64, only: Only) -> Self {
        let whole = Self::new(seed);
        let mut rng = StdRng::seed_from_u64(!seed);
        let mut at = Duration::from_millis(500);
        let mut faults = Vec::new();
        while at < STORM {
            match only {
                Only::CutLeader => {
                    let side = vec![rng.gen_range(1..=whole.managers)];
                    let lasts = millis(&mut rng, 1200..1800);
                    faults.push((at, Fault::Cut { side, lasts }));
                    let cut = at + lasts - millis(&mut rng, 0..400);
                    faults.push((cut, Fault::CutLeader { lasts: millis(&mut rng, 1200..1800) }));
                    at += millis(&mut rng, 4000..4600);
                }
                Only::Restart => {
                    let (who, lasts) = (vec![Who::Leader], millis(&mut rng, 2..60));
                    faults.push((at, Fault::Crash { who, lasts, unsynced: Unsynced::Lost }));
                    at += millis(&mut rng, 600..900);
                }
                Only::FullDisks => {
                    let sync = millis(&mut rng, 80..160);
                    let full = at + Duration::from_millis(600);
                    let lasts = Duration::from_millis(1600);
                    let each = |fault: fn(Who, Duration, Duration) -> Fault| {
                        (1..=whole.managers).map(move |id| fault(Who::This(id), sync, lasts))
                    };
                    faults.extend(each(|who, sync, lasts| Fault::SlowDisk { who, sync, lasts }).map(|it| (at, it)));
                    faults.extend(each(|who, _, lasts| Fault::FullDisk { who, room: 0, lasts }).map(|it| (full, it)));
                    let who = (1..=whole.managers).map(Who::This).collect();
                    let crash = Fault::Crash { who, lasts: millis(&mut rng, 200..600), unsynced: Unsynced::Lost };
                    faults.push((full + 3 * sync, crash));
                    at += millis(&mut rng, 4000..4600);
                }
            }
        }
        Self { faults, ..whole }
    }
}

fn who(rng: &mut StdRng, managers: u64) -> Who {
    if rng.gen_bool(0.4) { Who::Leader } else { Who::This(rng.gen_range(1..=managers)) }
}

/// Some of all, but not all.
fn some(rng: &mut StdRng, managers: u64) -> Vec<u64> {
    let mut all: Vec<u64> = (1..=managers).collect();
    all.shuffle(rng);
    all.truncate(rng.gen_range(1..usize::try_from(managers).unwrap_or(usize::MAX)));
    all
}

fn fault(rng: &mut StdRng, managers: u64, kinds: Kinds) -> Fault {
    if kinds.members && rng.gen_bool(0.35) {
        return members(rng, managers);
    }
    let lasts = millis(rng, 100..4000);
    if kinds.disks && rng.gen_bool(0.2) {
        // Nothing at all, which writes under way meet; or around the bytes that are to stay free.
        let most = if rng.gen_bool(0.5) { 2 << 10 } else { 40 << 10 };
        return Fault::FullDisk { who: who(rng, managers), room: rng.gen_range(0..most), lasts };
    }
    match rng.gen_range(0..100) {
        0..14 => Fault::Cut { side: some(rng, managers), lasts },
        14..28 => Fault::CutLeader { lasts },
        28..38 => Fault::Mute { who: who(rng, managers), lasts },
        38..56 => Fault::Crash { who: crashed(rng, managers), lasts, unsynced: unsynced(rng) },
        // Back before anybody has noticed.
        56..68 => Fault::Crash { who: crashed(rng, managers), lasts: millis(rng, 5..250), unsynced: unsynced(rng) },
        68..78 => Fault::SlowDisk { who: who(rng, managers), sync: millis(rng, 20..600), lasts },
        78..85 => Fault::Loss { per_mille: rng.gen_range(1..30), lasts },
        85..90 => Fault::Lag { longest: millis(rng, 30..150), lasts },
        90..95 => Fault::ClockStep { who: who(rng, managers), seconds: rng.gen_range(-3600..3600) },
        _ => Fault::HandOver,
    }
}

fn members(rng: &mut StdRng, managers: u64) -> Fault {
    let who = who(rng, managers);
    match rng.gen_range(0..10) {
        0..4 => Fault::Demote { who },
        4..6 => Fault::Remove { who },
        // Nobody leads as a worker: chosen among all hosts.
        _ => Fault::Promote { who: Who::This(rng.gen_range(1..=managers)) },
    }
}

fn crashed(rng: &mut StdRng, managers: u64) -> Vec<Who> {
    match rng.gen_range(0..10) {
        0..6 => vec![who(rng, managers)],
        6..8 => some(rng, managers).into_iter().map(Who::This).collect(),
        _ => (1..=managers).map(Who::This).collect(),
    }
}

fn unsynced(rng: &mut StdRng) -> Unsynced {
    if rng.gen_bool(0.5) { Unsynced::Lost } else { Unsynced::Kept(rng.gen_range(0..101)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_plan_and_all_faults_occur() {
        assert_eq!(Plan::new(7).faults, Plan::new(7).faults);
        let all: Vec<Fault> = (0..100).flat_map(|seed| Plan::new(seed).faults).map(|(_, fault)| fault).collect();
        let kinds: std::collections::HashSet<_> = all.iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), 14);
        assert!((0..100).any(|seed| Plan::new(seed).managers == 5));
    }
}
