//! Where blobs come from other than the own disk: the seam between the pull engine and registries or other nodes. The node
//! crate implements [`BlobSource`] for a peer (mutual TLS and a ticket); this crate does for registries. A source is never
//! trusted: the engine checks every digest.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::digest::Digest;

/// What is asked for: registries keep manifests apart from other blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobKind {
    /// A manifest or an index.
    Manifest,
    /// A config or a layer.
    Blob,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobRequest {
    /// The content wanted.
    pub digest: Digest,
    /// What it is.
    pub kind: BlobKind,
    /// Where to start, in bytes: above zero to resume. A source that cannot may start at zero and say so.
    pub offset: u64,
}

/// One answer.
pub struct BlobStream {
    /// Where the bytes start: the request's offset, or zero.
    pub offset: u64,
    /// The bytes to the end of the blob.
    pub bytes: BoxStream<'static, Result<Bytes, FetchError>>,
}

/// A registry's repository or another node.
pub trait BlobSource: Send + Sync {
    /// For messages: `registry localhost:5000`, `node worker-2`.
    fn describe(&self) -> String;

    /// Starts to read a blob. The engine bounds the wait for each piece; the source bounds the wait for the connection.
    fn fetch(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, FetchError>>;
}

/// Why a source did not give what was asked. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// It does not have it.
    #[error("{what} not found in {place}")]
    NotFound {
        /// `image "x"`, `blob sha256:…`.
        what: String,
        /// `its registry`, `node worker-2`.
        place: String,
    },
    /// Credentials are missing, wrong, or not enough.
    #[error("not authorized to pull {what}: {detail}")]
    Unauthorized {
        /// `image "x"`.
        what: String,
        /// What the source said, or what to do.
        detail: String,
    },
    /// No connection.
    #[error("{source_name} is unreachable: {reason}")]
    Unreachable {
        /// `registry localhost:5000`.
        source_name: String,
        /// The innermost reason.
        reason: String,
    },
    /// Connected, or trying to, and silent.
    #[error("{source_name} did not answer within {seconds} s")]
    Timeout {
        /// `registry localhost:5000`.
        source_name: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The connection ended in the middle.
    #[error("the connection to {source_name} broke: {reason}")]
    Interrupted {
        /// `registry localhost:5000`.
        source_name: String,
        /// The innermost reason.
        reason: String,
    },
    /// It is overloaded or broken (HTTP 429 and 5xx): may work later.
    #[error("{source_name} refused: {reason}")]
    Busy {
        /// `registry localhost:5000`.
        source_name: String,
        /// Status and text.
        reason: String,
    },
    /// It answered, but not as the protocol says.
    #[error("{source_name} gave a malformed answer: {reason}")]
    Malformed {
        /// `registry localhost:5000`.
        source_name: String,
        /// What was wrong.
        reason: String,
    },
}

impl FetchError {
    /// Whether the same request may succeed if it is made again at once.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Interrupted { .. } | Self::Busy { .. } => true,
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Malformed { .. } => false,
        }
    }
}
