//! The last step of a container's first process: the seccomp filter, then the command. Errors of that step reach the
//! creator through a pipe, for libcontainer has nobody left to tell by then.
//!
//! Runs inside the container, after libcontainer has done all the rest.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

use crate::creator::DEFAULT_PATH;
use crate::seccomp::filter::Filter;

/// What libcontainer runs as the container's command.
#[derive(Clone)]
pub(crate) struct Payload {
    /// `None`: the container is not confined, or libcontainer loads the profile.
    filter: Option<Rc<Filter>>,
    /// Write end of the pipe; closes with a successful exec.
    report: Rc<OwnedFd>,
}

/// The creator's end: what went wrong at the very end.
pub(crate) struct Report {
    pipe: File,
}

/// A failed exec.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExecFailure {
    /// From the exec or the filter.
    pub(crate) errno: i32,
    /// Whether it was the filter.
    pub(crate) filter: bool,
}

impl Payload {
    pub(crate) fn new(filter: Option<Filter>) -> io::Result<(Self, Report)> {
        let (reader, writer) = io::pipe()?;
        let payload = Self { filter: filter.map(Rc::new), report: Rc::new(writer.into()) };
        Ok((payload, Report { pipe: File::from(OwnedFd::from(reader)) }))
    }

    fn tell(&self, filter: bool, errno: i32) {
        let word = [[u8::from(filter), 0, 0, 0], errno.to_le_bytes()].concat();
        // SAFETY: the descriptor stays open as long as `report`; ManuallyDrop leaves closing it to its owner.
        let mut pipe = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(self.report.as_raw_fd()) });
        // The creator is gone: then nobody wants to know.
        let _ = pipe.write_all(&word);
    }
}

impl Report {
    /// Waits until the command runs; `Some`: it does not. The creator must have let go of every [`Payload`].
    pub(crate) fn wait(mut self) -> io::Result<Option<ExecFailure>> {
        let mut word = Vec::new();
        self.pipe.read_to_end(&mut word)?;
        Ok(word.try_into().ok().map(|[filter, _, _, _, e0, e1, e2, e3]: [u8; 8]| ExecFailure {
            errno: i32::from_le_bytes([e0, e1, e2, e3]),
            filter: filter != 0,
        }))
    }
}

impl Executor for Payload {
    /// The creator has looked for the program; what it cannot see, exec will tell.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec.process().as_ref().and_then(|process| process.args().as_ref());
        let args: Vec<CString> = args
            .ok_or(ExecutorError::InvalidArg)?
            .iter()
            .map(|arg| CString::new(arg.as_bytes()).map_err(|_| ExecutorError::InvalidArg))
            .collect::<Result<_, _>>()?;
        let program = args.first().ok_or(ExecutorError::InvalidArg)?;
        if let Some(filter) = &self.filter
            && let Err(error) = filter.install()
        {
            self.tell(true, error.raw_os_error().unwrap_or(libc::EINVAL));
            return Err(ExecutorError::Other(format!("cannot install the seccomp filter: {error}")));
        }
        let errno = exec(program, &args);
        self.tell(false, errno as i32);
        Err(ExecutorError::Other(format!("exec: {errno}")))
    }
}

/// execvp(3) without its way out: a file that is no program is an error here, not a script for /bin/sh.
fn exec(program: &CStr, args: &[CString]) -> nix::Error {
    if program.to_bytes().contains(&b'/') {
        let Err(errno) = nix::unistd::execv(program, args);
        return errno;
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut refused = nix::Error::ENOENT;
    for dir in path.as_bytes().split(|byte| *byte == b':') {
        let dir = if dir.is_empty() { b"." } else { dir };
        let Ok(candidate) = CString::new([dir, b"/", program.to_bytes()].concat()) else { continue };
        match nix::unistd::execv(&candidate, args) {
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => {}
            // Another directory may have one that can be run.
            Err(nix::Error::EACCES) => refused = nix::Error::EACCES,
            Err(errno) => return errno,
        }
    }
    refused
}
