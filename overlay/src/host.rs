//! The host's own namespace: nftables tables of this instance, forwarding, and the host's ends of networks' ways out.
//!
//! Driven by [`crate::netd`]. Touches only its own tables and its own devices, and never flushes anything; what others have
//! decided about forwarding is in [`forwarding`] and [`firewall`].

mod check;
mod holder;
mod ports;
mod publish;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_netlink::link::{LinkChange, LinkKind, Macvlan, NewLink};
use skep_netlink::nft::Nft;
use skep_netlink::sysctl::{Scope, Sysctl};
use skep_netlink::{Changes, Inside, MacAddress, Namespace, NetlinkError, Prefix, Rtnetlink};

use crate::link;
use crate::plan::out;

pub mod firewall;
pub mod forwarding;
mod rules;

pub use ports::{Holder, PortTaken, PublishError, Published};
pub use publish::Taken;

/// What an Ethernet carries, where the underlay's device is not known.
const ETHERNET: u32 = 1500;
/// The name of a macvlan device until it is where it belongs: older kernels (6.1) refuse a name that a device of the host has,
/// though the new one is made elsewhere.
const ARRIVING: &str = "skep-arriving";

/// For how long it waits in all for ports that an earlier netd has still: that one is about to be gone.
const PATIENCE: Duration = Duration::from_millis(200);

/// What the host's rules are to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Meant {
    /// Published ports, with the index of the network that they lead to.
    ports: BTreeMap<Published, u16>,
    /// Whether packets are forwarded for networks, by family: IPv4, IPv6.
    forward: [bool; 2],
}

/// The rules, and what keeps their ports.
#[derive(Debug, Default)]
struct State {
    meant: Meant,
    /// The kernel is left as it was found: those who know what is published have not all said so yet.
    held: bool,
    /// The kernel is not as it is meant to be: it refused.
    stale: bool,
    /// What is left of [`PATIENCE`].
    patience: Duration,
    claims: publish::Claims,
}

/// The host's namespace with what is open in it.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    rtnetlink: Rtnetlink,
    nft: Arc<Nft>,
    instance: String,
    /// Held while it is put in place: a later state is never overtaken by an earlier one.
    state: Mutex<State>,
}

impl Host {
    /// Opens the host's namespace, this process's. Nothing is changed there yet.
    pub fn open(instance: &str) -> Result<Self, NetlinkError> {
        let namespace = Namespace::host()?;
        let open =
            |inside: &Inside| Ok::<_, NetlinkError>((inside.rtnetlink()?, Arc::new(inside.nft()?.remembering())));
        let (rtnetlink, nft) = namespace.enter(open)?;
        Ok(Self { namespace, rtnetlink, nft, instance: instance.to_owned(), state: Mutex::default() })
    }

    /// Leaves the rules that are found as they are until [`Self::release`], and only remembers what they are to be.
    pub fn hold(&self) {
        let mut state = self.lock();
        (state.held, state.patience) = (true, PATIENCE);
    }

