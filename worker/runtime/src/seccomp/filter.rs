//! A seccomp profile as the program that the kernel runs (seccomp(2)): compiled once, kept beside the monitor, installed
//! by the container's first process just before its command.
//!
//! The runtime calls this. Compiling takes libseccomp some 5 ms of CPU, the largest part of a start; reading the result
//! takes microseconds. What is kept is only ever a copy: damaged or missing, it is made again.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use serde::Deserialize;
use serde_json::Value;

/// Bytes of one instruction (`struct sock_filter`).
const INSTRUCTION: usize = size_of::<libc::sock_filter>();
/// The kernel's limit of instructions (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// Why a profile has no program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("the seccomp profile cannot be read")]
    Profile(#[from] serde_json::Error),
    #[error("the seccomp profile has an unknown comparison {0:?}")]
    Comparison(String),
    #[error("the seccomp profile cannot be compiled")]
    Compile(#[from] libseccomp::error::SeccompError),
    #[error("cannot hold the compiled seccomp profile in memory")]
    Memory(#[source] io::Error),
    #[error("the compiled seccomp profile has {0} bytes, which is no program")]
    Size(usize),
}

/// A program for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    instructions: Vec<[u8; INSTRUCTION]>,
}

// The part of the OCI form that our profile uses; anything else is an error, never ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: i32,
    architectures: Vec<String>,
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<i32>,
    #[serde(default)]
    args: Vec<Comparison>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Comparison {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

impl Filter {
    /// The program of a profile, from the copy in `dir` where there is one.
    pub(crate) fn cached(dir: &Path, profile: &Value) -> Result<Self, FilterError> {
        let path = dir.join(format!("seccomp-{:016x}", fingerprint(profile.to_string().as_bytes())));
        if let Some(kept) = fs::read(&path).ok().and_then(|bytes| Self::unpack(&bytes)) {
            return Ok(kept);
        }
        let filter = Self::compile(profile)?;
        // Only a copy: another agent may write the same at the same time, and without it the next compiles again.
        let temporary = dir.join(format!(".seccomp.{}", std::process::id()));
        let _ = fs::write(&temporary, filter.pack()).and_then(|()| fs::rename(&temporary, &path));
        Ok(filter)
    }

    /// The program of a profile.
    pub(crate) fn compile(profile: &Value) -> Result<Self, FilterError> {
        let profile = Profile::deserialize(profile)?;
        let default = ScmpAction::from_str(&profile.default_action, Some(profile.default_errno_ret))?;
        let mut context = ScmpFilterContext::new(default)?;
        for architecture in &profile.architectures {
            context.add_arch(architecture.parse::<ScmpArch>()?)?;
        }
        // Calls are found by a binary tree instead of one after the other.
        context.set_ctl_optimize(2)?;
        for rule in &profile.syscalls {
            let action = ScmpAction::from_str(&rule.action, rule.errno_ret)?;
            let comparisons = rule.args.iter().map(comparison).collect::<Result<Vec<_>, _>>()?;
            for name in &rule.names {
                // Unknown to this library: then it stays refused.
                let Ok(call) = ScmpSyscall::from_name(name) else { continue };
                match comparisons.as_slice() {
                    [] => context.add_rule(action, call)?,
                    all => context.add_rule_conditional(action, call, all)?,
                };
            }
        }
        let mut exported = memory_file()?;
        context.export_bpf(&exported)?;
        let mut bytes = Vec::new();
        exported.rewind().and_then(|()| exported.read_to_end(&mut bytes)).map_err(FilterError::Memory)?;
        Self::from_bytes(&bytes).ok_or(FilterError::Size(bytes.len()))
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (instructions, rest) = bytes.as_chunks::<INSTRUCTION>();
        let sound = rest.is_empty() && (1..=MAX_INSTRUCTIONS).contains(&instructions.len());
        sound.then(|| Self { instructions: instructions.to_vec() })
    }

    /// The copy's form: a checksum, because a power cut may leave any part of a file, then the program.
    fn pack(&self) -> Vec<u8> {
        let program = self.program();
        [&fingerprint(program).to_le_bytes(), program].concat()
    }

    fn unpack(bytes: &[u8]) -> Option<Self> {
        let (checksum, program) = bytes.split_first_chunk()?;
        (u64::from_le_bytes(*checksum) == fingerprint(program)).then(|| Self::from_bytes(program))?
    }

    /// The instructions as they lie in memory.
    pub(crate) fn program(&self) -> &[u8] {
        self.instructions.as_flattened()
    }
}

fn memory_file() -> Result<File, FilterError> {
    let made = nix::sys::memfd::memfd_create(c"seccomp", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    made.map(File::from).map_err(|errno| FilterError::Memory(errno.into()))
}

fn comparison(arg: &Comparison) -> Result<ScmpArgCompare, FilterError> {
    let (op, value) = match arg.op.as_str() {
        "SCMP_CMP_EQ" => (ScmpCompareOp::Equal, arg.value),
        "SCMP_CMP_NE" => (ScmpCompareOp::NotEqual, arg.value),
        "SCMP_CMP_LT" => (ScmpCompareOp::Less, arg.value),
        "SCMP_CMP_LE" => (ScmpCompareOp::LessOrEqual, arg.value),
        "SCMP_CMP_GE" => (ScmpCompareOp::GreaterEqual, arg.value),
        "SCMP_CMP_GT" => (ScmpCompareOp::Greater, arg.value),
        // In the OCI form `value` is the mask and `valueTwo` what must be left of the argument.
        "SCMP_CMP_MASKED_EQ" => (ScmpCompareOp::MaskedEqual(arg.value), arg.value_two),
        other => return Err(FilterError::Comparison(other.to_owned())),
    };
    Ok(ScmpArgCompare::new(arg.index, op, value))
}

/// FNV-1a: names a profile and finds damage; nobody but root can write there.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::DEFAULT_CAPABILITIES;
    use crate::seccomp::default_profile;

    fn profile(capabilities: &[&str]) -> Value {
        default_profile(&capabilities.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_copy_is_the_program_and_a_damaged_copy_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let made = Filter::cached(dir.path(), &profile(&DEFAULT_CAPABILITIES)).unwrap();
        assert!(made.instructions.len() > 300, "{}", made.instructions.len());
        let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let whole = fs::read(&path).unwrap();
        assert_eq!(Filter::unpack(&whole).unwrap(), made);
        for damaged in [&whole[..whole.len() - 8], &whole[..3], &[], &[&whole[..40], &[9; 8], &whole[48..]].concat()] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(Filter::cached(dir.path(), &profile(&DEFAULT_CAPABILITIES)).unwrap(), made);
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        // Another set of capabilities is another program.
        let more = Filter::cached(dir.path(), &profile(&["SYS_ADMIN"])).unwrap();
        assert_ne!(more, made);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let mut odd = profile(&[]);
        odd["listenerPath"] = Value::from("/x");
        assert!(matches!(Filter::compile(&odd), Err(FilterError::Profile(_))));
        let mut odd = profile(&[]);
        odd["syscalls"][1]["args"][0]["op"] = Value::from("SCMP_CMP_ABOUT");
        assert!(matches!(Filter::compile(&odd), Err(FilterError::Comparison(_))));
    }

    /// Puts this thread, for good, under the filter. It must have given up new privileges before (prctl(2)).
    fn install(filter: &Filter) -> io::Result<()> {
        let mut program: Vec<libc::sock_filter> = filter
            .instructions
            .iter()
            .map(|[code0, code1, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
                code: u16::from_ne_bytes([*code0, *code1]),
                jt: *jt,
                jf: *jf,
                k: u32::from_ne_bytes([*k0, *k1, *k2, *k3]),
            })
            .collect();
        let header = libc::sock_fprog {
            len: u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: `header` and the instructions it points to live through the call, which copies them.
        let installed =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const header) };
        if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// What a child of this process gets for clone(2) with `flags` under the default filter: an errno, 0 for success.
    fn clone_under_the_filter(filter: &Filter, call: libc::c_long, flags: libc::c_int) -> i32 {
        // SAFETY: the child makes system calls only, and ends without unwinding.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                if install(filter).is_err() {
                    libc::_exit(255);
                }
                let made = libc::syscall(call, flags, 0, 0, 0, 0);
                libc::_exit(if made < 0 { *libc::__errno_location() } else { 0 });
            }
            let mut status = 0;
            libc::waitpid(child, &raw mut status, 0);
            libc::WEXITSTATUS(status)
        }
    }

    #[test]
    fn namespaces_cannot_be_made_and_processes_can() {
        let filter = Filter::compile(&profile(&DEFAULT_CAPABILITIES)).unwrap();
        let clone = |flags| clone_under_the_filter(&filter, libc::SYS_clone, flags);
        assert_eq!(clone(libc::SIGCHLD), 0);
        assert_eq!(clone(libc::SIGCHLD | libc::CLONE_NEWUSER), libc::EPERM);
        assert_eq!(clone(libc::SIGCHLD | libc::CLONE_NEWNS | libc::CLONE_NEWPID), libc::EPERM);
        assert_eq!(clone_under_the_filter(&filter, libc::SYS_clone3, 0), libc::ENOSYS);
        assert_eq!(clone_under_the_filter(&filter, libc::SYS_unshare, libc::CLONE_NEWUSER), libc::EPERM);
        assert_eq!(clone_under_the_filter(&filter, libc::SYS_getppid, 0), 0);
    }
}
