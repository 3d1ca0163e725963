//! What a manager counts, for the daemon's page of metrics: taken from the applied state and Raft's status when it is asked,
//! kept nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_core::object::ParcelKind;
use skep_core::store::State;
use skep_proto::id::NodeId;
use skep_proto::v1::{NodeState, TaskState};
use skep_raft::Status;
use tokio::sync::watch;

use crate::store::Store;

/// Where a running manager's figures are read. Holds its state, so it is dropped before the manager stops.
#[derive(Clone)]
pub struct FigureSource {
    store: Store,
    status: watch::Receiver<Status>,
}

impl FigureSource {
    pub(crate) fn new(store: Store, status: watch::Receiver<Status>) -> Self {
        Self { store, status }
    }

    /// The figures of now.
    pub fn read(&self) -> Figures {
        let status = self.status.borrow().clone();
        Figures { raft: RaftFigures::of(&status), swarm: SwarmFigures::of(&self.store.state()) }
    }
}

/// A manager's figures.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Of its Raft.
    pub raft: RaftFigures,
    /// Of the swarm, as far as this manager has applied the log.
    pub swarm: SwarmFigures,
}

/// Figures of a manager's Raft.
#[derive(Clone, Debug, Default)]
pub struct RaftFigures {
    /// It leads, and a quorum confirms it.
    pub leads: bool,
    /// It hears a leader, which may be itself.
    pub hears_leader: bool,
    /// It takes no writes for lack of space.
    pub disk_full: bool,
    pub term: u64,
    /// Index of the last log entry; 0: there is none.
    pub last_log: u64,
    /// Index of the last applied entry; 0: there is none.
    pub last_applied: u64,
    /// Index of the newest snapshot; 0: there is none.
    pub snapshot: u64,
    /// Managers that vote.
    pub voters: usize,
}

impl RaftFigures {
    fn of(status: &Status) -> Self {
        Self {
            leads: status.has_quorum,
            hears_leader: status.hears_leader,
            disk_full: status.disk_full,
            term: status.term,
            last_log: status.last_log.unwrap_or(0),
            last_applied: status.last_applied.unwrap_or(0),
            snapshot: status.snapshot.as_ref().map_or(0, |snapshot| snapshot.index),
            voters: status.membership.voters.len(),
        }
    }
}

/// How many objects there are, and until when nodes have certificates.
#[derive(Clone, Debug, Default)]
pub struct SwarmFigures {
    pub nodes: BTreeMap<NodeState, usize>,
    /// Those that ended too, as long as they are kept.
    pub tasks: BTreeMap<TaskState, usize>,
    pub services: usize,
    pub networks: usize,
    pub secrets: usize,
    pub configs: usize,
    pub clients: usize,
    /// The end of each node's certificate, as the node tells it, in milliseconds since 1970; with its hostname.
    pub certificates: Vec<(NodeId, Arc<str>, i64)>,
}

impl SwarmFigures {
    fn of(state: &State) -> Self {
        let mut figures = Self {
            services: state.services().count(),
            networks: state.networks().count(),
            clients: state.clients().count(),
            ..Self::default()
        };
        for node in state.nodes() {
            *figures.nodes.entry(node.status.state).or_default() += 1;
            let certificate = node.description.as_ref().and_then(|description| description.certificate.as_ref());
            figures
                .certificates
                .extend(certificate.map(|certificate| (node.id, node.hostname().into(), certificate.not_after_ms)));
        }
        for task in state.tasks() {
            *figures.tasks.entry(task.state).or_default() += 1;
        }
        for parcel in state.parcels() {
            match parcel.id.kind() {
                ParcelKind::Secret => figures.secrets += 1,
                ParcelKind::Config => figures.configs += 1,
            }
        }
        figures
    }
}
