//! The resident monitor's program: carried inside this library, written out at start, spawned for each container.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use skep_shim::config::ShimConfig;

use crate::error::RuntimeError;
use crate::files;

/// The static program, built by `build.rs`.
pub(crate) const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/skep-shim"));

/// Name of a monitor's socket in its container's directory.
const SOCKET: &str = "shim.sock";
/// Tries, and the wait between them, while the program is still open for writing in a process that is about to execute.
const BUSY_TRIES: u32 = 100;
const BUSY_WAIT: Duration = Duration::from_millis(1);

/// Writes the program, which containers with a tiny init have mounted, to `dir` under a name of its content, unless it is there, and returns its path. Older ones
/// stay: running containers have them.
pub(crate) fn install(dir: &Path) -> Result<PathBuf, RuntimeError> {
    let path = dir.join(format!("skep-shim-{:016x}", fingerprint(PROGRAM)));
    if fs::metadata(&path).is_ok_and(|meta| meta.len() == PROGRAM.len() as u64) {
        return Ok(path);
    }
    let temporary = dir.join(format!(".skep-shim.{}", std::process::id()));
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o755).open(&temporary)?;
        file.write_all(PROGRAM)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(RuntimeError::io("write the monitor to", &path))?;
    Ok(path)
}

/// FNV-1a: names a build; not a check against an attacker, who cannot write to the directory.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Starts a monitor (`program`, in memory and sealed) for the container in `dir`, tells it what to do, hands it its secrets and
/// configs (`held`), and returns the connection to it. The monitor
/// leaves its parent's session; the agent reaps it only when it ends before the agent does.
pub(crate) fn spawn(
    program: &OwnedFd,
    dir: &Path,
    config: &ShimConfig,
    held: Option<&OwnedFd>,
) -> io::Result<(UnixStream, std::process::Child)> {
    let (ours, theirs) = UnixStream::pair()?;
    let log = File::create(dir.join("shim.log"))?;
    // A container's first process is this program until it becomes the container's own.
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    // Without pre_exec std spawns without copying the agent's page tables.
    command
        .arg0("skep-shim")
        .arg(dir)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(log);
    let mut tries = BUSY_TRIES;
    let mut child = loop {
        match command.spawn() {
            // Another thread was starting a program while this one was being written: that child holds the descriptor
            // until it executes, microseconds later.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries > 0 => tries -= 1,
            other => break other?,
        }
        std::thread::sleep(BUSY_WAIT);
    };
    // It holds the other end too: the monitor alone may, so that its end is seen.
    drop(command);
    let told = config.send(&ours).and_then(|()| held.map_or(Ok(()), |held| files::hand_over(&ours, held)));
    if let Err(error) = told.and_then(|()| ours.set_nonblocking(true)) {
        // A monitor that was not told everything starts nothing and ends.
        drop(ours);
        child.wait()?;
        return Err(error);
    }
    Ok((ours, child))
}

/// Connects to the monitor of the container in `dir`. Its path may be longer than a socket address can hold (unix(7)),
/// so it goes through the directory's descriptor.
pub(crate) fn connect(dir: &Path) -> io::Result<UnixStream> {
    let folder = File::open(dir)?;
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Whether a monitor listens in `dir`, or was killed while it did. It does before it makes anything.
pub(crate) fn has_socket(dir: &Path) -> bool {
    dir.join(SOCKET).symlink_metadata().is_ok()
}

/// Waits, for a bounded time, until the monitor of an ended container has written its record and gone: what it still
/// writes would be in the way of a removal.
pub(crate) fn wait_until_gone(dir: &Path) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let Ok(mut stream) = connect(dir) else { return };
    let told = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
    // The connection ends with the process; what it says on the way does not matter here.
    let _ = told.and_then(|()| io::copy(&mut stream, &mut io::sink()));
}
