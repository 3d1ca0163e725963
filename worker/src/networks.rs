//! This host's networks, as agent and executor ask its `skep netd` for them: tables of the managers handed on, sandboxes
//! attached and detached.
//!
//! Made by the node, which keeps netd running; [`Networks::run`] is spawned by the agent when it has taken over what runs.
//! Nothing that a packet needs is here: netd does its work whether or not anybody listens to it. A netd that comes back is
//! brought to what ought to be. This must never make or change a network itself.

mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_proto::id::{NetworkId, TaskId};
use skep_proto::v1::netd_client::NetdClient;
use skep_proto::v1::{AttachRequest, AttachResponse, DetachRequest, NetdStateRequest};
use tokio::sync::{RwLock, mpsc, watch};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::executor::ExecError;

use tables::Waiting;
pub use tables::{HeldTables, TableMessage};

/// For a call: netd answers in milliseconds, on a busy machine in seconds.
const ANSWER: Duration = Duration::from_secs(30);
/// Until something is asked again that netd could not do for want of something else.
const AGAIN: Duration = Duration::from_millis(200);
/// How long the removal of a task waits for a netd that is not there, or does not answer: it is asked again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Until netd is asked again to detach a sandbox.
const DETACH_AGAIN: Duration = Duration::from_secs(2);

/// The host's networks. Clones are cheap, and one.
#[derive(Debug, Clone)]
pub struct Networks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// A connection to netd, which knows who this host is. `None`: it does not run now.
    netd: watch::Receiver<Option<Channel>>,
    /// Sandboxes that ought to be attached.
    wanted: Mutex<BTreeMap<TaskId, Wanted>>,
    /// Held by the attachments, and alone by whoever compares netd's sandboxes with the wanted ones.
    settled: RwLock<()>,
    /// Tasks that are being attached or detached.
    turns: Mutex<BTreeMap<TaskId, Arc<tokio::sync::Mutex<()>>>>,
    /// Tasks that are detached later, each by one who waits for that.
    late: Mutex<BTreeSet<TaskId>>,
    held: watch::Sender<HeldTables>,
    messages: mpsc::UnboundedSender<TableMessage>,
    /// Taken by `run`.
    queue: Mutex<Option<mpsc::UnboundedReceiver<TableMessage>>>,
}

/// A sandbox that ought to be attached.
#[derive(Debug, Clone)]
struct Wanted {
    request: AttachRequest,
    /// It was, once: then netd is told again when it lost it. Until then its preparation tells.
    attached: bool,
}

/// The session's ends: what it tells managers of tables, and where it puts what they send.
#[derive(Debug, Clone)]
pub struct TablePort {
    /// Which tables netd has.
    pub held: watch::Receiver<HeldTables>,
    /// Takes messages, in order.
    pub messages: mpsc::UnboundedSender<TableMessage>,
}

impl Networks {
    /// The networks of the netd that is reached by `netd`.
    pub fn new(netd: watch::Receiver<Option<Channel>>) -> Self {
        let (messages, queue) = mpsc::unbounded_channel();
        Self(Arc::new(Inner {
            netd,
            wanted: Mutex::default(),
            settled: RwLock::default(),
            turns: Mutex::default(),
            late: Mutex::default(),
            held: watch::channel(HeldTables::default()).0,
            messages,
            queue: Mutex::new(Some(queue)),
        }))
    }

    /// On a host where no netd is kept: tasks that need one wait, and say so.
    pub fn none() -> Self {
        Self::new(watch::channel(None).1)
    }

    /// For the session.
    pub fn table_port(&self) -> TablePort {
        TablePort { held: self.0.held.subscribe(), messages: self.0.messages.clone() }
    }

    /// The connection to netd, now and later.
    pub fn netd(&self) -> watch::Receiver<Option<Channel>> {
        self.0.netd.clone()
    }

