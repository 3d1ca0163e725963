//! Credentials on disk: round trip, modes, cut-off renewals, damage.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::key::NodeKey;
use crate::store::{CERT_FILE, KEY_FILE, ROOT_FILE, Step, StoreError, sweep};
use crate::testing::{cluster, grant, member, now};
use crate::{Credentials, CredentialsError, Role, UnlockKey};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn renewed(ca: &crate::RootCa) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let issued = ca.issue(&key.signing_request().unwrap(), &grant(1, Role::Manager), now()).unwrap();
    Credentials::new(key, &issued.chain_pem, ca.bundle()).unwrap()
}

#[test]
fn credentials_round_trip_and_the_key_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er");
    assert!(Credentials::load(&path).unwrap_err().is_absent());
    let saved = member(&cluster(1), 1, Role::Worker);
    saved.save(&path, None, &[]).unwrap();
    let loaded = Credentials::load(&path).unwrap();
    assert_eq!(loaded.identity(), saved.identity());
    assert_eq!(loaded.chain_pem(), saved.chain_pem());
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join(KEY_FILE)), 0o600);
    let names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "no temporary file stays: {names:?}");
    Credentials::erase(&path).unwrap();
    Credentials::erase(&path).unwrap();
    assert!(Credentials::load(&path).unwrap_err().is_absent());
}

/// A renewal, and a way back after a whole change of the root, which was missed: the roots are others then.
#[test]
fn a_renewal_cut_off_at_any_file_leaves_usable_credentials() {
    let (ca, next) = (cluster(1), cluster(1));
    let seal = UnlockKey::generate();
    for (authority, seal) in [(&ca, None), (&next, None), (&ca, Some(&seal)), (&next, Some(&seal))] {
        let keys: Vec<UnlockKey> = seal.into_iter().cloned().collect();
        let (old, new) = (member(&ca, 1, Role::Worker), renewed(authority));
        let mut written = 0;
        for done in 0.. {
            let work = tempfile::tempdir().unwrap();
            old.save(work.path(), seal, &[]).unwrap();
            let steps = new.steps(work.path(), seal, &[]);
            if done > steps.len() {
                break;
            }
            steps[..done].iter().for_each(|step| step.run(work.path()).unwrap());
            let found = Credentials::unlock(work.path(), &keys).unwrap();
            let is_new = steps[..done].iter().any(|step| matches!(step, Step::Certificate(_)));
            let expected = if is_new { &new } else { &old };
            assert_eq!(found.chain_pem(), expected.chain_pem(), "after {done} files");
            written = done;

            // The next renewal keeps the key that is in use and drops what is left over.
            let third = renewed(authority);
            third.save(work.path(), seal, &[]).unwrap();
            let found = Credentials::unlock(work.path(), &keys).unwrap();
            assert_eq!(found.chain_pem(), third.chain_pem());
            assert_eq!(found.roots().certs(), third.roots().certs(), "no other root is trusted in the end");
            let keys = std::fs::read_to_string(work.path().join(KEY_FILE)).unwrap();
            assert_eq!(keys.matches("BEGIN ").count(), 1);
        }
        assert!(written >= 4, "{written} files");
    }
}

/// A folder of another swarm is no reason to fail, and none to trust it.
#[test]
fn roots_of_another_swarm_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    member(&cluster(2), 1, Role::Worker).save(dir.path(), None, &[]).unwrap();
    let own = member(&cluster(1), 1, Role::Worker);
    own.steps(dir.path(), None, &[])[0].run(dir.path()).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join(ROOT_FILE)).unwrap(), own.roots().to_pem());
    own.save(dir.path(), None, &[]).unwrap();
    assert_eq!(Credentials::load(dir.path()).unwrap().chain_pem(), own.chain_pem());
}

#[test]
fn a_leftover_temporary_file_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(format!(".{KEY_FILE}.new")), "half a k").unwrap();
    member(&cluster(1), 1, Role::Worker).save(dir.path(), None, &[]).unwrap();
    Credentials::load(dir.path()).unwrap();
}

