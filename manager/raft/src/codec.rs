//! The binary form of log entries, votes and memberships: on disk (sealed) and on the wire.
//!
//! Big-endian, no padding, lengths as u32. It is our own, so that stored data does not depend on the engine. Versions
//! stand in front of whole records and messages (`store::log`, `wire`), not here.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes};
use openraft::{BasicNode, CommittedLeaderId, EntryPayload, LeaderId};

use crate::types::{Command, EngineMembership, Entry, LogId, StoredMembership, Vote};

/// The bytes are not what was written: too short, too long, or an unknown kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

type Decoded<T> = Result<T, Malformed>;

const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

pub(crate) fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    out.put_u64(id.leader_id.term);
    out.put_u64(id.leader_id.node_id);
    out.put_u64(id.index);
}

pub(crate) fn get_log_id(from: &mut Bytes) -> Decoded<LogId> {
    let bad = |_| Malformed("log id");
    let term = from.try_get_u64().map_err(bad)?;
    let node = from.try_get_u64().map_err(bad)?;
    let index = from.try_get_u64().map_err(bad)?;
    Ok(LogId::new(CommittedLeaderId::new(term, node), index))
}

pub(crate) fn put_opt<T>(out: &mut Vec<u8>, value: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    out.put_u8(value.is_some().into());
    if let Some(value) = value {
        put(out, value);
    }
}

pub(crate) fn get_opt<T>(from: &mut Bytes, get: impl FnOnce(&mut Bytes) -> Decoded<T>) -> Decoded<Option<T>> {
    Ok(if get_flag(from)? { Some(get(from)?) } else { None })
}

pub(crate) fn get_flag(from: &mut Bytes) -> Decoded<bool> {
    match from.try_get_u8() {
        Ok(0) => Ok(false),
        Ok(1) => Ok(true),
        Ok(_) | Err(_) => Err(Malformed("flag")),
    }
}

pub(crate) fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    out.put_u64(vote.leader_id.term);
    out.put_u64(vote.leader_id.node_id);
    out.put_u8(vote.committed.into());
}

pub(crate) fn get_vote(from: &mut Bytes) -> Decoded<Vote> {
    let bad = |_| Malformed("vote");
    let leader_id = LeaderId::new(from.try_get_u64().map_err(bad)?, from.try_get_u64().map_err(bad)?);
    Ok(Vote { leader_id, committed: get_flag(from)? })
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).expect("entries and names are limited to far below 4 GiB"));
    out.put_slice(bytes);
}

pub(crate) fn get_bytes(from: &mut Bytes) -> Decoded<Bytes> {
    let len = get_len(from, "length")?;
    if from.remaining() < len {
        return Err(Malformed("byte string"));
    }
    Ok(from.split_to(len))
}

pub(crate) fn get_string(from: &mut Bytes) -> Decoded<String> {
    String::from_utf8(get_bytes(from)?.into()).map_err(|_| Malformed("text"))
}

pub(crate) fn get_len(from: &mut Bytes, what: &'static str) -> Decoded<usize> {
    let len = from.try_get_u32().map_err(|_| Malformed(what))?;
    usize::try_from(len).map_err(|_| Malformed(what))
}

pub(crate) fn put_len(out: &mut Vec<u8>, len: usize) {
    out.put_u32(u32::try_from(len).expect("counts are limited to far below 2^32"));
}

/// Refuses bytes left over after a complete value.
pub(crate) fn finish(from: &Bytes) -> Decoded<()> {
    if from.is_empty() { Ok(()) } else { Err(Malformed("record: bytes follow its end")) }
}

pub(crate) fn put_membership(out: &mut Vec<u8>, membership: &EngineMembership) {
    put_len(out, membership.get_joint_config().len());
    for voters in membership.get_joint_config() {
        put_len(out, voters.len());
        for id in voters {
            out.put_u64(*id);
        }
    }
    put_len(out, membership.nodes().count());
    for (id, node) in membership.nodes() {
        out.put_u64(*id);
        put_bytes(out, node.addr.as_bytes());
    }
}

