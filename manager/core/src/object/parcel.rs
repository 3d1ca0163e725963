//! Secrets and configs, which are the same but for who may read them, and their data: a parcel is the name, the labels and
//! the list of versions; each version's data is a payload, an object of its own that never changes.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use skep_proto::id::{ConfigId, SecretId};
use skep_proto::time::UnixMs;
use skep_proto::validate::files;
use zeroize::Zeroizing;

use super::Meta;

/// Names a secret or a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParcelId {
    Secret(SecretId),
    Config(ConfigId),
}

/// Which of the two it is. Each has names of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParcelKind {
    Secret,
    Config,
}

/// A secret or a config, without its data.
#[derive(Clone, Debug, PartialEq)]
pub struct Parcel {
    pub id: ParcelId,
    pub meta: Meta,
    pub spec: Arc<ParcelSpec>,
    /// Oldest first, never empty; numbers only rise. Each has its payload.
    pub versions: Vec<PayloadVersion>,
}

/// What the user wants of it. Only the labels can change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParcelSpec {
    /// Unique among its kind.
    pub name: String,
    pub labels: std::collections::BTreeMap<String, String>,
    /// Placeholders in the data are filled in on the node.
    pub templated: bool,
}

/// What is known of one version without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadVersion {
    /// 1 and up.
    pub number: u64,
    /// Set by `apply`.
    pub created_at: UnixMs,
    /// Bytes of data.
    pub size: u64,
    /// The version whose data a rollback copied.
    pub copied_from: Option<u64>,
}

/// Names one version's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PayloadKey {
    pub owner: ParcelId,
    pub version: u64,
}

/// The data of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    pub key: PayloadKey,
    pub data: Data,
}

/// Bytes that may be secret: shared rather than copied, never printed, and wiped when the last holder lets go.
#[derive(Clone, PartialEq, Eq)]
pub struct Data(Bytes);

impl ParcelKind {
    /// The most bytes that one of it has.
    pub fn max_bytes(self) -> usize {
        match self {
            Self::Secret => files::MAX_SECRET_BYTES,
            Self::Config => files::MAX_CONFIG_BYTES,
        }
    }

    /// The fewest: an empty secret is a mistake, an empty config may be meant.
    pub fn min_bytes(self) -> usize {
        match self {
            Self::Secret => 1,
            Self::Config => 0,
        }
    }
}

impl ParcelId {
    /// Which of the two it is.
    pub fn kind(self) -> ParcelKind {
        match self {
            Self::Secret(_) => ParcelKind::Secret,
            Self::Config(_) => ParcelKind::Config,
        }
    }

    /// The wire form.
    pub fn to_vec(self) -> Vec<u8> {
        match self {
            Self::Secret(id) => id.to_vec(),
            Self::Config(id) => id.to_vec(),
        }
    }

    /// The id alone, as it is printed.
    pub fn printed(self) -> String {
        match self {
            Self::Secret(id) => id.to_string(),
            Self::Config(id) => id.to_string(),
        }
    }
}

impl Parcel {
    /// The version that services get unless they ask for another.
    pub fn newest(&self) -> Option<&PayloadVersion> {
        self.versions.last()
    }

    /// The version of that number.
    pub fn version(&self, number: u64) -> Option<&PayloadVersion> {
        self.versions.iter().find(|version| version.number == number)
    }

    /// Names the data of a version.
    pub fn payload(&self, version: u64) -> PayloadKey {
        PayloadKey { owner: self.id, version }
    }

    /// "secret db", as messages name it.
    pub fn title(&self) -> String {
        format!("{} {}", self.id.kind(), self.spec.name)
    }
}

impl Data {
    /// Takes the bytes without a copy of them.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Bytes::from_owner(Zeroizing::new(bytes)))
    }

    /// The bytes, shared with this.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A copy of the bytes, which is nobody's to wipe.
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Data {
    /// Without the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes, hidden>", self.len())
    }
}

impl fmt::Display for ParcelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "secret",
            Self::Config => "config",
        })
    }
}

impl fmt::Display for ParcelId {
    /// "secret 3kd…", as messages name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.printed())
    }
}

impl fmt::Display for PayloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {} of {}", self.version, self.owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_not_printed() {
        let key = PayloadKey { owner: ParcelId::Secret(SecretId::new(1)), version: 2 };
        let text = format!("{:?}", Payload { key, data: Data::new(b"hunter2".to_vec()) });
        assert!(text.contains("<7 bytes, hidden>") && !text.contains("hunter2") && !text.contains("104"), "{text}");
    }
}
