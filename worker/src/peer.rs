//! Serves this node's image blobs to other nodes ([`Peer`]), against tickets that managers signed.
//!
//! Mounted by the node on its port for other nodes, behind mutual TLS. It serves nothing but blobs of the ticket's image,
//! and never fetches or writes anything.

use std::sync::Arc;

use futures::Stream;
use skep_image::{Digest, Store, StoreError};
use skep_proto::v1::peer_server::Peer;
use skep_proto::v1::{BlobChunk, FetchBlobRequest};
use std::pin::Pin as StdPin;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// Bytes in one chunk.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Blobs sent at the same time: enough for a network, few enough for a disk.
const MAX_STREAMS: usize = 16;

/// Judges tickets; given by the node, which has the roots.
pub trait TicketCheck: Send + Sync + 'static {
    /// The digest of the image that `ticket` lets the caller of `request` fetch, or why not.
    fn image(&self, request: &Request<()>, ticket: &[u8]) -> Result<String, Status>;
}

/// The service.
#[derive(Clone)]
pub struct PeerService {
    store: Store,
    tickets: Arc<dyn TicketCheck>,
    streams: Arc<Semaphore>,
}

impl std::fmt::Debug for PeerService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerService").finish_non_exhaustive()
    }
}

impl PeerService {
    /// Serves from `store` whoever `tickets` accepts.
    pub fn new(store: Store, tickets: Arc<dyn TicketCheck>) -> Self {
        Self { store, tickets, streams: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }
}

/// The answer's chunks.
type Chunks = StdPin<Box<dyn Stream<Item = Result<BlobChunk, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for PeerService {
    type FetchBlobStream = Chunks;

    async fn fetch_blob(&self, request: Request<FetchBlobRequest>) -> Result<Response<Self::FetchBlobStream>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let caller = Request::from_parts(metadata, extensions, ());
        let image = digest(&self.tickets.image(&caller, &message.ticket)?)?;
        let blob = digest(&message.digest)?;
        let pin = self.store.pin(&image);
        let closure = self
            .store
            .image_closure(&image)
            .ok_or_else(|| Status::not_found(format!("image {image} is not on this node")))?;
        if !closure.contains(&blob) {
            return Err(Status::permission_denied(format!("{blob} is not part of the ticket's image {image}")));
        }
        let permit = Arc::clone(&self.streams)
            .acquire_owned()
            .await
            .map_err(|_| Status::unavailable("the node is shutting down"))?;
        let (size_bytes, mut file) = self.store.open_blob(&blob).await.map_err(|error| match error {
            StoreError::NoBlob(_) => Status::not_found(error.to_string()),
            other => Status::internal(other.to_string()),
        })?;
        if message.offset > size_bytes {
            return Err(Status::out_of_range(format!("the blob has {size_bytes} bytes")));
        }
        let failed = |error: std::io::Error| Status::internal(format!("cannot read the blob: {error}"));
        file.seek(std::io::SeekFrom::Start(message.offset)).await.map_err(failed)?;
        let first = (file, size_bytes, true, (pin, permit));
        let chunks = futures::stream::try_unfold(first, move |(mut file, size, first, guards)| async move {
            let mut data = Vec::with_capacity(CHUNK_BYTES);
            (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data).await.map_err(failed)?;
            if data.is_empty() && !first {
                return Ok(None);
            }
            let chunk = BlobChunk { size_bytes: if first { size } else { 0 }, data };
            Ok(Some((chunk, (file, size, false, guards))))
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|_| Status::invalid_argument(format!("{text:?} is not a digest")))
}
