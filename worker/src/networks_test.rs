//! Against a netd of the test's own: what it hears, when, and what becomes of it when it comes back.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use skep_proto::v1::netd_server::{Netd, NetdServer};
use skep_proto::v1::{self, AppliedVersion, NetworkFault, NetworkTable, SandboxEndpoint};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response};

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);
const NETWORK: NetworkId = NetworkId::new(7);
const TASK: TaskId = TaskId::new(1);

/// What the test's netd has.
#[derive(Debug, Default)]
struct Has {
    versions: BTreeMap<NetworkId, u64>,
    sandboxes: Vec<TaskId>,
    calls: Vec<String>,
    /// Its next answers to `attach`.
    refusals: Vec<Status>,
    /// The next call of `apply` is never answered.
    hangs: bool,
    /// A sandbox that cannot be taken down, and how often that was asked.
    stuck: Option<TaskId>,
    stuck_asked: u32,
    /// Versions that the kernel does not take.
    refused: Vec<u64>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Has>>);

impl Fake {
    fn has(&self) -> MutexGuard<'_, Has> {
        self.0.lock().unwrap()
    }

    async fn serve(&self) -> (Channel, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr: SocketAddr = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(NetdServer::new(self.clone()));
        let task = tokio::spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        (Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap(), task)
    }
}

#[tonic::async_trait]
impl Netd for Fake {
    async fn state(&self, _: Request<NetdStateRequest>) -> Result<Response<v1::NetdStateResponse>, Status> {
        let has = self.has();
        let row = |(id, version): (&NetworkId, &u64)| AppliedVersion { object_id: id.to_vec(), version: *version };
        Ok(Response::new(v1::NetdStateResponse {
            networks: has.versions.iter().map(row).collect(),
            sandboxes: has.sandboxes.iter().map(|task| task.to_vec()).collect(),
            ..v1::NetdStateResponse::default()
        }))
    }

    async fn apply(
        &self,
        request: Request<v1::ApplyTablesRequest>,
    ) -> Result<Response<v1::ApplyTablesResponse>, Status> {
        if std::mem::take(&mut self.has().hangs) {
            return std::future::pending().await;
        }
        let mut has = self.has();
        let mut answer = v1::ApplyTablesResponse::default();
        for table in request.into_inner().tables {
            let id = NetworkId::from_wire(&table.network_id).unwrap();
            let have = has.versions.get(&id).copied().unwrap_or(0);
            has.calls.push(format!("table {}{}", table.version, if table.end { "." } else { "" }));
            if table.complete || table.applies_to == have {
                if table.end {
                    has.versions.insert(id, table.version);
                }
                if has.refused.contains(&table.version) {
                    let error = "the kernel refuses".to_owned();
                    answer.faults.push(NetworkFault { network_id: table.network_id, error, needs_complete: false });
                }
            } else if !table.dropped {
                let error = "a gap".to_owned();
                answer.faults.push(NetworkFault { network_id: table.network_id, error, needs_complete: true });
            }
        }
        let row = |(id, version): (&NetworkId, &u64)| AppliedVersion { object_id: id.to_vec(), version: *version };
        answer.applied = has.versions.iter().map(row).collect();
        Ok(Response::new(answer))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let mut has = self.has();
        if let Some(refusal) = has.refusals.pop() {
            return Err(refusal);
        }
        let task = TaskId::from_wire(&request.into_inner().task_id).unwrap();
        has.calls.push(format!("attach {}", task.value()));
        has.sandboxes.push(task);
        Ok(Response::new(AttachResponse { name_server: true, ..AttachResponse::default() }))
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<v1::DetachResponse>, Status> {
        let mut has = self.has();
        let task = TaskId::from_wire(&request.into_inner().task_id).unwrap();
        if has.stuck == Some(task) {
            has.stuck_asked += 1;
            return Err(Status::internal("the device is busy"));
        }
        has.calls.push(format!("detach {}", task.value()));
        has.sandboxes.retain(|known| *known != task);
        Ok(Response::new(v1::DetachResponse {}))
    }

    async fn configure(&self, _: Request<v1::ConfigureRequest>) -> Result<Response<v1::ConfigureResponse>, Status> {
        Err(Status::unimplemented("the node's"))
    }

    async fn mesh(&self, _: Request<v1::MeshRequest>) -> Result<Response<v1::MeshResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn check(&self, _: Request<v1::CheckRequest>) -> Result<Response<v1::CheckResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn shutdown(
        &self,
        _: Request<v1::NetdShutdownRequest>,
    ) -> Result<Response<v1::NetdShutdownResponse>, Status> {
        Err(Status::unimplemented("the node's"))
    }
}

fn request(task: TaskId) -> AttachRequest {
    let endpoint = SandboxEndpoint { network_id: NETWORK.to_vec(), addresses: vec![vec![10, 0, 1, 7]] };
    AttachRequest { task_id: task.to_vec(), endpoints: vec![endpoint], ..AttachRequest::default() }
}

fn table(applies_to: u64, version: u64, end: bool) -> NetworkTable {
    let complete = applies_to == 0;
    NetworkTable { network_id: NETWORK.to_vec(), complete, applies_to, version, end, ..NetworkTable::default() }
}

fn held(generation: u64, versions: &[u64]) -> HeldTables {
    HeldTables { generation, versions: Arc::new(versions.iter().map(|version| (NETWORK, *version)).collect()) }
}

/// Networks of a netd that comes when the test says so, with the session's end.
struct Host {
    netd: watch::Sender<Option<Channel>>,
    networks: Networks,
    port: TablePort,
}

fn host() -> Host {
    let netd = watch::channel(None).0;
    let networks = Networks::new(netd.subscribe());
    tokio::spawn(networks.clone().run());
    Host { netd, port: networks.table_port(), networks }
}

impl Host {
    fn send(&self, generation: u64, table: NetworkTable) {
        self.port.messages.send(TableMessage { generation, table }).unwrap();
    }

