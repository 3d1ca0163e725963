//! Serves this node's image blobs to other nodes ([`Peer`]), against tickets that managers signed.
//!
//! Mounted by the node on its port for other nodes, behind mutual TLS. It serves nothing but blobs of the ticket's image,
//! and never fetches or writes anything.
//!
//! A node that asks and does not read holds up itself alone: one node has a part of the streams, and what is not read for a
//! while gives back the node's stream and the image, though not the reader's own part before it has hung up. Whoever waits
//! for its turn is answered at once, and told again and again that it is still to come.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::{Pin as StdPin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use skep_image::{Digest, Store, StoreError};
use skep_proto::id::NodeId;
use skep_proto::v1::peer_server::Peer;
use skep_proto::v1::{BlobChunk, FetchBlobRequest};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::{Request, Response, Status};

/// Bytes in one chunk.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Blobs sent at the same time: enough for a network, few enough for a disk.
const MAX_STREAMS: usize = 16;
/// Of these for one node: nearly three images at once with all the layers that are fetched together, and as many for others.
const MAX_OF_BEARER: usize = MAX_STREAMS / 2;
/// How long a reader may take for one chunk.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// How often in that time it hears that its turn is still to come: it bears no longer silence either.
const TOLD: u32 = 6;

/// What a ticket is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The image's digest.
    pub image: String,
    /// The node that it was made out to, and that shows it.
    pub bearer: NodeId,
}

/// Judges tickets; given by the node, which has the roots.
pub trait TicketCheck: Send + Sync + 'static {
    /// The image that `ticket` lets the caller of `request` fetch, or why not.
    fn image(&self, request: &Request<()>, ticket: &[u8]) -> Result<Grant, Status>;
}

/// What is asked for, once it is granted.
struct Asked {
    bearer: NodeId,
    image: Digest,
    blob: Digest,
    offset: u64,
}

/// The service.
#[derive(Clone)]
pub struct PeerService {
    store: Store,
    tickets: Arc<dyn TicketCheck>,
    streams: Arc<Semaphore>,
    /// Those of each node that has some, or waits for one.
    bearers: Arc<Mutex<HashMap<NodeId, Arc<Semaphore>>>>,
    read_within: Duration,
}

impl std::fmt::Debug for PeerService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerService").finish_non_exhaustive()
    }
}

impl PeerService {
    /// Serves from `store` whoever `tickets` accepts.
    pub fn new(store: Store, tickets: Arc<dyn TicketCheck>) -> Self {
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        Self { store, tickets, streams, bearers: Arc::default(), read_within: READ_WITHIN }
    }

    /// With less patience for readers.
    #[cfg(test)]
    pub(crate) fn patient_for(self, read_within: Duration) -> Self {
        Self { read_within, ..self }
    }

    /// How many streams a node may still have, and all nodes together.
    #[cfg(test)]
    pub(crate) fn free(&self, bearer: NodeId) -> (usize, usize) {
        let bearers = self.bearers.lock().unwrap_or_else(PoisonError::into_inner);
        let own = bearers.get(&bearer).map_or(MAX_OF_BEARER, |own| own.available_permits());
        (own, self.streams.available_permits())
    }

    /// A stream of the node's own part.
    async fn turn(&self, bearer: NodeId) -> Result<OwnedSemaphorePermit, Status> {
        let own = {
            let mut bearers = self.bearers.lock().unwrap_or_else(PoisonError::into_inner);
            // Permits, and those who wait for one, hold theirs.
            bearers.retain(|_, own| Arc::strong_count(own) > 1);
            let own = bearers.entry(bearer).or_insert_with(|| Arc::new(Semaphore::new(MAX_OF_BEARER)));
            Arc::clone(own)
        };
        permit(own).await
    }

    /// A blob's size, and its file from there on.
    async fn open(&self, blob: &Digest, offset: u64) -> Result<(u64, File), Status> {
        let (size_bytes, mut file) = self.store.open_blob(blob).await.map_err(|error| match error {
            StoreError::NoBlob(_) => Status::not_found(error.to_string()),
            other => Status::internal(other.to_string()),
        })?;
        if offset > size_bytes {
            return Err(Status::out_of_range(format!("the blob has {size_bytes} bytes")));
        }
        file.seek(std::io::SeekFrom::Start(offset)).await.map_err(unreadable)?;
        Ok((size_bytes, file))
    }

