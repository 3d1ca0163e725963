//! Small builders for this crate's tests: clusters, members, and a gRPC service that says who calls.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use skep_proto::id::{ClusterId, NodeId};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::ca::{NodeGrant, RootCa};
use crate::transport::{AcceptLimits, Caller, Keepalive, incoming, server};
use crate::{Anonymous, Credentials, DenyList, LiveCredentials, NodeKey, Role, ServerTls};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A time without a fraction of a second, as certificates hold it.
pub(crate) fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

pub(crate) fn cluster(id: u128) -> RootCa {
    RootCa::generate(ClusterId::new(id), now() - DAY).unwrap()
}

pub(crate) fn grant(node: u128, role: Role) -> NodeGrant {
    NodeGrant { node_id: NodeId::new(node), role, validity: DAY }
}

pub(crate) fn member(ca: &RootCa, node: u128, role: Role) -> Credentials {
    member_since(ca, node, role, now(), DAY)
}

pub(crate) fn member_since(ca: &RootCa, node: u128, role: Role, at: SystemTime, validity: Duration) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let grant = NodeGrant { node_id: NodeId::new(node), role, validity };
    let issued = ca.issue(&key.signing_request().unwrap(), &grant, at).unwrap();
    Credentials::new(key, &issued.chain_pem, ca.bundle()).unwrap()
}

pub(crate) fn live(ca: &RootCa, node: u128, role: Role) -> LiveCredentials {
    LiveCredentials::new(member(ca, node, role))
}

/// Fails the test instead of hanging it.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("did not happen within 10 s")
}

/// Waits for a condition, with a deadline.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A running server that answers `ask` with who asked, and remembers what was asked.
pub(crate) struct Host {
    pub(crate) addr: SocketAddr,
    pub(crate) deny: DenyList,
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Host {
    pub(crate) async fn start(credentials: &LiveCredentials) -> Self {
        Self::start_with(credentials, Anonymous::Allowed, AcceptLimits::default(), String::new()).await
    }

    pub(crate) async fn start_with(
        credentials: &LiveCredentials,
        anonymous: Anonymous,
        limits: AcceptLimits,
        root_pem: String,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, credentials, anonymous, limits, root_pem)
    }

    pub(crate) fn serve(
        listener: TcpListener,
        credentials: &LiveCredentials,
        anonymous: Anonymous,
        limits: AcceptLimits,
        root_pem: String,
    ) -> Self {
        let deny = DenyList::new();
        let addr = listener.local_addr().unwrap();
        let connections = incoming(listener, ServerTls::new(credentials, &deny, anonymous), limits);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let service = Who { asked: Arc::clone(&asked), root_pem };
        let task = tokio::spawn(async move {
            server(Keepalive::NODES).add_service(service).serve_with_incoming(connections).await.unwrap();
        });
        Self { addr, deny, asked, task }
    }

    pub(crate) fn addrs(&self) -> Vec<String> {
        vec![self.addr.to_string()]
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers `who` with the caller, `root` with the root certificate, `hold` never.
#[derive(Clone)]
pub(crate) struct Who {
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    pub(crate) root_pem: String,
}

impl NamedService for Who {
    const NAME: &'static str = "test.Who";
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for Who {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = Answer(self.clone());
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
            Ok(grpc.unary(answer, request).await)
        })
    }
}

/// Notes that a held call's handler was dropped.
struct Released(Arc<Mutex<Vec<String>>>);

impl Drop for Released {
    fn drop(&mut self) {
        self.0.lock().unwrap().push("released".to_owned());
    }
}

struct Answer(Who);

impl UnaryService<String> for Answer {
    type Response = String;
    type Future = Boxed<Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let who = self.0.clone();
        Box::pin(async move {
            let question = request.get_ref().clone();
            who.asked.lock().unwrap().push(question.clone());
            match question.as_str() {
                "hold" => {
                    let _released = Released(who.asked);
                    std::future::pending().await
                }
                "root" => Ok(Response::new(who.root_pem)),
                _ => Ok(Response::new(match Caller::of(&request)? {
                    Caller::Local { uid } => format!("local {uid}"),
                    Caller::Node(peer) => format!("{} {}", peer.role, peer.node_id.value()),
                    Caller::Client(client) => format!("client {}", client.client_id.value()),
                    Caller::Anonymous { addr } => format!("anonymous {}", addr.ip()),
                })),
            }
        })
    }
}

/// One call of [`Who`].
pub(crate) async fn ask(channel: &Channel, question: &str) -> Result<String, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    soon(async {
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let path = PathAndQuery::from_static("/test.Who/Ask");
        let codec = ProstCodec::<String, String>::default();
        Ok(grpc.unary(Request::new(question.to_owned()), path, codec).await?.into_inner())
    })
    .await
}
