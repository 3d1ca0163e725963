//! Packets to other hosts, and what comes back: ICMP echo requests (RFC 792, RFC 4443) of several sizes that must not be
//! fragmented, all under way at the same time.
//!
//! Used by [`crate::netd`] when it is asked how the networks are. Blocks until all are answered or the time is over. What
//! other hosts send is trusted no further than it goes: an answer counts where number, size and sender fit.

use std::collections::BTreeMap;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use skep_netlink::{Namespace, NetlinkError};

/// How often what was not answered is sent again.
const AGAIN: Duration = Duration::from_millis(350);
/// Size of a packet that passes everywhere (RFC 791: every host takes 576 bytes).
const SMALL: u32 = 64;
/// How far apart the sizes are at least that are tried where the full one does not pass.
const STEP: u32 = 20;
/// Smallest size that is tried then.
const LEAST: u32 = 576;
/// Sizes that are tried for one address at most.
const LADDER: u32 = 64;
/// Requests of one namespace at most: their numbers have 16 bits.
const MOST: usize = 1 << 15;
/// Time between packets of different sizes.
const APART: Duration = Duration::from_millis(1);
/// How long after the small packet's answer the full one's is waited for.
const SLOWER: Duration = Duration::from_millis(800);

/// Where packets are to go, and how large they may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Who is to answer.
    pub address: IpAddr,
    /// Size of the largest packet that is to pass, its IP header included.
    pub mtu: u32,
}

/// What came back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Until the first answer to a small packet came.
    pub round_trip: Option<Duration>,
    /// Largest packet that was answered; 0: none.
    pub largest: u32,
}

/// Tries all targets from within a namespace, and returns what came back in their order. Packets come from `source`, else
/// from the address that the namespace's routes choose.
///
/// # Errors
/// Where no socket can be opened there.
pub fn run(
    namespace: &Namespace,
    source: Option<IpAddr>,
    targets: &[Target],
    deadline: Instant,
) -> Result<Vec<Outcome>, NetlinkError> {
    let mut outcomes = vec![Outcome::default(); targets.len()];
    for ipv6 in [false, true] {
        let of_family = |target: &&(usize, Target)| target.1.address.is_ipv6() == ipv6;
        let all: Vec<(usize, Target)> = targets.iter().copied().enumerate().collect();
        let wanted: Vec<(usize, Target)> = all.iter().filter(of_family).copied().collect();
        if wanted.is_empty() {
            continue;
        }
        let source = source.filter(|source| source.is_ipv6() == ipv6);
        let action = "open a socket for echo requests";
        let open = |_: &skep_netlink::Inside| {
            Ok::<_, NetlinkError>(Echo::open(ipv6, source).map_err(NetlinkError::io(action)))
        };
        let mut echo = namespace.enter(open)??;
        echo.try_all(&wanted, deadline, &mut outcomes);
    }
    Ok(outcomes)
}

/// One request.
#[derive(Clone, Copy, Debug)]
struct Shot {
    target: usize,
    address: IpAddr,
    size: u32,
    sent: Instant,
    answered: bool,
}

/// A raw socket for one family, whose packets must not be fragmented.
struct Echo {
    socket: OwnedFd,
    ipv6: bool,
    /// Tells its answers from those to others' requests.
    id: u16,
    shots: Vec<Shot>,
    /// When the small packet of a target was answered.
    answered: BTreeMap<usize, Instant>,
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value lives through the call, and has the length that is told.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) }).map(drop)
}

