//! An admitted TLS connection. Made by `incoming.rs` and `outgoing.rs`; ends when dropped, or when the deny list says so.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::deny::Admission;
use crate::transport::refusal::explain;
use crate::transport::{Caller, ConnectionInfo};

/// Length of what a caller sends first in HTTP/2 (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;

/// A connection accepted by [`crate::transport::incoming`].
#[derive(Debug)]
pub struct ServerConnection {
    stream: Guarded<tokio_rustls::server::TlsStream<TcpStream>>,
    info: ConnectionInfo,
}

impl ServerConnection {
    pub(crate) fn new(
        stream: tokio_rustls::server::TlsStream<TcpStream>,
        admission: Admission,
        info: ConnectionInfo,
        preface_timeout: Duration,
    ) -> Self {
        let silence = Some(Silence { missing: PREFACE_BYTES, end: Box::pin(sleep(preface_timeout)) });
        Self { stream: Guarded { stream, admission: Some(admission), silence }, info }
    }

    /// Who is at the other end.
    pub fn caller(&self) -> &Caller {
        &self.info.caller
    }
}

impl Connected for ServerConnection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

/// A connection made by [`crate::transport::connect_stream`].
#[derive(Debug)]
pub struct ClientConnection {
    stream: Guarded<tokio_rustls::client::TlsStream<TcpStream>>,
}

impl ClientConnection {
    /// `admission` is `None` while joining.
    pub(crate) fn new(stream: tokio_rustls::client::TlsStream<TcpStream>, admission: Option<Admission>) -> Self {
        Self { stream: Guarded { stream, admission, silence: None } }
    }
}

/// A stream that fails once its admission is withdrawn.
#[derive(Debug)]
struct Guarded<S> {
    stream: S,
    admission: Option<Admission>,
    /// Of a caller that does not speak HTTP/2 yet.
    silence: Option<Silence>,
}

/// HTTP/2's keepalive asks only callers that have begun to speak it: before, nothing else would ever end a connection.
#[derive(Debug)]
struct Silence {
    /// Bytes of the preface that are to come.
    missing: usize,
    end: Pin<Box<Sleep>>,
}

impl<S> Guarded<S> {
    /// Fails once the caller was silent for too long. What has come already is read first, so a busy daemon loses nobody.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Some(silence) = &mut self.silence else { return Poll::Pending };
        let over = |()| Err(io::Error::new(io::ErrorKind::TimedOut, "the caller did not begin to speak HTTP/2"));
        silence.end.as_mut().poll(cx).map(over)
    }

    fn heard(&mut self, bytes: usize) {
        if let Some(silence) = &mut self.silence {
            silence.missing = silence.missing.saturating_sub(bytes);
        }
        self.silence.take_if(|silence| silence.missing == 0);
    }

    fn check_reader(&self, cx: &Context<'_>) -> io::Result<()> {
        match &self.admission {
            Some(admission) if admission.closer().check_reader(cx.waker()) => Err(closed()),
            _ => Ok(()),
        }
    }

    fn check_writer(&self, cx: &Context<'_>) -> io::Result<()> {
        match &self.admission {
            Some(admission) if admission.closer().check_writer(cx.waker()) => Err(closed()),
            _ => Ok(()),
        }
    }
}

fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the connection was closed: its peer is admitted no more, or made newer ones",
    )
}

impl<S: AsyncRead + Unpin> Guarded<S> {
    fn read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_reader(cx)?;
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf).map_err(explain) {
            Poll::Pending => self.wait(cx),
            done => {
                self.heard(buf.filled().len() - before);
                done
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    fn write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_writer(cx)?;
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Pending => self.wait(cx),
            done => done,
        }
    }

    fn write_vectored(&mut self, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.check_writer(cx)?;
        match Pin::new(&mut self.stream).poll_write_vectored(cx, bytes) {
            Poll::Pending => self.wait(cx),
            done => done,
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_writer(cx)?;
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => self.wait(cx),
            done => done,
        }
    }

    fn shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_writer(cx)?;
        match Pin::new(&mut self.stream).poll_shutdown(cx) {
            Poll::Pending => self.wait(cx),
            done => done,
        }
    }
}

macro_rules! forward_io {
    ($($name:ident),+) => {$(
        impl AsyncRead for $name {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.stream.read(cx, buf)
            }
        }

        impl AsyncWrite for $name {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                self.stream.write(cx, bytes)
            }

            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.stream.write_vectored(cx, bytes)
            }

            fn is_write_vectored(&self) -> bool {
                self.stream.stream.is_write_vectored()
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.stream.flush(cx)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.stream.shutdown(cx)
            }
        }
    )+};
}

forward_io!(ServerConnection, ClientConnection);
