//! Tables of neighbours of an overlay's size: put, replaced, taken away, listed.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use skep_netlink::link::{LinkKind, NewLink, Vxlan};
use skep_netlink::neighbour::{Neighbour, NeighbourChange};
use skep_netlink::{Changes, MacAddress};

use crate::lab::{Network, Place, root, text};

/// The device of all entries here.
const DEVICE: u32 = 5;

fn overlay() -> Place {
    let place = Place::new();
    let mut changes = Changes::new();
    let vxlan = LinkKind::Vxlan(Vxlan { proxy: true, ..Vxlan::new(1, 4789) });
    changes.add_link(&NewLink { index: Some(DEVICE), up: true, ..NewLink::new("vx0", vxlan) });
    place.rtnetlink.apply(&changes).unwrap();
    place
}

fn mac(number: u32) -> MacAddress {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddress([2, 0x42, a, b, c, d])
}

fn entries(count: u32) -> Vec<Neighbour> {
    let each = |number| {
        let remote = Ipv4Addr::from(0xc000_0200 + number % 50).into();
        let address = match number % 2 {
            0 => Ipv4Addr::from(0x0a00_0000 + number).into(),
            _ => std::net::Ipv6Addr::from(0xfd00 << 112 | u128::from(number)).into(),
        };
        let mac = mac(number);
        [Neighbour::Tunnel { device: DEVICE, mac, remote }, Neighbour::Host { device: DEVICE, address, mac }]
    };
    (1..=count).flat_map(each).collect()
}

#[test]
fn thousands_are_put_changed_and_deleted() {
    if !root() {
        return;
    }
    let place = overlay();
    let wanted = entries(3000);
    let put: Vec<_> = wanted.iter().copied().map(NeighbourChange::Put).collect();
    place.rtnetlink.change_neighbours(&put).unwrap();
    // Again: idempotent.
    place.rtnetlink.change_neighbours(&put).unwrap();
    let found = |place: &Place| place.rtnetlink.neighbours().unwrap().into_iter().collect::<HashSet<_>>();
    assert_eq!(found(&place), wanted.iter().copied().collect());

    let moved = Neighbour::Tunnel { device: DEVICE, mac: mac(1), remote: [198, 51, 100, 1].into() };
    let mut changes = vec![NeighbourChange::Put(moved)];
    changes.extend(wanted[2..].iter().copied().map(NeighbourChange::Delete));
    changes.push(NeighbourChange::Delete(wanted[2]));
    place.rtnetlink.change_neighbours(&changes).unwrap();
    assert_eq!(found(&place), [moved, wanted[1]].into());

    // Where unknown frames go: several at once.
    let all = |last| Neighbour::Tunnel { device: DEVICE, mac: MacAddress([0; 6]), remote: [192, 0, 2, last].into() };
    let flood = [NeighbourChange::Put(all(1)), NeighbourChange::Put(all(2)), NeighbourChange::Put(all(2))];
    place.rtnetlink.change_neighbours(&flood).unwrap();
    assert_eq!(found(&place), [moved, wanted[1], all(1), all(2)].into());
    place.rtnetlink.change_neighbours(&[NeighbourChange::Delete(all(1))]).unwrap();
    assert_eq!(found(&place), [moved, wanted[1], all(2)].into());
}

#[test]
fn the_error_names_the_entry() {
    if !root() {
        return;
    }
    let place = overlay();
    let mut changes: Vec<_> = entries(600).into_iter().map(NeighbourChange::Put).collect();
    changes[900] = NeighbourChange::Put(Neighbour::Tunnel { device: 77, mac: mac(9), remote: [192, 0, 2, 1].into() });
    let error = place.rtnetlink.change_neighbours(&changes).unwrap_err();
    let text = text(&error);
    assert!(
        text.starts_with("cannot put neighbour 02:42:00:00:00:09 behind 192.0.2.1 on device number 77: "),
        "{text}"
    );
    // The table is one for all namespaces: while another's entries make it grow, the kernel may leave some out of a list.
    let count = || place.rtnetlink.neighbours().unwrap().len();
    let are_there = || (0..100).any(|_| count() == 1199);
    assert!(are_there(), "{} of the others are there", count());
    // So many refusals that the kernel has to be asked for room to tell them.
    let wrong: Vec<_> = (0..3000)
        .map(|n| NeighbourChange::Put(Neighbour::Tunnel { device: 77, mac: mac(n), remote: [192, 0, 2, 1].into() }))
        .collect();
    assert!(place.rtnetlink.change_neighbours(&wrong).is_err());
    assert!(are_there(), "{} are there", count());
}

#[test]
fn a_bridge_knows_who_is_behind_a_port() {
    if !root() {
        return;
    }
    let network = Network::new();
    let (_sandbox, ..) = network.sandbox();
    let port = network.place.rtnetlink.link("veth1").unwrap().unwrap().index;
    let entry = Neighbour::Port { device: port, mac: mac(1) };
    network.place.rtnetlink.change_neighbours(&[NeighbourChange::Put(entry)]).unwrap();
    assert!(network.place.rtnetlink.neighbours().unwrap().contains(&entry));
    network.place.rtnetlink.change_neighbours(&[NeighbourChange::Delete(entry)]).unwrap();
    assert!(!network.place.rtnetlink.neighbours().unwrap().contains(&entry));
}
