//! Secrets and configs on their way to a container: what the agent writes into a file in memory and its monitor reads.
//!
//! The file begins with the length of the text (`u32`, little endian), then the text, which tells for each file where it
//! goes, whose it is and how long, then the files' bytes in that order. Pure. The monitor copies the bytes inside the kernel
//! and never has them in memory of its own.

use std::io;

use crate::fields::Fields;

/// Folder of the files that can be replaced while the container runs, in the file system that holds a container's secrets;
/// it is mounted as a whole.
pub const SWAPPABLE: &str = "secrets";
/// Folder of the files that are mounted one by one.
pub const SINGLE: &str = "files";
/// Where an external runtime finds that file system, in its bundle.
pub const IN_BUNDLE: &str = "memory";

/// Longest text, in bytes.
const MAX_TEXT: u32 = 1 << 20;

/// What a file in memory holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Names what is in [`SWAPPABLE`]: another number, other bytes.
    pub version: u64,
    /// In the order of their bytes.
    pub files: Vec<Entry>,
}

/// One file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Path below [`SWAPPABLE`] or [`SINGLE`].
    pub path: String,
    /// Below which of them.
    pub swappable: bool,
    /// Owner, as a number.
    pub uid: u32,
    /// Group, as a number.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub length: u64,
}

impl Manifest {
    /// The beginning of the file: all but the bytes.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let mut out = Fields::with_capacity(64 + 128 * self.files.len());
        out.put("version", self.version);
        for file in &self.files {
            out.put(if file.swappable { SWAPPABLE } else { SINGLE }, &file.path);
            out.put("rights", format_args!("{}:{}:{}", file.uid, file.gid, file.mode));
            out.put("length", file.length);
        }
        let text = out.finish()?;
        let length = u32::try_from(text.len()).ok().filter(|length| *length <= MAX_TEXT);
        let length = length.ok_or_else(|| io::Error::other("too many secrets and configs"))?;
        Ok([&length.to_le_bytes()[..], text.as_bytes()].concat())
    }

    /// How long the text is, by the first four bytes of the file.
    pub fn text_length(head: [u8; 4]) -> io::Result<usize> {
        match u32::from_le_bytes(head) {
            length if length <= MAX_TEXT => Ok(length as usize),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }

    /// Reads the text. A path that leads out of its folder, or to what only the monitor makes, is refused.
    pub fn decode(text: &[u8]) -> io::Result<Self> {
        Self::try_decode(text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    fn try_decode(text: &[u8]) -> Option<Self> {
        let mut manifest = Self::default();
        for line in text.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
            let (key, value) = std::str::from_utf8(line).ok()?.split_once('=')?;
            match key {
                "version" => manifest.version = value.parse().ok()?,
                SWAPPABLE | SINGLE => {
                    let plain = |part: &str| !part.is_empty() && part != "." && !part.starts_with("..");
                    value.split('/').all(plain).then_some(())?;
                    let path = value.to_owned();
                    manifest.files.push(Entry { path, swappable: key == SWAPPABLE, ..Entry::default() });
                }
                "rights" => {
                    let file = manifest.files.last_mut()?;
                    let mut numbers = value.split(':').map(str::parse::<u32>);
                    file.uid = numbers.next()?.ok()?;
                    file.gid = numbers.next()?.ok()?;
                    file.mode = numbers.next()?.ok()? & 0o7777;
                }
                "length" => manifest.files.last_mut()?.length = value.parse().ok()?,
                _ => return None,
            }
        }
        Some(manifest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn manifest(path: &str) -> Manifest {
        let file = |path: &str, swappable| Entry {
            path: path.to_owned(),
            swappable,
            uid: 33,
            gid: 0,
            mode: 0o440,
            length: 512_000,
        };
        Manifest { version: u64::MAX, files: vec![file(path, true), file("0", false)] }
    }

    fn decoded(manifest: &Manifest) -> io::Result<Manifest> {
        let bytes = manifest.encode()?;
        let (head, text) = bytes.split_first_chunk().unwrap();
        assert_eq!(Manifest::text_length(*head).unwrap(), text.len());
        Manifest::decode(text)
    }

    #[test]
    fn what_was_written_is_read() {
        for path in ["db", "a/b=c", ".hidden", "é\n"] {
            assert_eq!(decoded(&manifest(path)).unwrap(), manifest(path));
        }
        assert_eq!(decoded(&Manifest::default()).unwrap(), Manifest::default());
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "..data", "..v7/x", ".", "a\0b"] {
            assert!(decoded(&manifest(path)).is_err(), "{path:?}");
        }
        assert!(Manifest::text_length([0xff; 4]).is_err());
        assert!(Manifest::decode(b"length=7\0").is_err(), "of no file");
    }
}
