//! Which context a command uses. Pure, and in Docker's order: the flags, then the environment, then what `skep context use`
//! chose, then this host's own daemon.

use crate::client::{DEFAULT_HOST, Host, HostError};
use crate::failure::Failure;

/// The context that is always there: the daemon of this host.
pub(crate) const DEFAULT: &str = "default";

/// What was said, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// `--host`.
    pub(crate) host_flag: Option<String>,
    /// `--context`.
    pub(crate) context_flag: Option<String>,
    /// `SKEP_HOST`.
    pub(crate) host_variable: Option<String>,
    /// `SKEP_CONTEXT`.
    pub(crate) context_variable: Option<String>,
}

/// Where a command goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// A daemon's socket.
    Socket(Host),
    /// A context of that name; not looked up yet.
    Context(String),
}

/// Decides. `current` is asked last, and only where it matters.
pub(crate) fn choose(said: &Said, current: impl FnOnce() -> Result<String, Failure>) -> Result<Choice, Failure> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (host, context) = (given(&said.host_flag), given(&said.context_flag));
    if host.is_some() && context.is_some() {
        return Err(Failure::Usage("--host and --context say two things: give one of them".to_owned()));
    }
    if let Some(context) = context {
        return named(&context);
    }
    if let Some(host) = host {
        return socket(&host, "--host");
    }
    if let Some(host) = given(&said.host_variable) {
        return socket(&host, "SKEP_HOST");
    }
    match given(&said.context_variable) {
        Some(context) => named(&context),
        None => named(&current()?),
    }
}

fn named(context: &str) -> Result<Choice, Failure> {
    match context {
        DEFAULT => socket(DEFAULT_HOST, "--host"),
        other => Ok(Choice::Context(other.to_owned())),
    }
}

fn socket(text: &str, place: &str) -> Result<Choice, Failure> {
    let host: Result<Host, HostError> = text.parse();
    host.map(Choice::Socket).map_err(|error| Failure::Usage(format!("invalid value {text:?} for {place}: {error}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn said(host_flag: &str, context_flag: &str, host_variable: &str, context_variable: &str) -> Said {
        // An empty variable is one that is not set.
        let [host_flag, context_flag, host_variable, context_variable] =
            [host_flag, context_flag, host_variable, context_variable].map(|text| Some(text.to_owned()));
        Said { host_flag, context_flag, host_variable, context_variable }
    }

    #[test]
    fn the_order_is_dockers() {
        let choose = |said: Said| choose(&said, || Ok("chosen".to_owned())).unwrap();
        let context = |name: &str| Choice::Context(name.to_owned());
        let socket = |path: &str| Choice::Socket(path.parse().unwrap());
        assert_eq!(choose(said("", "a", "/b", "c")), context("a"));
        assert_eq!(choose(said("/a", "", "/b", "c")), socket("/a"));
        assert_eq!(choose(said("", "", "/b", "c")), socket("/b"));
        assert_eq!(choose(said("", "", "", "c")), context("c"));
        assert_eq!(choose(said("", "", "", "")), context("chosen"));
        assert_eq!(choose(said("", "default", "/b", "")), socket(DEFAULT_HOST));
        assert_eq!(choose(Said::default()), context("chosen"));
    }

    #[test]
    fn contradictions_and_addresses_without_a_key_are_refused() {
        let refused = |said: Said| choose(&said, || Ok(DEFAULT.to_owned())).unwrap_err().to_string();
        assert!(refused(said("/a", "b", "", "")).contains("two things"));
        assert!(refused(said("tcp://a:2377", "", "", "")).contains("skep context create"));
        assert!(refused(said("", "", "ssh://a", "")).contains("SKEP_HOST"));
    }
}
