//! Forwarding of packets by the host: networks' ways out and published ports take it. Where it was off, it is turned on for
//! ours only: what would pass between the devices that were there is still dropped, by a table that all instances on the
//! host share. The last one turns it off again.
//!
//! Devices that come later are not ours to judge: whoever makes them (another engine, a tunnel) sees forwarding on.

use skep_netlink::nft::{
    BaseChain, ChainType, Element, Family, Field, Hook, Nft, Rule, Selector, Set, Table, Transaction, Value, Verdict,
};
use skep_netlink::sysctl::{Scope, Sysctl};
use skep_netlink::{Inside, Namespace, NetlinkError, Rtnetlink};

use crate::plan::out;

/// The shared table's name. No instance is called so.
const SHARED: &str = "skep-forward";
/// The devices between which nothing passes.
const DEVICES: &str = "devices";

fn shared(ipv6: bool) -> Table {
    Table::new(if ipv6 { Family::Ip6 } else { Family::Ip }, SHARED)
}

fn sysctl(ipv6: bool) -> Sysctl {
    if ipv6 { Sysctl::Ipv6Forward } else { Sysctl::Ipv4Forward }
}

/// Turns it on where it is off.
pub(super) fn ensure(host: &Namespace, rtnetlink: &Rtnetlink, nft: &Nft, ipv6: bool) -> Result<(), NetlinkError> {
    for ipv6 in [false, true].into_iter().take(1 + usize::from(ipv6)) {
        if host.enter(|inside| inside.sysctl(&sysctl(ipv6)))? != "0" {
            continue;
        }
        let devices: Vec<String> = rtnetlink
            .links()?
            .into_iter()
            .map(|link| link.name)
            .filter(|name| name != "lo" && !name.starts_with(out::DEVICES))
            .collect();
        // First the rule, so that nothing passes in between.
        nft.commit(&guard(ipv6, &devices))?;
        host.enter(|inside| {
            if ipv6 {
                keep_routers(inside, &devices)?;
            }
            inside.write_sysctls(&[(sysctl(ipv6), "1")])
        })?;
    }
    Ok(())
}

/// A host that forwards IPv6 listens to routers' advertisements no more, unless it is told to in any case; without
/// forwarding that means the same as before.
fn keep_routers(inside: &Inside, devices: &[String]) -> Result<(), NetlinkError> {
    let scopes = devices.iter().cloned().map(Scope::Device).chain([Scope::Default]);
    for scope in scopes.map(Sysctl::AcceptRa) {
        // Some have no IPv6.
        if inside.sysctl(&scope).is_ok_and(|value| value == "1") {
            inside.write_sysctls(&[(scope, "2")])?;
        }
    }
    Ok(())
}

fn guard(ipv6: bool, devices: &[String]) -> Transaction {
    let (mut transaction, table) = (Transaction::new(), shared(ipv6));
    transaction.reset_table(&table);
    transaction.add_set(&table, &Set::new(DEVICES, &[Field::Device]));
    let elements: Vec<Element> = devices.iter().map(|name| Element::new(Value::new().device(name))).collect();
    transaction.add_elements(&table, DEVICES, &elements);
    transaction.add_base_chain(&table, "forward", BaseChain::new(ChainType::Filter, Hook::Forward, 0));
    let between = Rule::new(table.family).in_set(&[Selector::InputDevice], DEVICES);
    let between = between.in_set(&[Selector::OutputDevice], DEVICES).verdict(Verdict::Drop);
    transaction.add_rule(&table, "forward", &between.comment("forwarding was off before skep"));
    transaction
}

/// Turns it off again where it was turned on, unless another instance needs it.
pub(super) fn restore(host: &Namespace, nft: &Nft) -> Result<(), NetlinkError> {
    let tables = nft.tables()?;
    let mut transaction = Transaction::new();
    for ipv6 in [false, true] {
        let table = shared(ipv6);
        let others =
            |other: &Table| other.family == table.family && other.name != SHARED && other.name.starts_with("skep-");
        if tables.contains(&table) && !tables.iter().any(others) {
            host.enter(|inside| inside.write_sysctls(&[(sysctl(ipv6), "0")]))?;
            transaction.remove_table(&table);
        }
    }
    nft.commit(&transaction)
}

/// What was done, for a person.
pub(super) fn notes(nft: &Nft) -> Result<Vec<String>, NetlinkError> {
    let tables = nft.tables()?;
    let note = |(ipv6, name)| {
        tables.contains(&shared(ipv6)).then(|| {
            format!(
                "this host did not forward {name} packets; it does now, for skep's networks only: table {} of nftables \
                 drops the others between the devices that it had",
                shared(ipv6)
            )
        })
    };
    Ok([(false, "IPv4"), (true, "IPv6")].into_iter().filter_map(note).collect())
}
