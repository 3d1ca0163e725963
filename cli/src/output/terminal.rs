//! What standard error is connected to, for live views. Asks the kernel; changes nothing.

use std::io::IsTerminal as _;
use std::os::fd::AsRawFd as _;

/// Columns and rows of a terminal that does not tell.
const DEFAULT_SIZE: (usize, usize) = (80, 24);

/// Whether a live view on standard error makes sense.
pub(crate) fn is_live() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Columns and rows of the terminal at standard error.
pub(crate) fn size() -> (usize, usize) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` through the pointer, which is valid for the call (ioctl_tty(2)).
    let result = unsafe { libc::ioctl(std::io::stderr().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    if result == 0 && size.ws_col > 0 && size.ws_row > 0 {
        (usize::from(size.ws_col), usize::from(size.ws_row))
    } else {
        DEFAULT_SIZE
    }
}

/// Lines on standard error that replace themselves.
#[derive(Debug, Default)]
pub(crate) struct LiveView {
    shown: usize,
}

impl LiveView {
    /// Shows these lines in place of the last ones; what does not fit the terminal is cut, at the right and at the end.
    pub(crate) fn show(&mut self, lines: &[String]) {
        use std::io::Write as _;
        let (columns, rows) = size();
        let width = columns.saturating_sub(1).max(1);
        // One row stays free for the cursor: a view that scrolls cannot be drawn over.
        let lines = lines.get(..rows.saturating_sub(1).max(1)).unwrap_or(lines);
        let mut text = String::new();
        if self.shown > 0 {
            text.push_str(&format!("\x1b[{}A", self.shown));
        }
        for line in lines {
            text.push_str("\x1b[2K");
            text.push_str(&super::human::ellipsis(line, width));
            text.push('\n');
        }
        // Fewer lines than before: clear what is left below.
        text.push_str("\x1b[J");
        self.shown = lines.len();
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}
