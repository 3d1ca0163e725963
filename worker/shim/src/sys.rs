//! The few system calls that std has no name for, each behind a safe function.
//!
//! Used by the other modules of the monitor. No policy here.

use std::ffi::{CStr, CString, c_int};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicI32;

/// Sets the soft limit of core files to nothing (setrlimit(2)): what a crash would write may hold secrets.
pub(crate) fn no_core_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through both calls. Lowering a soft limit cannot fail.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) == 0 {
            limit.rlim_cur = 0;
            libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
        }
    }
}

/// Turns a C result into an `io::Result`.
pub(crate) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A path or name as a C string.
pub(crate) fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Says something on stderr, which is the container's `shim.log`. Failing to is ignored: there is nowhere left to say it.
pub(crate) fn complain(text: &str) {
    let _ = io::stderr().write_all(format!("skep-shim: {text}\n").as_bytes());
}

/// The words for an error number, without std's "(os error N)".
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// Nanoseconds since 1970.
pub(crate) fn unix_ns() -> u64 {
    read_clock(libc::CLOCK_REALTIME)
}

/// Milliseconds of a clock that never jumps.
pub(crate) fn monotonic_ms() -> u64 {
    read_clock(libc::CLOCK_MONOTONIC) / 1_000_000
}

fn read_clock(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec; both clocks exist on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Blocks every signal and ignores SIGPIPE; signals then arrive by [`signal_fd`] or `sigwait` only.
pub(crate) fn block_signals() -> io::Result<()> {
    // SAFETY: an all-zero sigset_t is a valid value for sigfillset to fill; the old mask is not asked for.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()))?;
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    Ok(())
}

/// A descriptor that is readable when a child changed state.
pub(crate) fn child_signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset; a fresh descriptor is owned by nobody else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A pipe: (read end, not blocking; write end). Both close on exec.
pub(crate) fn pipe() -> io::Result<(File, File)> {
    let mut ends: [RawFd; 2] = [-1, -1];
    // SAFETY: `ends` has room for two descriptors, which are fresh and owned by nobody else.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        let pair = (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]));
        check(libc::fcntl(ends[0], libc::F_SETFL, libc::O_NONBLOCK))?;
        Ok(pair)
    }
}

/// Waits until a descriptor is ready; None in `timeout_ms` waits for ever. Interruptions count as "nothing ready".
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout_ms: Option<u64>) -> io::Result<()> {
    let timeout = timeout_ms.map_or(-1, |ms| c_int::try_from(ms).unwrap_or(c_int::MAX));
    // SAFETY: the slice is valid for its length for the whole call.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// Reads from a connection (recvmsg(2)); descriptors that come along (`SCM_RIGHTS`, unix(7)) are added to `files`, and close on
/// exec.
pub(crate) fn receive(stream: &impl AsRawFd, bytes: &mut [u8], files: &mut Vec<OwnedFd>) -> io::Result<usize> {
    /// Room for a header and a few descriptors, aligned as the kernel wants it.
    #[repr(C, align(8))]
    struct Room([u8; 64]);
    let mut room = Room([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is valid; what it then points to lives through the call with the lengths that are told.
    // The kernel fills the control buffer with whole headers, which the macros walk; each number in it is a fresh descriptor
    // that nobody else owns.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut room).cast();
        message.msg_controllen = size_of::<Room>() as _;
        let count = libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
        let count = check(count as c_int)?;
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let held = ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                for at in 0..held / size_of::<RawFd>() {
                    files.push(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        Ok(count as usize)
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// Its process id.
    pub(crate) pid: i32,
    /// Exit code, if it exited.
    pub(crate) code: i32,
    /// The signal that ended it; 0: it exited.
    pub(crate) signal: i32,
}

/// Reaps one ended child, if there is one.
pub(crate) fn reap() -> Option<Ended> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        if pid <= 0 {
            return None;
        }
        if libc::WIFEXITED(status) {
            return Some(Ended { pid, code: libc::WEXITSTATUS(status), signal: 0 });
        }
        if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            return Some(Ended { pid, code: 128 + signal, signal });
        }
    }
}

/// Sends a signal to one process.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// mount(2). An empty `kind` or `data` means none.
pub(crate) fn mount(source: &str, target: &CStr, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (source, kind, data) = (c_string(source)?, c_string(kind)?, c_string(data)?);
    // SAFETY: all four are NUL-ended strings that live through the call.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) })
        .map(drop)
}

/// A place that this process and those that it makes from now on share, for one process id; 0 at first.
pub(crate) fn shared_pid() -> io::Result<&'static AtomicI32> {
    let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: new memory, zeroed and aligned to a page, that is never unmapped.
    unsafe {
        match libc::mmap(std::ptr::null_mut(), size_of::<AtomicI32>(), read_write, shared, -1, 0) {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            place => Ok(&*place.cast::<AtomicI32>()),
        }
    }
}

/// fork(2) of a child of this process' parent. Its id is in `born` before it runs; 0 in the new one.
pub(crate) fn fork_sibling(born: &'static AtomicI32) -> io::Result<i32> {
    let flags = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
    // Here flags come first, on all processors but s390, and the place for the id third on all.
    // SAFETY: no stack: the process has one thread, and the child gets a copy of all memory, so it may do all that this one
    // may. The place lives for ever.
    let pid = unsafe {
        let none = 0_usize;
        libc::syscall(libc::SYS_clone, flags as libc::c_long, none, born.as_ptr(), none, none)
    };
    check(pid as c_int)
}

/// The child's way back from [`block_signals`]: what a program expects to begin with.
pub(crate) fn default_signals() {
    // SAFETY: an all-zero sigset_t is a valid value for sigemptyset to fill; defaults run no handler.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Takes what a signalfd holds; children are then found by [`reap`].
pub(crate) fn drain_signals(signals: &OwnedFd) {
    let mut drop_signal = [0u8; 128];
    // SAFETY: reads at most the buffer's size into it; the descriptor does not block.
    unsafe {
        libc::read(signals.as_raw_fd(), drop_signal.as_mut_ptr().cast(), drop_signal.len());
    }
}

/// A descriptor of a process (pidfd_open(2), Linux 5.3).
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the fresh descriptor is owned by nobody else, and closes on exec by itself.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::syscall(libc::SYS_pidfd_open, pid, 0) as c_int)?)) }
}

