//! Drives a change of the root on the leader: asks nodes to renew their certificates, and takes the old root away when
//! `skep_core::ca` says that nobody needs it any more. All it knows is in the state: another leader goes on where this one
//! ended.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_core::ca;
use skep_core::change::{Change, Op};
use skep_core::store::State;
use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;
use tracing::{info, warn};

use crate::dispatch::Dispatcher;
use crate::store::Store;
use crate::topic::Topic;

/// Shortest pause between two looks: a look is at every node.
const PAUSE: Duration = Duration::from_millis(20);
/// While it waits for nodes, of which some may have come back.
const WAITING: Duration = Duration::from_secs(1);
/// Without a change under way nothing is to be expected.
const IDLE: Duration = Duration::from_secs(60);

/// Runs as long as this manager leads.
pub(crate) async fn drive(store: Store, dispatcher: Dispatcher) {
    let (mut nodes, mut cluster) = (store.watch(Topic::Nodes), store.watch(Topic::Cluster));
    let mut asked: BTreeMap<NodeId, UnixMs> = BTreeMap::new();
    loop {
        let (state, now) = (store.state(), store.now());
        let pause = match ca::progress(&state, now) {
            None => {
                asked.clear();
                IDLE
            }
            Some(progress) if progress.is_done() => {
                finish(&store, &state, &progress).await;
                WAITING
            }
            Some(progress) => {
                let due = ca::to_ask(&progress, &mut asked, now, |node| dispatcher.is_connected(node));
                if !due.is_empty() {
                    info!(
                        asked = due.len(),
                        waiting = progress.waiting.len(),
                        "nodes are asked to renew: the root changes"
                    );
                }
                for node in due {
                    if !dispatcher.renew(node) {
                        // Its session has just ended.
                        asked.remove(&node);
                    }
                }
                WAITING
            }
        };
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = nodes.changed() => {}
            () = cluster.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn finish(store: &Store, state: &State, progress: &ca::Progress) {
    let Some(cluster) = state.cluster() else { return };
    let Some(done) = ca::finished(cluster, rand::random(), rand::random()) else { return };
    let changes = vec![Change::update(cluster.meta.version, Op::PutCluster(done))];
    match store.write(None, cluster.id.to_vec(), changes).await {
        Ok(written) => {
            store.applied(written.version).await;
            info!(
                nodes = progress.done,
                ended = progress.ended,
                "the swarm has another root: the old one is not trusted any more"
            );
        }
        // Another write came between: it is decided anew.
        Err(error) => warn!(%error, "the new root is not in force yet: it is tried again"),
    }
}
