//! A netlink socket: sends batches and reads what the kernel says to them; asks for dumps.
//!
//! Used by the handles of this crate, one socket in each. The kernel works a request off within `send`, and its answers
//! lie in the queue when that returns. So nothing here ever waits.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{self, Attributes, Batch, Malformed, Message, Messages};

/// Messages in one `send` of a batch: of the sizes tried, the fastest for neighbours.
const MESSAGES_PER_SEND: usize = 400;
/// Bytes in one `send` of a batch, well under the socket's default buffer.
const BYTES_PER_SEND: usize = 96 << 10;
/// Room for the refusals of a whole batch, each some 800 bytes to the kernel. A limit, not memory in use.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;
/// What the kernel puts into one part of a dump at most, if offered as much (netlink(7) recommends it).
const DUMP_BUFFER: usize = 32 << 10;
/// What a handle keeps of its buffer: there are thousands of handles, and large batches are rare.
const SCRATCH_KEPT: usize = 2 << 10;
/// How often a dump is taken again that changed under way.
const DUMP_ATTEMPTS: u32 = 5;

/// A message that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which message of the batch. `None`: the batch as a whole (nftables).
    pub index: Option<usize>,
    /// Why.
    pub errno: Errno,
    /// Why, in words, where the kernel has them.
    pub text: Option<String>,
}

impl Refusal {
    /// The error that it is to whoever wanted `action`.
    pub fn into_error(self, action: impl Into<String>) -> NetlinkError {
        NetlinkError::Refused { action: action.into(), errno: self.errno, text: self.text }
    }
}

/// Why there was no conversation.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A system call failed.
    #[error("a netlink socket failed")]
    Io(#[source] io::Error),
    /// The answer is no netlink.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The answer ended early.
    #[error("the kernel did not answer")]
    NoAnswer,
    /// Message `0` has an attribute that is too long.
    #[error("message {0} is too long")]
    TooLong(usize),
    /// A dump was refused.
    #[error("the kernel refused")]
    Refused(Refusal),
}

impl SocketError {
    /// The error that it is to whoever wanted `action`.
    pub fn into_error(self, action: impl Into<String>) -> NetlinkError {
        let action = action.into();
        match self {
            Self::Io(source) => NetlinkError::Io { action, source },
            Self::Malformed(source) => NetlinkError::Malformed { action, source },
            Self::NoAnswer => NetlinkError::NoAnswer { action },
            Self::TooLong(_) => NetlinkError::Invalid { action, problem: "the request is too long".to_owned() },
            Self::Refused(refusal) => refusal.into_error(action),
        }
    }
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// The family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// rtnetlink(7): links, addresses, routes, neighbours, rules.
    Route,
    /// nftables and connection tracking.
    Netfilter,
    /// Generic netlink: WireGuard.
    Generic,
    /// What sockets there are.
    Diagnosis,
}

/// A netlink socket. It belongs to the network namespace in which its thread was when it was opened, for good.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    send_buffer: usize,
    scratch: Vec<u8>,
}

