//! Forwards a question to name servers, and brings back an answer that can be believed.
//!
//! Called by the server for names that are not ours; one call for each question, which owns its sockets and tries and takes
//! them along when it is dropped. Servers are asked in their order, those that did not answer lately last; the next one
//! is asked when one fails, or says nothing for a second, while the earlier ones are still listened to.
//!
//! Never keeps answers, and never asks twice over one socket.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};

use crate::message::{Forwarded, Request, Transport};
pub use crate::sockets::Origin;
use crate::sockets::{tcp, udp};

/// How long one server may be silent before the next is asked too.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a question may take in all: less than the 5 s after which resolvers in containers ask again (resolv.conf(5)).
const DEADLINE: Duration = Duration::from_millis(4500);
/// How often each server is asked.
const ROUNDS: usize = 2;
/// How long a server that did not answer is asked last.
const SUSPICION: Duration = Duration::from_secs(10);
/// The longest answer over UDP that is read; three times what is asked for.
const LONGEST_ANSWER: usize = 4096;
/// The name server of sandboxes itself: asked from a sandbox it would forward to itself without end.
const OURSELVES: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Who is asked for names that are not ours.
#[derive(Clone, Debug, Default)]
pub enum Upstream {
    /// Nobody: the sandbox has no way out, and a name that is not ours does not exist.
    #[default]
    None,
    /// The host's name servers, those of the file that [`Server::new`](crate::Server::new) was given.
    Host,
    /// Name servers of the sandbox's own.
    Servers(Arc<NameServers>),
}

impl Upstream {
    /// Name servers of the sandbox's own, in their order. Where none is left (there are none, or only the sandbox's
    /// 127.0.0.11 itself), questions fail (SERVFAIL).
    pub fn servers(servers: &[SocketAddr], origin: Origin) -> Self {
        Self::Servers(Arc::new(NameServers::new(servers, origin)))
    }
}

/// Name servers, and which of them answered lately.
#[derive(Debug)]
pub struct NameServers {
    addresses: Vec<SocketAddr>,
    /// For each: until when it is asked last, in milliseconds on [`clock`]. Short of memory: one number.
    suspect_until: Vec<AtomicU64>,
    origin: Origin,
}

impl NameServers {
    pub(crate) fn new(servers: &[SocketAddr], origin: Origin) -> Self {
        let mut addresses = servers.to_vec();
        if origin != Origin::Host {
            addresses.retain(|server| server.ip() != OURSELVES);
        }
        let suspect_until = addresses.iter().map(|_| AtomicU64::new(0)).collect();
        Self { addresses, suspect_until, origin }
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Indexes of the servers in the order in which they are asked.
    fn order(&self) -> Vec<usize> {
        let now = clock();
        let mut order: Vec<usize> = (0..self.addresses.len()).collect();
        // Stable: within each half the order stays.
        order.sort_by_key(|&index| self.suspect_until[index].load(Ordering::Relaxed) > now);
        order
    }

    fn suspect(&self, index: usize) {
        self.suspect_until[index].store(clock() + SUSPICION.as_millis() as u64, Ordering::Relaxed);
    }

    fn trust(&self, index: usize) {
        self.suspect_until[index].store(0, Ordering::Relaxed);
    }
}

/// Milliseconds since the first call.
fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}

/// Asks the servers. `None`: none of them said anything; otherwise the best that was said, a failure only if nothing else
/// came.
pub(crate) async fn ask(servers: Arc<NameServers>, request: Arc<Request>) -> Option<Forwarded> {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let order = servers.order();
    let mut waiting = (0..ROUNDS).flat_map(|_| order.iter().copied());
    let mut asked = None;
    let mut tries = JoinSet::new();
    let mut failure = None;
    loop {
        if let Some(index) = waiting.next() {
            asked = Some(index);
            let (servers, request) = (Arc::clone(&servers), Arc::clone(&request));
            tries.spawn(async move { (index, ask_one(&servers, index, &request, deadline).await) });
        } else if tries.is_empty() {
            return failure;
        }
        let next = (tokio::time::Instant::now() + PATIENCE).min(deadline);
        tokio::select! {
            Some(ended) = tries.join_next() => match ended {
                Ok((index, Ok(answer))) => {
                    servers.trust(index);
                    if !answer.is_failure() {
                        return Some(answer);
                    }
                    failure = Some(answer);
                }
                Ok((index, Err(error))) => {
                    tracing::debug!(server = %servers.addresses[index], %error, "a name server cannot be asked");
                    servers.suspect(index);
                }
                Err(_) => {}
            },
            () = sleep_until(next) => {
                if let Some(index) = asked.take() {
                    servers.suspect(index);
                }
                if tokio::time::Instant::now() >= deadline {
                    return failure;
                }
            }
        }
    }
}

/// Asks one server: over UDP, and again over TCP if the answer was cut and the client can take all of it.
async fn ask_one(
    servers: &NameServers,
    index: usize,
    request: &Request,
    deadline: tokio::time::Instant,
) -> io::Result<Forwarded> {
    let server = servers.addresses[index];
    let answer = within(deadline, over_udp(&servers.origin, server, request)).await?;
    if !answer.truncated || request.transport == Transport::Udp {
        return Ok(answer);
    }
    match within(deadline, over_tcp(&servers.origin, server, request)).await {
        Ok(whole) => Ok(whole),
        // A part, marked as such, is better than nothing.
        Err(_) => Ok(answer),
    }
}

async fn within<T>(deadline: tokio::time::Instant, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout_at(deadline, what).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn over_udp(origin: &Origin, server: SocketAddr, request: &Request) -> io::Result<Forwarded> {
    let id = rand::random();
    let socket = udp(origin, server).await?;
    socket.send(&request.forwarded(id)).await?;
    loop {
        // A refusal (ICMP) is no data: without asking for errors it would go unnoticed until the time is up.
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if let Some(answer) = receive(&socket, id, request)? {
            return Ok(answer);
        }
        if ready.is_error() {
            let refused = socket.take_error()?;
            return Err(refused.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
        }
    }
}

/// What has arrived, if it is the answer; anything else is dropped, and the right one may still come. The buffer is here
/// and not in the task: it takes memory only while something arrives.
fn receive(socket: &UdpSocket, id: u16, request: &Request) -> io::Result<Option<Forwarded>> {
    let mut buffer = [0; LONGEST_ANSWER];
    match socket.try_recv(&mut buffer) {
        Ok(length) => Ok(request.verify(id, &buffer[..length])),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

async fn over_tcp(origin: &Origin, server: SocketAddr, request: &Request) -> io::Result<Forwarded> {
    let id = rand::random();
    let query = request.forwarded(id);
    let mut stream = tcp(origin, server).await?;
    let mut framed = (query.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(&query);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    request
        .verify(id, &answer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))
}

#[cfg(test)]
#[path = "upstream_test.rs"]
pub(crate) mod upstream_test;
