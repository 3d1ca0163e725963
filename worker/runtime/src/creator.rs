//! `skep create-container <dir>`: the short-lived, single-threaded process that makes one container as its monitor's
//! child, says so, and ends. The only place where libcontainer (or an external runtime) runs; its heap dies with it.
//!
//! The monitor passes three descriptors in `SKEP_CREATOR_FDS`: the container's stdout and stderr, and a pipe for the
//! verdict: `started <pid>` or `failed <exit code> <sentence>`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroups, devices};
use crate::oci;
use crate::payload::{ExecFailure, Payload};
use crate::seccomp::{self, filter::Filter};
use crate::spec::{ContainerSpec, MountKind, OciRuntime};
use crate::user::{self, User};

/// Exit codes by Docker's rules: the runtime failed; the program cannot be run; the program is not there.
const FAILED: i32 = 125;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
/// Where programs are looked for when the container says nothing.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `creator.json`: what the creator needs besides the spec.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CreatorFile {
    pub(crate) spec: ContainerSpec,
    pub(crate) runtime: OciRuntime,
    /// Group of the container, relative to each hierarchy.
    pub(crate) cgroup: String,
    pub(crate) unified: bool,
    /// Where the v1 hierarchies are mounted.
    pub(crate) v1_mounts: Vec<String>,
    /// The monitor's program.
    pub(crate) shim: String,
}

/// Why a container was not started.
struct Failure {
    code: i32,
    sentence: String,
}

impl Failure {
    fn new(code: i32, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into() }
    }
}

/// Entry point of the hidden command. Must run before any thread or runtime is started.
pub fn main(dir: &Path) -> ExitCode {
    let Some((stdout, stderr, mut verdict)) = inherited() else {
        return ExitCode::from(64);
    };
    // The monitor blocks every signal and ignores SIGPIPE; both would be inherited by the container.
    let all = nix::sys::signal::SigSet::all();
    if let Err(errno) = all.thread_unblock() {
        eprintln!("skep create-container: cannot unblock signals: {errno}");
    }
    // SAFETY: restores a default; no handler runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let (code, line) = match create(dir, stdout, stderr) {
        Ok(pid) => (ExitCode::SUCCESS, format!("started {pid}\n")),
        Err(failure) => {
            // What a failed create leaves would make the next one say "already exists".
            let _ = fs::remove_dir_all(dir.join("state"));
            (ExitCode::FAILURE, format!("failed {} {}", failure.code, failure.sentence))
        }
    };
    // The monitor has gone: nobody wants to know.
    let _ = verdict.write_all(line.as_bytes());
    code
}

/// The three descriptors; `None`: not started by a monitor.
fn inherited() -> Option<(OwnedFd, OwnedFd, File)> {
    let text = std::env::var("SKEP_CREATOR_FDS").ok()?;
    let numbers: Vec<i32> = text.split(',').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let [stdout, stderr, verdict] = numbers.try_into().ok()?;
    // The container must not see the verdict's pipe: its end is the monitor's sign.
    // SAFETY: the monitor passes three open descriptors that nobody else in this process knows.
    unsafe {
        libc::fcntl(verdict, libc::F_SETFD, libc::FD_CLOEXEC);
        Some((OwnedFd::from_raw_fd(stdout), OwnedFd::from_raw_fd(stderr), File::from_raw_fd(verdict)))
    }
}

fn create(dir: &Path, stdout: OwnedFd, stderr: OwnedFd) -> Result<i32, Failure> {
    let text = fs::read(dir.join("creator.json")).map_err(|error| broken("cannot read creator.json", &error))?;
    let file: CreatorFile = serde_json::from_slice(&text).map_err(|error| broken("creator.json is damaged", &error))?;
    let root = dir.join("rootfs");
    let opened = user::open_root(&root).map_err(|error| broken("cannot open the root file system", &error))?;
    check_binds(&file.spec)?;
    let user = look_up_user(&opened, &file.spec)?;
    check_program(&opened, &file.spec)?;
    prepare_cwd(&opened, &root, &file.spec)?;
    let place = oci::Place {
        cgroup: &file.cgroup,
        unified: file.unified,
        v1_mounts: &file.v1_mounts,
        shim: &file.shim,
        open_files: oci::grantable_files(),
    };
    let mut config = oci::config(&file.spec, &user, &place);
    let filter = match file.runtime {
        OciRuntime::Libcontainer => own_filter(&mut config, &file)?,
        OciRuntime::External(_) => None,
    };
    fs::write(dir.join("config.json"), config.to_string())
        .map_err(|error| broken("cannot write config.json", &error))?;
    for output in [&stdout, &stderr] {
        // The command may open /dev/stdout anew, which its owner alone can.
        std::os::unix::fs::fchown(output, Some(user.uid), Some(user.gid))
            .map_err(|error| broken("cannot hand over the output", &error))?;
    }
    match &file.runtime {
        OciRuntime::Libcontainer => with_library(dir, &file, filter, stdout, stderr),
        OciRuntime::External(program) => with_program(program, dir, &file.spec.id, stdout, stderr),
    }
}

