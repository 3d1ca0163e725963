//! The one way in which the state changes: `apply(state, transaction) -> (state, events)`. Deterministic: every manager
//! computes the same from the same log. It checks versions, unique claims and references, and computes no policy; each
//! rule here is part of the log's format, so that a changed rule needs a feature level.
//!
//! Called by the state machine for committed entries and by `Head` for what is about to be proposed.

mod checks;
mod network_users;
mod networks;
mod observe;
mod parcels;
mod refused;
mod writer;

#[cfg(test)]
mod apply_prop_test;
#[cfg(test)]
mod apply_test;

use std::time::Duration;

use skep_proto::v1;

pub use network_users::{NetworkUsers, has_users as network_has_users, users as network_users};
pub use parcels::parcel_users;
pub use refused::Refused;

use crate::change::Transaction;
use crate::event::Event;
use crate::store::{RequestRecord, State};
use writer::Writer;

/// How long the answer to a client's write is kept for retries.
pub const REQUEST_MEMORY: Duration = Duration::from_secs(600);
/// So many answers are kept however old they are: where the clock of a new leader is far ahead of its predecessor's, all
/// of them look old at once, and a client that retries across the change would have its write done twice.
pub const REQUESTS_KEPT: usize = 1_000;
/// For how long a removed node's certificate is denied at least: longer than any certificate lives. Ids are never used
/// twice, so a longer denial harms nobody; it costs some 60 bytes.
const DENIED_FOR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Expired records dropped by one transaction at most: more than it can add, so that they do not pile up, and few, so
/// that no apply is slow.
const EXPIRE_AT_ONCE: usize = 4;

/// What a transaction came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Store version after it.
    pub version: u64,
    /// Groups that were refused, by index; they changed nothing.
    pub refused: Vec<(usize, Refused)>,
    /// What changed, in order.
    pub events: Vec<Event>,
    /// It is a retry of this one: nothing was done again.
    pub repeated: Option<RequestRecord>,
}

impl State {
    /// Applies one transaction: each group wholly or not at all. Raises the store version by one if anything changed,
    /// else leaves the state exactly as it was.
    pub fn apply(&mut self, transaction: &Transaction) -> Applied {
        if let Some(record) = transaction.request.and_then(|request| self.request(request)) {
            return Applied { version: self.version(), repeated: Some(record.clone()), ..Applied::default() };
        }
        let version = self.version() + 1;
        let mut refused = Vec::new();
        let mut writer = Writer::new(self, version, transaction.at);
        for (index, group) in transaction.groups.iter().enumerate() {
            if let Err(reason) = writer.group(group) {
                refused.push((index, reason));
            }
        }
        let events = writer.finish();
        if events.is_empty() {
            return Applied { version: self.version(), refused, ..Applied::default() };
        }
        self.set_version(version);
        self.expire_requests(transaction.at.minus(REQUEST_MEMORY), EXPIRE_AT_ONCE, REQUESTS_KEPT);
        self.expire_denied(transaction.at, EXPIRE_AT_ONCE);
        if let Some(request) = transaction.request {
            let object_id = transaction.object_id.clone();
            self.put_request(RequestRecord { request, at: transaction.at, version, object_id });
        }
        Applied { version, refused, events, repeated: None }
    }

    /// For how long a node that is removed now is denied.
    fn denial(&self) -> Duration {
        let lifetime = self.cluster().map_or(0, |cluster| cluster.spec.node_cert_expiry_ms);
        DENIED_FOR.max(Duration::from_millis(u64::try_from(lifetime).unwrap_or(0)))
    }
}

/// A state as people write it: `TASK_STATE_RUNNING` is "running".
fn word(name: &str) -> String {
    let prefixes = ["TASK_STATE_", "WANTED_STATE_"];
    let bare = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    bare.to_ascii_lowercase()
}

/// A transport protocol as people write it.
fn protocol_word(protocol: v1::Protocol) -> &'static str {
    match protocol {
        v1::Protocol::Tcp => "tcp",
        v1::Protocol::Udp => "udp",
    }
}
