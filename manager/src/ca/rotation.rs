//! Drives a change of the root on the leader: asks nodes to renew their certificates, and takes the old root away when
//! `skep_core::ca` says that nobody needs it any more, or when it has ended itself. All it knows is in the state: another leader goes on where this one
//! ended.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_core::ca;
use skep_core::change::{Change, Op};
use skep_core::store::State;
use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;
use tracing::{info, warn};

use super::signing;
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
            Some(progress) if progress.is_done() || is_over(&state, now) => {
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

/// The old root has ended, and all that it signed: there is nobody whom to keep it for, and no host comes in by it.
fn is_over(state: &State, now: UnixMs) -> bool {
    let old = state.cluster().and_then(|cluster| signing::life(&cluster.root_cert_pem));
    old.is_some_and(|life| life.has_ended(now))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use skep_core::object::Cluster;
    use skep_identity::RootCa;
    use skep_identity::ca::ROOT_VALIDITY;
    use skep_proto::id::ClusterId;

    use super::*;

    #[test]
    fn a_root_that_has_ended_is_waited_for_by_nobody() {
        let now = SystemTime::now();
        let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let minute = Duration::from_secs(60);
        for left in [minute, Duration::ZERO] {
            assert!(
                !is_over(&with_root(now - ROOT_VALIDITY + left), at(unix)),
                "certificates of it are still accepted"
            );
        }
        assert!(is_over(&with_root(now - ROOT_VALIDITY - ca::CLOCK_TOLERANCE - minute), at(unix)));
        assert!(!is_over(&State::default(), at(unix)), "there is no root");
    }

    fn at(unix: Duration) -> UnixMs {
        UnixMs(i64::try_from(unix.as_millis()).unwrap())
    }

    /// A swarm whose root was made then.
    fn with_root(made: SystemTime) -> State {
        let id = ClusterId::new(1);
        let root_cert_pem = RootCa::generate(id, made).unwrap().cert().to_pem();
        let mut state = State::default();
        state.put(Cluster { root_cert_pem, ..Cluster::bare(id) });
        state
    }
}
