//! Runs the program and collects what it says.

use std::io::Read as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a run may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A finished run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The command, with nothing of the surroundings in it.
pub(crate) fn command(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
    command
        .env_clear()
        .env("SKEP_HOST", format!("unix://{}", socket.display()))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Starts it; the caller talks to it while it runs.
pub(crate) fn start(socket: &Path, args: &[&str]) -> Child {
    command(socket, args).spawn().unwrap()
}

/// Runs it to its end without blocking the fake daemon.
pub(crate) async fn skep(socket: &Path, args: &[&str]) -> Run {
    let child = start(socket, args);
    finish(child).await
}

/// Waits for the end.
pub(crate) async fn finish(child: Child) -> Run {
    let id = child.id();
    let waiting = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(output) => output.unwrap().into(),
        Err(_) => {
            signal(id, libc::SIGKILL);
            panic!("skep did not end");
        }
    }
}

/// Sends a signal.
pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: kill(2) takes two numbers; the process is a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) }, 0);
}

/// Reads standard error until it contains `text`; what was read is taken from the child's later output.
pub(crate) async fn read_until(child: &mut Child, text: &'static str) -> String {
    let mut err = child.stderr.take().unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(text) {
            assert!(Instant::now() < deadline, "never said {text:?}: {}", String::from_utf8_lossy(&seen));
            assert_eq!(err.read(&mut byte).unwrap(), 1, "ended without {text:?}: {}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
        (err, String::from_utf8(seen).unwrap())
    });
    let (err, seen) = tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
    child.stderr = Some(err);
    seen
}

/// Runs it with standard error on a terminal of 60 columns and 10 rows; tells the exit code and what the terminal got.
pub(crate) async fn skep_on_terminal(socket: &Path, args: &[&str]) -> (Option<i32>, String) {
    let size = libc::winsize { ws_row: 10, ws_col: 60, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: openpty(3) writes two descriptors through valid pointers and reads `size`; the others may be null.
    let result = unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), &size) };
    assert_eq!(result, 0);
    // SAFETY: both descriptors are new, valid, and owned by nobody else.
    let (mut master, slave) = unsafe { (std::fs::File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    let mut child = command(socket, args).env("TERM", "xterm").stderr(slave).spawn().unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let mut seen = Vec::new();
        let mut piece = [0; 4096];
        // The end of a terminal's other side is an error, EIO.
        while let Ok(length @ 1..) = master.read(&mut piece) {
            seen.extend_from_slice(&piece[..length]);
        }
        String::from_utf8(seen).unwrap()
    });
    let waiting = tokio::task::spawn_blocking(move || child.wait().unwrap().code());
    let code = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    (code, reading.await.unwrap())
}
