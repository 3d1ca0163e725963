//! What memory knows of the log: one id and size for each entry, and the newest entries themselves. Pure.

use std::collections::VecDeque;
use std::ops::Range;

use openraft::CommittedLeaderId;

use super::record::Progress;
use crate::codec;
use crate::types::{Entry, LogId, Vote};

#[derive(Debug, Clone, Copy)]
struct Info {
    leader: CommittedLeaderId<u64>,
    /// Length of the sealed form.
    bytes: u32,
}

/// The log as memory knows it. Entries are consecutive from [`Self::first`].
#[derive(Debug, Default)]
pub(crate) struct LogState {
    pub(crate) vote: Option<Vote>,
    pub(crate) progress: Progress,
    pub(crate) purged: Option<LogId>,
    first: u64,
    infos: VecDeque<Info>,
    /// The newest entries; the last one is the log's last.
    cache: VecDeque<Entry>,
    cached_bytes: usize,
    cache_limit: usize,
}

impl LogState {
    pub(crate) fn new(purged: Option<LogId>, cache_limit: usize) -> Self {
        let first = purged.map_or(0, |id| id.index + 1);
        Self { purged, first, cache_limit, ..Self::default() }
    }

    /// Index of the first entry, or of the next one if there is none.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Index that the next entry will have.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.infos.len() as u64
    }

    /// Id of the last entry; of the last one purged if the log is empty.
    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        let last = self.infos.back().map(|info| LogId::new(info.leader, self.next() - 1));
        last.or(self.purged)
    }

    fn info(&self, index: u64) -> Option<&Info> {
        self.infos.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// Length of the sealed form of the entry at `index`; 0 if it is not in the log.
    pub(crate) fn sealed_bytes(&self, index: u64) -> u64 {
        self.info(index).map_or(0, |info| u64::from(info.bytes))
    }

    /// Takes the next entry; false if it does not follow the last one.
    pub(crate) fn push(&mut self, entry: Entry, sealed_len: usize) -> bool {
        if self.infos.is_empty() && self.purged.is_none() {
            self.first = entry.log_id.index;
        }
        if entry.log_id.index != self.next() {
            return false;
        }
        let bytes = u32::try_from(sealed_len).unwrap_or(u32::MAX);
        self.infos.push_back(Info { leader: entry.log_id.leader_id, bytes });
        self.cached_bytes += codec::entry_size(&entry);
        self.cache.push_back(entry);
        // The newest entry always stays: it is about to be applied and sent.
        while self.cached_bytes > self.cache_limit && self.cache.len() > 1 {
            self.forget_oldest();
        }
        true
    }

    fn forget_oldest(&mut self) {
        if let Some(entry) = self.cache.pop_front() {
            self.cached_bytes -= codec::entry_size(&entry);
        }
    }

    /// Removes the entries from `since` on.
    pub(crate) fn truncate(&mut self, since: u64) {
        while self.next() > since.max(self.first) {
            self.infos.pop_back();
            if let Some(entry) = self.cache.pop_back() {
                self.cached_bytes -= codec::entry_size(&entry);
            }
        }
        self.progress.synced = match self.progress.synced {
            Some(synced) if synced >= since => since.checked_sub(1),
            other => other,
        };
    }

    /// Removes the entries up to `upto`, which may be beyond the end.
    pub(crate) fn purge(&mut self, upto: LogId) {
        while self.first <= upto.index && self.infos.pop_front().is_some() {
            self.first += 1;
        }
        self.first = self.first.max(upto.index + 1);
        while self.cache.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            self.forget_oldest();
        }
        self.purged = self.purged.max(Some(upto));
    }

    /// The part of `range` that is in the log.
    pub(crate) fn clamp(&self, range: Range<u64>) -> Range<u64> {
        let start = range.start.max(self.first);
        start..range.end.min(self.next()).max(start)
    }

    /// Entries of a range if all of them are in memory.
    pub(crate) fn cached(&self, range: Range<u64>) -> Option<Vec<Entry>> {
        let cache_first = self.next() - self.cache.len() as u64;
        let skip = usize::try_from(range.start.checked_sub(cache_first)?).ok()?;
        let take = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        let entries: Vec<Entry> = self.cache.iter().skip(skip).take(take).cloned().collect();
        (entries.len() == take).then_some(entries)
    }

    /// The end of the longest piece from `start` that holds at most `bytes`, or one entry.
    pub(crate) fn limit(&self, range: Range<u64>, bytes: u64) -> u64 {
        let mut left = bytes;
        let mut end = range.start;
        while end < range.end {
            let size = self.sealed_bytes(end);
            if size > left && end > range.start {
                break;
            }
            left = left.saturating_sub(size);
            end += 1;
        }
        end
    }

    /// Where to purge to when entries up to `contained` are in a snapshot and some of them stay for slow followers:
    /// at most `entries`, at most `bytes`. None if nothing is to go.
    pub(crate) fn purge_target(&self, contained: u64, entries: u64, bytes: u64) -> Option<u64> {
        let mut keep_from = contained.min(self.next().checked_sub(1)?) + 1;
        let mut left = bytes;
        while keep_from > self.first && contained + 1 - keep_from < entries {
            let size = self.sealed_bytes(keep_from - 1);
            if size > left {
                break;
            }
            left -= size;
            keep_from -= 1;
        }
        (keep_from > self.first).then(|| keep_from - 1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use openraft::EntryPayload;

    use super::*;
    use crate::types::Command;

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(1, 1), index)
    }

    fn entry(index: u64, len: usize) -> Entry {
        Entry { log_id: id(index), payload: EntryPayload::Normal(Command(vec![7; len].into())) }
    }

    fn log(count: u64, cache_limit: usize) -> LogState {
        let mut log = LogState::new(None, cache_limit);
        for index in 0..count {
            assert!(log.push(entry(index, 100), 100));
        }
        log
    }

    fn indexes(entries: Vec<Entry>) -> Vec<u64> {
        entries.iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn entries_are_consecutive() {
        let mut log = log(3, 1000);
        assert!(!log.push(entry(5, 1), 1));
        assert!(!log.push(entry(2, 1), 1));
        assert!(log.push(entry(3, 1), 1));
        assert_eq!(log.last_log_id(), Some(id(3)));
    }

    #[test]
    fn the_cache_holds_the_newest_and_never_less_than_one() {
        let log = log(10, 129 * 4);
        assert_eq!(log.cached(5..10), None);
        assert_eq!(indexes(log.cached(6..10).unwrap()), [6, 7, 8, 9]);
        assert_eq!(indexes(log.cached(7..9).unwrap()), [7, 8]);
        assert_eq!(indexes(self::log(3, 0).cached(2..3).unwrap()), [2]);
    }

    #[test]
    fn truncate_and_purge_keep_index_and_cache_together() {
        let mut log = log(10, 10_000);
        log.progress.synced = Some(9);
        log.truncate(7);
        assert_eq!((log.next(), log.progress.synced), (7, Some(6)));
        log.purge(id(3));
        assert_eq!((log.first(), log.next(), log.purged), (4, 7, Some(id(3))));
        assert_eq!(indexes(log.cached(log.clamp(0..100)).unwrap()), [4, 5, 6]);
        log.purge(id(20));
        assert_eq!((log.first(), log.next(), log.last_log_id()), (21, 21, Some(id(20))));
        assert!(log.push(entry(21, 1), 1));
    }

    #[test]
    fn pieces_are_bounded_by_bytes_but_never_empty() {
        let log = log(10, 10_000);
        assert_eq!(log.limit(2..10, 250), 4);
        assert_eq!(log.limit(2..10, 1), 3);
        assert_eq!(log.limit(2..4, 10_000), 4);
        assert_eq!(log.limit(2..2, 10_000), 2);
    }

    #[test]
    fn purging_keeps_what_the_limits_allow() {
        let log = log(10, 10_000);
        assert_eq!(log.purge_target(7, 3, 10_000), Some(4));
        assert_eq!(log.purge_target(7, 100, 250), Some(5));
        assert_eq!(log.purge_target(7, 0, 0), Some(7));
        assert_eq!(log.purge_target(7, 100, 10_000), None);
        assert_eq!(LogState::new(None, 0).purge_target(7, 0, 0), None);
    }
}
