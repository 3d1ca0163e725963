//! Values of any length in sled, cut into pieces that it syncs.
//!
//! Used by the record's one writer and by its reader. sled 0.34 puts values near a quarter of a segment (128 KiB; a tree
//! leaf of 16 values counts as one) into files of their own, which it never syncs: after a power cut the record would
//! name a file that is empty or not there, and the agent would not start. So no value is longer than [`PIECE`].
//!
//! The first piece lies at the key itself, further ones at the key with a number (`u16`, big endian, from 1) behind it:
//! they follow it in sled's order. No key of the record is another one with two bytes more.

use sled::IVec;

/// Longest value, in bytes: 16 and a few of them in one leaf stay below sled's threshold.
pub(super) const PIECE: usize = 4096;

/// A key and its new value; `None` removes it.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

/// Adds a change to a batch: what an earlier, longer value left behind goes.
pub(super) fn put(db: &sled::Db, batch: &mut sled::Batch, (key, value): Change) -> Result<(), sled::Error> {
    for old in db.scan_prefix(&key).keys() {
        let old = old?;
        if old[..] == key[..] || number(&key, &old).is_some() {
            batch.remove(old);
        }
    }
    let Some(value) = value else { return Ok(()) };
    let mut pieces = value.chunks(PIECE);
    // An empty value is one, too.
    batch.insert(&key[..], pieces.next().unwrap_or_default());
    for (piece, number) in pieces.zip(1_u16..) {
        batch.insert([&key[..], &number.to_be_bytes()].concat(), piece);
    }
    Ok(())
}

/// The number of a further piece of `key`'s value, if `other` is the key of one.
fn number(key: &[u8], other: &[u8]) -> Option<u16> {
    let number = other.strip_prefix(key)?.try_into().ok()?;
    Some(u16::from_be_bytes(number)).filter(|number| *number > 0)
}

/// All keys with their whole values, in order. An error of sled's ends it; a piece without its predecessor is left as
/// an entry of its own, which no reader of the record takes for one of its own.
pub(super) fn whole(db: &sled::Db) -> impl Iterator<Item = Result<(IVec, Vec<u8>), sled::Error>> {
    let mut entries = db.iter().peekable();
    std::iter::from_fn(move || {
        let (key, first) = match entries.next()? {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        let mut value = first.to_vec();
        for expected in 1_u16.. {
            let next = |entry: &Result<(IVec, IVec), _>| {
                entry.as_ref().is_ok_and(|(other, _)| number(&key, other) == Some(expected))
            };
            match entries.next_if(next) {
                Some(Ok((_, piece))) => value.extend_from_slice(&piece),
                _ => break,
            }
        }
        Some(Ok((key, value)))
    })
}
