//! Networks, what services attach to, and how they are reached.

use std::collections::HashSet;
use std::net::IpAddr;

use super::{Invalid, duplicate, labels, name};
use crate::cidr::Cidr;
use crate::v1::service_spec::Mode;
use crate::v1::{
    EndpointMode, EndpointSpec, NetworkAttachment, NetworkDriver, NetworkMode, NetworkSpec, PublishMode, ServiceSpec,
    SubnetSpec, TaskTemplate, UpdateOrder,
};

/// Names that are no network of the swarm's: the host's own, loopback only, and the way out of tasks without networks.
pub const PREDEFINED: [&str; 3] = ["host", "none", "bridge"];
/// Smallest MTU of an IPv4 and of an IPv6 link (RFC 791 section 3.1, RFC 8200 section 5).
const MIN_MTU: u32 = 68;
const MIN_MTU_V6: u32 = 1280;
/// Largest MTU of a link.
const MAX_MTU: u32 = 65_535;
/// Longest prefix of a subnet: a gateway and one task need room.
const MAX_V4_LENGTH: u8 = 30;
const MAX_V6_LENGTH: u8 = 126;
/// Networks that one service may attach to.
const MAX_ATTACHMENTS: usize = 32;
/// Longest name of a network interface (`IFNAMSIZ` less its end, netdevice(7)).
const MAX_INTERFACE: usize = 15;
/// Ports that one service may publish.
const MAX_PORTS: usize = 1_000;

/// Smallest MTU of a network without, or with, a subnet of IPv6.
pub fn smallest_mtu(ipv6: bool) -> u32 {
    if ipv6 { MIN_MTU_V6 } else { MIN_MTU }
}

/// Checks a network's spec. What is taken is the managers' to know.
pub fn network_spec(spec: &NetworkSpec) -> Result<(), Invalid> {
    name("name", &spec.name)?;
    if PREDEFINED.contains(&spec.name.as_str()) {
        return Err(Invalid::new("name", format!("{} is predefined: choose another name", spec.name)));
    }
    labels("labels", &spec.labels)?;
    let driver = NetworkDriver::try_from(spec.driver)
        .map_err(|_| Invalid::new("driver", "must be overlay, bridge or macvlan"))?;
    if spec.ingress && driver != NetworkDriver::Overlay {
        return Err(Invalid::new("ingress", "the routing mesh needs an overlay network"));
    }
    if spec.ingress && (spec.attachable || spec.internal) {
        return Err(Invalid::new("ingress", "the routing mesh's network can be neither attachable nor internal"));
    }
    options(spec, driver)?;
    let mut families = HashSet::new();
    for (index, asked) in spec.subnets.iter().enumerate() {
        let cidr = subnet(asked).map_err(|invalid| invalid.under(&format!("subnets[{index}]")))?;
        if !families.insert(cidr.is_ipv4()) {
            return Err(Invalid::new("subnets", "at most one IPv4 and one IPv6 subnet are allowed"));
        }
    }
    if driver == NetworkDriver::Macvlan && spec.subnets.is_empty() {
        return Err(Invalid::new("subnets", "a macvlan network needs the subnet that its hosts are on"));
    }
    Ok(())
}

