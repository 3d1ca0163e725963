//! Ports of the host that are led on to networks, each held by a socket of netd's, so that no process of the host loses
//! one, or opens one, without anybody being told.
//!
//! A socket that is bound and does not listen is enough: nobody else can bind the port, and whatever no rule leads on is
//! refused by the kernel as on a closed port. It is bound with SO_REUSEADDR, which passes over what is left of a server that
//! has ended (TIME_WAIT, connections that it had accepted), and without it from then on: with it, another socket that has
//! it too could still listen (socket(7), tcp(7)). A datagram socket takes what no rule leads on, such as what is sent to
//! ::1; its buffer is the smallest there is. Used by [`super::publish`] only.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
use skep_netlink::nft::Transport;

/// Between two tries to get what a netd has that is about to be gone.
const AGAIN: Duration = Duration::from_millis(2);

/// A port that the host leads on to a network, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Published {
    /// Of IPv6 rather than IPv4.
    pub ipv6: bool,
    /// TCP or UDP.
    pub transport: Transport,
    /// On the host.
    pub port: u16,
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{}/{transport}", self.port)
    }
}

/// What became of ports that were to be held.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    /// Held; `None` where this host has no such sockets at all, or can have no more of them: nothing speaks against the
    /// port then.
    pub(super) held: Vec<(Published, Option<OwnedFd>)>,
    /// A process of the host has them.
    pub(super) refused: Vec<Published>,
}

/// Reserves ports in this thread's namespace. Waits for those that somebody has, but no longer than `patience` for all of
/// them, and takes from it what it needed.
pub(super) fn reserve(ports: &[Published], patience: &mut Duration) -> Reserved {
    let mut reserved = Reserved::default();
    for port in ports {
        match reserve_one(*port, patience) {
            Ok(socket) => reserved.held.push((*port, Some(socket))),
            Err(Errno::EADDRINUSE) => reserved.refused.push(*port),
            Err(errno) => {
                // A host without IPv6 has no such sockets.
                if errno != Errno::EAFNOSUPPORT {
                    tracing::warn!(%port, "the port is published, but not kept from the host's processes: {errno}");
                }
                reserved.held.push((*port, None));
            }
        }
    }
    reserved
}

fn reserve_one(port: Published, patience: &mut Duration) -> Result<OwnedFd, Errno> {
    loop {
        let start = Instant::now();
        match open(port) {
            Err(Errno::EADDRINUSE) if !patience.is_zero() => {
                std::thread::sleep(AGAIN.min(*patience));
                *patience = patience.saturating_sub(start.elapsed());
            }
            done => return done,
        }
    }
}

fn open(port: Published) -> Result<OwnedFd, Errno> {
    let family = if port.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let kind = match port.transport {
        Transport::Tcp => SockType::Stream,
        Transport::Udp => SockType::Datagram,
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    let any = if port.ipv6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
    if port.ipv6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    match port.transport {
        Transport::Tcp => setsockopt(&socket, sockopt::ReuseAddr, &true)?,
        Transport::Udp => setsockopt(&socket, sockopt::RcvBuf, &0)?,
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port.port)))?;
    if port.transport == Transport::Tcp {
        setsockopt(&socket, sockopt::ReuseAddr, &false)?;
    }
    Ok(socket)
}

/// Why a port is not published.
#[derive(Debug, thiserror::Error)]
#[error("{}", in_use(*port, holder.as_ref()))]
pub struct PortTaken {
    /// The port.
    pub port: Published,
    /// Who has it, where that can be seen.
    pub holder: Option<Holder>,
}

/// A process that has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number, as this process sees it.
    pub pid: u32,
    /// Its name, of 15 bytes at most (proc(5), `comm`).
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, pid {}", self.name, self.pid)
    }
}

/// That a process of the host has a port.
pub(super) fn in_use(port: Published, holder: Option<&Holder>) -> String {
    let who = holder.map(|holder| format!(" ({holder})")).unwrap_or_default();
    format!("port {port} is in use by another process on this host{who}")
}

