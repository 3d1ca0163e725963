//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use crate::{cgroup, container, logs, seccomp};

/// A line of a container's log. Gives its time and data.
pub fn log_line(line: &[u8]) -> Option<(i64, Vec<u8>)> {
    logs::parse(line).map(|line| (line.time_ns, line.data))
}

/// What a monitor leaves when its container is over.
pub fn exit_record(json: &[u8]) -> Option<container::ExitStatus> {
    container::ExitStatus::parse(json)
}

/// `/proc/self/mountinfo`, in which containers and users have their names too.
pub fn mountinfo(text: &str) -> cgroup::Layout {
    cgroup::Cgroups::parse(text).layout()
}

/// A seccomp profile of a user's, for a container with these capabilities. Gives the size of its program in bytes.
pub fn seccomp_profile(text: &str, capabilities: &[String], kernel: (u32, u32)) -> Option<usize> {
    let profile = seccomp::docker::rules(text, seccomp::docker::Here { capabilities, kernel }).ok()?;
    seccomp::filter::Filter::compile(&profile).ok().map(|filter| filter.program().len())
}