/// Enters namespaces of a process by its pidfd (setns(2), Linux 5.8).
pub(crate) fn enter_namespaces(process: &OwnedFd, kinds: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open; the process has one thread.
    check(unsafe { libc::setns(process.as_raw_fd(), kinds) }).map(drop)
}

/// The working directory's path (getcwd(2)); one outside of the root directory has a path that does not begin with `/`.
pub(crate) fn working_directory() -> io::Result<Vec<u8>> {
    let mut path = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer has the length that is told. The system call itself: the C library hides such paths.
    let length = check(unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) } as c_int)?;
    path.truncate(length as usize);
    Ok(path)
}

/// Gives this process an empty session keyring of its own (keyctl(2)): the monitor's is the daemon's. Where the kernel or a
/// sandbox around it has no keyrings, there is none to be shared.
pub(crate) fn leave_keyring() -> io::Result<()> {
    // linux/keyctl.h
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a number and no name, which asks for one without.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match check(joined as c_int) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Err(error),
        _ => Ok(()),
    }
}

/// Has the next program run under an AppArmor profile, which the kernel must have (apparmor(7), aa_change_onexec(2)); empty:
/// nothing changes. `/proc` must be the host's.
pub(crate) fn choose_profile(profile: &str) -> io::Result<()> {
    if profile.is_empty() {
        return Ok(());
    }
    let text = format!("exec {profile}");
    match std::fs::write("/proc/self/attr/apparmor/exec", &text) {
        // Before Linux 5.8 there was one security module with such files.
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::write("/proc/self/attr/exec", &text),
        other => other,
    }
}

/// sethostname(2).
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: the text lives through the call and has the length that is told.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Makes `to` another name of `fd`, one that passes through exec.
pub(crate) fn duplicate(fd: &impl AsRawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: the first descriptor is open; the second is closed by the call if it was.
    check(unsafe { libc::dup2(fd.as_raw_fd(), to) }).map(drop)
}

/// Closes every descriptor past the first three but `kept`, which moves to `place` and closes on exec (close_range(2),
/// Linux 5.9; one by one where a sandbox refuses it).
pub(crate) fn keep_first(kept: RawFd, place: RawFd) -> io::Result<()> {
    if kept != place {
        // SAFETY: the first descriptor is open; what was the second is closed by the call.
        check(unsafe { libc::dup3(kept, place, libc::O_CLOEXEC) })?;
    }
    let first = (place + 1) as libc::c_uint;
    // SAFETY: plain numbers; the caller owns nothing past `place` any more.
    let closed = check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) } as c_int);
    if closed.is_ok() {
        return Ok(());
    }
    let open = std::fs::read_dir("/proc/self/fd")?.flatten();
    let numbers: Vec<RawFd> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > place) {
        // SAFETY: as above.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Takes every capability out of the bounding set that is not in `kept` (capabilities(7)).
pub(crate) fn bound_capabilities(kept: u64) -> io::Result<()> {
    for capability in 0..64 {
        if kept & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: plain numbers.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            // Past the last that the kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            other => other.map(drop)?,
        }
    }
    Ok(())
}

/// Holds exactly `held`, inheritable none (capset(2)).
pub(crate) fn hold_capabilities(held: u64) -> io::Result<()> {
    // linux/capability.h, _LINUX_CAPABILITY_VERSION_3
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let half = |bits: u32| Data { effective: bits, permitted: bits, inheritable: 0 };
    let header = Header { version: 0x2008_0522, pid: 0 };
    let data = [half(held as u32), half((held >> 32) as u32)];
    // SAFETY: both live through the call and have the kernel's layout.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } as c_int).map(drop)
}

/// Puts this thread, for good, under a seccomp program (seccomp(2)).
pub(crate) fn install_filter(program: &[u8]) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let (instructions, rest) = program.as_chunks::<{ size_of::<libc::sock_filter>() }>();
    let mut instructions: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|[code0, code1, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_ne_bytes([*code0, *code1]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        })
        .collect();
    let length = u16::try_from(instructions.len()).map_err(|_| invalid())?;
    if !rest.is_empty() {
        return Err(invalid());
    }
    let header = libc::sock_fprog { len: length, filter: instructions.as_mut_ptr() };
    // SAFETY: `header` and the instructions it points to live through the call, which copies them.
    let installed = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const header) };
    check(installed as c_int).map(drop)
}