/// An address as the kernel takes it.
fn sockaddr(address: IpAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: plain data, for which all zeroes is valid.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let length = match address {
        IpAddr::V4(address) => {
            let at = (&raw mut storage).cast::<libc::sockaddr_in>();
            // SAFETY: the storage is large enough and aligned for every kind of address (socket(7)).
            unsafe {
                (*at).sin_family = libc::AF_INET as libc::sa_family_t;
                (*at).sin_addr.s_addr = u32::from_ne_bytes(address.octets());
            }
            size_of::<libc::sockaddr_in>()
        }
        IpAddr::V6(address) => {
            let at = (&raw mut storage).cast::<libc::sockaddr_in6>();
            // SAFETY: as above.
            unsafe {
                (*at).sin6_family = libc::AF_INET6 as libc::sa_family_t;
                (*at).sin6_addr.s6_addr = address.octets();
            }
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as libc::socklen_t)
}

impl Echo {
    /// Opens it in the calling thread's namespace.
    fn open(ipv6: bool, source: Option<IpAddr>) -> io::Result<Self> {
        let (family, protocol) =
            if ipv6 { (libc::AF_INET6, libc::IPPROTO_ICMPV6) } else { (libc::AF_INET, libc::IPPROTO_ICMP) };
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no memory is passed.
        let descriptor = checked(unsafe { libc::socket(family, kind, protocol) })?;
        // SAFETY: a new descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        match ipv6 {
            true => {
                set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
                set(&socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
            }
            // Never fragmented, and sent although the kernel may think that it is too large for the path (ip(7)).
            false => set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?,
        }
        set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 1 << 20)?;
        if let Some(source) = source {
            let (address, length) = sockaddr(source);
            // SAFETY: the address lives through the call, and has the length that is told.
            checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
        }
        let id = (std::process::id() as u16) ^ (descriptor as u16).rotate_left(8) ^ clock_bits();
        Ok(Self { socket, ipv6, id, shots: Vec::new(), answered: BTreeMap::new() })
    }

    fn header(&self) -> u32 {
        if self.ipv6 { 40 } else { 20 }
    }

    /// Small packets and full ones first; where only small ones pass, sizes between.
    fn try_all(&mut self, targets: &[(usize, Target)], deadline: Instant, outcomes: &mut [Outcome]) {
        let mut first = Vec::new();
        for (number, target) in targets {
            first.push((*number, target.address, SMALL));
            if target.mtu > SMALL {
                first.push((*number, target.address, target.mtu));
            }
        }
        first.sort_by_key(|(.., size)| *size);
        self.send_until(&first, deadline, outcomes);
        let mut second = Vec::new();
        for (number, target) in targets {
            let outcome = outcomes.get(*number).copied().unwrap_or_default();
            if outcome.round_trip.is_some() && outcome.largest < target.mtu {
                second.extend(ladder(target.mtu).into_iter().map(|size| (*number, target.address, size)));
            }
        }
        second.sort_by_key(|(.., size)| *size);
        if !second.is_empty() {
            // All of them, twice: who answers the largest is told from the others' silence.
            let end = deadline.min(Instant::now() + 2 * AGAIN);
            self.answered.clear();
            self.send_until(&second, end, outcomes);
        }
    }

    /// Sends these, and again what is not answered, until all are or the time is over.
    fn send_until(&mut self, wanted: &[(usize, IpAddr, u32)], deadline: Instant, outcomes: &mut [Outcome]) {
        let base = self.shots.len();
        for (target, address, size) in wanted.iter().take(MOST.saturating_sub(base)) {
            let sent = Instant::now();
            self.shots.push(Shot { target: *target, address: *address, size: *size, sent, answered: false });
        }
        let mut next = Instant::now();
        loop {
            let now = Instant::now();
            let open = |shot: &Shot| !shot.answered && !self.is_late(shot, outcomes);
            if now >= deadline || !self.shots[base..].iter().any(open) {
                return;
            }
            if now >= next {
                let mut size = 0;
                for number in base..self.shots.len() {
                    let Shot { answered, size: this, .. } = self.shots[number];
                    if !answered {
                        // Apart, so that nothing on the way makes one of several.
                        if size != 0 && this != size {
                            std::thread::sleep(APART);
                        }
                        size = this;
                        self.send(number);
                    }
                }
                next = now + AGAIN;
            }
            self.receive(next.min(deadline), outcomes);
        }
    }

    /// Whether the small packet was answered long ago and this one was not: it will not be.
    fn is_late(&self, shot: &Shot, outcomes: &[Outcome]) -> bool {
        let round_trip = outcomes.get(shot.target).and_then(|outcome| outcome.round_trip).unwrap_or_default();
        self.answered.get(&shot.target).is_some_and(|answered| answered.elapsed() > 2 * round_trip + SLOWER)
    }

    /// Sends one. A packet that the kernel refuses, as one too large for its device, is one that does not pass.
    fn send(&mut self, number: usize) {
        let header = self.header();
        let Some(shot) = self.shots.get_mut(number) else { return };
        if shot.answered {
            return;
        }
        let length = usize::try_from(shot.size.saturating_sub(header)).unwrap_or(8).max(8);
        let mut packet = vec![0; length];
        packet[0] = if self.ipv6 { 128 } else { 8 };
        packet[4..6].copy_from_slice(&self.id.to_be_bytes());
        packet[6..8].copy_from_slice(&(number as u16).to_be_bytes());
        if !self.ipv6 {
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        shot.sent = Instant::now();
        let (address, size) = sockaddr(shot.address);
        // SAFETY: packet and address live through the call, and have the lengths that are told.
        let _ = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                size,
            )
        };
    }

    /// Takes answers until then.
    fn receive(&mut self, until: Instant, outcomes: &mut [Outcome]) {
        let wait = until.saturating_duration_since(Instant::now()).as_millis();
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, as told, which lives through the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, i32::try_from(wait.max(1)).unwrap_or(i32::MAX)) };
        if ready <= 0 {
            return;
        }
        let mut buffer = vec![0u8; 65_536];
        loop {
            // SAFETY: plain data, for which all zeroes is valid.
            let mut from: libc::sockaddr_storage = unsafe { zeroed() };
            let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            // SAFETY: the kernel writes at most the buffer's length into it, and the address's length into that.
            let got = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
            let Ok(got) = usize::try_from(got) else { return };
            if let Some(sender) = sender(&from) {
                self.take(&buffer[..got], sender, outcomes);
            }
        }
    }

    /// Takes one answer.
    fn take(&mut self, packet: &[u8], sender: IpAddr, outcomes: &mut [Outcome]) {
        let Some((number, size)) = answer(packet, self.ipv6, self.id) else { return };
        let Some(shot) = self.shots.get_mut(number) else { return };
        if shot.answered || shot.address != sender || size != shot.size.max(self_least(self.ipv6)) {
            return;
        }
        shot.answered = true;
        if let Some(outcome) = outcomes.get_mut(shot.target) {
            outcome.largest = outcome.largest.max(shot.size);
            if shot.size == SMALL {
                outcome.round_trip.get_or_insert(shot.sent.elapsed());
                self.answered.insert(shot.target, Instant::now());
            }
        }
    }
}

