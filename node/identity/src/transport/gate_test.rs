//! The gate by itself: every rule against every caller, and answers that end with the right to them.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use futures::future::BoxFuture;
use http_body::Frame;
use skep_proto::access::{self, Rule, Standing};
use skep_proto::id::{ClusterId, NodeId};
use tokio::sync::{mpsc, watch};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Body as HttpBody, Bytes, Service};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Code, Status};

use super::gate::{ByCertificate, Judge, Known, gated};
use crate::transport::{Caller, ConnectionInfo};
use crate::{PeerIdentity, Role};

const WATCH: &str = "/skep.v1.Watch/Watch";

/// Answers any method of its service with what `frames` brings, without an end.
#[derive(Clone)]
struct Endless(Arc<Mutex<Option<mpsc::Receiver<Bytes>>>>);

struct Stream(Option<mpsc::Receiver<Bytes>>);

impl NamedService for Endless {
    const NAME: &'static str = "skep.v1.Watch";
}

impl Service<Request<Body>> for Endless {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let frames = self.0.lock().unwrap().take();
        Box::pin(async move { Ok(Response::new(Body::new(Stream(frames)))) })
    }
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut self.0 {
            Some(frames) => frames.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
            None => Poll::Ready(None),
        }
    }
}

/// Says that everyone is an admin until told otherwise.
struct Fickle {
    fallen: watch::Receiver<bool>,
    asked: AtomicUsize,
}

impl Judge for Fickle {
    fn standing<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<Known, Status>> {
        let standing = if *self.fallen.borrow() { Standing::FormerManager } else { Standing::Manager };
        Box::pin(async move { Ok(Known { standing, who: caller.to_string() }) })
    }

    fn fallen(&self, _: &Caller, rule: Rule) -> BoxFuture<'static, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut fallen = self.fallen.clone();
        Box::pin(async move {
            fallen.wait_for(|fallen| *fallen).await.unwrap();
            Status::permission_denied(format!("no more {rule}"))
        })
    }
}

fn node(role: Role) -> Caller {
    let cluster_id = ClusterId::new(1);
    Caller::Node(PeerIdentity { node_id: NodeId::new(7), role, cluster_id, not_after: SystemTime::UNIX_EPOCH })
}

fn stranger() -> Caller {
    Caller::Anonymous { addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)) }
}

async fn call(routes: &Routes, path: &str, caller: Option<Caller>) -> Response<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = path.parse().unwrap();
    if let Some(caller) = caller {
        request.extensions_mut().insert(ConnectionInfo { caller, remote: None });
    }
    routes.clone().call(request).await.unwrap()
}

/// The status that an answer begins with; `Ok` where it has none yet.
fn code(answer: &Response<Body>) -> Code {
    Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code())
}

fn served() -> (Routes, mpsc::Sender<Bytes>) {
    let (frames, received) = mpsc::channel(8);
    (Routes::new(Endless(Arc::new(Mutex::new(Some(received))))), frames)
}

async fn next(body: &mut Body) -> Option<Result<Frame<Bytes>, Status>> {
    std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

#[tokio::test]
async fn every_method_is_for_whom_the_table_says() {
    let routes = gated(Routes::default(), Arc::new(ByCertificate));
    let callers = [
        (Caller::Local { uid: 0 }, Standing::Local),
        (stranger(), Standing::Anonymous),
        (node(Role::Worker), Standing::Worker),
        (node(Role::Manager), Standing::Manager),
    ];
    for rule in access::rules() {
        let path = format!("/skep.v1.{}/{}", rule.service, rule.method);
        for (caller, standing) in &callers {
            let answer = call(&routes, &path, Some(caller.clone())).await;
            let expected = match standing {
                // Nothing is served here: whoever got through hears so.
                _ if rule.callers.has(*standing) => Code::Unimplemented,
                Standing::Anonymous => Code::Unauthenticated,
                _ => Code::PermissionDenied,
            };
            assert_eq!(code(&answer), expected, "{rule} by {caller}");
        }
        assert_eq!(code(&call(&routes, &path, None).await), Code::Unauthenticated, "{rule}");
    }
}

#[tokio::test]
async fn what_the_table_does_not_have_is_not_there() {
    let (routes, _frames) = served();
    let routes = gated(routes, Arc::new(ByCertificate));
    for path in ["/skep.v1.Watch/Peek", "/skep.v1.Watch/Watch/", "/skep.v1.Watch/", "/"] {
        assert_eq!(code(&call(&routes, path, Some(Caller::Local { uid: 0 })).await), Code::Unimplemented, "{path}");
    }
    assert_eq!(code(&call(&routes, WATCH, Some(Caller::Local { uid: 0 })).await), Code::Ok);
    // A newer program learns which side is old.
    let answer = call(&routes, "/skep.v1.Watch/Peek", Some(Caller::Local { uid: 0 })).await;
    let said = Status::from_header_map(answer.headers()).unwrap();
    assert!(said.message().starts_with("Watch.Peek: the version of skep that was asked does not know it"), "{said}");
    let long = format!("/skep.v1.Watch/{}", "x".repeat(65));
    let said = call(&routes, &long, Some(Caller::Local { uid: 0 })).await;
    assert_eq!(Status::from_header_map(said.headers()).unwrap().message(), "");
}

#[tokio::test]
async fn an_answer_ends_with_the_right_to_it() {
    for flood in [false, true] {
        let (routes, frames) = served();
        let (fall, fallen) = watch::channel(false);
        let judge = Arc::new(Fickle { fallen, asked: AtomicUsize::new(0) });
        let routes = gated(routes, judge);
        let mut body = call(&routes, WATCH, Some(node(Role::Manager))).await.into_body();
        for _ in 0..3 {
            frames.send(Bytes::from_static(b"x")).await.unwrap();
            assert!(next(&mut body).await.unwrap().unwrap().is_data());
        }
        if flood {
            // There is always one more: the stream never waits.
            for _ in 0..8 {
                frames.try_send(Bytes::from_static(b"x")).unwrap();
            }
        }
        fall.send(true).unwrap();
        let last = next(&mut body).await.unwrap().unwrap().into_trailers().ok().unwrap();
        let status = Status::from_header_map(&last).unwrap();
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no more Watch.Watch"));
        assert!(next(&mut body).await.is_none() && body.is_end_stream());
        assert!(frames.is_closed(), "the handler hears of it");
    }
}

#[tokio::test]
async fn a_short_answer_is_not_watched() {
    let (routes, frames) = served();
    let judge = Arc::new(Fickle { fallen: watch::channel(false).1, asked: AtomicUsize::new(0) });
    let mut body = call(&gated(routes, Arc::clone(&judge) as _), WATCH, Some(node(Role::Manager))).await.into_body();
    frames.send(Bytes::from_static(b"x")).await.unwrap();
    drop(frames);
    assert!(next(&mut body).await.unwrap().unwrap().is_data());
    assert!(next(&mut body).await.is_none());
    assert_eq!(judge.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn who_is_always_let_through_is_not_watched() {
    for caller in [Caller::Local { uid: 0 }, node(Role::Worker)] {
        let judge = Arc::new(Fickle { fallen: watch::channel(false).1, asked: AtomicUsize::new(0) });
        let (routes, _frames) = served();
        let answer = call(&gated(routes, Arc::clone(&judge) as _), WATCH, Some(caller)).await;
        let mut cx = Context::from_waker(Waker::noop());
        let mut body = answer.into_body();
        let _ = Pin::new(&mut body).poll_frame(&mut cx);
        assert_eq!(judge.asked.load(Ordering::SeqCst), 0);
    }
}
