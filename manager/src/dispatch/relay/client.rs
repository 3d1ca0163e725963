//! The side of a manager that does not lead: one stream to whoever does, opened again for as long as this manager runs.

use std::collections::BTreeMap;

use skep_proto::id::NodeId;
use skep_proto::v1::relay_client::RelayClient;
use skep_proto::v1::{RelayDown, RelayUp, RelayedImages, RelayedNetworks, RenewCertificate, session_down};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;
use tracing::{debug, info};

use super::{from_home, ids, to_session};
use crate::dispatch::homes::Open;
use crate::dispatch::images::ImageIndex;
use crate::dispatch::limits::{
    LEADERLESS, RELAY_BYTES, RELAY_EVERY, RELAY_MESSAGE, RELAY_NEWS_EVERY, RELAY_QUEUE, RELAY_RETRY,
};
use crate::dispatch::networks::AppliedTables;
use crate::dispatch::sessions::End;
use crate::dispatch::{Dispatcher, LeaderLink};

/// Keeps a stream to the leader, whoever it is. Ends only when dropped.
pub(in crate::dispatch) async fn run(dispatcher: Dispatcher) {
    let links = &dispatcher.0.links;
    let mut is_new = true;
    loop {
        // Before the leader is asked for, so that no change is missed.
        let changed = links.leader_changed();
        let LeaderLink::Other(leader) = links.leader() else {
            changed.await;
            is_new = true;
            continue;
        };
        if std::mem::take(&mut is_new) {
            // Sessions stand while this manager and the new leader find each other.
            dispatcher.0.bond.renewed();
        }
        tokio::select! {
            ended = link(&dispatcher, leader) => {
                let reason = ended.err().map(|status| status.message().to_owned()).unwrap_or_default();
                debug!(reason, "the link to the leader has ended");
                sleep(RELAY_RETRY).await;
            }
            () = changed => is_new = true,
        }
    }
}

/// What the leader was told of this manager.
struct Teller {
    up: mpsc::Sender<RelayUp>,
    told: BTreeMap<NodeId, Open>,
    /// Nothing was told yet.
    first: bool,
}

