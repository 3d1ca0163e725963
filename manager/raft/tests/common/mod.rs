//! What the tests of a whole node share: a small state machine, start and stop, a way to alter files.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use skep_raft::{Config, Consensus, FatalError, NoPeers, RaftNode, Snapshot, Start, StartError, StateMachine, Status};

/// More than any step here takes, even on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

type Table = BTreeMap<String, String>;

/// Holds pairs; an entry is `key=value`. Other entries are of an unknown kind. Clones share the table, so that a test
/// can look at it from outside.
#[derive(Debug, Clone, Default)]
pub struct Pairs(pub Arc<Mutex<Table>>);

/// The answer to an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub index: u64,
    /// The value that was replaced.
    pub before: Option<String>,
}

/// A frozen table.
#[derive(Debug)]
pub struct Frozen(Table);

impl Pairs {
    pub fn get(&self, key: &str) -> Option<String> {
        self.0.lock().unwrap().get(key).cloned()
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl StateMachine for Pairs {
    type Response = Answer;
    type Snapshot = Frozen;

    fn apply(&mut self, index: u64, entry: &[u8]) -> Result<Answer, FatalError> {
        let text = std::str::from_utf8(entry).map_err(FatalError::new)?;
        let (key, value) = text.split_once('=').ok_or_else(|| FatalError::new("unknown kind of entry"))?;
        let before = self.0.lock().unwrap().insert(key.to_owned(), value.to_owned());
        Ok(Answer { index, before })
    }

    fn freeze(&self) -> Frozen {
        Frozen(self.0.lock().unwrap().clone())
    }

    fn restore(&mut self, _index: u64, from: &mut dyn Read) -> Result<(), FatalError> {
        let mut text = String::new();
        from.read_to_string(&mut text).map_err(FatalError::new)?;
        let pairs = text.lines().map(|line| line.split_once('=').unwrap());
        *self.0.lock().unwrap() = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Ok(())
    }
}

impl Snapshot for Frozen {
    fn write(&self, to: &mut dyn Write) -> std::io::Result<()> {
        self.0.iter().try_for_each(|(key, value)| writeln!(to, "{key}={value}"))
    }

    fn digest(&self) -> Option<[u8; 32]> {
        let mut hash = Sha256::new();
        self.write(&mut HashWriter(&mut hash)).unwrap();
        Some(hash.finalize().into())
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub type Node = RaftNode<Pairs>;

pub fn new_group() -> Start {
    Start::Bootstrap { address: "127.0.0.1:2377".to_owned() }
}

pub async fn try_start(config: Config) -> Result<(Node, Pairs), StartError> {
    let pairs = Pairs::default();
    let node = RaftNode::start(config, pairs.clone(), Arc::new(NoPeers)).await?;
    Ok((node, pairs))
}

/// Starts a group of one in `dir`, or the one that is there, and waits until it leads.
pub async fn start(dir: &Path) -> (Node, Pairs) {
    start_with(dir, |_| {}).await
}

pub async fn start_with(dir: &Path, adjust: impl FnOnce(&mut Config)) -> (Node, Pairs) {
    let start = if Node::exists(dir) { Start::Existing } else { new_group() };
    let mut config = Config::new(dir, 1, start);
    adjust(&mut config);
    let (node, pairs) = try_start(config).await.unwrap();
    wait(&node, "leads", Status::is_leader).await;
    node.read_barrier(PATIENCE).await.unwrap();
    (node, pairs)
}

/// The error of a start that must fail, in one line.
pub async fn refused(dir: &Path) -> String {
    match try_start(Config::new(dir, 1, Start::Existing)).await {
        Ok((node, pairs)) => panic!("started with {} pairs: {node:?}", pairs.len()),
        Err(error) => error.to_string(),
    }
}

pub async fn wait(node: &Node, what: &str, until: impl FnMut(&Status) -> bool) -> Status {
    let mut status = node.status();
    let result = tokio::time::timeout(PATIENCE, status.wait_for(until)).await;
    match result {
        Ok(Ok(status)) => status.clone(),
        other => panic!("waited for: {what}; {:?}; {:?}", other.is_ok(), node.status().borrow()),
    }
}

pub async fn put(node: &Node, key: &str, value: &str) -> u64 {
    node.propose(Bytes::from(format!("{key}={value}")), PATIENCE).await.unwrap().index
}

/// Proposes `count` pairs `k<i>=<value>`, many in flight.
pub async fn put_many(node: &Node, count: usize, value: &str) {
    let answers: Vec<_> = (0..count).map(|i| node.propose(Bytes::from(format!("k{i}={value}")), PATIENCE)).collect();
    for answer in answers {
        answer.await.unwrap();
    }
}

/// Every file below a folder.
pub fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
