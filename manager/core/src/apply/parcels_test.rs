//! What apply says to secrets, configs and payloads.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use skep_proto::id::{ConfigId, SecretId, ServiceId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{SecretRef, Severity, TaskState, WantedState};

use crate::apply::{Applied, Refused};
use crate::change::{Change, Group, Op, Transaction};
use crate::doctor;
use crate::example::{START, pending_tasks, replicated, swarm, with_service};
use crate::object::{
    Data, Meta, Parcel, ParcelId, ParcelSpec, Payload, PayloadKey, PayloadVersion, Revision, RevisionKey, Service, Task,
};
use crate::store::{ObjectKey, State};

const DB: ParcelId = ParcelId::Secret(SecretId::new(7));

fn apply(state: &mut State, changes: Vec<Change>) -> Result<Applied, Refused> {
    let transaction = Transaction { at: UnixMs(START.0 + 5), groups: vec![Group(changes)], ..Transaction::default() };
    let mut applied = state.apply(&transaction);
    let errors = doctor::check(state).into_iter().filter(|finding| finding.severity == Severity::Error);
    assert_eq!(errors.collect::<Vec<_>>(), vec![]);
    match applied.refused.pop() {
        Some((_, refused)) => Err(refused),
        None => Ok(applied),
    }
}

fn fresh() -> State {
    let mut state = swarm(1);
    state.set_version(1);
    state
}

fn version(number: u64, size: u64) -> PayloadVersion {
    PayloadVersion { number, created_at: UnixMs::ZERO, size, copied_from: None }
}

fn parcel(id: ParcelId, name: &str, versions: Vec<PayloadVersion>) -> Parcel {
    let spec = ParcelSpec { name: name.into(), ..ParcelSpec::default() };
    Parcel { id, meta: Meta::default(), spec: Arc::new(spec), versions }
}

fn payload(owner: ParcelId, number: u64, size: usize) -> Payload {
    Payload { key: PayloadKey { owner, version: number }, data: Data::new(vec![b'x'; size]) }
}

fn creation(id: ParcelId, name: &str) -> Vec<Change> {
    let parcel = parcel(id, name, vec![version(1, 4)]);
    vec![Change::create(Op::PutParcel(parcel)), Change::create(Op::PutPayload(payload(id, 1, 4)))]
}

fn removal(state: &State, id: ParcelId) -> Vec<Change> {
    let parcel = state.parcel(id).unwrap();
    let payloads = state.payloads_of(id).map(|payload| Change::any(Op::RemovePayload(payload.key)));
    std::iter::once(Change::update(parcel.meta.version, Op::RemoveParcel(id))).chain(payloads).collect()
}

/// A swarm with secret `db` in two versions, and service `web`, whose revision 1 uses the first.
fn used() -> (State, ServiceId) {
    let mut state = fresh();
    apply(&mut state, creation(DB, "db")).unwrap();
    rotate(&mut state, 2);
    let id = with_service(&mut state, replicated(1), |template| template.containers[0].secrets = vec![secret(1)]);
    (state, id)
}

fn rotate(state: &mut State, number: u64) {
    let mut newer = Parcel::clone(state.parcel(DB).unwrap());
    newer.versions.push(version(number, 5));
    let at = newer.meta.version;
    let changes =
        vec![Change::update(at, Op::PutParcel(newer)), Change::create(Op::PutPayload(payload(DB, number, 5)))];
    apply(state, changes).unwrap();
}

fn secret(version: u64) -> SecretRef {
    SecretRef { secret_id: SecretId::new(7).to_vec(), version, name: "db".into(), ..SecretRef::default() }
}

/// Points the service to a new revision that uses this version of the secret.
fn update(state: &mut State, service: ServiceId, secrets: Vec<SecretRef>) -> Result<Applied, Refused> {
    let mut service = Service::clone(state.service(service).unwrap());
    let mut revision = Revision::clone(state.revision(service.current()).unwrap());
    Arc::make_mut(&mut revision.template).containers[0].secrets = secrets;
    service.revision += 1;
    revision.key.number = service.revision;
    let at = service.meta.version;
    apply(state, vec![Change::create(Op::PutRevision(revision)), Change::update(at, Op::PutService(service))])
}

