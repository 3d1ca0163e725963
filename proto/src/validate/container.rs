//! One container of a template.

use super::{Invalid, duplicate, files, health, labels, mount, not_negative, placeholders};
use crate::v1::{Confinement, ContainerSpec, ResourceSpec, UserNamespaceMode};

/// Smallest memory limit and reservation: less does not start a process.
const MIN_MEMORY_BYTES: i64 = 4 << 20;
/// Smallest share of a CPU: one thousandth.
const MIN_NANO_CPUS: i64 = 1_000_000;

/// Capabilities that the kernel knows (capability.h, Linux 6.18), without their prefix.
pub const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// `setrlimit(2)`'s resources.
const ULIMITS: [&str; 16] = [
    "as",
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

/// Signals by number on Linux (signal(7), x86 and ARM); index 0 is signal 1.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// A capability's name without `CAP_`, in upper case; `ALL` stays. `None`: the kernel has no such capability.
pub fn capability(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if plain == "ALL" {
        return Some("ALL");
    }
    CAPABILITIES.into_iter().find(|known| *known == plain)
}

/// The number of `SIGTERM`, `TERM`, `15` or `RTMIN+3`. `None`: no such signal.
pub fn signal_number(text: &str) -> Option<i32> {
    const RT_MIN: i32 = 34;
    const RT_MAX: i32 = 64;
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RT_MAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let plain = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = SIGNALS.iter().position(|name| *name == plain) {
        return i32::try_from(index + 1).ok();
    }
    let (base, offset) = match (plain.strip_prefix("RTMIN"), plain.strip_prefix("RTMAX")) {
        (Some(offset), _) => (RT_MIN, offset),
        (_, Some(offset)) => (RT_MAX, offset),
        (None, None) => return None,
    };
    let offset = match offset {
        "" => 0,
        signed if signed.starts_with(['+', '-']) => signed.parse::<i32>().ok()?,
        _ => return None,
    };
    let number = base.checked_add(offset)?;
    (RT_MIN..=RT_MAX).contains(&number).then_some(number)
}

pub(super) fn container(spec: &ContainerSpec) -> Result<(), Invalid> {
    container_name(&spec.name)?;
    if spec.image.is_empty() {
        return Err(Invalid::new("image", "an image reference is needed"));
    }
    labels("labels", &spec.labels)?;
    for (index, variable) in spec.env.iter().enumerate() {
        if variable.is_empty() || variable.starts_with('=') || variable.contains('\0') {
            return Err(Invalid::new(format!("env[{index}]"), format!("{variable:?} is not NAME=value")));
        }
        placeholders(&format!("env[{index}]"), variable)?;
    }
    if !spec.dir.is_empty() && !spec.dir.starts_with('/') {
        return Err(Invalid::new("dir", format!("{:?} is not an absolute path", spec.dir)));
    }
    for (field, texts) in [("command", &spec.command), ("args", &spec.args)] {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(Invalid::new(field, "must not contain NUL"));
        }
    }
    if let Some(resources) = &spec.resources {
        resource_spec(resources).map_err(|invalid| invalid.under("resources"))?;
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        mount::mount(mount).map_err(|invalid| invalid.under(&format!("mounts[{index}]")))?;
    }
    if let Some(twice) = duplicate(spec.mounts.iter().map(|mount| mount.target.trim_end_matches('/'))) {
        return Err(Invalid::new("mounts", format!("two mounts have the target {twice:?}")));
    }
    ulimits(spec)?;
    if !spec.stop_signal.is_empty() && signal_number(&spec.stop_signal).is_none() {
        return Err(Invalid::new("stop_signal", format!("there is no signal {:?}", spec.stop_signal)));
    }
    if spec.stop_grace_period_ms < -1 {
        return Err(Invalid::new("stop_grace_period_ms", "must not be negative"));
    }
    for (field, names) in [("cap_add", &spec.cap_add), ("cap_drop", &spec.cap_drop)] {
        if let Some(unknown) = names.iter().find(|name| capability(name).is_none()) {
            return Err(Invalid::new(field, format!("there is no capability {unknown:?}")));
        }
    }
    if let Some(held) = &spec.confinement {
        confinement(held).map_err(|invalid| invalid.under("confinement"))?;
    }
    if let Some(check) = &spec.health_check {
        health::health_check(check).map_err(|invalid| invalid.under("health_check"))?;
    }
    if !(-1000..=1000).contains(&spec.oom_score_adj) {
        return Err(Invalid::new("oom_score_adj", format!("must be -1000 to 1000, not {}", spec.oom_score_adj)));
    }
    files::files(spec)
}

