//! `skep daemon`: flags to the daemon's configuration, in one place; and the hidden command that creates a container.
//! Both run without the command line's own runtime.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::net::IpAddr;
#[cfg(feature = "daemon")]
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing_subscriber::EnvFilter;

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
    /// Cgroup below which containers run.
    #[arg(long, value_name = "CGROUP", default_value = "skep")]
    cgroup_parent: PathBuf,
    /// Id of this boot; another one than last time means that nothing of before still runs [default: the kernel's].
    #[arg(long, value_name = "ID")]
    boot_id: Option<String>,
    /// Address that others use to reach this host, for a swarm that does not say otherwise.
    #[arg(long, value_name = "ADDRESS")]
    advertise_addr: Option<IpAddr>,
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

/// Runs the daemon until it is told to stop. Nothing is opened before the flags and the log filter are known to be right.
pub(crate) fn run(args: DaemonArgs) -> Result<ExitCode, Failure> {
    let filter = EnvFilter::try_new(&args.log_level)
        .map_err(|error| Failure::Usage(format!("invalid value for --log-level: {error}")))?;
    let settings = Settings::from_args(args)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    settings.run()
}

/// The checked flags.
#[derive(Debug)]
struct Settings {
    args: DaemonArgs,
    labels: BTreeMap<String, String>,
}

impl Settings {
    fn from_args(args: DaemonArgs) -> Result<Self, Failure> {
        let labels = pair::labels(&args.label).map_err(|error| error.of("--label"))?;
        Ok(Self { args, labels })
    }

    /// The one place where flags become the daemon's configuration.
    #[cfg(feature = "daemon")]
    fn run(self) -> Result<ExitCode, Failure> {
        let Self { args, labels } = self;
        let config = skep_node::Config {
            data_dir: args.data_dir,
            socket: args.socket,
            cgroup_parent: args.cgroup_parent,
            hostname: args.hostname,
            boot_id: args.boot_id,
            advertise_addr: args.advertise_addr,
            peer_port: args.peer_port,
            insecure_registries: args.insecure_registry,
            runtime: args.runtime,
            labels,
        };
        skep_node::run(config).map_err(|error| Failure::Failed(format!("{error:#}")))
    }

    #[cfg(not(feature = "daemon"))]
    fn run(self) -> Result<ExitCode, Failure> {
        Err(Failure::Unsupported(format!("daemon: this build is a client only ({self:?})")))
    }
}

/// Creates a container if this process was started as `skep create-container <dir>` by the agent; `None` otherwise.
#[cfg(feature = "daemon")]
pub(crate) fn creator() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next()?, arguments.next()?) {
        (command, dir) if command == "create-container" => Some(skep_runtime::creator::main(Path::new(&dir))),
        _ => None,
    }
}

/// A client creates no containers.
#[cfg(not(feature = "daemon"))]
pub(crate) fn creator() -> Option<ExitCode> {
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DaemonArgs,
    }

    fn settings(line: &[&str]) -> Result<Settings, Failure> {
        Settings::from_args(Line::try_parse_from(["daemon"].iter().chain(line)).unwrap().args)
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.args.data_dir, PathBuf::from("/var/lib/skep"));
        assert_eq!(settings.args.socket, PathBuf::from("/run/skep/skep.sock"));
        assert_eq!(settings.args.cgroup_parent, PathBuf::from("skep"));
        assert_eq!((settings.args.peer_port, settings.args.runtime.as_str()), (2378, "libcontainer"));
    }

    #[test]
    fn labels_and_paths_are_checked() {
        assert_eq!(settings(&["--label", "disk=ssd"]).unwrap().labels["disk"], "ssd");
        assert!(matches!(settings(&["--label", "=x"]), Err(Failure::Usage(_))));
        assert!(Line::try_parse_from(["daemon", "--socket", ""]).is_err());
        assert!(Line::try_parse_from(["daemon", "--advertise-addr", "nowhere"]).is_err());
        assert!(Line::try_parse_from(["daemon", "--peer-port", "0"]).is_err());
    }
}
