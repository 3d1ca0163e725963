//! The exit codes of `skep`: one documented list, used by `main.rs`, shown by `skep help exit-codes`, relied on by scripts.
//!
//! Where BSD's sysexits(3) has a fitting code it is used. Adding a meaning is fine; changing one is not.

use std::fmt::Write as _;

/// How a run of `skep` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// The daemon refused or could not do it: unknown object, conflict, failed pull.
    Failed = 1,
    /// The command line or a value in it is wrong (`EX_USAGE`); nothing was done.
    Usage = 64,
    /// No daemon answers on the socket (`EX_UNAVAILABLE`).
    Unreachable = 69,
    /// A defect of skep (`EX_SOFTWARE`).
    Internal = 70,
    /// May work later: no leader, or the result is not known (`EX_TEMPFAIL`). A retry is safe.
    Temporary = 75,
    /// A flag, verb or value that Docker has and skep does not have yet (`EX_CONFIG`); nothing was done.
    Unsupported = 78,
    /// Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// Every code, in order.
    pub(crate) const ALL: [Self; 8] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::Unreachable,
        Self::Internal,
        Self::Temporary,
        Self::Unsupported,
        Self::Interrupted,
    ];

    /// The number that the shell sees.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    /// What it means, for a person.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::Failed => "the operation failed, or failed for some of the objects named: the message says why",
            Self::Usage => "the command line or a value in it is wrong; nothing was done",
            Self::Unreachable => "no skep daemon answers on the socket",
            Self::Internal => "skep itself is at fault: please report it",
            Self::Temporary => "no leader at the moment, or the result is not known: running the command again is safe",
            Self::Unsupported => "skep does not have this flag, verb or value of Docker's yet; nothing was done",
            Self::Interrupted => "interrupted by Ctrl-C; what was accepted before goes on in the background",
        }
    }
}

/// The table for `skep help exit-codes`.
pub(crate) fn table() -> String {
    let mut text = String::from("Exit codes:\n");
    for exit in Exit::ALL {
        let _ = writeln!(text, "  {:>3}  {}", exit.code(), exit.meaning());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_fixed() {
        let codes: Vec<u8> = Exit::ALL.into_iter().map(Exit::code).collect();
        assert_eq!(codes, [0, 1, 64, 69, 70, 75, 78, 130]);
    }

    #[test]
    fn table_names_every_code() {
        let table = table();
        for exit in Exit::ALL {
            assert!(table.contains(&format!("{:>3}  {}", exit.code(), exit.meaning())));
        }
    }
}
