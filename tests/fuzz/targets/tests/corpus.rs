//! Every target with its seed corpus, once, in the ordinary test run; and that each target has one.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use skep_fuzz_targets::{TARGETS, seeds};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.collect()
}

#[test]
fn every_target_has_a_corpus() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(targets.len(), TARGETS.len());
    assert_eq!(names(&folder("corpus")), targets);
    for name in &targets {
        assert!(!names(&folder("corpus").join(name)).is_empty(), "{name} has no seeds");
    }
}

#[test]
fn the_corpus_is_gone_through() {
    for target in TARGETS {
        let folder = folder("corpus").join(target.name);
        for name in names(&folder) {
            eprintln!("{} {name}", target.name);
            (target.run)(&fs::read(folder.join(name)).unwrap());
        }
        (target.run)(&[]);
    }
}

/// Those that are made now; and each cut off, and with a byte spoilt, here and there.
#[test]
fn fresh_seeds_are_gone_through() {
    let seeds = seeds::all();
    for target in TARGETS {
        let of_target: Vec<_> = seeds.iter().filter(|(name, ..)| *name == target.name).collect();
        assert!(!of_target.is_empty(), "{}", target.name);
        for (_, name, bytes) in of_target {
            eprintln!("{} {name}", target.name);
            (target.run)(bytes);
            for at in (0..bytes.len()).step_by((bytes.len() / 20).max(1)) {
                (target.run)(&bytes[..at]);
                let mut spoilt = bytes.clone();
                spoilt[at] ^= 0x81;
                (target.run)(&spoilt);
            }
        }
    }
}
