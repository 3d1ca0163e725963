//! One connection's session: registers, then heartbeats, statuses and changes up, assignments and requests down.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use rand::Rng;
use skep_proto::id::NodeId;
use skep_proto::v1::dispatch_client::DispatchClient;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::{
    Denied, Goodbye, Heartbeat, HeldImages as HeldImagesMessage, ManagerAddr, NetworkTable, Register, Registered,
    SessionDown, SessionUp, StatusBatch, TaskObserved,
};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::{End, FromManager, ManagerLink, Runner, SessionState, Why, stop_asked};
use crate::executor::{HeldImages, chain, status_words};
use crate::managers::ManagerPicker;
use crate::networks::TableMessage;
use crate::outbox::Batch;
use crate::record::SessionMark;

/// A complete set of a node with thousands of tasks; tonic's own limit is 4 MiB.
const MAX_MESSAGE: usize = 64 << 20;
/// A manager that does not say is taken to mean this.
const DEFAULT_PERIOD: Duration = Duration::from_secs(1);

/// A session that was taken in.
struct Open {
    /// Unbounded, because the bound is elsewhere: at most four batches of statuses are in flight, and a manager that
    /// takes nothing in does not answer heartbeats either, which ends the session.
    up: mpsc::UnboundedSender<SessionUp>,
    down: Streaming<SessionDown>,
    session_id: Arc<[u8]>,
    period: Duration,
    began: Instant,
    /// The first heartbeat since the manager was last heard.
    unanswered: Option<Instant>,
    next_beat: Instant,
    /// Nodes that were removed from the swarm.
    denied: BTreeSet<NodeId>,
    /// What the manager knows we hold. `None`: nothing was sent yet.
    sent_images: Option<HeldImages>,
    /// Of the tables that it was told at the registration.
    generation: u64,
}

impl Runner {
    /// Connects, registers, and serves until the end of the connection.
    pub(super) async fn serve(&mut self, addr: &str, mark: &mut SessionMark, picker: &mut ManagerPicker) -> End {
        let connect = match picker.has_other_than(addr) {
            true => self.config.timing.connect_one_of_many,
            false => self.config.timing.connect,
        };
        let mut open = match self.open(addr, mark, connect).await {
            Ok((open, registered)) => {
                self.registered(&registered, mark, picker);
                open
            }
            Err(end) => return end,
        };
        self.shared.state.send_replace(SessionState::Connected { addr: addr.to_owned() });
        tracing::info!(manager = %addr, "session open");
        self.send_images(&mut open);
        let end = loop {
            // Asked anew each time: the list of managers changes.
            let has_other = picker.has_other_than(addr);
            if let Some(end) = self.turn(&mut open, mark, picker, has_other).await {
                break end;
            }
        };
        self.patience.lasted(open.began.elapsed());
        end
    }

    async fn open(&mut self, addr: &str, mark: &SessionMark, connect: Duration) -> Result<(Open, Registered), End> {
        let mut stopped = self.stopped.clone();
        let opening = self.open_stream(addr, mark, connect);
        tokio::select! {
            biased;
            _ = stop_asked(&mut stopped) => Err(End::Closed),
            outcome = opening => outcome,
        }
    }

    async fn open_stream(
        &mut self,
        addr: &str,
        mark: &SessionMark,
        connect: Duration,
    ) -> Result<(Open, Registered), End> {
        let timing = self.config.timing;
        let channel = timeout(connect, self.config.connector.manager(addr))
            .await
            .map_err(|_| End::Refused(format!("no connection within {connect:?}")))?
            .map_err(|error| self.refused(error.as_ref(), chain(error.as_ref())))?;
        let (up, queue) = mpsc::unbounded_channel();
        // Marked as seen now: what changes during the registration is told after it.
        let description = self.config.description.borrow_and_update().clone();
        let tables = self.config.tables.held.borrow().clone();
        let register = Register {
            description: Some(description),
            session_id: mark.session_id.clone(),
            sequence: if mark.session_id.is_empty() { 0 } else { mark.sequence },
            networks: tables.to_wire(),
        };
        let _ = up.send(SessionUp { message: Some(Up::Register(register)) });
        let mut client = DispatchClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let answered = async {
            let mut down = client.session(UnboundedReceiverStream::new(queue)).await?.into_inner();
            let first = down.message().await?;
            Ok::<_, tonic::Status>((down, first.and_then(|first| first.message)))
        };
        let (down, first) = timeout(timing.register, answered)
            .await
            .map_err(|_| End::Refused(format!("no answer to the registration within {:?}", timing.register)))?
            .map_err(|status| self.refused(&status, status_words(&status)))?;
        let registered = match first {
            Some(Down::Registered(registered)) => registered,
            Some(Down::Removed(_)) => return Err(self.removed()),
            _ => return Err(End::Refused("the manager did not answer the registration".to_owned())),
        };
        self.shared.link.send_replace(Some(ManagerLink { addr: addr.to_owned(), channel }));
        let (now, period) = (Instant::now(), period(registered.heartbeat_period_ms));
        let open = Open {
            up,
            down,
            session_id: registered.session_id.clone().into(),
            period,
            began: now,
            unanswered: None,
            next_beat: now,
            denied: BTreeSet::new(),
            sent_images: None,
            generation: tables.generation,
        };
        Ok((open, registered))
    }

