//! Whether a node meets a constraint or offers a platform. Used by the scheduler's filters, by global services and by
//! the enforcer.

use std::net::IpAddr;

use skep_proto::constraint::{Constraint, Key, Operator, Value};
use skep_proto::v1::{NodeRole, Platform};

use crate::object::Node;

/// Whether `node` meets `constraint`. A missing label compares as empty text, so `!=` holds for it.
pub fn meets(node: &Node, constraint: &Constraint) -> bool {
    let equal = match &constraint.value {
        Value::Text(wanted) if constraint.key == Key::PlatformArch => {
            value_of(node, &constraint.key).eq_ignore_ascii_case(canonical_arch(wanted))
        }
        Value::Text(wanted) => value_of(node, &constraint.key).eq_ignore_ascii_case(wanted),
        Value::Network(network, length) => {
            node.status.addr.parse().is_ok_and(|address| in_network(address, *network, *length))
        }
    };
    match constraint.operator {
        Operator::Equal => equal,
        Operator::NotEqual => !equal,
    }
}

/// The text of a node that a key names; empty where it has none.
pub fn value_of(node: &Node, key: &Key) -> String {
    let description = node.description.as_deref();
    let platform = description.and_then(|description| description.platform.as_ref());
    let found = match key {
        Key::NodeId => Some(node.id.to_string()),
        Key::NodeHostname => Some(node.hostname().to_owned()),
        Key::NodeRole => Some(match node.role {
            NodeRole::Worker => "worker".to_owned(),
            NodeRole::Manager => "manager".to_owned(),
        }),
        Key::NodeIp => Some(node.status.addr.clone()),
        Key::PlatformOs => platform.map(|platform| platform.os.clone()),
        Key::PlatformArch => platform.map(|platform| canonical_arch(&platform.architecture).to_owned()),
        Key::NodeLabel(name) => node.spec.labels.get(name).cloned(),
        Key::EngineLabel(name) => description.and_then(|description| description.engine_labels.get(name).cloned()),
    };
    found.unwrap_or_default()
}

/// Whether one of `offered` runs on `node`. Nothing offered means unknown, which fits.
pub fn runs_on(node: &Node, offered: &[Platform]) -> bool {
    let Some(own) = node.description.as_ref().and_then(|description| description.platform.as_ref()) else {
        return offered.is_empty();
    };
    let fits = |wanted: &str, have: &str| wanted.is_empty() || wanted.eq_ignore_ascii_case(have);
    offered.is_empty()
        || offered.iter().any(|platform| {
            fits(&platform.os, &own.os)
                && fits(canonical_arch(&platform.architecture), canonical_arch(&own.architecture))
        })
}

/// OCI's name for a processor that some tools name otherwise.
fn canonical_arch(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn in_network(address: IpAddr, network: IpAddr, length: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::example::node;

    fn holds(node: &Node, text: &str) -> bool {
        meets(node, &Constraint::parse(text).unwrap())
    }

    #[test]
    fn labels_roles_and_networks_compare() {
        let node = node(1).label("zone", "EU").address("10.1.2.3").build();
        assert!(holds(&node, "node.labels.zone==eu"));
        assert!(!holds(&node, "node.labels.zone!=eu"));
        assert!(holds(&node, "node.labels.missing!=x"));
        assert!(holds(&node, "node.ip==10.1.0.0/16"));
        assert!(!holds(&node, "node.ip==10.2.0.0/16"));
        assert!(holds(&node, "node.ip==0.0.0.0/0"));
        assert!(holds(&node, "node.role==worker"));
        assert!(holds(&node, "node.platform.arch==x86_64") || holds(&node, "node.platform.arch==amd64"));
    }

    #[test]
    fn platforms_fit_by_os_and_canonical_processor() {
        let node = node(1).build();
        let offer =
            |os: &str, arch: &str| Platform { os: os.into(), architecture: arch.into(), variant: String::new() };
        assert!(runs_on(&node, &[]));
        assert!(runs_on(&node, &[offer("linux", "s390x"), offer("linux", "x86_64")]));
        assert!(!runs_on(&node, &[offer("linux", "s390x")]));
    }
}