    /// Puts what was said meanwhile in place of what was found, at once.
    pub fn release(&self) -> Result<(), NetlinkError> {
        let mut state = self.lock();
        (state.held, state.patience) = (false, Duration::ZERO);
        match state.meant == Meant::default() {
            true => Ok(()),
            false => self.complete(&mut state),
        }
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

    /// nftables in it.
    pub fn nft(&self) -> &Arc<Nft> {
        &self.nft
    }

    /// Makes it forward packets, and gives what comes from networks its own address. Called with each network that has a
    /// way out, before it has one.
    pub fn forward(&self, ipv6: bool) -> Result<(), NetlinkError> {
        let mut state = self.lock();
        let wanted = [true, state.meant.forward[1] || ipv6];
        if state.meant.forward == wanted {
            return Ok(());
        }
        let before = std::mem::replace(&mut state.meant.forward, wanted);
        let done = self.complete(&mut state);
        if done.is_err() {
            state.meant.forward = before;
        }
        done
    }

    /// Makes right what others may have taken away meanwhile: a firewall that was loaded afresh flushes everything.
    pub fn check(&self) -> Result<(), NetlinkError> {
        let mut state = self.lock();
        if !state.meant.forward[0] || state.held {
            return Ok(());
        }
        if state.stale {
            return self.complete(&mut state);
        }
        self.open_ways(&state)?;
        let tables = self.nft.tables()?;
        let ours = [false, true].into_iter().filter(|ipv6| state.meant.forward[usize::from(*ipv6)]);
        if ours.map(|ipv6| rules::table(&self.instance, ipv6)).any(|table| !tables.contains(&table)) {
            tracing::warn!("the nftables rules of published ports were gone and are made again");
            self.commit(&state)?;
        }
        Ok(())
    }

    /// Sentences about what is in the way of packets here, or was changed for them.
    pub fn notes(&self) -> Vec<String> {
        if !self.lock().meant.forward[0] {
            return Vec::new();
        }
        let mut notes = self.port_notes();
        notes.extend(forwarding::notes(&self.nft).unwrap_or_default());
        notes.extend(firewall::notes(&self.nft, &self.instance).unwrap_or_default());
        notes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, state: &mut State) -> Result<(), NetlinkError> {
        if state.held {
            return Ok(());
        }
        let done = self.open_ways(state).and_then(|()| self.commit(state));
        state.stale = done.is_err();
        done
    }

    fn open_ways(&self, state: &State) -> Result<(), NetlinkError> {
        forwarding::ensure(&self.namespace, &self.rtnetlink, &self.nft, state.meant.forward[1])?;
        // Another's chain may be closed to us; the notes say what to do then.
        if let Err(error) = firewall::ensure(&self.namespace, &self.nft, &self.instance, state.meant.forward) {
            tracing::warn!("{}", crate::netd::text(&error));
        }
        Ok(())
    }

    /// Puts the whole tables in place, at once.
    fn commit(&self, state: &State) -> Result<(), NetlinkError> {
        self.nft.commit(&rules::rules(&self.instance, &state.meant))
    }

    /// Gives a device of ours its addresses and the size of its packets, and raises it. Idempotent.
    pub fn ensure_addresses(&self, name: &str, prefixes: &[Prefix], mtu: u32) -> Result<(), NetlinkError> {
        let Some(link) = self.rtnetlink.link(name)? else {
            let problem = "it is not there".to_owned();
            return Err(NetlinkError::Invalid { action: format!("give device {name} an address"), problem });
        };
        let device = || Scope::Device(name.to_owned());
        // What comes from 127.0.0.1 may leave by this device, and answers come back; the rules let nothing else in.
        let mut sysctls = vec![(Sysctl::RouteLocalnet(device()), "1")];
        if prefixes.iter().any(|prefix| prefix.address.is_ipv6()) {
            sysctls.extend([
                (Sysctl::DisableIpv6(device()), "0"),
                (Sysctl::AcceptDad(device()), "0"),
                (Sysctl::AcceptRa(device()), "0"),
            ]);
        }
        self.namespace.enter(|inside| inside.write_sysctls(&sysctls))?;
        let mut changes = Changes::new();
        changes.change_link(link.index, &LinkChange { mtu: Some(mtu), up: Some(true), ..LinkChange::default() });
        let found = self.rtnetlink.addresses()?;
        for prefix in prefixes {
            if !found.iter().any(|address| address.device == link.index && address.prefix == *prefix) {
                changes.add_address(link.index, *prefix);
            }
        }
        self.rtnetlink.apply(&changes)
    }

    /// Whether one of its devices has the addresses of a way out: then they are another instance's.
    pub fn has_out(&self, index: u16) -> Result<bool, NetlinkError> {
        let outer = IpAddr::from(out::v4(index).0);
        Ok(self.rtnetlink.addresses()?.iter().any(|address| address.prefix.address == outer))
    }

    /// Makes room for the device of a way out: what an earlier process left of it goes.
    ///
    /// # Errors
    /// Where it is another instance's, on the same network.
    pub fn clear_out(&self, name: &str, index: u16) -> Result<(), NetlinkError> {
        let Some(link) = self.rtnetlink.link(name)? else { return Ok(()) };
        let outer = IpAddr::from(out::v4(index).0);
        let found = self.rtnetlink.addresses()?;
        let mut v4 = found.iter().filter(|address| address.device == link.index && address.prefix.address.is_ipv4());
        if v4.any(|address| address.prefix.address != outer) {
            let problem = "it is another node's: two nodes on one machine that are on the same network need a network \
                           namespace each"
                .to_owned();
            return Err(NetlinkError::Invalid { action: format!("make device {name}"), problem });
        }
        self.remove_link(name)
    }

    /// Deletes a device of ours. Idempotent.
    pub fn remove_link(&self, name: &str) -> Result<(), NetlinkError> {
        link::remove(&self.rtnetlink, name)
    }

    /// Puts a second address of one of the host's devices into a sandbox.
    pub fn plug_macvlan(
        &self,
        parent: &str,
        inner: &str,
        mac: MacAddress,
        mtu: Option<u32>,
        sandbox: &Namespace,
    ) -> Result<(), NetlinkError> {
        use std::os::fd::AsFd;
        let refuse = |problem| Err(NetlinkError::Invalid { action: format!("make a macvlan on {parent}"), problem });
        let Some(link) = self.rtnetlink.link(parent)? else {
            return refuse("this host has no such device; the network's option `parent` names it".to_owned());
        };
        if let Some(mtu) = mtu.filter(|mtu| *mtu > link.mtu) {
            return refuse(format!("the network's option `mtu` is {mtu}, and the device's own is {}", link.mtu));
        }
        let there = sandbox.enter(Inside::rtnetlink)?;
        link::remove(&there, ARRIVING)?;
        let mut changes = Changes::new();
        let kind = LinkKind::Macvlan(Macvlan { parent: link.index });
        let namespace = Some(sandbox.as_fd());
        changes.add_link(&NewLink { mac: Some(mac), mtu, namespace, ..NewLink::new(ARRIVING, kind) });
        self.rtnetlink.apply(&changes)?;
        let Some(arrived) = there.link(ARRIVING)? else { return refuse("it did not come to the sandbox".to_owned()) };
        let mut changes = Changes::new();
        changes.change_link(arrived.index, &LinkChange { name: Some(inner.to_owned()), ..LinkChange::default() });
        there.apply(&changes)
    }

    /// The largest packet of the device that has an address; Ethernet's where none has it.
    pub fn underlay_mtu(&self, address: IpAddr) -> Result<u32, NetlinkError> {
        let addresses = self.rtnetlink.addresses()?;
        let Some(found) = addresses.iter().find(|found| found.prefix.address == address) else { return Ok(ETHERNET) };
        let links = self.rtnetlink.links()?;
        Ok(links.iter().find(|link| link.index == found.device).map_or(ETHERNET, |link| link.mtu))
    }

    /// Removes its tables, and what it changed for them.
    pub fn close(&self) -> Result<(), NetlinkError> {
        *self.lock() = State::default();
        self.nft.commit(&rules::none(&self.instance))?;
        firewall::remove(&self.namespace, &self.nft, &self.instance)?;
        forwarding::restore(&self.namespace, &self.nft)
    }
}
