//! What a kernel WireGuard device is to be told, given what it has and who the mesh's peers are.
//!
//! A device's peer is a key, and an inner address belongs to one peer only. So of a host that changes its key the device
//! knows both, but only one of them, the active one, has the host's address: the one with the newest handshake, and the
//! older key as long as there was none. The other one answers handshakes, so it is seen when the host changes over.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use skep_fabric::PeerConfig;
use skep_netlink::Prefix;
use skep_netlink::wireguard::{Key, Peer, PeerSettings};

/// Handshakes are made every two minutes where there is traffic (WireGuard's REKEY_AFTER_TIME), keepalives included; and
/// sessions end after three (REJECT_AFTER_TIME): a peer with one younger than that is reached where it is.
const ALIVE: Duration = Duration::from_secs(180);

/// Where each key was said to be, as the device was told last.
pub type Told = HashMap<Key, Option<SocketAddr>>;

/// What the device is to be told.
#[derive(Debug, Default)]
pub struct Step {
    /// New, changed and removed peers.
    pub peers: Vec<PeerSettings>,
    /// A host has two keys, so the active one can change at any time.
    pub two_keys: bool,
}

/// The only address that a host sends from and is sent to.
fn inner(address: IpAddr) -> Prefix {
    Prefix { address, length: if address.is_ipv4() { 32 } else { 128 } }
}

/// The keys of a host, the active one first.
fn order(config: &PeerConfig, found: &HashMap<Key, &Peer>) -> Vec<Key> {
    // Oldest first, and a stable sort: without handshakes that order stays.
    let mut keys: Vec<Key> = config.public_keys.iter().rev().map(|key| Key(*key)).collect();
    keys.sort_by_key(|key| std::cmp::Reverse(found.get(key).and_then(|peer| peer.last_handshake)));
    keys
}

/// Whether the device has to be told where a peer is. It follows its peers by itself, so it is told what is new only.
fn is_news(wanted: Option<SocketAddr>, told: Option<&Option<SocketAddr>>, found: &Peer, now: Duration) -> bool {
    match told {
        _ if wanted.is_none() || found.endpoint == wanted => false,
        Some(told) => *told != wanted,
        // Of a device that an earlier netd has left.
        None => found.last_handshake.is_none_or(|made| now.saturating_sub(made) > ALIVE),
    }
}