impl Protocol {
    fn number(self) -> libc::c_int {
        match self {
            Self::Route => libc::NETLINK_ROUTE,
            Self::Netfilter => libc::NETLINK_NETFILTER,
            Self::Generic => libc::NETLINK_GENERIC,
            Self::Diagnosis => libc::NETLINK_SOCK_DIAG,
        }
    }
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    pub fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        let number = protocol.number();
        let failed = || NetlinkError::errno_of(format!("open a netlink socket ({protocol:?})"));
        // SAFETY: socket(2) with constants.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, number) };
        let raw = Errno::result(raw).map_err(failed())?;
        // SAFETY: the descriptor is new and ours.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        // Kernels before 4.12, 4.3 and 4.20 lack these; answers are then poorer, but as right.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            let _ = set_option(&socket, libc::SOL_NETLINK, option, 1);
        }
        // Without CAP_NET_ADMIN over the machine the default stays, which holds some 250 refusals.
        let _ = set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER);
        let mut this = Self { socket, send_buffer: 0, scratch: Vec::new() };
        this.send_buffer = this.option(libc::SO_SNDBUF).map_err(failed())?;
        Ok(this)
    }

    /// Takes one that was opened by [`Socket::open`], in this process or another.
    pub fn from_fd(socket: OwnedFd, protocol: Protocol) -> Result<Self, NetlinkError> {
        let action = || format!("take over a netlink socket ({protocol:?})");
        let mut this = Self { socket, send_buffer: 0, scratch: Vec::new() };
        let is = |option: libc::c_int, wanted: libc::c_int| {
            let found = this.option(option).map_err(NetlinkError::errno_of(action()))?;
            Ok(found == usize::try_from(wanted).unwrap_or(usize::MAX))
        };
        if !is(libc::SO_DOMAIN, libc::AF_NETLINK)? || !is(libc::SO_PROTOCOL, protocol.number())? {
            let problem = "the descriptor is another kind of socket".to_owned();
            return Err(NetlinkError::Invalid { action: action(), problem });
        }
        this.send_buffer = this.option(libc::SO_SNDBUF).map_err(NetlinkError::errno_of(action()))?;
        Ok(this)
    }

    /// Another descriptor of it.
    pub fn try_clone_fd(&self) -> Result<OwnedFd, NetlinkError> {
        self.socket.try_clone().map_err(NetlinkError::io("duplicate the descriptor of a netlink socket"))
    }

    /// Sends all messages, many at a time. The kernel goes on past one that it refuses; all refusals are returned.
    pub fn send(&mut self, batch: &Batch) -> Result<Vec<Refusal>, SocketError> {
        if let Some(index) = batch.oversized() {
            return Err(SocketError::TooLong(index));
        }
        let mut refusals = Vec::new();
        let mut first = 0;
        while first < batch.len() {
            let mut end = first + 1;
            while end < batch.len()
                && end - first < MESSAGES_PER_SEND
                && batch.start(end + 1) - batch.start(first) <= BYTES_PER_SEND
            {
                end += 1;
            }
            self.scratch.clear();
            self.scratch.extend_from_slice(&batch.bytes()[batch.start(first)..batch.start(end)]);
            // The last one's acknowledgement says that all were worked off.
            message::add_flags(&mut self.scratch, batch.start(end - 1) - batch.start(first), NLM_F_ACK);
            self.exchange(end, &mut refusals)?;
            first = end;
        }
        Ok(refusals)
    }

    /// Sends all messages as one nftables transaction: all take effect, or none.
    pub fn transact(&mut self, batch: &Batch) -> Result<Vec<Refusal>, SocketError> {
        if let Some(index) = batch.oversized() {
            return Err(SocketError::TooLong(index));
        }
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.scratch.clear();
        let edge = |scratch: &mut Vec<u8>, kind: u16, sequence: usize| {
            let start = scratch.len();
            message::header(scratch, kind, 0, u32::try_from(sequence).unwrap_or(u32::MAX));
            // nfgenmsg: any family, version 0, the subsystem's number in network order.
            let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
            scratch.extend_from_slice(&[0, 0, high, low]);
            message::close(scratch, start);
        };
        edge(&mut self.scratch, NFNL_MSG_BATCH_BEGIN, 0);
        let offset = self.scratch.len();
        self.scratch.extend_from_slice(batch.bytes());
        message::add_flags(&mut self.scratch, offset + batch.start(batch.len() - 1), NLM_F_ACK);
        edge(&mut self.scratch, NFNL_MSG_BATCH_END, batch.len() + 1);
        let mut refusals = Vec::new();
        self.exchange(batch.len(), &mut refusals)?;
        Ok(refusals)
    }

    /// Asks for a dump: the batch's only message. Calls `each` for every message of the answer. When the kernel says
    /// that things changed under way, what was found is thrown away and it starts again; the last attempt is taken as
    /// it is.
    pub fn dump<T: Default>(
        &mut self,
        request: &Batch,
        mut each: impl FnMut(&mut T, Message<'_>) -> Result<(), Malformed>,
    ) -> Result<T, SocketError> {
        let mut attempt = 1;
        loop {
            let mut found = T::default();
            if self.dump_once(request, &mut |message| each(&mut found, message))? || attempt == DUMP_ATTEMPTS {
                return Ok(found);
            }
            attempt += 1;
        }
    }

    /// Whether the dump is consistent.
    fn dump_once(
        &mut self,
        request: &Batch,
        each: &mut dyn FnMut(Message<'_>) -> Result<(), Malformed>,
    ) -> Result<bool, SocketError> {
        if let Some(index) = request.oversized() {
            return Err(SocketError::TooLong(index));
        }
        self.empty()?;
        self.scratch.clear();
        self.scratch.extend_from_slice(request.bytes());
        message::add_flags(&mut self.scratch, 0, NLM_F_DUMP);
        self.transmit()?;
        let mut buffer = vec![0; DUMP_BUFFER];
        let mut consistent = true;
        loop {
            let length = self.answer(&mut buffer)?;
            for message in Messages(&buffer[..length]) {
                let message = message?;
                if message.sequence != 1 {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    // Its payload is an errno too, of a dump that failed on its way.
                    NLMSG_DONE => return finished(message).map(|()| consistent),
                    NLMSG_ERROR => return finished(message).map(|()| consistent),
                    _ => each(message)?,
                }
            }
        }
    }

    /// Asks for one thing: the batch's only message, with an answer of one message and an acknowledgement.
    pub fn get<T>(
        &mut self,
        request: &Batch,
        each: impl FnOnce(Message<'_>) -> Result<T, Malformed>,
    ) -> Result<Option<T>, SocketError> {
        self.empty()?;
        self.scratch.clear();
        self.scratch.extend_from_slice(request.bytes());
        message::add_flags(&mut self.scratch, 0, NLM_F_ACK);
        self.transmit()?;
        let mut buffer = vec![0; DUMP_BUFFER];
        let (mut each, mut answer) = (Some(each), None);
        loop {
            let length = self.answer(&mut buffer)?;
            for message in Messages(&buffer[..length]) {
                let message = message?;
                match message.kind {
                    _ if message.sequence != 1 => {}
                    NLMSG_ERROR => return finished(message).map(|()| answer),
                    NLMSG_DONE => return Ok(answer),
                    _ => {
                        if let Some(each) = each.take() {
                            answer = Some(each(message)?);
                        }
                    }
                }
            }
        }
    }

    /// Sends `scratch` and collects refusals until the answer to message number `last`.
    fn exchange(&mut self, last: usize, refusals: &mut Vec<Refusal>) -> Result<(), SocketError> {
        self.empty()?;
        self.transmit()?;
        let before = refusals.len();
        let mut buffer = [0; 8 << 10];
        loop {
            let length = match self.receive(&mut buffer) {
                Ok(length) => length,
                // So many refusals that not all found room: those that did are enough to know.
                Err(Errno::ENOBUFS) => continue,
                // A batch that is refused as a whole has no acknowledgement of its last message.
                Err(Errno::EAGAIN) if refusals.len() > before => return Ok(()),
                Err(Errno::EAGAIN) => return Err(SocketError::NoAnswer),
                Err(errno) => return Err(errno.into()),
            };
            for message in Messages(&buffer[..length]) {
                let message = message?;
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                let number = usize::try_from(message.sequence).unwrap_or(usize::MAX);
                let (errno, text) = verdict(message)?;
                if let Some(errno) = errno {
                    refusals.push(Refusal { index: number.checked_sub(1), errno, text });
                }
                if number == last {
                    return Ok(());
                }
            }
        }
    }

    /// Drops what an earlier conversation, broken off by an error, left in the queue.
    fn empty(&mut self) -> Result<(), SocketError> {
        let mut buffer = [0; 8 << 10];
        loop {
            match self.receive(&mut buffer) {
                Ok(_) | Err(Errno::ENOBUFS | Errno::EMSGSIZE) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends `scratch` as one datagram, and empties it.
    fn transmit(&mut self) -> Result<(), SocketError> {
        let sent = self.transmit_scratch();
        self.scratch.clear();
        self.scratch.shrink_to(SCRATCH_KEPT);
        sent
    }

    fn transmit_scratch(&mut self) -> Result<(), SocketError> {
        // The kernel takes what fits the buffer but for a few bytes.
        if self.scratch.len() + 64 > self.send_buffer {
            let wanted = libc::c_int::try_from(self.scratch.len() + 64).map_err(|_| Errno::EMSGSIZE)?;
            set_option(&self.socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted)?;
            self.send_buffer = self.option(libc::SO_SNDBUF)?;
        }
        loop {
            // SAFETY: the pointer and the length are the vector's.
            let sent =
                unsafe { libc::send(self.socket.as_raw_fd(), self.scratch.as_ptr().cast(), self.scratch.len(), 0) };
            match Errno::result(sent) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// A datagram of the answer.
    fn answer(&self, buffer: &mut [u8]) -> Result<usize, SocketError> {
        self.receive(buffer).map_err(|errno| match errno {
            Errno::EAGAIN => SocketError::NoAnswer,
            errno => errno.into(),
        })
    }

    /// One datagram. EAGAIN: there is none. EMSGSIZE: it did not fit.
    fn receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
            // SAFETY: the pointer and the length are the buffer's.
            let got = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
            match Errno::result(got) {
                Ok(length) => {
                    let length = usize::try_from(length).unwrap_or_default();
                    return if length <= buffer.len() { Ok(length) } else { Err(Errno::EMSGSIZE) };
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn option(&self, name: libc::c_int) -> Result<usize, Errno> {
        let mut value: libc::c_int = 0;
        let mut length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
        // SAFETY: both pointers are valid for the call, and the length is the value's.
        let got = unsafe {
            libc::getsockopt(self.socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length)
        };
        Errno::result(got).map(|_| usize::try_from(value).unwrap_or_default())
    }
}

fn set_option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: the pointer is valid for the call, and the length is the value's.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    Errno::result(set).map(drop)
}

/// What an `NLMSG_ERROR` or `NLMSG_DONE` says of a request that has one answer.
fn finished(message: Message<'_>) -> Result<(), SocketError> {
    match verdict(message)? {
        (None, _) => Ok(()),
        (Some(errno), text) => Err(SocketError::Refused(Refusal { index: Some(0), errno, text })),
    }
}

/// Reads `struct nlmsgerr` and what may follow (netlink(7)): the reason, `None` for success, and its text.
fn verdict(message: Message<'_>) -> Result<(Option<Errno>, Option<String>), Malformed> {
    // NLMSG_DONE of old kernels and of some families has no payload.
    if message.kind == NLMSG_DONE && message.payload.is_empty() {
        return Ok((None, None));
    }
    let (code, _) = message.payload.split_first_chunk::<4>().ok_or(Malformed("an acknowledgement is too short"))?;
    let code = i32::from_ne_bytes(*code);
    if code >= 0 {
        return Ok((None, None));
    }
    let errno = Errno::from_raw(code.checked_neg().ok_or(Malformed("an error number is out of range"))?);
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return Ok((Some(errno), None));
    }
    let behind = match message.kind {
        NLMSG_DONE => 4,
        _ if message.flags & NLM_F_CAPPED != 0 => 4 + message::HEADER,
        // The whole refused message lies between.
        _ => {
            let length = message.payload.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
            let length = length.and_then(|length| usize::try_from(length).ok());
            length.ok_or(Malformed("an acknowledgement is too short"))?.saturating_add(4).next_multiple_of(4)
        }
    };
    let rest = message.payload.get(behind..).ok_or(Malformed("an acknowledgement is cut off"))?;
    for attribute in Attributes(rest) {
        let attribute = attribute?;
        if attribute.kind == NLMSGERR_ATTR_MSG {
            return Ok((Some(errno), Some(attribute.string()?)));
        }
    }
    Ok((Some(errno), None))
}

#[cfg(test)]
#[path = "socket_test.rs"]
mod tests;
