//! Sends the calls on the local socket to where they belong: the daemon's own services, or the manager's while this
//! host is one.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tonic::{Status, server::NamedService};

use skep_proto::v1::daemon_server::DaemonServer;
use skep_proto::v1::images_server::ImagesServer;

/// What the manager's routes are right now, or why there are none.
#[derive(Clone)]
pub(crate) struct ManagerRoutes(Arc<RwLock<Result<Routes, String>>>);

impl ManagerRoutes {
    /// No manager: calls hear `reason`.
    pub(crate) fn none(reason: &str) -> Self {
        Self(Arc::new(RwLock::new(Err(reason.to_owned()))))
    }

    /// From now on calls go there, or hear the reason why not.
    pub(crate) fn set(&self, routes: Result<Routes, String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = routes;
    }

    fn get(&self) -> Result<Routes, String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The switch; `own` serves the daemon's services.
#[derive(Clone)]
pub(crate) struct Switch {
    pub(crate) own: Routes,
    pub(crate) manager: ManagerRoutes,
}

impl Switch {
    fn is_own(path: &str) -> bool {
        let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        [DaemonServer::<()>::NAME, ImagesServer::<()>::NAME].contains(&service)
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
        let target = if Self::is_own(request.uri().path()) { Ok(self.own.clone()) } else { self.manager.get() };
        Box::pin(async move {
            match target {
                Ok(mut routes) => routes.call(request).await,
                Err(reason) => Ok(Status::failed_precondition(reason).into_http()),
            }
        })
    }
}
