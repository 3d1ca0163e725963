//! Operators' calls about services at managers that do not lead.

use skep_core::change::{Change, Op};
use skep_core::object::{Meta, Revision, Service};
use skep_proto::id::ServiceId;
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::services_client::ServicesClient;
use skep_proto::v1::{
    ReplicatedMode, RollbackServiceRequest, ScaleServiceRequest, ServiceSpec, TaskTemplate, WriteOptions,
};

use crate::group::{Group, soon};

const WEB: ServiceId = ServiceId::new(1);

/// A service without tasks, as it is made and updated once.
fn service() -> Vec<Change> {
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas: 0 }));
    let spec = ServiceSpec { name: "web".into(), mode, ..ServiceSpec::default() };
    let service = Service {
        id: WEB,
        meta: Meta::default(),
        spec: spec.into(),
        revision: 1,
        ports: Vec::new(),
        update: None,
        virtual_addresses: Vec::new(),
    };
    let revision = Revision {
        key: service.current(),
        template: TaskTemplate::default().into(),
        created_at: UnixMs::ZERO,
        copied_from: None,
        service_name: "web".into(),
        live: None,
    };
    vec![Change::create(Op::PutService(service)), Change::create(Op::PutRevision(revision))]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_at_another_manager_gets_the_first_answer_though_the_version_is_another() {
    let group = Group::start(3).await;
    let (leader, follower) = (group.leader_index().await, group.follower_index().await);
    let store = group.hosts[leader].store();
    store.write(None, Vec::new(), service()).await.unwrap();
    let client = |index: usize| ServicesClient::new(group.hosts[index].channel());
    let (mut first, mut second) = (client(leader), client(follower));
    for round in 1..=10_u8 {
        let version = store.state().service(WEB).unwrap().meta.version;
        let request = ScaleServiceRequest {
            reference: "web".into(),
            replicas: u64::from(round),
            expect_version: version,
            write: Some(WriteOptions { request_id: vec![round; 16] }),
        };
        let scaled = soon("scale", first.scale(request.clone())).await.unwrap().into_inner();
        // The other manager hears of it a moment later.
        let again = soon("scale again", second.scale(request)).await.unwrap().into_inner();
        assert_eq!(again, scaled);
    }
    // Nothing to go back to: a rollback is refused there as here.
    let request = RollbackServiceRequest { reference: "web".into(), ..RollbackServiceRequest::default() };
    let refused = soon("rollback", second.rollback(request)).await.unwrap_err();
    assert!(refused.message().contains("never updated"), "{refused:?}");
    group.stop().await;
}
