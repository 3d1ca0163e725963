//! A stream of uploaded pieces as something to read from.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio_stream::Stream;
use tonic::Status;

/// Reads the pieces in order.
pub(crate) struct Upload<S> {
    pieces: Pin<Box<S>>,
    rest: Vec<u8>,
    read: usize,
}

impl<S> Upload<S> {
    pub(crate) fn new(pieces: S) -> Self {
        Self { pieces: Box::pin(pieces), rest: Vec::new(), read: 0 }
    }
}

impl<S: Stream<Item = Result<Vec<u8>, Status>>> AsyncRead for Upload<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read == self.rest.len() {
            match ready!(self.pieces.as_mut().poll_next(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(piece)) => {
                    self.rest = piece;
                    self.read = 0;
                }
                Some(Err(status)) => return Poll::Ready(Err(io::Error::other(status.message().to_owned()))),
            }
        }
        let taken = buffer.remaining().min(self.rest.len() - self.read);
        buffer.put_slice(&self.rest[self.read..self.read + taken]);
        self.read += taken;
        Poll::Ready(Ok(()))
    }
}
