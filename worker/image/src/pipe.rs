//! Carries an async byte stream to code that reads on a blocking thread. Used by loads and imports. A stream that is
//! dropped in the middle reads as broken, never as ended.

use std::io::{self, Read};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::store::{StoreError, blocking};

/// Bytes of one piece.
const PIECE: usize = 128 << 10;
/// Pieces in flight: 2 MiB.
const CHANNEL: usize = 16;

/// The blocking end.
pub(crate) struct PipeReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
    ended: bool,
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            self.current = match self.receiver.blocking_recv() {
                Some(piece) => piece?,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the sender went away")),
            };
            // An empty piece marks the end.
            self.ended = self.current.is_empty();
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Runs `work` on a blocking thread, reading what `input` gives.
pub(crate) async fn with_reader<T, E>(
    input: impl AsyncRead + Send,
    work: impl FnOnce(PipeReader) -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let reader = PipeReader { receiver, current: Bytes::new(), ended: false };
    let feed = async {
        let mut input = std::pin::pin!(input);
        loop {
            let mut piece = BytesMut::with_capacity(PIECE);
            let read = input.read_buf(&mut piece).await;
            let last = !matches!(read, Ok(1..));
            if sender.send(read.map(|_| piece.freeze())).await.is_err() || last {
                break;
            }
        }
        // The work may stop before the input ends; the input's end never stops the work.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = blocking(move || work(reader)) => outcome,
        () = feed => Err(StoreError::Worker("the input's reader ended".to_owned()).into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn everything_arrives_in_order() {
        let data: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        let expected = data.clone();
        let read = with_reader(io::Cursor::new(data), |mut reader| {
            let mut out = Vec::new();
            reader.read_to_end(&mut out).unwrap();
            Ok::<_, StoreError>(out)
        });
        assert!(read.await.unwrap() == expected);
    }

    #[tokio::test]
    async fn work_that_ends_early_does_not_wait_for_the_input() {
        let (_keep_open, silent) = tokio::io::duplex(1);
        assert_eq!(with_reader(silent, |_| Ok::<_, StoreError>(7)).await.unwrap(), 7);
    }
}
