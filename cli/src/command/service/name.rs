//! A name for a service that was given none: two words, as Docker makes them.

const FIRST: [&str; 32] = [
    "amber", "bold", "brave", "bright", "brisk", "busy", "calm", "clever", "clover", "dapper", "eager", "fuzzy",
    "gentle", "golden", "happy", "honest", "humming", "jolly", "keen", "lively", "lucky", "mellow", "merry", "nimble",
    "patient", "quick", "quiet", "steady", "sunny", "sweet", "warm", "wise",
];

const SECOND: [&str; 32] = [
    "apiary",
    "bee",
    "blossom",
    "bumblebee",
    "cell",
    "clover",
    "colony",
    "comb",
    "drone",
    "flower",
    "forager",
    "frame",
    "garden",
    "heather",
    "hive",
    "honey",
    "keeper",
    "lavender",
    "linden",
    "meadow",
    "mead",
    "nectar",
    "orchard",
    "petal",
    "pollen",
    "queen",
    "scout",
    "skep",
    "smoker",
    "straw",
    "wax",
    "worker",
];

/// Number of names; a taken one is refused by the managers, and another try makes another.
const COUNT: u64 = 32 * 32 * 1000;

/// The name for a random number.
pub(crate) fn from_number(random: u64) -> String {
    let random = random % COUNT;
    let (words, digits) = (random / 1000, random % 1000);
    let pick = |list: &[&'static str; 32], index: u64| {
        list.get(usize::try_from(index % 32).unwrap_or(0)).copied().unwrap_or("skep")
    };
    format!("{}_{}{digits}", pick(&FIRST, words / 32), pick(&SECOND, words))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_name_is_valid(random: u64) {
            prop_assert!(skep_proto::validate::name("name", &from_number(random)).is_ok());
        }
    }

    #[test]
    fn different_numbers_make_different_names() {
        assert_ne!(from_number(1000), from_number(32_000));
        assert_ne!(from_number(1), from_number(2));
    }
}
