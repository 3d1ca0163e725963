//! Publishing ports of the host: first the port is reserved, then a rule leads it on; the other way round when it goes.
//! A port that a process of the host has is never taken from it unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::MutexGuard;

use skep_netlink::NetlinkError;
use skep_netlink::conntrack::Filter;
use skep_netlink::nft::Transport;
use skep_proto::v1::NetworkFinding;

use super::ports::{self, Holder, PortTaken, PublishError, Published, Reserved};
use super::{Host, State, holder};
use crate::check;

/// What happens to a port that a process of the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is left to the process, and tried again when it is asked for ([`Host::contested`]).
    LeaveOut,
    /// None of the ports is published, and the caller is told.
    Refuse,
    /// It is led on all the same: it was before, and the process came while no netd ran.
    Insist,
}

/// A port that a process of the host has.
#[derive(Clone, Debug)]
struct Contested {
    /// The network that it is to lead to.
    index: u16,
    /// It leads there.
    led: bool,
    /// As it was when that was found.
    holder: Option<Holder>,
}

/// Which ports are held.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: BTreeMap<Published, Option<OwnedFd>>,
    contested: BTreeMap<Published, Contested>,
}

impl Host {
    /// Publishes ports, each by the network of an index, and takes others back, where they still lead to the index that is
    /// named: another network's task may have the port by now. Nothing happens where that is so already.
    /// Returns the connections that must be forgotten then: whoever sends datagrams to a port for long would go on to
    /// wherever it led before.
    ///
    /// # Errors
    /// Nothing has changed then. With [`Taken::Refuse`] a port that is led on already is not asked about again.
    pub fn publish(
        &self,
        put: &[(Published, u16)],
        remove: &[(Published, u16)],
        taken: Taken,
    ) -> Result<Vec<Filter>, PublishError> {
        self.publish_locked(self.lock(), put, remove, taken)
    }

    /// Tries contested ports again; those that are not contested for that index any more are left alone.
    pub fn publish_again(&self, put: &[(Published, u16)], taken: Taken) -> Result<Vec<Filter>, PublishError> {
        let state = self.lock();
        let contested = &state.claims.contested;
        let still = |(port, index): &&(Published, u16)| contested.get(port).is_some_and(|one| one.index == *index);
        let put: Vec<_> = put.iter().filter(still).copied().collect();
        self.publish_locked(state, &put, &[], taken)
    }

    fn publish_locked(
        &self,
        mut state: MutexGuard<'_, State>,
        put: &[(Published, u16)],
        remove: &[(Published, u16)],
        taken: Taken,
    ) -> Result<Vec<Filter>, PublishError> {
        let owner =
            |port| state.claims.contested.get(port).map(|one| one.index).or(state.meant.ports.get(port).copied());
        let remove = remove.iter().filter(|(port, index)| owner(port) == Some(*index));
        let remove: Vec<Published> = remove.map(|(port, _)| *port).collect();
        let mut new: Vec<Published> = put.iter().map(|(port, _)| *port).collect();
        new.retain(|port| !state.claims.held.contains_key(port));
        if taken == Taken::Refuse {
            new.retain(|port| !state.meant.ports.contains_key(port));
        }
        let reserved = self.reserve(&mut state, &new)?;
        if taken == Taken::Refuse
            && let Some(port) = reserved.refused.first().copied()
        {
            drop((state, reserved));
            let holder = self.find_holders(&[port]).remove(&port);
            return Err(PortTaken { port, holder }.into());
        }
        let refused: BTreeSet<Published> = reserved.refused.iter().copied().collect();
        let led = |port: &Published| taken != Taken::LeaveOut || !refused.contains(port);
        let mut ports = state.meant.ports.clone();
        for port in remove.iter().chain(refused.iter().filter(|port| !led(port))) {
            ports.remove(port);
        }
        ports.extend(put.iter().filter(|(port, _)| led(port)).copied());
        let before = std::mem::replace(&mut state.meant.ports, ports);
        let changed = state.meant.ports != before;
        if changed && let Err(error) = self.complete(&mut state) {
            state.meant.ports = before;
            return Err(error.into());
        }
        let contested = state.claims.settle(put, &remove, reserved, taken);
        let held = state.held;
        drop(state);
        self.tell(&contested);
        if !changed || held {
            // While it is held nothing is new: connections that an earlier netd led here go on.
            return Ok(Vec::new());
        }
        let put: Vec<(Published, u16)> = put.iter().filter(|(port, _)| led(port)).copied().collect();
        Ok(self.outdated(&put, &before)?)
    }

    /// Reserves ports. What an earlier netd has still is waited for.
    fn reserve(&self, state: &mut State, new: &[Published]) -> Result<Reserved, NetlinkError> {
        if new.is_empty() {
            return Ok(Reserved::default());
        }
        let mut patience = state.patience;
        let reserved = self.namespace.enter(|_| Ok::<_, NetlinkError>(ports::reserve(new, &mut patience)));
        state.patience = patience;
        reserved
    }

