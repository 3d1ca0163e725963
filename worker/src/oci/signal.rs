//! Names of signals, as images and specs write them. Pure.

use std::ffi::c_int;

/// signal(7), Linux on the architectures that skep runs on.
const NAMES: [(&str, c_int); 31] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];
/// SIGRTMIN as programs see it (glibc and musl keep two or three for themselves), and the last one.
const RTMIN: c_int = 34;
const RTMAX: c_int = 64;

/// Reads `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`. `None`: there is no such signal.
pub(super) fn parse(text: &str) -> Option<c_int> {
    if let Ok(number) = text.parse::<c_int>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let number = if let Some(plus) = name.strip_prefix("RTMIN") {
        RTMIN + if plus.is_empty() { 0 } else { plus.strip_prefix('+')?.parse::<c_int>().ok()? }
    } else {
        let minus = name.strip_prefix("RTMAX")?;
        RTMAX - if minus.is_empty() { 0 } else { minus.strip_prefix('-')?.parse::<c_int>().ok()? }
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_real_time_signals() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGQUIT", 3),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("WINCH", 28),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "SIGNOPE", "0", "65", "-1", "SIGRTMIN+31", "SIGRTMIN-1", "RTMAX-x", "SIGRTMIN+-5"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
