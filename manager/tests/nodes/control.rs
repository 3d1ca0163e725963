//! What operators do to services, by the API: updates, rollbacks, history, scaling; and retries of their calls, which get
//! the first answer, also when the first try took away what they name.

use skep_proto::id::ServiceId;
use skep_proto::v1::secrets_client::SecretsClient;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::services_client::ServicesClient;
use skep_proto::v1::{
    CreateSecretRequest, GetServiceRequest, GlobalMode, RemoveServiceRequest, ReplicatedMode, RollbackServiceRequest,
    RotateRequest, ScaleServiceRequest, SecretRef, SecretSpec, ServiceHistoryRequest, ServiceSpec, TaskState,
    TaskTemplate, UpdatePolicy, UpdateServiceRequest, UpdateState, WriteOptions,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::agent::{Agent, observed};
use crate::swarm::{Swarm, soon};

const WEB: &str = "web";

fn write(id: u8) -> Option<WriteOptions> {
    Some(WriteOptions { request_id: vec![id; 16] })
}

/// A service, and an operator who knows it.
struct Operator {
    swarm: Swarm,
    web: ServiceId,
    services: ServicesClient<Channel>,
}

impl Operator {
    async fn with_service(replicas: u64) -> Self {
        let swarm = Swarm::start().await;
        let web = swarm.create_service(WEB, "sha256:00", replicas).await;
        let services = ServicesClient::new(swarm.operator());
        Self { swarm, web, services }
    }

    /// The spec as an operator reads it, to change and send back; and the version that it was read at.
    async fn spec(&mut self) -> (ServiceSpec, u64) {
        let get = GetServiceRequest { reference: WEB.into(), ..GetServiceRequest::default() };
        let summary = soon("get", self.services.get(get)).await.unwrap().into_inner().service.unwrap();
        let (service, revision) = (summary.service.unwrap(), summary.revision.unwrap());
        (ServiceSpec { template: revision.template, ..service.spec.unwrap() }, service.meta.unwrap().version)
    }

    /// The present spec with another command.
    async fn changed(&mut self, command: &str) -> UpdateServiceRequest {
        let (mut spec, _) = self.spec().await;
        spec.template.as_mut().unwrap().containers[0].command = vec![command.to_owned()];
        UpdateServiceRequest { reference: WEB.into(), spec: Some(spec), ..UpdateServiceRequest::default() }
    }

    async fn update(&mut self, command: &str) -> u64 {
        let request = self.changed(command).await;
        soon("update", self.services.update(request)).await.unwrap().into_inner().revision
    }

    async fn roll_back(&mut self, to_revision: u64, id: u8) -> Result<u64, Status> {
        let reference = WEB.to_owned();
        let request =
            RollbackServiceRequest { reference, to_revision, write: write(id), ..RollbackServiceRequest::default() };
        Ok(soon("rollback", self.services.rollback(request)).await?.into_inner().revision)
    }

    /// Number, origin, running tasks of each kept revision, newest first; and which is current.
    async fn history(&mut self) -> (Vec<(u64, u64, u64)>, u64) {
        let request = ServiceHistoryRequest { reference: WEB.into(), ..ServiceHistoryRequest::default() };
        let revisions = soon("history", self.services.history(request)).await.unwrap().into_inner().revisions;
        let rows = revisions.iter().map(|row| (row.revision.clone().unwrap(), row.running));
        let current = revisions.iter().filter(|row| row.current).map(|row| row.revision.as_ref().unwrap().number);
        (rows.map(|(revision, running)| (revision.number, revision.copied_from, running)).collect(), current.sum())
    }

    fn template(&self) -> TaskTemplate {
        let state = self.swarm.state();
        TaskTemplate::clone(&state.revision(state.service(self.web).unwrap().current()).unwrap().template)
    }
}

#[tokio::test]
async fn a_retried_removal_gets_the_first_answer() {
    let Operator { swarm, web, mut services } = Operator::with_service(0).await;
    let remove = |id: u8| RemoveServiceRequest { reference: WEB.into(), write: write(id) };
    let first = services.remove(remove(1)).await.unwrap().into_inner();
    assert_eq!((first.id.clone(), first.name.as_str()), (web.to_vec(), WEB));
    assert_eq!(services.remove(remove(1)).await.unwrap().into_inner(), first);
    assert_eq!(services.remove(remove(2)).await.unwrap_err().code(), Code::NotFound);
    swarm.stop().await;
}

#[tokio::test]
async fn a_retried_rotation_says_what_the_first_try_did() {
    let mut operator = Operator::with_service(0).await;
    let mut secrets = SecretsClient::new(operator.swarm.operator());
    let spec = Some(SecretSpec { name: "db".into(), ..SecretSpec::default() });
    secrets.create(CreateSecretRequest { spec, data: b"one".to_vec(), write: None }).await.unwrap();
    let mut request = operator.changed("sleep").await;
    let container = &mut request.spec.as_mut().unwrap().template.as_mut().unwrap().containers[0];
    container.secrets.push(SecretRef { name: "db".into(), ..SecretRef::default() });
    operator.services.update(request).await.unwrap();
    let rotate = |data: &str, id: u8| RotateRequest {
        reference: "db".into(),
        data: data.into(),
        write: write(id),
        ..RotateRequest::default()
    };
    let first = secrets.rotate(rotate("two", 1)).await.unwrap().into_inner();
    assert_eq!((first.payload_version, &first.service_ids), (2, &vec![operator.web.to_vec()]));
    let again = secrets.rotate(rotate("two", 1)).await.unwrap().into_inner();
    assert_eq!((again.payload_version, &again.service_ids), (2, &first.service_ids), "a retry");
    assert_eq!(operator.template().containers[0].secrets[0].version, 2);
    // Somebody else's rotation is not taken for one's own.
    secrets.rotate(rotate("three", 2)).await.unwrap();
    let late = secrets.rotate(rotate("two", 1)).await.unwrap().into_inner();
    assert_eq!((late.payload_version, late.service_ids), (2, vec![]));
    assert_eq!(operator.template().containers[0].secrets[0].version, 3);
    operator.swarm.stop().await;
}

#[tokio::test]
async fn an_update_is_a_revision_once_however_often_it_is_sent() {
    let mut operator = Operator::with_service(0).await;
    let (_, read_at) = operator.spec().await;
    let request = UpdateServiceRequest { expect_version: read_at, write: write(1), ..operator.changed("sleep").await };
    let first = operator.services.update(request.clone()).await.unwrap().into_inner();
    assert_eq!((first.id.clone(), first.revision), (operator.web.to_vec(), 2));
    assert_eq!(operator.template().containers[0].command, ["sleep"]);
    assert_eq!(operator.services.update(request.clone()).await.unwrap().into_inner(), first, "a retry");

    let late = UpdateServiceRequest { write: write(2), ..request.clone() };
    let late = operator.services.update(late).await.unwrap_err();
    assert_eq!(late.code(), Code::Aborted, "{late:?}");
    assert!(late.message().contains("update out of sequence"), "{late:?}");

    // A policy is no revision, and the same again is no write.
    let mut policy = UpdateServiceRequest { expect_version: 0, write: None, ..request };
    policy.spec.as_mut().unwrap().update = Some(UpdatePolicy { parallelism: 2, ..UpdatePolicy::default() });
    let updated = operator.services.update(policy.clone()).await.unwrap().into_inner();
    assert!(updated.version > first.version && updated.revision == 2);
    let stored = operator.spec().await.1;
    operator.services.update(policy.clone()).await.unwrap();
    assert_eq!(operator.spec().await.1, stored);

    let mut renamed = policy.clone();
    renamed.spec.as_mut().unwrap().name = "other".into();
    let mut global = policy.clone();
    global.spec.as_mut().unwrap().mode = Some(Mode::Global(GlobalMode {}));
    let unknown = UpdateServiceRequest { reference: "db".into(), ..policy.clone() };
    let empty = UpdateServiceRequest { spec: None, ..policy };
    let refused = [
        (renamed, Code::InvalidArgument),
        (global, Code::InvalidArgument),
        (unknown, Code::NotFound),
        (empty, Code::InvalidArgument),
    ];
    for (request, code) in refused {
        assert_eq!(operator.services.update(request.clone()).await.unwrap_err().code(), code, "{request:?}");
    }
    operator.swarm.stop().await;
}

#[tokio::test]
async fn a_rollback_goes_to_the_revision_before_or_to_any_that_is_kept() {
    let mut operator = Operator::with_service(0).await;
    let never = operator.roll_back(0, 1).await.unwrap_err();
    assert_eq!(never.code(), Code::FailedPrecondition);
    assert!(never.message().contains("was never updated"), "{never:?}");
    assert_eq!((operator.update("two").await, operator.update("three").await), (2, 3));

    assert_eq!(operator.roll_back(0, 2).await.unwrap(), 4);
    assert_eq!(operator.template().containers[0].command, ["two"]);
    assert_eq!(operator.roll_back(0, 2).await.unwrap(), 4, "a retry does not go on to the one before that");
    assert_eq!(operator.roll_back(1, 3).await.unwrap(), 5);
    assert_eq!(operator.template().containers[0].command, Vec::<String>::new());
    assert_eq!(operator.history().await, (vec![(5, 1, 0), (4, 2, 0), (3, 0, 0), (2, 0, 0), (1, 0, 0)], 5));
    for (to, code) in [(5, Code::FailedPrecondition), (9, Code::NotFound)] {
        assert_eq!(operator.roll_back(to, 4).await.unwrap_err().code(), code, "to {to}");
    }
    let done = |state: &skep_core::store::State| {
        state.service(operator.web).unwrap().update_state() == UpdateState::RollbackCompleted
    };
    operator.swarm.until("nothing is left to do", done).await;
    operator.swarm.stop().await;
}

#[tokio::test]
async fn history_tells_which_revision_runs() {
    let mut operator = Operator::with_service(2).await;
    let host = operator.swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    agent.until("two tasks", |tasks| tasks.len() == 2).await;
    agent.report(agent.tasks.keys().map(|task| observed(*task, TaskState::Running)).collect()).await;
    assert_eq!(operator.history().await, (vec![(1, 0, 2)], 1));
    operator.update("two").await;
    // One at a time: the first of them is to stop.
    agent.until("a new task", |tasks| tasks.len() == 3).await;
    assert_eq!(operator.history().await, (vec![(2, 0, 0), (1, 0, 1)], 2));
    operator.swarm.stop().await;
}

#[tokio::test]
async fn scaling_is_guarded_by_the_version_and_done_once() {
    let mut operator = Operator::with_service(1).await;
    let (_, read_at) = operator.spec().await;
    let scale = |replicas, expect_version, id| ScaleServiceRequest {
        reference: WEB.into(),
        replicas,
        expect_version,
        write: write(id),
    };
    let first = operator.services.scale(scale(3, read_at, 1)).await.unwrap().into_inner();
    assert_eq!(first.id, operator.web.to_vec());
    assert_eq!(operator.services.scale(scale(3, read_at, 1)).await.unwrap().into_inner(), first, "a retry");
    let late = operator.services.scale(scale(5, read_at, 2)).await.unwrap_err();
    assert_eq!(late.code(), Code::Aborted, "{late:?}");
    let (spec, version) = operator.spec().await;
    assert_eq!((spec.mode, version), (Some(Mode::Replicated(ReplicatedMode { replicas: 3 })), first.version));
    let many = operator.services.scale(scale(u64::MAX, 0, 3)).await.unwrap_err();
    assert_eq!(many.code(), Code::InvalidArgument, "{many:?}");
    operator.swarm.stop().await;
}
