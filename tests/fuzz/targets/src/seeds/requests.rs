//! What the control API is asked with.

use std::collections::BTreeMap;

use prost::Message as _;
use skep_proto::id::NetworkId;
use skep_proto::v1;

use super::{Add, chosen};

/// A service with something of everything.
pub(crate) fn service(name: &str) -> v1::ServiceSpec {
    let target = v1::FileTarget { path: "/etc/web.conf".to_owned(), ..v1::FileTarget::default() };
    let container = v1::ContainerSpec {
        name: "main".to_owned(),
        image: "busybox".to_owned(),
        env: vec!["NAME={{.Service.Name}}".to_owned()],
        secrets: vec![v1::SecretRef { name: "key".to_owned(), ..v1::SecretRef::default() }],
        configs: vec![v1::ConfigRef { name: "key".to_owned(), target: Some(target), ..v1::ConfigRef::default() }],
        stop_signal: "SIGTERM".to_owned(),
        mounts: vec![v1::MountSpec { target: "/tmp".to_owned(), ..v1::MountSpec::default() }],
        ulimits: vec![v1::Ulimit { name: "nofile".to_owned(), soft: 10, hard: 20 }],
        health_check: Some(v1::HealthCheck {
            test: vec!["CMD".to_owned(), "x".to_owned()],
            interval_ms: 1000,
            ..v1::HealthCheck::default()
        }),
        ..v1::ContainerSpec::default()
    };
    let template = v1::TaskTemplate {
        containers: vec![container],
        networks: vec![v1::NetworkAttachment {
            network_id: NetworkId::new(1).to_vec(),
            ..v1::NetworkAttachment::default()
        }],
        placement: Some(v1::Placement {
            constraints: vec!["node.role==worker".to_owned()],
            ..v1::Placement::default()
        }),
        ..v1::TaskTemplate::default()
    };
    let port = v1::PortSpec { target_port: 80, published_port: 8080, ..v1::PortSpec::default() };
    v1::ServiceSpec {
        name: name.to_owned(),
        mode: Some(v1::service_spec::Mode::Replicated(v1::ReplicatedMode { replicas: 3 })),
        template: Some(template),
        endpoint: Some(v1::EndpointSpec { ports: vec![port], ..v1::EndpointSpec::default() }),
        ..v1::ServiceSpec::default()
    }
}

pub(super) fn add(add: &mut Add<'_>) {
    let spec = service("web");
    let global = v1::ServiceSpec { mode: Some(v1::service_spec::Mode::Global(v1::GlobalMode {})), ..spec.clone() };
    let create = v1::CreateServiceRequest { spec: Some(spec), ..v1::CreateServiceRequest::default() };
    let update = v1::UpdateServiceRequest { spec: Some(global), ..v1::UpdateServiceRequest::default() };
    let subnet = v1::SubnetSpec {
        subnet: "10.7.0.0/24".to_owned(),
        gateway: "10.7.0.1".to_owned(),
        ip_range: "10.7.0.128/25".to_owned(),
        reserved_addresses: BTreeMap::from([("router".to_owned(), "10.7.0.200".to_owned())]),
    };
    let network = v1::NetworkSpec { name: "back".to_owned(), subnets: vec![subnet], ..v1::NetworkSpec::default() };
    let network = v1::CreateNetworkRequest { spec: Some(network), ..v1::CreateNetworkRequest::default() };
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    let node = v1::UpdateNodeRequest {
        spec: Some(v1::NodeSpec { labels, ..v1::NodeSpec::default() }),
        ..v1::UpdateNodeRequest::default()
    };
    let cluster = v1::ClusterSpec {
        address_pools: vec!["172.20.0.0/16".to_owned()],
        subnet_length: 24,
        ..v1::ClusterSpec::default()
    };
    let cluster = v1::UpdateClusterRequest { spec: Some(cluster), ..v1::UpdateClusterRequest::default() };
    let spec = v1::SecretSpec { name: "db".to_owned(), templated: true, ..v1::SecretSpec::default() };
    let data = b"{{ env \"A\" }}".to_vec();
    let secret = v1::CreateSecretRequest { spec: Some(spec), data: data.clone(), ..v1::CreateSecretRequest::default() };
    let spec = v1::ConfigSpec { name: "web".to_owned(), ..v1::ConfigSpec::default() };
    let config = v1::CreateConfigRequest { spec: Some(spec), data, ..v1::CreateConfigRequest::default() };
    add(
        "api_requests",
        vec![
            chosen(0, &create.encode_to_vec()),
            chosen(1, &update.encode_to_vec()),
            chosen(2, &network.encode_to_vec()),
            chosen(3, &node.encode_to_vec()),
            chosen(4, &cluster.encode_to_vec()),
            chosen(5, &secret.encode_to_vec()),
            chosen(6, &config.encode_to_vec()),
        ],
    );
}
