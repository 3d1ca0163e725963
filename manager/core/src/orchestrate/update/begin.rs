//! The beginning of a roll-out: a new revision, and the service that points to it. Called by the control API for what
//! operators ask, and by the updater for what failed.

use std::sync::Arc;

use skep_proto::time::UnixMs;
use skep_proto::v1::{TaskTemplate, UpdateState, UpdateStatus};

use crate::change::{Change, Op};
use crate::object::{LiveChange, Revision, RevisionKey, Service};
use crate::store::State;

/// What is rolled out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RollOut {
    /// A template that an operator changed.
    Update,
    /// A template in which only versions of secrets and configs differ, for running tasks to take over in place.
    Live {
        /// To the first process of each container whose files changed. Empty: none.
        signal: String,
    },
    /// The template of an earlier revision.
    Rollback {
        copied_from: u64,
        /// Why, for a person.
        message: String,
    },
}

/// The changes that begin a roll-out of `template`: the revision after all that there were, and `service` (as it is to
/// be stored, with the stored object's version) pointing to it.
pub fn begin(
    state: &State,
    service: Service,
    template: Arc<TaskTemplate>,
    roll_out: RollOut,
    now: UnixMs,
) -> Vec<Change> {
    let newest = state.revisions_of(service.id).next_back().map_or(0, |revision| revision.key.number);
    let number = newest.max(service.revision) + 1;
    let begun = "update in progress".to_owned();
    let from_revision = service.revision;
    let (update_state, message, copied_from, live) = match roll_out {
        RollOut::Update => (UpdateState::Updating, begun, None, None),
        RollOut::Live { signal } => (UpdateState::Updating, begun, None, Some(LiveChange { from_revision, signal })),
        RollOut::Rollback { copied_from, message } => (UpdateState::RollbackStarted, message, Some(copied_from), None),
    };
    let status =
        UpdateStatus { state: update_state.into(), started_at_ms: now.0, ended_at_ms: 0, message, from_revision };
    let revision = Revision {
        key: RevisionKey { service: service.id, number },
        template,
        created_at: now,
        copied_from,
        service_name: service.spec.name.as_str().into(),
        live,
    };
    let version = service.meta.version;
    let service = Service { revision: number, update: Some(Arc::new(status)), ..service };
    vec![Change::create(Op::PutRevision(revision)), Change::update(version, Op::PutService(service))]
}
