//! User namespaces: makes them, and network namespaces that belong to one (user_namespaces(7)).
//!
//! Used by whoever makes sandboxes. Only a process of one thread can enter a user namespace, so what happens inside happens in
//! a short-lived process that shares this one's memory (a copy of that would cost milliseconds) and makes system calls only.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::error::NetlinkError;
use crate::namespace::Namespace;

/// File beside a network namespace's where the user namespace that owns it is kept.
pub const USERS: &str = "user";
/// Stack of a process that makes system calls: it needs next to none.
const STACK: usize = 64 << 10;

/// Makes a user namespace with these ids and keeps it at `path`. `uids` and `gids` are what its `uid_map` and `gid_map` are to
/// hold: a line for each range, with the first id inside, the first id outside, and their number.
///
/// # Errors
/// Also when there is a namespace at `path` already.
pub fn create(path: &Path, uids: &str, gids: &str) -> Result<(), NetlinkError> {
    let shown = path.display();
    if Namespace::is_at(path) {
        let problem = "there is one already".to_owned();
        return Err(NetlinkError::Invalid { action: format!("make a user namespace at {shown}"), problem });
    }
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(NetlinkError::io(format!("make the file {shown}")))?;
    let kept = Visitor::begin(CloneFlags::CLONE_NEWUSER, || 0).and_then(|visitor| {
        for (file, ranges) in [("uid_map", uids), ("gid_map", gids)] {
            fs::write(visitor.proc(file), ranges).map_err(NetlinkError::io(format!(
                "write {:?} to the {file} of a user namespace",
                ranges.trim_end()
            )))?;
        }
        mount(Some(visitor.proc("ns/user").as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(NetlinkError::errno_of(format!("bind a user namespace to {shown}")))
    });
    if kept.is_err() {
        let _ = fs::remove_file(path);
    }
    kept
}

/// Whether the namespace kept at `path` belongs to the user namespace kept at `owner`.
pub fn owns(owner: &Path, path: &Path) -> Result<bool, NetlinkError> {
    // linux/nsfs.h
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    let step = || format!("ask whose {} is", path.display());
    let namespace = File::open(path).map_err(NetlinkError::io(step()))?;
    // SAFETY: an open descriptor and a number; the fresh descriptor is owned by nobody else.
    let found = unsafe {
        let fd = libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS);
        if fd < 0 {
            return Err(NetlinkError::io(step())(io::Error::last_os_error()));
        }
        File::from_raw_fd(fd)
    };
    let inode =
        |meta: io::Result<fs::Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).map_err(NetlinkError::io(step()));
    Ok(inode(found.metadata())? == inode(fs::metadata(owner))?)
}

/// A new network namespace that belongs to the user namespace kept at `owner`.
pub(crate) fn network_of(owner: &Path) -> Result<File, NetlinkError> {
    let step = || format!("make a network namespace that belongs to {}", owner.display());
    let users = File::open(owner).map_err(NetlinkError::io(step()))?;
    let fd = users.as_raw_fd();
    let visitor = Visitor::begin(CloneFlags::empty(), move || {
        // SAFETY: an open descriptor and plain flags; this process has one thread.
        unsafe {
            match libc::setns(fd, libc::CLONE_NEWUSER) == 0 && libc::unshare(libc::CLONE_NEWNET) == 0 {
                true => 0,
                false => *libc::__errno_location(),
            }
        }
    })
    .map_err(|error| match error {
        NetlinkError::Invalid { problem, .. } => NetlinkError::Invalid { action: step(), problem },
        other => other,
    })?;
    File::open(visitor.proc("ns/net")).map_err(NetlinkError::io(step()))
}

/// What it does, and where it says how that went.
struct Job<'a> {
    work: &'a mut dyn FnMut() -> i32,
    tell: RawFd,
}

