//! Pairs of hosts to measure on: network namespaces on one bridge, and programs in them. A namespace has no name, so it
//! ends with this process and those in it; whatever is started here is ended when its handle is dropped, and by the
//! supervisor where this process is killed.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use skep_netlink::link::{Bridge, LinkChange, LinkKind, NewLink};
use skep_netlink::{Changes, Inside, Namespace, Rtnetlink};

/// Number of the first device that is made in a namespace.
const FIRST: u32 = 2;
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The hosts' network: a bridge, MTU 1500.
pub(super) struct Underlay {
    /// Keeps the bridge.
    _namespace: Namespace,
    rtnetlink: Rtnetlink,
}

impl Underlay {
    /// Without hosts.
    pub(super) fn new() -> Result<Self> {
        let (namespace, rtnetlink) = Namespace::anonymous(Inside::rtnetlink)?;
        let mut changes = Changes::new();
        let bridge = LinkKind::Bridge(Bridge::default());
        changes.add_link(&NewLink { index: Some(FIRST), up: true, ..NewLink::new("br0", bridge) });
        rtnetlink.apply(&changes)?;
        Ok(Self { _namespace: namespace, rtnetlink })
    }

    /// A host with an eth0 on this network.
    pub(super) fn host(&self, number: u8) -> Result<Host> {
        let (namespace, rtnetlink) = Namespace::anonymous(Inside::rtnetlink)?;
        let peer = NewLink { namespace: Some(namespace.as_fd()), ..NewLink::new("eth0", LinkKind::Peer) };
        let kind = LinkKind::Veth(Box::new(peer));
        let mut changes = Changes::new();
        changes.add_link(&NewLink { master: Some(FIRST), up: true, ..NewLink::new(format!("h{number}"), kind) });
        self.rtnetlink.apply(&changes)?;
        let mut changes = Changes::new();
        changes.change_link(FIRST, &LinkChange { up: Some(true), ..LinkChange::default() });
        changes.add_address(FIRST, format!("{}/24", address(number)).parse()?);
        rtnetlink.apply(&changes)?;
        Ok(Host { number, namespace })
    }
}

/// Where a host is reached by the others.
pub(super) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

/// A host.
pub(super) struct Host {
    pub(super) number: u8,
    pub(super) namespace: Namespace,
}

/// Names a namespace for nsenter(1) and ip(8), while this process holds it.
pub(super) fn path(namespace: &Namespace) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd())
}

/// A program with its arguments in a namespace, without input and output.
pub(super) fn inside(namespace: &Namespace, program: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(namespace))).arg("--").args(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Several commands of ip(8), or of bridge(8), at once.
pub(super) fn batch(namespace: &Namespace, program: &str, lines: &[String]) -> Result<()> {
    let mut command = inside(namespace, &[program, "-batch", "-"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot run nsenter")?;
    let mut input = child.stdin.take().context("a child has no input")?;
    input.write_all(lines.join("\n").as_bytes()).with_context(|| format!("cannot write to {program}"))?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{program}: {lines:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A process that is ended with its handle.
pub(super) struct Process(Child);

impl Process {
    /// Starts it.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        command.spawn().map(Self).with_context(|| format!("cannot run {command:?}"))
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Asks again and again until there is an answer; fails when the process ends or takes too long.
    pub(super) fn until<T>(&mut self, what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(answer) = ask() {
                return Ok(answer);
            }
            if let Some(status) = self.0.try_wait()? {
                bail!("{what} in vain: the process has ended, {status}");
            }
            ensure!(started.elapsed() < Duration::from_secs(20), "{what} in vain");
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// CPU time of all its threads so far, also of those that have ended.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let pid = libc::pid_t::try_from(self.id()).context("a process has no such number")?;
        let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: the call writes to `clock` only, which lives here.
        let found = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
        ensure!(found == 0, "process {pid} has no clock: {}", std::io::Error::from_raw_os_error(found));
        // SAFETY: the call writes to `time` only, which lives here.
        let read = unsafe { libc::clock_gettime(clock, &raw mut time) };
        ensure!(read == 0, "cannot read the clock of process {pid}: {}", std::io::Error::last_os_error());
        Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
