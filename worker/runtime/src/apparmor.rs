//! AppArmor on this host: Docker's default profile under our name, and which profile a container runs under.
//!
//! The runtime loads the profile at its start, where the kernel has AppArmor and the host the program that compiles profiles
//! (`apparmor_parser`). Where it has not, containers run without one and `skep info` says so; who names a profile gets that
//! one or an error, never less.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::spec::{AppArmor, ContainerSpec};

/// What containers run under where nobody says otherwise.
pub(crate) const DEFAULT: &str = "skep-default";

/// `Y`: the kernel has AppArmor, and it is on.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Where the kernel lists its profiles; a line each, `name (mode)`.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where the compiler is.
const PARSERS: [&str; 3] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser", "/usr/bin/apparmor_parser"];

/// moby `profiles/apparmor/template.go`, without its includes: the compiler is told all that it needs.
const PROFILE: &str = "\
@{PROC}=/proc/
profile skep-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  # The host may send signals to the container; its processes may to each other.
  signal (receive) peer=unconfined,
  signal (send,receive) peer=skep-default,
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,
  deny mount,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
  ptrace (trace,read,tracedby,readby) peer=skep-default,
}
";

/// What this host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The kernel has no AppArmor, or it is off.
    Absent,
    /// It has, but not our profile: why.
    WithoutDefault(String),
    /// It has both.
    Ready,
}

/// What confines containers on this host besides capabilities, in words: for `skep info`. Nothing is loaded.
pub fn confinement() -> Vec<String> {
    vec!["seccomp: docker-default".to_owned(), look().words()]
}

/// As it is now.
fn look() -> State {
    if fs::read_to_string(ENABLED).map_or(true, |text| text.trim() != "Y") {
        State::Absent
    } else if is_loaded(DEFAULT) {
        State::Ready
    } else {
        State::WithoutDefault("it is not loaded".to_owned())
    }
}

/// Looks, and loads the profile where it can be.
pub(crate) fn load() -> State {
    if fs::read_to_string(ENABLED).map_or(true, |text| text.trim() != "Y") {
        return State::Absent;
    }
    let Some(parser) = PARSERS.into_iter().find(|path| Path::new(path).exists()) else {
        return State::WithoutDefault("apparmor_parser is not installed".to_owned());
    };
    match compile(parser) {
        Ok(()) if is_loaded(DEFAULT) => State::Ready,
        Ok(()) => State::WithoutDefault(format!("{PROFILES} does not list it")),
        Err(reason) => State::WithoutDefault(reason),
    }
}

/// Compiles the profile and hands it to the kernel, also in the place of an earlier one.
fn compile(parser: &str) -> Result<(), String> {
    let words = |error: std::io::Error| format!("{parser}: {error}");
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(words)?;
    // Closed at once: the compiler reads to the end.
    let told = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(PROFILE.as_bytes()));
    let ended = child.wait_with_output().map_err(words)?;
    if ended.status.success() {
        return told.map_err(words);
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(format!("{parser}: {}", said.lines().next().unwrap_or("it gave no reason")))
}

fn is_loaded(name: &str) -> bool {
    let list = fs::read_to_string(PROFILES).unwrap_or_default();
    list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name))
}

impl State {
    /// The profile of a container; empty: none. The error is a sentence for the user.
    pub(crate) fn profile_of(&self, spec: &ContainerSpec) -> Result<String, String> {
        match (&spec.apparmor, self) {
            (AppArmor::Unconfined, _) | (AppArmor::Default, Self::Absent | Self::WithoutDefault(_)) => {
                Ok(String::new())
            }
            (AppArmor::Default, Self::Ready) => Ok(DEFAULT.to_owned()),
            (AppArmor::Profile(name), Self::Absent) => {
                Err(format!("the AppArmor profile {name:?} cannot be applied: this host's kernel has no AppArmor"))
            }
            (AppArmor::Profile(name), _) if is_loaded(name) => Ok(name.clone()),
            (AppArmor::Profile(name), _) => Err(format!("the AppArmor profile {name:?} is not loaded on this host")),
        }
    }

    /// For `skep info`: "apparmor: skep-default".
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Absent => "apparmor: not in this kernel".to_owned(),
            Self::WithoutDefault(reason) => format!("apparmor: no default profile ({reason})"),
            Self::Ready => format!("apparmor: {DEFAULT}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_names_a_profile_gets_it_or_an_error() {
        let of = |state: &State, apparmor| state.profile_of(&ContainerSpec { apparmor, ..ContainerSpec::default() });
        let named = || AppArmor::Profile("web (x)".to_owned());
        let without = State::WithoutDefault("no compiler".to_owned());
        assert_eq!(of(&State::Ready, AppArmor::Default).unwrap(), DEFAULT);
        for state in [&State::Absent, &without] {
            assert_eq!(of(state, AppArmor::Default).unwrap(), "");
        }
        assert_eq!(of(&State::Ready, AppArmor::Unconfined).unwrap(), "");
        assert!(of(&State::Absent, named()).unwrap_err().contains("no AppArmor"));
        assert!(of(&State::Ready, named()).unwrap_err().contains("not loaded"));
        assert!(without.words().contains("no compiler"));
    }

    /// The compiler alone, without a kernel that would take it.
    #[test]
    fn the_profile_compiles() {
        let Some(parser) = PARSERS.into_iter().find(|path| Path::new(path).exists()) else {
            eprintln!("skipped: apparmor_parser is not installed");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let compiled = |text: &str| {
            let file = dir.path().join("profile");
            fs::write(&file, text).unwrap();
            let told = Command::new(parser)
                .args(["--skip-kernel-load", "--skip-cache", "--quiet"])
                .arg(&file)
                .output()
                .unwrap();
            told.status.success()
        };
        assert!(compiled(PROFILE));
        assert!(!compiled("profile x { colour red, }"), "the compiler refuses what is no profile");
    }
}
