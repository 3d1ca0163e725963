//! Who the mesh's device is to know: the hosts of all encrypted networks, each once.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use skep_fabric::{Key, PeerConfig};
use skep_proto::id::NodeId;
use skep_proto::v1;

use crate::table::{Peer, Table};

/// The mesh's addresses, 100.64.0.0/10 (RFC 6598): a host's is this one plus its number.
const FABRIC: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// Numbers are less than this.
const NUMBERS: u32 = 1 << 22;
/// Seconds between keepalives: less than the shortest time that home routers remember a UDP flow (RFC 4787, 4.3).
const KEEPALIVE: u16 = 25;

/// A host's address inside the mesh; `None` where it has no number.
pub fn fabric_address(number: u32) -> Option<IpAddr> {
    (1..NUMBERS).contains(&number).then(|| IpAddr::from(Ipv4Addr::from(u32::from(FABRIC) + number)))
}

/// The peers of one network's table, at one version.
#[derive(Clone, Debug, Default)]
pub struct TablePeers {
    version: u64,
    peers: imbl::OrdMap<NodeId, std::sync::Arc<Peer>>,
}

impl TablePeers {
    /// Those of a table.
    pub fn of(table: &Table) -> Self {
        Self { version: table.version, peers: table.peers.clone() }
    }
}

/// A host's own number: of all tables, the newest that has one is right. `None`: nobody has said yet.
pub fn number<'a>(own: NodeId, tables: impl Iterator<Item = &'a TablePeers>) -> Option<u32> {
    let told = tables.filter_map(|table| Some((table.version, table.peers.get(&own)?.fabric_number)));
    told.filter(|(_, number)| *number != 0).max_by_key(|(version, _)| *version).map(|(_, number)| number)
}

/// The peers of all tables but the host itself, by their address inside the mesh. Where tables differ, the newest is right.
/// Those that have no key or number yet are left out.
pub fn peers<'a>(own: NodeId, tables: impl Iterator<Item = &'a TablePeers>) -> BTreeMap<IpAddr, (NodeId, PeerConfig)> {
    let mut newest: BTreeMap<NodeId, (u64, &Peer)> = BTreeMap::new();
    for table in tables {
        for (node, peer) in table.peers.iter().filter(|(node, _)| **node != own) {
            let entry = newest.entry(*node).or_insert((table.version, peer));
            if entry.0 < table.version {
                *entry = (table.version, peer);
            }
        }
    }
    let config = |(node, (_, peer)): (NodeId, (u64, &Peer))| {
        let config = PeerConfig {
            fabric_address: fabric_address(peer.fabric_number)?,
            public_keys: keys(&peer.endpoint),
            endpoint: peer.endpoint.wireguard_addr.parse().ok(),
            keepalive: Some(KEEPALIVE),
        };
        (!config.public_keys.is_empty()).then_some((config.fabric_address, (node, config)))
    };
    newest.into_iter().filter_map(config).collect()
}

fn keys(endpoint: &v1::FabricEndpoint) -> Vec<Key> {
    let mut keys: Vec<Key> = Vec::new();
    for bytes in [&endpoint.public_key, &endpoint.previous_public_key] {
        if let Ok(key) = Key::try_from(bytes.as_slice())
            && !keys.contains(&key)
        {
            keys.push(key);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn peer(number: u32, keys: [&[u8]; 2], address: &str) -> Arc<Peer> {
        let endpoint = v1::FabricEndpoint {
            public_key: keys[0].to_vec(),
            previous_public_key: keys[1].to_vec(),
            wireguard_addr: address.to_owned(),
            ..v1::FabricEndpoint::default()
        };
        Arc::new(Peer { endpoint, fabric_number: number, addresses: Vec::new() })
    }

    fn table(version: u64, rows: &[(u128, Arc<Peer>)]) -> TablePeers {
        let peers = rows.iter().map(|(node, peer)| (NodeId::new(*node), Arc::clone(peer))).collect();
        TablePeers { version, peers }
    }

    #[test]
    fn addresses_inside() {
        assert_eq!(fabric_address(1), Some([100, 64, 0, 1].into()));
        assert_eq!(fabric_address(NUMBERS - 1), Some([100, 127, 255, 255].into()));
        assert_eq!((fabric_address(0), fabric_address(NUMBERS)), (None, None));
    }

    #[test]
    fn the_union_of_all_with_the_newest_rows() {
        let (old, new) = ([1; 32], [2; 32]);
        let first = table(
            7,
            &[
                (1, peer(1, [&old, &[]], "")),
                (2, peer(2, [&new, &old], "192.0.2.2:51820")),
                (3, peer(3, [&[], &[]], "192.0.2.3:1")),
                (4, peer(0, [&old, &[]], "192.0.2.4:1")),
            ],
        );
        let second = table(5, &[(2, peer(2, [&old, &[]], "192.0.2.9:51820")), (5, peer(5, [&[3; 32], &[]], ""))]);
        for tables in [[&first, &second], [&second, &first]] {
            let peers = peers(NodeId::new(1), tables.into_iter());
            let nodes: Vec<NodeId> = peers.values().map(|(node, _)| *node).collect();
            assert_eq!(nodes, [NodeId::new(2), NodeId::new(5)]);
            let config = &peers[&IpAddr::from([100, 64, 0, 2])].1;
            assert_eq!(config.public_keys, [new, old]);
            assert_eq!(config.endpoint, Some("192.0.2.2:51820".parse().unwrap()));
            assert_eq!(peers[&IpAddr::from([100, 64, 0, 5])].1.endpoint, None);
            let number = |node| number(NodeId::new(node), tables.into_iter());
            assert_eq!([1, 4, 5, 6].map(number), [Some(1), None, Some(5), None]);
        }
    }
}
