//! Sockets towards name servers: in the host's network namespace, or in that of a sandbox.
//!
//! Used by the forwarder, once for each try: a fresh socket has a port that the kernel draws at random, which whoever forges
//! an answer has to guess together with the id (RFC 5452). The thread that enters a sandbox's namespace does nothing else and
//! ends at once, so no other thread's network ever changes.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// From where name servers are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From the host: the namespace of this process. A resolver on the host's loopback answers.
    Host,
    /// From a sandbox, named by the path of its namespace. Reaches what the sandbox reaches, over its networks, and nothing
    /// of the host's loopback. Not held open: the namespace goes when its sandbox goes.
    Namespace(PathBuf),
}

/// A UDP socket that receives from `server` only.
pub(crate) async fn udp(origin: &Origin, server: SocketAddr) -> io::Result<UdpSocket> {
    let local = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = match origin {
        Origin::Host => UdpSocket::bind(local).await?,
        Origin::Namespace(path) => {
            let socket = inside(path, move || std::net::UdpSocket::bind(local)).await?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)?
        }
    };
    socket.connect(server).await?;
    Ok(socket)
}

/// A connection to `server`.
pub(crate) async fn tcp(origin: &Origin, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = match (origin, server) {
        (Origin::Host, SocketAddr::V4(_)) => TcpSocket::new_v4()?,
        (Origin::Host, SocketAddr::V6(_)) => TcpSocket::new_v6()?,
        (Origin::Namespace(path), server) => {
            let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let made = inside(path, move || Ok(socket(family, SockType::Stream, flags, None)?)).await?;
            TcpSocket::from_std_stream(made.into())
        }
    };
    socket.connect(server).await
}

/// Runs `make` on a thread of its own in the namespace at `path`.
async fn inside<T: Send + 'static>(
    path: &Path,
    make: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let path = path.to_owned();
    let enter = move || {
        let namespace = File::open(path)?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        make()
    };
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("dns-socket".to_owned()).spawn(move || {
        // Nobody waits any more: the socket is closed.
        let _ = send.send(enter());
    })?;
    receive.await.unwrap_or_else(|_| Err(io::Error::other("the thread that enters a namespace died")))
}
