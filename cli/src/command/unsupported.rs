//! What Docker has and skep does not have yet. Looked up when clap meets something unknown, so that a Docker user reads
//! "not supported yet: --tty" and not "unexpected argument".
//!
//! A flag leaves this list when its command gets it; a test keeps the two apart.

use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::failure::Failure;

/// Verbs, by noun; the empty noun is `skep` itself.
const VERBS: &[(&str, &[&str])] = &[
    ("", &["container", "events", "exec", "login", "logout", "plugin", "stack", "system", "volume"]),
    ("network", &["connect", "disconnect"]),
    ("image", &["build", "history", "push", "save"]),
];

/// Flags, by command.
const FLAGS: &[(&str, &[&str])] = &[
    (
        "service create",
        &[
            "--credential-spec",
            "--generic-resource",
            "--isolation",
            "--max-concurrent",
            "--no-resolve-image",
            "--tty",
            "-t",
        ],
    ),
    (
        "service update",
        &[
            "--credential-spec",
            "--generic-resource-add",
            "--generic-resource-rm",
            "--isolation",
            "--max-concurrent",
            "--no-resolve-image",
            "--tty",
            "-t",
        ],
    ),
    ("service logs", &["--details"]),
    ("swarm init", &["--data-path-addr", "--external-ca", "--max-snapshots", "--snapshot-interval"]),
    ("network create", &["--config-from", "--config-only", "--ipam-driver", "--ipam-opt", "--scope"]),
    ("secret create", &["--driver", "-d"]),
    ("swarm join", &["--data-path-addr"]),
    ("swarm ca", &["--external-ca"]),
    ("swarm update", &["--external-ca", "--max-snapshots", "--snapshot-interval"]),
    ("image ls", &["--all", "-a", "--tree"]),
    ("image pull", &["--all-tags", "-a", "--disable-content-trust"]),
    ("image load", &["--platform"]),
    ("image rm", &["--no-prune", "--platform"]),
    ("image prune", &["--filter"]),
    ("image inspect", &["--platform"]),
    ("", &["--config", "--debug", "-D", "--log-level", "--tls", "--tlscacert", "--tlscert", "--tlskey", "--tlsverify"]),
];

/// The refusal for what clap stumbled over, if Docker has it.
pub(crate) fn explain(error: &clap::Error, arguments: &[OsString], root: &Command) -> Option<Failure> {
    let path = path(arguments, root);
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let flag = context(error, ContextKind::InvalidArg)?;
            let flag = flag.split('=').next().unwrap_or(flag);
            find(FLAGS, &path, flag).map(|()| Failure::Unsupported(flag.to_owned()))
        }
        ErrorKind::InvalidSubcommand => {
            let verb = context(error, ContextKind::InvalidSubcommand)?;
            find(VERBS, &path, verb).map(|()| Failure::Unsupported(format!("{path} {verb}").trim().to_owned()))
        }
        _ => None,
    }
}

fn find(table: &[(&str, &[&str])], path: &str, word: &str) -> Option<()> {
    let (_, words) = table.iter().find(|(known, _)| *known == path)?;
    words.contains(&word).then_some(())
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    }
}

/// The subcommands that the arguments lead to: `service create`.
fn path(arguments: &[OsString], root: &Command) -> String {
    let mut names = Vec::new();
    let mut command = root;
    for argument in arguments.iter().skip(1) {
        let Some(next) = argument.to_str().and_then(|word| command.find_subcommand(word)) else {
            continue;
        };
        names.push(next.get_name());
        command = next;
        if !command.has_subcommands() {
            break;
        }
    }
    names.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::command::Cli;

    fn refused(line: &str) -> Option<String> {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = Cli::try_parse_from(&arguments).unwrap_err();
        explain(&error, &arguments, &Cli::command()).map(|failure| failure.to_string())
    }

    #[test]
    fn dockers_flags_and_verbs_are_refused_by_name() {
        for (line, name) in [
            ("skep service create --credential-spec=x nginx", "--credential-spec"),
            ("skep service create -t nginx", "-t"),
            ("skep service update --generic-resource-add x web", "--generic-resource-add"),
            ("skep swarm update --max-snapshots 3", "--max-snapshots"),
            ("skep -H unix:///x volume ls", "volume"),
            ("skep swarm init --external-ca x", "--external-ca"),
            ("skep swarm ca --external-ca x", "--external-ca"),
            ("skep network connect a b", "network connect"),
            ("skep network create --scope swarm x", "--scope"),
        ] {
            assert_eq!(refused(line).unwrap(), format!("not supported yet: {name}"), "{line}");
        }
    }

    #[test]
    fn everything_else_is_a_usage_error() {
        for line in ["skep service create --bogus nginx", "skep bogus", "skep service bogus", "skep node ls --tree"] {
            assert_eq!(refused(line), None, "{line}");
        }
    }

    #[test]
    fn nothing_is_both_supported_and_not() {
        let root = Cli::command();
        let find = |path: &str| {
            path.split_whitespace().try_fold(&root, |command, name| command.find_subcommand(name)).unwrap()
        };
        for (path, flags) in FLAGS {
            for argument in find(path).get_arguments() {
                let long = argument.get_long().map(|long| format!("--{long}")).unwrap_or_default();
                let short = argument.get_short().map(|short| format!("-{short}")).unwrap_or_default();
                assert!(!flags.contains(&long.as_str()) && !flags.contains(&short.as_str()), "{path} {long} {short}");
            }
        }
        for (path, verbs) in VERBS {
            for verb in *verbs {
                assert!(find(path).find_subcommand(verb).is_none(), "{path} {verb}");
            }
        }
    }
}
