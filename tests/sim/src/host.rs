//! A manager's host: starts the manager on its disk, serves the others and the clients. A crash of the host drops all of
//! this; the next start goes on from the disk. Around the manager it does what the daemon does with its seat: it joins,
//! asks to be let in, ends the manager when Raft or the certificate say so, and opens it again when its disk was full.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use skep_manager::sim::SimManager;
use skep_manager::{Ended, peers};
use skep_raft::{Config, Consensus, RaftId, Start};
use tokio::sync::watch;

use crate::agent::{self, Agent};
use crate::gate;
use crate::gate::Told;
use crate::wire;
use crate::world::{Phase, Running, Seat, World};

/// The manager that makes the swarm.
const FIRST: u64 = 1;
/// Bytes that are to stay free on a disk: less than [`Config`]'s, as nothing here is large.
pub(crate) const FREE_BYTES: u64 = 16 << 10;
/// Pause before a seat is opened again, as the daemon's first one.
const AGAIN: Duration = Duration::from_secs(1);
/// An operator needs so long to let a node leave, and join again.
const OPERATOR: Duration = Duration::from_millis(700);

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

/// What a manager on this host is started with.
pub(crate) fn config(world: &World, host: u64, raft_id: RaftId, start: Start) -> Config {
    let mut config = Config::new("/simulated", raft_id, start);
    config.sim_disk = Some(world.seat(host, |seat| seat.disk.clone()));
    // Small, so that snapshots, purges and comparisons happen often.
    config.limits.snapshot_after_changes = 60;
    config.limits.keep_entries = 20;
    config.limits.snapshot_chunk_bytes = 4 << 10;
    config.limits.digest_every = 8;
    config.limits.free_bytes = FREE_BYTES;
    config
}

/// The host's software.
pub(crate) async fn run(id: u64, world: Rc<World>) -> turmoil::Result {
    HOSTS.with_borrow_mut(|hosts| hosts.insert(tokio::runtime::Handle::current().id(), id));
    let agent = Agent::new(Rc::clone(&world), id);
    let (raft_id, start) = match world.seat(id, |seat| (seat.raft_id, seat.disk.holds_a_node(), seat.returns)) {
        (Some(raft_id), true, _) => (raft_id, Start::Existing),
        (Some(raft_id), false, true) => (raft_id, Start::Join),
        _ if id == FIRST && world.phase() == Phase::Forming => {
            (skep_manager::FIRST_RAFT_ID, Start::Bootstrap { address: wire::address(id) })
        }
        _ => (enter(&agent, &world, id).await, Start::Join),
    };
    let founds = matches!(start, Start::Bootstrap { .. });
    let node = world.seat(id, |seat| {
        seat.raft_id = Some(raft_id);
        seat.disk.set_flush_delay(world.usual_sync(id));
        seat.node
    });
    let config = config(&world, id, raft_id, start);
    let manager = match SimManager::start(config, node, &wire::address(id), wire::connect(world.refuses)).await {
        Ok(manager) => manager,
        Err(error) if is_disk_full(&error) => {
            world.note(|| format!("manager {id} does not start: {error:#}"));
            return reopen(&world, id, AGAIN).await;
        }
        Err(error) => return Err(error.into()),
    };
    world.note(|| format!("manager {id} runs as {raft_id}"));
    let (raft, store, nodes) = (manager.raft(), manager.store().clone(), manager.nodes());
    let hand_over = watch::channel(None).0;
    tokio::task::spawn_local(hand_overs(raft.clone(), hand_over.subscribe()));
    let running = Running { raft_id, store: store.clone(), status: raft.status(), hand_over };
    world.running.borrow_mut().insert(id, Rc::new(running));
    if founds {
        manager.make_swarm(node, &wire::address(id)).await?;
    }
    let why = tokio::select! {
        biased;
        ended = manager.ended() => Why::Ended(ended),
        told = agent.is_no_manager() => Why::Told(told),
        ended = wire::serve(Rc::clone(&world), store.clone(), manager.routes()) => return ended,
        ended = gate::serve(store, nodes) => return ended,
    };
    world.note(|| format!("manager {id} ends: {why:?}"));
    world.running.borrow_mut().remove(&id);
    raft.shutdown().await;
    after(&world, id, why).await
}

/// Why a manager ends.
#[derive(Debug)]
enum Why {
    Ended(Ended),
    Told(Told),
}

/// What the daemon, or its operator, does about a manager that has ended.
async fn after(world: &World, id: u64, why: Why) -> turmoil::Result {
    match why {
        Why::Ended(Ended::DiskFull(_)) if world.seat(id, |seat| seat.tight) => reopen(world, id, AGAIN).await,
        Why::Ended(Ended::Removed) | Why::Told(Told::Worker | Told::None | Told::Manager) => {
            world.seat(id, Seat::give_up);
            reopen(world, id, Duration::ZERO).await
        }
        Why::Ended(Ended::LeftBehind(_)) if world.history.borrow().recovery.is_some() => {
            world.seat(id, |seat| seat.leave(id));
            reopen(world, id, OPERATOR).await
        }
        Why::Told(Told::Denied) => {
            world.seat(id, |seat| seat.leave(id));
            reopen(world, id, OPERATOR).await
        }
        Why::Ended(ended) => {
            world.wrong.borrow_mut().push(format!("manager {id} stopped by itself: {ended:?}"));
            std::future::pending().await
        }
    }
}

/// The host's software is started again after a while.
async fn reopen(world: &World, id: u64, pause: Duration) -> turmoil::Result {
    let at = world.now() + u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
    world.seat(id, |seat| seat.reopen = Some(at));
    std::future::pending().await
}

/// Joins, waits until the node is to be a manager, and asks for its Raft id.
async fn enter(agent: &Agent, world: &World, id: u64) -> RaftId {
    let connect = wire::connect(world.refuses);
    loop {
        let manager = agent.become_manager().await;
        let entered = peers::enter(connect(&wire::address(manager)), &wire::address(id)).await;
        let entered = entered.map(|entered| entered.raft_id);
        world.note(|| format!("host {id} asked manager {manager} to be let in: {entered:?}"));
        if let Ok(raft_id) = entered {
            world.entered.set(world.entered.get() + 1);
            return raft_id;
        }
        tokio::time::sleep(agent::PAUSE).await;
    }
}

fn is_disk_full(error: &anyhow::Error) -> bool {
    let is_full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
    skep_manager::is_disk_full(error) || error.chain().any(|cause| cause.downcast_ref().is_some_and(is_full))
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
