//! Which revision a rollback goes back to, and what it writes.

#![allow(clippy::unwrap_used)]

use skep_core::change::{Group, Op, Transaction};
use skep_core::object::Meta;
use skep_proto::id::ServiceId;
use skep_proto::v1::{ContainerSpec, ServiceSpec, TaskTemplate};

use super::*;

const WEB: ServiceId = ServiceId::new(1);

fn apply(state: &mut State, changes: Vec<Change>) {
    let groups = vec![Group(changes)];
    assert_eq!(state.apply(&Transaction { at: UnixMs(5), groups, ..Transaction::default() }).refused, vec![]);
}

fn template(image: &str) -> Arc<TaskTemplate> {
    let container = ContainerSpec { name: "main".into(), image: image.into(), ..ContainerSpec::default() };
    Arc::new(TaskTemplate { containers: vec![container], ..TaskTemplate::default() })
}

/// A service that was updated so many times.
fn updated(times: u64) -> State {
    let mut state = State::default();
    let spec = Arc::new(ServiceSpec { name: "web".into(), ..ServiceSpec::default() });
    let service = Service {
        id: WEB,
        meta: Meta::default(),
        spec,
        revision: 1,
        ports: Vec::new(),
        update: None,
        virtual_addresses: Vec::new(),
    };
    let revision = Revision {
        key: service.current(),
        template: template("web:1"),
        created_at: UnixMs(1),
        copied_from: None,
        service_name: "web".into(),
        live: None,
    };
    apply(&mut state, vec![Change::create(Op::PutService(service)), Change::create(Op::PutRevision(revision))]);
    for number in 2..=times + 1 {
        let service = Service::clone(state.service(WEB).unwrap());
        let template = template(&format!("web:{number}"));
        let changes = orchestrate::begin_roll_out(&state, service, template, RollOut::Update, UnixMs(6));
        apply(&mut state, changes);
    }
    state
}

fn refused(state: &State, to: u64) -> String {
    target(state, state.service(WEB).unwrap(), to).unwrap_err().message().to_owned()
}

#[test]
fn the_revision_before_is_the_default() {
    let state = updated(3);
    let service = state.service(WEB).unwrap();
    assert_eq!((target(&state, service, 0).unwrap(), target(&state, service, 1).unwrap()), (3, 1));
}

#[test]
fn what_cannot_be_gone_back_to_is_refused() {
    assert!(refused(&updated(0), 0).contains("never updated"));
    assert!(refused(&updated(2), 3).contains("at revision 3 already"));
    let message = refused(&updated(2), 9);
    assert!(message.contains("no revision 9") && message.ends_with("kept are 1, 2, 3"), "{message}");
}

#[test]
fn a_rollback_is_a_new_revision_with_an_old_template() {
    let mut state = updated(2);
    let changes = rolled_back(&state, state.service(WEB).unwrap(), 1, UnixMs(9)).unwrap();
    apply(&mut state, changes);
    let service = state.service(WEB).unwrap();
    let (revision, status) = (state.revision(service.current()).unwrap(), service.update.clone().unwrap());
    assert_eq!((revision.key.number, revision.copied_from, &revision.template), (4, Some(1), &template("web:1")));
    assert_eq!((status.state(), status.from_revision), (UpdateState::RollbackStarted, 3));
    assert_eq!(status.message, "manually requested rollback");
    assert_eq!(target(&state, service, 0).unwrap(), 3, "and back again");
}

#[test]
fn history_is_newest_first() {
    let state = updated(2);
    let history = history(&state, state.service(WEB).unwrap());
    let numbers: Vec<u64> = history.iter().map(|summary| summary.revision.as_ref().unwrap().number).collect();
    assert_eq!(numbers, [3, 2, 1]);
    assert_eq!(history.iter().map(|summary| summary.current).collect::<Vec<_>>(), [true, false, false]);
}
