//! The agents connected to a monitor.
//!
//! Used by the monitor's loop. A client that does not read is dropped: the monitor never waits for one.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use skep_shim::protocol::{self, Frame};

/// More agents than one only meet for a moment, during an upgrade; the rest is somebody's mistake.
const MAX_CLIENTS: usize = 8;

/// One connection.
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
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
            self.clients.push(Client { stream, input: Vec::new() });
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
        let mut client = Client { stream, input: Vec::new() };
        if client.send(greeting) {
            self.clients.push(client);
        }
    }

    /// Reads from the client with this descriptor; the frames it sent. A client that ended is dropped.
    pub(crate) fn read(&mut self, fd: RawFd) -> Vec<Frame> {
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
    fn receive(&mut self, frames: &mut Vec<Frame>) -> bool {
        let mut chunk = [0; 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
            loop {
                match protocol::decode(&mut self.input) {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(_) => return false,
                }
            }
        }
    }
}
