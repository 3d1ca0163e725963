//! The seed corpus: real messages of every kind, small. Written to `corpus/` by `examples/seeds.rs`, for the fuzzer to
//! start from; new keys and random numbers make them other bytes each time, of the same meaning.

// A seed that cannot be made is a mistake here, and nothing else.
#![allow(clippy::unwrap_used)]

mod calls;
mod identity;
mod images;
mod managers;
mod network;
mod packets;
mod requests;
mod sessions;
mod texts;
mod worker;

pub(crate) use requests::service;

/// Takes a target's seeds.
type Add<'a> = dyn FnMut(&'static str, Vec<Vec<u8>>) + 'a;

/// Everything, by target and name.
pub fn all() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut add = |target: &'static str, seeds: Vec<Vec<u8>>| {
        let numbered = seeds.into_iter().enumerate();
        all.extend(numbered.map(|(number, bytes)| (target, format!("seed{number}"), bytes)));
    };
    texts::add(&mut add);
    identity::add(&mut add);
    images::add(&mut add);
    managers::add(&mut add);
    packets::add(&mut add);
    network::add(&mut add);
    worker::add(&mut add);
    sessions::add(&mut add);
    requests::add(&mut add);
    calls::add(&mut add);
    all
}

/// Each part but the last with its length before it.
fn parts(parts: &[&[u8]]) -> Vec<u8> {
    let (last, before) = parts.split_last().unwrap();
    let mut out = Vec::new();
    for part in before {
        out.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
        out.extend(*part);
    }
    out.extend(*last);
    out
}

/// All parts with their lengths.
fn framed(list: &[Vec<u8>]) -> Vec<u8> {
    let mut list: Vec<&[u8]> = list.iter().map(Vec::as_slice).collect();
    list.push(&[]);
    parts(&list)
}

/// What a target chooses by its first byte, and the bytes for it.
fn chosen(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind], bytes].concat()
}
