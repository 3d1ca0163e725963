//! TCP connections of a network namespace that no program has accepted yet (sock_diag(7)). Closing a listening socket resets
//! those that wait in its queue: whoever ends a program waits for them first.

use std::sync::{Mutex, PoisonError};

use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Batch, Malformed, Message};
use crate::socket::{Protocol, Socket, SocketError};

/// `struct inet_diag_msg`, without attributes.
const ANSWER: usize = 72;
/// Of it, the number of connections that wait, where it is of a listening socket.
const QUEUED: std::ops::Range<usize> = 56..60;

/// The queues of the listening sockets in one network namespace.
#[derive(Debug)]
pub struct Backlog(Mutex<Socket>);

impl Backlog {
    /// Opens them in the calling thread's network namespace.
    pub fn open_here() -> Result<Self, NetlinkError> {
        Ok(Self(Mutex::new(Socket::open(Protocol::Diagnosis)?)))
    }

    /// How many connections are not accepted yet, of both families: those that are half open and those in the queues. None
    /// where the kernel cannot tell. Takes some 300 µs: the kernel walks
    /// its table of all connections twice.
    pub fn waiting(&self) -> Result<u64, NetlinkError> {
        let mut waiting = 0;
        // In this order: what is no longer half open by then is in a queue.
        for state in [TCP_SYN_RECV, TCP_LISTEN] {
            for family in [AF_INET, AF_INET6] {
                waiting += self.count(family, state)?;
            }
        }
        Ok(waiting)
    }

    fn count(&self, family: u8, state: u8) -> Result<u64, NetlinkError> {
        let mut request = Batch::new();
        request.message(SOCK_DIAG_BY_FAMILY, 0, |message| message.raw(&wanted(family, state)));
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = socket.dump(&request, |sum: &mut u64, message| {
            *sum += parse(&message)?;
            Ok(())
        });
        match counted {
            // A kernel without inet_diag.
            Err(SocketError::Refused(refusal)) if refusal.errno == nix::errno::Errno::ENOENT => Ok(0),
            counted => counted.map_err(|error| error.into_error("list waiting connections")),
        }
    }
}

/// `struct inet_diag_req_v2`: all TCP sockets of the family in the state.
fn wanted(family: u8, state: u8) -> [u8; 56] {
    let mut request = [0; 56];
    request[0] = family;
    request[1] = libc::IPPROTO_TCP as u8;
    request[4..8].copy_from_slice(&(1u32 << state).to_ne_bytes());
    request
}

/// How many connections an answer stands for.
fn parse(message: &Message<'_>) -> Result<u64, Malformed> {
    if message.kind != SOCK_DIAG_BY_FAMILY {
        return Ok(0);
    }
    let answer = message.payload.get(..ANSWER).ok_or(Malformed("a socket is too short"))?;
    let queued = answer[QUEUED].try_into().map(u32::from_ne_bytes).unwrap_or_default();
    Ok(if answer[1] == TCP_LISTEN { queued.into() } else { 1 })
}
