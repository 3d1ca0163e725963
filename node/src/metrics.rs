//! Figures for Prometheus, by plain http at an address of its own (`skep daemon --metrics-addr`): this node's certificate,
//! its containers, and what its manager counts. Read only, and nothing in it is secret; who may ask is a matter of the
//! address. Taken when somebody asks: no figure is kept here.

mod page;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::{Ready, ready};
use skep_identity::{Credentials, Role};
use skep_manager::{Figures, RaftFigures, SwarmFigures};
use skep_proto::v1::{NodeState, SwarmState, TaskState};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{HeaderValue, Method, Request, Response, StatusCode};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tower::layer::layer_fn;
use tracing::warn;

use crate::host::Host;
use crate::membership::{Membership, Standing};
use page::{MEDIA_TYPE, Page};

/// All states of a task.
const TASK_STATES: [TaskState; 13] = [
    TaskState::New,
    TaskState::Pending,
    TaskState::Assigned,
    TaskState::Accepted,
    TaskState::Preparing,
    TaskState::Ready,
    TaskState::Starting,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Orphaned,
];

/// How long a connection may last: nobody who forgets one keeps it.
const LONGEST: Duration = Duration::from_secs(60);

/// Serves the page until the daemon ends.
pub(crate) async fn serve(listener: TcpListener, host: Arc<Host>, membership: Arc<Membership>) {
    let scrape = layer_fn(move |_: Routes| Scrape { host: Arc::clone(&host), membership: Arc::clone(&membership) });
    let mut server = tonic::transport::Server::builder().accept_http1(true).max_connection_age(LONGEST).layer(scrape);
    let served = server.add_routes(Routes::default()).serve_with_incoming(TcpIncoming::from(listener)).await;
    warn!(?served, "figures are served no more");
}

/// Answers `GET /metrics`.
#[derive(Clone)]
struct Scrape {
    host: Arc<Host>,
    membership: Arc<Membership>,
}

impl Service<Request<Body>> for Scrape {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (status, text) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => (StatusCode::OK, self.now().text()),
            (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned()),
            _ => (StatusCode::NOT_FOUND, "the figures are at /metrics\n".to_owned()),
        };
        let mut answer = Response::new(Body::new(text));
        *answer.status_mut() = status;
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        ready(Ok(answer))
    }
}

impl Scrape {
    fn now(&self) -> Snapshot {
        Snapshot {
            standing: self.membership.standing(),
            credentials: self.membership.credentials(),
            containers_running: self.membership.containers_running(),
            images: self.host.images.store().images().len(),
            figures: self.membership.figures(),
        }
    }
}

/// Everything that a page tells.
struct Snapshot {
    standing: Standing,
    credentials: Option<Arc<Credentials>>,
    containers_running: usize,
    images: usize,
    figures: Option<Figures>,
}

impl Snapshot {
    fn text(&self) -> String {
        let mut page = Page::default();
        page.family("skep_build_info", "The version of this daemon.")
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        self.node(&mut page);
        if let Some(Figures { raft: figures, swarm }) = &self.figures {
            raft(&mut page, figures);
            objects(&mut page, swarm);
        }
        page.into_text()
    }

    fn node(&self, page: &mut Page) {
        let id = self.standing.node.map(|node| node.to_string()).unwrap_or_default();
        let role = self.standing.role.map_or("none", Role::as_str);
        let labels = [("node_id", id.as_str()), ("role", role), ("state", state(self.standing.state))];
        page.family("skep_node_info", "The place of this node in its swarm.").sample(&labels, 1.0);
        page.one("skep_containers_running", "Containers that run on this node.", count(self.containers_running));
        page.one("skep_images", "Images on this node.", count(self.images));
        let Some(credentials) = &self.credentials else { return };
        page.one(
            "skep_certificate_not_after_seconds",
            "End of this node's certificate, in seconds since 1970.",
            seconds(credentials.not_after()),
        );
        let mut roots =
            page.family("skep_root_not_after_seconds", "End of each root certificate that this node trusts.");
        for root in credentials.roots().certs() {
            let digest = root.digest().to_string();
            roots.sample(&[("digest", &digest)], seconds(root.not_after()));
        }
    }
}

