//! Runs the short-lived process that creates the container, and reads its verdict.
//!
//! Used by the monitor's loop. The creator inherits three descriptors, named in `SKEP_CREATOR_FDS`: the container's
//! stdout and stderr, and a pipe for the verdict: `started <pid>` or `failed <exit code> <sentence>`.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use skep_shim::config::ShimConfig;

use crate::sys;

/// A running creator.
pub(crate) struct Creator {
    /// Its process id, reaped by the loop.
    pub(crate) pid: i32,
    /// Read end of the verdict pipe.
    pub(crate) status: File,
    text: Vec<u8>,
}

/// What the creator said.
pub(crate) enum Verdict {
    /// The container runs with this init.
    Started(i32),
    /// It could not be started: exit code by Docker's rules and a sentence.
    Failed(i32, String),
    /// The creator ended without a verdict.
    Silent,
}

/// Starts the creator. std spawns it without fork, as nothing has to run in between.
pub(crate) fn spawn(config: &ShimConfig, stdout: File, stderr: File) -> io::Result<Creator> {
    let (status, status_write) = sys::pipe()?;
    for end in [&stdout, &stderr, &status_write] {
        sys::keep_on_exec(end)?;
    }
    let (program, args) = config.creator.split_first().ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
    let fds = format!("{},{},{}", stdout.as_raw_fd(), stderr.as_raw_fd(), status_write.as_raw_fd());
    let child = Command::new(program)
        .args(args)
        .env("SKEP_CREATOR_FDS", fds)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    Ok(Creator { pid: child.id() as i32, status, text: Vec::new() })
}

impl Creator {
    /// Reads what is there; the verdict once the creator has closed the pipe.
    pub(crate) fn read(&mut self) -> Option<Verdict> {
        let mut chunk = [0; 512];
        loop {
            match self.status.read(&mut chunk) {
                Ok(0) => return Some(parse(&self.text)),
                Ok(n) => self.text.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Some(Verdict::Silent),
            }
        }
    }
}

fn parse(text: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(text);
    if let Some(pid) = text.strip_prefix("started ").and_then(|pid| pid.trim().parse().ok()) {
        return Verdict::Started(pid);
    }
    match text.strip_prefix("failed ").and_then(|rest| rest.split_once(' ')) {
        Some((code, sentence)) => Verdict::Failed(code.parse().unwrap_or(125), sentence.to_owned()),
        None => Verdict::Silent,
    }
}
