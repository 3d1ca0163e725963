//! A node's side of a session, played by hand: it applies assignments as a node does, and says what a test wants.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skep_proto::id::TaskId;
use skep_proto::v1::assignment_item::Item;
use skep_proto::v1::assignment_key::Key;
use skep_proto::v1::dispatch_client::DispatchClient;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::{
    Assignments, Heartbeat, LogChunk, LogRequest, NodeDescription, Register, Registered, SessionDown, SessionUp,
    StatusBatch, Task, TaskObserved, TaskState, TaskStatus,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::swarm::{Member, soon};

const BEAT: Duration = Duration::from_millis(60);

/// What an agent is told, in the order of its arrival.
type Told = Result<Option<Down>, Status>;

pub(crate) struct Agent {
    pub(crate) registered: Registered,
    pub(crate) sequence: u64,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    /// Messages that changed the set: whether complete, and how many items.
    pub(crate) received: Vec<(bool, usize)>,
    up: mpsc::Sender<SessionUp>,
    down: Streaming<SessionDown>,
    passed_over: VecDeque<Down>,
    beating: Arc<Mutex<Option<tokio::task::AbortHandle>>>,
    batch: u64,
    channel: Channel,
}

pub(crate) fn description(hostname: &str) -> NodeDescription {
    NodeDescription { hostname: hostname.into(), peer_addr: "0.0.0.0:2378".into(), ..NodeDescription::default() }
}

pub(crate) fn observed(task: TaskId, state: TaskState) -> TaskObserved {
    let status = TaskStatus { state: state.into(), ..TaskStatus::default() };
    TaskObserved { task_id: task.to_vec(), node_id: Vec::new(), status: Some(status) }
}

impl Agent {
    /// Opens a new session, with heartbeats.
    pub(crate) async fn connect(member: &Member, hostname: &str) -> Self {
        Self::connect_by(&member.channel, hostname).await
    }

    /// The same at another manager.
    pub(crate) async fn connect_by(channel: &Channel, hostname: &str) -> Self {
        let register = Register { description: Some(description(hostname)), ..Register::default() };
        Self::register(channel, register).await.unwrap()
    }

    /// Opens a session; the answer to the registration is the first thing it hears.
    pub(crate) async fn register(channel: &Channel, register: Register) -> Result<Self, Told> {
        let (up, says) = mpsc::channel(64);
        up.send(SessionUp { message: Some(Up::Register(register)) }).await.unwrap();
        let mut client = DispatchClient::new(channel.clone());
        let opened = soon("open a session", client.session(ReceiverStream::new(says))).await;
        let mut down = opened.map_err(Err)?.into_inner();
        let first = soon("registration", down.message()).await.map_err(Err)?;
        let first = first.and_then(|first| first.message);
        let Some(Down::Registered(registered)) = first else { return Err(Ok(first)) };
        let beats = up.clone();
        let beating = tokio::spawn(async move {
            let beat = || SessionUp { message: Some(Up::Heartbeat(Heartbeat::default())) };
            while beats.send(beat()).await.is_ok() {
                tokio::time::sleep(BEAT).await;
            }
        });
        let beating = Arc::new(Mutex::new(Some(beating.abort_handle())));
        let channel = channel.clone();
        Ok(Self {
            registered,
            sequence: 0,
            tasks: BTreeMap::new(),
            received: Vec::new(),
            up,
            down,
            passed_over: VecDeque::new(),
            beating,
            batch: 0,
            channel,
        })
    }

    /// Comes back with what it has.
    pub(crate) async fn resume(mut self, session_id: Vec<u8>, sequence: u64, hostname: &str) -> Self {
        self.stop_beating();
        let register =
            Register { description: Some(description(hostname)), session_id, sequence, networks: Vec::new() };
        let mut again = Self::register(&self.channel, register).await.unwrap();
        if again.registered.resumed {
            again.sequence = sequence;
            again.tasks = std::mem::take(&mut self.tasks);
        }
        again
    }

    pub(crate) fn stop_beating(&self) {
        if let Some(beating) = self.beating.lock().unwrap().take() {
            beating.abort();
        }
    }

    pub(crate) async fn say(&self, message: Up) {
        self.up.send(SessionUp { message: Some(message) }).await.unwrap();
    }

    /// Says nothing more, and listens on.
    pub(crate) fn hang_up(&mut self) {
        self.stop_beating();
        self.up = mpsc::channel(1).0;
    }

    /// Reports and waits until it is stored.
    pub(crate) async fn report(&mut self, statuses: Vec<TaskObserved>) {
        self.batch += 1;
        let batch = self.batch;
        self.say(Up::Statuses(StatusBatch { batch, statuses })).await;
        soon("acknowledgement", async {
            loop {
                if let Some(Down::StatusAck(ack)) = self.hear().await.unwrap() {
                    assert_eq!(ack.batch, batch);
                    return;
                }
            }
        })
        .await;
    }

    /// Applies assignments until they are as wanted.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&BTreeMap<TaskId, Task>) -> bool) {
        soon(what, async {
            while !wanted(&self.tasks) || self.received.is_empty() {
                self.hear().await.unwrap();
            }
        })
        .await;
    }

    /// The end of the session: its status, or `None` for an end without one.
    pub(crate) async fn end(&mut self) -> Option<Status> {
        soon("the session's end", async {
            loop {
                match self.hear().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        })
        .await
    }

    /// Waits for one kind of message.
    pub(crate) async fn wait_for<T>(&mut self, what: &str, wanted: impl Fn(&Down) -> Option<T>) -> T {
        if let Some(at) = self.passed_over.iter().position(|message| wanted(message).is_some()) {
            return wanted(&self.passed_over.remove(at).unwrap()).unwrap();
        }
        soon(what, async {
            loop {
                let message = self.hear().await.unwrap().unwrap_or_else(|| panic!("{what}: the session ended"));
                if let Some(found) = wanted(&message) {
                    return found;
                }
                self.passed_over.push_back(message);
            }
        })
        .await
    }

    pub(crate) async fn log_request(&mut self) -> LogRequest {
        self.wait_for("a log request", |message| match message {
            Down::LogRequest(request) => Some(request.clone()),
            _ => None,
        })
        .await
    }

    /// Opens a log stream; the answer comes when it has ended.
    pub(crate) fn publish(&self) -> (mpsc::Sender<LogChunk>, tokio::task::JoinHandle<Result<(), Status>>) {
        let (chunks, stream) = mpsc::channel(8);
        let mut client = DispatchClient::new(self.channel.clone());
        let answer = tokio::spawn(async move { client.publish_logs(ReceiverStream::new(stream)).await.map(|_| ()) });
        (chunks, answer)
    }

    async fn hear(&mut self) -> Told {
        let message = self.down.message().await?;
        let Some(SessionDown { message: Some(message) }) = message else { return Ok(None) };
        if let Down::Assignments(assignments) = &message {
            self.apply(assignments.clone());
        }
        Ok(Some(message))
    }

    /// As a node does: a complete set replaces, a difference must fit.
    fn apply(&mut self, message: Assignments) {
        if message.complete {
            self.tasks.clear();
        } else {
            assert_eq!(message.applies_to, self.sequence, "the difference does not fit");
        }
        self.sequence = message.sequence;
        self.received.push((message.complete, message.put.len() + message.remove.len()));
        for item in message.put {
            if let Some(Item::Task(task)) = item.item {
                assert!(task.status.is_none(), "the wanted part only");
                self.tasks.insert(TaskId::from_wire(&task.id).unwrap(), task);
            }
        }
        for key in message.remove {
            if let Some(Key::TaskId(id)) = key.key {
                self.tasks.remove(&TaskId::from_wire(&id).unwrap());
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop_beating();
    }
}
