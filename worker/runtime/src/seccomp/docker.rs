//! A seccomp profile of a user's, in Docker's JSON form (moby `profiles/seccomp`, docs.docker.com/engine/security/seccomp), as
//! rules of the OCI runtime specification: what depends on the processor, the kernel or capabilities is decided here. Pure.

use serde::Deserialize;
use serde_json::{Value, json};

/// Why a profile cannot be used. Written for the user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error("the seccomp profile is not of Docker's form: {0}")]
    Form(#[from] serde_json::Error),
    #[error("the seccomp profile has both \"architectures\" and \"archMap\": one of them is enough")]
    Architectures,
    #[error("not supported yet: {0} in a seccomp profile")]
    NotYet(&'static str),
    #[error("the seccomp profile has the kernel version {0:?}: it is not MAJOR.MINOR")]
    Kernel(String),
    #[error("the seccomp profile has a rule without a system call's name")]
    NoName,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<i32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<Architecture>>,
    syscalls: Option<Vec<Rule>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Architecture {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    /// An older form of `names`.
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<i32>,
    args: Option<Vec<Value>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// What conditions are about.
#[derive(Clone, Copy)]
pub(crate) struct Here<'a> {
    /// Capabilities of the container, without `CAP_`.
    pub(crate) capabilities: &'a [String],
    /// Major and minor number.
    pub(crate) kernel: (u32, u32),
}

/// The processor in Go's words, as conditions name it, and in libseccomp's.
#[cfg(target_arch = "x86_64")]
const PROCESSOR: (&str, &str) = ("amd64", "SCMP_ARCH_X86_64");
#[cfg(target_arch = "aarch64")]
const PROCESSOR: (&str, &str) = ("arm64", "SCMP_ARCH_AARCH64");
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const PROCESSOR: (&str, &str) = ("", "");

/// EPERM: what is refused without a number of its own.
const REFUSED: i32 = 1;

/// The rules that count here.
pub(crate) fn rules(text: &str, here: Here<'_>) -> Result<Value, ProfileError> {
    let profile: Profile = serde_json::from_str(text)?;
    if profile.flags.is_some_and(|flags| !flags.is_empty()) {
        return Err(ProfileError::NotYet("\"flags\""));
    }
    if profile.listener_path.is_some() || profile.listener_metadata.is_some() {
        return Err(ProfileError::NotYet("a listener"));
    }
    let errno = profile.default_errno_ret.unwrap_or(REFUSED);
    let mut rules = Vec::new();
    for rule in profile.syscalls.unwrap_or_default() {
        let errno_here = rule.errno_ret.unwrap_or(REFUSED);
        let is_default = rule.action == profile.default_action && (errno_here == errno || !takes_number(&rule.action));
        if !applies(&rule, here)? || is_default {
            continue;
        }
        if rule.action == "SCMP_ACT_NOTIFY" {
            return Err(ProfileError::NotYet("SCMP_ACT_NOTIFY"));
        }
        let mut names = rule.names.unwrap_or_default();
        names.extend(rule.name.filter(|name| !name.is_empty()));
        if names.is_empty() {
            return Err(ProfileError::NoName);
        }
        rules.extend(alternatives(rule.args.unwrap_or_default()).into_iter().map(|args| {
            let mut made = json!({ "names": names, "action": rule.action, "args": args });
            if takes_number(&rule.action) {
                made["errnoRet"] = json!(errno_here);
            }
            made
        }));
    }
    Ok(json!({
        "defaultAction": profile.default_action,
        "defaultErrnoRet": errno,
        "architectures": architectures(profile.architectures, profile.arch_map)?,
        "syscalls": rules,
    }))
}

fn takes_number(action: &str) -> bool {
    matches!(action, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE")
}

/// A rule can compare an argument once. Where one is named twice, each comparison is a rule of its own, any of which is
/// enough (runc's way).
fn alternatives(args: Vec<Value>) -> Vec<Vec<Value>> {
    let index = |arg: &Value| arg["index"].as_u64();
    let twice = args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|before| index(before) == index(arg)));
    if twice { args.into_iter().map(|arg| vec![arg]).collect() } else { vec![args] }
}

fn applies(rule: &Rule, here: Here<'_>) -> Result<bool, ProfileError> {
    let held = |name: &String| {
        let name = name.to_ascii_uppercase();
        here.capabilities.iter().any(|held| held == name.strip_prefix("CAP_").unwrap_or(&name))
    };
    let is_here = |names: &[String]| names.iter().any(|name| name == PROCESSOR.0);
    let (with, without) = (&rule.includes, &rule.excludes);
    let some = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    if some(&without.arches).is_some_and(|list| is_here(&list))
        || some(&without.caps).is_some_and(|list| list.iter().any(held))
        || some(&with.arches).is_some_and(|list| !is_here(&list))
        || some(&with.caps).is_some_and(|list| !list.iter().all(held))
    {
        return Ok(false);
    }
    let has = |version: &Option<String>| match version.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => {
            kernel(text).map(|least| Some(here.kernel >= least)).ok_or_else(|| ProfileError::Kernel(text.to_owned()))
        }
    };
    Ok(has(&without.min_kernel)? != Some(true) && has(&with.min_kernel)? != Some(false))
}

