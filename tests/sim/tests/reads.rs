//! Read barriers, where they once went wrong: of a leader that nobody follows any more, and of one that was started again
//! within its lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use skep_raft::sim::{self, Bug, SimDisk};
use skep_raft::{
    BarrierError, Config, Consensus, FatalError, Member, MessageKind, RaftNode, Snapshot, Start, StateMachine,
    Transport, TransportError,
};

/// More than any number of rounds that have pauses between them, and less than any without.
const MANY: usize = 400;

/// Counts what it applies.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl StateMachine for Count {
    type Response = ();
    type Snapshot = Count;

    fn apply(&mut self, _index: u64, _entry: &[u8]) -> Result<(), FatalError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn freeze(&self) -> Count {
        self.clone()
    }

    fn restore(&mut self, _index: u64, _from: &mut dyn std::io::Read) -> Result<(), FatalError> {
        Ok(())
    }
}

impl Snapshot for Count {
    fn write(&self, _to: &mut dyn std::io::Write) -> std::io::Result<()> {
        Ok(())
    }

    fn digest(&self) -> Option<[u8; 32]> {
        None
    }
}

/// Carries messages to the second node until it is cut; then every call fails at once.
#[derive(Clone, Default)]
struct Wire {
    other: Arc<std::sync::Mutex<Option<RaftNode<Count>>>>,
    failed: Arc<AtomicUsize>,
}

impl Transport for Wire {
    fn call(
        &self,
        target: Member,
        kind: MessageKind,
        message: Bytes,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (other, failed) = (self.other.lock().expect("no panics").clone(), Arc::clone(&self.failed));
        async move {
            let lost = |reason: String| TransportError::Failed { id: target.id, address: String::new(), reason };
            let Some(other) = other else {
                if failed.fetch_add(1, Ordering::SeqCst) >= MANY {
                    // A loop without a pause would never let time pass.
                    std::future::pending::<()>().await;
                }
                return Err(lost("cut".to_owned()));
            };
            other.handle(kind, message).await.map_err(|error| lost(error.to_string()))
        }
        .boxed()
    }
}

async fn start(id: u64, start: Start, wire: &Wire, disk: &SimDisk, count: &Count) -> RaftNode<Count> {
    let mut config = Config::new("/nowhere", id, start);
    config.sim_disk = Some(disk.clone());
    RaftNode::start_here(config, count.clone(), Arc::new(wire.clone())).await.expect("it starts")
}

const PATIENCE: Duration = Duration::from_secs(5);

/// A leader and its follower, each with its end of the wire.
async fn pair(disks: &[SimDisk; 2]) -> (RaftNode<Count>, Wire) {
    let wires = [Wire::default(), Wire::default()];
    let bootstrap = Start::Bootstrap { address: "1".to_owned() };
    let leader = start(1, bootstrap, &wires[0], &disks[0], &Count::default()).await;
    let other = start(2, Start::Join, &wires[1], &disks[1], &Count::default()).await;
    connect(&wires, &leader, &other);
    leader.add_learner(Member { id: 2, address: "2".to_owned() }, PATIENCE).await.expect("a learner");
    leader.promote(2, PATIENCE).await.expect("a voter");
    leader.read_barrier(PATIENCE).await.expect("the other one answers");
    let [wire, _] = wires;
    (leader, wire)
}

fn connect(wires: &[Wire; 2], leader: &RaftNode<Count>, other: &RaftNode<Count>) {
    *wires[0].other.lock().expect("no panics") = Some(other.clone());
    *wires[1].other.lock().expect("no panics") = Some(leader.clone());
}

/// How many calls one barrier makes while every one is refused at once.
async fn calls_of_a_barrier(bug: Option<Bug>) -> usize {
    sim::seed(1);
    sim::plant(bug);
    let (leader, wire) = pair(&[SimDisk::new(), SimDisk::new()]).await;
    *wire.other.lock().expect("no panics") = None;
    let barrier = leader.read_barrier(PATIENCE).await;
    assert!(matches!(barrier, Err(BarrierError::NoQuorum { .. })), "{barrier:?}");
    let calls = wire.failed.load(Ordering::SeqCst);
    sim::plant(None);
    calls
}

#[tokio::test(start_paused = true)]
async fn a_barrier_without_a_quorum_pauses_between_its_rounds() {
    let calls = calls_of_a_barrier(None).await;
    assert!(calls < 100, "{calls} calls in half a second");
    let hot = calls_of_a_barrier(Some(Bug::AsksAtOnce)).await;
    assert!(hot >= MANY, "the planted bug is not noticed: {hot} calls");
}

/// Of five writes that were acknowledged, how many a leader has applied that was started again at once, when its read
/// barrier has passed.
fn seen_after_a_restart(bug: Option<Bug>) -> usize {
    sim::seed(2);
    sim::plant(bug);
    let disks = [SimDisk::new(), SimDisk::new()];
    // The end of a runtime is a crash.
    let run =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    run().block_on(async {
        let (leader, _) = pair(&disks).await;
        for _ in 0..5 {
            leader.propose(Bytes::from_static(b"one"), PATIENCE).await.expect("it is written");
        }
    });
    let count = Count::default();
    let barrier = run().block_on(async {
        let wires = [Wire::default(), Wire::default()];
        let other = start(2, Start::Existing, &wires[1], &disks[1], &Count::default()).await;
        *wires[0].other.lock().expect("no panics") = Some(other.clone());
        let leader = start(1, Start::Existing, &wires[0], &disks[0], &count).await;
        connect(&wires, &leader, &other);
        let passed = leader.read_barrier(PATIENCE).await;
        (passed, count.0.load(Ordering::SeqCst))
    });
    sim::plant(None);
    assert!(barrier.0.is_ok(), "{:?}", barrier.0);
    barrier.1
}

#[test]
fn a_leader_that_was_started_again_at_once_has_applied_all_before_its_barrier_passes() {
    assert_eq!(seen_after_a_restart(None), 5);
    assert!(seen_after_a_restart(Some(Bug::ForgetsLead)) < 5, "the planted bug is not noticed");
}
