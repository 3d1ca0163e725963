//! What managers keep and send each other: the store's entries and snapshots, Raft's messages and files.

use skep_core::change::Transaction;
use skep_core::codec;
use skep_core::store::State;
use skep_raft::fuzzing;

/// A snapshot of the store. What is read is written again, and is the same state.
pub fn store_snapshot(data: &[u8]) {
    let Ok(state) = codec::read_snapshot(&mut &*data) else { return };
    same(&state);
}

/// An entry of the log. What it does to the state can be written down.
pub fn store_entry(data: &[u8]) {
    let Ok(transactions) = codec::decode_entry(data) else { return };
    // By their bytes: a ratio may be NaN, which is like nothing.
    let entry = codec::encode_entry(&transactions);
    match codec::decode_entry(&entry) {
        Ok(again) => assert_eq!(codec::encode_entry(&again), entry),
        Err(error) => panic!("an entry is not read again: {error}"),
    }
    let mut state = State::default();
    for transaction in &transactions {
        let before = state.clone();
        let applied = state.apply(transaction);
        if !transaction.groups.is_empty() && applied.refused.len() == transaction.groups.len() {
            assert_eq!(state.object_count(), before.object_count(), "what is refused changes nothing");
        }
        assert!(codec::transaction_size(transaction) <= codec::encode_entry(std::slice::from_ref(transaction)).len());
    }
    state.apply(&Transaction::default());
    same(&state);
}

fn same(state: &State) {
    let mut snapshot = Vec::new();
    assert!(codec::write_snapshot(state, &mut snapshot).is_ok());
    match codec::read_snapshot(&mut &*snapshot) {
        Ok(again) => assert!(again.digest() == state.digest(), "a snapshot is the state"),
        Err(error) => panic!("a snapshot is not read again: {error}"),
    }
}

/// A message between managers.
pub fn raft_message(data: &[u8]) {
    fuzzing::message(data);
}

/// What is in a record of the log.
pub fn raft_record(data: &[u8]) {
    fuzzing::record(data);
}

/// A snapshot's file.
pub fn raft_snapshot(data: &[u8]) {
    let _ = fuzzing::snapshot_file(data);
}

/// The file of the data key that log and snapshots are sealed with, and of the key that wraps it.
pub fn raft_keys(data: &[u8]) {
    let read = fuzzing::keys_file(data);
    assert!(read != [true, true], "a file is one of both");
}
