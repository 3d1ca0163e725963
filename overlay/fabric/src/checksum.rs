//! The internet checksum (RFC 1071) and the pseudo-headers that go into TCP's and UDP's. Pure.
//!
//! Used by [`crate::segment`], [`crate::coalesce`], [`crate::vxlan`] and [`crate::neighbour`]. Sums are kept in the machine's
//! byte order and turned once at the end (RFC 1071, section 2(B)), so the inner loop is plain additions that vectorise.

/// A sum that is not folded yet. All parts but the last one must have an even length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes as 16-bit words; an odd last byte counts as if a zero followed.
    #[inline]
    pub fn bytes(self, data: &[u8]) -> Sum {
        // 32-bit words into 64-bit lanes: no carry can be lost below 2^32 words.
        let mut lanes = [0u64; 8];
        let mut blocks = data.chunks_exact(32);
        for block in &mut blocks {
            for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
                *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            }
        }
        let mut sum: u64 = lanes.iter().sum();
        let mut words = blocks.remainder().chunks_exact(2);
        for word in &mut words {
            sum += u64::from(u16::from_ne_bytes([word[0], word[1]]));
        }
        if let [last] = words.remainder() {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Sum(fold_once(self.0) + fold_once(sum))
    }

    /// Adds one word given in host order.
    #[inline]
    pub fn add_word(self, word: u16) -> Sum {
        Sum(self.0 + u64::from(word.to_be()))
    }

    /// The one's complement sum, not inverted: what a checksum field holds that the kernel is to complete.
    #[inline]
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(sum as u16)
    }

    /// The checksum: the inverted sum.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// The checksum as TCP and UDP send it: never zero, which means "none" in UDP.
    #[inline]
    pub fn checksum_nonzero(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// 64 to at most 33 bits, so that sums of sums cannot overflow.
#[inline]
fn fold_once(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// The pseudo-header of TCP and UDP: `addresses` are source and destination as they stand in the IP header (8 or 32 bytes),
/// `length` is that of transport header and payload.
#[inline]
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> Sum {
    Sum::default()
        .bytes(addresses)
        .add_word(u16::from(protocol))
        .add_word((length >> 16) as u16)
        .add_word(length as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 writes it.
    pub(crate) fn reference(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for word in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).folded(), 0xddf2);
    }

    #[test]
    fn the_largest_sum_does_not_overflow() {
        assert_eq!(
            Sum::default().bytes(&vec![0xff; 65536]).bytes(&vec![0xff; 65535]).folded(),
            reference_folded(131_071)
        );
        fn reference_folded(length: usize) -> u16 {
            !reference(&vec![0xff; length])
        }
    }

    proptest! {
        #[test]
        fn equals_the_reference(data in prop::collection::vec(any::<u8>(), 0..3000), split in 0usize..1500) {
            let split = (split * 2).min(data.len() & !1);
            let sum = Sum::default().bytes(&data[..split]).bytes(&data[split..]);
            prop_assert_eq!(sum.checksum(), reference(&data));
        }
    }
}
