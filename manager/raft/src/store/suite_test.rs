//! openraft's own storage test suite against this store, and what it does not cover: damage and crashes.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::Store;
use super::log::LogStore;
use super::machine::Machine;
use super::snapshots::SnapshotStore;
use crate::config::{Limits, Start};
use crate::digests::Digests;
use crate::state_machine::{FatalError, Snapshot, StateMachine};
use crate::types::{EngineStorageError, TypeConfig};

/// Keeps nothing: the suite looks only at positions and membership.
#[derive(Debug, Default)]
struct Empty;

impl StateMachine for Empty {
    type Response = ();
    type Snapshot = Empty;

    fn apply(&mut self, _index: u64, _entry: &[u8]) -> Result<(), FatalError> {
        Ok(())
    }

    fn freeze(&self) -> Empty {
        Empty
    }

    fn restore(&mut self, _index: u64, _from: &mut dyn Read) -> Result<(), FatalError> {
        Ok(())
    }
}

impl Snapshot for Empty {
    fn write(&self, _to: &mut dyn Write) -> std::io::Result<()> {
        Ok(())
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine<Empty>, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine<Empty>), EngineStorageError> {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits::default();
        let (store, _) = Store::open(dir.path(), 1, &Start::Join, &[], 0, &limits).unwrap();
        let store = Arc::new(store);
        let snapshots = Arc::new(SnapshotStore::open(Arc::clone(&store)).unwrap());
        let machine = Machine::open(Empty, snapshots, Arc::default(), Arc::new(Digests::new(0))).unwrap();
        Ok((dir, LogStore::open(store, &limits).unwrap(), machine))
    }
}

#[test]
fn openraft_suite() {
    Suite::test_all(Builder).unwrap();
}
