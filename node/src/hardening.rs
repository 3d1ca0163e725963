//! The daemon's own limits: keeps its memory, which holds keys and secrets, off the disk and from other processes, and lets
//! it open as many files as its host allows.
//!
//! [`no_dumps`] and [`open_files`] are called once, first thing. Programs that the daemon starts inherit the limits, and make
//! themselves undumpable: an exec undoes that (prctl(2)). Containers are no such programs: they get the core limit of before,
//! and always a number of open files of their own (`worker/runtime/src/runtime.rs`).

use std::sync::OnceLock;

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Open files, at most: what hosts without a bound give (`fs.nr_open`), and no more, for helpers that close each one.
const MOST_OPEN_FILES: u64 = 1 << 20;

/// What the daemon was started with.
static BEFORE: OnceLock<(u64, u64)> = OnceLock::new();

/// No core dumps, no reading by other processes of this user (prctl(2), PR_SET_DUMPABLE; core(5)).
pub(crate) fn no_dumps() -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_CORE).context("cannot read the limit of core dumps")?;
    BEFORE.get_or_init(|| (soft, hard));
    // The hard half stays, so that a container can be given its own without a right of the kernel's.
    setrlimit(Resource::RLIMIT_CORE, 0, hard).context("cannot forbid core dumps")?;
    prctl::set_dumpable(false).context("cannot make this process undumpable")
}

/// Raises the number of files that may be open to what the host allows. The soft half, 1024 mostly, is meant for programs that
/// call select(2); each node, client and log that is followed takes one here. The hard half stays: nobody else is given more.
pub(crate) fn open_files() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = open_files_wanted(soft, hard);
    if wanted != soft
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    {
        warn!(%error, soft, wanted, "cannot raise the number of open files");
    }
}

fn open_files_wanted(soft: u64, hard: u64) -> u64 {
    soft.max(hard.min(MOST_OPEN_FILES))
}

/// Soft and hard limit of core dumps that this process was started with (bytes; `u64::MAX`: none): what containers have by
/// default, as under Docker's daemon.
pub(crate) fn core_limit() -> (u64, u64) {
    // Nobody forbade anything: a test.
    BEFORE.get().copied().unwrap_or_else(|| getrlimit(Resource::RLIMIT_CORE).unwrap_or((0, 0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn open_files_are_as_many_as_the_host_allows() {
        assert_eq!(open_files_wanted(1024, 524_288), 524_288);
        assert_eq!(open_files_wanted(1024, 1_073_741_816), MOST_OPEN_FILES);
        assert_eq!(open_files_wanted(4096, 4096), 4096);
        assert_eq!(open_files_wanted(u64::MAX, u64::MAX), u64::MAX, "nothing is taken away");
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        open_files();
        let after = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(after.0 >= hard.min(MOST_OPEN_FILES), "{after:?}");
        assert_eq!(after.1, hard);
    }
}
