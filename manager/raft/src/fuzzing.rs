//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::{BasicNode, CommittedLeaderId, EntryPayload};

use crate::crypto::{Cipher, KeyEncryptionKey, KeyRing};
use crate::keys;
use crate::store::snapshot_file;
use crate::types::{Command, EngineMembership, Entry, LogId, Vote};
use crate::{codec, wire};

/// Gives a message of another manager to every reader of questions and answers. How many made something of it.
pub fn message(bytes: &[u8]) -> usize {
    let bytes = Bytes::copy_from_slice(bytes);
    stays(&bytes, |from| wire::get_append(from.clone()).ok(), wire::put_append);
    let read = [
        wire::open(bytes.clone()).is_ok(),
        wire::open_answer(bytes.clone()).is_ok(),
        wire::get_append(bytes.clone()).is_ok(),
        wire::get_append_answer(bytes.clone()).is_ok(),
        wire::get_pre_vote(bytes.clone()).is_ok(),
        wire::get_pre_vote_answer(bytes.clone()).is_ok(),
        wire::get_vote_request(bytes.clone()).is_ok(),
        wire::get_vote_answer(bytes.clone()).is_ok(),
        wire::get_control(bytes.clone()).is_ok(),
        wire::get_control_answer(bytes.clone()).is_ok(),
        wire::get_chunk(bytes.clone()).is_ok(),
        wire::get_chunk_answer(bytes).is_ok(),
    ];
    read.into_iter().filter(|read| *read).count()
}

/// What is sealed in the log: an entry, a vote, a snapshot's description. How many readers made something of it.
pub fn record(bytes: &[u8]) -> usize {
    let whole = || Bytes::copy_from_slice(bytes);
    stays(&whole(), |from| codec::get_entry(&mut from.clone()).ok(), codec::put_entry);
    let read = [
        codec::get_entry(&mut whole()).is_ok(),
        codec::get_vote(&mut whole()).is_ok(),
        codec::get_stored_membership(&mut whole()).is_ok(),
        wire::get_meta(&mut whole()).is_ok(),
        crate::store::snapshots::read_preface(&mut &*bytes).is_ok(),
    ];
    read.into_iter().filter(|read| *read).count()
}

/// What could be read is written, read and written again: the same. (The first time it may be put in order.)
fn stays<T>(bytes: &Bytes, read: impl Fn(&Bytes) -> Option<T>, write: impl Fn(&mut Vec<u8>, &T)) {
    let Some(first) = read(bytes) else { return };
    let mut written = Vec::new();
    write(&mut written, &first);
    let mut again = Vec::new();
    match read(&Bytes::from(written.clone())) {
        Some(second) => write(&mut again, &second),
        None => panic!("what was written cannot be read"),
    }
    assert_eq!(written, again);
}

/// A snapshot's file, sealed with the key 0. Gives what is in it.
pub fn snapshot_file(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let ring = KeyRing::new(1, vec![(1, Cipher::new(&[0; 32]))]).ok_or(std::io::ErrorKind::Other)?;
    let mut plain = Vec::new();
    snapshot_file::Reader::new(bytes, Arc::new(ring))?.read_to_end(&mut plain)?;
    Ok(plain)
}

/// A directory's keys file, whose key-encryption key is 0; also as what lies beside it, that key's file. Whether it holds a
/// data key, or a key-encryption key.
pub fn keys_file(text: &[u8]) -> [bool; 2] {
    let path = Path::new("keys");
    let kek_text = std::str::from_utf8(text).unwrap_or_default();
    let kek = keys::kek_in(path, kek_text).ok();
    if let Some(kek) = &kek {
        let again = keys::kek_in(path, &keys::kek_text(kek));
        assert!(again.is_ok_and(|again| again.expose() == kek.expose()), "another key came back");
    }
    let Ok(file) = keys::parse(path, text) else { return [false, kek.is_some()] };
    let opens = |file: &keys::KeysFile| keys::unwrap(path, file, &KeyEncryptionKey::new([0; 32]), "").ok();
    // What is sealed has one form alone.
    let again = keys::parse(path, &keys::text_of(&file));
    assert!(again.is_ok_and(|again| opens(&again) == opens(&file)), "{file:?}");
    [opens(&file).is_some(), kek.is_some()]
}

/// A message, a record, a snapshot's file and a keys file of each kind, for a corpus.
pub fn samples() -> [Vec<Vec<u8>>; 4] {
    let id = LogId::new(CommittedLeaderId::new(2, 1), 7);
    let normal = Entry { log_id: id, payload: EntryPayload::Normal(Command(Bytes::from_static(b"entry"))) };
    let blank = Entry { log_id: id, payload: EntryPayload::Blank };
    let vote = Vote::new(2, 1);
    let node = BasicNode { addr: "192.0.2.1:2377".to_owned() };
    let membership = EngineMembership::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, node)]));
    let voters = Entry { log_id: id, payload: EntryPayload::Membership(membership) };
    let written = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    let entries = vec![normal.clone(), blank.clone()];
    let append = AppendEntriesRequest { vote, prev_log_id: Some(id), entries, leader_commit: Some(id) };
    let messages = vec![
        wire::begin(wire::Head { epoch: 1, from: 1, to: 2 }),
        wire::begin_answer(),
        written(&|out| wire::put_append(out, &append)),
        written(&|out| wire::put_pre_vote(out, Some(id))),
        written(&|out| wire::put_vote_request(out, &VoteRequest::new(vote, Some(id)))),
    ];
    let entries = [normal, blank, voters];
    let mut records: Vec<_> = entries.iter().map(|entry| written(&|out| codec::put_entry(out, entry))).collect();
    records.push(written(&|out| codec::put_vote(out, &vote)));
    let ring = KeyRing::new(1, vec![(1, Cipher::new(&[0; 32]))]).map(Arc::new);
    let file = ring.and_then(|ring| {
        let mut writer = snapshot_file::Writer::new(Vec::new(), ring).ok()?;
        writer.write_all(b"what is in a snapshot").ok()?;
        writer.finish().ok()
    });
    let kek = KeyEncryptionKey::new([0; 32]);
    let made = |id, epoch| keys::make(Path::new(""), "00".repeat(16), id, Some(&kek), epoch).ok();
    let keys: Vec<_> = [made(1, 0), made(2, 7)].into_iter().flatten().map(|made| made.text).collect();
    let keys = keys.into_iter().chain([keys::kek_text(&kek).as_bytes().to_vec()]).collect();
    [messages, records, file.into_iter().collect(), keys]
}
