//! Fresh ids without a source of randomness: the driver gives a random 128-bit seed for each pass, and ids are a
//! permutation of (seed, counter), so that a plan is a plain function of its arguments and repeats exactly.

use skep_proto::id::TaskId;

/// Makes ids from a seed.
#[derive(Clone, Debug)]
pub struct Ids {
    high: u64,
    low: u64,
}

impl Ids {
    /// `seed` must be random and used once.
    pub fn new(seed: u128) -> Self {
        Self { high: (seed >> 64) as u64, low: (seed & u128::from(u64::MAX)) as u64 }
    }

    /// The next task id.
    pub fn task(&mut self) -> TaskId {
        self.low = self.low.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.high = self.high.wrapping_add(0xd1b5_4a32_d192_ed03);
        TaskId::new(u128::from(mix(self.high)) << 64 | u128::from(mix(self.low ^ self.high.rotate_left(32))))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit.
pub fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_do_not_repeat_and_follow_from_the_seed() {
        let mut ids = Ids::new(7);
        let made: HashSet<TaskId> = (0..10_000).map(|_| ids.task()).collect();
        assert_eq!(made.len(), 10_000);
        assert_eq!(Ids::new(7).task(), Ids::new(7).task());
        assert_ne!(Ids::new(7).task(), Ids::new(8).task());
    }
}
