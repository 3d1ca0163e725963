//! `skep daemon`: flags to the daemon's configuration, in one place; and the hidden command that creates a container.
//! Both run without the command line's own runtime.

use std::io::IsTerminal as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;
use crate::parse::pair;

/// Runtimes that need no path: the one that is built in, and two that are looked for.
const NAMED_RUNTIMES: [&str; 3] = ["skep", "crun", "runc"];
/// What the one that is built in was called before.
const FORMER_RUNTIME: &str = "libcontainer";

/// What `info` means: libraries that tell every step at that level are only heard when something is wrong. openraft
/// repeats ten times a second that another manager is away; `skep_raft` says what matters of it.
const DEFAULT_LOG: &str = "info,openraft=off,sled=warn,h2=warn,hyper=warn";

#[derive(Args, Clone, Debug)]
pub(crate) struct DaemonArgs {
    /// Directory of everything that the daemon keeps.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/skep")]
    data_dir: PathBuf,
    /// Socket file to listen on.
    #[arg(long, value_name = "PATH", default_value = "/run/skep/skep.sock")]
    socket: PathBuf,
    /// Group whose members may use the socket: they can do with skep whatever root can [default: root alone].
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Serve figures to Prometheus at http://ADDR:PORT/metrics, to whoever asks; 127.0.0.1:9323 is for this host alone.
    #[arg(long, value_name = "ADDR:PORT")]
    metrics_addr: Option<SocketAddr>,
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
    #[arg(long, value_name = "PORT", default_value_t = skep_node::PEER_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    peer_port: u16,
    /// Registry that is spoken to by plain http, as HOST[:PORT].
    #[arg(long, value_name = "REGISTRY")]
    insecure_registry: Vec<String>,
    /// What makes containers: `skep` (built in), `crun`, `runc`, or a path.
    #[arg(long, value_name = "RUNTIME", default_value = "skep")]
    runtime: String,
    /// Give containers user and group ids that are nobody's on this host: `default` (the ranges of the user "skep" in
    /// /etc/subuid and /etc/subgid), USER[:GROUP] (theirs), or UID:GID:SIZE. Change it on a drained node.
    #[arg(long, value_name = "IDS")]
    userns_remap: Option<String>,
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
    let directives = if args.log_level == "info" { DEFAULT_LOG } else { &args.log_level };
    let filter = EnvFilter::try_new(directives)
        .map_err(|error| Failure::Usage(format!("invalid value for --log-level: {error}")))?;
    let config = config(args)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    skep_node::run(config).map_err(|error| Failure::Failed(format!("{error:#}")))
}

/// The one place where flags become the daemon's configuration.
fn config(args: DaemonArgs) -> Result<skep_node::Config, Failure> {
    let runtime = if args.runtime == FORMER_RUNTIME { "skep".to_owned() } else { args.runtime };
    if !NAMED_RUNTIMES.contains(&runtime.as_str()) && !runtime.starts_with('/') {
        return Err(Failure::Usage(format!(
            "invalid value for --runtime: {runtime:?} is neither {} nor an absolute path",
            NAMED_RUNTIMES.join(", ")
        )));
    }
    for registry in &args.insecure_registry {
        registry
            .parse::<skep_image::registry::InsecureEntry>()
            .map_err(|error| Failure::Usage(format!("invalid value for --insecure-registry: {error}")))?;
    }
    let remap = args.userns_remap.as_deref().map(skep_node::Remap::of_flag).transpose();
    let userns_remap = remap.map_err(|error| Failure::Usage(format!("invalid value for --userns-remap: {error}")))?;
    if userns_remap.is_some() && runtime != "skep" {
        return Err(Failure::Usage("--userns-remap takes the built-in runtime".to_owned()));
    }
    Ok(skep_node::Config {
        labels: pair::labels(&args.label).map_err(|error| error.of("--label"))?,
        data_dir: args.data_dir,
        socket: args.socket,
        group: args.group.as_deref().map(group).transpose()?,
        metrics_addr: args.metrics_addr,
        cgroup_parent: args.cgroup_parent,
        hostname: args.hostname,
        boot_id: args.boot_id,
        advertise_addr: args.advertise_addr,
        peer_port: args.peer_port,
        insecure_registries: args.insecure_registry,
        runtime,
        userns_remap,
        // Known at the start: an upgrade puts another file there, and its netd is as good.
        netd: std::env::current_exe().ok(),
    })
}

/// The number of a group, by its name or number.
fn group(name: &str) -> Result<u32, Failure> {
    let wrong = |why: String| Failure::Usage(format!("invalid value for --group: {why}"));
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(wrong(format!("there is no group {name:?} on this host: make it with `groupadd {name}`"))),
        Err(error) => Err(wrong(format!("the group {name:?} cannot be looked up: {error}"))),
    }
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

    fn config(line: &[&str]) -> Result<skep_node::Config, Failure> {
        super::config(Line::try_parse_from(["daemon"].iter().chain(line)).unwrap().args)
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = config(&[]).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/var/lib/skep"));
        assert_eq!(config.socket, PathBuf::from("/run/skep/skep.sock"));
        assert_eq!(config.cgroup_parent, PathBuf::from("skep"));
        assert_eq!((config.peer_port, config.runtime.as_str()), (skep_node::PEER_PORT, "skep"));
        assert_eq!((config.hostname, config.boot_id, config.advertise_addr), (None, None, None));
        assert_eq!(config.group, None);
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(config(&["--label", "disk=ssd"]).unwrap().labels["disk"], "ssd");
        assert!(config(&["--runtime", "/usr/bin/crun"]).is_ok());
        assert_eq!(config(&["--runtime", "libcontainer"]).unwrap().runtime, "skep");
        assert!(config(&["--insecure-registry", "registry.example:5000"]).is_ok());
        assert_eq!(config(&["--group", "root"]).unwrap().group, Some(0));
        assert_eq!(config(&["--group", "77"]).unwrap().group, Some(77));
        let unknown = config(&["--group", "no-such-group"]).unwrap_err().to_string();
        assert!(unknown.contains("there is no group \"no-such-group\""), "{unknown}");
        assert_eq!(config(&["--userns-remap", "100000:100000:65536"]).unwrap().userns_remap.unwrap().uids.len(), 1);
        assert!(config(&["--userns-remap", "1:1:9", "--runtime", "runc"]).is_err());
        for line in [
            ["--userns-remap", "0:0:9"],
            ["--label", "=x"],
            ["--runtime", "bogus"],
            ["--insecure-registry", "http://x"],
        ] {
            assert!(matches!(config(&line), Err(Failure::Usage(_))), "{line:?}");
        }
        for line in [["--socket", ""], ["--advertise-addr", "nowhere"], ["--peer-port", "0"]] {
            assert!(Line::try_parse_from(["daemon"].iter().chain(&line)).is_err(), "{line:?}");
        }
    }
}
