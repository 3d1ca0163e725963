//! `skep lab logs`, and the ends of logs that messages quote.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use crate::error::{Context, Result};
use crate::lab::{Lab, find_host};

/// Lines that an error message quotes.
const QUOTED_LINES: usize = 20;
const BLOCK_BYTES: u64 = 64 * 1024;

/// Prints the log of a host's daemon, from the last `tail` lines on, and goes on if `follow` is set until the log is
/// removed or the reader is gone.
pub(crate) fn print(lab: &Lab, number: u16, follow: bool, tail: Option<usize>) -> Result<()> {
    find_host(&mut lab.load()?, number)?;
    let path = lab.host_dir(number).log();
    let mut file = match File::open(&path) {
        // Powered on, but no daemon has ever been started.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !follow => return Ok(()),
        opened => opened.context("open", &path)?,
    };
    // Before the first read: what is written in between is then not missed.
    let watch = if follow { Some(Watch::new(&path).context("watch", &path)?) } else { None };
    if let Some(lines) = tail {
        let start = start_of_last_lines(&mut file, 0, lines).context("read", &path)?;
        file.seek(SeekFrom::Start(start)).context("read", &path)?;
    }
    let mut stdout = io::stdout().lock();
    loop {
        match io::copy(&mut file, &mut stdout).and_then(|_| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            done => done.context("print", &path)?,
        }
        match &watch {
            Some(watch) if path.exists() => watch.wait().context("watch", &path)?,
            _ => return Ok(()),
        }
    }
}

/// The last lines of a log from byte `from` on, or a note that there are none.
pub(crate) fn end_of_log(path: &Path, from: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let start = start_of_last_lines(&mut file, from, QUOTED_LINES)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    };
    match read() {
        Ok(text) if text.is_empty() => "(the log is empty)".to_owned(),
        Ok(text) => text,
        Err(error) => format!("(cannot read {}: {error})", path.display()),
    }
}

/// Offset, not below `from`, where the last `lines` lines begin. Reads backwards, so a long log costs nothing.
fn start_of_last_lines(file: &mut File, from: u64, lines: usize) -> io::Result<u64> {
    let end = file.metadata()?.len();
    let mut block_end = end;
    let mut found = 0;
    while block_end > from {
        let block_start = block_end.saturating_sub(BLOCK_BYTES).max(from);
        let mut block = Vec::new();
        file.seek(SeekFrom::Start(block_start))?;
        Read::by_ref(file).take(block_end - block_start).read_to_end(&mut block)?;
        let newlines: Vec<u64> =
            (block_start..).zip(&block).filter(|(_, byte)| **byte == b'\n').map(|(offset, _)| offset).collect();
        for offset in newlines.into_iter().rev() {
            // The newline that ends the last line begins none.
            if offset + 1 == end {
                continue;
            }
            found += 1;
            if found == lines {
                return Ok(offset + 1);
            }
        }
        block_end = block_start;
    }
    Ok(if lines == 0 { end } else { from })
}

/// Tells when a file was written to or removed (inotify(7)).
struct Watch(File);

impl Watch {
    fn new(path: &Path) -> io::Result<Self> {
        // SAFETY: takes a flag only.
        let fd = Errno::result(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) })?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
        // IN_ATTRIB: the number of names of the file has changed.
        let events = libc::IN_MODIFY | libc::IN_ATTRIB | libc::IN_DELETE_SELF;
        // SAFETY: the path is a C string that outlives the call.
        Errno::result(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), events) })?;
        Ok(Self(File::from(fd)))
    }

    /// Waits for the next event, or several.
    fn wait(&self) -> io::Result<()> {
        // Room for more than one event; which ones does not matter.
        let mut events = [0; 4096];
        (&self.0).read(&mut events).map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn last(text: &str, from: u64, lines: usize) -> String {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("skep-lab-log-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        let mut file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let start = usize::try_from(start_of_last_lines(&mut file, from, lines).unwrap()).unwrap();
        text[start..].to_owned()
    }

    #[test]
    fn last_lines() {
        assert_eq!(last("a\nb\nc\n", 0, 2), "b\nc\n");
        assert_eq!(last("a\nb\nc", 0, 2), "b\nc");
        assert_eq!(last("a\nb\n", 0, 5), "a\nb\n");
        assert_eq!(last("a\nb\n", 2, 5), "b\n", "never before the given offset");
        assert_eq!(last("a\nb\n", 0, 0), "");
        assert_eq!(last("", 0, 3), "");
    }

    #[test]
    fn lines_longer_than_a_block() {
        let long = "x".repeat(usize::try_from(BLOCK_BYTES).unwrap() + 7);
        assert_eq!(last(&format!("a\n{long}\nb\n"), 0, 2), format!("{long}\nb\n"));
    }

    #[test]
    fn a_log_that_is_missing_says_so() {
        assert!(end_of_log(Path::new("/nowhere/daemon.log"), 0).starts_with("(cannot read /nowhere/daemon.log"));
    }
}
