//! Where a process on its way to a container's command says how that went: its end of a pipe, by its number.
//!
//! Used by a container's first process and by commands in a running one. It stays open until execve(2) or the end, whatever
//! else is closed.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::sys;

/// The pipe's end. The pipe holds all that is ever said.
pub(crate) struct Report(RawFd);

impl Report {
    /// Where it is kept when all other descriptors go.
    const PLACE: RawFd = 3;

    pub(crate) fn new(pipe: &impl AsRawFd) -> Self {
        Self(pipe.as_raw_fd())
    }

    /// Whether somebody may hear it.
    pub(crate) fn say(&self, text: &str) -> bool {
        // SAFETY: the text lives through the call; a number that is no descriptor is an error.
        let written = unsafe { libc::write(self.0, text.as_ptr().cast(), text.len()) };
        written >= 0
    }

    /// Closes every descriptor but the first three and this.
    pub(crate) fn stay_alone(&mut self) -> io::Result<()> {
        sys::keep_first(self.0, Self::PLACE)?;
        self.0 = Self::PLACE;
        Ok(())
    }
}
