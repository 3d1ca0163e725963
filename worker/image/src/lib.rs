//! skep's images: references, registries, archives, the content-addressed store and unpacked layers.
//!
//! The worker's executor and agent call [`Images`]; the managers call [`Registry::resolve`] when a service is made; nodes
//! serve each other with [`Store::open_blob`]. Mounting layers is the runtime's job. This crate never trusts a byte whose
//! digest it has not checked, and never lets a name stand for a digest: that is the managers' (DESIGN.md, section 5).

pub mod change;
pub mod config;
pub mod digest;
mod flight;
#[doc(hidden)]
pub mod fuzzing;
pub mod gc;
mod images;
pub mod import;
pub mod layer;
pub mod load;
pub mod manifest;
mod pipe;
pub mod platform;
mod progress;
mod pull;
pub mod reference;
pub mod registry;
pub mod source;
pub mod store;
mod transfer;

pub use config::{Healthcheck, ImageConfig, RunConfig};
pub use digest::Digest;
pub use gc::{Policy, RemoveError, Removed};
pub use images::{EnsureError, Held, Images, Wish, chain};
pub use import::ImportOptions;
pub use load::LoadError;
pub use platform::Platform;
pub use progress::{LayerStatus, Progress, ProgressEvent};
pub use pull::PullError;
pub use reference::Reference;
pub use registry::{Registry, RegistryAuth, RegistryConfig, Resolved};
pub use source::{BlobKind, BlobRequest, BlobSource, BlobStream, FetchError};
pub use store::{ImageRecord, LayerRecord, Pin, ResolvedImage, Store, StoreError, StoreOptions};
pub use transfer::Timeouts;
