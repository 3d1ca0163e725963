//! Dockerfile instructions that change an image's config: `image import --change`. Pure.

use std::time::Duration;

use crate::config::{Empty, Healthcheck, RunConfig};

/// Why an instruction is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Another word than the known ones.
    #[error(
        "unknown instruction {0:?} in a change: use CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR"
    )]
    Unknown(String),
    /// Docker knows it and we do not.
    #[error("instruction {0} in a change is not supported yet")]
    Unsupported(&'static str),
    /// Its arguments.
    #[error("invalid change {line:?}: {problem}")]
    Invalid {
        /// The whole instruction.
        line: String,
        /// What is wrong.
        problem: String,
    },
}

/// Applies one instruction, for example `CMD ["/bin/sh"]` or `ENV A=1 B=2`.
pub fn apply(config: &mut RunConfig, line: &str) -> Result<(), ChangeError> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let invalid = |problem: &str| ChangeError::Invalid { line: line.to_owned(), problem: problem.to_owned() };
    if rest.is_empty() {
        return Err(invalid("it has no arguments"));
    }
    match word.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = command(rest).map_err(|problem| invalid(&problem))?,
        "ENTRYPOINT" => config.entrypoint = command(rest).map_err(|problem| invalid(&problem))?,
        "ENV" => {
            for (key, value) in pairs(rest).map_err(|problem| invalid(&problem))? {
                let prefix = format!("{key}=");
                config.env.retain(|entry| !entry.starts_with(&prefix));
                config.env.push(format!("{key}={value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest).map_err(|problem| invalid(&problem))?),
        "EXPOSE" => {
            // All of them or none.
            let read = rest.split_whitespace().map(ports).collect::<Option<Vec<_>>>();
            let read = read.ok_or_else(|| invalid("a port is 1 to 65535, or a range, with /tcp, /udp or /sctp"))?;
            config.exposed_ports.extend(read.into_iter().flatten().map(|port| (port, Empty {})));
        }
        "USER" => config.user = rest.to_owned(),
        "WORKDIR" if rest.starts_with('/') => config.working_dir = rest.to_owned(),
        "WORKDIR" => {
            let base = config.working_dir.trim_end_matches('/');
            config.working_dir = format!("{base}/{rest}");
        }
        "VOLUME" => {
            let paths = match json_list(rest) {
                Some(paths) => paths.map_err(|problem| invalid(&problem))?,
                None => rest.split_whitespace().map(str::to_owned).collect(),
            };
            config.volumes.extend(paths.into_iter().map(|path| (path, Empty {})));
        }
        "STOPSIGNAL" => config.stop_signal = Some(rest.to_owned()),
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest).map_err(|problem| invalid(&problem))?),
        "ONBUILD" => return Err(ChangeError::Unsupported("ONBUILD")),
        _ => return Err(ChangeError::Unknown(word.to_owned())),
    }
    Ok(())
}

/// `["a", "b"]`, or a line for the shell.
fn command(text: &str) -> Result<Vec<String>, String> {
    match json_list(text) {
        Some(list) => list,
        None => Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()]),
    }
}

/// `None` if it does not look like a JSON list.
fn json_list(text: &str) -> Option<Result<Vec<String>, String>> {
    text.starts_with('[')
        .then(|| serde_json::from_str(text).map_err(|error| format!("not a JSON list of strings: {error}")))
}

/// `a=1 b="two words"`, or the old form `a one value`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let words = words(text)?;
    match words.first() {
        Some(first) if first.contains('=') => words
            .into_iter()
            .map(|word| match word.split_once('=') {
                Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
                _ => Err(format!("{word:?} is not key=value")),
            })
            .collect(),
        _ => match text.split_once(char::is_whitespace) {
            Some((key, value)) => Ok(vec![(key.to_owned(), value.trim().to_owned())]),
            None => Err("use key=value".to_owned()),
        },
    }
}

/// Splits at white space outside quotes; a backslash takes the next character as it is, except in single quotes.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', None | Some('"')) => {
                let next = characters.next().ok_or("a backslash at the end")?;
                word.get_or_insert_default().push(next);
            }
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (character, Some(open)) if character == open => quote = None,
            (character, None) if character.is_whitespace() => out.extend(word.take()),
            (character, _) => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    out.extend(word);
    Ok(out)
}

