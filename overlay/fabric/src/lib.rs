//! skep's own WireGuard and VXLAN device in user space, for hosts whose kernel has no WireGuard.
//!
//! A network's TAP is a port of its bridge. Frames come from it as the kernel has them (up to 64 KiB, checksums not computed),
//! are cut into packets, get VXLAN's headers between fabric addresses, are sealed and sent many at a time; the other way
//! round, packets are opened, checked and put together again. On the wire it is plain VXLAN in IP in WireGuard.
//!
//! Used by the network daemon through [`Device`]. Never decides who is a peer or which frame goes where: it is told. Never
//! makes bridges, addresses or namespaces.
//!
//! - [`device`]: start, stop, peers, networks, tables; [`config`] what it is told; [`statistics`] what it tells.
//! - `transmit`, `receive`, `timers`: the threads; `core`, `peer`, `port`, `gate`: what they share.
//! - [`frame`], [`virtio`], [`segment`], [`coalesce`], [`vxlan`], [`neighbour`], [`checksum`]: pure, on bytes from outside.
//! - [`tap`], `socket`, `clock`: the kernel.

pub mod checksum;
mod clock;
pub mod coalesce;
pub mod config;
mod core;
pub mod device;
pub mod frame;
mod gate;
pub mod neighbour;
mod peer;
mod port;
mod rcu;
mod receive;
#[cfg(test)]
mod samples;
pub mod segment;
mod socket;
pub mod statistics;
pub mod tap;
mod timers;
mod transmit;
pub mod virtio;
pub mod vxlan;

pub use config::{Change, Config, Forward, Key, Offload, PeerConfig, PortConfig, PrivateKey};
pub use device::{Device, DeviceError};
pub use skep_noise::TimerSettings;
pub use statistics::{Count, DropReason, PeerStatistics, Statistics};

/// An Ethernet address.
pub type Mac = [u8; 6];
