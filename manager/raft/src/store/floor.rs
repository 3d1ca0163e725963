//! A lower bound of what is durable, outside the database: the log's end and the vote once acknowledged.
//!
//! Recovering from damage in the middle of its file, sled goes back to the newest state that it can read, without a
//! word: acknowledged entries would be gone, and a vote could be given twice. This small file shows it. It is written
//! after each flush and before the acknowledgement, without a sync of its own: exact after a crash of the process, at
//! most some seconds behind after a power loss, never ahead. Two slots take turns, so that a torn write leaves one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, BufMut, Bytes};

use super::ADVICE_RESTORE;
use crate::codec::{self, Malformed};
use crate::crypto::KeyRing;
use crate::disk;
use crate::error::StoreError;
use crate::types::Vote;

/// Bytes of a slot: a sector, so that slots do not tear together.
const SLOT: usize = 512;
const PLACE: &[u8] = b"skep floor";

/// The bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The log once reached to this index, durably; None if it was empty.
    pub(crate) synced: Option<u64>,
    /// The newest vote.
    pub(crate) vote: Option<Vote>,
}

#[derive(Debug)]
pub(crate) struct Floor {
    path: PathBuf,
    /// None: nothing is noted.
    file: Option<File>,
    ring: Arc<KeyRing>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    /// Counts writes; its lowest bit is the slot.
    turn: u64,
    mark: Mark,
}

impl Floor {
    /// Makes the file with `mark` in both slots.
    pub(crate) fn create(path: &Path, ring: Arc<KeyRing>, mark: Mark) -> Result<Self, StoreError> {
        let slots = [0, 1].map(|turn| slot(&ring, &State { turn, mark })).concat();
        disk::write_whole(path, &slots)?;
        Self::open(path, ring)
    }

    pub(crate) fn open(path: &Path, ring: Arc<KeyRing>) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { path, advice: ADVICE_RESTORE });
            }
            Err(error) => return Err(StoreError::io("open", &path)(error)),
        };
        let mut newest: Option<State> = None;
        for number in 0..2 {
            let mut bytes = [0; SLOT];
            // A slot that is cut off counts like one that was torn.
            if file.read_exact_at(&mut bytes, number * SLOT as u64).is_ok() {
                newest = newest.max_by_turn(read_slot(&ring, &bytes));
            }
        }
        let state = newest.ok_or_else(|| {
            StoreError::damaged(&path, "neither of its two records can be read with the keys of this directory")
        })?;
        Ok(Self { path, file: Some(file), ring, state: Mutex::new(state) })
    }

    /// A bound that is never known, for disks that are not real.
    #[cfg(feature = "sim")]
    pub(crate) fn absent(ring: Arc<KeyRing>) -> Self {
        Self { path: PathBuf::new(), file: None, ring, state: Mutex::default() }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the floor")
    }

    pub(crate) fn mark(&self) -> Mark {
        self.locked().mark
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn update(&self, change: impl FnOnce(&mut Mark)) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut state = self.locked();
        let mut next = *state;
        change(&mut next.mark);
        if next.mark == state.mark {
            return Ok(());
        }
        next.turn += 1;
        file.write_all_at(&slot(&self.ring, &next), (next.turn % 2) * SLOT as u64)?;
        *state = next;
        Ok(())
    }

    /// The log is durable up to `last`.
    pub(crate) fn raise(&self, last: Option<u64>) -> io::Result<()> {
        self.update(|mark| mark.synced = mark.synced.max(last))
    }

    /// The vote is durable.
    pub(crate) fn vote(&self, vote: Vote) -> io::Result<()> {
        self.update(|mark| mark.vote = Some(vote))
    }

    /// Entries from `since` on are about to be cut off. Synced, because the bound must not be ahead afterwards.
    pub(crate) fn lower(&self, since: u64) -> Result<(), StoreError> {
        let lowered = self.update(|mark| mark.synced = mark.synced.min(since.checked_sub(1)));
        lowered.and_then(|()| self.sync()).map_err(StoreError::io("write", &self.path))
    }

    /// Makes the bound itself durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }
}

trait MaxByTurn {
    fn max_by_turn(self, other: Option<State>) -> Option<State>;
}

impl MaxByTurn for Option<State> {
    fn max_by_turn(self, other: Option<State>) -> Option<State> {
        self.into_iter().chain(other).max_by_key(|state| state.turn)
    }
}

fn slot(ring: &KeyRing, state: &State) -> Vec<u8> {
    let mut plain = Vec::new();
    plain.put_u64(state.turn);
    codec::put_opt(&mut plain, state.mark.synced.as_ref(), |out, index| out.put_u64(*index));
    codec::put_opt(&mut plain, state.mark.vote.as_ref(), codec::put_vote);
    let mut slot = Vec::with_capacity(SLOT);
    codec::put_bytes(&mut slot, &ring.seal(PLACE, &plain));
    slot.resize(SLOT, 0);
    slot
}

fn read_slot(ring: &KeyRing, slot: &[u8; SLOT]) -> Option<State> {
    let sealed = codec::get_bytes(&mut Bytes::copy_from_slice(slot)).ok()?;
    let mut plain = Bytes::from(ring.open(PLACE, &sealed).ok()?);
    let turn = plain.try_get_u64().ok()?;
    let synced = codec::get_opt(&mut plain, |from| from.try_get_u64().map_err(|_| Malformed("floor"))).ok()?;
    let vote = codec::get_opt(&mut plain, codec::get_vote).ok()?;
    Some(State { turn, mark: Mark { synced, vote } })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::crypto::Cipher;

    fn ring() -> Arc<KeyRing> {
        Arc::new(KeyRing::new(1, vec![(1, Cipher::new(&[1; 32]))]).unwrap())
    }

    #[test]
    fn marks_come_back_and_a_torn_write_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("floor");
        let floor = Floor::create(&path, ring(), Mark::default()).unwrap();
        assert_eq!(floor.mark(), Mark::default());
        floor.vote(Vote::new(3, 1)).unwrap();
        floor.raise(Some(7)).unwrap();
        floor.raise(Some(5)).unwrap();
        floor.raise(Some(9)).unwrap();
        let newest = Mark { synced: Some(9), vote: Some(Vote::new(3, 1)) };
        assert_eq!(Floor::open(&path, ring()).unwrap().mark(), newest);

        let good = std::fs::read(&path).unwrap();
        let slot_of_9 = usize::try_from(floor.locked().turn % 2).unwrap() * SLOT;
        let mut torn = good.clone();
        torn[slot_of_9 + 20] ^= 1;
        std::fs::write(&path, &torn).unwrap();
        assert_eq!(Floor::open(&path, ring()).unwrap().mark().synced, Some(7));
        torn[(SLOT - slot_of_9) + 20] ^= 1;
        std::fs::write(&path, &torn).unwrap();
        assert!(matches!(Floor::open(&path, ring()), Err(StoreError::Damaged { .. })));

        std::fs::write(&path, &good).unwrap();
        floor.lower(4).unwrap();
        assert_eq!(Floor::open(&path, ring()).unwrap().mark().synced, Some(3));
        floor.lower(0).unwrap();
        assert_eq!(floor.mark().synced, None);
    }
}
