//! UDP sockets with many datagrams per system call: UDP_SEGMENT and UDP_GRO (udp(7)), sendmmsg(2), recvmmsg(2).
//!
//! [`crate::transmit`] fills a [`Batch`], [`crate::receive`] an [`Inbox`]; handshakes and timers send single datagrams.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Buffers of the kernel per socket: a few milliseconds at 10 Gbit/s.
const SOCKET_BUFFER: libc::c_int = 8 << 20;
/// UDP_MAX_SEGMENTS of older kernels.
const MAX_SEGMENTS: usize = 64;
/// The longest UDP payload of one send, with some room for headers.
const MAX_SEND: usize = 65_000;
/// The longest datagram that is received, put together or not.
const RECEIVE_BUFFER: usize = 65_536;
/// Datagrams per receive.
const RECEIVE_BATCH: usize = 16;

/// Opens a socket on `address`. `share` lets others of this process listen on it too, the kernel spreads senders over them.
///
/// # Errors
/// What the kernel says; a port in use is [`io::ErrorKind::AddrInUse`].
pub(crate) fn bind(address: SocketAddr, share: bool, gro: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: no memory is passed.
    let socket = Errno::result(unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    if address.is_ipv6() {
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    if share {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    for (forced, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set_option(&socket, libc::SOL_SOCKET, forced, SOCKET_BUFFER).is_err() {
            // Without CAP_NET_ADMIN: as much as the system allows.
            set_option(&socket, libc::SOL_SOCKET, plain, SOCKET_BUFFER)?;
        }
    }
    if gro {
        // Kernels before 5.0 refuse it, and give datagrams one by one.
        let _ = set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    }
    let (name, length) = encode(&address);
    // SAFETY: `name` is a socket address of this length.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), length) })?;
    Ok(socket)
}

/// The address that a socket is bound to.
pub(crate) fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    // SAFETY: all zero is a valid address structure.
    let mut name: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&name) as libc::socklen_t;
    // SAFETY: `name` has room for IPv4 and IPv6 addresses, and `length` says how much.
    Errno::result(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut name).cast(), &raw mut length) })?;
    decode(&name).ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// Whether the kernel cuts one send into many datagrams.
pub(crate) fn has_udp_segment(socket: &OwnedFd) -> bool {
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}

/// Wakes whoever waits for datagrams on the socket, now and later.
pub(crate) fn stop(socket: &OwnedFd) {
    // SAFETY: no memory is passed. That the socket is not connected is an error, but receivers are woken (inet_shutdown).
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

/// Sends one datagram.
pub(crate) fn send(socket: &OwnedFd, datagram: &[u8], to: &SocketAddr) -> io::Result<()> {
    let (name, length) = encode(to);
    // SAFETY: `datagram` and `name` live during the call and have these lengths.
    let sent = unsafe {
        let data = datagram.as_ptr().cast();
        libc::sendto(socket.as_raw_fd(), data, datagram.len(), 0, (&raw const name).cast(), length)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is an int that lives during the call.
    Errno::result(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) })?;
    Ok(())
}

