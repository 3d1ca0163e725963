//! Image sources: who may ask, who is named, and the ticket.

use std::time::SystemTime;

use skep_identity::ticket;
use skep_proto::id::NodeId;
use skep_proto::v1::dispatch_client::DispatchClient;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::{HeldImages, ImageSourcesRequest, ImageSourcesResponse};
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::swarm::{Member, Swarm, soon};

fn digest(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

async fn sources(host: &Member, digest: &str) -> Result<ImageSourcesResponse, Status> {
    let mut client = DispatchClient::new(host.channel.clone());
    let request = ImageSourcesRequest { digest: digest.to_owned() };
    soon("image sources", client.image_sources(request)).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_node_learns_who_holds_the_image_of_its_task() {
    let swarm = Swarm::start().await;
    let (runs, holds) = (swarm.join("host2").await, swarm.join("host3").await);
    let mut runner = Agent::connect(&runs, "host2").await;
    let web = swarm.create_service("web", &digest('a'), 1).await;
    runner.until("a task", |tasks| tasks.len() == 1).await;
    let holder = Agent::connect(&holds, "host3").await;
    let held = HeldImages { complete: true, added: vec![digest('a'), digest('b')], removed: Vec::new() };
    holder.say(Up::Images(held)).await;

    let answer = soon("the holder is named", async {
        loop {
            let answer = sources(&runs, &digest('a')).await.unwrap();
            if !answer.peers.is_empty() {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(answer.peers.len(), 1);
    assert_eq!(NodeId::from_wire(&answer.peers[0].node_id).unwrap(), holds.id);
    assert_eq!(answer.peers[0].addr, "127.0.0.1:2378", "where its session comes from");
    let verify = |shown_by| {
        let cluster = swarm.ca.cluster_id();
        ticket::verify(&answer.ticket, &swarm.ca.bundle(), cluster, shown_by, SystemTime::now())
    };
    assert_eq!(verify(runs.id).unwrap().digest, digest('a'));
    assert!(verify(holds.id).is_err(), "the ticket is the caller's");

    for (host, image) in [(&runs, digest('b')), (&holds, digest('a'))] {
        let status = sources(host, &image).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    }
    assert_eq!(sources(&runs, "web").await.unwrap_err().code(), Code::InvalidArgument);

    // The task's end takes the right away.
    swarm.scale(web, 0).await;
    let task = *runner.tasks.keys().next().unwrap();
    runner.report(vec![crate::agent::observed(task, skep_proto::v1::TaskState::Shutdown)]).await;
    assert_eq!(sources(&runs, &digest('a')).await.unwrap_err().code(), Code::PermissionDenied);
    swarm.stop().await;
}
