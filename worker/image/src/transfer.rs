//! Brings one blob from a source into the store: resumed where it broke, bounded in waiting, checked in size and digest.
//! Used by the pull engine only. Hashing and disk writes happen on a blocking thread, fed over a short channel.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::digest::Digest;
use crate::manifest::MAX_DOCUMENT_BYTES;
use crate::progress::{LayerStatus, Progress};
use crate::pull::PullError;
use crate::source::{BlobKind, BlobRequest, BlobSource, FetchError};
use crate::store::{BlobError, Store, StoredBlob, blocking};

/// Pieces on their way to the disk: enough to keep it busy, at most a few megabytes.
const CHANNEL: usize = 32;
/// Attempts without a byte of progress before giving up.
const ATTEMPTS: u32 = 4;
/// Attempts for one blob in all, so that a source that gives a byte at a time comes to an end.
const ATTEMPTS_IN_ALL: u32 = 64;
/// Wait before the second attempt; doubles.
const BACKOFF: Duration = Duration::from_millis(200);
/// Bytes between two progress events.
const PROGRESS_STEP: u64 = 512 << 10;

/// How long silence is borne.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, with TLS.
    pub connect: Duration,
    /// For the first byte of an answer, and from each piece to the next.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), idle: Duration::from_secs(30) }
    }
}

/// A blob as its manifest states it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// One reading of a blob that survives broken connections: gives every byte once, in order.
struct Resuming<'a> {
    source: &'a dyn BlobSource,
    request: BlobRequest,
    idle: Duration,
    /// Failures since the last byte.
    failures: u32,
    failures_in_all: u32,
    stream: Option<futures::stream::BoxStream<'static, Result<Bytes, FetchError>>>,
    /// Bytes to drop, where the source started over.
    skip: u64,
}

impl<'a> Resuming<'a> {
    fn new(source: &'a dyn BlobSource, digest: Digest, kind: BlobKind, idle: Duration) -> Self {
        let request = BlobRequest { digest, kind, offset: 0 };
        Self { source, request, idle, failures: 0, failures_in_all: 0, stream: None, skip: 0 }
    }

    /// The next piece; `None` at the end of what the source gives.
    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            match self.step().await {
                Ok(Some(mut piece)) => {
                    let skip = usize::try_from(self.skip).unwrap_or(usize::MAX).min(piece.len());
                    let kept = piece.split_off(skip);
                    self.skip -= skip as u64;
                    if !kept.is_empty() {
                        self.failures = 0;
                        self.request.offset += kept.len() as u64;
                        return Ok(Some(kept));
                    }
                }
                Ok(None) => return Ok(None),
                Err(error) => self.failed(error).await?,
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, FetchError> {
        let idle = self.idle;
        let silent = || FetchError::Timeout { source_name: self.source.describe(), seconds: idle.as_secs() };
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let answer = timeout(idle, self.source.fetch(self.request)).await.map_err(|_| silent())??;
                self.skip = self.request.offset.checked_sub(answer.offset).ok_or_else(|| FetchError::Malformed {
                    source_name: self.source.describe(),
                    reason: format!("it started at byte {} when asked for {}", answer.offset, self.request.offset),
                })?;
                self.stream.insert(answer.bytes)
            }
        };
        match timeout(idle, stream.next()).await {
            Ok(piece) => piece.transpose(),
            Err(_) => Err(silent()),
        }
    }

    /// Waits before the next attempt, or gives the error back.
    async fn failed(&mut self, error: FetchError) -> Result<(), FetchError> {
        self.stream = None;
        self.failures += 1;
        self.failures_in_all += 1;
        // A transfer that had begun and stalled gets one new connection; a source that never spoke does not.
        let stalled = matches!(error, FetchError::Timeout { .. }) && self.request.offset > 0 && self.failures == 1;
        let hopeful = error.is_transient() || stalled;
        if !hopeful || self.failures >= ATTEMPTS || self.failures_in_all >= ATTEMPTS_IN_ALL {
            return Err(error);
        }
        tracing::debug!(source = %self.source.describe(), digest = %self.request.digest, offset = self.request.offset, %error, "fetching again");
        tokio::time::sleep(BACKOFF * 2u32.pow(self.failures - 1)).await;
        Ok(())
    }

    /// The source ended early without an error: take that as a broken connection.
    async fn ended_early(&mut self) -> Result<(), FetchError> {
        let reason = "it ended before the blob did".to_owned();
        self.failed(FetchError::Interrupted { source_name: self.source.describe(), reason }).await
    }
}

/// Fetches a blob of known size into the store.
pub(crate) async fn fetch_blob(
    store: &Store,
    source: &dyn BlobSource,
    wanted: Wanted,
    progress: &Progress,
    idle: Duration,
) -> Result<StoredBlob, PullError> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(CHANNEL);
    let writer_store = store.clone();
    let writer = tokio::spawn(blocking(move || {
        let mut writer = writer_store.blob_writer(Some((wanted.digest, wanted.size)))?;
        while let Some(piece) = receiver.blocking_recv() {
            writer.write(&piece)?;
        }
        writer.finish()
    }));
    let outcome = feed(source, wanted, progress, idle, sender).await;
    let written = match writer.await {
        Ok(written) => written,
        Err(error) => Err(BlobError::Store(crate::store::StoreError::Worker(error.to_string()))),
    };
    match (outcome, written) {
        (Ok(()), Ok(stored)) => Ok(stored),
        // A full disk or a blob that is too long stops the feeding too: the writer knows why.
        (Ok(()), Err(error)) => Err(error.into()),
        (Err(error), Err(BlobError::Truncated { .. }) | Ok(_)) => Err(error),
        (Err(_), Err(error)) => Err(error.into()),
    }
}

/// Sends the pieces of a blob to its writer. Ends well when the writer wants no more: that one tells why.
async fn feed(
    source: &dyn BlobSource,
    wanted: Wanted,
    progress: &Progress,
    idle: Duration,
    sender: mpsc::Sender<Bytes>,
) -> Result<(), PullError> {
    let mut reading = Resuming::new(source, wanted.digest, BlobKind::Blob, idle);
    let mut told = 0;
    progress.tell(wanted.digest, LayerStatus::Downloading, 0, wanted.size);
    loop {
        let piece = reading.next().await?;
        let received = reading.request.offset;
        match piece {
            Some(piece) => {
                if sender.send(piece).await.is_err() || received > wanted.size {
                    return Ok(());
                }
            }
            None if received >= wanted.size => return Ok(()),
            None => {
                let truncated = BlobError::Truncated { digest: wanted.digest, got: received, size: wanted.size };
                reading.ended_early().await.map_err(|_| PullError::from(truncated))?;
            }
        }
        if received - told >= PROGRESS_STEP || received == wanted.size {
            told = received;
            progress.tell(wanted.digest, LayerStatus::Downloading, received, wanted.size);
        }
    }
}

/// Fetches a manifest, index or config into memory, at most [`MAX_DOCUMENT_BYTES`], and checks its digest.
pub(crate) async fn fetch_document(
    source: &dyn BlobSource,
    digest: Digest,
    kind: BlobKind,
    idle: Duration,
) -> Result<Vec<u8>, PullError> {
    let mut reading = Resuming::new(source, digest, kind, idle);
    let mut bytes = Vec::new();
    while let Some(piece) = reading.next().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(PullError::DocumentTooLarge { digest });
        }
    }
    match Digest::of(&bytes) {
        actual if actual == digest => Ok(bytes),
        actual => Err(BlobError::WrongDigest { expected: digest, actual }.into()),
    }
}