/// Longest seccomp profile; Docker's own has some 14,000 bytes.
const MAX_PROFILE_BYTES: usize = 256 << 10;

fn confinement(held: &Confinement) -> Result<(), Invalid> {
    if held.seccomp.len() > MAX_PROFILE_BYTES {
        let bytes = held.seccomp.len();
        return Err(Invalid::new("seccomp", format!("a profile has at most {MAX_PROFILE_BYTES} bytes, not {bytes}")));
    }
    if !held.seccomp.is_empty() && held.seccomp != "unconfined" && !held.seccomp.starts_with('{') {
        return Err(Invalid::new("seccomp", "must be \"unconfined\" or a profile in Docker's JSON form"));
    }
    // It becomes part of what is written to the kernel.
    let odd = |c: char| c.is_whitespace() || c.is_control();
    if held.apparmor.len() > 255 || held.apparmor.contains(odd) {
        return Err(Invalid::new("apparmor", format!("{:?} is not a profile's name", held.apparmor)));
    }
    if UserNamespaceMode::try_from(held.user_namespace).is_err() {
        return Err(Invalid::new("user_namespace", format!("{} is not a mode", held.user_namespace)));
    }
    Ok(())
}

fn container_name(name: &str) -> Result<(), Invalid> {
    let valid = (1..=32).contains(&name.len())
        && !name.starts_with('-')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if valid {
        return Ok(());
    }
    let message = format!("{name:?} is not a valid container name: 1 to 32 lower-case letters, digits and '-'");
    Err(Invalid::new("name", message))
}

fn resource_spec(spec: &ResourceSpec) -> Result<(), Invalid> {
    for (field, amount) in [("limits", spec.limits), ("reservations", spec.reservations)] {
        let amount = amount.unwrap_or_default();
        not_negative(&format!("{field}.nano_cpus"), amount.nano_cpus)?;
        not_negative(&format!("{field}.memory_bytes"), amount.memory_bytes)?;
        if (1..MIN_NANO_CPUS).contains(&amount.nano_cpus) {
            return Err(Invalid::new(format!("{field}.nano_cpus"), "must be at least 0.001 CPUs"));
        }
        if (1..MIN_MEMORY_BYTES).contains(&amount.memory_bytes) {
            let message = format!("must be at least 4 MiB, but is {} bytes", amount.memory_bytes);
            return Err(Invalid::new(format!("{field}.memory_bytes"), message));
        }
    }
    let (limits, reservations) = (spec.limits.unwrap_or_default(), spec.reservations.unwrap_or_default());
    let pairs = [
        ("nano_cpus", limits.nano_cpus, reservations.nano_cpus),
        ("memory_bytes", limits.memory_bytes, reservations.memory_bytes),
    ];
    for (field, limit, reserved) in pairs {
        if limit > 0 && reserved > limit {
            return Err(Invalid::new(format!("reservations.{field}"), "must not be more than the limit"));
        }
    }
    not_negative("pids_limit", spec.pids_limit)
}