#[test]
fn what_a_crash_leaves_of_keys_is_overwritten_and_the_key_in_use_is_not() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = |name: String| dir.path().join(name);
    let (former, next) = (file(format!(".{KEY_FILE}.old")), file(format!(".{KEY_FILE}.new")));
    let is_zeroes = |path: &Path| std::fs::read(path).unwrap().iter().all(|byte| *byte == 0);
    sweep(&dir.path().join("missing")).unwrap();
    let saved = member(&cluster(1), 1, Role::Worker);
    saved.save(dir.path(), None, &[]).unwrap();

    // Before the new file took the old one's place.
    std::fs::hard_link(dir.path().join(KEY_FILE), &former).unwrap();
    std::fs::write(&next, "a key that was never in use").unwrap();
    std::fs::hard_link(&next, elsewhere.path().join("next")).unwrap();
    sweep(dir.path()).unwrap();
    assert_eq!(Credentials::load(dir.path()).unwrap().chain_pem(), saved.chain_pem());
    assert!(!former.exists() && !next.exists() && is_zeroes(&elsewhere.path().join("next")));

    // After it, and before the old one was overwritten; the next change finds it too.
    for sweeps in [true, false] {
        std::fs::write(&former, "a key of before").unwrap();
        let second = elsewhere.path().join(format!("former-{sweeps}"));
        std::fs::hard_link(&former, &second).unwrap();
        match sweeps {
            true => sweep(dir.path()).unwrap(),
            false => saved.save(dir.path(), None, &[]).unwrap(),
        }
        assert!(!former.exists() && is_zeroes(&second));
        assert_eq!(Credentials::load(dir.path()).unwrap().chain_pem(), saved.chain_pem());
    }
    std::fs::write(&former, "a key of before").unwrap();
    std::fs::hard_link(&former, elsewhere.path().join("erased")).unwrap();
    Credentials::erase(dir.path()).unwrap();
    assert!(is_zeroes(&elsewhere.path().join("erased")));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_key_that_is_replaced_is_overwritten_where_it_lies() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ca = cluster(1);
    member(&ca, 1, Role::Worker).save(dir.path(), None, &[]).unwrap();
    let before = elsewhere.path().join("before");
    std::fs::hard_link(dir.path().join(KEY_FILE), &before).unwrap();
    renewed(&ca).save(dir.path(), None, &[]).unwrap();
    assert!(std::fs::read(&before).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn damage_is_told_apart() {
    let ca = cluster(1);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let saved = member(&ca, 1, Role::Worker);

    let reset = || saved.save(dir.path(), None, &[]).unwrap();
    reset();
    std::fs::set_permissions(file(KEY_FILE), std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Credentials::load(dir.path()), Err(StoreError::Exposed { mode: 0o640, .. })));

    reset();
    std::fs::write(file(KEY_FILE), "").unwrap();
    assert!(matches!(Credentials::load(dir.path()), Err(StoreError::Key { source: None, .. })));

    reset();
    std::fs::write(file(KEY_FILE), renewed(&ca).key().to_pem(None)).unwrap();
    let error = Credentials::load(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Credentials { source: CredentialsError::KeyMismatch, .. }));

    reset();
    std::fs::write(file(KEY_FILE), saved.key().to_pem(Some(&UnlockKey::generate()))).unwrap();
    let error = Credentials::load(dir.path()).unwrap_err();
    assert!(error.to_string().ends_with("is sealed: this manager needs its unlock key"));

    reset();
    std::fs::write(file(ROOT_FILE), cluster(2).cert().to_pem()).unwrap();
    let error = Credentials::load(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Credentials { source: CredentialsError::Chain(_), .. }));

    reset();
    let whole = std::fs::read_to_string(file(CERT_FILE)).unwrap();
    std::fs::write(file(CERT_FILE), &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(Credentials::load(dir.path()), Err(StoreError::Credentials { .. })));

    reset();
    std::fs::remove_file(file(ROOT_FILE)).unwrap();
    assert!(Credentials::load(dir.path()).unwrap_err().is_absent());
}
