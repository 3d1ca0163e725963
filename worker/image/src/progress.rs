//! Progress of pulls, loads and imports, layer by layer, for whoever shows it. Used by the command line through the daemon.

use std::sync::Arc;

use crate::digest::Digest;

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerStatus {
    /// Its turn has not come.
    Waiting,
    /// Bytes arrive: `current` of `total`.
    Downloading,
    /// Another pull is fetching or unpacking the same layer.
    Shared,
    /// Complete and checked; being unpacked, or waiting for that.
    Unpacking,
    /// Unpacked.
    Done,
    /// It was here already.
    Held,
}

/// One step forward of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgressEvent {
    /// The layer's blob digest.
    pub layer: Digest,
    /// What happens.
    pub status: LayerStatus,
    /// Bytes of the compressed layer here so far.
    pub current: u64,
    /// Bytes of the compressed layer.
    pub total: u64,
}

/// Receives events; called on the pulling task, so it must not block.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(ProgressEvent) + Send + Sync>>);

impl Progress {
    /// Nobody looks.
    pub fn none() -> Self {
        Self(None)
    }

    /// Calls `receiver` for each event.
    pub fn new(receiver: impl Fn(ProgressEvent) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(receiver)))
    }

    pub(crate) fn tell(&self, layer: Digest, status: LayerStatus, current: u64, total: u64) {
        if let Some(receiver) = &self.0 {
            receiver(ProgressEvent { layer, status, current, total });
        }
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(receiver)" } else { "Progress(none)" })
    }
}