#[test]
fn names_are_unique_among_their_kind() {
    let mut state = fresh();
    apply(&mut state, creation(DB, "db")).unwrap();
    apply(&mut state, creation(ParcelId::Config(ConfigId::new(7)), "db")).unwrap();
    let error = apply(&mut state, creation(ParcelId::Secret(SecretId::new(8)), "db")).unwrap_err();
    assert_eq!(error.to_string(), format!("name db is taken by {DB}"));
}

#[test]
fn a_version_and_its_data_come_together() {
    let mut state = fresh();
    let alone = vec![Change::create(Op::PutParcel(parcel(DB, "db", vec![version(1, 4)])))];
    assert!(matches!(apply(&mut state, alone), Err(Refused::Missing { .. })));
    let orphan = vec![Change::create(Op::PutPayload(payload(DB, 1, 4)))];
    assert!(matches!(apply(&mut state, orphan), Err(Refused::Missing { .. })));
    let mut lies = creation(DB, "db");
    lies[1] = Change::create(Op::PutPayload(payload(DB, 1, 5)));
    assert!(matches!(apply(&mut state, lies), Err(Refused::Malformed { .. })));
    apply(&mut state, creation(DB, "db")).unwrap();
    let created = state.parcel(DB).unwrap().versions[0].created_at;
    assert_eq!(created, UnixMs(START.0 + 5), "the time is the log's");
    let again = vec![Change::any(Op::PutPayload(payload(DB, 1, 4)))];
    assert!(matches!(apply(&mut state, again), Err(Refused::Exists { .. })), "data never change");
    let gone = vec![Change::any(Op::RemovePayload(PayloadKey { owner: DB, version: 1 }))];
    assert!(matches!(apply(&mut state, gone), Err(Refused::Missing { .. })));
    let half = vec![Change::any(Op::RemoveParcel(DB))];
    assert!(matches!(apply(&mut state, half), Err(Refused::Missing { .. })), "data do not stay behind");
}

#[test]
fn what_is_too_large_or_empty_is_refused() {
    let mut state = fresh();
    let sized = |owner, size: usize| {
        let parcel = parcel(owner, "x", vec![version(1, size as u64)]);
        vec![Change::create(Op::PutParcel(parcel)), Change::create(Op::PutPayload(payload(owner, 1, size)))]
    };
    let config = ParcelId::Config(ConfigId::new(1));
    for (owner, size) in [(DB, 0), (DB, 512_001), (config, 1_024_001)] {
        assert!(matches!(apply(&mut state, sized(owner, size)), Err(Refused::Malformed { .. })), "{size}");
    }
    for (owner, size) in [(DB, 512_000), (config, 0), (ParcelId::Config(ConfigId::new(2)), 1_024_000)] {
        let mut changes = sized(owner, size);
        if let Op::PutParcel(parcel) = &mut changes[0].op {
            Arc::make_mut(&mut parcel.spec).name = format!("x{size}");
        }
        apply(&mut state, changes).unwrap();
    }
}

#[test]
fn only_labels_change_and_versions_only_rise() {
    let (mut state, _) = used();
    let stored = Parcel::clone(state.parcel(DB).unwrap());
    let mut put = |change: &dyn Fn(&mut Parcel)| {
        let mut parcel = Parcel::clone(state.parcel(DB).unwrap());
        change(&mut parcel);
        let at = parcel.meta.version;
        apply(&mut state, vec![Change::update(at, Op::PutParcel(parcel))])
    };
    let rename = put(&|parcel| Arc::make_mut(&mut parcel.spec).name = "other".into());
    assert_eq!(rename.unwrap_err().to_string(), "the name of secret db cannot change");
    assert!(put(&|parcel| Arc::make_mut(&mut parcel.spec).templated = true).is_err());
    assert!(put(&|parcel| parcel.versions[0].size = 9).is_err());
    assert!(put(&|parcel| parcel.versions.truncate(1)).unwrap_err().to_string().contains("cannot go back"));
    put(&|parcel| drop(Arc::make_mut(&mut parcel.spec).labels.insert("a".into(), "b".into()))).unwrap();
    assert_eq!(state.parcel(DB).unwrap().versions, stored.versions);
    assert_eq!(state.find_parcel(DB.kind(), "db").unwrap().id, DB);
}

