//! The gate before every handler: a call goes on only if the table (`skep_proto::access`) lets its caller through, and an
//! answer that goes on for long ends when it no longer does. Put around the routes of each listener by [`gated`].
//!
//! Who someone is, the connection says ([`Caller`]); what he may be at this moment, a [`Judge`] that knows the state.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http_body::Frame;
use skep_proto::access::{self, Rule, Standing};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{Body as HttpBody, Bytes, Service, StdError};
use tonic::service::Routes;
use tower::layer::layer_fn;
use tracing::info;

use crate::Role;
use crate::transport::{Caller, ConnectionInfo};

/// Knows what a caller is at the moment, beyond what his certificate says.
pub trait Judge: Send + Sync + 'static {
    /// What the caller is now, or why he is nobody. Asked only where the certificate alone does not decide.
    fn standing<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<Known, Status>>;

    /// Returns, with the reason, once this caller may not call this any more.
    fn fallen(&self, caller: &Caller, rule: Rule) -> BoxFuture<'static, Status>;
}

/// A caller whom a [`Judge`] knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What he is now.
    pub standing: Standing,
    /// Who he is, for a person.
    pub who: String,
}

/// Believes certificates, for listeners that have no state to ask: the local socket, and the images' port of nodes.
#[derive(Clone, Copy, Debug)]
pub struct ByCertificate;

impl Judge for ByCertificate {
    fn standing<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<Known, Status>> {
        Box::pin(async move {
            match (caller, possible(caller)) {
                (Caller::Client(_), _) | (_, []) => Err(Status::permission_denied("clients call managers alone")),
                // Where there is a choice, the first one is what the certificate says.
                (_, [first, ..]) => Ok(Known { standing: *first, who: caller.to_string() }),
            }
        })
    }

    fn fallen(&self, _: &Caller, _: Rule) -> BoxFuture<'static, Status> {
        Box::pin(std::future::pending())
    }
}

/// The same routes behind the gate. A method that the table does not have is none.
pub fn gated(routes: Routes, judge: Arc<dyn Judge>) -> Routes {
    let gate = layer_fn(move |inner| Gated { inner, judge: Arc::clone(&judge) });
    Routes::from(routes.into_axum_router().layer(gate))
}

/// One route behind the gate.
#[derive(Clone)]
struct Gated<S> {
    inner: S,
    judge: Arc<dyn Judge>,
}

impl<S, B, R> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that was polled ready.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let judge = Arc::clone(&self.judge);
        let read = read(&request);
        Box::pin(async move {
            let (caller, rule) = match read {
                Ok(read) => read,
                Err(status) => return Ok(status.into_http()),
            };
            if let Err(status) = pass(&*judge, &caller, rule).await {
                return Ok(status.into_http());
            }
            let answer = inner.call(request).await?;
            if is_decided(&caller, rule) || possible(&caller).len() == 1 {
                return Ok(answer.map(Body::new));
            }
            let fallen = Fallen::Unasked { judge, caller, rule };
            Ok(answer.map(|body| Body::new(Watched { body: Body::new(body), fallen, frames: 0 })))
        })
    }
}

/// Who calls what.
// Statuses are tonic's own currency between a handler and its helpers.
#[allow(clippy::result_large_err)]
fn read<B>(request: &Request<B>) -> Result<(Caller, Rule), Status> {
    let path = request.uri().path();
    let rule = access::rule(path).ok_or_else(|| Status::unimplemented(unknown(path)))?;
    let caller = request.extensions().get::<ConnectionInfo>().map(|info| info.caller.clone());
    Ok((caller.ok_or_else(|| Status::unauthenticated("the connection does not say who calls"))?, rule))
}

/// What is said of a method that the table does not have: a newer program may ask an older one. Empty for what is no name of
/// a method.
fn unknown(path: &str) -> String {
    let is_name = |name: &str| !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric());
    match path.strip_prefix("/skep.v1.").and_then(|path| path.split_once('/')) {
        Some((service, method)) if is_name(service) && is_name(method) => {
            format!("{service}.{method}: the version of skep that was asked does not know it, so upgrade it")
        }
        _ => String::new(),
    }
}

