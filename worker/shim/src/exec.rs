//! `skep-shim exec`: runs one command inside a running container, says how it ended, and ends.
//!
//! Started by the agent, from memory (a process in a container must never see a program of the host that it could
//! write to, CVE-2019-5736), with the connection as descriptor 0 and the command's output as 1 and 2. This process stays
//! outside; a child enters and leaves the command behind, as another child of this one (`enter.rs`). An end of the connection,
//! also by the agent's death, kills the command and all that it started, which a cgroup of its own keeps together.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};

use skep_shim::entry::Entry;
use skep_shim::protocol;

use crate::cgroup::Killer;
use crate::enter::{self, Way};
use crate::sys;

/// Docker's code for a command that could not be begun.
const FAILED: i32 = 125;
/// How long killed processes may take to go before the next try.
const KILL_AGAIN_MS: u64 = 10;
/// How long they may take in all; one that the kernel does not let go is left to the container's end.
const KILL_WITHIN_MS: u64 = 3_000;

/// Runs the command; the exit code only tells whether this process did its own work.
pub(crate) fn run() -> i32 {
    // SAFETY: descriptor 0 is the connection that the agent gave us, owned by nobody else.
    let mut agent = unsafe { UnixStream::from_raw_fd(0) };
    let Ok(entry) = Entry::receive(&mut agent) else {
        return 1;
    };
    let verdict = match serve(&entry, &agent) {
        Ok(Some(code)) => format!("exited {code}\n"),
        Ok(None) => String::new(),
        Err((code, sentence)) => format!("failed {code} {sentence}\n"),
    };
    // The agent has gone: nobody wants to know.
    let _ = agent.write_all(verdict.as_bytes());
    0
}

/// Returns the exit code; `None`: it was killed because nobody waits for it any more.
fn serve(entry: &Entry, agent: &UnixStream) -> Result<Option<i32>, (i32, String)> {
    let words = |what: &'static str| move |error: io::Error| (FAILED, format!("{what}: {}", sys::words(&error)));
    sys::block_signals().map_err(words("cannot block signals"))?;
    // SAFETY: plain numbers and a C string. Not dumpable: no process of the container that lacks CAP_SYS_PTRACE may look into
    // a child before it has become the command; execve(2) ends that.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"skep-exec".as_ptr());
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
    sys::no_core_files();
    let children = sys::child_signal_fd().map_err(words("cannot watch children"))?;
    let container = open_container(entry).map_err(words("the container does not run"))?;
    let own_users = has_own_users(entry.pid).map_err(words("the container does not run"))?;
    make_group(entry).map_err(words("cannot make a cgroup"))?;
    let (mut report, report_write) = sys::pipe().map_err(words("cannot make a pipe"))?;
    let born = sys::shared_pid().map_err(words("cannot share memory"))?;
    // SAFETY: this process has one thread, so the child may do all that it may.
    let entering = unsafe { libc::fork() };
    match entering {
        -1 => return Err(words("cannot make a process")(io::Error::last_os_error())),
        0 => enter::run(&Way { entry, container: &container, own_users, born }, &report_write),
        _ => drop(report_write),
    }
    drop(container);
    let code = wait(entry, agent, &children, entering, born);
    let mut said = Vec::new();
    // Nothing more is said after the command's begin, or a child's end.
    let _ = report.read_to_end(&mut said);
    match String::from_utf8_lossy(&said).split_once(' ') {
        Some((code, sentence)) => Err((code.parse().unwrap_or(FAILED), sentence.to_owned())),
        None => Ok(code),
    }
}

/// The container's first process, if it is still the one that was meant.
fn open_container(entry: &Entry) -> io::Result<OwnedFd> {
    let container = sys::pidfd_open(entry.pid)?;
    // Asked after the descriptor was opened: from now on it cannot become another process.
    let stat = fs::read(format!("/proc/{}/stat", entry.pid))?;
    match protocol::start_ticks(&stat) {
        Some(ticks) if ticks == entry.start_ticks => Ok(container),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Whether it has a user namespace of its own; one cannot enter where one is already (setns(2)).
fn has_own_users(pid: i32) -> io::Result<bool> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/user"));
    Ok(namespace(&pid.to_string())? != namespace("self")?)
}

/// The group may be there from an earlier command; what that left running ends now.
fn make_group(entry: &Entry) -> io::Result<()> {
    match fs::create_dir(&entry.group) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            killer(entry).kill_all();
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn killer(entry: &Entry) -> Killer<'_> {
    Killer { kill_file: &entry.kill_file, freezer: &entry.freezer, procs_file: &entry.procs_file }
}

/// Waits for the command's end, or kills it when the connection ends. `entering` is the process that makes it.
fn wait(entry: &Entry, agent: &UnixStream, children: &OwnedFd, entering: i32, born: &'static AtomicI32) -> Option<i32> {
    let mut deadline: Option<u64> = None;
    let mut on_its_way = true;
    loop {
        let watch = |fd| libc::pollfd { fd, events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
        let mut fds = [watch(children.as_raw_fd()), watch(agent.as_raw_fd())];
        // Once nobody waits any more, only the children count.
        let (fds, timeout) = match deadline {
            None => (&mut fds[..], None),
            Some(_) => (&mut fds[..1], Some(KILL_AGAIN_MS)),
        };
        if sys::poll(fds, timeout).is_err() {
            deadline.get_or_insert(0);
        }
        sys::drain_signals(children);
        while let Some(ended) = sys::reap() {
            // A command can have more children made for this process (clone(2), CLONE_PARENT): they do not count.
            let command = born.load(Ordering::Relaxed);
            if ended.pid == command || (ended.pid == entering && command == 0) {
                return deadline.is_none().then_some(ended.code);
            }
            on_its_way &= ended.pid != entering;
        }
        if deadline.is_none() && fds.get(1).is_some_and(|agent| agent.revents != 0) {
            deadline = Some(sys::monotonic_ms() + KILL_WITHIN_MS);
        }
        if let Some(deadline) = deadline {
            killer(entry).kill_all();
            // It may not have joined the group yet; the command is in it from its first moment.
            if on_its_way {
                let _ = sys::kill(entering, libc::SIGKILL);
            }
            if sys::monotonic_ms() > deadline {
                return None;
            }
        }
    }
}

/// `/dev/null` as this host has it, for descriptors that nobody uses.
pub(crate) fn null() -> io::Result<File> {
    File::open("/dev/null")
}
