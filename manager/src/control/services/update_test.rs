//! What an update of a service writes: revisions, digests, credentials, ports, and its refusals.

#![allow(clippy::unwrap_used)]

use skep_core::change::{Group, Transaction};
use skep_core::object::{Meta, Revision};
use skep_proto::id::CredentialId;
use skep_proto::v1::{
    ContainerSpec, EndpointSpec, GlobalMode, Placement, PortSpec, RegistryAuth, ReplicatedMode, UpdatePolicy,
    UpdateState,
};

use super::*;

const WEB: ServiceId = ServiceId::new(1);

fn spec() -> ServiceSpec {
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas: 3 }));
    ServiceSpec { name: "web".into(), mode, ..ServiceSpec::default() }
}

fn template() -> TaskTemplate {
    let container = ContainerSpec {
        name: "main".into(),
        image: "web:1".into(),
        image_digest: "sha256:1".into(),
        ..ContainerSpec::default()
    };
    TaskTemplate { containers: vec![container], ..TaskTemplate::default() }
}

/// A state with one service.
fn state() -> State {
    let mut state = State::default();
    let service = Service {
        id: WEB,
        meta: Meta::default(),
        spec: Arc::new(spec()),
        revision: 1,
        ports: Vec::new(),
        update: None,
        virtual_addresses: Vec::new(),
    };
    let revision = Revision {
        key: service.current(),
        template: Arc::new(template()),
        created_at: UnixMs(1),
        copied_from: None,
        service_name: "web".into(),
        live: None,
    };
    apply(&mut state, vec![Change::create(Op::PutService(service)), Change::create(Op::PutRevision(revision))]);
    state
}

fn apply(state: &mut State, changes: Vec<Change>) {
    let groups = vec![Group(changes)];
    assert_eq!(state.apply(&Transaction { at: UnixMs(5), groups, ..Transaction::default() }).refused, vec![]);
}

fn update(state: &mut State, draft: Draft) -> usize {
    let changes = revised(state, state.service(WEB).unwrap(), draft, UnixMs(7)).unwrap();
    let count = changes.len();
    apply(state, changes);
    count
}

fn draft() -> Draft {
    Draft { spec: spec(), template: template(), login: None }
}

fn login(registry: &str, password: &str) -> Option<Login> {
    let auth = RegistryAuth { password: password.into(), ..RegistryAuth::default() };
    Some(Login { registry: registry.into(), auth })
}

#[test]
fn what_does_not_differ_is_not_written() {
    assert_eq!(update(&mut state(), draft()), 0);
}

#[test]
fn replicas_labels_and_policies_make_no_revision() {
    let mut state = state();
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas: 9 }));
    let labels = [("a".to_owned(), "b".to_owned())].into();
    let spec =
        ServiceSpec { mode, labels, update: Some(UpdatePolicy { all: true, ..UpdatePolicy::default() }), ..spec() };
    assert_eq!(update(&mut state, Draft { spec: spec.clone(), ..draft() }), 1);
    let service = state.service(WEB).unwrap();
    assert_eq!((service.revision, &*service.spec, &service.update), (1, &spec, &None));
}

#[test]
fn another_template_is_a_revision_that_is_rolled_out() {
    let mut state = state();
    let mut changed = template();
    changed.containers[0].image = "web:2".into();
    update(&mut state, Draft { template: changed.clone(), ..draft() });
    let service = state.service(WEB).unwrap();
    let status = service.update.clone().unwrap();
    assert_eq!((service.revision, status.state(), status.from_revision), (2, UpdateState::Updating, 1));
    assert_eq!((status.started_at_ms, status.message.as_str()), (7, "update in progress"));
    assert_eq!(*state.revision(service.current()).unwrap().template, changed);
    // A placement is part of the template.
    changed.placement = Some(Placement { max_replicas_per_node: 1, ..Placement::default() });
    update(&mut state, Draft { template: changed, ..draft() });
    assert_eq!(state.service(WEB).unwrap().revision, 3);
}

