//! Typed object ids. Used by every crate; never does I/O.
//!
//! An id is a random u128: 16 bytes (big endian) in memory and on the wire, printed as 25 lower-case base-36 digits, so
//! that ids sort and look like Swarm's. Randomness comes from the caller: this crate has none.

use std::fmt;
use std::str::FromStr;

/// Printed length of an id.
pub const PRINTED_LEN: usize = 25;
/// Length of a printed id's unambiguous short form in tables.
pub const SHORT_LEN: usize = 12;

/// Why a text or byte string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The wire form has another length than 16 bytes.
    #[error("an id has 16 bytes, not {0}")]
    Length(usize),
    /// The printed form is not 25 base-36 digits, or exceeds 128 bits.
    #[error("{0:?} is not an id: ids are {PRINTED_LEN} characters of 0-9 and a-z")]
    Text(String),
}

/// Writes `value` as 25 base-36 digits, most significant first.
pub fn to_base36(mut value: u128) -> [u8; PRINTED_LEN] {
    let mut out = [b'0'; PRINTED_LEN];
    for slot in out.iter_mut().rev() {
        let digit = u8::try_from(value % 36).expect("a remainder of 36 fits a byte");
        *slot = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        value /= 36;
    }
    out
}

/// Reads exactly 25 base-36 digits. `None` on another length, another character, or more than 128 bits.
pub fn from_base36(text: &str) -> Option<u128> {
    if text.len() != PRINTED_LEN {
        return None;
    }
    text.bytes().try_fold(0u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return None,
        };
        value.checked_mul(36)?.checked_add(u128::from(digit))
    })
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// Wraps a random value.
            pub const fn new(value: u128) -> Self {
                Self(value)
            }
            /// The raw value.
            pub const fn value(self) -> u128 {
                self.0
            }
            /// The wire form.
            pub fn to_vec(self) -> Vec<u8> {
                self.0.to_be_bytes().to_vec()
            }
            /// Reads the wire form.
            pub fn from_wire(bytes: &[u8]) -> Result<Self, IdError> {
                let packed: [u8; 16] = bytes.try_into().map_err(|_| IdError::Length(bytes.len()))?;
                Ok(Self(u128::from_be_bytes(packed)))
            }
            /// Reads the wire form where empty means "none".
            pub fn from_wire_opt(bytes: &[u8]) -> Result<Option<Self>, IdError> {
                if bytes.is_empty() { Ok(None) } else { Self::from_wire(bytes).map(Some) }
            }
            /// The first 12 printed digits, for tables.
            pub fn short(self) -> String {
                self.to_string()[..SHORT_LEN].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(std::str::from_utf8(&to_base36(self.0)).expect("base-36 digits are ASCII"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                from_base36(text).map(Self).ok_or_else(|| IdError::Text(text.to_owned()))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

ids! {
    /// The swarm itself; certificates carry it as organisation.
    ClusterId,
    /// A host in the swarm; certificates carry it as common name.
    NodeId,
    /// A service.
    ServiceId,
    /// One slot's (or node's) run of a service's revision.
    TaskId,
    /// A network.
    NetworkId,
    /// A secret.
    SecretId,
    /// A config.
    ConfigId,
    /// A stored registry credential.
    CredentialId,
    /// A person with a certificate; it carries it as common name.
    ClientId,
    /// A client's write, so that a retry gets the first answer.
    RequestId,
    /// A worker's session with a manager.
    SessionId,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn printed_and_wire_forms_round_trip(value: u128) {
            let id = TaskId::new(value);
            prop_assert_eq!(id.to_string().parse::<TaskId>().unwrap(), id);
            prop_assert_eq!(TaskId::from_wire(&id.to_vec()).unwrap(), id);
            prop_assert_eq!(id.to_string().len(), PRINTED_LEN);
        }

        #[test]
        fn printed_order_is_numeric_order(a: u128, b: u128) {
            prop_assert_eq!(a.cmp(&b), TaskId::new(a).to_string().cmp(&TaskId::new(b).to_string()));
        }

        #[test]
        fn any_text_is_read_or_refused_without_panic(text: String) {
            let _ = text.parse::<TaskId>();
        }
    }

    #[test]
    fn overflow_and_upper_case_are_refused() {
        assert!("z".repeat(25).parse::<TaskId>().is_err());
        assert!("A".repeat(25).parse::<TaskId>().is_err());
        assert!(TaskId::from_wire(&[0; 15]).is_err());
    }
}