    /// Attaches a sandbox to its networks; finds it attached. Waits for netd and for the tables of the networks, and says
    /// so by `progress`. Dropping the future is a cancel; [`detach`](Self::detach) undoes what was done.
    pub async fn attach(
        &self,
        task: TaskId,
        request: AttachRequest,
        progress: impl Fn(String) + Sync,
    ) -> Result<AttachResponse, ExecError> {
        let _wish = Wish::new(self, task, &request);
        let ids = request.endpoints.iter().filter_map(|endpoint| NetworkId::from_wire(&endpoint.network_id).ok());
        let ids: Vec<NetworkId> = ids.collect();
        let mut trouble = String::new();
        loop {
            let channel = self.channel(&progress).await;
            self.tables(&ids, &progress).await;
            match self.call_attach(task, channel, request.clone()).await {
                Ok(response) => {
                    if let Some(wanted) = self.wanted().get_mut(&task) {
                        wanted.attached = true;
                    }
                    return Ok(response);
                }
                Err(status) if is_passing(&status) => {
                    if status.message() != trouble {
                        trouble = status.message().to_owned();
                        progress(format!("waiting for its networks: {trouble}"));
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                Err(status) => {
                    return Err(ExecError::new(format!(
                        "cannot attach the task to its networks: {}",
                        status.message()
                    )));
                }
            }
        }
    }

    /// One call, which goes on when its caller is cancelled: who detaches waits for it.
    async fn call_attach(
        &self,
        task: TaskId,
        channel: Channel,
        request: AttachRequest,
    ) -> Result<AttachResponse, Status> {
        let (networks, turn) = (self.clone(), self.turn(task).lock_owned().await);
        let calling = tokio::spawn(async move {
            let _turn = turn;
            let _settled = networks.0.settled.read().await;
            // Who was cancelled meanwhile would take addresses and ports from the task that they were given to since.
            if !networks.wanted().contains_key(&task) {
                return Err(Status::cancelled("the task is not wanted any more"));
            }
            call(NetdClient::new(channel).attach(request)).await
        });
        calling.await.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
    }

    /// The lock on attaching and detaching a task.
    fn turn(&self, task: TaskId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds are of no use.
        turns.retain(|id, turn| *id == task || Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(task).or_default())
    }

    /// Detaches a sandbox; no error if it is not attached. What netd cannot do now it is asked again, and without a netd that
    /// is done when one comes: nobody has to wait for it.
    pub async fn detach(&self, task: TaskId) {
        // At once: an attachment that has not begun yet does not begin.
        self.wanted().remove(&task);
        let asked = async {
            let _turn = self.turn(task).lock_owned().await;
            match self.channel_or_end().await {
                Some(channel) => self.call_detach(channel, task).await,
                None => Ok(()),
            }
        };
        let why = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(())) => return,
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => "netd does not run, or does not answer".to_owned(),
        };
        tracing::warn!(%task, error = why, "a task's networks are taken down later");
        self.detach_later(task);
    }

