//! One sandbox: its sockets, its view, and the task that serves them.
//!
//! Started and stopped by the server. Names of ours are answered at once, where the question is read; what goes to name
//! servers and each TCP connection is a task of its own, and all of them end with the sandbox. Nothing here waits for a
//! client: an answer that cannot be sent is dropped, a connection that does not move is closed.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use crate::answer::{Answer, Decision, decide};
use crate::message::{Forwarded, LONGEST_QUERY, Parsed, Request, Transport, parse};
use crate::server::Shared;
use crate::upstream::{NameServers, Upstream, ask};
use crate::view::View;

/// Questions of one sandbox that may be under way to name servers; further ones fail at once. Docker began with 100 and
/// found that busy containers with slow name servers need more. A quarter of what all may have: it takes several that
/// misbehave to hold up the others.
pub(crate) const FORWARDED_AT_ONCE: usize = 256;
/// How long a question waits for its turn among those of all sandboxes.
const TURN: Duration = Duration::from_secs(2);
/// How long name servers have to say that they know a name which is ours but for a search domain. Less than what makes
/// resolvers ask again: our own names work when the name servers are gone.
const CLAIM: Duration = Duration::from_secs(2);
/// TCP connections of one sandbox; further ones are closed at once.
const CONNECTIONS: usize = 32;
/// How long a connection may rest between questions, and how long each question and answer may take on the way
/// (RFC 7766, 6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Datagrams that are read in one go, before other sandboxes have their turn.
const BATCH: usize = 32;
/// How long a sandbox rests whose socket fails, or when there are no descriptors left: the fault may pass.
const REST: Duration = Duration::from_millis(50);

/// What the tasks of one sandbox share.
#[derive(Debug)]
pub(crate) struct Sandbox {
    udp: UdpSocket,
    view: RwLock<Arc<View>>,
    seed: AtomicU64,
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    shared: Arc<Shared>,
}

/// A question that name servers are to be asked.
struct Forward {
    request: Request,
    servers: Arc<NameServers>,
    /// The answer if they do not know the name.
    otherwise: Option<Answer>,
}

/// What is to be done about octets from a client.
enum Handled {
    Reply(Vec<u8>),
    Forward(Forward),
    /// They are no query.
    Nothing,
}