fn broken(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FAILED, format!("{what}: {error}"))
}

/// Takes the seccomp profile out of the configuration, to be installed from its compiled copy at the very end.
/// That needs no-new-privileges: without it only libcontainer loads the filter early enough, while it may.
fn own_filter(config: &mut serde_json::Value, file: &CreatorFile) -> Result<Option<Filter>, Failure> {
    let profile = &mut config["linux"]["seccomp"];
    if profile.is_null() {
        return Ok(None);
    }
    if file.spec.allow_new_privileges {
        seccomp::swap_masked_comparisons(profile);
        return Ok(None);
    }
    let copies = Path::new(&file.shim).parent().unwrap_or(Path::new("/"));
    let filter = Filter::cached(copies, &profile.take()).map_err(|error| Failure::new(FAILED, chain(&error)))?;
    Ok(Some(filter))
}

fn with_library(
    dir: &Path,
    file: &CreatorFile,
    filter: Option<Filter>,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<i32, Failure> {
    let (payload, report) = Payload::new(filter).map_err(|error| broken("cannot make a pipe", &error))?;
    let state = dir.join("state");
    fs::create_dir_all(&state).map_err(|error| broken("cannot make the state directory", &error))?;
    let stdin = File::open("/dev/null").map_err(|error| broken("cannot open /dev/null", &error))?;
    // The container's score comes from its configuration; the monitor's protection must not be inherited by it.
    let failed = |error: libcontainer::error::LibcontainerError| Failure::new(FAILED, chain(&error));
    let mut container = ContainerBuilder::new(file.spec.id.clone(), SyscallType::default())
        .with_root_path(state)
        .map_err(failed)?
        .with_stdin(stdin)
        .with_stdout(stdout)
        .with_stderr(stderr)
        .with_executor(payload)
        .as_init(dir)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(failed)?;
    let pid = container.pid().ok_or_else(|| Failure::new(FAILED, "the container has no process"))?;
    if file.unified
        && let Err(failure) = restrict_devices(&file.cgroup)
    {
        // It waits for its start; without limits on devices it must not get it.
        // SAFETY: a plain signal to the process that was just made.
        unsafe { libc::kill(pid.as_raw(), libc::SIGKILL) };
        return Err(failure);
    }
    container.start().map_err(failed)?;
    match report.wait().map_err(|error| broken("cannot hear from the container", &error))? {
        None => Ok(pid.as_raw()),
        Some(failure) => Err(exec_failed(&file.spec.args, &failure)),
    }
}

/// What the devices controller does on v1, libcontainer leaves to nobody on v2.
fn restrict_devices(group: &str) -> Result<(), Failure> {
    let found = Cgroups::detect().map_err(|error| broken("cannot read /proc/self/mountinfo", &error))?;
    let mount = found.and_then(|cgroups| cgroups.v2_mount());
    let mount = mount.ok_or_else(|| Failure::new(FAILED, "cgroup2 is not mounted"))?;
    devices::restrict(&mount.join(group)).map_err(|error| broken("cannot restrict the container's devices", &error))
}

/// The sentence for a command that the kernel refused.
fn exec_failed(args: &[String], failure: &ExecFailure) -> Failure {
    let program = args.first().map_or("", String::as_str);
    let said = nix::Error::from_raw(failure.errno).desc();
    if failure.filter {
        return Failure::new(FAILED, format!("cannot install the seccomp filter: {said}"));
    }
    match failure.errno {
        // It is there, or the look before would have said so.
        libc::ENOENT => Failure::new(
            NOT_FOUND,
            format!("exec: {program:?}: no such file or directory (or the interpreter it names is not in the image)"),
        ),
        libc::ENOEXEC => Failure::new(NOT_EXECUTABLE, format!("exec: {program:?}: exec format error")),
        libc::EACCES => Failure::new(NOT_EXECUTABLE, format!("exec: {program:?}: permission denied")),
        _ => Failure::new(NOT_EXECUTABLE, format!("exec: {program:?}: {said}")),
    }
}

fn with_program(program: &Path, dir: &Path, id: &str, stdout: OwnedFd, stderr: OwnedFd) -> Result<i32, Failure> {
    let pid_file = dir.join("pid");
    let log = dir.join("runtime.log");
    let status = Command::new(program)
        .arg("--root")
        .arg(dir.join("state"))
        .arg("--log")
        .arg(&log)
        .args(["run", "--detach", "--pid-file"])
        .arg(&pid_file)
        .arg("--bundle")
        .arg(dir)
        .arg(id)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .status()
        .map_err(|error| broken(&format!("cannot run {}", program.display()), &error))?;
    if !status.success() {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().last().unwrap_or("it gave no reason");
        return Err(Failure::new(FAILED, format!("{} failed: {last}", program.display())));
    }
    let pid = fs::read_to_string(&pid_file).map_err(|error| broken("the runtime wrote no pid", &error))?;
    pid.trim().parse().map_err(|error| broken("the runtime wrote no pid", &error))
}

/// The sources of binds must be there: a bind never makes what it cannot find.
fn check_binds(spec: &ContainerSpec) -> Result<(), Failure> {
    for mount in &spec.mounts {
        if let MountKind::Bind { source, .. } = &mount.kind
            && let Err(error) = fs::symlink_metadata(source)
        {
            let sentence = match error.kind() {
                io::ErrorKind::NotFound => format!("bind source path does not exist: {}", source.display()),
                _ => format!("cannot use bind source path {}: {error}", source.display()),
            };
            return Err(Failure::new(FAILED, sentence));
        }
    }
    Ok(())
}

fn look_up_user(root: &File, spec: &ContainerSpec) -> Result<User, Failure> {
    let passwd = user::read_inside(root, "etc/passwd");
    let group = user::read_inside(root, "etc/group");
    user::resolve(&passwd, &group, &spec.user, &spec.groups).map_err(|sentence| Failure::new(FAILED, sentence))
}

/// Whether the program is there and can be run, said in the words that Docker's users know.
fn check_program(root: &File, spec: &ContainerSpec) -> Result<(), Failure> {
    let Some(program) = spec.args.first() else {
        return Err(Failure::new(FAILED, "no command is specified, and the image names none"));
    };
    // What lies on a mount of the user's cannot be seen from here: the exec itself will tell.
    if spec.mounts.iter().any(|mount| program.starts_with(&mount.target)) {
        return Ok(());
    }
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![Path::new(&spec.cwd).join(program)]
    } else {
        let own = spec.env.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
        own.unwrap_or(DEFAULT_PATH).split(':').map(|dir| Path::new(dir).join(program)).collect()
    };
    let mut found = None;
    for path in &candidates {
        let Ok(file) = user::open_inside(root, &path.to_string_lossy()) else { continue };
        let Ok(meta) = File::from(file).metadata() else { continue };
        if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
            return Ok(());
        }
        found = Some(meta.is_dir());
    }
    Err(match found {
        Some(true) => Failure::new(NOT_EXECUTABLE, format!("exec: {program:?}: is a directory")),
        Some(false) => Failure::new(NOT_EXECUTABLE, format!("exec: {program:?}: permission denied")),
        None if program.contains('/') => {
            Failure::new(NOT_FOUND, format!("exec: {program:?}: stat {program}: no such file or directory"))
        }
        None => Failure::new(NOT_FOUND, format!("exec: {program:?}: executable file not found in $PATH")),
    })
}

/// Makes the working directory where the image lacks it, as Docker does, without following a link out of the image.
fn prepare_cwd(root: &File, rootfs: &Path, spec: &ContainerSpec) -> Result<(), Failure> {
    let cwd = spec.cwd.trim_start_matches('/');
    if cwd.is_empty() || user::open_inside(root, cwd).is_ok() {
        return Ok(());
    }
    let mut at = OwnedFd::from(root.try_clone().map_err(|error| broken("cannot open the root file system", &error))?);
    for part in Path::new(cwd).components() {
        let std::path::Component::Normal(name) = part else {
            return Err(Failure::new(FAILED, format!("{:?} is not a usable working directory", spec.cwd)));
        };
        match nix::sys::stat::mkdirat(at.as_fd(), name, nix::sys::stat::Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(errno) => return Err(broken(&format!("cannot make {} in {}", spec.cwd, rootfs.display()), &errno)),
        }
        at = user::open_inside(at.as_fd(), &name.to_string_lossy())
            .map_err(|errno| broken(&format!("cannot enter {}", spec.cwd), &errno))?;
    }
    Ok(())
}

/// An error with what it came from, `a: b: c`.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}
