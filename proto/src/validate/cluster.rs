//! Settings of the swarm: checked by `swarm init` on the node that makes it, and by `swarm update` on a manager. In
//! every field 0 stands for the default.

use super::network::range;
use super::{Invalid, labels};
use crate::cidr::Cidr;
use crate::v1::ClusterSpec;

/// Shortest and longest session heartbeat, in milliseconds.
pub const HEARTBEAT_MS: std::ops::RangeInclusive<i64> = 100..=60_000;
/// Shortest and longest life of a node's certificate, in milliseconds: an hour, and ten years (the root lives twenty).
pub const CERT_EXPIRY_MS: std::ops::RangeInclusive<i64> = HOUR_MS..=10 * 365 * 24 * HOUR_MS;
/// Ended tasks kept for each slot, at most.
pub const MAX_TASK_HISTORY: i32 = 1_000;
/// Revisions kept for each service, at most.
pub const MAX_REVISION_HISTORY: i32 = 1_000;
/// Least and most log after which a snapshot is made, in bytes: a snapshot costs a walk over the state, a start the log.
pub const SNAPSHOT_LOG_BYTES: std::ops::RangeInclusive<i64> = (1 << 20)..=(4 << 30);
/// Address pools, at most.
const MAX_POOLS: usize = 64;
const HOUR_MS: i64 = 3600 * 1000;

/// Checks the settings of a swarm.
pub fn cluster_spec(spec: &ClusterSpec) -> Result<(), Invalid> {
    if spec.task_history_limit < -1 || spec.task_history_limit > MAX_TASK_HISTORY {
        let message = format!("must be -1 (none) or 0 to {MAX_TASK_HISTORY}, but is {}", spec.task_history_limit);
        return Err(Invalid::new("task_history_limit", message));
    }
    if spec.heartbeat_period_ms != 0 && !HEARTBEAT_MS.contains(&spec.heartbeat_period_ms) {
        let message = format!("must be between 100 ms and 60 s, but is {} ms", spec.heartbeat_period_ms);
        return Err(Invalid::new("heartbeat_period_ms", message));
    }
    if spec.node_cert_expiry_ms != 0 && !CERT_EXPIRY_MS.contains(&spec.node_cert_expiry_ms) {
        let message = format!("must be between 1 hour and 10 years, but is {} ms", spec.node_cert_expiry_ms);
        return Err(Invalid::new("node_cert_expiry_ms", message));
    }
    if !(0..=MAX_REVISION_HISTORY).contains(&spec.revision_history_limit) {
        let message = format!("must be 0 to {MAX_REVISION_HISTORY}, but is {}", spec.revision_history_limit);
        return Err(Invalid::new("revision_history_limit", message));
    }
    if spec.snapshot_log_bytes != 0 && !SNAPSHOT_LOG_BYTES.contains(&spec.snapshot_log_bytes) {
        let message = format!("must be between 1 MiB and 4 GiB, but is {} bytes", spec.snapshot_log_bytes);
        return Err(Invalid::new("snapshot_log_bytes", message));
    }
    address_pools(spec)?;
    // Docker's bounds: below are the ports of services, above those that programs get by chance.
    if spec.data_path_port != 0 && !(1024..=49_151).contains(&spec.data_path_port) {
        let message = format!("must be 1024 to 49151, but is {}", spec.data_path_port);
        return Err(Invalid::new("data_path_port", message));
    }
    labels("labels", &spec.labels)
}

/// Refuses a change of what is fixed when the swarm is made: its networks have been made from it.
pub fn cluster_fixed(old: &ClusterSpec, new: &ClusterSpec) -> Result<(), Invalid> {
    let same = [
        ("address_pools", old.address_pools == new.address_pools),
        ("subnet_length", old.subnet_length == new.subnet_length),
        ("data_path_port", old.data_path_port == new.data_path_port),
    ];
    match same.into_iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(Invalid::new(field, "is fixed when the swarm is made and cannot change")),
        None => Ok(()),
    }
}

