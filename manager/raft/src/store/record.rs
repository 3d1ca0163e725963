//! Keys and sealed values in the database: entries in parts, and the few named marks.
//!
//! ```text
//! e <index u64> <part u16>   part of a log entry; part 0 begins with format, part count and length
//! m <name>                   mark: identity, vote, progress, purged, snapshot, epoch
//! ```
//! An entry is sealed as a whole, with its index as its place, then cut into parts of at most [`MAX_VALUE`] bytes.

use std::path::Path;

use bytes::{Buf, BufMut, Bytes};
use zeroize::Zeroizing;

use super::db::{Batch, Db, MAX_VALUE};
use crate::codec::{self, Malformed};
use crate::consensus::RaftId;
use crate::crypto::KeyRing;
use crate::error::StoreError;
use crate::types::{Entry, LogId};

/// Version of the form of an entry, in part 0.
const ENTRY_FORMAT: u8 = 1;
/// Format, part count, length of the sealed entry.
const PART_HEADER: usize = 1 + 2 + 4;
/// Version of the whole directory, in the identity mark.
const DIR_FORMAT: u32 = 1;

pub(crate) const VOTE: &str = "vote";
pub(crate) const PROGRESS: &str = "progress";
pub(crate) const PURGED: &str = "purged";
pub(crate) const SNAPSHOT: &str = "snapshot";
const IDENTITY: &str = "identity";
const EPOCH: &str = "epoch";

pub(crate) fn entry_key(index: u64, part: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(11);
    key.put_u8(b'e');
    key.put_u64(index);
    key.put_u16(part);
    key
}

/// Index and part of an entry's key.
pub(crate) fn parse_entry_key(key: &[u8]) -> Option<(u64, u16)> {
    let rest = key.strip_prefix(b"e")?;
    let (index, part) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*index), u16::from_be_bytes(part.try_into().ok()?)))
}

/// Key range of the entries `[from, to)`; None means to the last.
pub(crate) fn entry_range(from: u64, to: Option<u64>) -> std::ops::Range<Vec<u8>> {
    entry_key(from, 0)..to.map_or_else(|| vec![b'e' + 1], |to| entry_key(to, 0))
}

fn entry_place(index: u64) -> [u8; 17] {
    let mut place = *b"skep log ________";
    place[9..].copy_from_slice(&index.to_be_bytes());
    place
}

/// Seals an entry and adds its parts to a batch; answers the sealed length.
pub(crate) fn put_entry(batch: &mut Batch, ring: &KeyRing, entry: &Entry) -> usize {
    let mut plain = Vec::with_capacity(codec::entry_size(entry));
    codec::put_entry(&mut plain, entry);
    put_plain_entry(batch, ring, entry.log_id.index, &plain)
}

/// As [`put_entry`], of an encoded entry.
fn put_plain_entry(batch: &mut Batch, ring: &KeyRing, index: u64, plain: &[u8]) -> usize {
    let sealed = ring.seal(&entry_place(index), plain);
    let parts = (PART_HEADER + sealed.len()).div_ceil(MAX_VALUE);
    let count = u16::try_from(parts).expect("the configuration limits entries to 128 MiB");
    let mut first = Vec::with_capacity(MAX_VALUE.min(PART_HEADER + sealed.len()));
    first.put_u8(ENTRY_FORMAT);
    first.put_u16(count);
    codec::put_len(&mut first, sealed.len());
    let (head, rest) = sealed.split_at(sealed.len().min(MAX_VALUE - PART_HEADER));
    first.put_slice(head);
    batch.put(&entry_key(index, 0), &first);
    for (part, bytes) in (1_u16..).zip(rest.chunks(MAX_VALUE)) {
        batch.put(&entry_key(index, part), bytes);
    }
    sealed.len()
}

/// Number of parts of an entry whose sealed form has this length.
pub(crate) fn parts_of(sealed_len: usize) -> u16 {
    u16::try_from((PART_HEADER + sealed_len).div_ceil(MAX_VALUE)).unwrap_or(u16::MAX)
}