    /// Detaches it once netd can, unless it is wanted again meanwhile. Ends with the node's part.
    fn detach_later(&self, task: TaskId) {
        if !self.late().insert(task) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move { while !this.detached_after_a_while(task).await {} });
    }

    /// Whether nothing is left to be done.
    async fn detached_after_a_while(&self, task: TaskId) -> bool {
        tokio::time::sleep(DETACH_AGAIN).await;
        let Some(channel) = self.channel_or_end().await else { return true };
        let _turn = self.turn(task).lock_owned().await;
        if !self.wanted().contains_key(&task)
            && let Err(status) = self.call_detach(channel, task).await
        {
            tracing::warn!(%task, error = status.message(), "netd cannot take down a task's networks");
            return false;
        }
        self.late().remove(&task);
        true
    }

    async fn call_detach(&self, channel: Channel, task: TaskId) -> Result<(), Status> {
        let _settled = self.0.settled.read().await;
        call(NetdClient::new(channel).detach(DetachRequest { task_id: task.to_vec() })).await.map(drop)
    }

    /// Takes note of a sandbox that an earlier agent had attached, and that is to stay.
    pub fn adopt(&self, task: TaskId, request: AttachRequest) {
        self.wanted().insert(task, Wanted { request, attached: true });
    }

    /// Hands tables on, and compares netd's sandboxes with the wanted ones whenever one comes. Ends when the node's part
    /// is gone; a second call returns at once.
    pub async fn run(self) {
        let queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut queue) = queue else { return };
        let mut netd = self.0.netd.clone();
        let mut waiting = Waiting::default();
        loop {
            let known = tokio::select! {
                biased;
                known = async { netd.wait_for(Option::is_some).await.map(|channel| channel.clone()) } => known,
                Some(message) = queue.recv() => {
                    waiting.take_for_later(message, &self.0.held);
                    continue;
                }
            };
            let Ok(channel) = known else { return };
            let Some(channel) = channel else { continue };
            netd.mark_unchanged();
            let next = match self.compare(channel.clone(), waiting.has_lost(&self.0.held)).await {
                Ok(()) => {
                    let next = tokio::select! {
                        () = tables::hand_on(channel, &mut queue, &mut waiting, &self.0.held) => None,
                        next = netd.changed() => Some(next),
                    };
                    // It may have taken some of what was on its way, or nothing.
                    waiting.lose();
                    next
                }
                Err(status) => {
                    tracing::warn!(error = status.message(), "netd does not say what it has");
                    None
                }
            };
            // One that fails is asked again after a pause, another one at once.
            let next = match next {
                Some(next) => next,
                None => tokio::time::timeout(AGAIN, netd.changed()).await.unwrap_or(Ok(())),
            };
            if next.is_err() {
                return;
            }
        }
    }

    /// Asks netd what it has; what nobody wants goes, what it lost is attached again.
    async fn compare(&self, channel: Channel, lost: bool) -> Result<(), Status> {
        let mut netd = NetdClient::new(channel);
        let _alone = self.0.settled.write().await;
        let state = call(netd.state(NetdStateRequest {})).await?;
        tables::found(&state.networks, lost, &self.0.held);
        let attached: Vec<TaskId> = state.sandboxes.iter().filter_map(|id| TaskId::from_wire(id).ok()).collect();
        let wanted = self.wanted().clone();
        for task in attached.iter().filter(|task| !wanted.contains_key(task)) {
            tracing::info!(%task, "taking down the networks of a task that is gone");
            // One that cannot be taken down must not hold up all others.
            if let Err(status) = call(netd.detach(DetachRequest { task_id: task.to_vec() })).await {
                tracing::warn!(%task, error = status.message(), "netd cannot take them down");
                self.detach_later(*task);
            }
        }
        for (task, lost) in wanted.iter().filter(|(task, one)| one.attached && !attached.contains(task)) {
            if let Err(status) = call(netd.attach(lost.request.clone())).await {
                tracing::warn!(%task, error = status.message(), "netd cannot attach a task again");
            }
        }
        Ok(())
    }

    /// A connection, as soon as there is one.
    async fn channel(&self, progress: &(impl Fn(String) + Sync)) -> Channel {
        let mut netd = self.0.netd.clone();
        if netd.borrow_and_update().is_none() {
            progress("waiting for this host's netd, which keeps its networks".to_owned());
        }
        match self.channel_or_end().await {
            Some(channel) => channel,
            // The node's part is going, and whoever waits here with it.
            None => std::future::pending().await,
        }
    }

    /// A connection, as soon as there is one. `None`: there will be none any more.
    async fn channel_or_end(&self) -> Option<Channel> {
        self.0.netd.clone().wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Returns when netd has these tables.
    async fn tables(&self, ids: &[NetworkId], progress: &(impl Fn(String) + Sync)) {
        let mut held = self.0.held.subscribe();
        let has = |held: &HeldTables| ids.iter().all(|id| held.versions.contains_key(id));
        if !has(&held.borrow_and_update()) {
            progress("waiting for a manager to tell who else is on its networks".to_owned());
        }
        // The sender is this very value's.
        let _ = held.wait_for(has).await;
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeMap<TaskId, Wanted>> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self) -> MutexGuard<'_, BTreeSet<TaskId>> {
        self.0.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sandbox that is being attached: not wanted any more when this goes before it was.
struct Wish<'a> {
    networks: &'a Networks,
    task: TaskId,
}

impl<'a> Wish<'a> {
    fn new(networks: &'a Networks, task: TaskId, request: &AttachRequest) -> Self {
        networks.wanted().insert(task, Wanted { request: request.clone(), attached: false });
        Self { networks, task }
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        let mut wanted = self.networks.wanted();
        if wanted.get(&self.task).is_some_and(|wish| !wish.attached) {
            wanted.remove(&self.task);
        }
    }
}

async fn call<T>(answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::unavailable(format!("netd did not answer within {} s", ANSWER.as_secs()))),
    }
}

/// Whether a failure lies with netd's being away, or with something that is still to come.
fn is_passing(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => true,
        // The connection broke in the middle of the call.
        Code::Unknown | Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

#[cfg(test)]
#[path = "networks_test.rs"]
mod networks_test;
