//! Who leads, as this manager knows it, and what it does about it. Leadership is one value: everything that runs on the
//! leader only, started in one order, dropped in reverse when the lead or its quorum is lost.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use skep_core::object::ManagerStatus;
use skep_proto::id::NodeId;
use skep_raft::{Consensus, Member, RaftNode, Status};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::ca::rotation;
use crate::dispatch::{Dispatcher, DispatcherLead};
use crate::loops;
use crate::machine::{FeedSlot, Machine};
use crate::peers::{Leader, level, recovery};
use crate::roles::RoleManager;
use crate::store::Store;

/// How long one try to confirm a new lead may take; it is tried again while the lead lasts.
const CONFIRM: Duration = Duration::from_secs(2);
/// Pause before the next try: a refusal may come at once.
const RETRY: Duration = Duration::from_millis(200);
/// How often a follower sets its clock by the leader's.
const CLOCK_EVERY: Duration = Duration::from_secs(10);

/// What the lead needs.
pub(crate) struct Parts {
    pub(crate) raft: Arc<RaftNode<Machine>>,
    pub(crate) store: Store,
    /// `None`: the leader only writes what it is asked to (in simulations).
    pub(crate) work: Option<Work>,
    pub(crate) node: NodeId,
    /// `host:port` of this manager.
    pub(crate) addr: String,
}

/// What the leader's own work needs.
pub(crate) struct Work {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) feed: FeedSlot,
}

/// What runs while this manager leads. Fields drop in this order: first nobody is let in, then the loops end.
struct Leadership {
    _dispatcher: DispatcherLead,
    _roles: RoleManager,
    _duties: JoinSet<()>,
    _loops: LoopsThread,
}

/// The loops' thread; its feed is taken away when this is dropped, and with it the thread ends.
struct LoopsThread {
    slot: FeedSlot,
}

impl LoopsThread {
    fn start(store: Store, dispatcher: Dispatcher, slot: FeedSlot) -> anyhow::Result<Self> {
        let (feed, fed) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        // Before the thread takes its first snapshot: what is applied after that must reach it.
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(feed);
        let this = Self { slot };
        std::thread::Builder::new()
            .name("skep-loops".to_owned())
            .spawn(move || runtime.block_on(loops::run(store, dispatcher, fed)))
            .context("cannot start the loops' thread")?;
        Ok(this)
    }
}

impl Drop for LoopsThread {
    fn drop(&mut self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    /// No one that could be relied on: silent, or without a quorum.
    Nobody,
    Other(Member),
    Own,
}

fn heard(status: &Status) -> Heard {
    match &status.leader {
        Some(leader) if status.hears_leader && leader.id != status.id => Heard::Other(leader.clone()),
        _ if status.leads() => Heard::Own,
        _ => Heard::Nobody,
    }
}

/// Follows Raft's opinion of who leads, and starts and stops what depends on it. Ends when Raft does.
pub(crate) async fn follow(parts: Parts) {
    let mut status = parts.raft.status();
    let mut held: Option<Option<Leadership>> = None;
    loop {
        let now = status.borrow_and_update().clone();
        let heard = heard(&now);
        if heard != Heard::Own && held.is_some() {
            // Nobody is let in any more before what runs is stopped.
            parts.store.peers().publish(None);
            held = None;
            info!("this manager no longer leads");
        }
        let mut again = None;
        match heard {
            Heard::Nobody => parts.store.peers().publish(None),
            Heard::Other(member) => {
                let peers = parts.store.peers();
                let Member { id: raft_id, address: addr } = member;
                // An id's node never changes, and to find it takes a look at every node.
                let known = peers.leader().borrow().clone().filter(|known| known.raft_id == raft_id);
                let node = known.and_then(|known| known.node).or_else(|| peers.node(raft_id));
                peers.publish(Some(Leader { raft_id, node, addr, is_self: false }));
            }
            Heard::Own if held.is_some() => {}
            Heard::Own => match take_lead(&parts, &now).await {
                Ok(leadership) => held = Some(leadership),
                Err(error) => {
                    warn!(error = %format!("{error:#}"), "this manager cannot take the lead yet");
                    again = Some(RETRY);
                }
            },
        }
        let retry = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = retry => {}
            changed = status.changed() => if changed.is_err() {
                parts.store.peers().publish(None);
                return;
            },
        }
    }
}

