//! The creation of a container: the monitor makes its cgroups and its first process; that process makes everything else
//! around itself and then becomes the command.
//!
//! Called by the monitor's loop. The monitor hears how it went through a pipe that ends with the process' first program:
//! `ready` before an end is a container that runs; `started <pid>` one that an external runtime made; `failed <exit code>
//! <sentence>` one that does not. Everything that costs memory happens in the child, whose memory goes with execve(2).
//!
//! The order in [`build`] is what keeps it safe: what is the host's is opened first, then the container's own tree is put
//! together by descriptors that cannot lead out of it, then the host's tree goes, then all descriptors, then all rights.

mod cgroups;
mod devices;
mod external;
mod identity;
mod inside;
mod masks;
mod mounts;
mod namespaces;
mod proc;
mod rootfs;
mod users;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use skep_shim::config::ShimConfig;
use skep_shim::plan::Plan;
use skep_shim::user::{self, User};

use crate::program::{Command, FAILED, Refusal};
use crate::report::Report;
use crate::rights::{self, Rights};
use crate::sys;
use users::Users;

/// Said right before the command's program takes over.
const READY: &str = "ready";

/// A step that failed: exit code by Docker's rules, and a sentence.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: i32,
    pub(crate) sentence: String,
}

impl Failure {
    fn new(sentence: impl Into<String>) -> Self {
        Self { code: FAILED, sentence: sentence.into() }
    }
}

impl From<Refusal> for Failure {
    fn from((code, sentence): Refusal) -> Self {
        Self { code, sentence }
    }
}

impl From<rights::Failure> for Failure {
    fn from((what, error): rights::Failure) -> Self {
        at(what)(error)
    }
}

/// For `map_err`: what cannot be done, and why.
fn at(step: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let step = step.into();
    move |error| Failure::new(format!("{step}: {}", sys::words(&error)))
}

/// A container that is being made.
pub(crate) struct Creation {
    /// The process at work, reaped by the monitor's loop: the container's first, or the one that runs a runtime.
    pub(crate) pid: i32,
    /// Read end of the pipe.
    pub(crate) report: File,
    text: Vec<u8>,
}

/// What came of it.
pub(crate) enum Verdict {
    /// The container runs with this first process.
    Started(i32),
    /// It could not be started: exit code by Docker's rules and a sentence.
    Failed(i32, String),
    /// The process ended without a verdict.
    Silent,
}

/// Begins to make the container; `memory` has its secrets and configs, `output` are its ends of stdout and stderr.
pub(crate) fn begin(config: &ShimConfig, memory: Option<&OwnedFd>, output: [File; 2]) -> Result<Creation, Failure> {
    let (report, report_write) = sys::pipe().map_err(at("cannot make a pipe"))?;
    let external = !config.external.program.is_empty();
    let group = if external { None } else { cgroups::make(config)? };
    let flags = if external { libc::CLONE_NEWNS } else { namespaces::of_its_own(&config.plan) };
    let made = namespaces::clone(flags, group.as_ref()).map_err(at("cannot make the container's first process"))?;
    if made.pid != 0 {
        return Ok(Creation { pid: made.pid, report, text: Vec::new() });
    }
    let mut report = Report::new(&report_write);
    let said = if external {
        external::run(config, memory, &output)
    } else {
        build(config, memory, made.in_group, output, &mut report)
    };
    report.say(&match said {
        Ok(pid) => format!("started {pid}"),
        Err(failure) => format!("failed {} {}", failure.code, failure.sentence),
    });
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(1) }
}

impl Creation {
    /// Reads what is there; the verdict once the pipe has ended.
    pub(crate) fn read(&mut self) -> Option<Verdict> {
        let mut chunk = [0; 512];
        loop {
            match self.report.read(&mut chunk) {
                Ok(0) => return Some(verdict(&self.text, self.pid)),
                Ok(n) => self.text.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Some(Verdict::Silent),
            }
        }
    }
}

