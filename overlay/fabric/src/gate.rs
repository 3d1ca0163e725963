//! How many handshakes one sender may cost us. Pure.
//!
//! Under load a sender proves its address with a cookie; this limits what a proven one can ask for, as each initiation costs
//! four multiplications on the curve. (The kernel's WireGuard has the same limit.)

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Initiations a second from one address; a peer sends one in five seconds.
const PER_SECOND: u32 = 20;
/// Addresses that are told apart in one second.
const MAX_SENDERS: usize = 4096;

/// Counts of the current second.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    second: u64,
    counts: HashMap<IpAddr, u32>,
}

impl Gate {
    /// Whether one more initiation from this address is looked at.
    pub(crate) fn admit(&mut self, from: IpAddr, now: Duration) -> bool {
        if self.second != now.as_secs() {
            self.second = now.as_secs();
            self.counts.clear();
        }
        let sender = network(from);
        if self.counts.len() >= MAX_SENDERS && !self.counts.contains_key(&sender) {
            return false;
        }
        let count = self.counts.entry(sender).or_default();
        *count += 1;
        *count <= PER_SECOND
    }
}

/// A host has a /64 of IPv6 addresses to itself.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sender_is_limited_and_others_are_not() {
        let (mut gate, now) = (Gate::default(), Duration::from_millis(1500));
        let bad: IpAddr = "2001:db8::1".parse().unwrap();
        let same_network: IpAddr = "2001:db8::2".parse().unwrap();
        assert_eq!((0..100).filter(|_| gate.admit(bad, now)).count(), 20);
        assert!(!gate.admit(same_network, now));
        assert!(gate.admit("2001:db8:1::1".parse().unwrap(), now));
        assert!(gate.admit(bad, now + Duration::from_millis(600)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut gate = Gate::default();
        let admitted = (0..10_000u32).filter(|n| gate.admit(IpAddr::from(n.to_be_bytes()), Duration::ZERO)).count();
        assert_eq!(admitted, MAX_SENDERS);
    }
}
