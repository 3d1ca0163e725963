//! What callers hear when some of several entries in flight do not land. The state machine is the real one; only the
//! fates of the entries are scripted, for the real Raft of one voter has no such failures to offer.

#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use futures::FutureExt as _;
use skep_core::change::{Change, Group, Op};
use skep_core::codec;
use skep_core::object::{ImageName, Meta};
use skep_core::store::State;
use skep_raft::{Committed, StateMachine as _, Status};
use tokio::sync::watch;

use super::*;
use crate::clock::Clock;
use crate::machine::{FeedSlot, Machine};
use crate::scripted::Scripted;
use crate::store::Store;

/// What becomes of an entry.
enum Fate {
    Lands,
    /// It never has an effect.
    Refused,
    /// It lands, and nobody is told.
    LandsUnheard,
}

/// What a caller of Raft hears of an entry of that fate.
async fn met(
    machine: Arc<Mutex<Machine>>,
    term: u64,
    entry: Bytes,
    fate: oneshot::Receiver<Fate>,
) -> Result<Committed<Vec<u64>>, ProposeError> {
    // A fate that is never told: nobody hears of the entry, and it has no effect.
    let Ok(fate) = fate.await else { return Err(ProposeError::ResultUnknown { waited_ms: 1 }) };
    let apply = || machine.lock().unwrap().apply(1, &entry).unwrap();
    match fate {
        Fate::Lands => Ok(Committed { index: 1, term, response: apply() }),
        Fate::Refused => Err(ProposeError::NotLeader { leader: None }),
        Fate::LandsUnheard => {
            apply();
            Err(ProposeError::ResultUnknown { waited_ms: 1 })
        }
    }
}

fn image(name: &str) -> ImageName {
    ImageName { name: name.into(), meta: Meta::default(), digest: "d".into(), platforms: Vec::new() }
}

struct Bench {
    store: Store,
    fates: Vec<oneshot::Sender<Fate>>,
    proposed: watch::Receiver<usize>,
    machine: Arc<Mutex<Machine>>,
    /// Its term is that of the entries proposed from now on.
    status: watch::Sender<Status>,
    in_flight: usize,
}

impl Bench {
    fn new(entries: usize) -> Self {
        let (applied, clock) = (Applied::new(State::default()), Clock::start());
        let machine = Arc::new(Mutex::new(Machine::new(applied.clone(), FeedSlot::default(), clock.clone())));
        let (fates, outcomes): (Vec<_>, VecDeque<_>) = (0..entries).map(|_| oneshot::channel()).unzip();
        let (proposed, seen) = watch::channel(0);
        let raft = Scripted::new(Status { term: 1, ..Status::initial(1) });
        let status = raft.status.clone();
        let (world, term, outcomes) = (Arc::clone(&machine), status.clone(), Mutex::new(outcomes));
        let raft = raft.proposing(move |entry| {
            let fate = outcomes.lock().unwrap().pop_front().unwrap();
            proposed.send_modify(|proposed| *proposed += 1);
            met(Arc::clone(&world), term.borrow().term, entry, fate).boxed()
        });
        let (submit, submissions) = mpsc::channel(8);
        tokio::spawn(run(Arc::new(raft), applied.clone(), clock.clone(), submissions));
        let peers = crate::peers::testing::leading(&applied, &clock);
        let store = Store::new(applied, submit, clock, peers);
        Self { store, fates, proposed: seen, machine, status, in_flight: 0 }
    }

    /// Another leader's write of an image name, while this manager did not lead.
    fn other_leader_writes(&self, name: &str) {
        let group = Group(vec![Change::create(Op::PutImageName(image(name)))]);
        let transaction = Transaction { groups: vec![group], ..Transaction::default() };
        let entry = codec::encode_entry(&[transaction]);
        self.machine.lock().unwrap().apply(1, &entry).unwrap();
    }

    /// Starts a write of an image name and returns when its entry is in flight.
    async fn write(&mut self, name: &str) -> tokio::task::JoinHandle<Result<Written, WriteError>> {
        let (store, image) = (self.store.clone(), image(name));
        // Without a request id, so that it is tried once.
        let write = tokio::spawn(async move {
            let group = Group(vec![Change::create(Op::PutImageName(image))]);
            store.submit_here(Transaction { groups: vec![group], ..Transaction::default() }, WRITE_DEADLINE).await
        });
        self.in_flight += 1;
        let expected = self.in_flight;
        self.proposed.wait_for(|proposed| *proposed == expected).await.unwrap();
        write
    }

    fn meet(&mut self, fate: Fate) {
        self.fates.remove(0).send(fate).ok().unwrap();
    }

    fn has(&self, name: &str) -> bool {
        self.store.state().image_name(name).is_some()
    }
}

#[tokio::test]
async fn a_later_entry_does_not_confirm_one_without_effect() {
    let mut bench = Bench::new(3);
    let (lost, later) = (bench.write("lost").await, bench.write("later").await);
    bench.meet(Fate::Refused);
    bench.meet(Fate::Lands);
    assert!(matches!(lost.await.unwrap(), Err(WriteError::NoLeader)));
    // It was checked against a state that did not come about: its caller must look, or try again.
    assert!(matches!(later.await.unwrap(), Err(WriteError::Unknown)));
    assert!(!bench.has("lost") && bench.has("later"));
    let next = bench.write("next").await;
    bench.meet(Fate::Lands);
    assert!(next.await.unwrap().is_ok());
    assert!(bench.has("next"));
}

#[tokio::test]
async fn a_later_entry_confirms_one_that_landed_unheard() {
    let mut bench = Bench::new(2);
    let (unheard, later) = (bench.write("unheard").await, bench.write("later").await);
    bench.meet(Fate::LandsUnheard);
    bench.meet(Fate::Lands);
    assert!(unheard.await.unwrap().is_ok() && later.await.unwrap().is_ok());
    assert!(bench.has("unheard") && bench.has("later"));
}

#[tokio::test]
async fn a_write_that_nobody_heard_of_is_unknown() {
    let mut bench = Bench::new(1);
    let unheard = bench.write("unheard").await;
    bench.meet(Fate::LandsUnheard);
    assert!(matches!(unheard.await.unwrap(), Err(WriteError::Unknown)));
}

#[tokio::test]
async fn another_terms_entry_confirms_nothing_before_it() {
    let mut bench = Bench::new(2);
    let cut_off = bench.write("cut-off").await;
    // This manager lost the lead, another one wrote over that entry, and this one leads again.
    bench.other_leader_writes("other");
    bench.status.send_modify(|status| status.term = 3);
    let later = bench.write("later").await;
    // Unheard, and without effect.
    drop(bench.fates.remove(0));
    bench.meet(Fate::Lands);
    assert!(matches!(cut_off.await.unwrap(), Err(WriteError::Unknown)));
    assert!(later.await.unwrap().is_ok());
    assert!(!bench.has("cut-off") && bench.has("other") && bench.has("later"));
}

#[tokio::test]
async fn a_write_in_whose_place_another_one_was_is_not_confirmed() {
    let mut bench = Bench::new(1);
    let write = bench.write("web").await;
    // It was in the log already, unknown to the head: a leader that is started again leads on.
    bench.other_leader_writes("web");
    bench.meet(Fate::Lands);
    assert!(matches!(write.await.unwrap(), Err(WriteError::Unknown)));
}
