//! That there is one netd in a folder: a lock, held until the process ends. One that starts beside another takes its place:
//! it asks the other to end, which leaves the kernel and the folder as they are, and goes on from there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::process::{StartError, file};

/// How long another one may take to end: calls under way are finished.
const LONGEST: Duration = Duration::from_secs(5);
/// How often it looks whether the lock is free: of one that was killed it is in a moment.
const LOOK: Duration = Duration::from_millis(2);

/// Makes this process the only one. Blocks while another one ends.
pub(super) fn take(dir: &Path, socket: &Path) -> Result<(), StartError> {
    let path = dir.join("lock");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut free = open.map_err(file("make", &path))?;
    let (deadline, mut asked) = (Instant::now() + LONGEST, false);
    loop {
        match Flock::lock(free, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                write_pid(&mut lock).map_err(file("write", &path))?;
                // Held until the process ends: its sockets are open until then.
                std::mem::forget(lock);
                return Ok(());
            }
            Err((taken, _)) => free = taken,
        }
        if !asked && let Some(process) = holder(&mut free, socket) {
            asked = true;
            tracing::info!("takes the place of another netd");
            process.end(deadline).map_err(file("take the place of the netd in", dir))?;
        }
        if Instant::now() > deadline {
            return Err(StartError::Taken(dir.to_owned()));
        }
        std::thread::sleep(LOOK);
    }
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(std::process::id().to_string().as_bytes())
}

/// A process that cannot be mixed up with a later one of its number (pidfd_open(2)).
struct Process(OwnedFd);

/// Who holds the lock: who has written its number there, and listens on the socket.
fn holder(lock: &mut File, socket: &Path) -> Option<Process> {
    let mut text = String::new();
    lock.rewind().and_then(|()| lock.read_to_string(&mut text)).ok()?;
    let stream = UnixStream::connect(socket).ok()?;
    let pid = getsockopt(&stream, PeerCredentials).ok()?.pid();
    if text.trim().parse() != Ok(pid) {
        return None;
    }
    // SAFETY: takes two numbers and gives a new descriptor, or -1.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let descriptor = i32::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0)?;
    // SAFETY: just made, and nobody else has it.
    Some(Process(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

impl Process {
    /// Asks it to end, and waits until it has, or the deadline is there.
    fn end(self, deadline: Instant) -> io::Result<()> {
        let (signal, none) = (libc::SIGTERM, std::ptr::null::<libc::siginfo_t>());
        // SAFETY: the descriptor is open, and no information is passed.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, none, 0) };
        if sent < 0 {
            return match io::Error::last_os_error() {
                // It has ended.
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            };
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // Where that is interrupted, the lock says whether it has ended.
        let _ = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout);
        Ok(())
    }
}
