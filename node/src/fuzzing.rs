//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use std::net::SocketAddr;

use crate::address;
use crate::config::MANAGER_PORT;
use crate::membership::Record;

/// A member's `swarm.json`. Gives it as it is written once this manager was heard of too, and its managers then.
pub fn record(json: &[u8], manager: &str) -> Option<(String, Vec<String>)> {
    let mut record = Record::parse(json).ok()?;
    record.learn(&[manager.to_owned()]);
    let text = serde_json::to_string(&record).ok()?;
    let again = Record::parse(text.as_bytes()).ok();
    assert_eq!(again.as_ref(), Some(&record), "another record came back");
    Some((text, record.managers))
}

/// `--listen-addr` and `--advertise-addr`.
pub fn address(text: &str) -> Option<SocketAddr> {
    address::parse(text, MANAGER_PORT).ok()
}
