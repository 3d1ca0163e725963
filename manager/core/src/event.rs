//! What a transaction changed, object by object: how loops, sessions and watches learn of it. Made by `apply`.

use crate::store::{Object, ObjectKey};

/// One object's change. Several changes of one object in a transaction are several events, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Store version after the transaction.
    pub version: u64,
    pub key: ObjectKey,
    /// The object before; `None`: it was made.
    pub before: Option<Object>,
    /// The object after; `None`: it was removed.
    pub after: Option<Object>,
}
