//! The leader's side: a task for each manager that relays, and answers to other managers' questions.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use skep_identity::Caller;
use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::relay_server::Relay;
use skep_proto::v1::{
    HeldImages, HoldersRequest, HoldersResponse, LogChunk, NetworkCheckAnswer, NodeCheckRequest, NodeLogsRequest,
    RelayDown, RelayUp,
};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::{Order, from_session, ids, to_home};
use crate::dispatch::Dispatcher;
use crate::dispatch::checks::NoAnswer;
use crate::dispatch::homes::{Home, Homes};
use crate::dispatch::lead::Leading;
use crate::dispatch::limits::LEADER_BEAT;

/// Messages to one manager on their way: the next one waits, and is then up to date.
const DOWN_QUEUE: usize = 2;
/// Longest time that another manager may have a node asked for.
const LONGEST_CHECK: Duration = Duration::from_secs(60);

#[tonic::async_trait]
impl Relay for Dispatcher {
    type LinkStream = ReceiverStream<Result<RelayDown, Status>>;
    type NodeLogsStream = Pin<Box<dyn Stream<Item = Result<LogChunk, Status>> + Send>>;

    async fn link(&self, request: Request<Streaming<RelayUp>>) -> Result<Response<Self::LinkStream>, Status> {
        let manager = Caller::of(&request)?.require_manager()?.node_id;
        let leading = self.leading().ok_or_else(not_leading)?;
        let (down, messages) = mpsc::channel(DOWN_QUEUE);
        let (number, orders) = leading.begin_link(manager);
        let link = Link { dispatcher: self.clone(), leading, manager, number, down, told: None };
        tokio::spawn(link.run(request.into_inner(), orders));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn holders(&self, request: Request<HoldersRequest>) -> Result<Response<HoldersResponse>, Status> {
        self.leading().ok_or_else(not_leading)?;
        let holders = self.0.images.holders(&request.into_inner().digest);
        Ok(Response::new(HoldersResponse { node_ids: holders.into_iter().map(NodeId::to_vec).collect() }))
    }

    async fn node_logs(&self, request: Request<NodeLogsRequest>) -> Result<Response<Self::NodeLogsStream>, Status> {
        let bad_id = |error| Status::invalid_argument(format!("{error}"));
        let request = request.into_inner();
        let node = NodeId::from_wire(&request.node_id).map_err(bad_id)?;
        let tasks = request.task_ids.iter().map(|id| TaskId::from_wire(id)).collect::<Result<Vec<_>, _>>();
        let options = request.options.unwrap_or_default();
        let chunks = self.log_streams().serve(node, &tasks.map_err(bad_id)?, options)?;
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn node_check(&self, request: Request<NodeCheckRequest>) -> Result<Response<NetworkCheckAnswer>, Status> {
        let NodeCheckRequest { node_id, check, time_limit_ms } = request.into_inner();
        let node = NodeId::from_wire(&node_id).map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let within = Duration::from_millis(time_limit_ms.into()).min(LONGEST_CHECK);
        let answer = self.checks().ask_here(node, check.unwrap_or_default(), within).await;
        answer.map(Response::new).map_err(|error| match error {
            NoAnswer::NotConnected => Status::not_found("the node has no session here"),
            NoAnswer::Silent(_) | NoAnswer::Relay(_) => Status::deadline_exceeded(error.to_string()),
        })
    }
}

fn not_leading() -> Status {
    Status::unavailable("this manager does not lead")
}

/// A manager that relays.
struct Link {
    dispatcher: Dispatcher,
    leading: Arc<Leading>,
    manager: NodeId,
    number: u64,
    down: mpsc::Sender<Result<RelayDown, Status>>,
    /// `None`: nothing yet.
    told: Option<Homes>,
}

impl Link {
    async fn run(mut self, mut up: Streaming<RelayUp>, mut orders: mpsc::UnboundedReceiver<Order>) {
        info!(manager = %self.manager, "another manager relays");
        let mut lead = self.dispatcher.0.leading.subscribe();
        let mut tick = interval(LEADER_BEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting = Vec::new();
        let why = loop {
            tokio::select! {
                message = up.message() => match message {
                    Ok(Some(message)) => self.take(&message),
                    Ok(None) => break "it has hung up".to_owned(),
                    Err(status) => break status.message().to_owned(),
                },
                _ = tick.tick() => {
                    if !self.leading.has_link(self.manager, self.number) {
                        break "it has another link".to_owned();
                    }
                    if self.down.is_closed() {
                        break "it has hung up".to_owned();
                    }
                    self.tell(&mut waiting);
                }
                Some(order) = orders.recv() => {
                    waiting.push(order);
                    self.tell(&mut waiting);
                }
                _ = lead.wait_for(|leading| leading.is_none()) => {
                    let _ = self.down.try_send(Err(not_leading()));
                    return;
                }
            }
        };
        if self.leading.end_link(self.manager, self.number) {
            warn!(manager = %self.manager, why, "a manager relays no more: its nodes have a grace");
            self.leading.pulse.relay_lost(self.manager);
            let gone = self.manager;
            self.dispatcher.reach().update(|homes| homes.retain_managers(|manager| manager != gone));
        }
    }

    /// What the manager says.
    fn take(&self, message: &RelayUp) {
        self.leading.pulse.relayed(self.manager, ids(&message.heard));
        if message.complete || !message.opened.is_empty() || !message.closed.is_empty() {
            let opened = message.opened.iter().filter_map(from_session);
            let manager = self.manager;
            self.dispatcher.reach().update(|homes| {
                if message.complete {
                    homes.replace(manager, opened);
                    return;
                }
                ids(&message.closed).for_each(|node| homes.closed(node, manager));
                opened.for_each(|(node, open)| homes.opened(node, Home { manager, open }));
            });
        }
        for networks in &message.networks {
            let Ok(node) = NodeId::from_wire(&networks.node_id) else { continue };
            self.dispatcher.0.applied.update(node, &networks.applied);
        }
        for images in &message.images {
            let Ok(node) = NodeId::from_wire(&images.node_id) else { continue };
            let held = HeldImages { complete: true, added: images.digests.clone(), removed: Vec::new() };
            self.dispatcher.0.images.update(node, &held);
        }
    }

    /// Says where nodes are, as far as the manager does not know; and that this one leads. A manager that has not read the
    /// last messages is told later.
    fn tell(&mut self, orders: &mut Vec<Order>) {
        let Ok(place) = self.down.try_reserve() else { return };
        let now = self.dispatcher.reach().homes(Clone::clone);
        let none = Homes::default();
        let news = now.since(self.told.as_ref().unwrap_or(&none));
        let mut message = RelayDown {
            complete: self.told.is_none(),
            put: news.put.into_iter().map(|(node, home)| to_home(node, home)).collect(),
            remove: news.remove.into_iter().map(NodeId::to_vec).collect(),
            ..RelayDown::default()
        };
        for order in orders.drain(..) {
            match order {
                Order::Renew(node) => message.renew.push(node.to_vec()),
                Order::Reconnect(node) => message.reconnect.push(node.to_vec()),
            }
        }
        self.told = Some(now);
        place.send(Ok(message));
    }
}
