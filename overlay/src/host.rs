//! The host's own namespace: a table of nftables rules, forwarding, and the host's ends of networks' ways out.
//!
//! Driven by [`crate::netd`]. Touches only its own table and its own devices, and never flushes anything.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use skep_netlink::conntrack::Filter;
use skep_netlink::link::{LinkChange, LinkKind, Macvlan, NewLink};
use skep_netlink::nft::{
    BaseChain, ChainType, Element, Family, Hook, Nft, Rule, Selector, Set, Table, Transaction, Transport, Value,
    Verdict,
};
use skep_netlink::sysctl::Sysctl;
use skep_netlink::{Changes, Inside, MacAddress, Namespace, NetlinkError, Prefix, Rtnetlink};

use crate::network::{out_addresses, remove_link};

/// Addresses of networks' ways out.
const OUT: Prefix = Prefix { address: IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), length: 16 };
/// What an Ethernet carries, where the underlay's device is not known.
const ETHERNET: u32 = 1500;

/// The host's namespace with what is open in it.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    rtnetlink: Rtnetlink,
    nft: Arc<Nft>,
    table: Table,
    /// Published ports, with the index of the network that they lead to.
    ports: Mutex<BTreeMap<(Transport, u16), u16>>,
}

impl Host {
    /// Opens the host's namespace, this process's, makes it forward and puts the table of this instance there: no port is
    /// published then.
    pub fn open(instance: &str) -> Result<Self, NetlinkError> {
        let namespace = Namespace::host()?;
        let open = |inside: &Inside| Ok::<_, NetlinkError>((inside.rtnetlink()?, Arc::new(inside.nft()?)));
        let (rtnetlink, nft) = namespace.enter(open)?;
        let table = Table::new(Family::Ip, format!("skep-{instance}"));
        Ok(Self { namespace, rtnetlink, nft, table, ports: Mutex::default() })
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Whether its kernel has WireGuard.
    pub fn has_wireguard(&self) -> bool {
        self.namespace.enter(|inside| inside.wireguard().map(drop)).is_ok()
    }

    /// rtnetlink in it.
    pub fn rtnetlink(&self) -> &Rtnetlink {
        &self.rtnetlink
    }

    /// Makes it forward packets, and gives what comes from networks its own address. Called with the first network that
    /// has a way out.
    pub fn forward(&self) -> Result<(), NetlinkError> {
        self.namespace.enter(|inside| {
            if inside.sysctl(&Sysctl::Ipv4Forward)? != "1" {
                inside.write_sysctls(&[(Sysctl::Ipv4Forward, "1")])?;
            }
            Ok::<_, NetlinkError>(())
        })?;
        if !self.nft.tables()?.contains(&self.table) {
            self.commit()?;
        }
        Ok(())
    }

    /// nftables in it.
    pub fn nft(&self) -> &Arc<Nft> {
        &self.nft
    }

    /// Publishes ports, each by the network of an index, and takes others back. Nothing happens where that is so already.
    /// Returns the connections that must be forgotten then: whoever sends datagrams to a port for long would go on to
    /// wherever it led before.
    pub fn publish(
        &self,
        put: &[((Transport, u16), u16)],
        remove: &[(Transport, u16)],
    ) -> Result<Vec<Filter>, NetlinkError> {
        let changed: Vec<u16> = {
            let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
            let before = ports.clone();
            for port in remove {
                ports.remove(port);
            }
            ports.extend(put.iter().copied());
            if *ports == before {
                return Ok(Vec::new());
            }
            let other = |(port, index): &&((Transport, u16), u16)| before.get(port) != Some(index);
            let udp = put.iter().filter(other).filter(|((transport, _), _)| *transport == Transport::Udp);
            udp.map(|((_, port), _)| *port).collect()
        };
        self.commit()?;
        let addresses = match changed.is_empty() {
            true => Vec::new(),
            false => self.rtnetlink.addresses()?,
        };
        let filter = |port: u16, address: IpAddr| Filter {
            destination: Some(address),
            destination_port: Some(port),
            protocol: Some(Transport::Udp.number()),
            ..Filter::default()
        };
        let of_port = |port| addresses.iter().map(move |found| filter(port, found.prefix.address));
        Ok(changed.into_iter().flat_map(of_port).collect())
    }

    /// Which network a port leads to.
    pub fn published(&self, port: (Transport, u16)) -> Option<u16> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).get(&port).copied()
    }

    /// Puts the whole table in place, at once.
    fn commit(&self) -> Result<(), NetlinkError> {
        // Held until it is committed: a later state is never overtaken by an earlier one.
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let table = &self.table;
        let mut transaction = Transaction::new();
        transaction.reset_table(table);
        let key = [Selector::Protocol, Selector::DestinationPort];
        transaction.add_set(table, &Set::verdicts("published", &key.map(Selector::field)));
        let rule = || Rule::new(Family::Ip);
        for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
            transaction.add_base_chain(table, chain, BaseChain::new(ChainType::Nat, hook, -100));
            // The host's own loopback cannot be routed: connections to it are not for us.
            let not_loopback =
                rule().destination_not(Prefix { address: Ipv4Addr::new(127, 0, 0, 0).into(), length: 8 });
            transaction.add_rule(table, chain, &not_loopback.local_destination().verdict_of(&key, "published"));
        }
        let mut indices: Vec<u16> = ports.values().copied().collect();
        indices.sort_unstable();
        indices.dedup();
        for index in indices {
            let chain = format!("to_{index}");
            transaction.add_chain(table, &chain);
            transaction.add_rule(table, &chain, &rule().destination_nat(out_addresses(index).1.into(), None));
        }
        let elements: Vec<Element> = ports
            .iter()
            .map(|((transport, port), index)| {
                let key = Value::new().protocol(*transport).port(*port);
                Element::verdict(key, Verdict::Goto(format!("to_{index}")))
            })
            .collect();
        transaction.add_elements(table, "published", &elements);
        transaction.add_base_chain(table, "postrouting", BaseChain::new(ChainType::Nat, Hook::Postrouting, 100));
        transaction.add_rule(table, "postrouting", &rule().source(OUT).destination_not(OUT).masquerade());
        self.nft.commit(&transaction)
    }

    /// Gives a device of ours its address and raises it. Idempotent.
    pub fn ensure_address(&self, name: &str, prefix: Prefix) -> Result<(), NetlinkError> {
        let Some(link) = self.rtnetlink.link(name)? else {
            let problem = "it is not there".to_owned();
            return Err(NetlinkError::Invalid { action: format!("give device {name} an address"), problem });
        };
        let mut changes = Changes::new();
        changes.change_link(link.index, &LinkChange { up: Some(true), ..LinkChange::default() });
        let found = self.rtnetlink.addresses()?;
        if !found.iter().any(|address| address.device == link.index && address.prefix == prefix) {
            changes.add_address(link.index, prefix);
        }
        self.rtnetlink.apply(&changes)
    }

    /// Deletes a device of ours. Idempotent.
    pub fn remove_link(&self, name: &str) -> Result<(), NetlinkError> {
        remove_link(&self.rtnetlink, name)
    }

    /// Puts a second address of one of the host's devices into a sandbox.
    pub fn plug_macvlan(
        &self,
        parent: &str,
        inner: &str,
        mac: MacAddress,
        sandbox: &Namespace,
    ) -> Result<(), NetlinkError> {
        use std::os::fd::AsFd;
        let Some(link) = self.rtnetlink.link(parent)? else {
            let problem = "this host has no such device; the network's option `parent` names it".to_owned();
            return Err(NetlinkError::Invalid { action: format!("make a macvlan on {parent}"), problem });
        };
        let mut changes = Changes::new();
        let kind = LinkKind::Macvlan(Macvlan { parent: link.index });
        let namespace = Some(sandbox.as_fd());
        changes.add_link(&NewLink { mac: Some(mac), namespace, ..NewLink::new(inner, kind) });
        self.rtnetlink.apply(&changes)
    }

    /// The largest packet of the device that has an address; Ethernet's where none has it.
    pub fn underlay_mtu(&self, address: IpAddr) -> Result<u32, NetlinkError> {
        let addresses = self.rtnetlink.addresses()?;
        let Some(found) = addresses.iter().find(|found| found.prefix.address == address) else { return Ok(ETHERNET) };
        let links = self.rtnetlink.links()?;
        Ok(links.iter().find(|link| link.index == found.device).map_or(ETHERNET, |link| link.mtu))
    }

    /// Removes its table.
    pub fn close(&self) -> Result<(), NetlinkError> {
        let mut transaction = Transaction::new();
        transaction.remove_table(&self.table);
        self.nft.commit(&transaction)
    }
}
