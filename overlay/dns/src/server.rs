//! Serves the sandboxes of a host: one task for each, which owns its sockets.
//!
//! Driven by netd. The sandboxes share the networks' tables, the host's name servers and one limit of questions under way;
//! everything else is each one's own, so that one that floods or stalls takes its own time and nobody else's.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::resolv::HostServers;
use crate::sandbox::{Sandbox, serve};
use crate::view::View;

/// Questions of all sandboxes that may be under way to name servers; further ones wait. Each has one socket, a few while
/// its servers are silent. With two sockets for each sandbox and its connections they need open files: see the crate's top.
const FORWARDED_AT_ONCE: usize = 1024;

/// Why a sandbox cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It is served already.
    #[error("names are already served in the sandbox {0}")]
    Taken(String),
    /// Its sockets cannot be used.
    #[error("cannot serve names in the sandbox {sandbox}")]
    Sockets {
        /// The sandbox.
        sandbox: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// What the sandboxes of a host share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) host: HostServers,
    pub(crate) forwards: Semaphore,
}

struct Running {
    sandbox: Arc<Sandbox>,
    /// Dropped to stop.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// The name server of a host's sandboxes. Dropped, it stops serving all of them, not waiting for that.
pub struct Server {
    runtime: Handle,
    shared: Arc<Shared>,
    sandboxes: Mutex<HashMap<String, Running>>,
}

impl Server {
    /// `resolv_conf`: the file with the host's name servers, `/etc/resolv.conf`; read when the first question is forwarded,
    /// and again after it changed. Tasks are started on `runtime`, which needs its I/O and time drivers.
    pub fn new(runtime: Handle, resolv_conf: PathBuf) -> Self {
        let shared = Shared { host: HostServers::new(resolv_conf), forwards: Semaphore::new(FORWARDED_AT_ONCE) };
        Self { runtime, shared: Arc::new(shared), sandboxes: Mutex::default() }
    }

    /// Serves a sandbox on sockets that the caller bound at 127.0.0.11:53 in its namespace. They are closed when the
    /// sandbox is removed; whoever wants to hand them on keeps duplicates (`try_clone`).
    ///
    /// # Errors
    ///
    /// [`ServerError::Taken`], [`ServerError::Sockets`]. Then the sockets are closed.
    pub fn add(
        &self,
        id: &str,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
        view: View,
    ) -> Result<(), ServerError> {
        let mut sandboxes = self.sandboxes();
        if sandboxes.contains_key(id) {
            return Err(ServerError::Taken(id.to_owned()));
        }
        let (udp, tcp) =
            self.adopt(udp, tcp).map_err(|source| ServerError::Sockets { sandbox: id.to_owned(), source })?;
        let sandbox = Arc::new(Sandbox::new(udp, view, Arc::clone(&self.shared)));
        let (stop, stopped) = oneshot::channel();
        let task = self.runtime.spawn(serve(Arc::clone(&sandbox), tcp, stopped));
        sandboxes.insert(id.to_owned(), Running { sandbox, stop, task });
        Ok(())
    }

    fn adopt(&self, udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> io::Result<(UdpSocket, TcpListener)> {
        let _inside = self.runtime.enter();
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
    }

    /// Gives a sandbox another view: from the next question on. `false`: there is no such sandbox. Changes of a network's
    /// rows need no call: see [`Network::change`](crate::Network::change).
    pub fn update(&self, id: &str, view: View) -> bool {
        self.sandboxes().get(id).map(|running| running.sandbox.set_view(view)).is_some()
    }

    /// Stops serving a sandbox. When this returns its sockets are closed and nothing holds its namespace any more.
    /// `false`: there is no such sandbox.
    pub async fn remove(&self, id: &str) -> bool {
        let Some(Running { sandbox, stop, task }) = self.sandboxes().remove(id) else { return false };
        drop(stop);
        // It ends by itself; an error would be its panic, which the runtime has reported.
        let _ = task.await;
        drop(sandbox);
        true
    }

    /// The sandboxes that are served, in no order.
    pub fn ids(&self) -> Vec<String> {
        self.sandboxes().keys().cloned().collect()
    }

    fn sandboxes(&self) -> std::sync::MutexGuard<'_, HashMap<String, Running>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "server_test.rs"]
pub(crate) mod server_test;
