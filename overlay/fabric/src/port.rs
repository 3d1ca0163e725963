//! A network on this host: its TAP and its tables.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use crate::Mac;
use crate::config::{Change, Forward};
use crate::rcu::Current;

/// Where frames go, and who has which address.
#[derive(Debug, Default)]
pub(crate) struct ForwardTable {
    /// The peer, by its fabric address, that has an Ethernet address.
    pub(crate) destinations: HashMap<Mac, IpAddr>,
    pub(crate) neighbours: HashMap<IpAddr, Mac>,
    /// Peers with at least one entry.
    pub(crate) peers: Vec<IpAddr>,
}

/// The entries of a network, from which the table is made.
#[derive(Debug, Default)]
pub(crate) struct Entries(BTreeMap<Mac, (Vec<IpAddr>, IpAddr)>);

impl Entries {
    pub(crate) fn change(&mut self, change: Change<Forward, Mac>) -> ForwardTable {
        for mac in &change.remove {
            self.0.remove(mac);
        }
        for Forward { mac, addresses, peer } in change.put {
            self.0.insert(mac, (addresses, peer));
        }
        let mut table = ForwardTable::default();
        table.destinations.reserve(self.0.len());
        table.neighbours.reserve(self.0.len());
        for (mac, (addresses, peer)) in &self.0 {
            table.destinations.insert(*mac, *peer);
            table.neighbours.extend(addresses.iter().map(|address| (*address, *mac)));
            table.peers.push(*peer);
        }
        table.peers.sort_unstable();
        table.peers.dedup();
        table
    }
}

/// The turn of a queue: who has it reads frames and sends them, so that they stay in order.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) taken: Mutex<()>,
    /// The last time there were but a few short frames in it: answers, maybe, to what was written just before.
    pub(crate) answers: AtomicBool,
}

/// An attached network.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) vni: u32,
    pub(crate) queues: Vec<OwnedFd>,
    /// Of each queue.
    pub(crate) turns: Vec<Turn>,
    /// The longest Ethernet frame, with room for one VLAN tag.
    pub(crate) longest: usize,
    pub(crate) uso: bool,
    pub(crate) flood: bool,
    pub(crate) forward: Current<ForwardTable>,
}

impl Port {
    /// The queue of a thread that writes. The kernel puts the answers of a flow into the queue that it came by.
    pub(crate) fn queue_of(&self, thread: usize) -> usize {
        thread % self.queues.len()
    }

    /// Writes one frame to a queue of the TAP. Never blocks.
    pub(crate) fn write(&self, queue: usize, parts: &[libc::iovec]) -> io::Result<()> {
        let queue = &self.queues[queue];
        // SAFETY: the caller's iovecs point into buffers that live during the call; the kernel only reads them.
        let written = unsafe { libc::writev(queue.as_raw_fd(), parts.as_ptr(), parts.len() as libc::c_int) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
