//! A manager's host: starts the manager on its disk, serves the others and the clients. A crash of the host drops all of
//! this; the next start goes on from the disk.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use skep_manager::sim::SimManager;
use skep_raft::{Config, Consensus, Member, Start};
use tokio::sync::watch;

use crate::world::{Running, World};
use crate::{gate, wire};

/// The manager that makes the group.
const FIRST: u64 = 1;
/// How long one step of forming the group may take.
const STEP: Duration = Duration::from_secs(5);

thread_local! {
    /// The manager of each host's runtime.
    static HOSTS: RefCell<HashMap<tokio::runtime::Id, u64>> = RefCell::default();
    /// By how much each manager's wall clock is wrong, in microseconds.
    static WRONG: RefCell<HashMap<u64, i64>> = RefCell::default();
}

/// Forgets the clocks of an earlier simulation on this thread.
pub(crate) fn reset_clocks() {
    HOSTS.with_borrow_mut(HashMap::clear);
    WRONG.with_borrow_mut(HashMap::clear);
}

/// Steps the wall clock of a manager's host by so many microseconds.
pub(crate) fn step_clock(id: u64, by: i64) {
    WRONG.with_borrow_mut(|wrong| *wrong.entry(id).or_default() += by);
}

/// What the wall clock of the present host says, in microseconds since the Unix epoch.
pub(crate) fn wall_us() -> i64 {
    let truth = turmoil::since_epoch().map_or(0, |at| i64::try_from(at.as_micros()).unwrap_or(i64::MAX));
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return truth };
    let id = HOSTS.with_borrow(|hosts| hosts.get(&runtime.id()).copied());
    let wrong = id.and_then(|id| WRONG.with_borrow(|wrong| wrong.get(&id).copied()));
    truth + wrong.unwrap_or(0)
}

/// The host's software.
pub(crate) async fn run(id: u64, world: Rc<World>) -> turmoil::Result {
    HOSTS.with_borrow_mut(|hosts| hosts.insert(tokio::runtime::Handle::current().id(), id));
    let disk = world.disks[&id].clone();
    let is_new = !disk.holds_a_node();
    let start = match (is_new, id) {
        (false, _) => Start::Existing,
        (true, FIRST) => Start::Bootstrap { address: wire::address(FIRST) },
        (true, _) => Start::Join,
    };
    let mut config = Config::new("/simulated", id, start);
    config.sim_disk = Some(disk);
    // Small, so that snapshots, purges and comparisons happen often.
    config.limits.snapshot_after_changes = 60;
    config.limits.keep_entries = 20;
    config.limits.snapshot_chunk_bytes = 4 << 10;
    config.limits.digest_every = 8;
    let manager = SimManager::start(config, &wire::address(id), wire::connect(world.refuses)).await?;
    world.note(|| format!("manager {id} runs"));
    let (raft, store) = (manager.raft().clone(), manager.store().clone());
    let hand_over = watch::channel(None).0;
    tokio::task::spawn_local(hand_overs(raft.clone(), hand_over.subscribe()));
    let running = Running { store: store.clone(), status: raft.status(), hand_over };
    world.running.borrow_mut().insert(id, Rc::new(running));
    if is_new && id == FIRST {
        let others = 2..=world.managers;
        tokio::task::spawn_local(async move { form(&*raft, others).await });
    }
    tokio::select! {
        biased;
        ended = wire::serve(manager.routes()) => ended,
        ended = gate::serve(store) => ended,
    }
}

/// Hands the lead over when asked to. It may fail; the leader then leads on.
async fn hand_overs(raft: Arc<dyn Consensus<Response = Vec<u64>>>, mut asked: watch::Receiver<Option<Duration>>) {
    while asked.changed().await.is_ok() {
        let within = *asked.borrow_and_update();
        if let Some(within) = within {
            let _ = raft.transfer_leadership(None, within).await;
        }
    }
}

/// Takes the others in, one after the other, each step until it succeeds.
async fn form(raft: &dyn Consensus<Response = Vec<u64>>, others: std::ops::RangeInclusive<u64>) {
    for id in others {
        let member = || Member { id, address: wire::address(id) };
        while raft.add_learner(member(), STEP).await.is_err() {}
        let mut status = raft.status();
        let caught_up = status.wait_for(|now| now.matched.get(&id).is_some_and(|upto| *upto >= now.last_applied));
        if caught_up.await.is_err() {
            return;
        }
        while raft.promote(id, STEP).await.is_err() {}
    }
}
