//! What a process gives up on its way to a container's command: limits, capabilities, ids, new privileges, system calls.
//!
//! Used by a container's first process and by commands in a running one, so that both are confined by the same lines.

use std::io;

use skep_shim::entry::Rlimit;

use crate::sys;

/// The confinement of a process.
pub(crate) struct Rights<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Further groups.
    pub(crate) groups: &'a [u32],
    /// All that may ever be held; root holds them at once.
    pub(crate) capabilities: u64,
    pub(crate) no_new_privileges: bool,
    /// Absolute working directory.
    pub(crate) cwd: &'a str,
    /// Instructions for seccomp(2); empty: none.
    pub(crate) filter: &'a [u8],
}

/// What failed, and how.
pub(crate) type Failure = (&'static str, io::Error);

fn because(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| (what, error)
}

/// setrlimit(2) for each. Raising one needs rights that [`confine`] takes.
pub(crate) fn limit(limits: &[Rlimit]) -> Result<(), Failure> {
    for limit in limits {
        let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
        // SAFETY: `value` lives through the call.
        sys::check(unsafe { libc::setrlimit(limit.resource as _, &raw const value) })
            .map_err(because("cannot set a ulimit"))?;
    }
    Ok(())
}

/// Enters the working directory and takes exactly these rights, the filter as late as it can be installed.
pub(crate) fn confine(rights: &Rights<'_>) -> Result<(), Failure> {
    if rights.filter.is_empty() || rights.no_new_privileges {
        give_up(rights)?;
        return install(rights);
    }
    // Without no-new-privileges only root's rights allow a filter; it lets through what follows.
    install(rights)?;
    give_up(rights)
}

fn give_up(rights: &Rights<'_>) -> Result<(), Failure> {
    sys::bound_capabilities(rights.capabilities).map_err(because("cannot drop capabilities"))?;
    // A folder that only root may enter is entered as root, one that only the user may (a network's) as the user.
    let cwd = sys::c_string(rights.cwd).map_err(because("cannot use the working directory"))?;
    // SAFETY: a C string; lists and numbers that live through the calls.
    unsafe {
        let entered = libc::chdir(cwd.as_ptr());
        sys::check(libc::setgroups(rights.groups.len(), rights.groups.as_ptr()))
            .and_then(|_| sys::check(libc::setresgid(rights.gid, rights.gid, rights.gid)))
            .and_then(|_| sys::check(libc::setresuid(rights.uid, rights.uid, rights.uid)))
            .map_err(because("cannot become the container's user"))?;
        let held = if rights.uid == 0 { rights.capabilities } else { 0 };
        sys::hold_capabilities(held).map_err(because("cannot drop capabilities"))?;
        if entered != 0 {
            sys::check(libc::chdir(cwd.as_ptr())).map_err(because("cannot enter the working directory"))?;
        }
        if rights.no_new_privileges {
            sys::check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
                .map_err(because("cannot give up new privileges"))?;
        }
    }
    // A path through /proc/self/fd could lead to a folder outside of the container (CVE-2024-21626); the kernel then
    // gives a name that does not begin at the root.
    match sys::working_directory() {
        Ok(path) if path.starts_with(b"/") => Ok(()),
        _ => Err(("cannot use the working directory", io::Error::other("it is outside of the container"))),
    }
}

fn install(rights: &Rights<'_>) -> Result<(), Failure> {
    if rights.filter.is_empty() {
        return Ok(());
    }
    sys::install_filter(rights.filter).map_err(because("cannot install the seccomp filter"))
}
