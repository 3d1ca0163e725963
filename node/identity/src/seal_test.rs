//! Keys on disk under autolock: sealed, sealed anew, open again; cut off in between; and nothing left of what was open.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::seal::{PAIR_FILE, other_keys, reseal, settle};
use crate::store::{KEY_FILE, StoreError};
use crate::testing::{cluster, grant, member, now};
use crate::{Credentials, MESH_KEY_FILE, MeshKey, NodeKey, Role, UnlockKey};

/// Whether any file of `dir` holds these bytes: plain, in base64 (the middle of a longer text included) or in hex.
fn is_found(dir: &Path, secret: &[u8]) -> bool {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![secret.to_vec(), hex.clone().into_bytes(), hex.to_uppercase().into_bytes()];
    for skip in 0..3 {
        // Whole groups of three, as they stand in a longer text.
        let whole = &secret[skip..];
        forms.push(STANDARD.encode(&whole[..whole.len() / 3 * 3]).into_bytes());
    }
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let mut text = std::fs::read(entry.unwrap().path()).unwrap();
        let found = |text: &[u8], form: &Vec<u8>| text.windows(form.len()).any(|window| window == form.as_slice());
        let broken = forms.iter().any(|form| found(&text, form));
        text.retain(|byte| *byte != b'\n');
        broken || forms.iter().any(|form| found(&text, form))
    })
}

fn only(key: &UnlockKey) -> &[UnlockKey] {
    std::slice::from_ref(key)
}

fn secret_of(credentials: &Credentials) -> Vec<u8> {
    // The private number in PKCS#8 (RFC 5915): 32 bytes from 36 on.
    credentials.key().pair().serialized_der()[36..68].to_vec()
}

#[test]
fn sealed_keys_open_with_their_key_only_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Every call makes another authority.
    let ca = cluster(1);
    let credentials = member(&ca, 1, Role::Manager);
    credentials.save(dir, None, &[]).unwrap();
    let mesh = MeshKey::open(dir, None, &[]).unwrap();
    assert!(is_found(dir, &secret_of(&credentials)) && is_found(dir, &mesh.secret()), "the search can find them");

    let (first, second) = (UnlockKey::generate(), UnlockKey::generate());
    reseal(dir, &[], Some(&first)).unwrap();
    settle(dir).unwrap();
    assert!(!is_found(dir, &secret_of(&credentials)) && !is_found(dir, &mesh.secret()));
    assert!(matches!(Credentials::load(dir), Err(StoreError::Sealed { .. })));
    assert!(matches!(MeshKey::open(dir, None, &[]), Err(StoreError::Sealed { .. })));
    let wrong = Credentials::unlock(dir, only(&second)).unwrap_err();
    assert!(matches!(wrong, StoreError::WrongKey { .. }), "{wrong}");
    assert!(matches!(MeshKey::open(dir, Some(&second), &[]), Err(StoreError::WrongKey { .. })));
    assert_eq!(Credentials::whose(dir).unwrap().node_id, credentials.node_id());
    let loaded = Credentials::unlock(dir, &[second.clone(), first.clone()]).unwrap();
    assert_eq!(loaded.chain_pem(), credentials.chain_pem());
    assert_eq!(MeshKey::open(dir, Some(&first), &[]).unwrap().secret(), mesh.secret());

    // A renewal writes a sealed key.
    let key = NodeKey::generate().unwrap();
    let issued = ca.issue(&key.signing_request().unwrap(), &grant(1, Role::Manager), now()).unwrap();
    let renewed = Credentials::new(key, &issued.chain_pem, ca.bundle()).unwrap();
    renewed.save(dir, Some(&first), &[]).unwrap();
    assert!(!is_found(dir, &secret_of(&renewed)));
    assert_eq!(Credentials::unlock(dir, only(&first)).unwrap().chain_pem(), renewed.chain_pem());

    reseal(dir, only(&first), Some(&second)).unwrap();
    settle(dir).unwrap();
    assert!(!is_found(dir, second.expose()) && !dir.join(PAIR_FILE).exists());
    Credentials::unlock(dir, only(&second)).unwrap();
    assert!(Credentials::unlock(dir, &[first]).is_err());
    reseal(dir, only(&second), None).unwrap();
    assert_eq!(Credentials::load(dir).unwrap().chain_pem(), renewed.chain_pem());
    assert_eq!(MeshKey::open(dir, None, &[]).unwrap().secret(), mesh.secret());
    Credentials::erase(dir).unwrap();
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
}

