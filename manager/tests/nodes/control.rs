//! Retries of an operator's calls get the first answer, also when the first try took away what they name.

use skep_proto::v1::services_client::ServicesClient;
use skep_proto::v1::{RemoveServiceRequest, WriteOptions};
use tonic::Code;

use crate::swarm::Swarm;

#[tokio::test]
async fn a_retried_removal_gets_the_first_answer() {
    let swarm = Swarm::start().await;
    let web = swarm.create_service("web", "sha256:00", 0).await;
    let mut services = ServicesClient::new(swarm.operator());
    let remove = |id: u8| RemoveServiceRequest {
        reference: "web".into(),
        write: Some(WriteOptions { request_id: vec![id; 16] }),
    };
    let first = services.remove(remove(1)).await.unwrap().into_inner();
    assert_eq!((first.id.clone(), first.name.as_str()), (web.to_vec(), "web"));
    assert_eq!(services.remove(remove(1)).await.unwrap().into_inner(), first);
    assert_eq!(services.remove(remove(2)).await.unwrap_err().code(), Code::NotFound);
    swarm.stop().await;
}
