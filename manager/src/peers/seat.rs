//! Whether this manager still has its seat, for one that hears no leader. Raft tells a member that is taken out at best:
//! the entry goes to those that stay. Mostly the node's certificate says it next; but a node that was demoted and promoted
//! again in the meantime is to be a manager as before, only not this one. So it asks the others.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_proto::v1::DescribeRequest;
use skep_proto::v1::quorum_client::QuorumClient;
use skep_raft::{RaftId, Status};
use tokio::sync::watch;

use crate::store::Store;

/// No leader for so long is no election: then the others are asked, and again after as long.
const SILENCE: Duration = Duration::from_secs(3);
/// How long one answer may take: whoever is asked makes sure that its own is not out of date.
const DEADLINE: Duration = Duration::from_secs(3);

/// Returns when another manager, with a leader that a quorum confirmed, says that this node's manager is not this one:
/// Raft ids are never used again, so it never will be.
pub(crate) async fn lost(store: Store, raft: watch::Receiver<Status>) {
    let mut leader = store.peers().leader();
    loop {
        if leader.wait_for(Option::is_none).await.is_err() {
            // The handle has ended, and this task with it.
            return std::future::pending().await;
        }
        if store.peers().led_within(SILENCE).await {
            continue;
        }
        let (own, others) = others(&store, &raft.borrow());
        for (raft_id, addr) in others {
            let mut client = QuorumClient::new(store.peers().channel(raft_id, &addr));
            let asked = tokio::time::timeout(DEADLINE, client.describe(DescribeRequest { caller: true })).await;
            if let Ok(Ok(answer)) = asked
                && answer.into_inner().caller_raft_id.is_some_and(|raft_id| raft_id != own)
            {
                return;
            }
        }
    }
}

/// This manager's id, and where the others are: as its state has them, and as Raft has.
fn others(store: &Store, raft: &Status) -> (RaftId, BTreeMap<RaftId, String>) {
    let members = raft.membership.voters.values().map(|member| (member.id, member.address.clone()));
    let state = store.state();
    let managers = state.nodes().filter_map(|node| node.manager.as_ref());
    let mut all: BTreeMap<RaftId, String> = managers.map(|it| (it.raft_id, it.addr.clone())).chain(members).collect();
    all.remove(&raft.id);
    (raft.id, all)
}
