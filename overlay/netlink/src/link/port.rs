//! Settings of a bridge's port (bridge(8), `bridge link set`).

use crate::kernel::*;
use crate::message::Writer;

/// What is to be different about a port. `None` changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BridgePort {
    /// Frames may go out where they came in.
    pub hairpin: Option<bool>,
    /// It reaches only ports that are not isolated.
    pub isolated: Option<bool>,
    /// ARP and ND are answered from the bridge's neighbour entries rather than sent out here.
    pub neigh_suppress: Option<bool>,
    /// Source addresses are learnt from it.
    pub learning: Option<bool>,
    /// Frames to unknown addresses, to groups and to all go out here.
    pub flood: Option<bool>,
}

impl BridgePort {
    pub(super) fn write(&self, data: &mut Writer<'_>) {
        let mut set = |kind: u16, value: Option<bool>| {
            if let Some(value) = value {
                data.u8(kind, u8::from(value));
            }
        };
        set(IFLA_BRPORT_MODE, self.hairpin);
        set(IFLA_BRPORT_ISOLATED, self.isolated);
        set(IFLA_BRPORT_NEIGH_SUPPRESS, self.neigh_suppress);
        set(IFLA_BRPORT_LEARNING, self.learning);
        set(IFLA_BRPORT_UNICAST_FLOOD, self.flood);
        set(IFLA_BRPORT_MCAST_FLOOD, self.flood);
        set(IFLA_BRPORT_BCAST_FLOOD, self.flood);
    }
}
