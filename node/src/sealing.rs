//! This host's private keys on its disk, and the unlock key that seals them while the swarm is autolocked.
//!
//! One for each membership; clones share it. Whoever writes a key file does it here, so that a renewal and a change of
//! unlock keys do not cross. The manager that runs says when the unlock key changes ([`Sealing::for_manager`]); a worker has
//! none.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use skep_identity::{Credentials, MeshKey, StoreError, UnlockKey};
use skep_manager::KeySeals;

/// See the module.
#[derive(Clone)]
pub(crate) struct Sealing(Arc<Shared>);

struct Shared {
    /// Folder of the credentials.
    dir: PathBuf,
    /// Held while key files are written.
    state: Mutex<Keys>,
}

struct Keys {
    key: Option<UnlockKey>,
    /// What the operator gave, or its counterparts, as long as several may be in use.
    other: Vec<UnlockKey>,
    /// Counts the managers that ran here: only the newest may seal, and none after the seat was given up.
    manager: u64,
}

impl Keys {
    /// Seals the keys in the folder with `to`, or opens them.
    fn reseal(&mut self, shared: &Shared, to: Option<UnlockKey>) -> Result<(), StoreError> {
        // After a change that was cut short each file may have its own.
        let mut from = self.other.clone();
        from.extend(self.key.clone());
        if let Err(error) = skep_identity::reseal(&shared.dir, &from, to.as_ref()) {
            // Some of the files may have it already: whoever replaces them meanwhile has to read them.
            self.other.extend(to.filter(|to| !self.other.contains(to)));
            return Err(error);
        }
        self.key = to;
        Ok(())
    }

    /// All of this host is sealed alike.
    fn settle(&mut self, shared: &Shared) -> Result<(), StoreError> {
        skep_identity::settle(&shared.dir)?;
        self.other.clear();
        Ok(())
    }
}

impl Sealing {
    /// `key` opens or seals what is in `dir`; `other` may open what `key` does not.
    pub(crate) fn new(dir: PathBuf, key: Option<UnlockKey>, other: Vec<UnlockKey>) -> Self {
        Self(Arc::new(Shared { dir, state: Mutex::new(Keys { key, other, manager: 0 }) }))
    }

    fn held(&self) -> MutexGuard<'_, Keys> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The unlock key, and its counterparts.
    pub(crate) fn keys(&self) -> (Option<UnlockKey>, Vec<UnlockKey>) {
        let keys = self.held();
        (keys.key.clone(), keys.other.clone())
    }

    /// Writes credentials. Blocks.
    pub(crate) fn save(&self, credentials: &Credentials) -> Result<(), StoreError> {
        let keys = self.held();
        credentials.save(&self.0.dir, keys.key.as_ref(), &keys.other)
    }

    /// The host's WireGuard key; made if there is none. Blocks.
    pub(crate) fn mesh_key(&self) -> Result<MeshKey, StoreError> {
        let keys = self.held();
        MeshKey::open(&self.0.dir, keys.key.as_ref(), &keys.other)
    }

    /// Seals the keys with `to`, or opens them, while no manager runs here. What one that ran before still wanted is refused.
    pub(crate) async fn reseal_alone(&self, to: Option<UnlockKey>) -> anyhow::Result<()> {
        let this = self.clone();
        let resealed = tokio::task::spawn_blocking(move || {
            let mut keys = this.held();
            keys.manager += 1;
            keys.reseal(&this.0, to)?;
            keys.settle(&this.0)
        });
        resealed.await?.context("cannot seal this host's keys as its role asks for")
    }

    /// For the manager that starts now.
    pub(crate) fn for_manager(&self) -> ManagerSealing {
        let mut keys = self.held();
        keys.manager += 1;
        ManagerSealing { sealing: self.clone(), manager: keys.manager }
    }
}

/// What one manager may do: nothing any more once another has started or the seat was given up. Its file work may be under
/// way when it is stopped.
#[derive(Clone)]
pub(crate) struct ManagerSealing {
    sealing: Sealing,
    manager: u64,
}

