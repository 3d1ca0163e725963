//! `skep daemon`: flags to the daemon's configuration, in one place. Runs without the command line's own runtime.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::failure::Failure;
use crate::parse::pair;

#[derive(Args, Clone, Debug)]
pub(crate) struct DaemonArgs {
    /// Directory of everything that the daemon keeps.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/skep")]
    data_dir: PathBuf,
    /// Socket file to listen on.
    #[arg(long, value_name = "PATH", default_value = "/run/skep/skep.sock")]
    socket: PathBuf,
    /// Group that may use the socket besides root, by name or id.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Cgroup below which containers run.
    #[arg(long, value_name = "CGROUP", default_value = "skep")]
    cgroup_parent: String,
    /// Id of this boot; another one than last time means that nothing of before still runs [default: the kernel's].
    #[arg(long, value_name = "ID")]
    boot_id: Option<String>,
    /// Address that others use to reach this host, for a swarm that does not say otherwise.
    #[arg(long, value_name = "ADDRESS")]
    advertise_addr: Option<String>,
    /// Port on which other nodes fetch images.
    #[arg(long, value_name = "PORT", default_value_t = 2378, value_parser = clap::value_parser!(u16).range(1..))]
    peer_port: u16,
    /// Registry that is spoken to by plain http, as HOST[:PORT].
    #[arg(long, value_name = "REGISTRY")]
    insecure_registry: Vec<String>,
    /// What makes containers: `libcontainer` (built in), `crun`, `runc`, or a path.
    #[arg(long, value_name = "RUNTIME", default_value = "libcontainer")]
    runtime: String,
    /// Label for constraints on engine.labels, as NAME=VALUE.
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    /// Name of this host in the swarm [default: the host's].
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// What to log: error, warn, info, debug, trace, or filters such as skep_raft=debug,info.
    #[arg(long, value_name = "LEVEL", env = "SKEP_LOG", default_value = "info")]
    log_level: String,
}

/// Runs the daemon until it is told to stop.
pub(crate) fn run(args: DaemonArgs) -> Result<ExitCode, Failure> {
    let labels: BTreeMap<String, String> = pair::labels(&args.label).map_err(|error| error.of("--label"))?;
    let _ = (labels, args);
    Err(Failure::Unsupported("daemon (this build has none)".to_owned()))
}