fn raft(page: &mut Page, figures: &RaftFigures) {
    let flag = |flag: bool| f64::from(u8::from(flag));
    page.one("skep_manager_leads", "Whether this manager leads, with a quorum.", flag(figures.leads));
    page.one("skep_manager_hears_leader", "Whether this manager hears a leader.", flag(figures.hears_leader));
    page.one("skep_manager_disk_full", "Whether it refuses writes for lack of space.", flag(figures.disk_full));
    page.one("skep_raft_term", "Raft's term.", index(figures.term));
    page.one("skep_raft_log_index", "The last entry of the log.", index(figures.last_log));
    page.one("skep_raft_applied_index", "The last entry that was applied.", index(figures.last_applied));
    page.one("skep_raft_snapshot_index", "The last entry in the newest snapshot.", index(figures.snapshot));
    page.one("skep_raft_voters", "Managers that vote.", count(figures.voters));
}

fn objects(page: &mut Page, figures: &SwarmFigures) {
    let mut nodes = page.family("skep_swarm_nodes", "Nodes of the swarm, by state.");
    for state in [NodeState::Unknown, NodeState::Down, NodeState::Ready, NodeState::Disconnected] {
        let found = figures.nodes.get(&state).copied().unwrap_or(0);
        nodes.sample(&[("state", &word(state.as_str_name(), "NODE_STATE_"))], count(found));
    }
    let mut tasks = page.family("skep_swarm_tasks", "Tasks, by state; those that ended too, as long as they are kept.");
    // Every state is there from the start, so that a graph has no gap.
    for state in TASK_STATES {
        let found = figures.tasks.get(&state).copied().unwrap_or(0);
        tasks.sample(&[("state", &word(state.as_str_name(), "TASK_STATE_"))], count(found));
    }
    for (name, help, number) in [
        ("skep_swarm_services", "Services.", figures.services),
        ("skep_swarm_networks", "Networks.", figures.networks),
        ("skep_swarm_secrets", "Secrets.", figures.secrets),
        ("skep_swarm_configs", "Configs.", figures.configs),
        ("skep_swarm_clients", "People with a certificate.", figures.clients),
    ] {
        page.one(name, help, count(number));
    }
    let mut ends = page.family(
        "skep_swarm_node_certificate_not_after_seconds",
        "End of each node's certificate, as the node tells it, in seconds since 1970.",
    );
    for (node, hostname, not_after_ms) in &figures.certificates {
        let id = node.to_string();
        ends.sample(&[("node_id", &id), ("hostname", hostname)], *not_after_ms as f64 / 1000.0);
    }
}

/// A state as it is written elsewhere.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

fn state(state: SwarmState) -> &'static str {
    match state {
        SwarmState::Inactive => "inactive",
        SwarmState::Pending => "pending",
        SwarmState::Active => "active",
        SwarmState::Error => "error",
        SwarmState::Locked => "locked",
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn count(number: usize) -> f64 {
    number as f64
}

fn index(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use skep_proto::id::NodeId;

    use super::*;

    #[test]
    fn a_manager_tells_what_it_counts_and_a_host_without_swarm_what_it_has() {
        let standing = Standing::outside(SwarmState::Inactive, String::new());
        let outside = Snapshot { standing, credentials: None, containers_running: 0, images: 2, figures: None };
        let text = outside.text();
        assert!(text.contains("skep_node_info{node_id=\"\",role=\"none\",state=\"inactive\"} 1\n"), "{text}");
        assert!(text.contains("skep_images 2\n") && !text.contains("skep_swarm"), "{text}");

        let swarm = SwarmFigures {
            nodes: BTreeMap::from([(NodeState::Ready, 3)]),
            tasks: BTreeMap::from([(TaskState::Running, 7)]),
            services: 2,
            certificates: vec![(NodeId::new(5), "one".into(), 1_800_000_000_500)],
            ..SwarmFigures::default()
        };
        let raft = RaftFigures { leads: true, last_applied: 12, ..RaftFigures::default() };
        let text = Snapshot { figures: Some(Figures { raft, swarm }), ..outside }.text();
        for line in [
            "skep_manager_leads 1",
            "skep_raft_applied_index 12",
            "skep_swarm_nodes{state=\"ready\"} 3",
            "skep_swarm_nodes{state=\"down\"} 0",
            "skep_swarm_tasks{state=\"running\"} 7",
            "skep_swarm_tasks{state=\"failed\"} 0",
            "skep_swarm_services 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        let end = format!("node_id=\"{}\",hostname=\"one\"}} 1800000000.5\n", NodeId::new(5));
        assert!(text.contains(&end), "{text}");
    }
}