#[test]
fn what_a_service_uses_stays() {
    let (mut state, web) = used();
    let refused = |state: &mut State| {
        let changes = removal(state, DB);
        apply(state, changes).unwrap_err().to_string()
    };
    assert_eq!(refused(&mut state), "secret db is in use by service web");
    // The task of the earlier revision is still to run.
    let task = pending_tasks(&mut state, web)[0];
    update(&mut state, web, Vec::new()).unwrap();
    assert_eq!(refused(&mut state), "secret db is in use by service web");
    let mut newer = Parcel::clone(state.parcel(DB).unwrap());
    newer.versions.remove(0);
    let at = newer.meta.version;
    let reaped = vec![
        Change::update(at, Op::PutParcel(newer)),
        Change::any(Op::RemovePayload(PayloadKey { owner: DB, version: 1 })),
    ];
    let error = apply(&mut state, reaped.clone()).unwrap_err();
    assert_eq!(error.to_string(), "version 1 of secret db is in use by service web");
    let stopping = Task { wanted: WantedState::Shutdown, ..Task::clone(state.task(task).unwrap()) };
    assert_eq!(stopping.state, TaskState::Pending);
    state.put(stopping);
    apply(&mut state, reaped).unwrap();
    let changes = removal(&state, DB);
    apply(&mut state, changes).unwrap();
    assert_eq!((state.parcel_count(), state.payload_count()), (0, 0));
    // Revision 1 is kept and names it: nobody goes back there.
    assert!(state.revision(RevisionKey { service: web, number: 1 }).is_some());
    let error = update(&mut state, web, vec![secret(1)]).unwrap_err();
    assert_eq!(error.to_string(), "service web needs version 1 of secret db, which is not there (any more)");
}

#[test]
fn a_service_that_is_gone_holds_nothing() {
    let (mut state, web) = used();
    pending_tasks(&mut state, web);
    apply(&mut state, vec![Change::any(Op::RemoveService(web))]).unwrap();
    let changes = removal(&state, DB);
    state.apply(&Transaction { groups: vec![Group(changes)], ..Transaction::default() });
    assert!(!state.contains(&ObjectKey::Parcel(DB)));
}

#[test]
fn what_a_revision_names_must_be_there_and_named_by_id() {
    let (mut state, web) = used();
    let error = update(&mut state, web, vec![secret(3)]).unwrap_err();
    assert_eq!(error.to_string(), "service web needs version 3 of secret db, which is not there (any more)");
    let nameless = SecretRef { name: "db".into(), ..SecretRef::default() };
    assert!(matches!(update(&mut state, web, vec![nameless]), Err(Refused::Malformed { .. })));
    update(&mut state, web, vec![secret(2)]).unwrap();
}

#[test]
fn a_revision_that_knows_nothing_of_a_rotation_is_refused() {
    let (mut state, web) = used();
    // What an earlier revision had may come again, as in a rollback.
    update(&mut state, web, Vec::new()).unwrap();
    update(&mut state, web, vec![secret(1)]).unwrap();
    rotate(&mut state, 3);
    let error = update(&mut state, web, vec![secret(2)]).unwrap_err();
    assert_eq!(error.to_string(), "update out of sequence: secret db is at version 3, not 2; read it again");
    update(&mut state, web, vec![SecretRef { pinned: true, ..secret(2) }]).unwrap();
}
