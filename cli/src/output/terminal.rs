//! What standard error is connected to, for live views. Asks the kernel; changes nothing.

use std::io::IsTerminal as _;
use std::os::fd::AsRawFd as _;

/// Width of a terminal that does not tell.
const DEFAULT_WIDTH: usize = 80;

/// Whether a live view on standard error makes sense.
pub(crate) fn is_live() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Columns of the terminal at standard error.
pub(crate) fn width() -> usize {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` through the pointer, which is valid for the call (ioctl_tty(2)).
    let result = unsafe { libc::ioctl(std::io::stderr().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    if result == 0 && size.ws_col > 0 { usize::from(size.ws_col) } else { DEFAULT_WIDTH }
}

/// Lines on standard error that replace themselves.
#[derive(Debug, Default)]
pub(crate) struct LiveView {
    shown: usize,
}

impl LiveView {
    /// Shows these lines in place of the last ones; too long ones are cut.
    pub(crate) fn show(&mut self, lines: &[String]) {
        use std::io::Write as _;
        let width = width().saturating_sub(1).max(1);
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