/// Major and minor number of a kernel's release, `6.18.4-x`.
pub fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split('.').map(|part| part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn architectures(listed: Option<Vec<String>>, map: Option<Vec<Architecture>>) -> Result<Vec<String>, ProfileError> {
    let (listed, map) = (listed.unwrap_or_default(), map.unwrap_or_default());
    if !listed.is_empty() && !map.is_empty() {
        return Err(ProfileError::Architectures);
    }
    let here = map.into_iter().filter(|entry| entry.architecture == PROCESSOR.1);
    let mapped =
        here.flat_map(|entry| [vec![entry.architecture], entry.sub_architectures.unwrap_or_default()].concat());
    Ok(listed.into_iter().chain(mapped).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn made(syscalls: &str, capabilities: &[&str], kernel: (u32, u32)) -> Result<Vec<Value>, ProfileError> {
        let capabilities: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
        let text = format!("{{\"defaultAction\": \"SCMP_ACT_ERRNO\", \"syscalls\": [{syscalls}]}}");
        let rules = rules(&text, Here { capabilities: &capabilities, kernel })?;
        Ok(rules["syscalls"].as_array().unwrap().clone())
    }

    #[test]
    fn rules_depend_on_capabilities_kernel_and_processor() {
        let rule = |condition: &str| format!("{{\"names\": [\"mount\"], \"action\": \"SCMP_ACT_ALLOW\", {condition}}}");
        let counts = |condition: &str| made(&rule(condition), &["SYS_ADMIN", "KILL"], (5, 10)).unwrap().len() == 1;
        assert!(counts(r#""comment": "x", "args": [], "includes": {}, "excludes": {}"#));
        assert!(counts(r#""includes": {"caps": ["CAP_SYS_ADMIN", "CAP_KILL"]}"#));
        assert!(!counts(r#""includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}"#));
        assert!(!counts(r#""excludes": {"caps": ["CAP_BPF", "CAP_KILL"]}"#));
        assert!(counts(r#""includes": {"minKernel": "4.8"}"#) && !counts(r#""includes": {"minKernel": "5.11"}"#));
        assert!(!counts(r#""excludes": {"minKernel": "4.8"}"#));
        assert!(!counts(r#""includes": {"arches": ["s390x"]}"#) && counts(r#""excludes": {"arches": ["s390x"]}"#));
        assert!(counts(&format!("\"includes\": {{\"arches\": [\"{}\"]}}", PROCESSOR.0)));
    }

    #[test]
    fn an_argument_that_is_compared_twice_makes_two_rules() {
        let arg = |value: u8| format!("{{\"index\": 0, \"value\": {value}, \"op\": \"SCMP_CMP_EQ\"}}");
        let args = format!("{},{}", arg(1), arg(2));
        let rule = format!("{{\"name\": \"personality\", \"action\": \"SCMP_ACT_ALLOW\", \"args\": [{args}]}}");
        let rules = made(&rule, &[], (6, 1)).unwrap();
        assert_eq!(rules.len(), 2);
        assert_eq!(rules[1]["args"][0]["value"], 2);
        assert_eq!(rules[1]["names"][0], "personality");
        let refused = made(r#"{"names": ["x"], "action": "SCMP_ACT_ERRNO"}"#, &[], (6, 1)).unwrap();
        assert!(refused.is_empty(), "what the default says needs no rule");
        let other = made(r#"{"names": ["x"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}"#, &[], (6, 1)).unwrap();
        assert_eq!(other[0]["errnoRet"], 38);
    }

    #[test]
    fn what_is_not_understood_is_refused_in_words() {
        let said = |text: &str| {
            let here = Here { capabilities: &[], kernel: (6, 1) };
            rules(text, here).unwrap_err().to_string()
        };
        assert!(said("[]").contains("Docker's form"));
        assert!(said(r#"{"defaultAction": "SCMP_ACT_ALLOW", "colour": 1}"#).contains("colour"));
        assert!(said(r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}"#).contains("flags"));
        let rules = |rule: &str| said(&format!("{{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": [{rule}]}}"));
        assert!(rules(r#"{"names": ["x"], "action": "SCMP_ACT_NOTIFY"}"#).contains("NOTIFY"));
        assert!(rules(r#"{"action": "SCMP_ACT_KILL"}"#).contains("name"));
        let late = r#"{"names": ["x"], "action": "SCMP_ACT_KILL", "includes": {"minKernel": "new"}}"#;
        assert!(rules(late).contains("new"));
        let both = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["a"], "archMap": [{"architecture": "b"}]}"#;
        assert!(said(both).contains("archMap"));
    }

    #[test]
    fn releases_begin_with_two_numbers() {
        assert_eq!(kernel("6.18.44-fc"), Some((6, 18)));
        assert_eq!((kernel("5.4-rc1"), kernel("new"), kernel("6")), (Some((5, 4)), None, None));
    }
}
