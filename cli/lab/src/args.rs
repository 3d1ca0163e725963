//! The command line of `skep lab`, as clap sees it. Parsing only; [`crate::run`] acts on it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

/// More hosts than this do not fit the lab's /24.
pub(crate) const MAX_HOSTS: u16 = 250;

/// Make, use and remove a cluster of several hosts on this machine (needs root).
#[derive(Args, Clone, Debug)]
pub struct LabCommand {
    /// Name of the lab; several may be up side by side.
    #[arg(long, global = true, default_value = "lab", value_name = "NAME", value_parser = parse_name)]
    pub name: String,
    /// Directory of the lab's state, data and logs [default: /var/lib/skep-lab/NAME].
    #[arg(long, global = true, env = "SKEP_LAB_DIR", value_name = "DIR")]
    pub lab_dir: Option<PathBuf>,
    /// What to do with it.
    #[command(subcommand)]
    pub action: LabAction,
}

/// The verbs of `skep lab`.
#[derive(Subcommand, Clone, Debug)]
pub enum LabAction {
    /// Make the hosts, start their daemons and join them to one swarm.
    Up(UpArgs),
    /// Run a command on a host: `skep lab exec 1 -- skep node ls`.
    Exec {
        /// Number of the host.
        #[arg(value_name = "HOST")]
        host: u16,
        /// The command and its arguments, after `--`.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Start hosts that are powered off, or their daemons, and wait until these are ready.
    Start {
        /// Hosts, as `2`, `1,3` or `all`.
        #[arg(value_name = "HOSTS")]
        hosts: HostNumbers,
    },
    /// Stop the daemons of hosts gracefully (SIGTERM) and wait; containers keep running.
    Stop {
        /// Hosts, as `2`, `1,3` or `all`.
        #[arg(value_name = "HOSTS")]
        hosts: HostNumbers,
    },
    /// Kill the daemons of hosts (SIGKILL); containers keep running.
    Kill {
        /// Hosts, as `2`, `1,3` or `all`.
        #[arg(value_name = "HOSTS")]
        hosts: HostNumbers,
    },
    /// Cut the power of hosts: all their processes end at once, no connection is closed.
    PowerOff {
        /// Hosts, as `2`, `1,3` or `all`.
        #[arg(value_name = "HOSTS")]
        hosts: HostNumbers,
    },
    /// Cut every link between two groups of hosts, besides those already cut: `skep lab partition 1 2,3`.
    Partition {
        /// One side, as `1` or `1,2`.
        #[arg(value_name = "HOSTS")]
        left: HostNumbers,
        /// The other side; `all` are all that are not on the first.
        #[arg(value_name = "HOSTS")]
        right: HostNumbers,
    },
    /// Join the links that were cut.
    Heal {
        /// Hosts whose links are joined, as `2` or `1,3`.
        #[arg(value_name = "HOSTS", default_value = "all")]
        hosts: HostNumbers,
    },
    /// List the hosts of the lab, with their roles in the swarm.
    Ls {
        /// How to print them.
        #[arg(long, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
    },
    /// Print the log of a host's daemon.
    Logs {
        /// Number of the host.
        #[arg(value_name = "HOST")]
        host: u16,
        /// Go on printing what is written, until interrupted.
        #[arg(long, short = 'f')]
        follow: bool,
        /// Only the last N lines [default: all].
        #[arg(long, short = 'n', value_name = "N")]
        tail: Option<usize>,
    },
    /// Remove the lab: processes, cgroups, namespaces and data.
    Down {
        /// Keep the hosts' data and logs in the lab directory; the next `down` removes them.
        #[arg(long)]
        keep_data: bool,
    },
}

/// Options of `skep lab up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// How many hosts to make.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_HOSTS)))]
    pub nodes: u16,
    /// How many of them (the first ones) are managers.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_HOSTS)), conflicts_with = "no_swarm")]
    pub managers: u16,
    /// Start the daemons only: no swarm is initialised or joined.
    #[arg(long)]
    pub no_swarm: bool,
    /// An argument for every daemon (repeatable): `--daemon-arg=--log-level=debug`.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub daemon_arg: Vec<String>,
    /// A registry that the daemons may reach by plain http (repeatable).
    #[arg(long, value_name = "HOST:PORT")]
    pub insecure_registry: Vec<String>,
}

