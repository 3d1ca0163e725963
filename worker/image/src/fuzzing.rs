//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use crate::registry::{auth, session};
use crate::store::records;

/// The value of a header of a registry's answer: `WWW-Authenticate`, `Content-Range`, and the bodies that come with
/// refusals and tokens. How many readers made something of it.
pub fn registry_answer(text: &str) -> usize {
    usize::from(auth::parse_challenge(text).is_some())
        + usize::from(session::range_start(text).is_some())
        + usize::from(session::refusal_in(text.as_bytes()).is_some())
        + usize::from(session::token_in(text.as_bytes()).is_some())
}

/// The file of an image store that says which images it holds. Gives how many.
pub fn records(json: &[u8]) -> Option<usize> {
    records::parse(json).ok().map(|images| images.len())
}
