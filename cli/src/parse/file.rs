//! `--secret` and `--config`: `NAME`, `NAME@VERSION`, or `source=NAME[@VERSION][,target=PATH][,uid=ID][,gid=ID][,mode=MODE]`.

use skep_proto::v1::{ConfigRef, FileTarget, SecretRef};

use super::{ParseError, csv, number};

/// A secret's or config's name and its file, as both flags have them.
#[derive(Debug, Clone, Default, PartialEq)]
struct Use {
    name: String,
    version: Option<u64>,
    target: Option<FileTarget>,
}

/// Reads `--secret`.
pub(crate) fn secret(text: &str) -> Result<SecretRef, ParseError> {
    let Use { name, version, target } = parse(text, "secret")?;
    let pinned = version.is_some();
    Ok(SecretRef { name, version: version.unwrap_or(0), pinned, target, secret_id: Vec::new() })
}

/// Reads `--config`.
pub(crate) fn config(text: &str) -> Result<ConfigRef, ParseError> {
    let Use { name, version, target } = parse(text, "config")?;
    let pinned = version.is_some();
    Ok(ConfigRef { name, version: version.unwrap_or(0), pinned, target, config_id: Vec::new() })
}

fn parse(text: &str, kind: &str) -> Result<Use, ParseError> {
    if !text.contains('=') {
        return source(text, kind);
    }
    let mut found: Option<Use> = None;
    let mut target = FileTarget::default();
    for field in csv::fields(text)? {
        let (key, value) = csv::key_value(&field);
        let value = value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| ParseError::invalid(format!("{key:?} needs a value: write {key}=VALUE")))?;
        match key.as_str() {
            "source" | "src" => found = Some(source(value, kind)?),
            "target" => value.clone_into(&mut target.path),
            "uid" => value.clone_into(&mut target.uid),
            "gid" => value.clone_into(&mut target.gid),
            "mode" => target.mode = mode(value)?,
            _ => {
                let message = format!("{key:?} is not known: use source, target, uid, gid, mode");
                return Err(ParseError::invalid(message));
            }
        }
    }
    let found =
        found.ok_or_else(|| ParseError::invalid(format!("the name of a {kind} is missing: write source=NAME")))?;
    Ok(Use { target: (target != FileTarget::default()).then_some(target), ..found })
}

/// `db` or `db@3`
fn source(text: &str, kind: &str) -> Result<Use, ParseError> {
    let (name, version) = match text.split_once('@') {
        Some((name, version)) => match number::count::<u64>(version)? {
            0 => return Err(ParseError::invalid("versions are numbered from 1")),
            version => (name, Some(version)),
        },
        None => (text, None),
    };
    if name.is_empty() {
        return Err(ParseError::invalid(format!("the name of a {kind} is missing")));
    }
    Ok(Use { name: name.to_owned(), version, target: None })
}

/// Octal, as for chmod.
fn mode(text: &str) -> Result<u32, ParseError> {
    match u32::from_str_radix(text, 8) {
        // On the wire 0 stands for the default.
        Ok(0) => Err(ParseError::invalid("mode 0 would let nobody read it")),
        Ok(mode) if mode <= 0o7777 && !text.starts_with('+') => Ok(mode),
        _ => Err(ParseError::invalid(format!("{text:?} is not a mode: write it in octal, as in mode=0440"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn short_and_long_forms() {
        assert_eq!(secret("db").unwrap(), SecretRef { name: "db".into(), ..SecretRef::default() });
        let pinned = secret("db@3").unwrap();
        assert_eq!((pinned.name.as_str(), pinned.version, pinned.pinned), ("db", 3, true));
        let long = secret("source=db@2,target=/etc/db,uid=33,gid=34,mode=0440").unwrap();
        let target = FileTarget { path: "/etc/db".into(), uid: "33".into(), gid: "34".into(), mode: 0o440 };
        assert_eq!((long.version, long.target), (2, Some(target)));
        let config = config("src=site,target=x").unwrap();
        assert_eq!((config.name.as_str(), config.target.unwrap().path.as_str()), ("site", "x"));
    }

    #[test]
    fn mistakes_are_told() {
        for (text, why) in [
            ("", "the name of a secret is missing"),
            ("@3", "the name of a secret is missing"),
            ("db@", "whole number"),
            ("db@0", "numbered from 1"),
            ("target=x", "write source=NAME"),
            ("source=", "needs a value"),
            ("source=a,mode=999", "in octal"),
            ("source=a,mode=0", "nobody"),
            ("source=a,bogus=1", "is not known: use source, target, uid, gid, mode"),
        ] {
            let error = secret(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
