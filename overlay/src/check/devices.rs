//! Network devices of a network, and what is left over.

use std::net::IpAddr;

use skep_netlink::link::Link;
use skep_proto::v1::{CheckArea, NetworkFinding};

use super::{error, names, warning};
use crate::network::{OverlayPort, Wanted};

/// Devices of the namespace of a network, as they are.
#[derive(Clone, Debug, Default)]
pub struct NetworkDevices {
    /// All of them.
    pub links: Vec<Link>,
    /// The host's end of its way out. `None`: not there.
    pub out: Option<Link>,
    /// Addresses of its bridge.
    pub bridge: Vec<IpAddr>,
    /// Names of devices that tasks have.
    pub tasks: Vec<String>,
    /// Entries that lead to other hosts: missing ones, and those of nobody.
    pub entries: (usize, usize),
}

/// What is wrong with the devices of a network.
pub fn of_network(name: &str, wanted: &Wanted, devices: &NetworkDevices) -> Vec<NetworkFinding> {
    let mut found = Vec::new();
    let find = |name: &str| devices.links.iter().find(|link| link.name == name);
    let mut names_wanted = vec![("br0", "the bridge")];
    if wanted.port != OverlayPort::Local {
        names_wanted.push(("overlay", "the way to other hosts"));
    }
    if wanted.out.is_some() {
        names_wanted.push(("out0", "the way out"));
    }
    for (device, what) in names_wanted {
        let mtu = (device != "out0").then_some(wanted.mtu);
        found.extend(device_of(name, find(device), device, what, mtu));
    }
    if wanted.out.is_some() {
        let device = crate::network::out_name(&wanted.short);
        found.extend(device_of(name, devices.out.as_ref(), &device, "the host's end of the way out", None));
    }
    let missing: Vec<String> = wanted
        .addresses
        .iter()
        .filter(|prefix| !devices.bridge.contains(&prefix.address))
        .map(|prefix| prefix.address.to_string())
        .collect();
    if !missing.is_empty() {
        let missing = names(missing.iter().map(String::as_str));
        let problem = format!("the bridge of network {name} on this host lacks its address {missing}");
        found.push(error(CheckArea::Devices, problem, AGAIN));
    }
    found.extend(plugged(name, wanted, devices));
    if devices.entries != (0, 0) {
        let (missing, stray) = devices.entries;
        let problem = format!(
            "on this host, network {name} lacks {missing} entries that lead to other hosts, and has {stray} that nobody \
             asked for"
        );
        found.push(error(CheckArea::Devices, problem, AGAIN));
    }
    found
}

/// What makes netd put a network in order.
const AGAIN: &str = "restart netd on that host (`kill` its process; the daemon starts it again and containers go on): it makes \
                     right what it finds";

fn device_of(name: &str, link: Option<&Link>, device: &str, what: &str, mtu: Option<u32>) -> Option<NetworkFinding> {
    let of = format!("{what} of network {name} on this host (device {device})");
    let Some(link) = link else {
        return Some(error(CheckArea::Devices, format!("{of} is not there"), AGAIN));
    };
    if !link.up {
        return Some(error(CheckArea::Devices, format!("{of} is down"), AGAIN));
    }
    let mtu = mtu.filter(|mtu| link.mtu != *mtu)?;
    let problem = format!("{of} has an MTU of {} instead of {mtu}: larger packets are lost", link.mtu);
    Some(error(CheckArea::Mtu, problem, AGAIN))
}

/// Tasks' ends on the bridge.
fn plugged(name: &str, wanted: &Wanted, devices: &NetworkDevices) -> Vec<NetworkFinding> {
    let of_tasks = devices.links.iter().filter(|link| link.name.starts_with("v-"));
    let (ours, mut others): (Vec<&Link>, Vec<&Link>) = of_tasks.partition(|link| devices.tasks.contains(&link.name));
    // Those that are cut off are of sandboxes that the kernel is removing.
    others.retain(|link| link.up || link.master.is_some());
    let mut found = Vec::new();
    for link in ours {
        let device = &link.name;
        if !link.up || !link.forwarding {
            let problem = format!("a task of network {name} on this host is cut off: its device {device} is down");
            found.push(error(
                CheckArea::Devices,
                problem,
                format!("raise it (`ip link set {device} up` in the network's namespace), or let the task be replaced"),
            ));
        } else if link.mtu != wanted.mtu {
            let problem = format!(
                "device {device} of a task of network {name} on this host has an MTU of {} instead of {}",
                link.mtu, wanted.mtu
            );
            found.push(error(CheckArea::Mtu, problem, "let the task be replaced (`skep service update --force`)"));
        }
    }
    if !others.is_empty() {
        let list = names(others.iter().map(|link| link.name.as_str()));
        let problem = format!("network {name} on this host has devices of tasks that are not there: {list}");
        found.push(warning(
            CheckArea::Devices,
            problem,
            "if they stay for more than a minute, delete them (`ip link delete` in the network's namespace)",
        ));
    }
    found
}