/// Why an entry could not be put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BadEntry {
    /// Parts are missing: the write was cut off, or parts were lost.
    Incomplete,
    /// All is there, and it is not what was written.
    Damaged(String),
}

/// Puts an entry together from its parts, which come in order. Answers the entry and its sealed length.
pub(crate) fn join_entry(ring: &KeyRing, index: u64, parts: &[(u16, sled::IVec)]) -> Result<(Entry, usize), BadEntry> {
    let damaged = |what: &str| BadEntry::Damaged(format!("log entry {index}: {what}"));
    let (plain, len) = open_entry(ring, index, parts)?;
    let mut plain = Bytes::from(plain);
    let entry = codec::get_entry(&mut plain).map_err(|error| damaged(&error.to_string()))?;
    if entry.log_id.index != index || !plain.is_empty() {
        return Err(damaged("it says it is another entry"));
    }
    Ok((entry, len))
}

/// Adds an entry that was sealed by `from` to a batch, sealed by `to`; answers its length.
pub(crate) fn reseal_entry(
    batch: &mut Batch,
    from: &KeyRing,
    to: &KeyRing,
    index: u64,
    parts: &[(u16, sled::IVec)],
) -> Result<usize, BadEntry> {
    let plain = Zeroizing::new(open_entry(from, index, parts)?.0);
    Ok(put_plain_entry(batch, to, index, &plain))
}

/// Adds every mark of a database to a batch, sealed by `to`.
pub(crate) fn reseal_marks(batch: &mut Batch, db: &Db, from: &KeyRing, to: &KeyRing) -> Result<(), StoreError> {
    for name in [IDENTITY, VOTE, PROGRESS, PURGED, SNAPSHOT, EPOCH] {
        let plain = get_mark(db, from, name, |plain| {
            let all = plain.to_vec();
            plain.clear();
            Ok(all)
        })?;
        if let Some(plain) = plain {
            put_mark(batch, to, name, &plain);
        }
    }
    Ok(())
}

/// The encoded entry, and its sealed length.
fn open_entry(ring: &KeyRing, index: u64, parts: &[(u16, sled::IVec)]) -> Result<(Vec<u8>, usize), BadEntry> {
    let damaged = |what: &str| BadEntry::Damaged(format!("log entry {index}: {what}"));
    let Some((0, first)) = parts.first() else { return Err(BadEntry::Incomplete) };
    let mut header = first.as_ref();
    if header.len() < PART_HEADER {
        return Err(damaged("its header is cut off"));
    }
    let format = header.get_u8();
    if format != ENTRY_FORMAT {
        return Err(damaged(&format!("unknown format {format}")));
    }
    let count = header.get_u16();
    let len = usize::try_from(header.get_u32()).map_err(|_| damaged("impossible length"))?;
    if count != parts_of(len) {
        return Err(damaged("its header is altered"));
    }
    if parts.len() < usize::from(count) {
        return Err(BadEntry::Incomplete);
    }
    if parts.len() > usize::from(count) || parts.iter().zip(0_u16..).any(|((part, _), expected)| *part != expected) {
        return Err(damaged("its parts do not fit together"));
    }
    let mut sealed = Vec::with_capacity(len);
    sealed.extend_from_slice(header);
    for (_, bytes) in &parts[1..] {
        sealed.extend_from_slice(bytes);
    }
    if sealed.len() != len {
        return Err(damaged("its length is wrong"));
    }
    let plain = ring
        .open(&entry_place(index), &sealed)
        .map_err(|_| damaged("its checksum is wrong, or it was written with another key"))?;
    Ok((plain, len))
}

pub(crate) fn mark_key(name: &str) -> Vec<u8> {
    [b"m", name.as_bytes()].concat()
}

fn mark_place(name: &str) -> Vec<u8> {
    [b"skep mark ", name.as_bytes()].concat()
}

