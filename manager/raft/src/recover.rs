//! Recovery from lost quorum, offline: the log and snapshot of one manager become a group of one.
//!
//! Called by `swarm init --force-new-cluster` while the node does not run. A membership entry with this node as the only
//! voter goes to the end of its log, together with a vote of a higher term and a higher recovery epoch, in one atomic
//! write; the node then elects itself and commits what its log holds. Entries that the lost majority alone had are lost,
//! and no entry that this node has is: some of those may never have been acknowledged. Members of the group of before
//! are refused from then on by their epoch; they leave and join again under new ids.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::{BasicNode, CommittedLeaderId, EntryPayload};

use crate::codec;
use crate::config::Config;
use crate::error::{StartError, StoreError};
use crate::store::Store;
use crate::store::db::Batch;
use crate::store::log::LogStore;
use crate::store::record;
use crate::store::snapshots::SnapshotStore;
use crate::types::{EngineMembership, Entry, LogId, Vote};

/// What a recovery did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The new recovery epoch.
    pub epoch: u64,
    /// The last log entry of before that the new group has; None if there was none.
    pub last_log: Option<u64>,
}

/// Makes the directory of `config` that of a group whose only voter is this node, reachable at `address`. The directory
/// must hold a node's state; `config.start` does not matter. Blocks. Afterwards start with [`Start::Existing`]. Done
/// twice, it raises the epoch twice and does no harm.
pub fn recover(config: &Config, address: &str) -> Result<Recovered, StartError> {
    config.check()?;
    let (store, closed) = Store::open_existing(config)?;
    let store = Arc::new(store);
    let snapshots = SnapshotStore::open(Arc::clone(&store))?;
    let log = LogStore::open(Arc::clone(&store), &config.limits)?;
    log.check_begins_after(snapshots.current().and_then(|current| current.preface.meta.last_log_id))?;
    let recovered = rewrite(&store, &log, config.node_id, address)?;
    drop((snapshots, log, store));
    if !closed.wait(std::time::Duration::from_secs(10)) {
        return Err(StartError::Engine("the data directory is still in use after the recovery".to_owned()));
    }
    Ok(recovered)
}

fn rewrite(store: &Store, log: &LogStore, id: u64, address: &str) -> Result<Recovered, StoreError> {
    let (last, vote) = log.ends();
    let epoch = store.epoch() + 1;
    let old_term = vote.map_or(0, |vote| vote.leader_id.term).max(last.map_or(0, |last| last.leader_id.term));
    let term = old_term + 1;
    let index = last.map_or(0, |last| last.index + 1);
    let nodes = BTreeMap::from([(id, BasicNode { addr: address.to_owned() })]);
    let entry = Entry {
        log_id: LogId::new(CommittedLeaderId::new(term, id), index),
        payload: EntryPayload::Membership(EngineMembership::new(vec![BTreeSet::from([id])], nodes)),
    };
    let vote = Vote::new(term, id);
    let vault = store.in_use();
    let mut batch = Batch::default();
    record::put_entry(&mut batch, &vault.ring, &entry);
    let mut plain = Vec::new();
    codec::put_vote(&mut plain, &vote);
    record::put_mark(&mut batch, &vault.ring, record::VOTE, &plain);
    record::put_epoch(&mut batch, &vault.ring, epoch);
    vault.db.apply(batch)?;
    vault.db.flush_and_wait()?;
    let noted = vault.floor.raise(Some(index)).and_then(|()| vault.floor.vote(vote)).and_then(|()| vault.floor.sync());
    noted.map_err(StoreError::io("write", vault.floor.path()))?;
    Ok(Recovered { epoch, last_log: last.map(|last| last.index) })
}
