//! Sandboxes' devices on a network's bridge: plugged in, cut off, removed. Called by netd as sandboxes come and go.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use skep_netlink::link::{LinkChange, LinkKind, NewLink};
use skep_netlink::{Changes, Inside, MacAddress, Namespace, NetlinkError, Rtnetlink};

use super::{BRIDGE, LiveNetwork, NET, OVERLAY, OverlayPort};
use crate::link;

/// How long a bridge's port may take until it forwards: the kernel's linkwatch, on a host under load.
const FORWARDING: Duration = Duration::from_secs(5);

impl LiveNetwork {
    /// Plugs a sandbox in: a pair of devices, `name` on the bridge and `inner` in the sandbox, which is down still.
    pub fn plug(&self, name: &str, inner: &str, mac: MacAddress, sandbox: &Namespace) -> Result<(), NetlinkError> {
        let mtu = Some(self.wanted.mtu);
        let namespace = Some(sandbox.as_fd());
        let peer = NewLink { mtu, mac: Some(mac), namespace, ..NewLink::new(inner, LinkKind::Peer) };
        let mut changes = Changes::new();
        let kind = LinkKind::Veth(Box::new(peer));
        changes.add_link(&NewLink { mtu, master: Some(BRIDGE), up: true, ..NewLink::new(name, kind) });
        match self.rtnetlink.apply(&changes) {
            // Of a sandbox of the same task, whose namespace is not gone yet.
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                self.unplug(name)?;
                self.rtnetlink.apply(&changes)
            }
            applied => applied,
        }
    }

    /// Waits until the bridge forwards between a sandbox's device and the way to other hosts: the kernel begins with that
    /// a moment after both ends are up, and loses frames until then.
    pub fn wait_forwarding(&self, name: &str) -> Result<(), NetlinkError> {
        let deadline = Instant::now() + FORWARDING;
        let asks = self.wanted.port != OverlayPort::Local && !self.way_forwards.load(Ordering::Relaxed);
        for name in [Some(name), asks.then_some(OVERLAY)].into_iter().flatten() {
            while !self.rtnetlink.link(name)?.is_some_and(|link| link.forwarding) {
                if Instant::now() > deadline {
                    let problem = format!("its bridge does not forward after {} s", FORWARDING.as_secs());
                    return Err(NetlinkError::Invalid { action: format!("connect device {name}"), problem });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.way_forwards.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the device of a sandbox that ends off the bridge; its pair goes with the sandbox's namespace, in the background.
    /// To delete it takes the kernel tens of milliseconds (`rcu_barrier`), in which whoever has the network waits.
    /// Idempotent.
    pub fn disconnect(&self, name: &str) -> Result<(), NetlinkError> {
        link::cut_off(&self.rtnetlink, name)
    }

    /// Puts a sandbox's device on the bridge again. Idempotent.
    pub fn reconnect(&self, name: &str) -> Result<(), NetlinkError> {
        let mut changes = Changes::new();
        changes.change_link(name, &LinkChange { up: Some(true), master: Some(BRIDGE), ..LinkChange::default() });
        self.rtnetlink.apply(&changes)
    }

    /// Removes a sandbox's pair of devices. Idempotent.
    pub fn unplug(&self, name: &str) -> Result<(), NetlinkError> {
        link::remove(&self.rtnetlink, name)
    }

    /// Whether any sandbox is plugged in.
    pub fn has_sandboxes(&self) -> Result<bool, NetlinkError> {
        plugged(&self.rtnetlink)
    }
}

/// Whether any sandbox is plugged into the network in a folder, where there is one.
pub fn has_sandboxes(dir: &Path) -> Result<bool, NetlinkError> {
    match Namespace::open(&dir.join(NET)) {
        Ok(namespace) => plugged(&namespace.enter(Inside::rtnetlink)?),
        Err(_) => Ok(false),
    }
}

fn plugged(rtnetlink: &Rtnetlink) -> Result<bool, NetlinkError> {
    Ok(rtnetlink.links()?.iter().any(|link| link.master == Some(BRIDGE) && link.name != OVERLAY))
}
