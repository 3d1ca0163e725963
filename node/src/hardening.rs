//! Keeps the daemon's memory, which holds keys and secrets, off the disk and from other processes.
//!
//! Called once, first thing. Programs that the daemon starts set this for themselves: an exec makes a process dumpable
//! again (prctl(2)), and of the limit only the soft half is changed, so that a container can be given its own.

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// No core dumps, no reading by other processes of this user (prctl(2), PR_SET_DUMPABLE; core(5)).
pub(crate) fn no_dumps() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).context("cannot read the limit of core dumps")?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard).context("cannot forbid core dumps")?;
    prctl::set_dumpable(false).context("cannot make this process undumpable")
}
