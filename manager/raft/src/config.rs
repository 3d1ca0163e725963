//! What a caller sets, with defaults and their reasons. Checked before anything is opened.

use std::path::PathBuf;
use std::time::Duration;

use crate::consensus::RaftId;
use crate::crypto::KeyEncryptionKey;
use crate::error::StartError;

/// What the data directory must hold. Said by the caller, never guessed: a directory that is empty because a disk is
/// not mounted must not become a new cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Nothing: make a new group whose only voter is this node, reachable at `address`.
    Bootstrap {
        /// Where this node's transport will be reachable; stored in the membership.
        address: String,
    },
    /// Nothing: wait until a leader adds this node as a learner.
    Join,
    /// The state of an earlier run.
    Existing,
}

/// Times of the Raft protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// A leader without work sends one message this often. 100 ms.
    pub heartbeat: Duration,
    /// Shortest election timeout. 300 ms.
    pub election_min: Duration,
    /// Longest election timeout, which is also a leader's lease. 500 ms.
    pub election_max: Duration,
    /// How long one snapshot chunk may take on its way. 10 s.
    pub snapshot_chunk: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(500),
            snapshot_chunk: Duration::from_secs(10),
        }
    }
}

/// Sizes: of messages, of what is kept, and of what triggers a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest entry, in bytes. 4 MiB: the manager's own limit is about 1.5 MiB, and one entry must fit a message.
    pub entry_bytes: usize,
    /// Entries in one append message, in bytes; a larger single entry goes alone. 1 MiB.
    pub append_bytes: usize,
    /// Size of a snapshot chunk on the wire, in bytes. 1 MiB.
    pub snapshot_chunk_bytes: usize,
    /// A snapshot is made after this many bytes of applied entries. 64 MiB.
    pub snapshot_after_bytes: u64,
    /// … or after this many applied changes. 100,000.
    pub snapshot_after_changes: u64,
    /// After a snapshot the log keeps at most this many of the entries it contains, for followers a little behind. 1,000.
    pub keep_entries: u64,
    /// … and at most this many bytes of them. 8 MiB.
    pub keep_bytes: u64,
    /// Newest entries kept decoded in memory, in bytes. 4 MiB.
    pub cache_bytes: usize,
    /// sled's page cache, in bytes. 16 MiB.
    pub database_cache_bytes: u64,
    /// Bytes to keep free on the disk (a sixteenth of it at most): with less the node takes no more entries. 32 MiB.
    pub free_bytes: u64,
    /// The managers compare digests of their states at every log index that this divides. 4,096; 0 for never.
    pub digest_every: u64,
}

impl Limits {
    /// The longest message that a transport has to carry, in bytes: one entry of the largest size, or a batch.
    pub fn message_bytes(&self) -> usize {
        self.entry_bytes.max(self.append_bytes).max(self.snapshot_chunk_bytes) + (64 << 10)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entry_bytes: 4 << 20,
            append_bytes: 1 << 20,
            snapshot_chunk_bytes: 1 << 20,
            snapshot_after_bytes: 64 << 20,
            snapshot_after_changes: 100_000,
            keep_entries: 1_000,
            keep_bytes: 8 << 20,
            cache_bytes: 4 << 20,
            database_cache_bytes: 16 << 20,
            free_bytes: 32 << 20,
            digest_every: 4096,
        }
    }
}

/// Everything a node needs to start.
#[derive(Debug)]
pub struct Config {
    /// The data directory; made with mode 0700 if it is not there. One process at a time may use it.
    pub dir: PathBuf,
    /// This node's Raft id. Must be the one that the directory was made for.
    pub node_id: RaftId,
    /// What the directory must hold.
    pub start: Start,
    /// The key that unlocks the data key. None: it lies beside the data in a file only the owner can read.
    pub key_encryption_key: Option<KeyEncryptionKey>,
    /// Keys that may do so instead: those of which one was taking the other's place when the node stopped.
    pub other_keys: Vec<KeyEncryptionKey>,
    /// The caller's number of the data key that a new directory gets ([`crate::Wanted::epoch`]).
    pub data_key_epoch: u64,
    /// Times of the protocol.
    pub timing: Timing,
    /// Sizes.
    pub limits: Limits,
    /// A disk in memory instead of `dir`, for simulations.
    #[cfg(feature = "sim")]
    pub sim_disk: Option<crate::sim::SimDisk>,
}

impl Config {
    /// A configuration with default times and sizes.
    pub fn new(dir: impl Into<PathBuf>, node_id: RaftId, start: Start) -> Self {
        Self {
            dir: dir.into(),
            node_id,
            start,
            key_encryption_key: None,
            other_keys: Vec::new(),
            data_key_epoch: 0,
            timing: Timing::default(),
            limits: Limits::default(),
            #[cfg(feature = "sim")]
            sim_disk: None,
        }
    }

    /// The caller's keys, the one for a new directory first.
    pub(crate) fn keys(&self) -> Vec<&KeyEncryptionKey> {
        self.key_encryption_key.iter().chain(&self.other_keys).collect()
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        let refuse = |what: String| Err(StartError::Config(what));
        let t = &self.timing;
        if t.heartbeat.is_zero() || t.heartbeat >= t.election_min {
            return refuse(format!(
                "heartbeat of {:?} must be above zero and below the shortest election timeout of {:?}",
                t.heartbeat, t.election_min
            ));
        }
        if t.election_min >= t.election_max {
            return refuse(format!(
                "shortest election timeout {:?} must be below the longest {:?}",
                t.election_min, t.election_max
            ));
        }
        let l = &self.limits;
        if l.entry_bytes == 0 || l.append_bytes == 0 || l.snapshot_chunk_bytes == 0 {
            return refuse("limits of entry, append and snapshot chunk must be above zero bytes".to_owned());
        }
        if l.entry_bytes > MAX_ENTRY_BYTES {
            return refuse(format!("limit of {} bytes for an entry is above {MAX_ENTRY_BYTES}", l.entry_bytes));
        }
        Ok(())
    }
}

/// The stored form of an entry counts its parts in 16 bits of 4 KiB each.
const MAX_ENTRY_BYTES: usize = 128 << 20;