/// All that it does.
extern "C" fn visit(job: *mut libc::c_void) -> libc::c_int {
    // SAFETY: its maker's, who does not touch it before the word is there.
    let job = unsafe { &mut *job.cast::<Job<'_>>() };
    let errno = (job.work)().to_ne_bytes();
    // SAFETY: an open descriptor and bytes that live through the call; then a wait for nothing but SIGKILL. The calls
    // themselves: the C library's note something in the thread whose memory this is.
    unsafe {
        libc::syscall(libc::SYS_write, job.tell, errno.as_ptr(), errno.len());
        loop {
            libc::syscall(libc::SYS_ppoll, 0, 0, 0, 0, 0);
        }
    }
}

/// A process of one thread that has done what it was made for, and waits. Ends when dropped.
struct Visitor {
    pid: Pid,
    /// It runs on it.
    _stack: Vec<u8>,
}

impl Visitor {
    /// Makes one, in namespaces of its own as `flags` say, and has it do `work`, which makes system calls only and returns an
    /// errno, 0 for success.
    fn begin(flags: CloneFlags, mut work: impl FnMut() -> i32) -> Result<Self, NetlinkError> {
        let (mut told, tell) = io::pipe().map_err(NetlinkError::io("make a pipe"))?;
        let mut stack = vec![0u8; STACK];
        let mut job = Job { work: &mut work, tell: tell.as_raw_fd() };
        // Its signals would run this process' handlers on its own small stack: it gets none but SIGKILL.
        let mut before = SigSet::empty();
        let blocked = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before));
        // SAFETY: it shares the memory, but nothing of it is touched by both: this thread waits for its word, and after that it
        // does nothing. Its stack, of which the end is told (aligned as the ABI wants it), lives as long as it does; the job
        // until its word.
        let made = blocked.and_then(|()| unsafe {
            let end = stack.as_mut_ptr().add(STACK);
            let end = end.sub(end as usize % 16);
            let flags = CloneFlags::CLONE_VM.bits() | flags.bits() | libc::SIGCHLD;
            Errno::result(libc::clone(visit, end.cast(), flags, (&raw mut job).cast())).map(Pid::from_raw)
        });
        let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        let visitor =
            Self { pid: made.map_err(NetlinkError::errno_of("make a process in a namespace"))?, _stack: stack };
        restored.map_err(NetlinkError::errno_of("take signals again"))?;
        // It has its own: if it ends without a word, so does the pipe.
        drop(tell);
        let mut errno = [0; 4];
        told.read_exact(&mut errno).map_err(NetlinkError::io("hear from a process in a namespace"))?;
        match i32::from_ne_bytes(errno) {
            0 => Ok(visitor),
            errno => Err(NetlinkError::Invalid {
                action: "enter a user namespace".to_owned(),
                problem: io::Error::from_raw_os_error(errno).to_string(),
            }),
        }
    }

    /// A file of its folder in `/proc`.
    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.pid)
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        // It is our child and not reaped: the pid is its own.
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, Some(WaitPidFlag::__WALL));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_network_namespace_belongs_to_the_users_beside_it() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = std::env::temp_dir().join(format!("skep-users-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let users = dir.join(USERS);
        create(&users, "0 100000 65536\n", "0 200000 65536\n").unwrap();
        assert!(create(&users, "0 1 1\n", "0 1 1\n").is_err());
        let net = dir.join("net");
        let (namespace, ()) = Namespace::create(&net, |_| Ok::<_, NetlinkError>(())).unwrap();
        drop(namespace);
        let (owned, strange) = (owns(&users, &net).unwrap(), owns(&users, Path::new("/proc/self/ns/net")).unwrap());
        let bad = create(&dir.join("bad"), "0 1\n", "").unwrap_err().to_string();
        let left = dir.join("bad").exists();
        Namespace::remove(&net).unwrap();
        Namespace::remove(&users).unwrap();
        fs::remove_dir(&dir).unwrap();
        assert_eq!((owned, strange), (true, false));
        assert!(bad.contains("uid_map") && !left, "{bad}");
    }
}
