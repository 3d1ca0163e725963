//! Which secrets and configs a service gets.
#![allow(clippy::unwrap_used)]

use skep_core::change::{Change, Group, Transaction};
use skep_core::object::{Data, ParcelSpec};
use skep_core::parcels::{self, NewVersion, Rollout};
use skep_proto::time::UnixMs;
use skep_proto::v1::{ConfigRef, ContainerSpec, SecretRef};

use super::*;

const DB: ParcelId = ParcelId::Secret(SecretId::new(7));
const SITE: ParcelId = ParcelId::Config(ConfigId::new(7));

fn apply(state: &mut State, changes: Vec<Change>) {
    let groups = vec![Group(changes)];
    assert_eq!(state.apply(&Transaction { at: UnixMs(5), groups, ..Transaction::default() }).refused, vec![]);
}

/// Secret `db` in two versions, config `site` in one.
fn state() -> State {
    let mut state = State::default();
    for (id, name) in [(DB, "db"), (SITE, "site")] {
        let spec = ParcelSpec { name: name.into(), ..ParcelSpec::default() };
        apply(&mut state, parcels::creation(id, spec, Data::new(b"one".to_vec()), UnixMs(1)));
    }
    rotate(&mut state);
    state
}

fn rotate(state: &mut State) {
    let parcel = Arc::clone(state.parcel(DB).unwrap());
    let new = NewVersion { data: Data::new(b"two".to_vec()), copied_from: None, rollout: Rollout::Rolling };
    let rotation = parcels::rotation(state, &parcel, new, UnixMs(2)).unwrap();
    apply(state, rotation.changes);
}

fn template(secrets: Vec<SecretRef>, configs: Vec<ConfigRef>) -> TaskTemplate {
    let container = ContainerSpec { name: "main".into(), secrets, configs, ..ContainerSpec::default() };
    TaskTemplate { containers: vec![container], ..TaskTemplate::default() }
}

fn named(name: &str) -> SecretRef {
    SecretRef { name: name.into(), ..SecretRef::default() }
}

fn pinned(version: u64) -> SecretRef {
    SecretRef { version, pinned: true, ..named("db") }
}

fn resolved(state: &State, secrets: Vec<SecretRef>, present: Option<&TaskTemplate>) -> Result<TaskTemplate, String> {
    let mut template = template(secrets, Vec::new());
    resolve_names(state, &mut template, present).map_err(|status| status.message().to_owned())?;
    Ok(template)
}

fn version_of(template: &TaskTemplate) -> u64 {
    template.containers[0].secrets[0].version
}

#[test]
fn names_ids_and_targets_are_filled_in() {
    let state = state();
    let site = ConfigRef { name: SITE.printed(), ..ConfigRef::default() };
    let mut template = template(vec![named("db")], vec![site]);
    resolve_names(&state, &mut template, None).unwrap();
    let container = &template.containers[0];
    let (secret, config) = (&container.secrets[0], &container.configs[0]);
    assert_eq!((secret.secret_id.clone(), secret.version), (DB.to_vec(), 2));
    assert_eq!(secret.target.as_ref().unwrap().path, "db");
    assert_eq!((config.config_id.clone(), config.version, config.name.as_str()), (SITE.to_vec(), 1, "site"));
    assert_eq!(config.target.as_ref().unwrap().path, "site");
    let again = template.clone();
    resolve_names(&state, &mut template, Some(&again)).unwrap();
    assert_eq!(template, again);
}

#[test]
fn only_what_is_new_gets_the_newest_version() {
    let mut state = state();
    let present = resolved(&state, vec![named("db")], None).unwrap();
    rotate(&mut state);
    let sent = present.containers[0].secrets.clone();
    // An update of something else restarts nobody for a version.
    assert_eq!(version_of(&resolved(&state, sent.clone(), Some(&present)).unwrap()), 2);
    assert_eq!(version_of(&resolved(&state, vec![named("db")], Some(&present)).unwrap()), 3);
    // It was decided on before the service followed a rotation.
    let followed = resolved(&state, vec![named("db")], None).unwrap();
    assert_eq!(version_of(&resolved(&state, sent, Some(&followed)).unwrap()), 3);
}

#[test]
fn a_pin_holds_and_must_be_there() {
    let state = state();
    assert_eq!(version_of(&resolved(&state, vec![pinned(1)], None).unwrap()), 1);
    let error = resolved(&state, vec![pinned(3)], None).unwrap_err();
    assert_eq!(error, "secret db has no version 3 (any more); kept are 1, 2");
}

#[test]
fn mistakes_are_told() {
    let state = state();
    let error = resolved(&state, vec![named("nope")], None).unwrap_err();
    assert_eq!(error, "secret nope not found: see `skep secret ls`, make it with `skep secret create nope FILE`");
    // One by its name, one by its id.
    let error = resolved(&state, vec![named("db"), named(&DB.printed())], None).unwrap_err();
    assert_eq!(
        error,
        "invalid containers[main].secrets[1]: secret db and secret db have the same target /run/secrets/db"
    );
    let template = template(vec![SecretRef { secret_id: DB.to_vec(), version: 9, ..named("db") }], Vec::new());
    assert_eq!(missing(&state, &template).unwrap(), "version 9 of secret db");
}
