//! Tables of networks on their way from the session to netd, in order and whole versions at a time; and what netd has of
//! them, for the managers.
//!
//! Used by [`Networks`](super::Networks). A table that netd cannot follow (it lost it, a difference does not fit) is asked
//! for by a new registration: the generation rises, and messages of the registration before are worth nothing any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::id::NetworkId;
use skep_proto::v1::netd_client::NetdClient;
use skep_proto::v1::{AppliedVersion, ApplyTablesRequest, NetworkTable};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tonic::transport::Channel;

/// Rows that go to netd in one call at most, about; well below its limit of bytes.
const BATCH_ROWS: usize = 100_000;
/// Between two calls, in times of what the last one took: a host on which hundreds of tasks start, each a change in the
/// namespaces of all the others, has better things to do.
const REST: u32 = 8;
/// At most, so that a change is in force well within 200 ms.
const LONGEST_REST: Duration = Duration::from_millis(100);
/// Rows that wait for a netd that is not there, about.
const LATER_ROWS: usize = 20_000;
/// Bytes of a call.
const LARGEST_REQUEST: usize = 64 << 20;

/// What netd has, and since which registration that is what managers know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldTables {
    /// Rises when the managers must be told anew by a registration.
    pub generation: u64,
    /// Version of each table.
    pub versions: Arc<BTreeMap<NetworkId, u64>>,
}

impl HeldTables {
    /// As messages have it.
    pub fn to_wire(&self) -> Vec<AppliedVersion> {
        let row = |(id, version): (&NetworkId, &u64)| AppliedVersion { object_id: id.to_vec(), version: *version };
        self.versions.iter().map(row).collect()
    }
}

/// A manager's message, with the generation that the session had registered with.
#[derive(Debug)]
pub struct TableMessage {
    /// See [`HeldTables::generation`].
    pub generation: u64,
    /// What it says.
    pub table: NetworkTable,
}

/// Takes what a netd has that was just found. Managers are asked for the difference where that is not what they know: it
/// has something else, or messages to it were `lost`.
pub(super) fn found(networks: &[AppliedVersion], lost: bool, held: &watch::Sender<HeldTables>) {
    let read = |one: &AppliedVersion| Some((NetworkId::from_wire(&one.object_id).ok()?, one.version));
    let versions: BTreeMap<NetworkId, u64> = networks.iter().filter_map(read).collect();
    held.send_if_modified(|held| {
        let is_new = lost || *held.versions != versions;
        if is_new {
            *held = HeldTables { generation: held.generation + 1, versions: Arc::new(versions) };
        }
        is_new
    });
}

/// Messages in hand.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Of the registration that they came after.
    generation: u64,
    /// Messages of it were thrown away: the next ones are worth nothing without them.
    lost: bool,
    /// Whole versions, in order.
    ready: Vec<NetworkTable>,
    rows: usize,
    /// The beginnings of versions, by network.
    begun: BTreeMap<Vec<u8>, Vec<NetworkTable>>,
}

impl Waiting {
    /// Takes a message, if it is one of the last registration.
    pub(super) fn take(&mut self, message: TableMessage, held: &watch::Sender<HeldTables>) {
        self.renew(held);
        if message.generation == self.generation && !self.lost {
            self.add(message.table);
        }
    }

    /// Throws away what came after another registration than the last one.
    fn renew(&mut self, held: &watch::Sender<HeldTables>) {
        let newest = held.borrow().generation;
        if self.generation != newest {
            *self = Self { generation: newest, ..Self::default() };
        }
    }

    /// The same while there is no netd, which may be so for long: what does not fit is asked for when one comes.
    pub(super) fn take_for_later(&mut self, message: TableMessage, held: &watch::Sender<HeldTables>) {
        self.take(message, held);
        if self.rows > LATER_ROWS {
            self.lose();
        }
    }

    /// Throws everything away.
    pub(super) fn lose(&mut self) {
        *self = Self { generation: self.generation, lost: true, ..Self::default() };
    }

    /// Whether something of the last registration was thrown away.
    pub(super) fn has_lost(&self, held: &watch::Sender<HeldTables>) -> bool {
        self.lost && self.generation == held.borrow().generation
    }

    fn add(&mut self, table: NetworkTable) {
        self.rows += table.put_endpoints.len() + table.put_services.len() + table.put_peers.len() + 1;
        let is_whole = table.end || table.dropped;
        let begun = self.begun.entry(table.network_id.clone()).or_default();
        begun.push(table);
        if is_whole {
            self.ready.append(begun);
        }
    }
}

/// Hands tables on until netd fails, or until it is cancelled: then nobody knows what netd has taken.
pub(super) async fn hand_on(
    channel: Channel,
    queue: &mut mpsc::UnboundedReceiver<TableMessage>,
    waiting: &mut Waiting,
    held: &watch::Sender<HeldTables>,
) {
    let mut netd = NetdClient::new(channel).max_encoding_message_size(LARGEST_REQUEST);
    let mut next_call = Instant::now();
    loop {
        waiting.renew(held);
        if waiting.ready.is_empty() {
            match queue.recv().await {
                Some(message) => waiting.take(message, held),
                // The session is gone; so is the agent.
                None => std::future::pending().await,
            }
        }
        // What comes meanwhile goes along: many changes at a time cost little more than one.
        sleep_until(next_call).await;
        while waiting.rows < BATCH_ROWS
            && let Ok(message) = queue.try_recv()
        {
            waiting.take(message, held);
        }
        if waiting.ready.is_empty() {
            continue;
        }
        let tables = std::mem::take(&mut waiting.ready);
        waiting.rows = 0;
        let begun = Instant::now();
        let applied = apply(&mut netd, tables, held).await;
        next_call = Instant::now() + (begun.elapsed() * REST).min(LONGEST_REST);
        if let Err(status) = applied {
            tracing::warn!(error = status.message(), "netd did not take tables of networks");
            return;
        }
    }
}

async fn apply(
    netd: &mut NetdClient<Channel>,
    tables: Vec<NetworkTable>,
    held: &watch::Sender<HeldTables>,
) -> Result<(), tonic::Status> {
    // The last word on each network counts.
    let gone: BTreeMap<Vec<u8>, bool> = tables.iter().map(|table| (table.network_id.clone(), table.dropped)).collect();
    let answer = super::call(netd.apply(ApplyTablesRequest { tables })).await?;
    let (mut lost, mut refused) = (Vec::new(), Vec::new());
    for fault in &answer.faults {
        let Ok(id) = NetworkId::from_wire(&fault.network_id) else { continue };
        tracing::warn!(network = %id, error = fault.error, "a network of this host is not as it ought to be");
        if fault.needs_complete { &mut lost } else { &mut refused }.push(id);
    }
    held.send_modify(|held| {
        let versions = Arc::make_mut(&mut held.versions);
        for one in &answer.applied {
            let Ok(id) = NetworkId::from_wire(&one.object_id) else { continue };
            let is_gone = one.version == 0 || gone.get(&one.object_id) == Some(&true);
            if is_gone {
                versions.remove(&id);
            } else if !(refused.contains(&id) && versions.contains_key(&id)) {
                // What the kernel refused is not in force: tasks that drain are waited for, until a later version is.
                versions.insert(id, one.version);
            }
        }
        for id in &lost {
            versions.remove(id);
        }
        if !lost.is_empty() {
            held.generation += 1;
        }
    });
    Ok(())
}
