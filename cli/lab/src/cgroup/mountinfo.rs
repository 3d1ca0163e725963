//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)), as far as a lab needs it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u32,
    /// Id of the mount that this one lies in.
    pub(crate) parent: u32,
    /// `major:minor` of the file system: the same for every mount of it.
    pub(crate) device: String,
    pub(crate) mount_point: PathBuf,
    pub(crate) fs_type: String,
    super_options: String,
}

impl Mount {
    pub(crate) fn has_super_option(&self, option: &str) -> bool {
        self.super_options.split(',').any(|o| o == option)
    }
}

/// All mounts of the calling process's namespace, oldest first.
pub(crate) fn read() -> Result<Vec<Mount>> {
    let path = Path::new("/proc/self/mountinfo");
    Ok(parse(&fs::read_to_string(path).context("read", path)?))
}

/// Lines that do not have the documented form are left out.
pub(crate) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    // A number of optional fields stands before the separator.
    let (place, file_system) = line.split_once(" - ")?;
    let mut place = place.split(' ');
    let (id, parent, device) = (place.next()?, place.next()?, place.next()?);
    let mount_point = place.nth(1)?;
    let mut file_system = file_system.split(' ');
    let fs_type = file_system.next()?.to_owned();
    Some(Mount {
        id: id.parse().ok()?,
        parent: parent.parse().ok()?,
        device: device.to_owned(),
        mount_point: unescape(mount_point),
        fs_type,
        super_options: file_system.nth(1).unwrap_or_default().to_owned(),
    })
}

/// Space, tab, newline and backslash are written as octal, such as `\040`.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = bytes.get(at + 1..at + 4).filter(|_| byte == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(code.unwrap_or(byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn optional_fields_and_escapes() {
        let mounts = parse(
            "36 35 98:0 /mnt1 /a\\040b\\134c rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\nnonsense\n",
        );
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].mount_point, PathBuf::from("/a b\\c"));
        assert_eq!((mounts[0].id, mounts[0].parent), (36, 35));
        assert_eq!(mounts[0].fs_type, "ext3");
        assert!(mounts[0].has_super_option("errors=continue"));
        assert!(!mounts[0].has_super_option("errors"));
    }
}
