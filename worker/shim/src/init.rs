//! The tiny init of `--init`: process 1 of a container that reaps orphans and forwards signals to its one child.
//!
//! Runs inside the container as `/sbin/docker-init -- <command>`, with the container's own rights. It ends with the
//! child's exit code; the kernel then ends the rest of the pid namespace.

use std::ffi::{CStr, c_char};

use crate::sys;

/// Runs the command behind `--` and returns the exit code for the container.
pub(crate) fn run(args: &[&CStr]) -> i32 {
    let Some((dashes, command @ [_, ..])) = args.split_first() else {
        sys::complain("init: usage: init -- <command>");
        return 125;
    };
    if dashes.to_bytes() != b"--" {
        sys::complain("init: expected -- before the command");
        return 125;
    }
    let mut argv: Vec<*const c_char> = command.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());

    // SAFETY: all-zero sigset_t values are filled by the calls; one thread, so fork copies everything; the child only
    // calls async-signal-safe functions before exec; `argv` is NULL-ended and its strings live for ever.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let child = libc::fork();
        if child == 0 {
            libc::setpgid(0, 0);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
            libc::execvp(argv[0], argv.as_ptr());
            let error = std::io::Error::last_os_error();
            let name = command[0].to_string_lossy();
            sys::complain(&format!("init: exec {name:?}: {}", sys::words(&error)));
            libc::_exit(if error.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 });
        }
        if child < 0 {
            sys::complain(&format!("init: fork: {}", std::io::Error::last_os_error()));
            return 125;
        }
        serve(child, &all)
    }
}

/// Forwards signals and reaps until the child has ended.
fn serve(child: i32, all: &libc::sigset_t) -> i32 {
    loop {
        let mut signal = 0;
        // SAFETY: the set is initialised, `signal` is a valid place.
        if unsafe { libc::sigwait(std::ptr::from_ref(all), &raw mut signal) } != 0 {
            continue;
        }
        if signal != libc::SIGCHLD {
            let _ = sys::kill(child, signal);
            continue;
        }
        while let Some(ended) = sys::reap() {
            if ended.pid == child {
                return ended.code;
            }
        }
    }
}