    /// Connections of datagrams that would go on to where ports led before.
    fn outdated(
        &self,
        put: &[(Published, u16)],
        before: &BTreeMap<Published, u16>,
    ) -> Result<Vec<Filter>, NetlinkError> {
        let other = |(port, index): &&(Published, u16)| before.get(port) != Some(index);
        let udp = put.iter().filter(other).filter(|(port, _)| port.transport == Transport::Udp);
        let changed: Vec<Published> = udp.map(|(port, _)| *port).collect();
        let addresses = match changed.is_empty() {
            true => Vec::new(),
            false => self.rtnetlink.addresses()?,
        };
        let filter = |port: Published, address: IpAddr| Filter {
            destination: Some(address),
            destination_port: Some(port.port),
            protocol: Some(port.transport.number()),
            ..Filter::default()
        };
        let of = |port: Published| {
            let own = addresses.iter().map(|found| found.prefix.address);
            own.filter(move |address| address.is_ipv6() == port.ipv6).map(move |address| filter(port, address))
        };
        Ok(changed.into_iter().flat_map(of).collect())
    }

    /// Ports that processes of the host have, with what is to happen to them when they are tried again.
    pub fn contested(&self) -> Vec<(Vec<(Published, u16)>, Taken)> {
        let state = self.lock();
        let of = |led: bool| {
            let found = state.claims.contested.iter().filter(|(_, contested)| contested.led == led);
            found.map(|(port, contested)| (*port, contested.index)).collect::<Vec<_>>()
        };
        let both = [(of(false), Taken::LeaveOut), (of(true), Taken::Insist)];
        both.into_iter().filter(|(ports, _)| !ports.is_empty()).collect()
    }

    fn find_holders(&self, ports: &[Published]) -> BTreeMap<Published, Holder> {
        let found = self.namespace.enter(|_| Ok::<_, NetlinkError>(holder::find(ports)));
        // Without it the message is the poorer.
        found.unwrap_or_default()
    }

    /// Says who has ports that were found to be taken just now.
    fn tell(&self, ports: &[Published]) {
        if ports.is_empty() {
            return;
        }
        let mut holders = self.find_holders(ports);
        let mut state = self.lock();
        for port in ports {
            if let Some(contested) = state.claims.contested.get_mut(port) {
                contested.holder = holders.remove(port);
                tracing::warn!("{}", contested.problem(*port));
            }
        }
    }

    /// A sentence about each port that a process of the host has, whatever the family.
    fn problems(&self) -> BTreeMap<(u16, u8), (String, String)> {
        let state = self.lock();
        let mut told = BTreeMap::new();
        for (port, contested) in &state.claims.contested {
            let key = (port.port, port.transport.number());
            told.entry(key).or_insert_with(|| (contested.problem(*port), contested.advice(*port)));
        }
        told
    }

    /// Sentences for a person.
    pub(super) fn port_notes(&self) -> Vec<String> {
        self.problems().into_values().map(|(problem, _)| problem).collect()
    }

    /// The same with what to do.
    pub(super) fn port_findings(&self) -> Vec<NetworkFinding> {
        let finding = |(problem, advice)| check::warning(skep_proto::v1::CheckArea::Ports, problem, advice);
        self.problems().into_values().map(finding).collect()
    }
}

impl Claims {
    /// Takes note of what is published now. Returns the ports that were not known to be taken.
    fn settle(
        &mut self,
        put: &[(Published, u16)],
        remove: &[Published],
        reserved: Reserved,
        taken: Taken,
    ) -> Vec<Published> {
        let stays: BTreeSet<&Published> = put.iter().map(|(port, _)| port).collect();
        for port in remove.iter().filter(|port| !stays.contains(port)) {
            self.held.remove(port);
            self.contested.remove(port);
        }
        for (port, socket) in reserved.held {
            if self.contested.remove(&port).is_some() {
                tracing::info!(%port, "the port that a process of the host had is free, and leads on");
            }
            self.held.insert(port, socket);
        }
        let (mut new, indices) = (Vec::new(), put.iter().copied().collect::<BTreeMap<_, _>>());
        for port in reserved.refused {
            let Some(index) = indices.get(&port).copied() else { continue };
            let led = taken == Taken::Insist;
            match self.contested.get_mut(&port) {
                Some(known) => (known.index, known.led) = (index, led),
                None => {
                    self.contested.insert(port, Contested { index, led, holder: None });
                    new.push(port);
                }
            }
        }
        new
    }
}

impl Contested {
    fn problem(&self, port: Published) -> String {
        let taken = ports::in_use(port, self.holder.as_ref());
        match self.led {
            false => format!("{taken}: the routing mesh leaves it to that process here"),
            true => format!("{taken}, which gets no connections there: the port leads to a task"),
        }
    }

    fn advice(&self, port: Published) -> String {
        let number = port.port;
        match self.led {
            false => format!(
                "end that process, and this host joins in by itself; or publish the service at another port \
                 (`skep service update --publish-rm` and `--publish-add`); the other hosts answer at {number} meanwhile"
            ),
            true => format!("let that process listen somewhere else than at {number}"),
        }
    }
}
