//! The last step of a process on its way into a container: execve(2) by Docker's rules, and the sentence that says why it
//! failed, in words that Docker's users know.
//!
//! Used by a container's first process and by commands in a running one. Runs with the command's own rights.

use std::ffi::{CStr, CString};
use std::io;
use std::ptr;

use crate::sys;

/// Docker's codes: it failed on the way; the program cannot be run; it is not there.
pub(crate) const FAILED: i32 = 125;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
/// Where programs are looked for when the container says nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that cannot run: exit code and sentence.
pub(crate) type Refusal = (i32, String);

/// A command as execve(2) takes it.
pub(crate) struct Command<'a> {
    name: &'a str,
    path: &'a str,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl<'a> Command<'a> {
    /// `args` has at least one; PATH is the last one in `env`.
    pub(crate) fn new(args: &'a [String], env: &'a [String]) -> Result<Self, Refusal> {
        let strings =
            |texts: &[String]| texts.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
        let (Some(name), Ok(args), Ok(all)) = (args.first(), strings(args), strings(env)) else {
            return Err((FAILED, "the command is empty or holds a zero byte".to_owned()));
        };
        let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        Ok(Self { name, path, args, env: all })
    }

    /// Becomes the command; returns only with why it did not.
    pub(crate) fn run(&self) -> Refusal {
        sys::default_signals();
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        let (args, env): (Vec<_>, Vec<_>) = (pointers(&self.args), pointers(&self.env));
        self.search(|program| {
            // SAFETY: C strings and NULL-ended lists of them that live through the call.
            unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
            Err(io::Error::last_os_error())
        })
        .err()
        .unwrap_or((FAILED, "execve returned".to_owned()))
    }

    /// Whether there is a program to run, for a command that another program starts.
    pub(crate) fn look(&self) -> Result<(), Refusal> {
        self.search(|program| {
            // SAFETY: a C string that lives through the call.
            sys::check(unsafe { libc::access(program.as_ptr(), libc::X_OK) })?;
            if is_folder(program) { Err(io::Error::from_raw_os_error(libc::EACCES)) } else { Ok(()) }
        })
    }

    /// execvp(3) without its way out: a file that is no program is an error, no script.
    fn search(&self, mut attempt: impl FnMut(&CStr) -> io::Result<()>) -> Result<(), Refusal> {
        if self.name.contains('/') {
            let Some(program) = self.args.first() else { return Err(self.missing()) };
            return attempt(program).map_err(|error| self.refusal(program, &error));
        }
        let mut refused = None;
        for dir in self.path.split(':') {
            let dir = if dir.is_empty() { "." } else { dir };
            let Ok(candidate) = CString::new(format!("{dir}/{}", self.name)) else { continue };
            let Err(error) = attempt(&candidate) else { return Ok(()) };
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) if !exists(&candidate) => {}
                // Another directory may have one that can be run.
                Some(libc::ENOENT | libc::EACCES) => refused = Some(self.refusal(&candidate, &error)),
                _ => return Err(self.refusal(&candidate, &error)),
            }
        }
        Err(refused.unwrap_or_else(|| self.missing()))
    }

    fn missing(&self) -> Refusal {
        (NOT_FOUND, format!("exec: {:?}: executable file not found in $PATH", self.name))
    }

    fn refusal(&self, program: &CStr, error: &io::Error) -> Refusal {
        let name = self.name;
        match error.raw_os_error() {
            Some(libc::ENOENT) if exists(program) => {
                let why = "no such file or directory (the interpreter it names is not in the image)";
                (NOT_FOUND, format!("exec: {name:?}: {why}"))
            }
            Some(libc::ENOENT | libc::ENOTDIR) => {
                (NOT_FOUND, format!("exec: {name:?}: stat {name}: no such file or directory"))
            }
            Some(libc::EACCES) if is_folder(program) => (NOT_EXECUTABLE, format!("exec: {name:?}: is a directory")),
            Some(libc::EACCES) => (NOT_EXECUTABLE, format!("exec: {name:?}: permission denied")),
            Some(libc::ENOEXEC) => (NOT_EXECUTABLE, format!("exec: {name:?}: exec format error")),
            _ => (NOT_EXECUTABLE, format!("exec: {name:?}: {}", sys::words(error))),
        }
    }
}

fn exists(path: &CStr) -> bool {
    // SAFETY: a C string that lives through the call.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}

fn is_folder(path: &CStr) -> bool {
    // SAFETY: all-zero is a valid value of this plain struct; a C string that lives through the call.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        libc::stat(path.as_ptr(), &raw mut found) == 0 && found.st_mode & libc::S_IFMT == libc::S_IFDIR
    }
}