fn ulimits(spec: &ContainerSpec) -> Result<(), Invalid> {
    for (index, limit) in spec.ulimits.iter().enumerate() {
        let field = format!("ulimits[{index}]");
        if !ULIMITS.contains(&limit.name.as_str()) {
            let message = format!("there is no limit {:?}: use one of {}", limit.name, ULIMITS.join(", "));
            return Err(Invalid::new(field, message));
        }
        if limit.soft < -1 || limit.hard < -1 {
            return Err(Invalid::new(field, "must not be negative (-1 is unlimited)"));
        }
        if limit.hard != -1 && (limit.soft == -1 || limit.soft > limit.hard) {
            return Err(Invalid::new(field, "the soft limit must not be above the hard limit"));
        }
    }
    match duplicate(spec.ulimits.iter().map(|limit| limit.name.as_str())) {
        Some(twice) => Err(Invalid::new("ulimits", format!("{twice} is set twice"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::v1::{HealthCheck, Resources, Ulimit};

    fn valid() -> ContainerSpec {
        ContainerSpec { name: "main".into(), image: "busybox".into(), ..ContainerSpec::default() }
    }

    fn refused(change: impl FnOnce(&mut ContainerSpec)) -> String {
        let mut spec = valid();
        change(&mut spec);
        container(&spec).unwrap_err().to_string()
    }

    #[test]
    fn confinement_is_one_of_what_there_is() {
        let with = |held: Confinement| ContainerSpec { confinement: Some(held), ..valid() };
        let profile = "{\"defaultAction\":\"SCMP_ACT_ALLOW\"}".to_owned();
        for seccomp in ["", "unconfined", &profile] {
            assert_eq!(container(&with(Confinement { seccomp: seccomp.into(), ..Confinement::default() })), Ok(()));
        }
        let refused = |held: Confinement| refused(|spec| spec.confinement = Some(held));
        let seccomp = |text: String| Confinement { seccomp: text, ..Confinement::default() };
        assert!(refused(seccomp("profile.json".into())).contains("confinement.seccomp"));
        assert!(refused(seccomp(format!("{{{}", " ".repeat(MAX_PROFILE_BYTES)))).contains("262144"));
        for name in ["a b", "a\nexec unconfined", "x\0"] {
            let held = Confinement { apparmor: name.into(), ..Confinement::default() };
            assert!(refused(held).contains("apparmor"), "{name:?}");
        }
        assert!(refused(Confinement { user_namespace: 9, ..Confinement::default() }).contains("9"));
    }

    #[test]
    fn signals_and_capabilities_have_many_names() {
        assert_eq!(signal_number("SIGTERM"), Some(15));
        assert_eq!(signal_number("quit"), Some(3));
        assert_eq!(signal_number("9"), Some(9));
        assert_eq!(signal_number("RTMIN+3"), Some(37));
        assert_eq!(signal_number("RTMAX-1"), Some(63));
        assert_eq!(signal_number("SIGNOPE"), None);
        assert_eq!(signal_number("RTMAX"), Some(64));
        assert_eq!(signal_number("SIGRTMIN"), Some(34));
        for text in ["", "0", "65", "-1", "RTMIN+31", "RTMIN-1", "RTMAX-x", "RTMIN+-5", "RTMIN5", "RTMIN+2147483647"] {
            assert_eq!(signal_number(text), None, "{text}");
        }
        assert_eq!(signal_number("RTMAX--2147483648"), None);
        assert_eq!(capability("cap_net_admin"), Some("NET_ADMIN"));
        assert_eq!(capability("all"), Some("ALL"));
        assert_eq!(capability("NOPE"), None);
    }

    #[test]
    fn mistakes_name_the_field() {
        assert!(refused(|spec| spec.name = "Main".into()).starts_with("name: "));
        assert!(refused(|spec| spec.env = vec!["=x".into()]).starts_with("env[0]: "));
        assert!(refused(|spec| spec.dir = "tmp".into()).starts_with("dir: "));
        assert!(refused(|spec| spec.stop_signal = "NOPE".into()).starts_with("stop_signal: "));
        assert!(refused(|spec| spec.cap_add = vec!["NOPE".into()]).starts_with("cap_add: "));
        assert!(
            refused(|spec| spec.env = vec!["A={{.Bogus}}".into()])
                .starts_with("env[0]: \".Bogus\" is not a placeholder")
        );
        let check = HealthCheck { test: vec!["true".into()], ..HealthCheck::default() };
        assert!(refused(|spec| spec.health_check = Some(check)).starts_with("health_check.test: "));
        let limit = |soft, hard| Ulimit { name: "nofile".into(), soft, hard };
        assert!(refused(|spec| spec.ulimits = vec![limit(2, 1)]).starts_with("ulimits[0]: "));
        assert!(refused(|spec| spec.ulimits = vec![limit(1, 1), limit(1, 2)]).contains("twice"));
        let small = Resources { nano_cpus: 0, memory_bytes: 1024 };
        let resources = ResourceSpec { limits: Some(small), ..ResourceSpec::default() };
        assert!(refused(|spec| spec.resources = Some(resources)).starts_with("resources.limits.memory_bytes: "));
    }

    #[test]
    fn a_reservation_above_its_limit_is_refused() {
        let amount = |memory_bytes| Some(Resources { nano_cpus: 0, memory_bytes });
        let resources =
            ResourceSpec { limits: amount(8 << 20), reservations: amount(16 << 20), ..ResourceSpec::default() };
        assert!(refused(|spec| spec.resources = Some(resources)).contains("more than the limit"));
    }
}
