//! Answers to clients' writes, kept so that a retry gets the first answer.

use imbl::{OrdMap, OrdSet};
use skep_proto::id::RequestId;
use skep_proto::time::UnixMs;

use super::State;

/// The answer to a client's write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    pub request: RequestId,
    /// The transaction's time.
    pub at: UnixMs,
    /// Store version after it.
    pub version: u64,
    /// What the answer names; empty: nothing.
    pub object_id: Vec<u8>,
}

/// Records by id and by age.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RequestTable {
    by_id: OrdMap<RequestId, RequestRecord>,
    by_time: OrdSet<(UnixMs, RequestId)>,
}

impl State {
    /// The answer that a client's write got, if it was applied within the last ten minutes or is among the last few
    /// hundred.
    pub fn request(&self, id: RequestId) -> Option<&RequestRecord> {
        self.requests.by_id.get(&id)
    }

    /// All kept answers, by request id.
    pub fn requests(&self) -> impl Iterator<Item = &RequestRecord> {
        self.requests.by_id.values()
    }

    /// Keeps an answer. For `apply` and snapshot restore.
    pub(crate) fn put_request(&mut self, record: RequestRecord) {
        let (at, id) = (record.at, record.request);
        if let Some(old) = self.requests.by_id.insert(id, record) {
            self.requests.by_time.remove(&(old.at, id));
        }
        self.requests.by_time.insert((at, id));
    }

    /// Forgets at most `limit` answers given before `before`, oldest first, as long as more than `keep` are left.
    pub(crate) fn expire_requests(&mut self, before: UnixMs, limit: usize, keep: usize) {
        for _ in 0..limit.min(self.requests.by_id.len().saturating_sub(keep)) {
            let Some(&oldest) = self.requests.by_time.get_min() else {
                return;
            };
            if oldest.0 >= before {
                return;
            }
            self.requests.by_time.remove(&oldest);
            self.requests.by_id.remove(&oldest.1);
        }
    }
}
