// Copyright (c) 2019 Cloudflare, Inc. All rights reserved.
// SPDX-License-Identifier: BSD-3-Clause

//! WireGuard's protocol without any I/O: handshakes, cookies, timers and the sealing of packets. Bytes in, bytes out.
//!
//! boringtun's `noise` module, changed so that packets are sealed and opened outside a tunnel's lock (see README.md). Used by
//! the fabric device. Never reads a monotonic clock: `now` is passed in, on one clock that all calls share.

// Vendored: it keeps its authors' style, so that it can be compared with the origin. The unwraps are on lengths that are
// checked before, or fixed.
#![allow(clippy::unwrap_used, clippy::too_many_arguments, clippy::doc_lazy_continuation)]

mod errors;
mod handshake;
mod rate_limiter;
mod session;
mod timers;
mod tunn;

pub use errors::WireGuardError;
pub use handshake::{HalfHandshake, parse_handshake_anon, random_secret};
pub use rate_limiter::RateLimiter;
pub use session::{AEAD_SIZE, DATA_OFFSET, Session};
pub use timers::{TimerSettings, Traffic};
pub use tunn::{
    COOKIE_REPLY_SZ, DATA_OVERHEAD_SZ, HANDSHAKE_INIT_SZ, HandshakeInit, N_SESSIONS, Packet, PacketData, Tunn,
    TunnResult,
};

/// Compares in a time that does not depend on where the difference is.
fn verify_slices_are_equal(a: &[u8], b: &[u8]) -> Result<(), WireGuardError> {
    if bool::from(subtle::ConstantTimeEq::ct_eq(a, b)) { Ok(()) } else { Err(WireGuardError::InvalidMac) }
}

/// The key types.
pub mod x25519 {
    pub use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
}