/// Seals a mark into a batch.
pub(crate) fn put_mark(batch: &mut Batch, ring: &KeyRing, name: &str, plain: &[u8]) {
    batch.put(&mark_key(name), &ring.seal(&mark_place(name), plain));
}

/// Reads a mark; None if it was never written.
pub(crate) fn get_mark<T>(
    db: &Db,
    ring: &KeyRing,
    name: &str,
    decode: impl FnOnce(&mut Bytes) -> Result<T, Malformed>,
) -> Result<Option<T>, StoreError> {
    let Some(sealed) = db.get(&mark_key(name))? else { return Ok(None) };
    let damaged = |what: String| StoreError::damaged(db.path(), format!("mark {name:?}: {what}"));
    let plain = ring
        .open(&mark_place(name), &sealed)
        .map_err(|_| damaged("its checksum is wrong, or it was written with another key".to_owned()))?;
    let mut plain = Bytes::from(plain);
    let value = decode(&mut plain).map_err(|error| damaged(error.to_string()))?;
    codec::finish(&plain).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(value))
}

/// What is known to be durable and committed, written along with later entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Entries up to this index were once flushed: a log that ends earlier has lost some.
    pub(crate) synced: Option<u64>,
    /// Entries up to this one were committed.
    pub(crate) committed: Option<LogId>,
}

pub(crate) fn put_progress(batch: &mut Batch, ring: &KeyRing, progress: &Progress) {
    let mut plain = Vec::new();
    codec::put_opt(&mut plain, progress.synced.as_ref(), |out, index| out.put_u64(*index));
    codec::put_opt(&mut plain, progress.committed.as_ref(), codec::put_log_id);
    put_mark(batch, ring, PROGRESS, &plain);
}

pub(crate) fn get_progress(db: &Db, ring: &KeyRing) -> Result<Progress, StoreError> {
    let read = |from: &mut Bytes| {
        let synced = codec::get_opt(from, |from| from.try_get_u64().map_err(|_| Malformed("progress")))?;
        Ok(Progress { synced, committed: codec::get_opt(from, codec::get_log_id)? })
    };
    Ok(get_mark(db, ring, PROGRESS, read)?.unwrap_or_default())
}

pub(crate) fn put_epoch(batch: &mut Batch, ring: &KeyRing, epoch: u64) {
    put_mark(batch, ring, EPOCH, &epoch.to_be_bytes());
}

/// The recovery epoch; 0 if the group was never recovered.
pub(crate) fn get_epoch(db: &Db, ring: &KeyRing) -> Result<u64, StoreError> {
    let epoch = get_mark(db, ring, EPOCH, |from| from.try_get_u64().map_err(|_| Malformed("epoch")))?;
    Ok(epoch.unwrap_or(0))
}

/// Writes whose directory this is, durably.
pub(crate) fn write_identity(db: &Db, ring: &KeyRing, node: RaftId) -> Result<(), StoreError> {
    let mut plain = Vec::new();
    plain.put_u32(DIR_FORMAT);
    plain.put_u64(node);
    let mut batch = Batch::default();
    put_mark(&mut batch, ring, IDENTITY, &plain);
    db.apply(batch)?;
    db.flush_and_wait()
}

/// Checks whose directory this is, which also shows whether the key fits the database.
pub(crate) fn check_identity(db: &Db, ring: &KeyRing, dir: &Path, node: RaftId) -> Result<(), StoreError> {
    let read = |from: &mut Bytes| {
        let bad = |_| Malformed("identity");
        Ok((from.try_get_u32().map_err(bad)?, from.try_get_u64().map_err(bad)?))
    };
    let (format, found) = get_mark(db, ring, IDENTITY, read)?
        .ok_or_else(|| StoreError::damaged(db.path(), "it has no mark of a manager"))?;
    if format != DIR_FORMAT {
        return Err(StoreError::NewerFormat { path: db.path().to_owned(), found: format, supported: DIR_FORMAT });
    }
    if found != node {
        return Err(StoreError::OtherNode { dir: dir.to_owned(), found, expected: node });
    }
    Ok(())
}
