//! The child of `skep-shim exec` on its way into the container: cgroups, limits, namespaces, rights, and then the command.
//!
//! The order matters: what needs the host's file systems comes before the mount namespace, what needs root's rights before
//! they go, and the seccomp filter as late as it can be installed. Nothing here returns to the parent's code.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::ptr;

use skep_shim::entry::Entry;

use crate::{exec, sys};

/// Docker's codes: it failed on the way; the program cannot be run; it is not there.
const FAILED: i32 = 125;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
/// Where programs are looked for when the container says nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The namespaces of the container besides that of its process ids, which the parent has arranged for.
const NAMESPACES: libc::c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP;

/// Becomes the command, or says on `report` why not: `<exit code> <sentence>`.
pub(crate) fn run(entry: &Entry, container: &OwnedFd, mut report: File) -> ! {
    let (code, sentence) = match prepare(entry, container) {
        Ok(()) => become_command(entry),
        Err((what, error)) => (FAILED, format!("{what}: {}", sys::words(&error))),
    };
    let _ = report.write_all(format!("{code} {sentence}").as_bytes());
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

type Failure = (&'static str, io::Error);

fn prepare(entry: &Entry, container: &OwnedFd) -> Result<(), Failure> {
    let because = |what: &'static str| move |error: io::Error| (what, error);
    for file in &entry.join {
        match fs::write(file, "0") {
            // A hierarchy that the container's runtime left alone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(because("cannot join the container's cgroup"))?,
        }
    }
    fs::write("/proc/self/oom_score_adj", entry.oom_score_adj.to_string())
        .map_err(because("cannot set the OOM score"))?;
    let stdin = exec::null().map_err(because("cannot open /dev/null"))?;
    sys::duplicate(&stdin, 0).map_err(because("cannot set the input"))?;
    sys::close_on_exec().map_err(because("cannot close files"))?;
    for limit in &entry.rlimits {
        let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
        // SAFETY: `value` lives through the call.
        sys::check(unsafe { libc::setrlimit(limit.resource as _, &raw const value) })
            .map_err(because("cannot set a ulimit"))?;
    }
    sys::enter_namespaces(container, NAMESPACES).map_err(because("cannot enter the container"))?;
    // SAFETY: plain numbers; this process has one thread.
    unsafe {
        libc::setsid();
        libc::umask(0o022);
    }
    if entry.filter.is_empty() || entry.no_new_privileges {
        give_up_rights(entry)?;
        return install(entry);
    }
    // Without no-new-privileges only root's rights allow a filter; it lets through what follows.
    install(entry)?;
    give_up_rights(entry)
}

/// Takes the user's ids and exactly the container's capabilities.
fn give_up_rights(entry: &Entry) -> Result<(), Failure> {
    let because = |what: &'static str| move |error: io::Error| (what, error);
    sys::bound_capabilities(entry.capabilities).map_err(because("cannot drop capabilities"))?;
    // A folder that only root may enter is entered as root, one that only the user may (a network's) as the user.
    let cwd = sys::c_string(&entry.cwd).map_err(because("cannot use the working directory"))?;
    // SAFETY: a C string; lists and numbers that live through the calls.
    unsafe {
        let entered = libc::chdir(cwd.as_ptr());
        sys::check(libc::setgroups(entry.groups.len(), entry.groups.as_ptr()))
            .and_then(|_| sys::check(libc::setresgid(entry.gid, entry.gid, entry.gid)))
            .and_then(|_| sys::check(libc::setresuid(entry.uid, entry.uid, entry.uid)))
            .map_err(because("cannot become the container's user"))?;
        let held = if entry.uid == 0 { entry.capabilities } else { 0 };
        sys::hold_capabilities(held).map_err(because("cannot drop capabilities"))?;
        if entered != 0 {
            sys::check(libc::chdir(cwd.as_ptr())).map_err(because("cannot enter the working directory"))?;
        }
        if entry.no_new_privileges {
            sys::check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
                .map_err(because("cannot give up new privileges"))?;
        }
    }
    Ok(())
}

fn install(entry: &Entry) -> Result<(), Failure> {
    if entry.filter.is_empty() {
        return Ok(());
    }
    sys::install_filter(&entry.filter).map_err(|error| ("cannot install the seccomp filter", error))
}

/// Returns only with why it did not.
fn become_command(entry: &Entry) -> (i32, String) {
    let name = entry.args[0].as_str();
    let strings =
        |texts: &[String]| texts.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(args), Ok(env)) = (strings(&entry.args), strings(&entry.env)) else {
        return (FAILED, "the command holds a zero byte".to_owned());
    };
    sys::default_signals();
    let error = search(name, &args, &env, entry);
    let said = sys::words(&error);
    match error.raw_os_error() {
        Some(libc::ENOENT) if name.contains('/') => (NOT_FOUND, format!("exec: {name:?}: no such file or directory")),
        Some(libc::ENOENT) => (NOT_FOUND, format!("exec: {name:?}: executable file not found in $PATH")),
        Some(libc::EACCES) => (NOT_EXECUTABLE, format!("exec: {name:?}: permission denied")),
        _ => (NOT_EXECUTABLE, format!("exec: {name:?}: {said}")),
    }
}

/// execvp(3) with the command's own PATH, and without its way out: a file that is no program is an error, no script.
fn search(name: &str, args: &[CString], env: &[CString], entry: &Entry) -> io::Error {
    if name.contains('/') {
        return execve(&args[0], args, env);
    }
    let path = entry.env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut refused = io::Error::from_raw_os_error(libc::ENOENT);
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let Ok(candidate) = CString::new(format!("{dir}/{name}")) else { continue };
        let error = execve(&candidate, args, env);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            // Another directory may have one that can be run.
            Some(libc::EACCES) => refused = error,
            _ => return error,
        }
    }
    refused
}

fn execve(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: C strings and NULL-ended lists of them that live through the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}