/// Bytes of an echo request without data.
fn self_least(ipv6: bool) -> u32 {
    if ipv6 { 48 } else { 28 }
}

/// The sizes that are tried below one that does not pass.
fn ladder(mtu: u32) -> Vec<u32> {
    let step = STEP.max(mtu.saturating_sub(LEAST) / LADDER);
    (1..=LADDER).map(|number| mtu.saturating_sub(number * step)).take_while(|size| *size >= LEAST).collect()
}

/// Some bits that differ from one moment to the next.
fn clock_bits() -> u16 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.subsec_nanos() >> 8) as u16
}

fn sender(from: &libc::sockaddr_storage) -> Option<IpAddr> {
    match i32::from(from.ss_family) {
        libc::AF_INET => {
            let at = (&raw const *from).cast::<libc::sockaddr_in>();
            // SAFETY: the family says that this is what the kernel wrote; the storage is aligned for it.
            Some(Ipv4Addr::from(unsafe { (*at).sin_addr.s_addr }.to_ne_bytes()).into())
        }
        libc::AF_INET6 => {
            let at = (&raw const *from).cast::<libc::sockaddr_in6>();
            // SAFETY: as above.
            Some(Ipv6Addr::from(unsafe { (*at).sin6_addr.s6_addr }).into())
        }
        _ => None,
    }
}

/// The number of the request that a packet answers, and the answer's size, IP header included. An IPv4 one begins with its
/// IP header, an IPv6 one does not (raw(7), RFC 3542 section 3).
pub(crate) fn answer(packet: &[u8], ipv6: bool, id: u16) -> Option<(usize, u32)> {
    let (header, kind) = match ipv6 {
        true => (0, 129),
        false => (usize::from(packet.first()? & 0xf) * 4, 0),
    };
    let &[found, 0, _, _, a, b, c, d, ..] = packet.get(header..)? else { return None };
    if found != kind || u16::from_be_bytes([a, b]) != id {
        return None;
    }
    let size = u32::try_from(packet.len()).ok()? + if ipv6 { 40 } else { 0 };
    Some((usize::from(u16::from_be_bytes([c, d])), size))
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums() {
        // The example of RFC 1071, section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }

    #[test]
    fn answers_are_recognized() {
        let mut packet = vec![0x45; 20];
        packet.extend([0, 0, 1, 2, 0xab, 0xcd, 0, 7, 9, 9]);
        assert_eq!(answer(&packet, false, 0xabcd), Some((7, 30)));
        assert_eq!(answer(&packet, false, 0xabce), None);
        assert_eq!(answer(&packet[20..], true, 0xabcd), None, "another type");
        packet[20] = 129;
        assert_eq!(answer(&packet[20..], true, 0xabcd), Some((7, 50)));
        for length in 0..28 {
            assert_eq!(answer(&packet[..length], false, 0xabcd), None);
        }
    }

    #[test]
    fn sizes_below_the_full_one() {
        let sizes = ladder(1450);
        assert_eq!((sizes[0], *sizes.last().unwrap_or(&0), sizes.len()), (1430, 590, 43));
        assert_eq!(ladder(590), [] as [u32; 0]);
        assert_eq!(ladder(9000).len(), 64);
    }
}
