//! The daemon's life: take the data directory, open what it keeps, serve the local socket, resume the swarm, and stop
//! in order on a signal. Containers outlive it.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use skep_identity::transport::{ByCertificate, bind_unix_for, gated, unix_incoming};
use skep_proto::v1::daemon_server::DaemonServer;
use skep_proto::v1::images_server::ImagesServer;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::service::Routes;
use tower::layer::layer_fn;
use tracing::{info, warn};

use crate::config::Config;
use crate::hardening;
use crate::host::Host;
use crate::lock::DirLock;
use crate::membership::Membership;
use crate::metrics;
use crate::service::{DaemonService, ImagesService};
use crate::switch::{Control, ManagerRoutes, Switch};

/// Exit code of a forced stop: 128 + SIGTERM.
const FORCED: u8 = 143;

/// Runs until SIGTERM or SIGINT. Errors are about the start; after it the daemon stays up and reports through its API.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    hardening::no_dumps()?;
    hardening::open_files();
    // Before anything is opened: a second daemon must not touch the first one's files.
    let lock = DirLock::take(&config.data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("skep")
        .build()
        .context("cannot start the runtime")?;
    let code = runtime.block_on(serve(config));
    // Detached work (an unpack, a blocking read) must not hold the exit.
    runtime.shutdown_background();
    drop(lock);
    code
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    if let Some(parent) = config.socket.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let (socket, group, metrics_addr) = (config.socket.clone(), config.group, config.metrics_addr);
    let host = Arc::new(Host::open(config).await?);
    let routes = ManagerRoutes::new(Control::Starting("this daemon is starting: try again in a moment".to_owned()));
    let membership = Membership::new(Arc::clone(&host), routes.clone());
    let own =
        Routes::new(DaemonServer::new(DaemonService { host: Arc::clone(&host), membership: Arc::clone(&membership) }))
            .add_service(ImagesServer::new(ImagesService {
                host: Arc::clone(&host),
                membership: Arc::clone(&membership),
            }));
    let own = gated(own, Arc::new(ByCertificate));
    // Beside the socket: whoever asks meanwhile hears that it is pending.
    membership.start();
    if let Some(addr) = metrics_addr {
        let listener = TcpListener::bind(addr).await;
        let listener = listener.with_context(|| format!("--metrics-addr: cannot listen on {addr}"))?;
        tokio::spawn(metrics::serve(listener, Arc::clone(&host), Arc::clone(&membership)));
    }
    let listener = bind_unix_for(&socket, group).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let switch = layer_fn(move |own: Routes| Switch { own, manager: routes.clone() });
    let server = tonic::transport::Server::builder().layer(switch).add_routes(own);
    let mut serving = tokio::spawn(server.serve_with_incoming(unix_incoming(listener)));
    info!(version = env!("CARGO_PKG_VERSION"), socket = %socket.display(), "ready");
    let end = tokio::select! {
        _ = terminate.recv() => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::SUCCESS,
        ended = &mut serving => {
            warn!(?ended, "the local socket is closed");
            // Nobody asked for it: whoever watches this process starts it again.
            ExitCode::FAILURE
        }
    };
    info!("stopping; containers go on");
    let stopped = async {
        membership.shutdown().await;
        serving.abort();
    };
    let code = tokio::select! {
        () = stopped => end,
        () = second_signal(&mut terminate, &mut interrupt) => {
            warn!("stopping at once");
            ExitCode::from(FORCED)
        }
    };
    // Fails only when it is gone already.
    let _ = std::fs::remove_file(&socket);
    Ok(code)
}

async fn second_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