/// Whether a network's packets fit the device that carries them. `cost`: bytes around each of them.
pub fn underlay(name: &str, mtu: u32, cost: u32, device: &str, device_mtu: u32) -> Option<NetworkFinding> {
    let needed = mtu + cost;
    (needed > device_mtu).then(|| {
        let problem = format!(
            "packets of network {name} have up to {mtu} bytes, which makes {needed} between hosts, but {device} of this \
             host carries {device_mtu}: large ones are cut into pieces or lost"
        );
        let fits = device_mtu.saturating_sub(cost);
        let advice = format!(
            "set the MTU of {device} to {needed} (`ip link set {device} mtu {needed}`), or make the network again with \
             `--opt mtu={fits}`"
        );
        error(CheckArea::Mtu, problem, advice)
    })
}

/// Devices of ways out, and namespaces, that no network has.
pub fn left_over(devices: &[String], namespaces: &[String]) -> Vec<NetworkFinding> {
    let mut found = Vec::new();
    if !devices.is_empty() {
        let list = names(devices.iter().map(String::as_str));
        let problem = format!("this host has devices of networks that are not there: {list}");
        let advice = "if no other skep runs on that host, delete them (`ip link delete`)";
        found.push(warning(CheckArea::Devices, problem, advice));
    }
    if !namespaces.is_empty() {
        let list = names(namespaces.iter().map(String::as_str));
        let problem = format!("this host has namespaces of networks that no task is on: {list}");
        let advice = "if they stay for more than a minute, unmount and remove these folders";
        found.push(warning(CheckArea::Devices, problem, advice));
    }
    found
}

/// How full the host's own bridge is.
pub fn leases(taken: usize, total: usize) -> Option<NetworkFinding> {
    (taken * 10 >= total * 9).then(|| {
        let problem = format!("{taken} of {total} addresses of this host's own bridge are taken");
        warning(CheckArea::Addresses, problem, "put services on networks of their own")
    })
}

#[cfg(test)]
mod tests {
    use skep_netlink::MacAddress;

    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            short: "abc".to_owned(),
            addresses: vec!["10.5.0.1/16".parse().unwrap_or(skep_netlink::Prefix::DEFAULT_V4)],
            mac: MacAddress([2; 6]),
            mtu: 1450,
            port: OverlayPort::Vxlan { vni: 4097, local: [10, 0, 0, 1].into(), port: 4789 },
            out: Some(0),
        }
    }

    fn link(name: &str, mtu: u32) -> Link {
        Link { name: name.to_owned(), mtu, up: true, forwarding: true, ..Link::default() }
    }

    fn devices() -> NetworkDevices {
        NetworkDevices {
            links: vec![link("br0", 1450), link("overlay", 1450), link("out0", 1500), link("v-1", 1450)],
            out: Some(link("sk-abc", 1500)),
            bridge: vec![[10, 5, 0, 1].into()],
            tasks: vec!["v-1".to_owned()],
            entries: (0, 0),
        }
    }

    fn problems(change: impl FnOnce(&mut NetworkDevices)) -> Vec<String> {
        let mut devices = devices();
        change(&mut devices);
        of_network("a", &wanted(), &devices).into_iter().map(|finding| finding.problem).collect()
    }

    #[test]
    fn each_fault_is_told_and_nothing_else() {
        assert_eq!(problems(|_| {}), [] as [&str; 0]);
        let one = |change: fn(&mut NetworkDevices), text: &str| {
            let found = problems(change);
            assert!(found.len() == 1 && found[0].contains(text), "{found:?}");
        };
        one(
            |devices| devices.links[1].up = false,
            "the way to other hosts of network a on this host (device overlay) is down",
        );
        one(|devices| devices.links[1].mtu = 1400, "has an MTU of 1400 instead of 1450");
        one(|devices| drop(devices.links.remove(0)), "(device br0) is not there");
        one(|devices| devices.out = None, "(device sk-abc) is not there");
        one(|devices| devices.bridge.clear(), "lacks its address 10.5.0.1");
        one(|devices| devices.links[3].up = false, "its device v-1 is down");
        one(|devices| devices.links[3].mtu = 1400, "device v-1 of a task of network a on this host has an MTU of 1400");
        one(|devices| devices.links.push(link("v-2", 1450)), "devices of tasks that are not there: v-2");
        let going = problems(|devices| devices.links.push(Link { up: false, ..link("v-2", 1450) }));
        assert_eq!(going, [] as [&str; 0]);
        one(|devices| devices.entries = (2, 1), "lacks 2 entries that lead to other hosts, and has 1");
    }

    #[test]
    fn packets_have_to_fit() {
        assert_eq!(underlay("a", 1450, 50, "eth0", 1500), None);
        let found = underlay("a", 1450, 50, "eth0", 1400).map(|finding| finding.advice).unwrap_or_default();
        assert!(found.contains("`ip link set eth0 mtu 1500`") && found.contains("`--opt mtu=1350`"), "{found}");
    }

    #[test]
    fn what_is_left_over() {
        assert!(left_over(&[], &[]).is_empty());
        assert_eq!(left_over(&["sk-x".to_owned()], &["/n/y".to_owned()]).len(), 2);
        assert!(leases(89, 100).is_none() && leases(90, 100).is_some());
    }
}
