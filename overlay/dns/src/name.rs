//! Domain names as this crate compares them: lower case, labels joined by dots, without the root's dot.
//!
//! Used by the zone for its rows and by `answer` for questions. Never allocates for a question: a sandbox may ask as
//! often as it likes.

use hickory_proto::rr::Name;

/// The longest name in this form: 255 octets on the wire (RFC 1035, 2.3.4) less the first length and the root.
const LONGEST: usize = 253;
/// The longest label (RFC 1035, 2.3.4).
const LONGEST_LABEL: usize = 63;

/// A question's name in comparable form.
pub(crate) struct Key {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Key {
    /// `None` for a name that no row can have: one with octets that are not printable ASCII, or with a dot in a label.
    pub(crate) fn of(name: &Name) -> Option<Self> {
        let mut key = Self { bytes: [0; LONGEST], len: 0 };
        for label in name.iter() {
            if key.len > 0 {
                key.push(b'.')?;
            }
            for &byte in label {
                if !byte.is_ascii_graphic() || byte == b'.' {
                    return None;
                }
                key.push(byte.to_ascii_lowercase())?;
            }
        }
        Some(key)
    }

    fn push(&mut self, byte: u8) -> Option<()> {
        *self.bytes.get_mut(self.len)? = byte;
        self.len += 1;
        Some(())
    }

    /// Empty for the root.
    pub(crate) fn as_str(&self) -> &str {
        // Only ASCII was pushed.
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

/// A row's name in comparable form; one dot at its end is the root's. `None` for what no question can ask for: an empty
/// name or label, one that is too long, octets that are not printable ASCII.
pub(crate) fn comparable(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let askable = name.len() <= LONGEST
        && name.split('.').all(|label| !label.is_empty() && label.len() <= LONGEST_LABEL)
        && name.bytes().all(|byte| byte.is_ascii_graphic());
    askable.then(|| name.to_ascii_lowercase())
}

/// The wire form of a comparable name.
pub(crate) fn wire(name: &str) -> Option<Name> {
    let mut name = Name::from_labels(name.split('.').map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_compare_without_case_and_root() {
        assert_eq!(comparable("Web.1.Abc."), Some("web.1.abc".to_owned()));
        assert_eq!(Key::of(&wire("WEB").unwrap()).unwrap().as_str(), "web");
        assert_eq!(Key::of(&Name::root()).unwrap().as_str(), "");
    }

    #[test]
    fn names_that_cannot_be_asked_for_are_none() {
        for name in ["", ".", "a..b", ".a", "a b", "wäb", &"a".repeat(64), &["a"; 128].join(".")] {
            assert_eq!(comparable(name), None, "{name:?}");
        }
        assert!(comparable(&["a"; 127].join(".")).is_some());
    }

    #[test]
    fn a_dot_inside_a_label_matches_nothing() {
        let name = Name::from_labels([b"tasks.web".as_slice()]).unwrap();
        assert!(Key::of(&name).is_none());
    }

    proptest! {
        #[test]
        fn a_row_name_is_found_by_its_own_wire_form(name in "[a-zA-Z0-9_-]{1,63}(\\.[a-zA-Z0-9_-]{1,63}){0,3}") {
            let wanted = comparable(&name);
            if let Some(wanted) = wanted {
                let key = Key::of(&wire(&name).unwrap()).unwrap();
                prop_assert_eq!(key.as_str(), wanted);
            }
        }
    }
}
