//! What /proc says of processes: memory, and whether they are a container's.

use std::fs;
use std::path::PathBuf;

/// Memory of processes, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Proportional set size: pages shared by n processes count as 1/n each.
    pub(crate) pss: u64,
    pub(crate) rss: u64,
}

/// Sum over these processes; one that has ended meanwhile counts nothing.
pub(crate) fn memory(pids: &[i32]) -> Memory {
    let mut sum = Memory::default();
    for pid in pids {
        // Linux 4.14 or newer; proc_pid_smaps(5).
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        sum.pss += field(&rollup, "Pss:");
        sum.rss += field(&rollup, "Rss:");
    }
    sum
}

/// `Pss:     123 kB` in bytes; 0 if it is not there.
fn field(rollup: &str, name: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Whether the process belongs to a container: it has a pid namespace of its own, which no part of an orchestrator has.
/// Holds for any layout of cgroups. A process that is gone belongs to none.
pub(crate) fn in_container(pid: i32) -> bool {
    let namespace = |process: &str| fs::read_link(PathBuf::from("/proc").join(process).join("ns/pid"));
    match (namespace(&pid.to_string()), namespace("self")) {
        (Ok(its), Ok(ours)) => its != ours,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_its_own_memory() {
        let own = memory(&[i32::try_from(std::process::id()).unwrap()]);
        assert!(own.pss > 100_000 && own.pss <= own.rss, "{own:?}");
        assert_eq!(memory(&[i32::MAX]).pss, 0);
        assert_eq!(field("Rss:  12 kB\nPss:   7 kB\nPss_Dirty: 3 kB\n", "Pss:"), 7 * 1024);
    }

    #[test]
    fn this_process_is_no_container() {
        assert!(!in_container(i32::try_from(std::process::id()).unwrap()));
        assert!(!in_container(i32::MAX));
    }
}