/// How `skep lab ls` prints.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListFormat {
    /// Columns for people.
    Table,
    /// One JSON object a line.
    Json,
}

/// Some hosts of a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostNumbers {
    /// Every one.
    All,
    /// These: sorted, without repetitions, never empty.
    These(Vec<u16>),
}

impl HostNumbers {
    /// Their numbers in a lab of `count` hosts. Whether the lab has them is for its user to find out.
    pub(crate) fn of(&self, count: usize) -> Vec<u16> {
        match self {
            Self::All => (1..).take(count).collect(),
            Self::These(numbers) => numbers.clone(),
        }
    }
}

impl FromStr for HostNumbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let mut numbers = text.split(',').map(parse_number).collect::<Result<Vec<_>, _>>()?;
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Self::These(numbers))
    }
}

fn parse_number(text: &str) -> Result<u16, String> {
    match text.trim().parse() {
        Ok(number) if (1..=MAX_HOSTS).contains(&number) => Ok(number),
        _ => Err(format!("{text:?} is not a host's number; give numbers such as 2 or 1,3, or all")),
    }
}

/// A lab's name becomes a cgroup and a directory, so it keeps to the rule of all names of skep.
fn parse_name(text: &str) -> Result<String, String> {
    let good = text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if good {
        Ok(text.to_owned())
    } else {
        Err("a name has at most 63 letters, digits, '_', '.' and '-', and starts with a letter or digit".to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        top: Top,
    }

    #[derive(Subcommand)]
    enum Top {
        Lab(LabCommand),
    }

    fn parse(line: &str) -> Result<LabCommand, clap::Error> {
        let Top::Lab(lab) = Cli::try_parse_from(line.split_whitespace())?.top;
        Ok(lab)
    }

    #[test]
    fn name_is_accepted_anywhere_before_the_dashes() {
        for line in
            ["skep lab --name a exec 1 -- ls", "skep lab exec --name a 1 -- ls", "skep lab exec 1 --name a -- ls"]
        {
            assert_eq!(parse(line).unwrap().name, "a", "{line}");
        }
        let lab = parse("skep lab exec 1 -- ls --name b").unwrap();
        assert_eq!(lab.name, "lab");
        let LabAction::Exec { host: 1, command } = lab.action else { panic!("not exec") };
        assert_eq!(command, ["ls", "--name", "b"]);
    }

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for name in ["..", "a/b", "", "-x", ".hidden", &"x".repeat(64)] {
            assert!(parse_name(name).is_err(), "{name}");
        }
        assert_eq!(parse_name("a-1_b.c").unwrap(), "a-1_b.c");
    }

    #[test]
    fn host_numbers_are_sorted_and_checked() {
        assert_eq!("3,1,3".parse(), Ok(HostNumbers::These(vec![1, 3])));
        assert_eq!("all".parse::<HostNumbers>().map(|all| all.of(3)), Ok(vec![1, 2, 3]));
        for bad in ["", "0", "1,,2", "251", "x", "-1", "1-3", "1,all"] {
            assert!(bad.parse::<HostNumbers>().is_err(), "{bad}");
        }
    }

    #[test]
    fn daemon_arguments_may_begin_with_a_dash() {
        let lab = parse("skep lab up --daemon-arg --verbose --daemon-arg=-v --nodes 2").unwrap();
        let LabAction::Up(up) = lab.action else { panic!("not up") };
        assert_eq!(up.daemon_arg, ["--verbose", "-v"]);
        assert_eq!((up.nodes, up.managers), (2, 1));
        assert!(parse("skep lab up --nodes 0").is_err());
        assert!(parse("skep lab up --no-swarm --managers 1").is_err());
    }
}