    /// Sends a blob when its turn has come, and ends with its reader.
    async fn serve(self, asked: Asked, chunks: Chunks, hung_up: oneshot::Receiver<Infallible>) {
        let turns = async {
            let own = self.turn(asked.bearer).await?;
            Ok((own, permit(Arc::clone(&self.streams)).await?))
        };
        let Some(turns) = waiting(turns, &chunks, self.read_within / TOLD).await else { return };
        match self.send_in_turn(turns, &asked, &chunks).await {
            Ok(_own) => {
                drop(chunks);
                // Who keeps streams open without reading them has no others for them.
                let _ = hung_up.await;
            }
            Err(status) => drop(chunks.send_timeout(Err(status), self.read_within).await),
        }
    }

    /// Gives back the reader's own part of the streams.
    async fn send_in_turn(
        &self,
        turns: Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), Status>,
        asked: &Asked,
        chunks: &Chunks,
    ) -> Result<OwnedSemaphorePermit, Status> {
        let (own, _stream) = turns?;
        // Not before: whoever waits must not keep an image here. One that went meanwhile is not found.
        let _pin = self.store.pin(&asked.image);
        let (size_bytes, file) = self.open(&asked.blob, asked.offset).await?;
        send(file, size_bytes, chunks, self.read_within).await;
        Ok(own)
    }
}

async fn permit(streams: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    streams.acquire_owned().await.map_err(|_| Status::unavailable("the node is shutting down"))
}

/// Where an answer's chunks go.
type Chunks = mpsc::Sender<Result<BlobChunk, Status>>;

#[tonic::async_trait]
impl Peer for PeerService {
    type FetchBlobStream = StdPin<Box<dyn Stream<Item = Result<BlobChunk, Status>> + Send>>;

    async fn fetch_blob(&self, request: Request<FetchBlobRequest>) -> Result<Response<Self::FetchBlobStream>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let caller = Request::from_parts(metadata, extensions, ());
        let Grant { image, bearer } = self.tickets.image(&caller, &message.ticket)?;
        let image = digest(&image)?;
        let blob = digest(&message.digest)?;
        let closure = self
            .store
            .image_closure(&image)
            .ok_or_else(|| Status::not_found(format!("image {image} is not on this node")))?;
        if !closure.contains(&blob) {
            return Err(Status::permission_denied(format!("{blob} is not part of the ticket's image {image}")));
        }
        let (size_bytes, _) = self.open(&blob, message.offset).await?;
        let (sender, chunks) = mpsc::channel(1);
        let (reader, hung_up) = oneshot::channel();
        let asked = Asked { bearer, image, blob, offset: message.offset };
        tokio::spawn(self.clone().serve(asked, sender, hung_up));
        Ok(Response::new(Box::pin(answer(chunks, size_bytes - message.offset, reader))))
    }
}

/// Waits, and lets the reader hear of it. `None`: it has hung up.
async fn waiting<T>(turn: impl Future<Output = T>, chunks: &Chunks, told_every: Duration) -> Option<T> {
    let mut turn = pin!(turn);
    loop {
        tokio::select! {
            biased;
            done = turn.as_mut() => return Some(done),
            () = chunks.closed() => return None,
            () = tokio::time::sleep(told_every) => {
                // One that it has not read yet says the same.
                let _ = chunks.try_send(Ok(BlobChunk::default()));
            }
        }
    }
}

/// Reads a file from where it is into chunks, until its end or until nobody takes them.
async fn send(mut file: File, size_bytes: u64, chunks: &Chunks, read_within: Duration) {
    let mut is_first = true;
    loop {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        let read = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data).await;
        let chunk = match read {
            Ok(0) if !is_first => return,
            Ok(_) => Ok(BlobChunk { size_bytes: if is_first { size_bytes } else { 0 }, data }),
            Err(error) => Err(unreadable(error)),
        };
        let is_last = chunk.is_err();
        is_first = false;
        if chunks.send_timeout(chunk, read_within).await.is_err() || is_last {
            return;
        }
    }
}

/// The chunks as they come, and an error where they end too soon: `missing` bytes are to come. `reader` goes with the answer.
fn answer(
    chunks: mpsc::Receiver<Result<BlobChunk, Status>>,
    missing: u64,
    reader: oneshot::Sender<Infallible>,
) -> impl Stream<Item = Result<BlobChunk, Status>> + Send {
    futures::stream::try_unfold((chunks, missing, reader), |(mut chunks, missing, reader)| async move {
        match chunks.recv().await.transpose()? {
            Some(chunk) => {
                let missing = missing.saturating_sub(chunk.data.len() as u64);
                Ok(Some((chunk, (chunks, missing, reader))))
            }
            None if missing == 0 => Ok(None),
            None => Err(Status::aborted("the blob was not read for too long: ask for the rest again")),
        }
    })
}

fn unreadable(error: std::io::Error) -> Status {
    Status::internal(format!("cannot read the blob: {error}"))
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|_| Status::invalid_argument(format!("{text:?} is not a digest")))
}