impl ManagerSealing {
    fn run(
        &self,
        work: impl FnOnce(&mut Keys, &Shared) -> Result<(), StoreError> + Send + 'static,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut keys = this.sealing.held();
            if keys.manager != this.manager {
                bail!("this manager has stopped");
            }
            work(&mut keys, &this.sealing.0).map_err(anyhow::Error::new)
        });
        async move { done.await? }
    }
}

impl KeySeals for ManagerSealing {
    fn reseal(&self, key: Option<UnlockKey>) -> BoxFuture<'static, anyhow::Result<()>> {
        let resealed = self.run(move |keys, shared| keys.reseal(shared, key));
        async move { resealed.await.context("cannot seal this host's keys") }.boxed()
    }

    fn settle(&self) -> BoxFuture<'static, anyhow::Result<()>> {
        let settled = self.run(Keys::settle);
        async move { settled.await.context("cannot remove the unlock key of before") }.boxed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, SystemTime};

    use skep_identity::{NodeGrant, NodeKey, Role, RootBundle, RootCa};
    use skep_proto::id::{ClusterId, NodeId};

    use super::*;

    fn credentials() -> Credentials {
        let (now, key) = (SystemTime::now(), NodeKey::generate().unwrap());
        let authority = RootCa::generate(ClusterId::new(1), now).unwrap();
        let grant = NodeGrant { node_id: NodeId::new(1), role: Role::Manager, validity: Duration::from_secs(3600) };
        let issued = authority.issue(&key.signing_request().unwrap(), &grant, now).unwrap();
        Credentials::new(key, &issued.chain_pem, RootBundle::from(authority.cert().clone())).unwrap()
    }

    #[tokio::test]
    async fn a_renewal_after_a_change_that_failed_half_way_loses_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let (key, other) = (UnlockKey::generate(), UnlockKey::generate());
        let sealing = Sealing::new(dir.path().to_owned(), None, Vec::new());
        sealing.save(&credentials()).unwrap();
        // The second file is in the way.
        MeshKey::open(dir.path(), Some(&other), &[]).unwrap();
        assert!(sealing.for_manager().reseal(Some(key.clone())).await.is_err());
        assert!(Credentials::unlock(dir.path(), std::slice::from_ref(&key)).is_ok());
        // Cut short before the certificate is replaced: the old one needs its key.
        let [crt, roots] = [skep_identity::CERT_FILE, skep_identity::ROOT_FILE].map(|name| dir.path().join(name));
        let before = [&crt, &roots].map(|path| std::fs::read(path).unwrap());
        std::fs::remove_file(&crt).unwrap();
        std::fs::create_dir(&crt).unwrap();
        assert!(sealing.save(&credentials()).is_err(), "it was to be cut short");
        std::fs::remove_dir(&crt).unwrap();
        for (path, content) in [&crt, &roots].into_iter().zip(before) {
            std::fs::write(path, content).unwrap();
        }
        Credentials::load(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn only_the_manager_that_runs_seals() {
        let dir = tempfile::tempdir().unwrap();
        let key = UnlockKey::generate();
        let sealing = Sealing::new(dir.path().to_owned(), None, Vec::new());
        sealing.save(&credentials()).unwrap();
        let public = sealing.mesh_key().unwrap().public();
        let is_open = || Credentials::load(dir.path()).is_ok();
        let former = sealing.for_manager();
        let manager = sealing.for_manager();
        assert!(former.reseal(Some(key.clone())).await.is_err() && is_open());
        manager.reseal(Some(key.clone())).await.unwrap();
        manager.settle().await.unwrap();
        assert!(!is_open());
        assert_eq!(sealing.keys(), (Some(key.clone()), Vec::new()));
        assert_eq!(sealing.mesh_key().unwrap().public(), public);
        // The seat is given up, and what the manager began comes late.
        sealing.reseal_alone(None).await.unwrap();
        let late = manager.reseal(Some(key)).await.unwrap_err();
        assert!(late.root_cause().to_string().contains("has stopped") && is_open(), "{late:#}");
        assert!(manager.settle().await.is_err());
    }
}