/// Ranges that do not overlap, each with room for a subnet.
fn address_pools(spec: &ClusterSpec) -> Result<(), Invalid> {
    if spec.address_pools.len() > MAX_POOLS {
        let message = format!("at most {MAX_POOLS} are allowed, not {}", spec.address_pools.len());
        return Err(Invalid::new("address_pools", message));
    }
    if spec.subnet_length != 0 && !(8..=30).contains(&spec.subnet_length) {
        let message = format!("must be 8 to 30, but is {}", spec.subnet_length);
        return Err(Invalid::new("subnet_length", message));
    }
    let length = if spec.subnet_length == 0 { 24 } else { spec.subnet_length };
    let mut pools: Vec<Cidr> = Vec::new();
    for text in &spec.address_pools {
        let pool = range("address_pools", text)?;
        let longest = if pool.is_ipv4() { length } else { 64 };
        if u32::from(pool.length()) > longest {
            let message = format!("{pool} has no room for a subnet with a prefix of {longest} bits");
            return Err(Invalid::new("address_pools", message));
        }
        if let Some(other) = pools.iter().find(|other| other.overlaps(&pool)) {
            return Err(Invalid::new("address_pools", format!("{pool} overlaps with {other}")));
        }
        pools.push(pool);
    }
    if !pools.is_empty() && !pools.iter().any(Cidr::is_ipv4) {
        return Err(Invalid::new("address_pools", "one of them must be of IPv4 addresses"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn refused(change: impl FnOnce(&mut ClusterSpec)) -> String {
        let mut spec = ClusterSpec::default();
        change(&mut spec);
        cluster_spec(&spec).unwrap_err().to_string()
    }

    #[test]
    fn defaults_and_the_ends_of_every_range_are_valid() {
        assert_eq!(cluster_spec(&ClusterSpec::default()), Ok(()));
        let (least, most) = (*SNAPSHOT_LOG_BYTES.start(), *SNAPSHOT_LOG_BYTES.end());
        for (heartbeat_period_ms, node_cert_expiry_ms, task_history_limit, revision_history_limit, bytes) in [
            (*HEARTBEAT_MS.start(), *CERT_EXPIRY_MS.start(), -1, 1, least),
            (*HEARTBEAT_MS.end(), *CERT_EXPIRY_MS.end(), MAX_TASK_HISTORY, MAX_REVISION_HISTORY, most),
        ] {
            let spec = ClusterSpec {
                heartbeat_period_ms,
                node_cert_expiry_ms,
                task_history_limit,
                revision_history_limit,
                snapshot_log_bytes: bytes,
                ..ClusterSpec::default()
            };
            assert_eq!(cluster_spec(&spec), Ok(()));
        }
    }

    #[test]
    fn pools_have_room_and_do_not_overlap() {
        let pools = |pools: &[&str], subnet_length| {
            let address_pools = pools.iter().map(|&pool| pool.to_owned()).collect();
            let spec = ClusterSpec { address_pools, subnet_length, ..ClusterSpec::default() };
            cluster_spec(&spec).map_err(|invalid| invalid.to_string())
        };
        assert_eq!(pools(&["10.0.0.0/8", "172.16.0.0/12", "fd00:1::/48"], 26), Ok(()));
        assert_eq!(pools(&["10.0.0.0/24"], 0), Ok(()));
        assert!(pools(&["10.0.0.0/25"], 0).unwrap_err().contains("no room for a subnet with a prefix of 24 bits"));
        assert!(pools(&["10.0.0.0/8", "10.9.0.0/16"], 0).unwrap_err().contains("overlaps with 10.0.0.0/8"));
        assert!(pools(&["10.0.0.0"], 0).unwrap_err().starts_with("address_pools: "));
        assert!(pools(&["fd00:1::/48"], 0).unwrap_err().contains("IPv4"));
        for length in [7, 31, 99] {
            assert!(pools(&[], length).unwrap_err().starts_with("subnet_length: must be 8 to 30"));
        }
    }

    #[test]
    fn what_networks_were_made_from_stays() {
        let old = ClusterSpec { subnet_length: 24, ..ClusterSpec::default() };
        assert_eq!(cluster_fixed(&old, &ClusterSpec { task_history_limit: 3, ..old.clone() }), Ok(()));
        let message = cluster_fixed(&old, &ClusterSpec::default()).unwrap_err().to_string();
        assert_eq!(message, "subnet_length: is fixed when the swarm is made and cannot change");
    }

    #[test]
    fn mistakes_name_the_field_and_the_range() {
        let heartbeat = "heartbeat_period_ms: must be between 100 ms and 60 s, but is ";
        assert_eq!(refused(|spec| spec.heartbeat_period_ms = 99), format!("{heartbeat}99 ms"));
        assert_eq!(refused(|spec| spec.heartbeat_period_ms = 60_001), format!("{heartbeat}60001 ms"));
        assert_eq!(refused(|spec| spec.heartbeat_period_ms = -1), format!("{heartbeat}-1 ms"));
        assert!(refused(|spec| spec.node_cert_expiry_ms = HOUR_MS - 1).starts_with("node_cert_expiry_ms: "));
        assert!(refused(|spec| spec.node_cert_expiry_ms = i64::MAX).contains("10 years"));
        assert!(refused(|spec| spec.data_path_port = 80).starts_with("data_path_port: must be 1024"));
        assert!(refused(|spec| spec.task_history_limit = -2).starts_with("task_history_limit: must be -1"));
        assert!(refused(|spec| spec.revision_history_limit = -1).starts_with("revision_history_limit: "));
        for bad in [1, (1 << 20) - 1, (4 << 30) + 1, -1] {
            assert!(refused(|spec| spec.snapshot_log_bytes = bad).contains("between 1 MiB and 4 GiB"));
        }
        assert!(refused(|spec| spec.labels = [(String::new(), "x".into())].into()).starts_with("labels: "));
    }
}
