//! Messages are read as they were written; strange bytes are refused.
#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

#[test]
fn a_message_is_laid_out_as_the_kernel_wants_it() {
    let mut batch = Batch::new();
    batch.message(16, 0x600, |message| {
        message.raw(&[7; 16]);
        message.string(3, "vx0");
        message.nested(18, |info| {
            info.u8(1, 9);
            info.be16(15, 4789);
        });
    });
    #[rustfmt::skip]
    let expected = [
        60, 0, 0, 0, 16, 0, 1, 6, 1, 0, 0, 0, 0, 0, 0, 0,
        7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
        8, 0, 3, 0, b'v', b'x', b'0', 0,
        20, 0, 18, 0x80,
        5, 0, 1, 0, 9, 0, 0, 0,
        6, 0, 15, 0, 0x12, 0xb5, 0, 0,
    ];
    assert_eq!(batch.bytes(), expected);
    let message = Messages(batch.bytes()).next().unwrap().unwrap();
    assert_eq!((message.kind, message.flags, message.sequence), (16, 0x601, 1));
    let (fixed, attributes) = message.split(16).unwrap();
    assert_eq!(fixed, [7; 16]);
    let all: Vec<_> = attributes.map(Result::unwrap).collect();
    assert_eq!((all[0].kind, all[0].string().unwrap()), (3, "vx0".to_owned()));
    let inner: Vec<_> = all[1].nested().map(Result::unwrap).collect();
    assert_eq!((all[1].kind, inner[0].u8().unwrap(), inner[1].be16().unwrap()), (18, 9, 4789));
}

#[test]
fn what_netlink_cannot_carry_is_noticed() {
    let mut batch = Batch::new();
    batch.message(1, 0, |message| message.u8(1, 1));
    assert_eq!(batch.oversized(), None);
    batch.message(1, 0, |message| message.bytes(1, &[0; 65_532]));
    batch.message(1, 0, |message| message.nested(1, |inner| (0..2).for_each(|_| inner.bytes(2, &[0; 40_000]))));
    assert_eq!(batch.oversized(), Some(1));
}

#[test]
fn lengths_that_lie_are_refused() {
    for bytes in [&[15u8, 0, 0, 0][..], &[15, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0xff; 16], &[0; 16]] {
        let all: Vec<_> = Messages(bytes).collect();
        assert!(matches!(all[..], [Err(_)]), "{bytes:?}: {all:?}");
    }
    for bytes in [&[3u8, 0, 1, 0][..], &[9, 0, 1, 0, 1, 2, 3, 4], &[4, 0, 1], &[0; 4]] {
        let all: Vec<_> = Attributes(bytes).collect();
        assert!(matches!(all[..], [Err(_)]), "{bytes:?}: {all:?}");
    }
    let attribute = Attribute { kind: 1, payload: &[1, 2, 3] };
    assert!(attribute.u8().is_err() && attribute.u16().is_err() && attribute.u32().is_err() && attribute.ip().is_err());
}

proptest! {
    /// Whatever is written is read back.
    #[test]
    fn round_trip(values in prop::collection::vec((1u16..100, prop::collection::vec(any::<u8>(), 0..50)), 0..20)) {
        let mut batch = Batch::new();
        batch.message(77, 0, |message| values.iter().for_each(|(kind, value)| message.bytes(*kind, value)));
        batch.message(78, 0, |_| {});
        let messages: Vec<_> = Messages(batch.bytes()).map(Result::unwrap).collect();
        prop_assert_eq!(messages.len(), 2);
        let (_, attributes) = messages[0].split(0).unwrap();
        let back: Vec<_> = attributes.map(|a| a.map(|a| (a.kind, a.payload.to_vec())).unwrap()).collect();
        prop_assert_eq!(back, values);
        prop_assert_eq!(messages[1].sequence, 2);
    }

    /// Strange bytes end in an error or in messages, never in a panic or an endless loop.
    #[test]
    fn no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for message in Messages(&bytes).flatten() {
            if let Ok((_, attributes)) = message.split(16) {
                for attribute in attributes.flatten() {
                    let _ = (attribute.u8(), attribute.u16(), attribute.u32(), attribute.u64(), attribute.be16());
                    let _ = (attribute.string(), attribute.ip(), attribute.mac(), attribute.nested().count());
                }
            }
        }
        prop_assert!(Attributes(&bytes).count() <= bytes.len());
    }
}