/// One stream, from its beginning to its end.
async fn link(dispatcher: &Dispatcher, leader: Channel) -> Result<(), Status> {
    let (up, queue) = mpsc::channel(RELAY_QUEUE);
    let mut client = RelayClient::new(leader).max_decoding_message_size(RELAY_MESSAGE);
    let opening = timeout(LEADERLESS, client.link(ReceiverStream::new(queue)));
    let opened = opening.await.map_err(|_| Status::deadline_exceeded("the leader does not answer"))?;
    let mut down = opened?.into_inner();
    let mut teller = Teller { up, told: BTreeMap::new(), first: true };
    dispatcher.0.images.untell(dispatcher.sessions().open().map(|(node, _)| node));
    dispatcher.0.applied.untell(dispatcher.sessions().open().map(|(node, _)| node));
    let mut news = dispatcher.sessions().watch();
    let mut applied = dispatcher.0.applied.watch();
    let mut tick = interval(RELAY_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    info!("relaying to the leader");
    loop {
        tokio::select! {
            message = down.message() => match message? {
                Some(message) => take(dispatcher, message),
                None => return Ok(()),
            },
            _ = tick.tick() => {
                teller.tell(dispatcher)?;
                last = Instant::now();
            }
            _ = changed_after(&mut news, last + RELAY_NEWS_EVERY) => {
                teller.tell(dispatcher)?;
                last = Instant::now();
            }
            // Somebody may wait for it.
            _ = changed_after(&mut applied, last + RELAY_NEWS_EVERY) => {
                teller.tell(dispatcher)?;
                last = Instant::now();
            }
        }
    }
}

/// About the size of a node or of one of its versions in a message.
const APPLIED_BYTES: usize = 32;

/// Returns when something changed, but not before `earliest`.
async fn changed_after(news: &mut tokio::sync::watch::Receiver<u64>, earliest: Instant) {
    sleep_until(earliest).await;
    // An error: the dispatcher is gone, and this with it.
    let _ = news.changed().await;
}

/// The leader speaks.
fn take(dispatcher: &Dispatcher, message: RelayDown) {
    dispatcher.0.bond.heard();
    if message.complete || !message.put.is_empty() || !message.remove.is_empty() {
        dispatcher.reach().update(|homes| {
            if message.complete {
                homes.retain_managers(|_| false);
            }
            ids(&message.remove).for_each(|node| homes.remove(node));
            message.put.iter().filter_map(from_home).for_each(|(node, home)| homes.put(node, home));
        });
    }
    for node in ids(&message.renew) {
        let message = session_down::Message::RenewCertificate(RenewCertificate {});
        // A node whose session has just ended is asked by the manager that it goes to.
        let _ = dispatcher.sessions().send(node, message);
    }
    for node in ids(&message.reconnect) {
        dispatcher.sessions().close(node, End::Reconnect);
    }
}

impl Teller {
    /// Tells the leader what is new; nothing new is told, too.
    fn tell(&mut self, dispatcher: &Dispatcher) -> Result<(), Status> {
        let open: BTreeMap<NodeId, Open> = dispatcher.sessions().open().collect();
        let opened = open.iter().filter(|(node, open)| self.told.get(*node) != Some(*open));
        let closed = self.told.keys().filter(|node| !open.contains_key(*node));
        let first = RelayUp {
            complete: std::mem::take(&mut self.first),
            opened: opened.map(|(node, open)| to_session(*node, *open)).collect(),
            closed: closed.map(|node| node.to_vec()).collect(),
            heard: dispatcher.take_heard().into_iter().map(|node| node.to_vec()).collect(),
            images: Vec::new(),
            networks: Vec::new(),
        };
        self.told = open;
        self.send(first)?;
        self.tell_applied(&dispatcher.0.applied)?;
        self.tell_images(&dispatcher.0.images)
    }

    /// As many as half of the queue takes; the others with the next message.
    fn tell_applied(&self, untold: &AppliedTables) -> Result<(), Status> {
        let mut networks = Vec::new();
        let mut entries = 0;
        while self.up.capacity() > self.up.max_capacity() / 2
            && let Some((node, applied)) = untold.next_untold()
        {
            entries += applied.len() + 1;
            networks.push(RelayedNetworks { node_id: node.to_vec(), applied });
            if entries >= RELAY_BYTES / APPLIED_BYTES {
                self.send(RelayUp { networks: std::mem::take(&mut networks), ..RelayUp::default() })?;
                entries = 0;
            }
        }
        match networks.is_empty() {
            true => Ok(()),
            false => self.send(RelayUp { networks, ..RelayUp::default() }),
        }
    }

    /// As many as half of the queue takes; the others with the next message.
    fn tell_images(&self, untold: &ImageIndex) -> Result<(), Status> {
        let mut images = Vec::new();
        let mut bytes = 0;
        while self.up.capacity() > self.up.max_capacity() / 2
            && let Some((node, digests)) = untold.next_untold()
        {
            bytes += digests.iter().map(String::len).sum::<usize>();
            images.push(RelayedImages { node_id: node.to_vec(), digests });
            if bytes >= RELAY_BYTES {
                self.send(RelayUp { images: std::mem::take(&mut images), ..RelayUp::default() })?;
                bytes = 0;
            }
        }
        match images.is_empty() {
            true => Ok(()),
            false => self.send(RelayUp { images, ..RelayUp::default() }),
        }
    }

    fn send(&self, message: RelayUp) -> Result<(), Status> {
        // A leader that reads nothing is as good as none: the next stream begins with everything.
        self.up.try_send(message).map_err(|_| Status::unavailable("the leader does not read what it is told"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::HeldImages;

    use super::*;

    #[tokio::test]
    async fn more_images_than_the_queue_takes_are_told_in_turns() {
        let images = ImageIndex::default();
        for node in 1..=6_u128 {
            let digest = |number: u128| format!("sha256:{:064x}", node << 32 | number);
            let held = HeldImages { complete: true, added: (0..10_000).map(digest).collect(), removed: Vec::new() };
            assert_eq!(images.update(NodeId::new(node), &held), 0);
        }
        let (up, mut queue) = mpsc::channel(2);
        let teller = Teller { up, told: BTreeMap::new(), first: false };
        let mut told = 0;
        for _ in 0..6 {
            teller.tell_images(&images).unwrap();
            while let Ok(message) = queue.try_recv() {
                told += message.images.len();
            }
        }
        assert_eq!((told, images.next_untold()), (6, None));
    }
}
