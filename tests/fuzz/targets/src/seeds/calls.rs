//! A call of every method of the manager, and a few that follow each other.

use std::collections::BTreeMap;

use prost::Message;
use skep_identity::ClientKey;
use skep_proto::id::{NodeId, ServiceId};
use skep_proto::v1;

use super::requests::service;
use super::sessions::session;
use super::{Add, framed, parts};

/// Who calls; see `connection` in `calls.rs`.
const LOCAL: u8 = 0;
const WORKER: u8 = 1;
const MANAGER: u8 = 4;
const STRANGER: u8 = 5;
const OPERATOR: u8 = 7;

pub(super) fn add(add: &mut Add<'_>) {
    let mut seeds = plain();
    seeds.extend(by_reference());
    seeds.extend(of_cluster());
    seeds.extend(of_services());
    seeds.extend(of_nodes());
    seeds.extend(of_parcels());
    add("manager_calls", seeds);
}

fn call(caller: u8, method: &str, messages: &[Vec<u8>]) -> Vec<u8> {
    [&[caller][..], &parts(&[method.as_bytes(), &framed(messages), b""])].concat()
}

fn one(method: &str, message: &impl Message) -> Vec<u8> {
    call(LOCAL, method, &[message.encode_to_vec()])
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn digest() -> String {
    format!("sha256:{}", "0".repeat(64))
}

/// Those that need nothing said.
fn plain() -> Vec<Vec<u8>> {
    let of_all = ["Clusters/Get", "Clusters/Doctor", "Networks/Mesh"];
    let lists = ["Nodes", "Services", "Tasks", "Networks", "Secrets", "Configs", "ImageNames", "Clients"];
    let methods = of_all.map(text).into_iter().chain(lists.map(|service| format!("{service}/List")));
    methods.map(|method| call(LOCAL, &method, &[Vec::new()])).collect()
}

fn by_reference() -> Vec<Vec<u8>> {
    macro_rules! referring {
        ($($method:literal $message:ident $reference:literal;)+) => {vec![$(
            one($method, &v1::$message { reference: text($reference), ..v1::$message::default() }),
        )+]};
    }
    referring! {
        "Nodes/Get" GetNodeRequest "self"; "Nodes/Remove" RemoveNodeRequest "host2";
        "Services/Get" GetServiceRequest "web"; "Services/Rollback" RollbackServiceRequest "web";
        "Services/History" ServiceHistoryRequest "web"; "Services/Scale" ScaleServiceRequest "web";
        "Services/Remove" RemoveServiceRequest "web"; "Tasks/Get" GetTaskRequest "web.1";
        "Networks/Get" GetNetworkRequest "front"; "Networks/Remove" RemoveNetworkRequest "front";
        "Networks/Doctor" NetworkDoctorRequest "front"; "Secrets/Get" GetSecretRequest "db";
        "Configs/Get" GetConfigRequest "key"; "Clients/Get" GetClientRequest "viewer";
        "Clients/Remove" RemoveClientRequest "operator";
    }
}

/// The swarm's settings, its keys, and who may come to it.
fn of_cluster() -> Vec<Vec<u8>> {
    let role = v1::JoinTokenRequest { role: v1::NodeRole::Worker.into(), rotate: true, ..Default::default() };
    let node = v1::NodeSpec { labels: BTreeMap::from([(text("zone"), text("a"))]), ..v1::NodeSpec::default() };
    let node = v1::UpdateNodeRequest { reference: text("host1"), spec: Some(node), ..Default::default() };
    let spec = v1::ClusterSpec { autolock: true, ..v1::ClusterSpec::default() };
    let cluster = v1::UpdateClusterRequest { spec: Some(spec), ..v1::UpdateClusterRequest::default() };
    let csr_pem = ClientKey::generate().unwrap().signing_request_pem().unwrap();
    let client = v1::CreateClientRequest { name: text("bob"), csr_pem: csr_pem.clone(), ..Default::default() };
    let renew = v1::RenewClientRequest { reference: text("viewer"), csr_pem: csr_pem.clone(), ..Default::default() };
    let issue = v1::IssueRequest { csr_pem, token: text("SWMTKN-1-"), ..v1::IssueRequest::default() };
    vec![
        one("Clusters/JoinToken", &role),
        [
            one("Clusters/Update", &cluster),
            one("Clusters/UnlockKey", &v1::UnlockKeyRequest { rotate: true, ..Default::default() }),
            one("Clusters/DataKey", &v1::DataKeyRequest { rotate: true, ..Default::default() }),
        ]
        .concat(),
        one("Clusters/UnlockKey", &v1::UnlockKeyRequest::default()),
        one("Clusters/DataKey", &v1::DataKeyRequest::default()),
        one("Clusters/RotateRoot", &v1::RotateRootRequest::default()),
        one("Nodes/Update", &node),
        one("Clients/Create", &client),
        one("Clients/Renew", &renew),
        call(STRANGER, "CertificateAuthority/GetRoot", &[Vec::new()]),
        call(STRANGER, "CertificateAuthority/Issue", &[issue.encode_to_vec()]),
        call(WORKER, "CertificateAuthority/Renew", &[Vec::new()]),
    ]
}

fn of_services() -> Vec<Vec<u8>> {
    let create = v1::CreateServiceRequest { spec: Some(service("api")), ..v1::CreateServiceRequest::default() };
    let update = v1::UpdateServiceRequest { reference: text("web"), spec: create.spec.clone(), ..Default::default() };
    let network = v1::NetworkSpec { name: text("back"), ..v1::NetworkSpec::default() };
    let name = v1::PutImageNameRequest { name: text("web:1"), digest: digest(), ..Default::default() };
    let service_id = ServiceId::new(5).to_vec();
    let logs = v1::ReadLogsRequest { service_id: service_id.clone(), ..v1::ReadLogsRequest::default() };
    vec![
        one("Services/Create", &create),
        one("Services/Update", &update),
        one("Networks/Create", &v1::CreateNetworkRequest { spec: Some(network), ..Default::default() }),
        one("ImageNames/Put", &name),
        one("ImageNames/Remove", &v1::RemoveImageNameRequest { name: text("web:1"), ..Default::default() }),
        one("Watch/Watch", &v1::WatchRequest { service_id, nodes: true, services: true }),
        one("Logs/Read", &logs),
    ]
}

/// What nodes and other managers ask.
fn of_nodes() -> Vec<Vec<u8>> {
    let node_id = NodeId::new(1).to_vec();
    let logs = v1::NodeLogsRequest { node_id: node_id.clone(), ..v1::NodeLogsRequest::default() };
    let check = v1::NodeCheckRequest { node_id, time_limit_ms: 1, ..v1::NodeCheckRequest::default() };
    vec![
        call(WORKER, "Dispatch/ImageSources", &[v1::ImageSourcesRequest { digest: digest() }.encode_to_vec()]),
        call(WORKER, "Dispatch/PublishNetworkCheck", &[Vec::new()]),
        call(WORKER, "Dispatch/PublishLogs", &[Vec::new(), Vec::new()]),
        call(WORKER, "Dispatch/Session", &session()),
        call(MANAGER, "Relay/Holders", &[v1::HoldersRequest { digest: digest() }.encode_to_vec()]),
        call(MANAGER, "Relay/Link", &[v1::RelayUp { complete: true, ..v1::RelayUp::default() }.encode_to_vec()]),
        call(MANAGER, "Relay/NodeLogs", &[logs.encode_to_vec()]),
        call(MANAGER, "Relay/NodeCheck", &[check.encode_to_vec()]),
    ]
}

/// Secrets and configs, which are made, changed and taken back.
fn of_parcels() -> Vec<Vec<u8>> {
    let secret = v1::SecretSpec { name: text("key2"), ..v1::SecretSpec::default() };
    let config = v1::ConfigSpec { name: text("site"), ..v1::ConfigSpec::default() };
    let labels = BTreeMap::from([(text("zone"), text("a"))]);
    let other_secret = v1::SecretSpec { name: text("key"), labels: labels.clone(), ..v1::SecretSpec::default() };
    let other_config = v1::ConfigSpec { name: text("key"), labels, ..v1::ConfigSpec::default() };
    let rotate = v1::RotateRequest { reference: text("key"), data: b"newer".to_vec(), ..v1::RotateRequest::default() };
    let back = v1::RollbackPayloadRequest { reference: text("key"), ..v1::RollbackPayloadRequest::default() };
    let gone = v1::RemovePayloadsRequest { reference: text("db"), ..v1::RemovePayloadsRequest::default() };
    let secret = v1::CreateSecretRequest { spec: Some(secret), data: b"x".to_vec(), ..Default::default() };
    let config = v1::CreateConfigRequest { spec: Some(config), data: b"x".to_vec(), ..Default::default() };
    let [update_secret, update_config] = [
        one(
            "Secrets/Update",
            &v1::UpdateSecretRequest { reference: text("key"), spec: Some(other_secret), ..Default::default() },
        ),
        one(
            "Configs/Update",
            &v1::UpdateConfigRequest { reference: text("key"), spec: Some(other_config), ..Default::default() },
        ),
    ];
    let follow = [
        one("Secrets/Create", &secret),
        one("Configs/Create", &config),
        one("Secrets/Rotate", &rotate),
        one("Configs/Rotate", &rotate),
        one("Secrets/Rollback", &back),
        one("Configs/Rollback", &back),
        call(OPERATOR, "Secrets/Remove", &[gone.encode_to_vec()]),
        one("Configs/Remove", &gone),
    ];
    let together = [follow[..4].concat(), follow[4..].concat(), [update_secret, update_config].concat()];
    together.into_iter().chain([follow[0].clone(), follow[2].clone()]).collect()
}
