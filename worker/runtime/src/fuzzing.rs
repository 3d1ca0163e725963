//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use crate::{cgroup, container, logs};

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
