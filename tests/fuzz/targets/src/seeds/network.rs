//! What managers say of networks, and agents ask netd for.

use prost::Message as _;
use skep_proto::id::{NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::v1;

use super::{Add, chosen, framed};

pub(super) fn add(add: &mut Add<'_>) {
    let table = v1::NetworkTable {
        network_id: NetworkId::new(7).to_vec(),
        complete: true,
        version: 1,
        end: true,
        network: Some(v1::Network { vni: 4097, ..v1::Network::default() }),
        put_endpoints: vec![endpoint(1), endpoint(2)],
        put_services: vec![v1::NetworkService {
            service_id: ServiceId::new(1).to_vec(),
            names: vec!["web".to_owned()],
            virtual_addresses: vec![vec![10, 0, 0, 2]],
            ..v1::NetworkService::default()
        }],
        put_peers: vec![v1::NetworkPeer { node_id: vec![1; 16], fabric_number: 4, ..v1::NetworkPeer::default() }],
        ..v1::NetworkTable::default()
    };
    let next = v1::NetworkTable {
        complete: false,
        applies_to: 1,
        version: 2,
        put_endpoints: vec![endpoint(3)],
        put_services: Vec::new(),
        put_peers: Vec::new(),
        ..table.clone()
    };
    add("network_table", vec![framed(&[table.encode_to_vec(), next.encode_to_vec()])]);
    let who = v1::ConfigureRequest {
        node_id: vec![1; 16],
        private_key: vec![2; 32],
        wireguard_addr: "192.0.2.1:51820".to_owned(),
        ..v1::ConfigureRequest::default()
    };
    let kept = [skep_overlay::fuzzing::keep(&table), skep_overlay::fuzzing::keep(&next)].concat();
    add("netd_kept", vec![kept, skep_overlay::fuzzing::keep(&who)]);
    add("netd_requests", netd_requests(who));
}

/// Who this host is, and a sandbox on two networks, with a way out and a port of its own.
fn netd_requests(who: v1::ConfigureRequest) -> Vec<Vec<u8>> {
    let ends = [7, 8].map(|network| v1::SandboxEndpoint {
        network_id: NetworkId::new(network).to_vec(),
        addresses: vec![vec![10, 1, 0, 7], [&[0xfd][..], &[0; 14], &[7]].concat()],
    });
    let attach = v1::AttachRequest {
        task_id: TaskId::new(1).to_vec(),
        endpoints: ends.into(),
        local_bridge: true,
        dns: Some(v1::DnsSpec {
            nameservers: vec!["192.0.2.53".to_owned()],
            search: vec!["corp.example".to_owned()],
            options: vec!["ndots:2".to_owned()],
        }),
        host_ports: vec![v1::PortSpec { target_port: 80, published_port: 8080, ..v1::PortSpec::default() }],
        service_id: ServiceId::new(1).to_vec(),
    };
    let who = v1::ConfigureRequest {
        node_id: NodeId::new(1).to_vec(),
        previous_private_key: vec![3; 32],
        vxlan_addr: "192.0.2.1".to_owned(),
        ..who
    };
    vec![chosen(0, &who.encode_to_vec()), chosen(1, &attach.encode_to_vec())]
}

fn endpoint(task: u8) -> v1::NetworkEndpoint {
    v1::NetworkEndpoint {
        task_id: TaskId::new(task.into()).to_vec(),
        node_id: vec![1; 16],
        service_id: ServiceId::new(1).to_vec(),
        addresses: vec![vec![10, 0, 1, task]],
        names: vec![format!("web.{task}")],
        state: 1,
        last_resort: false,
    }
}
