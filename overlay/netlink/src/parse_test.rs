//! Strange answers: every reader gets random bytes, random attributes, and real messages cut off anywhere. It may
//! refuse them or make something of them, but never panics.

#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use crate::kernel::*;
use crate::message::{Batch, Message, Messages};

/// Length of the fixed header of each kind of message.
const KINDS: [(u16, usize); 7] = [
    (RTM_NEWLINK, 16),
    (RTM_NEWADDR, 8),
    (RTM_NEWROUTE, 12),
    (RTM_NEWNEIGH, 12),
    (RTM_NEWRULE, 12),
    (NFNL_SUBSYS_CTNETLINK << 8, 4),
    (NFNL_SUBSYS_NFTABLES << 8, 4),
];

/// Whether any reader made something of it.
fn read(message: Message<'_>) -> bool {
    crate::fuzzing::answer(message) > 0
}

fn family() -> impl Strategy<Value = u8> {
    prop_oneof![Just(AF_INET), Just(AF_INET6), Just(AF_BRIDGE), any::<u8>()]
}

/// Attributes as the kernel nests them, of plausible lengths.
fn attributes() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        prop::collection::vec(any::<u8>(), 4..=4),
        prop::collection::vec(any::<u8>(), 6..=6),
        prop::collection::vec(any::<u8>(), 16..=16),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop::collection::vec((0u16..45, inner), 0..6).prop_map(|all| {
            let mut batch = Batch::new();
            batch.message(0, 0, |message| all.iter().for_each(|(kind, value)| message.bytes(*kind, value)));
            batch.bytes()[16..].to_vec()
        })
    })
}

proptest! {
    #[test]
    fn random_bytes(kind in 0..KINDS.len(), payload in prop::collection::vec(any::<u8>(), 0..120)) {
        read(Message { kind: KINDS[kind].0, flags: 0, sequence: 1, payload: &payload });
    }

    #[test]
    fn random_attributes(
        kind in 0..KINDS.len(), family in family(), fixed in prop::array::uniform16(any::<u8>()), rest in attributes(),
    ) {
        let mut payload = fixed[..KINDS[kind].1].to_vec();
        payload[0] = family;
        payload.extend(rest);
        read(Message { kind: KINDS[kind].0, flags: 0, sequence: 1, payload: &payload });
    }

    /// Cut off within, or with one byte that is another.
    #[test]
    fn spoilt_answers(which in 0..7usize, at: prop::sample::Index, byte: u8) {
        let whole = samples();
        let message = Messages(&whole[which]).next().unwrap().unwrap();
        prop_assert!(read(message), "the sample itself is good");
        let at = at.index(message.payload.len());
        read(Message { payload: &message.payload[..at], ..message });
        let mut spoilt = message.payload.to_vec();
        spoilt[at] = byte;
        read(Message { payload: &spoilt, ..message });
    }
}

/// A good message of each kind.
fn samples() -> [Vec<u8>; 7] {
    let make = |kind: usize, fill: &dyn Fn(&mut crate::message::Writer<'_>)| {
        let mut batch = Batch::new();
        batch.message(KINDS[kind].0, 0, |message| {
            let mut fixed = [0; 16];
            fixed[0] = AF_INET;
            match KINDS[kind].0 {
                RTM_NEWNEIGH => fixed[8] = 0x80,
                RTM_NEWRULE | RTM_NEWROUTE => fixed[7] = 1,
                _ => {}
            }
            message.raw(&fixed[..KINDS[kind].1]);
            fill(message);
        });
        batch.bytes().to_vec()
    };
    [
        make(0, &|m| {
            m.string(IFLA_IFNAME, "vx0");
            m.bytes(IFLA_STATS64, &[1; 192]);
            m.nested(IFLA_LINKINFO, |info| {
                info.string(IFLA_INFO_KIND, "vxlan");
                info.nested(IFLA_INFO_DATA, |data| {
                    data.u32(IFLA_VXLAN_ID, 7);
                    data.bytes(IFLA_VXLAN_LOCAL, &[10, 0, 0, 1]);
                });
            });
        }),
        make(1, &|m| m.bytes(IFA_LOCAL, &[10, 0, 0, 1])),
        make(2, &|m| {
            m.bytes(RTA_GATEWAY, &[10, 0, 0, 1]);
            m.nested(RTA_METRICS, |metrics| metrics.u32(RTAX_MTU, 1400));
        }),
        make(3, &|m| {
            m.bytes(NDA_DST, &[10, 0, 0, 1]);
            m.bytes(NDA_LLADDR, &[2, 0, 0, 0, 0, 1]);
        }),
        make(4, &|m| m.u32(FRA_FWMARK, 1)),
        make(5, &|m| {
            for kind in [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY] {
                m.nested(kind, |tuple| {
                    tuple.nested(CTA_TUPLE_IP, |ip| {
                        ip.bytes(CTA_IP_V4_SRC, &[10, 0, 0, 1]);
                        ip.bytes(CTA_IP_V4_DST, &[10, 0, 0, 2]);
                    });
                    tuple.nested(CTA_TUPLE_PROTO, |protocol| {
                        protocol.u8(CTA_PROTO_NUM, 6);
                        protocol.be16(CTA_PROTO_SRC_PORT, 1000);
                    });
                });
            }
        }),
        make(6, &|m| m.string(NFTA_TABLE_NAME, "skep")),
    ]
}