/// `80`, `53/udp`, `8000-8002/tcp` as Docker's keys. `None` if it is none of them.
fn ports(text: &str) -> Option<Vec<String>> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        return None;
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    let valid = first > 0 && first <= last;
    valid.then(|| (first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// `NONE`, or options and `CMD command`.
fn healthcheck(text: &str) -> Result<Healthcheck, String> {
    let mut check = Healthcheck::default();
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, behind) = option.split_once(char::is_whitespace).ok_or("no command behind the options")?;
        rest = behind.trim_start();
        let (name, value) = option.split_once('=').ok_or_else(|| format!("--{option} needs a value"))?;
        let duration = || duration(value).ok_or_else(|| format!("--{name}: {value:?} is not a duration such as 30s"));
        match name {
            "interval" => check.interval = duration()?,
            "timeout" => check.timeout = duration()?,
            "start-period" => check.start_period = duration()?,
            "start-interval" => check.start_interval = duration()?,
            "retries" => check.retries = value.parse().map_err(|_| format!("--retries: {value:?} is not a number"))?,
            _ => return Err(format!("unknown option --{name}")),
        }
    }
    check.test =
        match rest.split_once(char::is_whitespace).unwrap_or((rest, "")) {
            (word, "") if word.eq_ignore_ascii_case("none") => vec!["NONE".to_owned()],
            (word, command) if word.eq_ignore_ascii_case("cmd") && !command.trim().is_empty() => {
                match json_list(command.trim()) {
                    Some(list) => std::iter::once(Ok("CMD".to_owned()))
                        .chain(list?.into_iter().map(Ok))
                        .collect::<Result<_, String>>()?,
                    None => vec!["CMD-SHELL".to_owned(), command.trim().to_owned()],
                }
            }
            _ => return Err("use NONE, or CMD and a command".to_owned()),
        };
    Ok(check)
}

/// Go's duration, whole numbers only: `1h2m3s4ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        rest = &rest[unit_end..];
        total = total.checked_add(unit.checked_mul(number)?)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn changed(lines: &[&str]) -> RunConfig {
        let mut config = RunConfig::default();
        for line in lines {
            apply(&mut config, line).unwrap();
        }
        config
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let mut config = RunConfig::default();
        apply(&mut config, "EXPOSE 80 nonsense").unwrap_err();
        assert_eq!(config, RunConfig::default());
    }

    #[test]
    fn every_instruction() {
        let config = changed(&[
            r#"CMD ["/bin/sh", "-l"]"#,
            "entrypoint exec  thing",
            r#"ENV A=1 B="two words" C=x\ y"#,
            "ENV A old  form",
            "EXPOSE 80 53/udp 8000-8001",
            r#"LABEL a.b='c d'"#,
            "USER 1000:1000",
            "WORKDIR /srv",
            "WORKDIR sub",
            r#"VOLUME ["/data"]"#,
            "VOLUME /a /b",
            "STOPSIGNAL SIGQUIT",
            "HEALTHCHECK --interval=1m30s --retries=2 CMD curl -f localhost",
        ]);
        assert_eq!(config.cmd, ["/bin/sh", "-l"]);
        assert_eq!(config.entrypoint, ["/bin/sh", "-c", "exec  thing"]);
        assert_eq!(config.env, ["B=two words", "C=x y", "A=old  form"]);
        assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["53/udp", "80/tcp", "8000/tcp", "8001/tcp"]);
        assert_eq!(config.labels["a.b"], "c d");
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1000:1000", "/srv/sub"));
        assert_eq!(config.volumes.len(), 3);
        let check = config.healthcheck.unwrap();
        assert_eq!((check.interval, check.retries), (Duration::from_secs(90), 2));
        assert_eq!(check.test, ["CMD-SHELL", "curl -f localhost"]);
        assert_eq!(changed(&["HEALTHCHECK NONE"]).healthcheck.unwrap().test, ["NONE"]);
    }

    #[test]
    fn refusals_say_why() {
        for (line, part) in [
            ("FROM x", "unknown instruction \"FROM\""),
            ("ONBUILD RUN x", "not supported yet"),
            ("CMD", "no arguments"),
            ("CMD [1]", "JSON list"),
            ("ENV x", "key=value"),
            ("ENV a=1 b", "key=value"),
            ("ENV a=\"x", "not closed"),
            ("EXPOSE 0", "1 to 65535"),
            ("EXPOSE 9-8", "1 to 65535"),
            ("EXPOSE 80/icmp", "1 to 65535"),
            ("HEALTHCHECK --interval=x CMD y", "duration"),
            ("HEALTHCHECK maybe", "NONE"),
        ] {
            let message = apply(&mut RunConfig::default(), line).unwrap_err().to_string();
            assert!(message.contains(part), "{line}: {message}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(CMD|ENV|EXPOSE|LABEL|VOLUME|HEALTHCHECK)? ?\\PC{0,40}") {
            let _ = apply(&mut RunConfig::default(), &text);
        }
    }
}