fn options(spec: &NetworkSpec, driver: NetworkDriver) -> Result<(), Invalid> {
    let allowed: &[&str] = match driver {
        NetworkDriver::Overlay if spec.ingress => &["encrypted", "keep-source", "mtu"],
        NetworkDriver::Overlay => &["encrypted", "mtu"],
        NetworkDriver::Bridge => &["mtu"],
        NetworkDriver::Macvlan => &["parent", "mtu"],
    };
    if let Some(unknown) = spec.options.keys().find(|key| !allowed.contains(&key.as_str())) {
        let message = format!("there is no option {unknown:?} for this driver: it has {}", allowed.join(", "));
        return Err(Invalid::new("options", message));
    }
    for name in ["encrypted", "keep-source"] {
        if let Some(text) = spec.options.get(name).filter(|text| !["true", "false"].contains(&text.as_str())) {
            return Err(Invalid::new(format!("options.{name}"), format!("must be true or false, not {text:?}")));
        }
    }
    let has_v6 = spec.ipv6 || spec.subnets.iter().any(|subnet| subnet.subnet.contains(':'));
    let smallest = smallest_mtu(has_v6);
    if let Some(text) = spec.options.get("mtu")
        && !text.parse().is_ok_and(|mtu: u32| (smallest..=MAX_MTU).contains(&mtu))
    {
        return Err(Invalid::new("options.mtu", format!("must be {smallest} to {MAX_MTU}, not {text:?}")));
    }
    if driver == NetworkDriver::Macvlan {
        let parent = spec.options.get("parent").map_or("", String::as_str);
        let valid = !parent.is_empty()
            && parent.len() <= MAX_INTERFACE
            && !parent.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
        if !valid {
            let message = format!("must name an interface that every host has, but is {parent:?}");
            return Err(Invalid::new("options.parent", message));
        }
    }
    Ok(())
}

/// Checks one subnet of a spec.
fn subnet(spec: &SubnetSpec) -> Result<Cidr, Invalid> {
    let cidr = range("subnet", &spec.subnet)?;
    let longest = if cidr.is_ipv4() { MAX_V4_LENGTH } else { MAX_V6_LENGTH };
    if cidr.length() > longest {
        return Err(Invalid::new("subnet", format!("{cidr} has no room for tasks: at most /{longest}")));
    }
    if !is_usable(&cidr) {
        return Err(Invalid::new("subnet", format!("{cidr} is not for hosts: use a private range, like 10.20.0.0/24")));
    }
    let (first, last) = cidr.hosts();
    let host = |field: &str, text: &str| {
        let address = text.parse::<IpAddr>().ok().filter(|address| (first..=last).contains(address));
        address.ok_or_else(|| Invalid::new(field, format!("{text:?} is not an address of a host in {cidr}")))
    };
    if !spec.gateway.is_empty() {
        host("gateway", &spec.gateway)?;
    }
    if !spec.ip_range.is_empty() {
        let part = range("ip_range", &spec.ip_range)?;
        if !cidr.covers(&part) {
            return Err(Invalid::new("ip_range", format!("{part} is outside {cidr}")));
        }
    }
    for (key, address) in &spec.reserved_addresses {
        let field = format!("reserved_addresses[{key}]");
        let address = host(&field, address)?;
        if spec.gateway.parse::<IpAddr>() == Ok(address) {
            return Err(Invalid::new(field, format!("{address} is the gateway, which no task gets anyway")));
        }
    }
    Ok(cidr)
}

/// Whether hosts may have addresses of it: not loopback, multicast, link-local or unspecified ones.
fn is_usable(cidr: &Cidr) -> bool {
    let special: [&str; 8] = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/127",
        "fe80::/10",
        "ff00::/8",
        "::ffff:0:0/96",
    ];
    !special.iter().filter_map(|text| text.parse::<Cidr>().ok()).any(|special| special.overlaps(cidr))
}

/// Reads a range of addresses.
pub(super) fn range(field: &str, text: &str) -> Result<Cidr, Invalid> {
    text.parse().map_err(|error: crate::cidr::CidrError| Invalid::new(field, error.to_string()))
}

/// Checks what tasks attach to.
pub(super) fn attachments(spec: &ServiceSpec, template: &TaskTemplate) -> Result<(), Invalid> {
    let attachments = &template.networks;
    if attachments.is_empty() {
        return Ok(());
    }
    if template.network_mode() != NetworkMode::default() {
        let message = "tasks with the host's network, or without one, cannot attach to others";
        return Err(Invalid::new("networks", message));
    }
    if attachments.len() > MAX_ATTACHMENTS {
        let message = format!("at most {MAX_ATTACHMENTS} are allowed, not {}", attachments.len());
        return Err(Invalid::new("networks", message));
    }
    if let Some(twice) = duplicate(attachments.iter().map(|one| one.name.as_str())) {
        return Err(Invalid::new("networks", format!("network {twice:?} is named twice")));
    }
    for (index, one) in attachments.iter().enumerate() {
        attachment(one).map_err(|invalid| invalid.under(&format!("networks[{index}]")))?;
    }
    if attachments.iter().any(|one| !one.addresses.is_empty()) {
        fixed_addresses(spec)?;
    }
    Ok(())
}

