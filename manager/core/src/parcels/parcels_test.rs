//! Rotations of secrets that many services use, and what is kept of them.
#![allow(clippy::unwrap_used)]

use skep_proto::id::{ConfigId, SecretId};
use skep_proto::v1::{ConfigRef, ContainerSpec, FileTarget, SecretRef, ServiceSpec, UpdateState};

use super::*;
use crate::doctor;
use crate::example::{START, replicated, swarm};
use crate::object::Revision;
use crate::store::ObjectKey;

const DB: ParcelId = ParcelId::Secret(SecretId::new(7));

fn later(seconds: i64) -> UnixMs {
    UnixMs(START.0 + 1_000 * seconds)
}

fn apply(state: &mut State, groups: Vec<Group>, now: UnixMs) {
    let applied = state.apply(&Transaction { at: now, groups, ..Transaction::default() });
    assert_eq!(applied.refused, vec![]);
    assert!(doctor::check(state).iter().all(|finding| finding.severity != skep_proto::v1::Severity::Error));
}

fn secret(version: u64, pinned: bool, path: &str) -> SecretRef {
    let target = (!path.is_empty()).then(|| FileTarget { path: path.into(), ..FileTarget::default() });
    SecretRef { secret_id: DB.to_vec(), version, name: "db".into(), pinned, target }
}

/// A swarm with secret `db` and these services; the uses are those of service 1 and up.
fn swarm_with(uses: impl IntoIterator<Item = SecretRef>) -> State {
    let mut state = swarm(1);
    state.set_version(1);
    let spec = ParcelSpec { name: "db".into(), ..ParcelSpec::default() };
    apply(&mut state, vec![Group(creation(DB, spec, Data::new(b"one".to_vec()), START))], START);
    let services = uses.into_iter().zip(1..).map(|(secret, number)| {
        let id = ServiceId::new(number);
        let spec = ServiceSpec { name: format!("web{number}"), mode: Some(replicated(1)), ..ServiceSpec::default() };
        let service = Service {
            id,
            meta: Meta::default(),
            spec: Arc::new(spec),
            revision: 1,
            ports: Vec::new(),
            update: None,
            virtual_addresses: Vec::new(),
        };
        let container = ContainerSpec {
            name: "main".into(),
            image: "busybox".into(),
            secrets: vec![secret],
            ..ContainerSpec::default()
        };
        let template = TaskTemplate { containers: vec![container], ..TaskTemplate::default() };
        let revision = Revision {
            key: service.current(),
            template: Arc::new(template),
            created_at: START,
            copied_from: None,
            service_name: "web".into(),
            live: None,
        };
        Group(vec![Change::create(Op::PutService(service)), Change::create(Op::PutRevision(revision))])
    });
    apply(&mut state, services.collect(), START);
    state
}

fn new(bytes: usize, rollout: Rollout) -> NewVersion {
    NewVersion { data: Data::new(vec![b'x'; bytes]), copied_from: None, rollout }
}

fn rotate(state: &mut State, bytes: usize, rollout: Rollout, now: UnixMs) -> Rotation {
    let parcel = Arc::clone(state.parcel(DB).unwrap());
    let rotation = rotation(state, &parcel, new(bytes, rollout), now).unwrap();
    let size = size(&rotation.changes);
    assert!(size <= MAX_TRANSACTION_BYTES && rotation.changes.len() <= MAX_ENTRY_CHANGES, "{size}");
    apply(state, vec![Group(rotation.changes.clone())], now);
    rotation
}

fn version_of(state: &State, number: u128) -> u64 {
    let revision = state.revision(state.service(ServiceId::new(number)).unwrap().current()).unwrap();
    revision.template.containers[0].secrets[0].version
}

#[test]
fn two_hundred_services_follow_in_one_transaction() {
    let mut state = swarm_with((0..200).map(|_| secret(1, false, "")));
    let rotation = rotate(&mut state, files::MAX_SECRET_BYTES, Rollout::Rolling, later(1));
    assert_eq!((rotation.version, rotation.services.len(), rotation.changes.len()), (2, 200, 402));
    assert_eq!(reached(&state, DB, 2), rotation.services, "a retry hears of the same ones");
    assert!(reached(&state, DB, 1).is_empty());
    assert!((1..=200).all(|number| version_of(&state, number) == 2));
    assert!(state.services().all(|service| service.update_state() == UpdateState::Updating));
    assert!(behind(&state, DB, 2, &Rollout::Rolling, later(1)).is_empty());
}

#[test]
fn what_does_not_fit_follows_afterwards_unless_it_went_elsewhere() {
    const SERVICES: usize = 1_500;
    let mut state = swarm_with((0..SERVICES).map(|_| secret(1, false, "")));
    let first = rotate(&mut state, files::MAX_SECRET_BYTES, Rollout::Rolling, later(1));
    assert!((200..SERVICES).contains(&first.services.len()), "{}", first.services.len());
    // The last one is rolled back, so to speak, before it is its turn.
    let last = ServiceId::new(SERVICES as u128);
    let service = Service::clone(state.service(last).unwrap());
    let template = Arc::clone(&state.revision(service.current()).unwrap().template);
    let kind = RollOut::Rollback { copied_from: 1, message: "back".into() };
    let back = begin_roll_out(&state, service, template, kind, later(2));
    apply(&mut state, vec![Group(back)], later(2));
    let rest = behind(&state, DB, 2, &Rollout::Rolling, later(3));
    assert_eq!(rest.len() + first.services.len() + 1, SERVICES);
    apply(&mut state, rest.into_iter().map(|(_, group)| group).collect(), later(3));
    assert!(behind(&state, DB, 2, &Rollout::Rolling, later(4)).is_empty());
    assert!((1..SERVICES as u128).all(|number| version_of(&state, number) == 2));
    assert_eq!(version_of(&state, SERVICES as u128), 1);
}