/// Decides whether he may.
async fn pass(judge: &dyn Judge, caller: &Caller, rule: Rule) -> Result<(), Status> {
    if is_decided(caller, rule) {
        return Ok(());
    }
    let known = match possible(caller) {
        [] => return Err(Status::permission_denied("nobody may call this here")),
        [only] => Known { standing: *only, who: caller.to_string() },
        _ => judge.standing(caller).await?,
    };
    if !rule.callers.has(known.standing) {
        return Err(refusal(&known, rule));
    }
    if let Caller::Client(_) = caller
        && !rule.callers.has(Standing::Viewer)
    {
        // What people change from afar is worth a line.
        info!(client = known.who, role = %known.standing, call = %rule, "a client calls");
    }
    Ok(())
}

/// What a caller may be, by the connection alone.
fn possible(caller: &Caller) -> &'static [Standing] {
    match caller {
        Caller::Local { .. } => &[Standing::Local],
        Caller::Anonymous { .. } => &[Standing::Anonymous],
        Caller::Node(peer) if peer.role == Role::Manager => &[Standing::Manager, Standing::FormerManager],
        Caller::Node(_) => &[Standing::Worker],
        // The least first.
        Caller::Client(_) => &[Standing::Viewer, Standing::Operator, Standing::Admin],
    }
}

/// Whether the caller may call it whatever the state says, now and later. A client may be none any more.
fn is_decided(caller: &Caller, rule: Rule) -> bool {
    !matches!(caller, Caller::Client(_)) && possible(caller).iter().all(|standing| rule.callers.has(*standing))
}

/// Why this caller may not call this.
fn refusal(known: &Known, rule: Rule) -> Status {
    let words = rule.refusal(&known.who, known.standing);
    match known.standing {
        Standing::Anonymous => Status::unauthenticated(words),
        _ => Status::permission_denied(words),
    }
}

/// An answer that ends with the right to it.
struct Watched {
    body: Body,
    fallen: Fallen,
    /// Frames that came, as far as [`AT_ONCE`].
    frames: u8,
}

/// Frames of a unary answer: the message and the trailers. What has more goes on for long, also where it never pauses.
const AT_ONCE: u8 = 2;

/// The right to an answer.
enum Fallen {
    /// Most answers are whole at once: nothing is watched for them.
    Unasked {
        judge: Arc<dyn Judge>,
        caller: Caller,
        rule: Rule,
    },
    Asked(BoxFuture<'static, Status>),
    /// The reason was told.
    Over,
}

impl Fallen {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if let Self::Unasked { judge, caller, rule } = self {
            *self = Self::Asked(judge.fallen(caller, *rule));
        }
        match self {
            Self::Asked(fallen) => fallen.as_mut().poll(cx),
            Self::Unasked { .. } | Self::Over => Poll::Pending,
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Fallen::Over = self.fallen {
            return Poll::Ready(None);
        }
        // First, so that a stream which always has something to say ends too.
        if self.frames >= AT_ONCE
            && let Poll::Ready(status) = self.fallen.poll(cx)
        {
            return Poll::Ready(Some(self.end(&status)));
        }
        self.frames = AT_ONCE.min(self.frames + 1);
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => match self.fallen.poll(cx) {
                Poll::Ready(status) => Poll::Ready(Some(self.end(&status))),
                Poll::Pending => Poll::Pending,
            },
            ready => ready,
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.fallen, Fallen::Over) || self.body.is_end_stream()
    }
}

impl Watched {
    /// The last frame. The handler's stream is dropped with it, so that whoever feeds it ends too.
    fn end(&mut self, status: &Status) -> Result<Frame<Bytes>, Status> {
        (self.body, self.fallen) = (Body::empty(), Fallen::Over);
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Ok(Frame::trailers(trailers))
    }
}
