//! The numbering of backends: a change touches few numbers and leaves all in a row.
#![allow(clippy::unwrap_used)]
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn backend(number: u32) -> Backend {
    Backend { address: Ipv4Addr::from(0x0a00_0000 + number).into(), port: Some(80) }
}

fn backends(numbers: &[u32]) -> Vec<Backend> {
    numbers.iter().copied().map(backend).collect()
}

/// The kernel's map: refuses what the kernel refuses.
#[derive(Default)]
struct Map(HashMap<u32, Backend>);

impl Map {
    fn apply(&mut self, change: &BackendChange) {
        for number in &change.clear {
            assert!(self.0.remove(number).is_some(), "{number} is not there");
        }
        for (number, backend) in &change.put {
            assert!(self.0.insert(*number, *backend).is_none(), "{number} is taken");
        }
        assert_eq!(self.0.len(), usize::try_from(change.count).unwrap());
        assert!((0..change.count).all(|number| self.0.contains_key(&number)), "a gap");
    }
}

#[test]
fn one_change_touches_few_numbers() {
    let mut all = Backends::new();
    let first = all.change(&backends(&[0, 1, 2, 3, 4]), &[]);
    assert_eq!((first.clear.len(), first.put.len(), first.count), (0, 5, 5));
    let one = all.change(&[], &[backend(1)]);
    assert_eq!(one, BackendChange { clear: vec![1, 4], put: vec![(1, backend(4))], before: 5, count: 4 });
    let swap = all.change(&[backend(9)], &[backend(2)]);
    assert_eq!(swap, BackendChange { clear: vec![2], put: vec![(2, backend(9))], before: 4, count: 4 });
    assert!(all.change(&[backend(9)], &[backend(77)]).is_empty());
    let again = all.change(&[backend(9)], &[backend(9)]);
    assert!(again.is_empty(), "{again:?}");
    let gone = all.become_these(&[]);
    assert_eq!((gone.clear.len(), gone.put.len(), gone.count), (4, 0, 0));
}

#[test]
fn names_that_nft_could_not_read_fail_the_transaction() {
    for name in ["", "a b", "a\0b", "a{", &"x".repeat(300)] {
        let mut transaction = Transaction::new();
        transaction.add_chain(&Table::new(Family::Ip, "skep"), name);
        assert!(transaction.batch().is_err(), "{name:?}");
        let mut transaction = Transaction::new();
        transaction.add_table(&Table::new(Family::Ip, name));
        assert!(transaction.batch().is_err(), "{name:?}");
    }
}

proptest! {
    /// Any changes keep kernel and list the same, without gaps, and touch at most two numbers for each backend.
    #[test]
    fn the_map_follows(steps in prop::collection::vec(
        (prop::collection::vec(0u32..30, 0..8), prop::collection::vec(0u32..30, 0..8)), 1..20,
    )) {
        let (mut map, mut all) = (Map::default(), Backends::new());
        let mut wanted: HashSet<Backend> = HashSet::new();
        for (add, remove) in steps {
            let before = all.list().len();
            let change = all.change(&backends(&add), &backends(&remove));
            map.apply(&change);
            remove.iter().for_each(|number| { wanted.remove(&backend(*number)); });
            wanted.extend(backends(&add));
            prop_assert_eq!(all.list().iter().copied().collect::<HashSet<_>>(), wanted.clone());
            prop_assert_eq!(all.list().len(), wanted.len());
            for (number, backend) in (0u32..).zip(all.list()) {
                prop_assert_eq!(map.0.get(&number), Some(backend));
            }
            prop_assert!(change.put.len() <= add.len() + remove.len());
            prop_assert!(change.clear.len() <= 2 * remove.len());
            prop_assert_eq!(usize::try_from(change.before).unwrap(), before);
        }
        let taken_over = Backends::numbered(all.list());
        prop_assert_eq!(taken_over.list(), all.list());
        let kept = backends(&[1, 2, 40]);
        map.apply(&all.become_these(&kept));
        prop_assert_eq!(all.list().len(), 3);
    }
}
