//! The keys on managers' disks, as the swarm wants them: what data is sealed with, and what those keys are sealed with.
//!
//! The cluster object says it (`data_key_epoch`, `unlock_key`), and every manager carries it out for itself when it has
//! applied that ([`follow`]): Raft's files here, the host's own keys by its caller ([`KeySeals`]). How far it came, other
//! managers ask (`Quorum.Describe`); so a command can wait until what it replaced is gone everywhere ([`everywhere`]).
//! Nothing is stored about it: a manager that was down does the same when it is back.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use skep_core::object::{Cluster, Node};
use skep_core::store::State;
use skep_identity::UnlockKey;
use skep_proto::id::NodeId;
use skep_proto::v1::quorum_client::QuorumClient;
use skep_proto::v1::{DescribeRequest, DescribeResponse, ManagerKeys, NodeRole};
use skep_raft::{KeyEncryptionKey, RaftNode, Wanted};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::machine::Machine;
use crate::store::Store;
use crate::topic::Topic;

/// Feature level that knows these fields of the cluster object: that of secrets, which are of the same version.
const FEATURE_LEVEL: u32 = skep_core::parcels::FEATURE_LEVEL;
/// How long a command waits for the managers that answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// One that does not answer for so long counts as away.
const AWAY: Duration = Duration::from_secs(3);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Before what failed is tried again: from here, doubling, to there.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(120);
/// Before a leader is looked for again.
const NO_LEADER: Duration = Duration::from_millis(200);

/// The keys of this manager's host that are not Raft's. Declared here, kept by the daemon.
pub trait KeySeals: Send + Sync {
    /// Seals them with `key`, or leaves them open. Until [`Self::settle`] is called the key of before opens them too.
    fn reseal(&self, key: Option<UnlockKey>) -> BoxFuture<'static, anyhow::Result<()>>;
    /// Raft's keys are sealed alike.
    fn settle(&self) -> BoxFuture<'static, anyhow::Result<()>>;
}

/// What a manager starts with.
#[derive(Default)]
pub struct KeysAtStart {
    /// What unlocks Raft's files, or seals new ones. `None`: they are not locked.
    pub unlock: Option<UnlockKey>,
    /// What may unlock them instead: one was taking the other's place when the manager stopped.
    pub other: Vec<UnlockKey>,
    /// `Cluster.data_key_epoch` that new files are made for.
    pub data_key_epoch: u64,
    /// `None`: this host has no keys of its own.
    pub seals: Option<Arc<dyn KeySeals>>,
}

impl KeysAtStart {
    /// Tells Raft.
    pub(crate) fn configure(&self, config: &mut skep_raft::Config) {
        config.key_encryption_key = self.unlock.as_ref().map(raft_key);
        config.other_keys = self.other.iter().map(raft_key).collect();
        config.data_key_epoch = self.data_key_epoch;
    }
}

fn raft_key(key: &UnlockKey) -> KeyEncryptionKey {
    KeyEncryptionKey::new(*key.expose())
}

/// How far this manager came. The default: not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// All is as the state of this version wants it.
    pub(crate) version: u64,
    /// Why nothing newer is.
    pub(crate) error: String,
    pub(crate) data_key_epoch: u64,
    pub(crate) locked: bool,
    /// Of the newest replacement of a data key.
    pub(crate) pause: Duration,
}

/// For whoever asks. Clones share it.
pub(crate) type Board = Arc<watch::Sender<Progress>>;

impl Progress {
    /// Adds it to an answer.
    pub(crate) fn describe(&self, answer: DescribeResponse) -> DescribeResponse {
        DescribeResponse {
            keys_version: self.version,
            keys_error: self.error.clone(),
            data_key_epoch: self.data_key_epoch,
            locked: self.locked,
            pause_us: u32::try_from(self.pause.as_micros()).unwrap_or(u32::MAX),
            ..answer
        }
    }
}

