//! A container that an external OCI runtime makes (`--runtime runc`): its bundle, its configuration, its run.
//!
//! Used by the container's creation, in a child with a mount namespace of its own, which ends with the runtime. The
//! runtime's container becomes the monitor's child.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use skep_shim::config::{External, ShimConfig};
use skep_shim::files::IN_BUNDLE;
use skep_shim::logline;
use skep_shim::user::{self, User};

use super::{Failure, at, identity, rootfs};
use crate::sys::{self, c_string, mount};
use crate::tree;

/// Runs the runtime; the pid of the container's first process.
pub(super) fn run(config: &ShimConfig, memory: Option<&OwnedFd>, output: &[File; 2]) -> Result<i32, Failure> {
    // The monitor's signals are blocked, and the runtime would inherit that.
    sys::default_signals();
    rootfs::leave_propagation()?;
    let bundle = &config.mount_point;
    make_bundle(bundle).map_err(at("cannot make the bundle"))?;
    if let Some(memory) = memory {
        let place = format!("{bundle}/{IN_BUNDLE}");
        let attach = || -> io::Result<()> {
            fs::create_dir(&place)?;
            tree::attach(memory, &tree::open_path(&c_string(&place)?)?)
        };
        attach().map_err(at("cannot attach secrets and configs"))?;
    }
    let root = rootfs::mount(&ShimConfig { mount_point: format!("{bundle}/rootfs"), ..config.clone() }, None)?;
    let user = identity::look_up(&root, &config.plan)?;
    drop(root);
    fs::write(format!("{bundle}/config.json"), configuration(config, &user)).map_err(at("cannot write config.json"))?;
    identity::hand_over(output, (user.uid, user.gid))?;
    with_program(&config.external, Path::new(bundle), output)
}

/// A small file system in memory for what the runtime reads and writes.
fn make_bundle(bundle: &str) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount("skep-bundle", &c_string(bundle)?, "tmpfs", flags, "mode=0700,size=64m")?;
    fs::create_dir(format!("{bundle}/rootfs"))
}

/// The OCI configuration: the agent's parts and what only the image could tell.
fn configuration(config: &ShimConfig, user: &User) -> String {
    let External { config: whole, process, capabilities, .. } = &config.external;
    let mut env = config.plan.env.clone();
    user::add_home(&mut env, &user.home);
    let mut quoted = Vec::new();
    for (index, variable) in env.iter().enumerate() {
        quoted.extend_from_slice(if index == 0 { b"\"" } else { b",\"" });
        logline::escape(&mut quoted, variable.as_bytes());
        quoted.push(b'"');
    }
    let env = String::from_utf8_lossy(&quoted);
    let groups = user.groups.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    // An ordinary user holds none; set-uid programs may take them up to the bounding set.
    let held = if user.uid == 0 { capabilities.as_str() } else { "[]" };
    let mut out = String::with_capacity(whole.len() + process.len() + env.len() + 512);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "{{\"process\":{{\"user\":{{\"uid\":{},\"gid\":{},\"additionalGids\":[{groups}]}},\"env\":[{env}],\
         \"capabilities\":{{\"bounding\":{capabilities},\"effective\":{held},\"permitted\":{held},\
         \"inheritable\":[],\"ambient\":[]}},{},{}",
        user.uid,
        user.gid,
        process.trim_start_matches('{'),
        whole.trim_start_matches('{'),
    );
    out
}

fn with_program(external: &External, bundle: &Path, [stdout, stderr]: &[File; 2]) -> Result<i32, Failure> {
    let program = &external.program;
    let (pid_file, log) = (bundle.join("pid"), bundle.join("runtime.log"));
    let output = |file: &File| file.try_clone().map(Stdio::from).map_err(at("cannot hand over the output"));
    let status = Command::new(program)
        .arg("--root")
        .arg(bundle.join("state"))
        .arg("--log")
        .arg(&log)
        .args(["run", "--detach", "--pid-file"])
        .arg(&pid_file)
        .arg("--bundle")
        .arg(bundle)
        .arg(&external.id)
        .stdin(Stdio::null())
        .stdout(output(stdout)?)
        .stderr(output(stderr)?)
        .status()
        .map_err(at(format!("cannot run {program}")))?;
    if !status.success() {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().last().unwrap_or("it gave no reason");
        return Err(Failure::new(format!("{program} failed: {last}")));
    }
    let pid = fs::read_to_string(&pid_file).map_err(at("the runtime wrote no pid"))?;
    pid.trim().parse().map_err(|_| Failure::new("the runtime wrote no pid"))
}