    async fn until_held(&self, wanted: HeldTables) {
        let mut port = self.port.held.clone();
        let reached = tokio::time::timeout(DEADLINE, port.wait_for(|held| *held == wanted)).await.map(drop);
        assert!(reached.is_ok(), "{wanted:?} is never so, but {:?}", *self.port.held.borrow());
    }
}

#[tokio::test]
async fn a_task_waits_for_netd_and_its_table_and_is_attached() {
    let (host, fake) = (host(), Fake::default());
    let said = Arc::new(Mutex::new(Vec::new()));
    let (networks, log) = (host.networks.clone(), Arc::clone(&said));
    let attaching =
        tokio::spawn(async move { networks.attach(TASK, request(TASK), |text| log.lock().unwrap().push(text)).await });
    // Something that is still to come, and a passing absence.
    fake.has().refusals = vec![Status::unavailable("the host has no number yet"), Status::aborted("away")];
    host.netd.send_replace(Some(fake.serve().await.0));
    host.send(0, table(0, 3, false));
    host.send(0, table(0, 3, true));
    let answer = tokio::time::timeout(DEADLINE, attaching).await.unwrap().unwrap().unwrap();
    assert!(answer.name_server);
    host.until_held(held(0, &[3])).await;
    assert_eq!(fake.has().calls, ["table 3", "table 3.", "attach 1"]);
    let said = said.lock().unwrap().join("; ");
    assert!(said.contains("waiting for this host's netd") && said.contains("who else is on"), "{said}");
    assert!(said.contains("no number yet"), "{said}");
    host.networks.detach(TASK).await;
    assert_eq!(fake.has().calls.last().unwrap(), "detach 1");
    assert!(fake.has().sandboxes.is_empty() && !host.networks.wanted().contains_key(&TASK));
}

#[tokio::test]
async fn what_netd_cannot_take_down_now_it_is_asked_again() {
    let (host, fake) = (host(), Fake::default());
    *fake.has() = Has { versions: [(NETWORK, 4)].into(), sandboxes: vec![TASK], stuck: Some(TASK), ..Has::default() };
    host.networks.adopt(TASK, request(TASK));
    host.netd.send_replace(Some(fake.serve().await.0));
    host.until_held(held(1, &[4])).await;
    host.networks.detach(TASK).await;
    assert_eq!(fake.has().sandboxes, [TASK]);
    // A netd that comes back is asked each time, and nobody more goes on asking.
    let who_ask = Arc::strong_count(&host.networks.0);
    for _ in 0..3 {
        let asked = fake.has().stuck_asked;
        host.netd.send_replace(Some(fake.serve().await.0));
        until(|| fake.has().stuck_asked > asked).await;
    }
    assert_eq!(Arc::strong_count(&host.networks.0), who_ask);
    fake.has().stuck = None;
    until(|| fake.has().sandboxes.is_empty()).await;
    until(|| host.networks.late().is_empty()).await;
}

#[tokio::test]
async fn who_is_cancelled_before_netd_is_asked_is_not_attached() {
    let (host, fake) = (host(), Fake::default());
    fake.has().versions = [(NETWORK, 4)].into();
    host.netd.send_replace(Some(fake.serve().await.0));
    host.until_held(held(1, &[4])).await;
    // As while netd's sandboxes are compared with the wanted ones.
    let comparing = host.networks.0.settled.write().await;
    {
        let mut attaching = Box::pin(host.networks.attach(TASK, request(TASK), |_| {}));
        // Until it waits for that.
        while Arc::strong_count(&host.networks.turn(TASK)) < 3 {
            assert!(futures::poll!(attaching.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    }
    drop(comparing);
    host.networks.detach(TASK).await;
    assert_eq!(fake.has().calls, ["detach 1"]);
}

#[tokio::test]
async fn a_refusal_is_told_at_once() {
    let (host, fake) = (host(), Fake::default());
    fake.has().refusals = vec![Status::failed_precondition("port 80 is taken on this host")];
    host.netd.send_replace(Some(fake.serve().await.0));
    host.send(0, table(0, 3, true));
    let error = host.networks.attach(TASK, request(TASK), |_| {}).await.unwrap_err();
    assert!(error.sentence().ends_with("port 80 is taken on this host"), "{}", error.sentence());
}

#[tokio::test]
async fn tables_go_in_order_and_a_gap_is_asked_for_anew() {
    let (host, fake) = (host(), Fake::default());
    host.netd.send_replace(Some(fake.serve().await.0));
    host.send(0, table(0, 3, true));
    host.send(0, table(3, 5, true));
    host.until_held(held(0, &[5])).await;
    // Half a version waits for its end.
    host.send(0, table(5, 6, false));
    host.send(0, table(5, 6, true));
    host.until_held(held(0, &[6])).await;
    // It does not fit: the session registers again, and what the old one still sends is worth nothing.
    host.send(0, table(8, 9, true));
    host.until_held(held(1, &[])).await;
    host.send(0, table(0, 10, true));
    host.send(1, table(0, 11, true));
    host.until_held(held(1, &[11])).await;
    assert!(!fake.has().calls.contains(&"table 10.".to_owned()));
    // The node has no task on it any more.
    host.send(1, NetworkTable { dropped: true, ..table(0, 0, false) });
    host.until_held(held(1, &[])).await;
}

#[tokio::test]
async fn what_the_kernel_refused_is_not_told_as_applied() {
    let (host, fake) = (host(), Fake::default());
    fake.has().refused = vec![5, 6];
    host.netd.send_replace(Some(fake.serve().await.0));
    host.send(0, table(0, 3, true));
    host.until_held(held(0, &[3])).await;
    host.send(0, table(3, 5, true));
    until(|| fake.has().versions[&NETWORK] == 5).await;
    host.send(0, table(5, 6, true));
    // The answer before it has been taken by then.
    until(|| fake.has().versions[&NETWORK] == 6).await;
    assert_eq!(*host.networks.0.held.borrow(), held(0, &[3]));
    host.send(0, table(6, 7, true));
    host.until_held(held(0, &[7])).await;
}

#[tokio::test]
async fn a_netd_that_comes_back_is_brought_to_what_ought_to_be() {
    let (host, fake) = (host(), Fake::default());
    let (stranger, lost, kept) = (TaskId::new(5), TaskId::new(6), TaskId::new(8));
    host.networks.adopt(lost, request(lost));
    host.networks.adopt(kept, request(kept));
    *fake.has() = Has { versions: [(NETWORK, 4)].into(), sandboxes: vec![stranger, kept], ..Has::default() };
    let (channel, server) = fake.serve().await;
    host.netd.send_replace(Some(channel));
    // The managers are told what it has.
    host.until_held(held(1, &[4])).await;
    let settled = || fake.has().sandboxes == [kept, lost];
    tokio::time::timeout(DEADLINE, async {
        while !settled() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    assert_eq!(fake.has().calls, ["detach 5", "attach 6"]);
    // Its successor knows nothing.
    server.abort();
    let fresh = Fake::default();
    host.netd.send_replace(Some(fresh.serve().await.0));
    host.until_held(held(2, &[])).await;
    let settled = || fresh.has().sandboxes == [lost, kept];
    tokio::time::timeout(DEADLINE, async {
        while !settled() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    host.send(2, table(0, 12, true));
    host.until_held(held(2, &[12])).await;
}

async fn until(condition: impl Fn() -> bool) {
    let reached = tokio::time::timeout(DEADLINE, async {
        while !condition() {
            tokio::task::yield_now().await
        }
    });
    assert!(reached.await.is_ok());
}

/// It had been told, as the manager sees it, and nothing else may come for long.
#[tokio::test]
async fn what_was_on_its_way_to_a_netd_that_ended_is_asked_for_anew() {
    let (host, fake) = (host(), Fake::default());
    host.netd.send_replace(Some(fake.serve().await.0));
    host.send(0, table(0, 3, true));
    host.until_held(held(0, &[3])).await;
    fake.has().hangs = true;
    host.send(0, table(3, 5, true));
    until(|| !fake.has().hangs).await;
    let next = Fake::default();
    next.has().versions = [(NETWORK, 3)].into();
    host.netd.send_replace(None);
    host.netd.send_replace(Some(next.serve().await.0));
    host.until_held(held(1, &[3])).await;
    host.send(1, table(3, 6, true));
    host.until_held(held(1, &[6])).await;
}

#[tokio::test]
async fn what_came_before_netd_is_handed_on() {
    let (host, fake) = (host(), Fake::default());
    host.send(0, table(0, 3, true));
    // Whether it is looked at before or after netd comes.
    tokio::task::yield_now().await;
    host.netd.send_replace(Some(fake.serve().await.0));
    host.until_held(held(0, &[3])).await;
    assert_eq!(fake.has().calls, ["table 3."]);
}

/// It waited for this netd, and turns out not to fit: the next registration tells better.
#[tokio::test]
async fn what_came_before_a_netd_that_has_more_is_not_handed_on() {
    let (host, fake) = (host(), Fake::default());
    host.send(0, table(0, 3, true));
    tokio::task::yield_now().await;
    fake.has().versions = [(NETWORK, 9)].into();
    host.netd.send_replace(Some(fake.serve().await.0));
    host.until_held(held(1, &[9])).await;
    host.send(1, table(9, 10, true));
    host.until_held(held(1, &[10])).await;
    assert_eq!(fake.has().calls, ["table 10."]);
}

#[test]
fn little_waits_for_a_netd_and_much_is_asked_for_when_one_comes() {
    let held = watch::channel(HeldTables::default()).0;
    let mut waiting = Waiting::default();
    let message = |generation, version: u64| TableMessage { generation, table: table(version - 1, version, true) };
    for version in 1..=10_000 {
        waiting.take_for_later(message(0, version), &held);
    }
    assert!(!waiting.has_lost(&held));
    for version in 10_001..=50_000 {
        waiting.take_for_later(message(0, version), &held);
    }
    assert!(waiting.has_lost(&held));
    let kept = format!("{waiting:?}").len();
    assert!(kept < 1_000, "{kept} bytes are still kept");
    tables::found(&[], waiting.has_lost(&held), &held);
    assert_eq!(held.borrow().generation, 1);
    waiting.take_for_later(message(0, 50_001), &held);
    assert!(!waiting.has_lost(&held));
    // Once more, and nothing is asked for without need.
    tables::found(&[], waiting.has_lost(&held), &held);
    assert_eq!(held.borrow().generation, 1);
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_taken_down_holds_nothing_up() {
    let (host, fake) = (host(), Fake::default());
    let stuck = TaskId::new(5);
    *fake.has() = Has { sandboxes: vec![stuck], stuck: Some(stuck), ..Has::default() };
    host.netd.send_replace(Some(fake.serve().await.0));
    host.send(0, table(0, 3, true));
    host.until_held(held(0, &[3])).await;
}

/// Without a pause after each: the ones before did not fail.
#[tokio::test]
async fn each_of_many_is_asked_at_once() {
    const MANY: u32 = 30;
    let host = host();
    let start = tokio::time::Instant::now();
    for number in 1..=MANY {
        let fake = Fake::default();
        fake.has().versions = [(NETWORK, number.into())].into();
        host.netd.send_replace(Some(fake.serve().await.0));
        host.until_held(held(number.into(), &[number.into()])).await;
    }
    assert!(start.elapsed() < AGAIN * MANY, "{:?}", start.elapsed());
}
