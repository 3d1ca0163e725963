//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use std::path::{Path, PathBuf};

use crate::key::NodeKey;
use crate::mesh::{MESH_KEY_FILE, MeshKey};
use crate::seal;
use crate::store::{self, KEY_FILE, StoreError};
use crate::unlock::UnlockKey;

/// The text of a node's key file: how many keys it has. What can be read is sealed, and opened again.
pub fn node_keys(text: &str, unlock: &UnlockKey) -> Result<usize, StoreError> {
    let read = |text: &str, seals: &[UnlockKey]| store::keys_in(text, Path::new(KEY_FILE), seals);
    let keys = read(text, std::slice::from_ref(unlock))?;
    let sealed: String = keys.iter().map(|key| key.to_pem(Some(unlock)).to_string()).collect();
    assert!(matches!(read(&sealed, &[]), Err(StoreError::Sealed { .. })), "a sealed key was read without its key");
    let points = |keys: &[NodeKey]| keys.iter().map(|key| key.public_point().to_vec()).collect::<Vec<_>>();
    let opened = read(&sealed, std::slice::from_ref(unlock)).map(|again| points(&again));
    assert_eq!(opened.ok(), Some(points(&keys)), "another key came back");
    Ok(keys.len())
}

/// The text of a host's WireGuard key: its public half. As above.
pub fn mesh_key(text: &str, unlock: &UnlockKey) -> Result<[u8; 32], StoreError> {
    let read = |text: &str, seals: &[UnlockKey]| MeshKey::in_text(text, PathBuf::from(MESH_KEY_FILE), seals);
    let key = read(text, std::slice::from_ref(unlock))?;
    let sealed = key.to_text(Some(unlock));
    assert!(matches!(read(&sealed, &[]), Err(StoreError::Sealed { .. })), "a sealed key was read without its key");
    let opened = read(&sealed, std::slice::from_ref(unlock)).map(|again| again.secret());
    assert_eq!(opened.ok(), Some(key.secret()), "another key came back");
    Ok(key.public())
}

/// The text of the file of unlock keys of which one takes the place of another: how many it has beside this one.
pub fn other_keys(text: &str, unlock: &UnlockKey) -> usize {
    seal::others_in(text, unlock).len()
}

/// The files of all kinds, open and sealed, with the number of the function above that reads them.
pub fn key_files(unlock: &UnlockKey) -> Vec<(u8, String)> {
    let Ok(key) = NodeKey::generate() else { return Vec::new() };
    let mesh = MeshKey::generate();
    let pair = seal::each_with_others(&[unlock.clone(), UnlockKey::generate()]);
    vec![
        (0, key.to_pem(None).to_string()),
        (0, [key.to_pem(Some(unlock)), key.to_pem(None)].map(|text| text.to_string()).concat()),
        (1, mesh.to_text(None).to_string()),
        (1, mesh.to_text(Some(unlock)).to_string()),
        (2, pair),
    ]
}