/// Carries out what the state wants, now and whenever it changes.
pub(crate) async fn follow(store: Store, raft: Arc<RaftNode<Machine>>, seals: Option<Arc<dyn KeySeals>>, board: Board) {
    let mut changes = store.watch(Topic::Cluster);
    let mut retry = RETRY_MIN;
    loop {
        // Not what a restart finds: that may be older than what is sealed already.
        let Ok(state) = store.fresh().await else {
            tokio::time::sleep(NO_LEADER).await;
            continue;
        };
        let Some(cluster) = state.cluster() else {
            changes.changed().await;
            continue;
        };
        match carry_out(cluster, &raft, seals.as_deref(), &board).await {
            Ok(()) => {
                retry = RETRY_MIN;
                board.send_modify(|progress| {
                    progress.version = state.version();
                    progress.error.clear();
                });
                changes.changed().await;
            }
            Err(error) => {
                let error = format!("{error:#}");
                warn!(error, "this manager's keys are not sealed as the swarm wants it: it is tried again");
                board.send_modify(|progress| progress.error = error);
                let _ = tokio::time::timeout(retry, changes.changed()).await;
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

/// The host's own keys are the first that are sealed and the last that are opened: a manager that stops in between is
/// locked, and never has sealed files of Raft without being asked for the key.
async fn carry_out(
    cluster: &Cluster,
    raft: &RaftNode<Machine>,
    seals: Option<&dyn KeySeals>,
    board: &Board,
) -> anyhow::Result<()> {
    let key = cluster.unlock_key.map(UnlockKey::new);
    if let (Some(seals), Some(_)) = (seals, &key) {
        seals.reseal(key.clone()).await?;
    }
    let wanted = Wanted { epoch: cluster.data_key_epoch, key: key.as_ref().map(raft_key) };
    let done = raft.rekey(wanted).await?;
    if let Some(seals) = seals {
        if key.is_none() {
            seals.reseal(None).await?;
        }
        seals.settle().await?;
    }
    if done.data_key {
        let (bytes, pause_us) = (done.bytes, u64::try_from(done.pause.as_micros()).unwrap_or(u64::MAX));
        info!(bytes, pause_us, "this manager has a new data key; what the one of before sealed is removed");
    }
    if done.wrapped {
        match &key {
            Some(_) => info!("this manager's keys are sealed with the swarm's present unlock key"),
            None => info!("this manager's keys are not sealed any more"),
        }
    }
    let (epoch, locked) = raft.keys().unwrap_or_default();
    board.send_modify(|progress| {
        (progress.data_key_epoch, progress.locked) = (epoch, locked);
        if done.data_key {
            progress.pause = done.pause;
        }
    });
    Ok(())
}

/// What became on every manager of what the cluster object wants by now. Waits for those that answer, at most `patience`; 0:
/// says how it is now. One that is being demoted is not asked: its files go altogether.
pub(crate) async fn everywhere(store: &Store, own: NodeId, board: &Board, patience: Duration) -> Vec<ManagerKeys> {
    let state: State = store.state();
    // Not the state's own version: nobody looks at what does not concern keys.
    let Some(version) = state.cluster().map(|cluster| cluster.meta.version) else { return Vec::new() };
    let stays = |node: &&Arc<Node>| node.manager.is_some() && node.spec.role() == NodeRole::Manager;
    let managers = state.nodes().filter(stays);
    let deadline = Instant::now() + patience;
    let asked = managers.map(|node| async move {
        let answer = if node.id == own {
            let mut progress = board.subscribe();
            let _ = tokio::time::timeout_at(deadline, progress.wait_for(|progress| progress.version >= version)).await;
            let progress = board.borrow().clone();
            Ok(progress.describe(DescribeResponse::default()))
        } else {
            ask(store, node, version, deadline).await
        };
        outcome(node, answer, version)
    });
    join_all(asked).await
}

/// Asks one until it is there, it is away, or the time is up.
async fn ask(store: &Store, node: &Node, version: u64, deadline: Instant) -> Result<DescribeResponse, String> {
    let Some(manager) = &node.manager else { return Err("it is no manager any more".to_owned()) };
    let mut heard = Instant::now();
    loop {
        let mut client = QuorumClient::new(store.peers().channel(manager.raft_id, &manager.addr));
        let answer = match tokio::time::timeout(ANSWER, client.describe(DescribeRequest::default())).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err(format!("it does not answer within {} s", ANSWER.as_secs())),
        };
        let now = Instant::now();
        match &answer {
            Ok(answer) if answer.keys_version >= version => {}
            Ok(_) if now < deadline => heard = now,
            Err(_) if now < deadline && now < heard + AWAY => {}
            Ok(_) | Err(_) => return answer,
        }
        if answer.as_ref().is_ok_and(|answer| answer.keys_version >= version) {
            return answer;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn outcome(node: &Node, answer: Result<DescribeResponse, String>, version: u64) -> ManagerKeys {
    let told =
        ManagerKeys { node_id: node.id.to_vec(), hostname: node.hostname().to_owned(), ..ManagerKeys::default() };
    match answer {
        Ok(answer) => {
            let done = answer.keys_version >= version;
            let message = match (done, answer.keys_error.is_empty()) {
                (true, _) => String::new(),
                (false, true) => "it is still at it".to_owned(),
                (false, false) => format!("{}; it is tried again", answer.keys_error),
            };
            let DescribeResponse { data_key_epoch, locked, pause_us, .. } = answer;
            ManagerKeys { done, message, data_key_epoch, locked, pause_us, ..told }
        }
        Err(error) => {
            ManagerKeys { message: format!("it does not answer ({error}); it follows when it is back"), ..told }
        }
    }
}

/// Whether every manager's build knows what is asked for.
pub(crate) fn is_known(cluster: &Cluster) -> bool {
    cluster.feature_level >= FEATURE_LEVEL
}

/// The swarm with data keys that are to be replaced.
pub(crate) fn replaced(cluster: &Cluster) -> Cluster {
    Cluster { data_key_epoch: cluster.data_key_epoch + 1, ..cluster.clone() }
}

/// The swarm as it is when autolock is switched as `wanted`: with a key and new data keys, or without one.
pub(crate) fn switched(cluster: Cluster, fresh: &UnlockKey) -> Cluster {
    match (cluster.spec.autolock, cluster.unlock_key) {
        (true, None) => Cluster { unlock_key: Some(*fresh.expose()), ..replaced(&cluster) },
        (false, Some(_)) => Cluster { unlock_key: None, ..cluster },
        (true, Some(_)) | (false, None) => cluster,
    }
}

#[cfg(test)]
mod tests {
    use skep_core::object::Meta;
    use skep_proto::id::ClusterId;
    use skep_proto::v1::ClusterSpec;

    use super::*;

    #[test]
    fn switching_autolock_makes_a_key_and_new_data_keys_once() {
        let fresh = UnlockKey::new([7; 32]);
        let mut cluster = Cluster {
            id: ClusterId::new(1),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_cert_pem: String::new(),
            root_key_pem: String::new(),
            worker_token_secret: [0; 16],
            manager_token_secret: [0; 16],
            feature_level: FEATURE_LEVEL,
            last_raft_id: 1,
            recovery_epoch: 0,
            unlock_key: None,
            data_key_epoch: 4,
            root_rotation: None,
        };
        assert_eq!(switched(cluster.clone(), &fresh), cluster);
        cluster.spec.autolock = true;
        let on = switched(cluster.clone(), &fresh);
        assert_eq!((on.unlock_key, on.data_key_epoch), (Some([7; 32]), cluster.data_key_epoch + 1));
        assert_eq!(switched(on.clone(), &UnlockKey::new([8; 32])), on, "it keeps its key");
        let mut off = on;
        off.spec.autolock = false;
        let off = switched(off, &fresh);
        assert_eq!((off.unlock_key, off.data_key_epoch), (None, cluster.data_key_epoch + 1));
    }
}
