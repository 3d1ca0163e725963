//! The managers' port, on threads of its own: TLS and HTTP/2 of all its connections, and Raft's messages. The handlers
//! of everything else run on the daemon's runtime as ever. So a burst of work there delays no heartbeat of Raft, which
//! would cost the leader its lead.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use anyhow::Context as _;
use futures::future::BoxFuture;
use skep_identity::ServerTls;
use skep_identity::transport::{self, AcceptLimits, Keepalive};
use skep_proto::v1::quorum_server::QuorumServer;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tracing::warn;

/// Threads that read and write the port's connections. One may be busy with a handshake while the other reads on.
const THREADS: usize = 2;
/// What a caller may send ahead on one stream: a large append or a piece of a snapshot goes in one flight.
const STREAM_WINDOW: u32 = 2 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// The open port; closed with all its connections when dropped.
#[derive(Debug)]
pub struct Serving {
    addr: SocketAddr,
    runtime: Option<Runtime>,
}

impl Serving {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes the port and its connections. The port is free when this returns.
    pub async fn close(mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Its tasks are dropped where they wait; none of them blocks.
            let closed = tokio::task::spawn_blocking(move || drop(runtime)).await;
            if closed.is_err() {
                warn!("closing the managers' port panicked");
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Blocking is not allowed everywhere; the listener goes with its task in a moment.
            runtime.shutdown_background();
        }
    }
}

/// Opens the port. Call it within the runtime that is to run the handlers.
pub(crate) async fn serve(listener: TcpListener, tls: ServerTls, routes: Routes) -> anyhow::Result<Serving> {
    let addr = listener.local_addr().context("the managers' port has no address")?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("skep-managers")
        .enable_all()
        .build()
        .context("cannot start the threads of the managers' port")?;
    let handlers = Handle::current();
    let listener = listener.into_std().context("the managers' port cannot be handed over")?;
    runtime.spawn(async move {
        // It was made by tokio, hence does not block.
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return warn!(%error, "the managers' port is closed"),
        };
        let elsewhere = layer_fn(move |inner: Routes| Elsewhere { inner, handlers: handlers.clone() });
        let server = transport::server(Keepalive::MANAGERS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .layer(elsewhere)
            .add_routes(routes);
        let incoming = transport::incoming(listener, tls, AcceptLimits::default());
        if let Err(error) = server.serve_with_incoming(incoming).await {
            warn!(%error, "the managers' port is closed");
        }
    });
    Ok(Serving { addr, runtime: Some(runtime) })
}

/// Runs handlers on the daemon's runtime, but those of `Quorum`, which wait for nothing but Raft's own.
#[derive(Clone)]
struct Elsewhere<S> {
    inner: S,
    handlers: Handle,
}

impl<S> Service<Request<Body>> for Elsewhere<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that was polled ready.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        if is_quorum(request.uri().path()) {
            return Box::pin(inner.call(request));
        }
        let running = Aborting(self.handlers.spawn(async move { inner.call(request).await }));
        Box::pin(async move {
            match running.await {
                Ok(answer) => answer,
                Err(error) => {
                    let code = if error.is_panic() { Code::Internal } else { Code::Unavailable };
                    Ok(Status::new(code, "the call was not finished").into_http())
                }
            }
        })
    }
}

fn is_quorum(path: &str) -> bool {
    path.trim_start_matches('/').split('/').next() == Some(QuorumServer::<()>::NAME)
}

/// A handler that ends when its caller goes away.
struct Aborting<T>(tokio::task::JoinHandle<T>);

impl<T> Future for Aborting<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
