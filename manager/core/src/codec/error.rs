//! Why stored bytes cannot be read.

use skep_proto::id::IdError;

/// Why an entry or an object cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Damaged, or not what it is taken for.
    #[error("the {what} cannot be read")]
    Malformed {
        what: &'static str,
        #[source]
        source: prost::DecodeError,
    },
    /// Written by a later version.
    #[error("the {what} has format {found}, this version knows up to {known}: upgrade skep on this manager")]
    Format { what: &'static str, found: u32, known: u32 },
    /// A kind of change or object that a later version made.
    #[error("the {what} holds a kind that this version does not know: upgrade skep on this manager")]
    UnknownKind { what: &'static str },
    /// A state or the like that a later version made.
    #[error("the {what} has {field} {value}, which this version does not know: upgrade skep on this manager")]
    UnknownValue { what: &'static str, field: &'static str, value: i32 },
    /// An id of a wrong length.
    #[error("the {what} has a bad {field}")]
    Id {
        what: &'static str,
        field: &'static str,
        #[source]
        source: IdError,
    },
    /// A part that is always there.
    #[error("the {what} has no valid {field}")]
    Missing { what: &'static str, field: &'static str },
}

/// Why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The bytes could not be had.
    #[error("the snapshot cannot be read")]
    Read(#[source] std::io::Error),
    /// It ends too early.
    #[error("the snapshot ends after {found} of {expected} records")]
    Cut { found: u64, expected: u64 },
    /// It goes on after its end.
    #[error("the snapshot goes on after its {expected} records")]
    Longer { expected: u64 },
    /// A record that no version wrote.
    #[error("record {record} of the snapshot claims {bytes} bytes, at most {limit} are possible")]
    RecordTooLarge { record: u64, bytes: u64, limit: usize },
    /// One record is wrong. 0 is the head.
    #[error("record {record} of the snapshot is wrong")]
    Record {
        record: u64,
        #[source]
        source: DecodeError,
    },
}
