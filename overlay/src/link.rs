//! Devices that are to go, whether or not they are there still. Used wherever netd takes something down.

use skep_netlink::link::{LinkChange, LinkRef};
use skep_netlink::{Changes, NetlinkError, Rtnetlink};

/// Deletes a device. Idempotent. It takes the kernel tens of milliseconds (`rcu_barrier`).
pub fn remove(rtnetlink: &Rtnetlink, name: &str) -> Result<(), NetlinkError> {
    let mut changes = Changes::new();
    changes.delete_link(name);
    apply_if_there(rtnetlink, &changes)
}

/// Takes a device down, and off its bridge: at once. Idempotent.
pub fn cut_off(rtnetlink: &Rtnetlink, link: impl Into<LinkRef>) -> Result<(), NetlinkError> {
    let mut changes = Changes::new();
    changes.change_link(link, &LinkChange { up: Some(false), master: Some(0), ..LinkChange::default() });
    apply_if_there(rtnetlink, &changes)
}

fn apply_if_there(rtnetlink: &Rtnetlink, changes: &Changes) -> Result<(), NetlinkError> {
    match rtnetlink.apply(changes) {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}