fn verdict(text: &[u8], pid: i32) -> Verdict {
    let text = String::from_utf8_lossy(text);
    // A command that cannot run is told after all was ready.
    let rest = match text.strip_prefix(READY) {
        Some("") => return Verdict::Started(pid),
        Some(rest) => rest,
        None => &text,
    };
    if let Some(pid) = rest.strip_prefix("started ").and_then(|pid| pid.parse().ok()) {
        return Verdict::Started(pid);
    }
    match rest.strip_prefix("failed ").and_then(|rest| rest.split_once(' ')) {
        Some((code, sentence)) => Verdict::Failed(code.parse().unwrap_or(FAILED), sentence.to_owned()),
        None => Verdict::Silent,
    }
}

/// Becomes the container's command; returns only with why it did not.
fn build(
    config: &ShimConfig,
    memory: Option<&OwnedFd>,
    in_group: bool,
    output: [File; 2],
    report: &mut Report,
) -> Result<i32, Failure> {
    let plan = &config.plan;
    namespaces::guard();
    let (user, users) = assemble(config, memory, in_group, output)?;
    // Raising a limit is the host's root's right.
    rights::limit(&plan.rlimits)?;
    if let Some(users) = users {
        users.enter(plan)?;
    }
    // From here on nothing of the host's is within reach: no descriptor, no mount.
    report.stay_alone().map_err(at("cannot close files"))?;
    let mut env = plan.env.clone();
    user::add_home(&mut env, &user.home);
    let command = Command::new(&plan.args, &env)?;
    rights::confine(&Rights {
        uid: user.uid,
        gid: user.gid,
        groups: &user.groups,
        capabilities: plan.capabilities,
        no_new_privileges: plan.no_new_privileges,
        cwd: cwd(plan),
        filter: &plan.filter,
    })?;
    if plan.wrapped > 0 {
        Command::new(plan.command(), &env)?.look()?;
    }
    if !namespaces::release() || !report.say(READY) {
        return Err(Failure::new("the container's monitor has gone"));
    }
    Err(command.run().into())
}

fn cwd(plan: &Plan) -> &str {
    if plan.cwd.is_empty() { "/" } else { &plan.cwd }
}

/// Puts the container together and enters it. All descriptors that it opens are closed when it returns,
/// but that of a user namespace.
fn assemble(
    config: &ShimConfig,
    memory: Option<&OwnedFd>,
    in_group: bool,
    output: [File; 2],
) -> Result<(User, Option<Users>), Failure> {
    let plan = &config.plan;
    cgroups::join(plan, in_group)?;
    let mut sources = mounts::open_sources(plan)?;
    let host_null = devices::host_null()?;
    let users = users::open(plan)?;
    sys::choose_profile(&plan.apparmor).map_err(at(format!("cannot apply the AppArmor profile {}", plan.apparmor)))?;
    namespaces::enter(plan)?;
    rootfs::leave_propagation()?;
    if let Some(memory) = memory {
        sources.add(memory, config)?;
    }
    let root = rootfs::mount(config, users.as_ref())?;
    let user = identity::look_up(&root, plan)?;
    let owner = users::outside(plan, &user)?;
    if let Some(users) = &users {
        users.make_as_root()?;
    }
    let mounted = mounts::mount_all(&root, plan, sources)?;
    devices::make(&root, plan)?;
    mounts::link_all(&root, plan)?;
    let proc = proc::open(&root)?;
    proc::set_all(&proc, plan)?;
    inside::folder(&root, cwd(plan)).map_err(at(format!("cannot make the working directory {}", cwd(plan))))?;
    mounted.finish()?;
    masks::cover(&root, plan, &host_null)?;
    masks::make_read_only(&root, plan)?;
    if plan.read_only_root {
        rootfs::make_read_only(&root)?;
    }
    identity::connect(&root, owner, output, &host_null)?;
    rootfs::change_to(&root)?;
    Ok((user, users))
}
