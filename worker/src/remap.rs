//! `skep daemon --userns-remap`: which of the host's user and group ids the containers of this node have (user_namespaces(7),
//! subuid(5)). Reads `/etc/subuid`, `/etc/subgid` and the users' names, decides purely.
//!
//! Called once by whoever reads the daemon's flags; the executor makes the namespaces.

use std::fs;

use nix::unistd::{Group, User};
use skep_runtime::IdRange;

/// The user whose ranges `default` means.
const DEFAULT_USER: &str = "skep";
/// With layers of an overlay that are idmapped mounts.
const LEAST_KERNEL: (u32, u32) = (5, 19);
/// As many ranges as the kernel takes (user_namespaces(7)).
const MAX_RANGES: usize = 340;

/// The ids of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remap {
    /// Of users; the first begins with the container's root.
    pub uids: Vec<IdRange>,
    /// Of groups.
    pub gids: Vec<IdRange>,
}

/// Why there are none. Written for the user.
#[derive(Debug, thiserror::Error)]
pub enum RemapError {
    /// The text.
    #[error("{0:?} is neither \"default\" nor USER[:GROUP] nor UID:GID:SIZE")]
    Form(String),
    /// Numbers that cannot be.
    #[error(
        "ids from {first} on, {count} of them, cannot be a container's: they must leave out the host's root and end below 4294967295"
    )]
    Range {
        /// First id of the host's.
        first: u32,
        /// How many.
        count: u32,
    },
    /// A user or group without a range.
    #[error("{file} has no range for {name}: add a line such as {name}:100000:65536")]
    NoRange {
        /// Which file.
        file: &'static str,
        /// Whose.
        name: String,
    },
    /// An old kernel.
    #[error("remapping ids takes Linux 5.19 (idmapped layers of images): this is {0}")]
    Kernel(String),
}

impl Remap {
    /// What the flag means on this host.
    pub fn of_flag(text: &str) -> Result<Self, RemapError> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let release = read("/proc/sys/kernel/osrelease");
        if skep_runtime::kernel(&release).unwrap_or_default() < LEAST_KERNEL {
            return Err(RemapError::Kernel(release.trim().to_owned()));
        }
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            ["default"] => Self::of(DEFAULT_USER, DEFAULT_USER, &read("/etc/subuid"), &read("/etc/subgid")),
            [user] if !user.is_empty() => Self::of(user, user, &read("/etc/subuid"), &read("/etc/subgid")),
            [user, group] if !user.is_empty() && !group.is_empty() => {
                Self::of(user, group, &read("/etc/subuid"), &read("/etc/subgid"))
            }
            [uid, gid, size] => match (uid.parse(), gid.parse(), size.parse()) {
                (Ok(uid), Ok(gid), Ok(size)) => Ok(Self { uids: ranges([(uid, size)])?, gids: ranges([(gid, size)])? }),
                _ => Err(RemapError::Form(text.to_owned())),
            },
            _ => Err(RemapError::Form(text.to_owned())),
        }
    }

    fn of(user: &str, group: &str, subuid: &str, subgid: &str) -> Result<Self, RemapError> {
        let uids = ranges(listed(subuid, &names_of_user(user)))?;
        let gids = ranges(listed(subgid, &names_of_group(group)))?;
        let no_range = |file, name: &str| RemapError::NoRange { file, name: name.to_owned() };
        if uids.is_empty() {
            return Err(no_range("/etc/subuid", user));
        }
        if gids.is_empty() {
            return Err(no_range("/etc/subgid", group));
        }
        Ok(Self { uids, gids })
    }

    /// What `uid_map` and `gid_map` of a namespace are to hold.
    pub(crate) fn maps(&self) -> (String, String) {
        let lines = |ranges: &[IdRange]| {
            ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count)).collect()
        };
        (lines(&self.uids), lines(&self.gids))
    }

    /// For `skep info`: "100000:100000:65536".
    pub fn words(&self) -> String {
        let first = |ranges: &[IdRange]| ranges.first().map_or(0, |range| range.outside);
        let count: u64 = self.uids.iter().map(|range| u64::from(range.count)).sum();
        format!("{}:{}:{count}", first(&self.uids), first(&self.gids))
    }
}

/// A user's name and number: files have the one or the other.
fn names_of_user(name: &str) -> [String; 2] {
    let user = match name.parse::<u32>() {
        Ok(uid) => User::from_uid(uid.into()),
        Err(_) => User::from_name(name),
    };
    match user {
        Ok(Some(user)) => [user.name, user.uid.to_string()],
        _ => [name.to_owned(), name.to_owned()],
    }
}

fn names_of_group(name: &str) -> [String; 2] {
    let group = match name.parse::<u32>() {
        Ok(gid) => Group::from_gid(gid.into()),
        Err(_) => Group::from_name(name),
    };
    match group {
        Ok(Some(group)) => [group.name, group.gid.to_string()],
        _ => [name.to_owned(), name.to_owned()],
    }
}

/// First id and count of each line of subuid(5) that is about one of `names`.
pub(crate) fn listed(text: &str, names: &[String; 2]) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let mut parts = line.trim().split(':');
        let of = parts.next()?;
        let (first, count) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        (names.iter().any(|name| name == of) && parts.next().is_none()).then_some((first, count))
    };
    text.lines().filter_map(line).take(MAX_RANGES).collect()
}

/// One after the other, from the container's root on.
pub(crate) fn ranges(of_host: impl IntoIterator<Item = (u32, u32)>) -> Result<Vec<IdRange>, RemapError> {
    let mut inside: u32 = 0;
    let range = |(first, count): (u32, u32)| {
        let bad = || RemapError::Range { first, count };
        let end = first.checked_add(count).filter(|end| *end < u32::MAX).ok_or_else(bad)?;
        let next = inside.checked_add(count).ok_or_else(bad)?;
        if first == 0 || end == first {
            return Err(bad());
        }
        let made = IdRange { inside, outside: first, count };
        inside = next;
        Ok(made)
    };
    of_host.into_iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges_come_from_the_files_one_after_the_other() {
        let subuid = "# mine\nother:1:2\nnobody-here:200000:1000\n\nnobody-here:500000:10\nbad:line\n";
        let remap = Remap::of("nobody-here", "nobody-here", subuid, "nobody-here:300000:65536\n").unwrap();
        assert_eq!(remap.maps(), ("0 200000 1000\n1000 500000 10\n".to_owned(), "0 300000 65536\n".to_owned()));
        assert_eq!(remap.words(), "200000:300000:1010");
        // root has a name and a number.
        let by_number = Remap::of("root", "0", "0:100:5\n", "root:100:5\n").unwrap();
        assert_eq!(by_number.words(), "100:100:5");
        let missing = Remap::of("nobody-here", "x", subuid, "").unwrap_err().to_string();
        assert!(missing.contains("/etc/subgid has no range for x"), "{missing}");
    }

    #[test]
    fn numbers_need_no_file_and_leave_out_the_hosts_root() {
        let remap = Remap::of_flag("100000:200000:65536").unwrap();
        assert_eq!(remap.words(), "100000:200000:65536");
        for bad in ["0:1:10", "1:0:10", "1:1:0", "4294967290:1:10"] {
            assert!(matches!(Remap::of_flag(bad), Err(RemapError::Range { .. })), "{bad}");
        }
        for bad in ["", ":", "a:b:c", "1:2:3:4", "a:"] {
            assert!(matches!(Remap::of_flag(bad), Err(RemapError::Form(_))), "{bad}");
        }
    }
}
