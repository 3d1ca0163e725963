//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use crate::record::{RecordError, Recorded, read_entry};

/// One key of the local record with its value.
pub fn record_entry(recorded: &mut Recorded, key: &[u8], value: &[u8]) -> Result<(), RecordError> {
    read_entry(recorded, key, value)
}