#[test]
fn pinned_uses_are_passed_by() {
    let mut state = swarm_with([secret(1, false, ""), secret(1, true, "")]);
    let rotation = rotate(&mut state, 3, Rollout::Rolling, later(1));
    assert_eq!(rotation.services, [ServiceId::new(1)]);
    assert_eq!(reached(&state, DB, 2), rotation.services);
    assert_eq!((version_of(&state, 1), version_of(&state, 2)), (2, 1));
    assert_eq!(pinned(&state, DB), [("web2".to_owned(), 1)]);
    assert_eq!(users(&state, DB).count(), 2);
}

#[test]
fn live_is_for_files_below_the_secrets_directory() {
    let mut state = swarm_with([secret(1, false, "a/b"), secret(1, false, "/run/secrets/x")]);
    rotate(&mut state, 3, Rollout::Live { signal: "HUP".into() }, later(1));
    let revision = state.revision(state.service(ServiceId::new(1)).unwrap().current()).unwrap();
    let live = revision.live.clone().unwrap();
    assert_eq!((live.from_revision, live.signal.as_str()), (1, "HUP"));

    let state = swarm_with([secret(1, false, ""), secret(1, false, "/etc/db"), secret(1, true, "/etc/db")]);
    let parcel = state.parcel(DB).unwrap();
    let live = new(3, Rollout::Live { signal: String::new() });
    let refused = rotation(&state, parcel, live, later(1)).unwrap_err().to_string();
    assert_eq!(
        refused,
        "secret db cannot be rotated live: service web2 has it at /etc/db, and only files under /run/secrets can be \
         swapped while a container runs; rotate it without --live"
    );
}

#[test]
fn live_is_not_for_what_a_template_outside_shows() {
    let refusal = |template: &str, target: &str, path: &str| {
        let mut state = swarm_with([secret(1, false, target)]);
        let app = ParcelId::Config(ConfigId::new(9));
        let spec = ParcelSpec { name: "app".into(), templated: true, ..ParcelSpec::default() };
        apply(&mut state, vec![Group(creation(app, spec, Data::new(template.as_bytes().to_vec()), START))], START);
        let service = Service::clone(state.service(ServiceId::new(1)).unwrap());
        let mut template = state.revision(service.current()).unwrap().template.clone();
        let file = FileTarget { path: path.into(), ..FileTarget::default() };
        let config =
            ConfigRef { config_id: app.to_vec(), version: 1, name: "app".into(), target: Some(file), pinned: true };
        Arc::make_mut(&mut template).containers[0].configs.push(config);
        let changes = begin_roll_out(&state, service, template, RollOut::Update, START);
        apply(&mut state, vec![Group(changes)], START);
        let live = new(3, Rollout::Live { signal: String::new() });
        rotation(&state, state.parcel(DB).unwrap(), live, later(1)).err().map(|error| error.to_string())
    };
    let refused = refusal("a {{.Service.Labels.x}} {{ secret \"db\" }}", "", "/etc/app.conf").unwrap();
    assert!(refused.contains("web1 has it at /etc/app.conf"), "{refused}");
    assert!(refusal("{{ secret \"mine\" }}", "mine", "/etc/app.conf").is_some());
    assert!(refusal("{{ secret \"db", "", "/etc/app.conf").is_some(), "nobody knows");
    assert_eq!(refusal("{{ secret \"db\" }}", "", "/run/secrets/app.conf"), None);
    assert_eq!(refusal("{{ secret \"other\" }} {{ config \"db\" }}", "", "/etc/app.conf"), None);
}

#[test]
fn versions_are_kept_to_the_limit_and_as_long_as_a_revision_names_them() {
    let mut state = swarm_with([secret(1, true, "")]);
    for turn in 1..=14 {
        rotate(&mut state, 3, Rollout::Rolling, later(turn));
        let plan = reap(&state, DB);
        apply(&mut state, plan.groups, later(turn));
        assert_eq!(reap(&state, DB).groups, vec![], "stable");
    }
    let numbers: Vec<u64> = state.parcel(DB).unwrap().versions.iter().map(|version| version.number).collect();
    // The newest ten, and the one that is pinned.
    assert_eq!(numbers, [1, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(state.payload_count(), 11);
    state.remove(&ObjectKey::Service(ServiceId::new(1)));
    let changes = removal(&state, state.parcel(DB).unwrap());
    apply(&mut state, vec![Group(changes)], later(20));
    assert_eq!((state.parcel_count(), state.payload_count()), (0, 0));
}
