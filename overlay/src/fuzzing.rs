//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use skep_proto::id::NetworkId;
use skep_proto::v1;

use crate::check::probe;
use crate::netd::keep;

/// The kept file of a network's table. Gives the version that it holds.
pub fn kept_table(network: NetworkId, bytes: &[u8]) -> Option<u64> {
    keep::table(network, bytes).ok().map(|kept| kept.followed.current().version)
}

/// A message as it is kept.
pub fn keep(message: &impl prost::Message) -> Vec<u8> {
    keep::record(message)
}

/// A kept file of one message: who the host is, or how a sandbox was attached. Whether either could be read.
pub fn kept_message(bytes: &[u8]) -> bool {
    keep::one::<v1::ConfigureRequest>(bytes).is_ok() | keep::one::<v1::AttachRequest>(bytes).is_ok()
}

/// What came back to an ICMP socket that sent requests as `id`. Gives the number of the request that it answers, and its size.
pub fn probe_answer(packet: &[u8], ipv6: bool, id: u16) -> Option<(usize, u32)> {
    probe::answer(packet, ipv6, id)
}