pub(crate) fn get_membership(from: &mut Bytes) -> Decoded<EngineMembership> {
    let bad = |_| Malformed("membership");
    let mut configs = Vec::new();
    for _ in 0..get_len(from, "membership")? {
        let mut voters = BTreeSet::new();
        for _ in 0..get_len(from, "membership")? {
            voters.insert(from.try_get_u64().map_err(bad)?);
        }
        configs.push(voters);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..get_len(from, "membership")? {
        let id = from.try_get_u64().map_err(bad)?;
        nodes.insert(id, BasicNode { addr: get_string(from)? });
    }
    Ok(EngineMembership::new(configs, nodes))
}

pub(crate) fn put_stored_membership(out: &mut Vec<u8>, stored: &StoredMembership) {
    put_opt(out, stored.log_id().as_ref(), put_log_id);
    put_membership(out, stored.membership());
}

pub(crate) fn get_stored_membership(from: &mut Bytes) -> Decoded<StoredMembership> {
    let log_id = get_opt(from, get_log_id)?;
    Ok(StoredMembership::new(log_id, get_membership(from)?))
}

pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_log_id(out, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => out.put_u8(BLANK),
        EntryPayload::Normal(command) => {
            out.put_u8(NORMAL);
            put_bytes(out, &command.0);
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(MEMBERSHIP);
            put_membership(out, membership);
        }
    }
}

/// Size of an entry's binary form, near enough for limits.
pub(crate) fn entry_size(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Blank => 25,
        EntryPayload::Normal(command) => 29 + command.0.len(),
        EntryPayload::Membership(membership) => 33 + 80 * membership.nodes().count(),
    }
}

pub(crate) fn get_entry(from: &mut Bytes) -> Decoded<Entry> {
    let log_id = get_log_id(from)?;
    let payload = match from.try_get_u8().map_err(|_| Malformed("entry"))? {
        BLANK => EntryPayload::Blank,
        NORMAL => EntryPayload::Normal(Command(get_bytes(from)?)),
        MEMBERSHIP => EntryPayload::Membership(get_membership(from)?),
        _ => return Err(Malformed("entry: unknown kind")),
    };
    Ok(Entry { log_id, payload })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id(term: u64, node: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term, node), index)
    }

    fn example_membership() -> EngineMembership {
        let node = |addr: &str| BasicNode { addr: addr.to_owned() };
        let nodes = BTreeMap::from([(1, node("a:1")), (2, node("b:1")), (9, node(""))]);
        EngineMembership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2])], nodes)
    }

    fn round_trip(payload: EntryPayload<crate::types::TypeConfig>) {
        let entry = Entry { log_id: id(3, 7, 99), payload };
        let mut out = Vec::new();
        put_entry(&mut out, &entry);
        let mut from = Bytes::from(out.clone());
        assert_eq!(get_entry(&mut from).unwrap(), entry);
        finish(&from).unwrap();
        for len in 0..out.len() {
            assert!(get_entry(&mut Bytes::copy_from_slice(&out[..len])).is_err(), "first {len} bytes");
        }
    }

    #[test]
    fn entries_come_back_and_every_cut_is_refused() {
        round_trip(EntryPayload::Blank);
        round_trip(EntryPayload::Normal(Command(Bytes::from_static(b"some change"))));
        round_trip(EntryPayload::Membership(example_membership()));
    }

    #[test]
    fn stored_membership_and_vote_come_back() {
        let mut out = Vec::new();
        let stored = StoredMembership::new(Some(id(1, 2, 3)), example_membership());
        put_stored_membership(&mut out, &stored);
        put_vote(&mut out, &Vote::new_committed(5, 6));
        let mut from = Bytes::from(out);
        assert_eq!(get_stored_membership(&mut from).unwrap(), stored);
        assert_eq!(get_vote(&mut from).unwrap(), Vote::new_committed(5, 6));
        finish(&from).unwrap();
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut out = Vec::new();
        put_log_id(&mut out, &id(1, 1, 1));
        out.put_u8(77);
        assert_eq!(get_entry(&mut out.into()), Err(Malformed("entry: unknown kind")));
    }
}
