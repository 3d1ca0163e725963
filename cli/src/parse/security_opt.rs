//! `--security-opt`: Docker's options of a container's confinement, as far as they exist.

use super::{ParseError, boolean};

/// One option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecurityOpt {
    /// Whether set-uid programs gain nothing.
    NoNewPrivileges(bool),
    /// `None`: Docker's default profile.
    Seccomp(Option<Seccomp>),
    /// A loaded profile or `unconfined`; empty: the node's default.
    AppArmor(String),
}

/// Which system calls may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seccomp {
    /// All.
    Unconfined,
    /// Those of a profile in this file.
    File(String),
}

/// Reads one; Docker takes `:` for `=` too.
pub(crate) fn parse(text: &str) -> Result<SecurityOpt, ParseError> {
    let (key, value) = match text.find(['=', ':']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    match (key, value) {
        ("no-new-privileges", None) => Ok(SecurityOpt::NoNewPrivileges(true)),
        ("no-new-privileges", Some(value)) => boolean(value).map(SecurityOpt::NoNewPrivileges),
        ("seccomp", Some("default" | "builtin")) => Ok(SecurityOpt::Seccomp(None)),
        ("seccomp", Some("unconfined")) => Ok(SecurityOpt::Seccomp(Some(Seccomp::Unconfined))),
        ("seccomp", Some(path)) if !path.is_empty() => Ok(SecurityOpt::Seccomp(Some(Seccomp::File(path.to_owned())))),
        ("apparmor", Some("default" | "skep-default")) => Ok(SecurityOpt::AppArmor(String::new())),
        ("apparmor", Some(name)) if !name.is_empty() => Ok(SecurityOpt::AppArmor(name.to_owned())),
        ("label" | "systempaths" | "writable-cgroups", _) => Err(ParseError::unsupported(key)),
        _ => Err(ParseError::invalid(format!(
            "{text:?} is not known: use no-new-privileges[:BOOL], seccomp=unconfined|default|FILE or \
             apparmor=unconfined|default|PROFILE"
        ))),
    }
}

/// A profile's text without blanks. What its rules mean is the nodes' to say.
pub(crate) fn profile(text: &str) -> Result<String, ParseError> {
    let invalid = |why: String| ParseError::invalid(format!("the seccomp profile {why}"));
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| invalid(format!("is no JSON: {error}")))?;
    if !value["defaultAction"].is_string() {
        return Err(invalid("has no \"defaultAction\"".to_owned()));
    }
    Ok(value.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_are_dockers() {
        for text in ["no-new-privileges", "no-new-privileges:true", "no-new-privileges=1"] {
            assert_eq!(parse(text), Ok(SecurityOpt::NoNewPrivileges(true)), "{text}");
        }
        assert_eq!(parse("no-new-privileges:false"), Ok(SecurityOpt::NoNewPrivileges(false)));
        assert_eq!(parse("seccomp=unconfined"), Ok(SecurityOpt::Seccomp(Some(Seccomp::Unconfined))));
        assert_eq!(parse("seccomp=a=b.json"), Ok(SecurityOpt::Seccomp(Some(Seccomp::File("a=b.json".into())))));
        assert_eq!(parse("seccomp=builtin"), Ok(SecurityOpt::Seccomp(None)));
        assert_eq!(parse("apparmor=web"), Ok(SecurityOpt::AppArmor("web".into())));
        assert_eq!(parse("apparmor=default"), Ok(SecurityOpt::AppArmor(String::new())));
        for later in ["label=disable", "systempaths=unconfined", "label:type:x"] {
            assert!(matches!(parse(later), Err(ParseError::Unsupported(_))), "{later}");
        }
        for wrong in ["", "seccomp", "seccomp=", "apparmor", "bogus=1", "no-new-privileges=maybe"] {
            assert!(matches!(parse(wrong), Err(ParseError::Invalid(_))), "{wrong}");
        }
    }

    #[test]
    fn a_profile_is_an_object_with_a_default() {
        assert_eq!(
            profile("{ \"defaultAction\" : \"SCMP_ACT_ALLOW\" }\n").unwrap(),
            r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#
        );
        for wrong in ["", "{", "[]", "{}", "\"x\"", "{\"defaultAction\": 1}"] {
            assert!(profile(wrong).is_err(), "{wrong}");
        }
    }
}