impl Sandbox {
    pub(crate) fn new(udp: UdpSocket, view: View, shared: Arc<Shared>) -> Self {
        Self {
            udp,
            view: RwLock::new(Arc::new(view)),
            seed: AtomicU64::new(rand::random()),
            forwards: Arc::new(Semaphore::new(FORWARDED_AT_ONCE)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            shared,
        }
    }

    pub(crate) fn set_view(&self, view: View) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    /// Answers a query, or says what else is to be done with it. Does not wait.
    fn handle(&self, octets: &[u8], transport: Transport) -> Handled {
        let request = match parse(octets, transport) {
            Parsed::Request(request) => request,
            Parsed::Reply(reply) => return Handled::Reply(reply),
            Parsed::Drop => return Handled::Nothing,
        };
        let view = Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner));
        let seed = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let otherwise = match decide(&view, &request.question(), seed) {
            Decision::Answer(answer) => return Handled::Reply(request.answer(&answer)),
            Decision::Ask => None,
            Decision::AskOr(answer) => Some(answer),
        };
        let servers = match view.name_servers() {
            Upstream::Servers(servers) => Arc::clone(servers),
            Upstream::Host => self.shared.host.current(Instant::now()),
            // Not decided without a way out.
            Upstream::None => return Handled::Reply(request.failure()),
        };
        Handled::Forward(Forward { request, servers, otherwise })
    }

    /// A place among this sandbox's questions under way. `None`: it has all it may have.
    fn permit(self: &Arc<Self>) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.forwards).try_acquire_owned().ok()
    }

    async fn forward(self: Arc<Self>, forward: Forward, permit: Option<OwnedSemaphorePermit>) -> Vec<u8> {
        let Forward { request, servers, otherwise } = forward;
        let request = Arc::new(request);
        let said = match permit {
            Some(_permit) => self.ask(servers, Arc::clone(&request), otherwise.is_some()).await,
            None => None,
        };
        match (said, otherwise) {
            (Some(said), Some(ours)) if said.is_no_name() || said.is_failure() => request.answer(&ours),
            (Some(said), _) => request.relay(said),
            (None, Some(ours)) => request.answer(&ours),
            (None, None) => request.failure(),
        }
    }

    async fn ask(&self, servers: Arc<NameServers>, request: Arc<Request>, ours: bool) -> Option<Forwarded> {
        let _turn = timeout(TURN, self.shared.forwards.acquire()).await.ok()?.ok()?;
        match ours {
            false => ask(servers, request).await,
            true => timeout(CLAIM, ask(servers, request)).await.ok()?,
        }
    }

    /// Answers the datagrams that have arrived, a batch at most.
    fn drain(self: &Arc<Self>, work: &mut JoinSet<()>) -> io::Result<()> {
        // Here and not in the task: it takes memory only while it is used.
        let mut buffer = [0; LONGEST_QUERY + 1];
        for _ in 0..BATCH {
            let (length, client) = match self.udp.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            match self.handle(&buffer[..length], Transport::Udp) {
                Handled::Reply(reply) => self.send(&reply, client),
                Handled::Forward(forward) => match self.permit() {
                    Some(permit) => {
                        let sandbox = Arc::clone(self);
                        work.spawn(async move {
                            let reply = Arc::clone(&sandbox).forward(forward, Some(permit)).await;
                            sandbox.send(&reply, client);
                        });
                    }
                    // No task for it: a flood costs no memory.
                    None => self.send(&forward.refused(), client),
                },
                Handled::Nothing => {}
            }
        }
        Ok(())
    }

    /// Sends a datagram, or drops it: the client asks again.
    fn send(&self, reply: &[u8], client: SocketAddr) {
        let _ = self.udp.try_send_to(reply, client);
    }

    /// Serves a connection until it ends, rests too long or sends what is no query. Questions are answered one after the
    /// other, in their order.
    async fn converse(self: Arc<Self>, mut stream: TcpStream) {
        loop {
            let Ok(Ok(length)) = timeout(IDLE, stream.read_u16()).await else { return };
            let mut query = vec![0; usize::from(length).min(LONGEST_QUERY + 1)];
            let Ok(Ok(_)) = timeout(IDLE, stream.read_exact(&mut query)).await else { return };
            let reply = match self.handle(&query, Transport::Tcp) {
                Handled::Reply(reply) => reply,
                Handled::Forward(forward) => {
                    let permit = self.permit();
                    Arc::clone(&self).forward(forward, permit).await
                }
                Handled::Nothing => return,
            };
            let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
            framed.extend_from_slice(&reply);
            let Ok(Ok(())) = timeout(IDLE, stream.write_all(&framed)).await else { return };
            if query.len() > LONGEST_QUERY {
                return;
            }
        }
    }
}

impl Forward {
    /// The answer when there is no place among the questions under way.
    fn refused(&self) -> Vec<u8> {
        self.otherwise.as_ref().map_or_else(|| self.request.failure(), |ours| self.request.answer(ours))
    }
}

/// Serves the sandbox until the sender of `stop` is dropped. Then its sockets, connections and forwarded questions go,
/// before it returns, but for what `sandbox` holds elsewhere.
pub(crate) async fn serve(sandbox: Arc<Sandbox>, tcp: TcpListener, mut stop: oneshot::Receiver<()>) {
    let mut work = JoinSet::new();
    loop {
        let failed = tokio::select! {
            _ = &mut stop => break,
            ready = sandbox.udp.readable() => ready.and_then(|()| sandbox.drain(&mut work)).err(),
            accepted = tcp.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Ok(permit) = Arc::clone(&sandbox.connections).try_acquire_owned() {
                        let sandbox = Arc::clone(&sandbox);
                        work.spawn(async move {
                            let _permit = permit;
                            sandbox.converse(stream).await;
                        });
                    }
                    None
                }
                Err(error) => Some(error),
            },
            Some(_) = work.join_next() => None,
        };
        match failed {
            None => yield_now().await,
            Some(error) => {
                tracing::debug!(%error, "a sandbox's name server rests");
                tokio::select! {
                    _ = &mut stop => break,
                    () = sleep(REST) => {}
                }
            }
        }
    }
    work.shutdown().await;
}
