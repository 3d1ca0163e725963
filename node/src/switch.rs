//! Sends the calls on the local socket to where they belong: the daemon's own services, or the manager's while this
//! host is one.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tonic::{Status, server::NamedService};

use skep_manager::Figures;
use skep_proto::v1::daemon_server::DaemonServer;
use skep_proto::v1::images_server::ImagesServer;

use crate::membership::LOCKED;

/// How long a call waits for a manager that is starting: whoever has just started the daemon need not ask twice.
const STARTING: Duration = Duration::from_secs(10);

/// What the control API is right now.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    /// A manager serves it, and counts.
    Served(Routes, Counts),
    /// A manager, or the daemon itself, is starting: calls wait a moment, then hear this.
    Starting(String),
    /// This host is a manager that cannot serve for a reason that may pass: calls hear it and may try again.
    Halted(String),
    /// This host is a manager that waits for its unlock key: only what is about that is answered.
    Locked,
    /// There is no manager here, or none that will serve by itself: calls hear why.
    Absent(String),
}

/// Where the figures of a manager that serves are read.
#[derive(Clone)]
pub(crate) struct Counts(Arc<dyn Fn() -> Figures + Send + Sync>);

impl Counts {
    /// Read by this.
    pub(crate) fn of(read: impl Fn() -> Figures + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// The figures of now.
    pub(crate) fn read(&self) -> Figures {
        (self.0)()
    }
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counts")
    }
}

/// The control API of this host, for the switch and for who changes it. Clones share it.
#[derive(Clone)]
pub(crate) struct ManagerRoutes(Arc<watch::Sender<Control>>);

impl ManagerRoutes {
    /// Starts with this.
    pub(crate) fn new(control: Control) -> Self {
        Self(Arc::new(watch::Sender::new(control)))
    }

    /// From now on calls go there, or hear the reason why not.
    pub(crate) fn set(&self, control: Control) {
        self.0.send_replace(control);
    }

    /// What it is now.
    pub(crate) fn get(&self) -> Control {
        self.0.borrow().clone()
    }

    /// Where a call goes, once a start that is under way is over.
    async fn settled(&self, within: Duration) -> Result<Routes, Status> {
        let mut seen = self.0.subscribe();
        let settled = seen.wait_for(|control| !matches!(control, Control::Starting(_)));
        // Out of time: whatever it is by then.
        let _ = tokio::time::timeout(within, settled).await;
        match self.get() {
            Control::Served(routes, _) => Ok(routes),
            Control::Starting(reason) | Control::Halted(reason) => Err(Status::unavailable(reason)),
            Control::Locked => Err(locked()),
            Control::Absent(reason) => Err(Status::failed_precondition(reason)),
        }
    }
}

fn locked() -> Status {
    Status::failed_precondition(LOCKED)
}

/// The switch; `own` serves the daemon's services.
#[derive(Clone)]
pub(crate) struct Switch {
    pub(crate) own: Routes,
    pub(crate) manager: ManagerRoutes,
}

fn service(path: &str) -> &str {
    path.trim_start_matches('/').split('/').next().unwrap_or_default()
}

impl Switch {
    /// Who serves a call: the daemon itself, or the manager.
    fn is_own(path: &str) -> bool {
        [DaemonServer::<()>::NAME, ImagesServer::<()>::NAME].contains(&service(path))
    }
}

impl Service<Request<Body>> for Switch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let is_refused = service(path) != DaemonServer::<()>::NAME && matches!(self.manager.get(), Control::Locked);
        let own = Self::is_own(path).then(|| self.own.clone());
        let manager = self.manager.clone();
        Box::pin(async move {
            let target = match own {
                _ if is_refused => Err(locked()),
                Some(own) => Ok(own),
                None => manager.settled(STARTING).await,
            };
            match target {
                Ok(mut routes) => routes.call(request).await,
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_wait_for_a_start_and_hear_why_nobody_serves() {
        let routes = ManagerRoutes::new(Control::Starting("starting".to_owned()));
        let waiting = tokio::spawn({
            let routes = routes.clone();
            async move { routes.settled(STARTING).await.map(drop) }
        });
        tokio::task::yield_now().await;
        routes.set(Control::Served(Routes::default(), Counts::of(Figures::default)));
        assert!(waiting.await.expect("no panic").is_ok());
        for (control, code) in [
            (Control::Starting("x".to_owned()), tonic::Code::Unavailable),
            (Control::Halted("x".to_owned()), tonic::Code::Unavailable),
            (Control::Absent("x".to_owned()), tonic::Code::FailedPrecondition),
            (Control::Locked, tonic::Code::FailedPrecondition),
        ] {
            routes.set(control);
            assert_eq!(
                routes.settled(Duration::from_millis(1)).await.map(drop).map_err(|status| status.code()),
                Err(code)
            );
        }
    }
}