/// The kernel's form of an address; IPv4 has room in IPv6's.
fn encode(address: &SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: all zero is a valid address structure.
    let mut name: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    match address {
        SocketAddr::V6(address) => {
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = address.port().to_be();
            name.sin6_addr.s6_addr = address.ip().octets();
            name.sin6_scope_id = address.scope_id();
            (name, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
        SocketAddr::V4(address) => {
            // sockaddr_in: family and port at the same places, the address where IPv6 has the flow label.
            name.sin6_family = libc::AF_INET as libc::sa_family_t;
            name.sin6_port = address.port().to_be();
            name.sin6_flowinfo = u32::from_ne_bytes(address.ip().octets());
            (name, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
    }
}

fn decode(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    let port = u16::from_be(name.sin6_port);
    match libc::c_int::from(name.sin6_family) {
        libc::AF_INET6 => {
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(address, port, 0, name.sin6_scope_id).into())
        }
        libc::AF_INET => Some((Ipv4Addr::from(name.sin6_flowinfo.to_ne_bytes()), port).into()),
        _ => None,
    }
}

/// Datagrams to be sent, sealed one after the other in one piece of memory.
pub(crate) struct Batch {
    arena: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
}

/// Datagrams of equal size to one address; only the last one may be shorter.
#[derive(Debug, Clone)]
struct Run {
    to: SocketAddr,
    place: Range<usize>,
    size: usize,
    count: usize,
    closed: bool,
}

/// A control message that says at which size to cut; as CMSG_DATA has it on this machine.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct SegmentSize {
    header: libc::cmsghdr,
    size: u16,
}

impl Batch {
    pub(crate) fn new(bytes: usize) -> Batch {
        Batch { arena: vec![0; bytes], used: 0, runs: Vec::with_capacity(1024) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.used
    }

    /// Room for a datagram; `None` where the batch must be sent first.
    #[inline]
    pub(crate) fn room(&mut self, length: usize) -> Option<&mut [u8]> {
        if self.runs.len() == self.runs.capacity() {
            return None;
        }
        self.arena.get_mut(self.used..self.used + length)
    }

    /// The datagram of this length that was written to the room goes to `to`.
    #[inline]
    pub(crate) fn commit(&mut self, length: usize, to: SocketAddr, merge: bool) {
        let start = self.used;
        self.used += length;
        if merge
            && let Some(run) = self.runs.last_mut()
            && !run.closed
            && run.to == to
            && length <= run.size
            && run.count < MAX_SEGMENTS
            && self.used - run.place.start <= MAX_SEND
        {
            run.place.end = self.used;
            run.count += 1;
            run.closed = length < run.size;
            return;
        }
        self.runs.push(Run { to, place: start..self.used, size: length, count: 1, closed: !merge });
    }

    /// Sends everything. `sockets` gives the socket for an address; `failed` is told the datagrams that could not be sent.
    /// False where cutting must not be used any more: the interface cannot compute the checksums.
    pub(crate) fn send<'a>(
        &mut self,
        sockets: impl Fn(&SocketAddr) -> Option<&'a OwnedFd>,
        mut failed: impl FnMut(&SocketAddr, usize),
    ) -> bool {
        let mut segment_works = true;
        let mut runs = std::mem::take(&mut self.runs);
        let mut rest = &runs[..];
        while let Some(first) = rest.first() {
            let same = rest.iter().take_while(|run| run.to.is_ipv4() == first.to.is_ipv4()).count();
            let (now, later) = rest.split_at(same);
            rest = later;
            match sockets(&first.to) {
                Some(socket) => segment_works &= self.send_runs(socket, now, &mut failed),
                None => now.iter().for_each(|run| failed(&run.to, run.count)),
            }
        }
        runs.clear();
        self.runs = runs;
        self.used = 0;
        segment_works
    }

    fn send_runs(&self, socket: &OwnedFd, runs: &[Run], failed: &mut impl FnMut(&SocketAddr, usize)) -> bool {
        /// Messages per call.
        const MESSAGES: usize = 32;
        let mut segment_works = true;
        for runs in runs.chunks(MESSAGES) {
            // SAFETY: all zero is valid for these structures of integers and pointers.
            let (mut messages, mut names, mut parts, mut controls) = unsafe {
                (
                    std::mem::zeroed::<[libc::mmsghdr; MESSAGES]>(),
                    std::mem::zeroed::<[libc::sockaddr_in6; MESSAGES]>(),
                    std::mem::zeroed::<[libc::iovec; MESSAGES]>(),
                    std::mem::zeroed::<[SegmentSize; MESSAGES]>(),
                )
            };
            for (index, run) in runs.iter().enumerate() {
                let (name, length) = encode(&run.to);
                names[index] = name;
                let data = &self.arena[run.place.clone()];
                parts[index] = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
                let header = &mut messages[index].msg_hdr;
                header.msg_name = (&raw mut names[index]).cast();
                header.msg_namelen = length;
                header.msg_iov = &raw mut parts[index];
                header.msg_iovlen = 1;
                if run.count > 1 {
                    controls[index].header.cmsg_level = libc::SOL_UDP;
                    controls[index].header.cmsg_type = libc::UDP_SEGMENT;
                    // SAFETY: computes a number.
                    controls[index].header.cmsg_len = unsafe { libc::CMSG_LEN(2) } as _;
                    controls[index].size = run.size as u16;
                    header.msg_control = (&raw mut controls[index]).cast();
                    header.msg_controllen = size_of::<SegmentSize>() as _;
                }
            }
            let mut done = 0;
            while done < runs.len() {
                let rest = &mut messages[done..runs.len()];
                // SAFETY: the messages point to names, parts and controls above and into the arena; all live during the call.
                let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
                if sent > 0 {
                    done += sent as usize;
                    continue;
                }
                match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => continue,
                    error => segment_works &= error != Some(libc::EIO),
                }
                self.send_singly(socket, &runs[done], failed);
                done += 1;
            }
        }
        segment_works
    }

    /// What could not be sent at once: datagram by datagram, as the kernel may only have refused to cut.
    fn send_singly(&self, socket: &OwnedFd, run: &Run, failed: &mut impl FnMut(&SocketAddr, usize)) {
        for datagram in self.arena[run.place.clone()].chunks(run.size) {
            if run.count == 1 || send(socket, datagram, &run.to).is_err() {
                failed(&run.to, 1);
            }
        }
    }
}

/// Room for what one call receives.
pub(crate) struct Inbox {
    /// The received bytes: message `n` begins at `n` times the length of a buffer.
    pub(crate) bytes: Vec<u8>,
    names: [libc::sockaddr_in6; RECEIVE_BATCH],
    controls: [[u64; 4]; RECEIVE_BATCH],
    parts: [libc::iovec; RECEIVE_BATCH],
    messages: [libc::mmsghdr; RECEIVE_BATCH],
}

/// One message: datagrams of equal size from one address; only the last one may be shorter.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) from: SocketAddr,
    pub(crate) place: Range<usize>,
    pub(crate) size: usize,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        // SAFETY: all zero is valid for these structures of integers and pointers.
        let (names, parts, messages) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        let bytes = vec![0; RECEIVE_BATCH * RECEIVE_BUFFER];
        Inbox { bytes, names, controls: [[0; 4]; RECEIVE_BATCH], parts, messages }
    }

    /// Waits for at least one message; returns how many there are. 0 after [`stop`].
    pub(crate) fn receive(&mut self, socket: &OwnedFd) -> io::Result<usize> {
        for index in 0..RECEIVE_BATCH {
            let buffer = &mut self.bytes[index * RECEIVE_BUFFER..(index + 1) * RECEIVE_BUFFER];
            self.parts[index] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut self.messages[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            header.msg_iov = &raw mut self.parts[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].as_mut_ptr().cast();
            header.msg_controllen = size_of::<[u64; 4]>() as _;
            header.msg_flags = 0;
        }
        let (messages, count) = (self.messages.as_mut_ptr(), RECEIVE_BATCH as u32);
        let (flags, no_time) = (libc::MSG_WAITFORONE, std::ptr::null_mut());
        // SAFETY: the messages point into this structure, which is borrowed during the call.
        let received = unsafe { libc::recvmmsg(socket.as_raw_fd(), messages, count, flags, no_time) };
        if received < 0 { Err(io::Error::last_os_error()) } else { Ok(received as usize) }
    }

    /// Message `index` of the last call; `None` where it is empty, or cut off.
    pub(crate) fn message(&self, index: usize) -> Option<Message> {
        let message = &self.messages[index];
        let length = message.msg_len as usize;
        if length == 0 || message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let mut size = length;
        // SAFETY: the kernel filled the header and its control buffer, both still where they were.
        let control = unsafe { libc::CMSG_FIRSTHDR(&raw const message.msg_hdr).as_ref() };
        if let Some(control) = control
            && control.cmsg_level == libc::SOL_UDP
            && control.cmsg_type == libc::UDP_GRO
        {
            // SAFETY: UDP_GRO carries an int (udp_cmsg_recv), for which the buffer has room.
            let segment = unsafe { libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned() };
            size = usize::try_from(segment).ok().filter(|size| *size > 0)?;
        }
        let start = index * RECEIVE_BUFFER;
        Some(Message { from: decode(&self.names[index])?, place: start..start + length, size })
    }
}

#[cfg(test)]
#[path = "socket_test.rs"]
mod tests;
