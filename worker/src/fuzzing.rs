//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use skep_runtime::IdRange;

use crate::record::{RecordError, Recorded, read_entry};
use crate::remap;

/// One key of the local record with its value.
pub fn record_entry(recorded: &mut Recorded, key: &[u8], value: &[u8]) -> Result<(), RecordError> {
    read_entry(recorded, key, value)
}

/// A file such as `/etc/subuid`, and whose ranges are looked for.
pub fn subids(text: &str, name: &str) -> Option<Vec<IdRange>> {
    remap::ranges(remap::listed(text, &[name.to_owned(), name.to_owned()])).ok()
}
