//! `skep netd` (hidden): the process that keeps this host's networks. Started by the daemon, runs without the command
//! line's own runtime.

mod log;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

#[derive(Args, Clone, Debug)]
pub(crate) struct NetdArgs {
    /// Folder of what it keeps while it runs.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Socket file to listen on.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Folder of the tasks' sandboxes [default: `sandboxes` in the folder].
    #[arg(long, value_name = "DIR")]
    sandboxes: Option<PathBuf>,
    /// The host's name servers.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Which WireGuard encrypted networks go through: the kernel's, skep's own (userspace), or the kernel's where it has it.
    #[arg(long, value_name = "DEVICE", env = "SKEP_MESH", default_value = "auto")]
    mesh: skep_overlay::netd::Choice,
    /// What to log: error, warn, info, debug, trace, or filters.
    #[arg(long, value_name = "LEVEL", env = "SKEP_LOG", default_value = "info")]
    log_level: String,
}

/// Runs until SIGTERM, which leaves all networks as they are, or until the agent has everything taken down.
pub(crate) fn run(args: NetdArgs) -> Result<ExitCode, Failure> {
    // It has the host's WireGuard key; the limit of core dumps is the daemon's (prctl(2)).
    nix::sys::prctl::set_dumpable(false)
        .map_err(|error| Failure::Failed(format!("cannot make this process undumpable: {error}")))?;
    let filter = EnvFilter::try_new(&args.log_level)
        .map_err(|error| Failure::Usage(format!("invalid value for --log-level: {error}")))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(log::Log::new).with_ansi(false).init();
    let options = skep_overlay::netd::Options {
        sandboxes: args.sandboxes.unwrap_or_else(|| args.dir.join("sandboxes")),
        dir: args.dir,
        socket: args.socket,
        resolv_conf: args.resolv_conf,
        mesh: args.mesh,
    };
    skep_overlay::netd::run(options).map_err(|error| {
        let reason = std::error::Error::source(&error).map(|reason| format!(": {reason}")).unwrap_or_default();
        Failure::Failed(format!("{error}{reason}"))
    })?;
    Ok(ExitCode::SUCCESS)
}
