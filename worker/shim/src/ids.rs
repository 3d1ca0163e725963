//! User and group ids of a container that has a user namespace of its own (user_namespaces(7)): which of the host's each
//! one is. Pure.
//!
//! Used by the monitor, for what it makes as the host's root, and by whoever makes the namespace.

use std::fmt;

/// A row of `/proc/<pid>/uid_map` or `gid_map`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdRange {
    /// First id in the container.
    pub inside: u32,
    /// Which of the host's that is.
    pub outside: u32,
    /// How many follow each other.
    pub count: u32,
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.inside, self.outside, self.count)
    }
}

impl IdRange {
    /// Reads `inside:outside:count`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(':').map(|number| number.parse().ok());
        let mut next = || numbers.next()?;
        let range = Self { inside: next()?, outside: next()?, count: next()? };
        numbers.next().is_none().then_some(range)
    }
}

/// The host's id of a container's; without ranges the container has the host's own. `None`: no id of the host's is that one.
pub fn outside(ranges: &[IdRange], id: u32) -> Option<u32> {
    if ranges.is_empty() {
        return Some(id);
    }
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.inside).filter(|offset| *offset < range.count)?;
        range.outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_counted_from_the_beginning_of_their_range() {
        let range = |inside, outside, count| IdRange { inside, outside, count };
        let ranges = [range(0, 100_000, 1000), range(1000, 500_000, 10)];
        let host = |id| outside(&ranges, id);
        assert_eq!(
            (host(0), host(999), host(1000), host(1009)),
            (Some(100_000), Some(100_999), Some(500_000), Some(500_009))
        );
        assert_eq!((host(1010), host(u32::MAX)), (None, None));
        assert_eq!(outside(&[], 7), Some(7));
        assert_eq!(outside(&[range(0, u32::MAX, 10)], 5), None, "past the last id");
    }

    #[test]
    fn a_range_is_written_as_it_is_read() {
        let range = IdRange { inside: 1, outside: 2, count: 3 };
        assert_eq!(IdRange::parse(&range.to_string()), Some(range));
        for bad in ["1:2", "1:2:3:4", "a:b:c", "-1:2:3", ""] {
            assert_eq!(IdRange::parse(bad), None, "{bad}");
        }
    }
}
