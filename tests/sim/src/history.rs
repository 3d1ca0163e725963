//! What clients saw. Written by `client.rs`, judged by `oracle.rs`. Times are simulated microseconds of the one true clock.

use std::collections::{BTreeMap, BTreeSet};

/// What managers hold: names with their content.
pub(crate) type Held = BTreeMap<String, String>;

/// Simulated microseconds since the start.
pub(crate) type Micros = u64;

/// What a client knows of its write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Acknowledged: the store's version after it.
    Done(u64),
    /// Every manager that was asked said that nothing was written, and never will be.
    Never,
    /// Nobody can say.
    Unknown,
}

/// From the first question to the last answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) from: Micros,
    pub(crate) to: Micros,
}

/// A word added to a list by a write that is bound to the version that was read.
#[derive(Clone, Debug)]
pub(crate) struct Append {
    pub(crate) list: String,
    pub(crate) word: String,
    pub(crate) span: Span,
    pub(crate) outcome: Outcome,
}

/// All lists as one manager told them.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) manager: u64,
    pub(crate) span: Span,
    pub(crate) lists: BTreeMap<String, Vec<String>>,
}

/// A name that was created, removed, and whose creation was then repeated with the first request id.
#[derive(Clone, Debug)]
pub(crate) struct Once {
    pub(crate) name: String,
    /// The creation's request id.
    pub(crate) request: u128,
    pub(crate) created: Outcome,
    /// When the creation's outcome was known.
    pub(crate) created_at: Micros,
    /// When everything about it was.
    pub(crate) ended_at: Micros,
    /// `None`: it was not tried.
    pub(crate) removed: Option<Outcome>,
    /// `None`: it was not tried.
    pub(crate) repeated: Option<Outcome>,
    /// The object that the answers named was another one.
    pub(crate) other_object: bool,
}

/// A recovery from a lost quorum: what the one manager had on its disk, at the moment when it was made the only one. What
/// was acknowledged before and is not in it was known to lost managers only.
#[derive(Clone, Debug)]
pub(crate) struct Recovery {
    pub(crate) at: Micros,
    /// Names with their content.
    pub(crate) kept: Held,
    /// Requests whose answers it remembers.
    pub(crate) requests: BTreeSet<u128>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) appends: Vec<Append>,
    pub(crate) reads: Vec<Read>,
    pub(crate) onces: Vec<Once>,
    /// At most one in a run.
    pub(crate) recovery: Option<Recovery>,
}

/// The words of a stored list.
pub(crate) fn words(content: &str) -> Vec<String> {
    content.split_whitespace().map(str::to_owned).collect()
}
