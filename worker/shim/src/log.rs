//! The container's log: JSON lines in a file that is rotated by size.
//!
//! Used by the monitor's loop. A full disk never blocks the container: lines that cannot be written are counted and
//! dropped, and when the disk takes writes again a line in words says how many are missing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use skep_shim::logline::{self, Splitter, Stream};

use crate::sys;

/// Log, splitters of both outputs, and the buffer they fill.
pub(crate) struct Log {
    path: String,
    max_bytes: u64,
    max_files: u32,
    /// Opened with the first line: most containers that fail at start never write one.
    file: Option<File>,
    size: u64,
    splitters: [Splitter; 2],
    out: Vec<u8>,
    lost: Option<Loss>,
}

/// Lines that could not be written.
struct Loss {
    lines: u64,
    reason: String,
}

impl Log {
    /// A log at `path`; nothing is opened yet.
    pub(crate) fn new(path: &str, max_bytes: u64, max_files: u32) -> Self {
        Self {
            path: path.to_owned(),
            max_bytes: max_bytes.max(1),
            max_files: max_files.max(1),
            file: None,
            size: 0,
            splitters: [Splitter::new(Stream::Stdout), Splitter::new(Stream::Stderr)],
            out: Vec::new(),
            lost: None,
        }
    }

    /// Takes output of stdout (0) or stderr (1). Returns the reason when lines begin to be lost.
    pub(crate) fn push(&mut self, which: usize, bytes: &[u8]) -> Option<String> {
        let lines = self.splitters[which].push(bytes, &mut self.out, &mut sys::unix_ns);
        self.flush(lines)
    }

    /// Writes unfinished lines at the end of the container.
    pub(crate) fn finish(&mut self) {
        let mut lines = 0;
        for splitter in &mut self.splitters {
            lines += splitter.finish(&mut self.out, &mut sys::unix_ns);
        }
        self.flush(lines);
    }

    /// Gives back the memory of a burst.
    pub(crate) fn release_memory(&mut self) {
        self.out = Vec::new();
    }

    fn flush(&mut self, lines: u64) -> Option<String> {
        if self.out.is_empty() {
            return None;
        }
        if let Some(loss) = &self.lost {
            let mut note = Vec::new();
            let text = format!("skep: {} log lines were dropped here: {}\n", loss.lines, loss.reason);
            logline::encode(&mut note, Stream::Stderr, text.as_bytes(), sys::unix_ns());
            note.append(&mut self.out);
            self.out = note;
        }
        let written = self.write_out();
        self.out.clear();
        match written {
            Ok(()) => {
                self.lost = None;
                None
            }
            Err(error) => match &mut self.lost {
                Some(loss) => {
                    loss.lines += lines;
                    None
                }
                None => {
                    let reason = sys::words(&error);
                    self.lost = Some(Loss { lines, reason: reason.clone() });
                    Some(reason)
                }
            },
        }
    }

    /// Writes the buffer as a whole or not at all.
    fn write_out(&mut self) -> io::Result<()> {
        if self.size >= self.max_bytes {
            self.rotate();
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        let written = file.write_all(&self.out);
        match &written {
            Ok(()) => self.size += self.out.len() as u64,
            // Half a line would spoil the file for its readers.
            Err(_) => drop(file.set_len(self.size)),
        }
        self.file = Some(file);
        written
    }

    fn open(&mut self) -> io::Result<File> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
        self.size = file.metadata()?.len();
        Ok(file)
    }

    /// Shifts `log` to `log.1`, `log.1` to `log.2` and so on; the oldest is overwritten.
    fn rotate(&mut self) {
        self.file = None;
        self.size = 0;
        if self.max_files == 1 {
            let _ = fs::remove_file(&self.path);
            return;
        }
        let name = |index: u32| {
            if index == 0 { self.path.clone() } else { format!("{}.{index}", self.path) }
        };
        for index in (0..self.max_files - 1).rev() {
            let _ = fs::rename(name(index), name(index + 1));
        }
    }
}