#[test]
fn force_rises_only() {
    let mut state = state();
    update(&mut state, Draft { template: TaskTemplate { force_update: 2, ..template() }, ..draft() });
    assert_eq!(state.service(WEB).unwrap().revision, 2);
    assert_eq!(update(&mut state, draft()), 0, "leaving it out asks for nothing");
}

#[test]
fn other_ports_are_a_revision_too() {
    let mut state = state();
    let port =
        PortSpec { published_port: 80, target_port: 8080, mode: PublishMode::Host.into(), ..PortSpec::default() };
    let spec = ServiceSpec { endpoint: Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() }), ..spec() };
    update(&mut state, Draft { spec: spec.clone(), ..draft() });
    let service = state.service(WEB).unwrap();
    assert_eq!((service.revision, &service.ports[..]), (2, &[port][..]));
    assert_eq!(update(&mut state, Draft { spec, ..draft() }), 0);
}

#[test]
fn credentials_stay_are_replaced_or_come_anew() {
    let mut state = state();
    let id = |state: &State| {
        let template = present_template(state, state.service(WEB).unwrap()).unwrap();
        CredentialId::from_wire_opt(&template.credential_id).unwrap()
    };
    update(&mut state, Draft { login: login("reg", "one"), ..draft() });
    let first = id(&state).unwrap();
    assert_eq!((state.credential(first).unwrap().registry.as_str(), state.service(WEB).unwrap().revision), ("reg", 2));
    assert_eq!(update(&mut state, draft()), 0, "without a new one it stays");
    assert_eq!(update(&mut state, Draft { login: login("reg", "one"), ..draft() }), 0);
    assert_eq!(update(&mut state, Draft { login: login("reg", "two"), ..draft() }), 1, "no revision for a password");
    assert_eq!((id(&state), state.credential(first).unwrap().auth.password.as_str()), (Some(first), "two"));
    update(&mut state, Draft { login: login("other", "three"), ..draft() });
    assert_ne!(id(&state), Some(first));
    assert_eq!(state.credentials_of(WEB).count(), 2, "the old revision still names the old one");
    assert_eq!(
        Login::stored(&state, &present_template(&state, state.service(WEB).unwrap()).unwrap()).unwrap().registry,
        "other"
    );
}

#[test]
fn names_modes_and_old_versions_are_refused() {
    let state = state();
    let service = state.service(WEB).unwrap();
    let message = |spec: ServiceSpec| check_fixed(service, &spec).unwrap_err().message().to_owned();
    assert!(message(ServiceSpec { name: "new".into(), ..spec() }).contains("cannot be renamed to new"));
    let global = Some(Mode::Global(GlobalMode {}));
    assert!(message(ServiceSpec { mode: global, ..spec() }).contains("is replicated and cannot become global"));
    assert!(check_version(service, 0).is_ok() && check_version(service, service.meta.version).is_ok());
    let late = check_version(service, 99).unwrap_err();
    assert_eq!(late.code(), tonic::Code::Aborted);
    assert!(late.message().contains("is at version 1, not 99"), "{late}");
}

#[test]
fn a_port_that_the_old_task_holds_is_worth_a_warning() {
    let port = PortSpec { target_port: 80, mode: PublishMode::Host.into(), ..PortSpec::default() };
    let endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
    let start_first = Some(UpdatePolicy { order: UpdateOrder::StartFirst.into(), ..UpdatePolicy::default() });
    assert_eq!(port_warning(&ServiceSpec { endpoint: endpoint.clone(), ..spec() }), None);
    assert_eq!(port_warning(&ServiceSpec { update: start_first, ..spec() }), None);
    let warning = port_warning(&ServiceSpec { endpoint, update: start_first, ..spec() }).unwrap();
    assert!(warning.contains("port 80") && warning.contains("another node"), "{warning}");
}