    /// No session came about. A removed node may be told by the connection's end only.
    fn refused(&self, error: &(dyn Error + 'static), words: String) -> End {
        if self.config.connector.is_removal(error) { self.removed() } else { End::Refused(words) }
    }

    fn removed(&self) -> End {
        let _ = self.to_agent.send(FromManager::Removed);
        End::Removed
    }

    fn registered(&mut self, registered: &Registered, mark: &mut SessionMark, picker: &mut ManagerPicker) {
        picker.heartbeat(period(registered.heartbeat_period_ms));
        if !registered.resumed {
            *mark = SessionMark { session_id: registered.session_id.clone(), sequence: 0 };
        }
        mark.session_id.clone_from(&registered.session_id);
        self.config.images.mark_unchanged();
        if let Some(managers) = &registered.managers {
            self.learn(managers.managers.clone(), picker);
        }
    }

    fn learn(&self, managers: Vec<ManagerAddr>, picker: &mut ManagerPicker) {
        picker.learn(managers.clone());
        let _ = self.to_agent.send(FromManager::Managers(managers));
    }

    /// Waits for the next thing to happen and deals with it. `Some`: the session is over.
    async fn turn(
        &mut self,
        open: &mut Open,
        mark: &mut SessionMark,
        picker: &mut ManagerPicker,
        has_other: bool,
    ) -> Option<End> {
        let patience = self.patience.after_beat(open.period, has_other);
        let given_up = open.unanswered.map(|since| since + patience);
        let due = self.shared.outbox().due();
        let never = Instant::now() + open.period;
        tokio::select! {
            biased;
            why = stop_asked(&mut self.stopped) => return Some(self.goodbye(open, why).await),
            () = sleep_until(open.next_beat.into()) => self.beat(open),
            message = open.down.message() => match message {
                Ok(Some(message)) => {
                    open.unanswered = None;
                    return self.take(open, message, mark, picker);
                }
                Ok(None) => return Some(End::Lost("the manager ended the session".to_owned())),
                Err(status) if self.config.connector.is_removal(&status) => return Some(self.removed()),
                Err(status) => return Some(End::Lost(status_words(&status))),
            },
            // After the messages: a host that was itself suspended finds the answer waiting.
            () = sleep_until(given_up.unwrap_or(never).into()), if given_up.is_some() => {
                return Some(End::Silent(format!("no answer to a heartbeat within {patience:?}")));
            }
            () = sleep_until(due.unwrap_or(never).into()), if due.is_some() => {
                let batch = self.shared.outbox().take(Instant::now());
                if let Some(batch) = batch {
                    self.send_batch(open, batch);
                }
            }
            // Wakes up to look at `due` again.
            () = self.shared.outbox_changed.notified() => {}
            Ok(()) = self.config.description.changed() => {
                let description = self.config.description.borrow_and_update().clone();
                send(open, Up::Description(description));
            }
            Ok(()) = self.config.images.changed() => {
                self.config.images.mark_unchanged();
                self.send_images(open);
            }
            Ok(()) = self.config.tables.held.changed() => {
                let generation = self.config.tables.held.borrow_and_update().generation;
                if generation != open.generation {
                    return Some(End::Again);
                }
                // At once: a task that drains waits for it.
                self.beat(open);
            }
            () = self.shared.resync.notified() => return Some(End::Resync),
        }
        None
    }

    fn beat(&self, open: &mut Open) {
        let applied = self.shared.applied();
        // A new session's set may still be on its way to the record: the old one's number means nothing in it.
        let applied_sequence = if applied.session_id == *open.session_id { applied.sequence } else { 0 };
        drop(applied);
        let networks = self.config.tables.held.borrow().to_wire();
        send(open, Up::Heartbeat(Heartbeat { applied_sequence, networks }));
        let now = Instant::now();
        open.unanswered.get_or_insert(now);
        // A little early and never in step with other nodes.
        let early = rand::thread_rng().gen_range(0.0..0.1);
        open.next_beat = now + open.period.mul_f64(1.0 - early);
    }

    fn take(
        &self,
        open: &mut Open,
        message: SessionDown,
        mark: &mut SessionMark,
        picker: &mut ManagerPicker,
    ) -> Option<End> {
        let forward = |message| {
            let _ = self.to_agent.send(message);
        };
        match message.message? {
            Down::Registered(_) => {
                return Some(End::Lost("the manager registered the node twice".to_owned()));
            }
            Down::Assignments(message) => {
                mark.sequence = message.sequence;
                forward(FromManager::Assignments { session_id: Arc::clone(&open.session_id), message });
            }
            Down::HeartbeatAck(ack) => {
                open.period = period(ack.heartbeat_period_ms);
                picker.heartbeat(open.period);
            }
            Down::StatusAck(ack) => {
                let stored = self.shared.outbox().acknowledge(ack.batch);
                forward(FromManager::Acknowledged(stored));
            }
            Down::Managers(managers) => self.learn(managers.managers, picker),
            Down::LogRequest(request) => forward(FromManager::LogRequest(request)),
            Down::LogCancel(cancel) => forward(FromManager::LogCancel(cancel.stream_id)),
            Down::NetworkCheck(request) => forward(FromManager::NetworkCheck(request)),
            Down::RenewCertificate(_) => forward(FromManager::RenewCertificate),
            Down::Removed(_) => return Some(self.removed()),
            Down::Denied(denied) => self.deny(open, &denied),
            Down::Roots(roots) => self.config.connector.roots(&roots.root_certs_pem),
            Down::Network(bytes) => match NetworkTable::decode(&*bytes) {
                Ok(table) => {
                    let message = TableMessage { generation: open.generation, table };
                    let _ = self.config.tables.messages.send(message);
                }
                Err(error) => return Some(End::Lost(format!("it sent a table that cannot be read: {error}"))),
            },
        }
        None
    }

    /// Hands on which nodes are out.
    fn deny(&self, open: &mut Open, denied: &Denied) {
        if denied.complete {
            open.denied.clear();
        }
        let ids =
            |list: &[Vec<u8>]| -> Vec<NodeId> { list.iter().filter_map(|id| NodeId::from_wire(id).ok()).collect() };
        open.denied.extend(ids(&denied.added));
        for node in ids(&denied.removed) {
            open.denied.remove(&node);
        }
        self.config.connector.denied(&open.denied);
    }

    fn send_batch(&self, open: &Open, batch: Batch) {
        let node_id = self.config.node_id.to_vec();
        let statuses = batch
            .statuses
            .into_iter()
            .map(|(task, status)| TaskObserved {
                task_id: task.to_vec(),
                node_id: node_id.clone(),
                status: Some(status),
            })
            .collect();
        send(open, Up::Statuses(StatusBatch { batch: batch.number, statuses }));
    }

    fn send_images(&self, open: &mut Open) {
        let held = Arc::clone(&self.config.images.borrow());
        let none = Arc::new(BTreeSet::new());
        let known = open.sent_images.as_ref().unwrap_or(&none);
        let message = HeldImagesMessage {
            complete: open.sent_images.is_none(),
            added: held.difference(known).cloned().collect(),
            removed: known.difference(&held).cloned().collect(),
        };
        if message.complete || !message.added.is_empty() || !message.removed.is_empty() {
            send(open, Up::Images(message));
        }
        open.sent_images = Some(held);
    }

    /// Tells the last statuses and leaves. Waits a moment for what is on its way.
    async fn goodbye(&self, open: &mut Open, why: Why) -> End {
        // Past the gathering time, everything is due.
        let later = Instant::now() + crate::outbox::GATHER;
        loop {
            let batch = self.shared.outbox().take(later);
            let Some(batch) = batch else { break };
            self.send_batch(open, batch);
        }
        send(open, Up::Goodbye(Goodbye { leaving: why == Why::Leaves }));
        let (closed, _) = mpsc::unbounded_channel();
        // Dropping the sender ends our half of the stream; the manager ends its own when it has read all.
        open.up = closed;
        let _ = timeout(self.config.timing.goodbye, async {
            while let Ok(Some(message)) = open.down.message().await {
                if let Some(Down::StatusAck(ack)) = message.message {
                    let stored = self.shared.outbox().acknowledge(ack.batch);
                    let _ = self.to_agent.send(FromManager::Acknowledged(stored));
                }
            }
        })
        .await;
        End::Closed
    }
}

/// Queues a message. A closed queue shows in the stream's own end.
fn send(open: &Open, message: Up) {
    let _ = open.up.send(SessionUp { message: Some(message) });
}

fn period(ms: i64) -> Duration {
    u64::try_from(ms).ok().filter(|ms| *ms > 0).map_or(DEFAULT_PERIOD, Duration::from_millis)
}
