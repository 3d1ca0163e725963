//! Keeps the daemon's memory, which holds keys and secrets, off the disk and from other processes.
//!
//! [`no_dumps`] is called once, first thing. Programs that the daemon starts inherit the limit, and make themselves
//! undumpable: an exec undoes that (prctl(2)). Containers are no such programs: they get the limits of before.

use std::sync::OnceLock;

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

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

/// Soft and hard limit of core dumps that this process was started with (bytes; `u64::MAX`: none): what containers have by
/// default, as under Docker's daemon.
pub(crate) fn core_limit() -> (u64, u64) {
    // Nobody forbade anything: a test.
    BEFORE.get().copied().unwrap_or_else(|| getrlimit(Resource::RLIMIT_CORE).unwrap_or((0, 0)))
}
