//! `--ulimit nofile=1024:2048`.

use skep_proto::v1::Ulimit;

use super::ParseError;

/// Limits that setrlimit(2) has, without RLIMIT_, in lower case.
const NAMES: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Reads `name=soft[:hard]`; -1 is unlimited, the hard limit defaults to the soft one.
pub(crate) fn parse(text: &str) -> Result<Ulimit, ParseError> {
    let invalid = |why: String| ParseError::invalid(format!("{text:?}: {why}"));
    let (name, limits) = text.split_once('=').ok_or_else(|| invalid("write it like nofile=1024:2048".to_owned()))?;
    if !NAMES.contains(&name) {
        return Err(invalid(format!("{name:?} is not a limit: use {}", NAMES.join(", "))));
    }
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| match text.parse::<i64>() {
        Ok(value) if value >= -1 => Ok(value),
        _ => Err(invalid(format!("{text:?} is not a number from 0 up, or -1 for unlimited"))),
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(invalid("the soft limit exceeds the hard one".to_owned()));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn limits() {
        let limit = parse("nofile=1024:2048").unwrap();
        assert_eq!((limit.name.as_str(), limit.soft, limit.hard), ("nofile", 1024, 2048));
        assert_eq!(parse("core=0").unwrap().hard, 0);
        assert_eq!(parse("memlock=-1:-1").unwrap().soft, -1);
        for wrong in ["nofile", "bogus=1", "nofile=x", "nofile=5:4", "nofile=-1:5", "nofile=-2", "nofile=1:2:3", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
