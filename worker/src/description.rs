//! What the node says of itself: processors, memory, platform, kernel.
//!
//! Used by the agent when it registers and, as memory and processors can be plugged, from time to time after.

use std::collections::BTreeMap;

use skep_proto::v1::{FabricEndpoint, NodeCertificate, NodeDescription, Platform, Resources};

/// What the daemon knows and the kernel does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DescriptionConfig {
    /// Host name (of this host's own UTS namespace).
    pub hostname: String,
    /// Labels of the engine, for `engine.labels.…` constraints.
    pub engine_labels: BTreeMap<String, String>,
    /// skep's version.
    pub engine_version: String,
    /// Names this boot; see `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// `host:port` of this node's image service. Empty: it serves none.
    pub peer_addr: String,
    /// How other hosts reach its networks. `None`: it has no overlays.
    pub fabric: Option<FabricEndpoint>,
    /// The certificate that the daemon uses. `None`: in no swarm.
    pub certificate: Option<NodeCertificate>,
}

/// Gathers the description. What cannot be read is left empty: a node without it is still of use.
pub fn describe(config: &DescriptionConfig) -> NodeDescription {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    NodeDescription {
        hostname: config.hostname.clone(),
        platform: Some(platform()),
        resources: Some(Resources {
            nano_cpus: processors().saturating_mul(1_000_000_000),
            memory_bytes: total_memory(&meminfo).unwrap_or(0),
        }),
        engine_labels: config.engine_labels.clone(),
        engine_version: config.engine_version.clone(),
        boot_id: config.boot_id.clone(),
        peer_addr: config.peer_addr.clone(),
        kernel: kernel.trim().to_owned(),
        fabric: config.fabric.clone(),
        certificate: config.certificate.clone(),
    }
}

/// This build's platform in OCI's words (Go's GOOS and GOARCH).
pub fn platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "x86" => ("386", ""),
        "aarch64" => ("arm64", ""),
        "arm" => ("arm", "v7"),
        "powerpc64" => ("ppc64le", ""),
        other => (other, ""),
    };
    Platform { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
}

/// Processors that are online, whatever this process may use.
fn processors() -> i64 {
    // SAFETY: sysconf(3) reads a number and touches no memory of ours.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    online.max(1)
}

/// `MemTotal` of /proc/meminfo (proc_meminfo(5), in KiB), in bytes.
fn total_memory(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_all_there_is_to_say() {
        let description = describe(&DescriptionConfig::default());
        let resources = description.resources.unwrap_or_default();
        assert!(resources.nano_cpus >= 1_000_000_000 && resources.memory_bytes > 1 << 20);
        assert!(!description.kernel.is_empty());
        let platform = description.platform.unwrap_or_default();
        assert_eq!(platform.os, "linux");
        assert_ne!(platform.architecture, "x86_64", "OCI says amd64");
    }

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(total_memory("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(total_memory("MemFree: 1 kB\n"), None);
    }
}
