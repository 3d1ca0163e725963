//! `/proc/self/mountinfo` (proc(5)): where the cgroup hierarchies are. Pure.

use std::path::PathBuf;

/// Which interface a hierarchy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) mount: PathBuf,
    pub(super) version: Version,
    /// v1 controllers and names (`name=systemd`); empty for v2.
    pub(super) controllers: Vec<String>,
}

/// All hierarchies, each once (the last mount of it, which is the visible one).
pub(super) fn parse(text: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for hierarchy in text.lines().filter_map(line) {
        found.retain(|other| other.version != hierarchy.version || other.controllers != hierarchy.controllers);
        found.push(hierarchy);
    }
    found
}

/// `36 35 98:0 /root /mount rw,… shared:1 - type source super,options`
fn line(line: &str) -> Option<Hierarchy> {
    let (before, after) = line.split_once(" - ")?;
    let mount = unescape(before.split(' ').nth(4)?);
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    match kind {
        "cgroup2" => Some(Hierarchy { mount, version: Version::V2, controllers: Vec::new() }),
        "cgroup" => {
            let generic = ["rw", "ro", "xattr", "clone_children", "noprefix", "none"];
            let controllers = options
                .split(',')
                .filter(|option| !generic.contains(option) && !option.starts_with("release_agent="))
                .map(str::to_owned)
                .collect();
            Some(Hierarchy { mount, version: Version::V1, controllers })
        }
        _ => None,
    }
}

/// Blanks and the like are written as `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_v2_and_odd_paths() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                    31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                    32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                    33 30 0:29 / /sys/fs/a\\040b rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = parse(text);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(found[1].controllers, ["name=systemd"]);
        assert_eq!((found[2].version, found[2].mount.clone()), (Version::V2, PathBuf::from("/sys/fs/a b")));
    }
}