#[test]
fn opening_that_is_cut_off_still_asks_for_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let key = UnlockKey::generate();
    let credentials = member(&cluster(1), 1, Role::Manager);
    credentials.save(dir, Some(&key), &[]).unwrap();
    // The WireGuard key cannot be opened: with the node's key open, nobody would ask for what opens it.
    MeshKey::open(dir, Some(&UnlockKey::generate()), &[]).unwrap();
    assert!(reseal(dir, only(&key), None).is_err());
    assert!(matches!(Credentials::load(dir), Err(StoreError::Sealed { .. })));
    std::fs::remove_file(dir.join(MESH_KEY_FILE)).unwrap();
    reseal(dir, only(&key), None).unwrap();
    Credentials::load(dir).unwrap();
}

#[test]
fn a_change_of_keys_that_is_cut_off_opens_with_either() {
    let (dir, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let credentials = member(&cluster(1), 1, Role::Manager);
    let (first, second) = (UnlockKey::generate(), UnlockKey::generate());
    credentials.save(dir.path(), Some(&first), &[]).unwrap();
    let mesh = MeshKey::open(dir.path(), Some(&first), &[]).unwrap();
    let copy = |name: &str, from: &Path| std::fs::copy(from.join(name), work.path().join(name)).unwrap();
    for name in ["node.crt", "root.crt", KEY_FILE, MESH_KEY_FILE] {
        copy(name, dir.path());
    }
    assert_eq!(other_keys(dir.path(), &first).unwrap(), []);
    reseal(dir.path(), only(&first), Some(&second)).unwrap();
    // After each file that `reseal` writes.
    for name in [PAIR_FILE, KEY_FILE, MESH_KEY_FILE] {
        copy(name, dir.path());
        for (given, other) in [(&first, &second), (&second, &first)] {
            assert_eq!(other_keys(work.path(), given).unwrap(), only(other), "after {name}");
            let both = [given.clone(), other.clone()];
            Credentials::unlock(work.path(), &both).unwrap();
            assert_eq!(MeshKey::read(work.path(), &both).unwrap().secret(), mesh.secret());
        }
        assert_eq!(other_keys(work.path(), &UnlockKey::generate()).unwrap(), []);
    }
    assert!(!is_found(work.path(), first.expose()) && !is_found(work.path(), second.expose()));
    // The key file is sealed with the second already, and the change did not go on.
    assert!(MeshKey::open(work.path(), Some(&first), &[]).is_err());
    assert_eq!(MeshKey::open(work.path(), Some(&first), only(&second)).unwrap().secret(), mesh.secret());
    // A third one takes over before the second is everywhere.
    let third = UnlockKey::generate();
    reseal(work.path(), &[first.clone(), second.clone()], Some(&third)).unwrap();
    assert_eq!(other_keys(work.path(), &third).unwrap(), [first.clone(), second.clone()]);
    // Cut off at once: each of the three is enough.
    copy(KEY_FILE, dir.path());
    assert_eq!(other_keys(work.path(), &first).unwrap(), [third.clone(), second.clone()]);
    assert_eq!(other_keys(work.path(), &second).unwrap(), [third.clone(), first.clone()]);
    Credentials::unlock(work.path(), &[first.clone(), third.clone(), second.clone()]).unwrap();
    reseal(work.path(), &[third, second.clone()], Some(&first)).unwrap();
    // Going on, either way.
    reseal(work.path(), only(&first), Some(&second)).unwrap();
    settle(work.path()).unwrap();
    Credentials::unlock(work.path(), &[second]).unwrap();
}
