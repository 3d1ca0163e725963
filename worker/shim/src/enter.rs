//! The child of `skep-shim exec` on its way into the container: cgroups, limits, namespaces, rights, and then the command.
//!
//! The order matters: what needs the host's file systems comes before the mount namespace, what needs root's rights before
//! they go, and the seccomp filter as late as it can be installed. Nothing here returns to the parent's code.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use skep_shim::entry::Entry;

use crate::program::{Command, FAILED, Refusal};
use crate::rights::{self, Failure, Rights};
use crate::{exec, sys};

/// The namespaces of the container besides that of its process ids, which the parent has arranged for.
const NAMESPACES: libc::c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP;

/// Becomes the command (`own_users`: the container has a user namespace of its own), or says on `report` why not: `<exit code> <sentence>`.
pub(crate) fn run(entry: &Entry, container: &OwnedFd, own_users: bool, mut report: File) -> ! {
    let (code, sentence) = become_command(entry, container, own_users);
    let _ = report.write_all(format!("{code} {sentence}").as_bytes());
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

/// Returns only with why it did not.
fn become_command(entry: &Entry, container: &OwnedFd, own_users: bool) -> Refusal {
    match prepare(entry, container, own_users).and_then(|()| rights::confine(&rights_of(entry))) {
        Ok(()) => Command::new(&entry.args, &entry.env).map_or_else(|refusal| refusal, |command| command.run()),
        Err((what, error)) => (FAILED, format!("{what}: {}", sys::words(&error))),
    }
}

fn rights_of(entry: &Entry) -> Rights<'_> {
    Rights {
        uid: entry.uid,
        gid: entry.gid,
        groups: &entry.groups,
        capabilities: entry.capabilities,
        no_new_privileges: entry.no_new_privileges,
        cwd: &entry.cwd,
        filter: &entry.filter,
    }
}

fn prepare(entry: &Entry, container: &OwnedFd, own_users: bool) -> Result<(), Failure> {
    let because = |what: &'static str| move |error: io::Error| (what, error);
    for file in &entry.join {
        match fs::write(file, "0") {
            // A hierarchy in which the container has no group.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(because("cannot join the container's cgroup"))?,
        }
    }
    fs::write("/proc/self/oom_score_adj", entry.oom_score_adj.to_string())
        .map_err(because("cannot set the OOM score"))?;
    sys::choose_profile(&entry.apparmor).map_err(because("cannot apply the AppArmor profile"))?;
    let stdin = exec::null().map_err(because("cannot open /dev/null"))?;
    sys::duplicate(&stdin, 0).map_err(because("cannot set the input"))?;
    sys::close_on_exec().map_err(because("cannot close files"))?;
    rights::limit(&entry.rlimits)?;
    sys::enter_namespaces(container, NAMESPACES).map_err(because("cannot enter the container"))?;
    if own_users {
        // Last: the others are entered with the host's rights.
        sys::enter_namespaces(container, libc::CLONE_NEWUSER).map_err(because("cannot enter the user namespace"))?;
    }
    // SAFETY: plain numbers; this process has one thread.
    unsafe {
        libc::setsid();
        libc::umask(0o022);
    }
    Ok(())
}
