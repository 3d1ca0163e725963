//! TCP sockets of a network namespace (sock_diag(7)): which ports programs listen on, and connections that none has accepted
//! yet. Closing a listening socket resets those that wait in its queue: whoever ends a program waits for them first.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Batch, Malformed, Message};
use crate::socket::{Protocol, Socket, SocketError};

/// `struct inet_diag_msg`, without attributes.
const ANSWER: usize = 72;
/// Of it, the socket's own port, big endian.
const PORT: std::ops::Range<usize> = 4..6;
/// Of it, the socket's own address: its first 4 bytes for IPv4.
const ADDRESS: std::ops::Range<usize> = 8..24;
/// Of it, the number of connections that wait, where it is of a listening socket.
const QUEUED: std::ops::Range<usize> = 56..60;

/// The TCP sockets of one network namespace.
#[derive(Debug)]
pub struct TcpSockets(Mutex<Socket>);

impl TcpSockets {
    /// Asks about them from the calling thread's network namespace.
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

    /// Ports that programs listen on, for others than their own host: not on a loopback address alone. `None` where the
    /// kernel cannot tell.
    pub fn listening(&self) -> Result<Option<BTreeSet<u16>>, NetlinkError> {
        let mut ports = BTreeSet::new();
        for family in [AF_INET, AF_INET6] {
            let told = self.dump(family, TCP_LISTEN, |answer| {
                let address = address(answer).ok_or(Malformed("a socket is of no family that was asked for"))?;
                if !address.to_canonical().is_loopback() {
                    ports.extend(answer[PORT].try_into().map(u16::from_be_bytes));
                }
                Ok(())
            })?;
            if !told {
                return Ok(None);
            }
        }
        Ok(Some(ports))
    }

    fn count(&self, family: u8, state: u8) -> Result<u64, NetlinkError> {
        let mut sum: u64 = 0;
        self.dump(family, state, |answer| {
            let queued = answer[QUEUED].try_into().map(u32::from_ne_bytes).unwrap_or_default();
            sum += if answer[1] == TCP_LISTEN { queued.into() } else { 1 };
            Ok(())
        })?;
        Ok(sum)
    }

    /// All sockets of the family in the state, each as a `struct inet_diag_msg`. False: the kernel cannot tell.
    fn dump(
        &self,
        family: u8,
        state: u8,
        mut each: impl FnMut(&[u8; ANSWER]) -> Result<(), Malformed>,
    ) -> Result<bool, NetlinkError> {
        let mut request = Batch::new();
        request.message(SOCK_DIAG_BY_FAMILY, 0, |message| message.raw(&wanted(family, state)));
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let dumped = socket.dump(&request, |(): &mut (), message| parse(&message)?.map_or(Ok(()), &mut each));
        match dumped {
            Ok(()) => Ok(true),
            // A kernel without inet_diag.
            Err(SocketError::Refused(refusal)) if refusal.errno == nix::errno::Errno::ENOENT => Ok(false),
            Err(error) => Err(error.into_error("list TCP sockets")),
        }
    }
}

/// The socket that an answer is about.
pub(crate) fn parse<'a>(message: &Message<'a>) -> Result<Option<&'a [u8; ANSWER]>, Malformed> {
    let of_socket = (message.kind == SOCK_DIAG_BY_FAMILY).then_some(message.payload);
    of_socket.map(|payload| payload.first_chunk().ok_or(Malformed("a socket is too short"))).transpose()
}

/// The socket's own address.
pub(crate) fn address(answer: &[u8; ANSWER]) -> Option<IpAddr> {
    let bytes: [u8; 16] = answer[ADDRESS].try_into().ok()?;
    match answer[0] {
        AF_INET => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(bytes))),
        _ => None,
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
