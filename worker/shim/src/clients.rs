//! The agents connected to a monitor.
//!
//! Used by the monitor's loop. A client that does not read is dropped: the monitor never waits for one.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use skep_shim::protocol::{self, Frame, Kind};

use crate::sys;

/// More agents than one only meet for a moment, during an upgrade; the rest is somebody's mistake.
const MAX_CLIENTS: usize = 8;
/// Files that may wait for their frames.
const MAX_FILES: usize = 4;

/// A frame, and the file that came with it.
pub(crate) type Request = (Frame, Option<OwnedFd>);

/// One connection.
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    /// Files that came with bytes of `input`, oldest first.
    files: VecDeque<OwnedFd>,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Self { stream, input: Vec::new(), files: VecDeque::new() }
    }
}

/// All connections and the socket where new ones come in.
pub(crate) struct Clients {
    listener: UnixListener,
    clients: Vec<Client>,
}

impl Clients {
    /// Listens on `shim.sock` in the current directory: a relative path has no length limit to meet.
    pub(crate) fn listen() -> io::Result<Self> {
        let _ = std::fs::remove_file("shim.sock");
        let listener = UnixListener::bind("shim.sock")?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, clients: Vec::new() })
    }

    /// Takes over a connection that was there from the start.
    pub(crate) fn adopt(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(true).is_ok() {
            self.clients.push(Client::new(stream));
        }
    }

    /// Descriptors to poll for reading: the listener first.
    pub(crate) fn fds(&self) -> impl Iterator<Item = RawFd> {
        std::iter::once(self.listener.as_raw_fd()).chain(self.clients.iter().map(|client| client.stream.as_raw_fd()))
    }

    /// Accepts one waiting connection and greets it.
    pub(crate) fn accept(&mut self, greeting: &[u8]) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if self.clients.len() >= MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
            return;
        }
        let mut client = Client::new(stream);
        if client.send(greeting) {
            self.clients.push(client);
        }
    }

    /// Reads from the client with this descriptor; the frames it sent. A client that ended is dropped.
    pub(crate) fn read(&mut self, fd: RawFd) -> Vec<Request> {
        let Some(at) = self.clients.iter().position(|c| c.stream.as_raw_fd() == fd) else {
            return Vec::new();
        };
        let client = &mut self.clients[at];
        let mut frames = Vec::new();
        if !client.receive(&mut frames) {
            self.clients.swap_remove(at);
        }
        frames
    }

    /// Sends to the client with this descriptor.
    pub(crate) fn answer(&mut self, fd: RawFd, bytes: &[u8]) {
        self.clients.retain_mut(|c| c.stream.as_raw_fd() != fd || c.send(bytes));
    }

    /// Sends to every client.
    pub(crate) fn broadcast(&mut self, bytes: &[u8]) {
        self.clients.retain_mut(|client| client.send(bytes));
    }
}

impl Client {
    /// Whether all bytes went out at once. Messages are far smaller than a socket's buffer.
    fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write(bytes).is_ok_and(|n| n == bytes.len())
    }

    /// Reads all there is; false: the connection is over.
    fn receive(&mut self, frames: &mut Vec<Request>) -> bool {
        let mut chunk = [0; 1024];
        loop {
            let mut files = Vec::new();
            match sys::receive(&self.stream, &mut chunk, &mut files) {
                Ok(0) => return false,
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
            self.files.extend(files);
            if self.files.len() > MAX_FILES {
                return false;
            }
            loop {
                match protocol::decode(&mut self.input) {
                    Ok(Some(frame)) => {
                        let file = if frame.kind == Kind::Files as u16 { self.files.pop_front() } else { None };
                        frames.push((frame, file));
                    }
                    Ok(None) => break,
                    Err(_) => return false,
                }
            }
        }
    }
}
