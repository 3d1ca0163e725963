//! This host's private keys on its disk, and the unlock key that seals them while the swarm is autolocked.
//!
//! One for each membership; clones share it. Whoever writes a key file does it here, so that a renewal and a change of
//! unlock keys do not cross. The manager says when the unlock key changes (`KeySeals`); a worker has none.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
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
    key: Mutex<Option<UnlockKey>>,
    /// What the operator gave, or its counterpart, as long as both may be in use.
    other: Mutex<Vec<UnlockKey>>,
}

impl Sealing {
    /// `key` opens or seals what is in `dir`; `other` may open what `key` does not.
    pub(crate) fn new(dir: PathBuf, key: Option<UnlockKey>, other: Vec<UnlockKey>) -> Self {
        Self(Arc::new(Shared { dir, key: Mutex::new(key), other: Mutex::new(other) }))
    }

    fn held(&self) -> MutexGuard<'_, Option<UnlockKey>> {
        self.0.key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The unlock key, and its counterparts.
    pub(crate) fn keys(&self) -> (Option<UnlockKey>, Vec<UnlockKey>) {
        let other = self.0.other.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.held().clone(), other)
    }

    /// Writes credentials. Blocks.
    pub(crate) fn save(&self, credentials: &Credentials) -> Result<(), StoreError> {
        let key = self.held();
        credentials.save(&self.0.dir, key.as_ref())
    }

    /// The host's WireGuard key; made if there is none. Blocks.
    pub(crate) fn mesh_key(&self) -> Result<MeshKey, StoreError> {
        let key = self.held();
        MeshKey::open(&self.0.dir, key.as_ref())
    }

    /// Seals the keys with `to`, or opens them. Blocks.
    pub(crate) fn reseal_now(&self, to: Option<UnlockKey>) -> Result<(), StoreError> {
        let mut key = self.held();
        // After a change that was cut short each file may have its own.
        let mut from = self.0.other.lock().unwrap_or_else(PoisonError::into_inner).clone();
        from.extend(key.clone());
        skep_identity::reseal(&self.0.dir, &from, to.as_ref())?;
        *key = to;
        Ok(())
    }

    /// All of this host is sealed alike. Blocks.
    pub(crate) fn settle_now(&self) -> Result<(), StoreError> {
        let _key = self.held();
        skep_identity::settle(&self.0.dir)?;
        self.0.other.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// As [`Self::reseal_now`] and [`Self::settle_now`], for a host without a manager's files.
    pub(crate) async fn reseal_alone(&self, to: Option<UnlockKey>) -> anyhow::Result<()> {
        let this = self.clone();
        let resealed = tokio::task::spawn_blocking(move || {
            this.reseal_now(to)?;
            this.settle_now()
        });
        resealed.await?.context("cannot seal this host's keys as its role asks for")
    }
}

impl KeySeals for Sealing {
    fn reseal(&self, key: Option<UnlockKey>) -> BoxFuture<'static, anyhow::Result<()>> {
        let this = self.clone();
        let resealed = tokio::task::spawn_blocking(move || this.reseal_now(key));
        async move { resealed.await?.context("cannot seal this host's keys") }.boxed()
    }

    fn settle(&self) -> BoxFuture<'static, anyhow::Result<()>> {
        let this = self.clone();
        let settled = tokio::task::spawn_blocking(move || this.settle_now());
        async move { settled.await?.context("cannot remove the unlock key of before") }.boxed()
    }
}
