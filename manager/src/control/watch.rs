//! Changes as they happen: the selected objects, then differences. Level-triggered: each wake compares the snapshot
//! with what was sent last, so nothing is missed and a burst costs one message.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use skep_core::store::State;
use skep_proto::id::ServiceId;
use skep_proto::v1::watch_server::Watch;
use skep_proto::v1::{WatchEvent, WatchRequest, WatchResponse, watch_event::Object};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Control, read, summary};
use crate::topic::{Topic, TopicWatch};

/// A burst of changes is sent at most this often.
const COALESCE: Duration = Duration::from_millis(20);
/// Looking at thousands of objects takes a while: the pause is at least this many times as long, so that no watch takes
/// more than a fifth of a processor.
const PAUSE_FACTOR: u32 = 4;
/// Events in one message.
const PIECE: usize = 200;
/// Messages that wait for a slow client before it holds its own stream back.
const BACKLOG: usize = 4;

#[tonic::async_trait]
impl Watch for Control {
    type WatchStream = read::Answers<WatchResponse>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let selection = Selection::from_wire(&request.into_inner())?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let control = self.clone();
        // Ends when the client goes away: its sends then fail.
        tokio::spawn(async move {
            tokio::select! {
                () = follow(&control, selection, sender.clone()) => {}
                () = control.store.peers().forlorn() => {
                    // Nobody may listen any more.
                    let _ = sender.send(Err(read::no_leader())).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// What a client watches.
struct Selection {
    service: Option<ServiceId>,
    nodes: bool,
    services: bool,
}

/// What was sent of an object: key, and the object itself for comparison.
type Sent = BTreeMap<(u8, Vec<u8>), Object>;

impl Selection {
    fn from_wire(request: &WatchRequest) -> Result<Self, Status> {
        let service = ServiceId::from_wire_opt(&request.service_id)
            .map_err(|error| Status::invalid_argument(format!("service_id: {error}")))?;
        if service.is_none() && !request.nodes && !request.services {
            return Err(Status::invalid_argument("nothing is selected to watch"));
        }
        Ok(Self { service, nodes: request.nodes, services: request.services })
    }

    fn topics(&self) -> Vec<Topic> {
        let service = self.service.map(Topic::Service);
        let others = [(self.nodes, Topic::Nodes), (self.services, Topic::Services)];
        service.into_iter().chain(others.into_iter().filter_map(|(on, topic)| on.then_some(topic))).collect()
    }

    fn objects(&self, control: &Control, state: &State) -> Sent {
        let mut objects = Sent::new();
        if self.services {
            for service in state.services() {
                objects.insert((1, service.id.to_vec()), Object::Service(summary::service(state, service)));
            }
        }
        if let Some(id) = self.service {
            if let Some(service) = state.service(id) {
                objects.insert((1, id.to_vec()), Object::Service(summary::service(state, service)));
            }
            for task in state.tasks_of_service(id) {
                objects.insert((2, task.id.to_vec()), Object::Task(summary::task(state, task)));
            }
        }
        if self.nodes {
            let seen = control.seen(state);
            for node in state.nodes() {
                objects.insert((3, node.id.to_vec()), Object::Node(summary::node(node, &seen)));
            }
        }
        objects
    }
}

async fn follow(control: &Control, selection: Selection, sender: mpsc::Sender<Result<WatchResponse, Status>>) {
    let store = &control.store;
    let mut watches: Vec<TopicWatch> = selection.topics().into_iter().map(|topic| store.watch(topic)).collect();
    let mut sent = Sent::new();
    let mut synced = false;
    loop {
        let started = Instant::now();
        let state = store.state();
        let now = selection.objects(control, &state);
        let events = differences(&sent, &now);
        sent = now;
        let pause = COALESCE.max(started.elapsed() * PAUSE_FACTOR);
        if (!events.is_empty() || !synced) && send(&sender, state.version(), events, synced).await.is_err() {
            return;
        }
        synced = true;
        let changed = futures::future::select_all(watches.iter_mut().map(|watch| Box::pin(watch.changed())));
        tokio::select! {
            _ = changed => tokio::time::sleep(pause).await,
            () = sender.closed() => return,
        }
    }
}

/// Sends the events in pieces; the last one of the first round says that the client is up to date.
async fn send(
    sender: &mpsc::Sender<Result<WatchResponse, Status>>,
    version: u64,
    events: Vec<WatchEvent>,
    synced_before: bool,
) -> Result<(), mpsc::error::SendError<Result<WatchResponse, Status>>> {
    let mut pieces = events.chunks(PIECE).map(<[WatchEvent]>::to_vec).collect::<Vec<_>>();
    if pieces.is_empty() {
        pieces.push(Vec::new());
    }
    let last = pieces.len() - 1;
    for (index, events) in pieces.into_iter().enumerate() {
        let synced = synced_before || index == last;
        sender.send(Ok(WatchResponse { version, synced, events })).await?;
    }
    Ok(())
}

fn differences(old: &Sent, new: &Sent) -> Vec<WatchEvent> {
    let removed = old
        .iter()
        .filter(|(key, _)| !new.contains_key(*key))
        .map(|(_, object)| WatchEvent { removed: true, object: Some(object.clone()) });
    let changed = new
        .iter()
        .filter(|(key, object)| old.get(*key) != Some(*object))
        .map(|(_, object)| WatchEvent { removed: false, object: Some(object.clone()) });
    removed.chain(changed).collect()
}