fn attachment(spec: &NetworkAttachment) -> Result<(), Invalid> {
    if spec.name.is_empty() && spec.network_id.is_empty() {
        return Err(Invalid::new("name", "must name a network"));
    }
    if PREDEFINED.contains(&spec.name.as_str()) {
        let message =
            format!("{} is no network of the swarm's: a service attaches to it alone, or not at all", spec.name);
        return Err(Invalid::new("name", message));
    }
    for alias in &spec.aliases {
        name("aliases", alias)?;
    }
    let mut families = HashSet::new();
    for text in &spec.addresses {
        let address: IpAddr =
            text.parse().map_err(|_| Invalid::new("addresses", format!("{text:?} is not an IP address")))?;
        if !families.insert(address.is_ipv4()) {
            return Err(Invalid::new("addresses", "at most one IPv4 and one IPv6 address are allowed"));
        }
    }
    Ok(())
}

/// A fixed address is one task's at a time. Also asked when a service is scaled.
pub fn fixed_addresses(spec: &ServiceSpec) -> Result<(), Invalid> {
    let one = matches!(&spec.mode, Some(Mode::Replicated(mode)) if mode.replicas <= 1);
    if !one {
        return Err(Invalid::new("networks", "a fixed address needs mode replicated with one replica at most"));
    }
    if spec.update.is_some_and(|policy| policy.order() == UpdateOrder::StartFirst) {
        let message = "with a fixed address the old task must stop before the new one starts: use order stop-first";
        return Err(Invalid::new("update.order", message));
    }
    Ok(())
}

/// Checks how a service is reached.
pub(super) fn endpoint(endpoint: Option<&EndpointSpec>, mode: NetworkMode) -> Result<(), Invalid> {
    let Some(endpoint) = endpoint else { return Ok(()) };
    if endpoint.ports.len() > MAX_PORTS {
        let message = format!("at most {MAX_PORTS} are allowed, not {}", endpoint.ports.len());
        return Err(Invalid::new("endpoint.ports", message));
    }
    if mode == NetworkMode::None && !endpoint.ports.is_empty() {
        return Err(Invalid::new("endpoint.ports", "tasks without a network cannot publish ports"));
    }
    let on_host = mode == NetworkMode::Host;
    let mut seen = HashSet::new();
    for (index, port) in endpoint.ports.iter().enumerate() {
        let field = |name: &str| format!("endpoint.ports[{index}].{name}");
        if !(1..=65535).contains(&port.target_port) {
            return Err(Invalid::new(field("target_port"), format!("must be 1 to 65535, not {}", port.target_port)));
        }
        if port.published_port > 65535 {
            let message = format!("must be at most 65535, not {}", port.published_port);
            return Err(Invalid::new(field("published_port"), message));
        }
        let is_mesh = port.mode() == PublishMode::Ingress;
        if is_mesh && on_host {
            let message = "with the host's network ports are published with mode=host";
            return Err(Invalid::new(field("mode"), message));
        }
        if is_mesh && endpoint.mode() == EndpointMode::Dnsrr {
            let message = "the routing mesh needs endpoint mode vip: with dnsrr publish with mode=host";
            return Err(Invalid::new(field("mode"), message));
        }
        if on_host && port.published_port != 0 && port.published_port != port.target_port {
            let message = "with the host's network the published port is the one the container listens on";
            return Err(Invalid::new(field("published_port"), message));
        }
        let published = if on_host { port.target_port } else { port.published_port };
        if published != 0 && !seen.insert((port.protocol, published)) {
            return Err(Invalid::new(field("published_port"), format!("port {published} is published twice")));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