/// What leads from the device's peers to the wanted ones. `keep`: others stay for now. `now`: time since 1970.
pub fn step<'a>(
    found: &[Peer],
    told: &Told,
    wanted: impl Iterator<Item = &'a PeerConfig>,
    keep: bool,
    now: Duration,
) -> Step {
    let mut left: HashMap<Key, &Peer> = found.iter().map(|peer| (peer.public_key, peer)).collect();
    let mut step = Step::default();
    for config in wanted {
        step.two_keys |= config.public_keys.len() > 1;
        for (rank, key) in order(config, &left).into_iter().enumerate() {
            let active = rank == 0;
            let allowed = if active { vec![inner(config.fabric_address)] } else { Vec::new() };
            let keepalive = Duration::from_secs(config.keepalive.filter(|_| active).unwrap_or(0).into());
            let found = left.remove(&key);
            let news = found.is_none_or(|found| is_news(config.endpoint, told.get(&key), found, now));
            if news || found.is_none_or(|found| found.allowed != allowed || found.keepalive != keepalive) {
                let endpoint = config.endpoint.filter(|_| news);
                let keepalive = Some(keepalive);
                step.peers.push(PeerSettings { endpoint, keepalive, ..PeerSettings::new(key, allowed) });
            }
        }
    }
    // Last: an address that they had is another peer's by then.
    if !keep {
        let mut gone: Vec<Key> = left.into_keys().collect();
        gone.sort_unstable_by_key(|key| key.0);
        step.peers.extend(gone.into_iter().map(|key| PeerSettings { remove: true, ..PeerSettings::new(key, vec![]) }));
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn config(last: u8, keys: &[u8]) -> PeerConfig {
        PeerConfig {
            fabric_address: IpAddr::from([100, 64, 0, last]),
            public_keys: keys.iter().map(|key| [*key; 32]).collect(),
            endpoint: Some(SocketAddr::from(([192, 0, 2, last], 51820))),
            keepalive: Some(25),
        }
    }

    /// The device after it was told.
    fn tell(found: &mut Vec<Peer>, told: &mut Told, wanted: &[PeerConfig], step: &Step) {
        for settings in &step.peers {
            let before = found.iter().position(|peer| peer.public_key == settings.public_key);
            let before = before.map(|at| found.remove(at));
            if settings.remove {
                continue;
            }
            for other in found.iter_mut() {
                other.allowed.retain(|prefix| !settings.allowed.contains(prefix));
            }
            found.push(Peer {
                public_key: settings.public_key,
                endpoint: settings.endpoint.or(before.as_ref().and_then(|before| before.endpoint)),
                last_handshake: before.and_then(|before| before.last_handshake),
                rx_bytes: 0,
                tx_bytes: 0,
                keepalive: settings.keepalive.unwrap_or_default(),
                allowed: settings.allowed.clone(),
            });
        }
        *told = wanted
            .iter()
            .flat_map(|config| config.public_keys.iter().map(|key| (Key(*key), config.endpoint)))
            .collect();
    }

    fn active(found: &[Peer]) -> Vec<u8> {
        found.iter().filter(|peer| !peer.allowed.is_empty()).map(|peer| peer.public_key.0[0]).collect()
    }

    #[test]
    fn differences_only() {
        let (mut found, mut told) = (Vec::new(), Told::new());
        let mut wanted = vec![config(1, &[1]), config(2, &[2])];
        let first = step(&found, &told, wanted.iter(), false, NOW);
        assert_eq!((first.peers.len(), first.two_keys), (2, false));
        tell(&mut found, &mut told, &wanted, &first);
        assert!(step(&found, &told, wanted.iter(), false, NOW).peers.is_empty());
        // One roams, which is its own affair, until the table says something new.
        found[1].endpoint = Some(SocketAddr::from(([198, 51, 100, 1], 1)));
        assert!(step(&found, &told, wanted.iter(), false, NOW).peers.is_empty());
        wanted[1].endpoint = Some(SocketAddr::from(([192, 0, 2, 99], 51820)));
        let second = step(&found, &told, wanted.iter(), false, NOW);
        assert_eq!((second.peers.len(), second.peers[0].endpoint), (1, wanted[1].endpoint));
        // It goes, and another one has its address.
        wanted[1].public_keys = vec![[3; 32]];
        let third = step(&found, &told, wanted.iter(), false, NOW);
        assert_eq!(
            third.peers.iter().map(|peer| (peer.public_key.0[0], peer.remove)).collect::<Vec<_>>(),
            [(3, false), (2, true)]
        );
        assert_eq!(step(&found, &told, wanted.iter(), true, NOW).peers.len(), 1);
    }

    #[test]
    fn a_device_that_was_left() {
        let wanted = [config(1, &[1])];
        let (mut found, mut told) = (Vec::new(), Told::new());
        tell(&mut found, &mut told, &wanted, &step(&[], &Told::new(), wanted.iter(), false, NOW));
        let elsewhere = Some(SocketAddr::from(([198, 51, 100, 1], 1)));
        found[0].endpoint = elsewhere;
        found[0].last_handshake = Some(NOW - Duration::from_secs(100));
        assert!(step(&found, &Told::new(), wanted.iter(), true, NOW).peers.is_empty());
        let later = step(&found, &Told::new(), wanted.iter(), true, NOW + Duration::from_secs(81));
        assert_eq!(later.peers[0].endpoint, wanted[0].endpoint);
    }

    #[test]
    fn the_key_with_the_newest_handshake_has_the_address() {
        let (mut found, mut told) = (Vec::new(), Told::new());
        let mut follow = |found: &mut Vec<Peer>, wanted: &[PeerConfig]| {
            let step = step(found, &told, wanted.iter(), false, NOW);
            tell(found, &mut told, wanted, &step);
            step
        };
        follow(&mut found, &[config(1, &[1])]);
        let both = [config(1, &[2, 1])];
        assert!(follow(&mut found, &both).two_keys);
        assert_eq!(active(&found), [1]);
        let shake = |found: &mut Vec<Peer>, key: u8, at: u64| {
            let peer = found.iter_mut().find(|peer| peer.public_key.0[0] == key).unwrap();
            peer.last_handshake = Some(NOW + Duration::from_secs(at));
        };
        shake(&mut found, 1, 1);
        assert!(follow(&mut found, &both).peers.is_empty());
        shake(&mut found, 2, 2);
        // The new one takes the address before the old one loses it.
        let step = follow(&mut found, &both);
        assert_eq!(step.peers.iter().map(|peer| peer.public_key.0[0]).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(active(&found), [2]);
        follow(&mut found, &[config(1, &[2])]);
        assert_eq!((found.len(), active(&found)), (1, vec![2]));
    }
}