/// Why nothing is published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A process of the host has a port.
    #[error(transparent)]
    Taken(#[from] PortTaken),
    /// The kernel refused the rules.
    #[error(transparent)]
    Netlink(#[from] skep_netlink::NetlinkError),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use skep_netlink::Namespace;

    use super::*;

    fn published(transport: Transport, ipv6: bool) -> Published {
        Published { ipv6, transport, port: 8080 }
    }

    /// Runs in a namespace of its own. Without root nothing runs.
    fn alone(test: impl FnOnce() + Send) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let run = |_: &skep_netlink::Inside| {
            test();
            Ok::<_, skep_netlink::NetlinkError>(())
        };
        Namespace::anonymous(run).unwrap();
    }

    fn now(port: Published) -> Result<OwnedFd, Errno> {
        let mut none = Duration::ZERO;
        reserve_one(port, &mut none)
    }

    #[test]
    fn nobody_else_gets_a_port_that_is_held() {
        alone(|| {
            let (tcp, udp) = (published(Transport::Tcp, false), published(Transport::Udp, false));
            let held = [now(tcp).unwrap(), now(udp).unwrap()];
            // Rust's listeners set SO_REUSEADDR, as most servers do.
            for address in ["0.0.0.0:8080", "127.0.0.1:8080", "[::]:8080"] {
                let refused = TcpListener::bind(address).map(drop).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{address}");
                let refused = UdpSocket::bind(address).map(drop).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{address}");
            }
            // The other family is free, and held by itself.
            TcpListener::bind("[::1]:8080").unwrap();
            let other = now(published(Transport::Tcp, true)).unwrap();
            TcpListener::bind("[::1]:8080").unwrap_err();
            // It does not answer.
            let refused = TcpStream::connect("127.0.0.1:8080").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            assert_eq!(now(tcp).map(drop), Err(Errno::EADDRINUSE), "nor does another netd");
            drop((held, other));
            TcpListener::bind("[::]:8080").unwrap();
            UdpSocket::bind("[::]:8080").unwrap();
        });
    }

    #[test]
    fn servers_are_seen_and_what_is_left_of_them_is_not_in_the_way() {
        alone(|| {
            let port = published(Transport::Tcp, false);
            let server = TcpListener::bind("127.0.0.1:8080").unwrap();
            assert_eq!(now(port).map(drop), Err(Errno::EADDRINUSE));
            // Of the one connection a server's end waits, the other one is open still.
            let mut clients = [0, 1].map(|_| TcpStream::connect("127.0.0.1:8080").unwrap());
            let (closed, _) = server.accept().unwrap();
            let open = server.accept().unwrap();
            drop(closed);
            let mut nothing = Vec::new();
            io::Read::read_to_end(&mut clients[0], &mut nothing).unwrap();
            drop((clients, server));
            let held = now(port).unwrap();
            TcpListener::bind("127.0.0.1:8080").unwrap_err();
            drop((open, held));
            let server = UdpSocket::bind("127.0.0.1:8080").unwrap();
            assert_eq!(now(published(Transport::Udp, false)).map(drop), Err(Errno::EADDRINUSE));
            drop(server);
        });
    }

    #[test]
    fn patience_is_for_all_together() {
        alone(|| {
            let _server = TcpListener::bind("0.0.0.0:8080").unwrap();
            let ports = [published(Transport::Tcp, false); 50];
            let (start, mut patience) = (Instant::now(), Duration::from_millis(20));
            let reserved = reserve(&ports, &mut patience);
            assert_eq!((reserved.held.len(), reserved.refused.len()), (0, 50));
            assert!(patience.is_zero() && start.elapsed() >= Duration::from_millis(20));
        });
    }

    #[test]
    fn sentences_name_who_has_the_port() {
        let port = published(Transport::Udp, false);
        let taken = PortTaken { port, holder: None };
        assert_eq!(taken.to_string(), "port 8080/udp is in use by another process on this host");
        let taken = PortTaken { port, holder: Some(Holder { pid: 7, name: "dnsmasq".to_owned() }) };
        assert_eq!(taken.to_string(), "port 8080/udp is in use by another process on this host (dnsmasq, pid 7)");
    }
}
