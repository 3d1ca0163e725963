//! The kernel's networking as skep needs it: namespaces, devices, addresses, routes, neighbours, nftables, connection
//! tracking. Over netlink, in batches, without running programs and without waiting.
//!
//! Used by what sets networks up on a host, on threads that may block. One handle of each kind for each namespace,
//! opened once ([`Namespace::create`], [`Namespace::enter`]), can be used from any thread afterwards. Decides
//! nothing: what is to exist, and under which name, is the callers'. Touches only what it is handed.
//!
//! `examples/figures.rs` makes a container's endpoint from nothing, and measures it.

#[doc(hidden)]
pub mod fuzzing;
mod kernel;

pub mod address;
pub mod conntrack;
pub mod error;
pub mod link;
pub mod message;
pub mod namespace;
pub mod neighbour;
pub mod nft;
pub mod offload;
pub mod route;
pub mod rtnetlink;
pub mod rule;
pub mod socket;
pub mod sysctl;
pub mod tcp;
pub mod types;
pub mod users;
pub mod wireguard;

pub use error::NetlinkError;
pub use namespace::{Inside, Namespace};
pub use rtnetlink::{Changes, Rtnetlink};
pub use types::{MacAddress, Prefix};

#[cfg(test)]
mod parse_test;
