//! Clients' own addresses at tasks that the routing mesh leads to: what a sandbox needs for it.
//!
//! The host that a connection came to sends it on with the client's address. Its reply must go back through that host, whose
//! place is known by the frame that brought the connection: its Ethernet address is 02:42 and the host's address in the
//! mesh's network, as all are there. So the four bytes of that address are the connection's mark; replies get the mark, are
//! routed by it to the device of the mesh, and there the frame's destination is made of it. Nothing here knows the hosts.
//!
//! Two hosts may bring connections of one client with the same port to one task. Each host's are tracked in a zone of their
//! own, and where two are alike, the second one's port is changed on its way in.

use std::net::IpAddr;

use skep_netlink::Prefix;
use skep_netlink::nft::{BaseChain, ChainType, ConnectionState, Family, Hook, Rule, Table, Transaction, Transport};
use skep_netlink::route::{Route, Target};
use skep_netlink::rule::RoutingRule;

/// The name of the tables, the number of the table of routes and the place of the rules that lead there.
const NAME: &str = "skep-keep";
const ROUTES: u32 = 100;
const PRIORITY: u32 = 100;

/// A sandbox's end on the mesh's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Its device, and that one's number.
    pub device: String,
    /// The device's number.
    pub index: u32,
    /// Its addresses there, with their subnets.
    pub addresses: Vec<Prefix>,
    /// The gateways there.
    pub gateways: Vec<IpAddr>,
    /// Addresses on other networks that the sandbox answers datagrams from, as its way out is there: one of each family at
    /// most.
    pub answers_from: Vec<IpAddr>,
}

impl End {
    /// The subnet of IPv4, of which hosts' addresses are. Without one it cannot be done.
    fn hosts(&self) -> Option<Prefix> {
        self.addresses.iter().copied().find(|prefix| prefix.address.is_ipv4())
    }

    /// The rules, afresh.
    pub fn rules(&self) -> Transaction {
        let mut transaction = Transaction::new();
        let Some(hosts) = self.hosts() else { return transaction };
        let device = self.device.as_str();
        for own in &self.addresses {
            let ipv6 = own.address.is_ipv6();
            let table = Table::new(if ipv6 { Family::Ip6 } else { Family::Ip }, NAME);
            let rule = || Rule::new(table.family);
            // Others on the network itself are answered there.
            let client = || rule().input_device(device).source_not(*own);
            transaction.reset_table(&table);
            let mut chain = |name: &str, kind, hook, priority, rules: &[Rule]| {
                transaction.add_base_chain(&table, name, BaseChain::new(kind, hook, priority));
                rules.iter().for_each(|rule| transaction.add_rule(&table, name, rule));
            };
            chain("zones", ChainType::Filter, Hook::Prerouting, -300, &[client().set_zone_of_sender()]);
            let first = client().state(ConnectionState::NEW).set_ct_mark_of_sender();
            let known = client().direction(false).ct_mark_in(hosts).restore_mark();
            chain("first", ChainType::Filter, Hook::Prerouting, -150, &[first, known]);
            let reply = rule().direction(true).ct_mark_in(hosts).restore_mark();
            chain("reply", ChainType::Route, Hook::Output, -150, &[reply]);
            // Who answers a datagram from a socket of no address does so from the one of its way out.
            let other = self.answers_from.iter().find(|address| address.is_ipv6() == ipv6);
            let redirect = other.map(|other| {
                let datagram = client().ct_mark_in(hosts).protocol(Transport::Udp);
                datagram.destination(Prefix::host(own.address)).destination_nat(*other, None)
            });
            chain("datagrams", ChainType::Nat, Hook::Prerouting, -100, redirect.as_slice());
            // Without rules: that the kernel looks here for a connection that is alike is enough.
            chain("alike", ChainType::Nat, Hook::Input, 100, &[]);
        }
        let table = Table::new(Family::Netdev, NAME);
        transaction.reset_table(&table);
        transaction.add_egress_chain(&table, "back", device);
        let back = Rule::new(table.family).mark_in(hosts).set_receiver_of_mark();
        transaction.add_rule(&table, "back", &back);
        transaction
    }

    /// The routes and the rules that lead to them.
    pub fn routes(&self) -> Vec<(RoutingRule, Route)> {
        let Some(hosts) = self.hosts() else { return Vec::new() };
        let bytes = |address: IpAddr| match address {
            IpAddr::V4(address) => u32::from_ne_bytes(address.octets()),
            IpAddr::V6(_) => 0,
        };
        let mark = Some((bytes(hosts.network()), bytes(hosts.mask())));
        let lead = |gateway: &IpAddr| {
            let ipv6 = gateway.is_ipv6();
            let (source, destination, input_device) = (None, None, None);
            let rule = RoutingRule { ipv6, priority: PRIORITY, mark, source, destination, input_device, table: ROUTES };
            let default = if ipv6 { Prefix::DEFAULT_V6 } else { Prefix::DEFAULT_V4 };
            let own = self.addresses.iter().find(|own| own.address.is_ipv6() == ipv6).map(|own| own.address);
            let target = Target::Gateway { address: *gateway, device: Some(self.index), onlink: false };
            (rule, Route { table: ROUTES, source: own.filter(|_| !ipv6), ..Route::new(default, target) })
        };
        self.gateways.iter().map(lead).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn routes_are_chosen_by_marks_that_are_addresses_of_hosts() {
        let end = End {
            device: "eth1".to_owned(),
            index: 5,
            addresses: vec!["10.255.1.2/16".parse().unwrap(), "fdff::1:2/64".parse().unwrap()],
            gateways: vec!["10.255.255.1".parse().unwrap(), "fdff::ffff".parse().unwrap()],
            answers_from: Vec::new(),
        };
        let (value, mask) = (u32::from_ne_bytes([10, 255, 0, 0]), u32::from_ne_bytes([255, 255, 0, 0]));
        let routes = end.routes();
        assert!(routes.iter().all(|(rule, _)| rule.mark == Some((value, mask)) && rule.table == ROUTES));
        assert_eq!(routes.iter().map(|(rule, _)| rule.ipv6).collect::<Vec<_>>(), [false, true]);
        assert!(!end.rules().is_empty());
        let without = End { addresses: vec!["fdff::1:2/64".parse().unwrap()], ..end };
        assert!(without.rules().is_empty() && without.routes().is_empty());
    }
}