/// Starts what runs on the leader. Its own state must hold everything that was ever acknowledged before it decides
/// anything or lets anyone in.
async fn take_lead(parts: &Parts, status: &Status) -> anyhow::Result<Option<Leadership>> {
    parts.raft.read_barrier(CONFIRM).await.context("the lead is not confirmed")?;
    let peers = parts.store.peers();
    peers.publish(Some(Leader { raft_id: status.id, node: Some(parts.node), addr: parts.addr.clone(), is_self: true }));
    let started = async {
        finish_recovery(parts, status).await?;
        parts.work.as_ref().map(|work| start(parts, &parts.store, work)).transpose()
    };
    match started.await {
        Ok(leadership) => {
            info!("this manager leads");
            Ok(leadership)
        }
        Err(error) => {
            peers.publish(None);
            Err(error)
        }
    }
}

/// After a recovery from a lost quorum this is the only manager: the state must say so before anyone acts on it.
async fn finish_recovery(parts: &Parts, status: &Status) -> anyhow::Result<()> {
    let manager = ManagerStatus { raft_id: status.id, addr: parts.addr.clone() };
    let changes = recovery::plan(&parts.store.state(), status.recovery_epoch, parts.node, &manager);
    if changes.is_empty() {
        return Ok(());
    }
    let written = parts.store.write(None, Vec::new(), changes).await.context("cannot write down the recovery")?;
    parts.store.applied(written.version).await;
    info!(epoch = status.recovery_epoch, "the swarm goes on with this manager alone");
    Ok(())
}

fn start(parts: &Parts, store: &Store, work: &Work) -> anyhow::Result<Leadership> {
    let Work { dispatcher, feed } = work;
    let loops = LoopsThread::start(store.clone(), dispatcher.clone(), Arc::clone(feed))?;
    let mut duties = JoinSet::new();
    duties.spawn(level::keep(store.clone()));
    duties.spawn(rotation::drive(store.clone(), dispatcher.clone()));
    let roles = RoleManager::start(Arc::clone(&parts.raft), store.clone(), dispatcher.clone());
    let dispatcher = dispatcher.lead().context("cannot start the dispatcher")?;
    Ok(Leadership { _dispatcher: dispatcher, _roles: roles, _duties: duties, _loops: loops })
}

/// Keeps a follower's clock with the leader's, so that time does not jump when the lead changes hands.
pub(crate) async fn keep_clock(store: Store) {
    loop {
        if !store.peers().leads() {
            // Sets the clock; if nobody answers, the next one will.
            let _ = store.peers().read_version(Duration::ZERO).await;
        }
        tokio::time::sleep(CLOCK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use skep_raft::Role;

    use super::*;

    fn status(role: Role, leader: u64, relied_on: bool) -> Status {
        let leader = Some(Member { id: leader, address: String::new() });
        Status { role, leader, has_quorum: relied_on, hears_leader: relied_on, ..Status::initial(1) }
    }

    #[test]
    fn only_a_leader_with_a_quorum_counts_and_only_one_that_speaks() {
        assert_eq!(heard(&status(Role::Leader, 1, true)), Heard::Own);
        assert_eq!(heard(&status(Role::Leader, 1, false)), Heard::Nobody);
        let other = Member { id: 2, address: String::new() };
        assert_eq!(heard(&status(Role::Follower, 2, true)), Heard::Other(other));
        assert_eq!(heard(&status(Role::Follower, 2, false)), Heard::Nobody);
    }
}
