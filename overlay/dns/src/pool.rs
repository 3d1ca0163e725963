//! The endpoints that one name leads to: added and removed in constant time, read as one slice.
//!
//! Used by the zone: the serving tasks of a service, and the endpoints with one name of their own.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::zone::EndpointId;

/// Pools up to this size are searched from end to end: most names have one endpoint, and a hash table for each would cost
/// more memory than the rows.
const SEARCHED: usize = 32;

/// One endpoint in a pool.
#[derive(Clone, Copy, Debug)]
struct Member {
    id: EndpointId,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

/// A set of endpoints with their addresses.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    members: Vec<Member>,
    /// Where each member is; filled only above [`SEARCHED`] members.
    places: HashMap<EndpointId, usize>,
}

impl Pool {
    /// Adds an endpoint that is not in the pool.
    pub(crate) fn insert(&mut self, id: EndpointId, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        debug_assert!(self.place(id).is_none(), "an endpoint is in a pool once");
        self.members.push(Member { id, v4, v6 });
        if !self.places.is_empty() {
            self.places.insert(id, self.members.len() - 1);
        } else if self.members.len() > SEARCHED {
            self.places = self.members.iter().enumerate().map(|(place, member)| (member.id, place)).collect();
        }
    }

    /// Removes an endpoint; nothing happens if it is not there.
    pub(crate) fn remove(&mut self, id: EndpointId) {
        let Some(place) = self.place(id) else { return };
        self.members.swap_remove(place);
        if !self.places.is_empty() {
            self.places.remove(&id);
            if let Some(moved) = self.members.get(place) {
                self.places.insert(moved.id, place);
            }
        }
    }

    fn place(&self, id: EndpointId) -> Option<usize> {
        if self.places.is_empty() {
            self.members.iter().position(|member| member.id == id)
        } else {
            self.places.get(&id).copied()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The IPv4 addresses of the members, in no order.
    pub(crate) fn v4(&self) -> impl Iterator<Item = IpAddr> {
        self.members.iter().filter_map(|member| member.v4.map(IpAddr::V4))
    }

    /// The IPv6 addresses of the members, in no order.
    pub(crate) fn v6(&self) -> impl Iterator<Item = IpAddr> {
        self.members.iter().filter_map(|member| member.v6.map(IpAddr::V6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_pool_holds_what_was_added_and_not_removed(steps in prop::collection::vec((any::<bool>(), 0_u8..100), 0..400)) {
            let (mut pool, mut model) = (Pool::default(), BTreeSet::new());
            for (add, number) in steps {
                let (id, address) = (EndpointId([number; 16]), Ipv4Addr::new(10, 0, 0, number));
                if !add {
                    pool.remove(id);
                    model.remove(&IpAddr::V4(address));
                } else if model.insert(IpAddr::V4(address)) {
                    pool.insert(id, Some(address), None);
                }
            }
            prop_assert_eq!(pool.v4().count(), model.len());
            prop_assert_eq!(pool.is_empty(), model.is_empty());
            prop_assert_eq!(pool.v4().collect::<BTreeSet<_>>(), model);
        }
    }
}
