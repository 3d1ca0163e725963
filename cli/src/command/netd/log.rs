//! Netd's log where it is a file: two pieces at most, so that a process that lives for years does not fill the disk. It runs
//! also while there is no daemon to look after its log.
//!
//! Written through standard error, so that a panic's words are in the same file. Losing a piece is better than ending.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::sys::stat::{SFlag, fstat};

/// Bytes of one piece, about.
const PIECE: u64 = 8 << 20;

/// Bytes that the file at standard error has; `None`: not looked at yet.
static WRITTEN: Mutex<Option<u64>> = Mutex::new(None);

/// A line on its way to standard error.
pub(super) struct Log;

impl Log {
    pub(super) fn new() -> Self {
        Self
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = WRITTEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = written.unwrap_or_else(|| length(io::stderr()).unwrap_or(0));
        let begun = if before >= PIECE { turn(io::stderr(), &own_file()) } else { None };
        if let Some(fresh) = &begun {
            // What cannot be put in place is dropped again.
            let _ = nix::unistd::dup2_stderr(fresh);
        }
        let count = io::stderr().write(bytes)?;
        // Where it cannot be turned, it is tried again after another piece.
        let base = if before >= PIECE { 0 } else { before };
        *written = Some(base + count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Length of an open file; `None`: it is something else.
fn length(file: impl AsFd) -> Option<u64> {
    let stat = fstat(file).ok()?;
    let is_file = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    u64::try_from(stat.st_size).ok().filter(|_| is_file)
}

/// Where standard error goes.
fn own_file() -> PathBuf {
    fs::read_link("/proc/self/fd/2").unwrap_or_default()
}

/// Moves a file that has become long aside, over the one that was moved before, and begins another in its place. `None`:
/// it is no such file, or cannot be moved.
fn turn(file: impl AsFd, path: &Path) -> Option<File> {
    length(file).filter(|length| *length >= PIECE)?;
    let old = path.with_extension("log.old");
    fs::rename(path, &old).ok()?;
    File::options().append(true).create_new(true).mode(0o600).open(path).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_long_log_is_moved_aside_and_a_short_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("netd.log"), dir.path().join("netd.log.old"));
        fs::write(&path, "short").unwrap();
        assert!(turn(File::open(&path).unwrap(), &path).is_none());
        fs::write(&old, "older").unwrap();
        let long = File::options().write(true).open(&path).unwrap();
        long.set_len(PIECE).unwrap();
        let mut fresh = turn(&long, &path).unwrap();
        fresh.write_all(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&old).unwrap().len(), PIECE);
    }

    #[test]
    fn what_is_no_file_has_no_length() {
        assert_eq!(length(File::open("/dev/null").unwrap()), None);
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(length(writer), None);
    }
}
