//! A network with everything on it, as JSON.

use serde_json::{Value, json};

use super::*;
use crate::output::json;

fn answer() -> v1::GetNetworkResponse {
    let asked = v1::SubnetSpec {
        subnet: "10.9.0.0/16".to_owned(),
        reserved_addresses: [("nas".to_owned(), "10.9.0.2".to_owned())].into(),
        ..v1::SubnetSpec::default()
    };
    let subnet = |subnet: &str, gateway: &str| v1::Subnet {
        subnet: subnet.to_owned(),
        gateway: gateway.to_owned(),
        ip_range: subnet.to_owned(),
    };
    let mut endpoint = v1::NetworkEndpoint {
        task_id: vec![5; 16],
        node_id: vec![1; 16],
        service_id: vec![9; 16],
        addresses: vec![vec![10, 9, 0, 7], [vec![0xfd], vec![0; 14], vec![7]].concat()],
        names: vec!["chosen".to_owned(), "web.1.x".to_owned()],
        state: 0,
        last_resort: false,
    };
    endpoint.set_state(v1::EndpointState::Serving);
    v1::GetNetworkResponse {
        network: Some(v1::Network {
            id: vec![3; 16],
            spec: Some(v1::NetworkSpec {
                name: "front".to_owned(),
                subnets: vec![asked],
                attachable: true,
                ..v1::NetworkSpec::default()
            }),
            subnets: vec![subnet("10.9.0.0/16", "10.9.0.1"), subnet("fd00::/64", "fd00::1")],
            vni: 4097,
            ..v1::Network::default()
        }),
        services: vec![v1::NetworkService {
            service_id: vec![9; 16],
            names: vec!["web".to_owned(), "www".to_owned()],
            virtual_addresses: vec![vec![10, 9, 0, 5]],
            ports: Vec::new(),
        }],
        endpoints: vec![endpoint],
        peers: vec![v1::NetworkPeer {
            node_id: vec![1; 16],
            endpoint: Some(v1::FabricEndpoint {
                public_key: vec![0; 32],
                wireguard_addr: "192.0.2.1:51820".to_owned(),
                vxlan_addr: "192.0.2.1".to_owned(),
                ..v1::FabricEndpoint::default()
            }),
            ..v1::NetworkPeer::default()
        }],
        addresses: vec![v1::AddressUse { subnet: "10.9.0.0/16".to_owned(), total: 65_532, taken: 2 }],
        ..v1::GetNetworkResponse::default()
    }
}

fn view(verbose: bool) -> Value {
    let node = v1::Node {
        id: vec![1; 16],
        description: Some(v1::NodeDescription { hostname: "host1".to_owned(), ..v1::NodeDescription::default() }),
        ..v1::Node::default()
    };
    json::value(&NetworkView::new(answer(), &[node], verbose))
}

#[test]
fn dockers_shape() {
    let view = view(false);
    for (field, value) in [
        ("Name", json!("front")),
        ("Id", json!(super::super::id(&[3; 16]))),
        ("ConfigFrom", json!({"Network": ""})),
        ("Scope", json!("swarm")),
        ("Driver", json!("overlay")),
        ("EnableIPv4", json!(true)),
        ("EnableIPv6", json!(true)),
        ("Attachable", json!(true)),
        ("Internal", json!(false)),
        ("Ingress", json!(false)),
        ("VNI", json!(4097)),
        ("Labels", json!({})),
        ("Options", json!({})),
        ("AddressUse", json!([{"Subnet": "10.9.0.0/16", "Total": 65532, "Taken": 2}])),
    ] {
        assert_eq!(view[field], value, "{field}");
    }
    let config = &view["IPAM"]["Config"];
    assert_eq!(
        config[0],
        json!({
            "Subnet": "10.9.0.0/16", "IPRange": "10.9.0.0/16", "Gateway": "10.9.0.1",
            "AuxiliaryAddresses": {"nas": "10.9.0.2"},
        })
    );
    assert_eq!((&config[1]["Gateway"], &config[1]["AuxiliaryAddresses"]), (&json!("fd00::1"), &json!({})));
}

#[test]
fn who_is_on_it() {
    let view = view(false);
    let endpoint = &view["Containers"][super::super::id(&[5; 16])];
    assert_eq!((&endpoint["Name"], &endpoint["IPv4Address"]), (&json!("web.1.x"), &json!("10.9.0.7/16")));
    assert_eq!((&endpoint["NodeHostname"], &endpoint["Serving"]), (&json!("host1"), &json!(true)));
    assert_eq!(endpoint["IPv6Address"], json!("fd00::7/64"));
    let service = &view["Services"]["web"];
    assert_eq!((&service["VIP"], &service["Aliases"]), (&json!("10.9.0.5"), &json!(["www"])));
    assert_eq!((service.get("Tasks"), view["Peers"][0].get("PublicKey")), (None, None));
    assert_eq!((&view["Peers"][0]["Name"], &view["Peers"][0]["IP"]), (&json!("host1"), &json!("192.0.2.1")));
    assert_eq!(view["Peers"][0]["WireGuardAddr"], json!("192.0.2.1:51820"));
}

#[test]
fn verbose_shows_tasks_and_keys() {
    let view = view(true);
    assert_eq!(
        view["Services"]["web"]["Tasks"],
        json!([{
            "Name": "web.1.x", "EndpointID": super::super::id(&[5; 16]), "EndpointIP": "10.9.0.7",
            "Info": {"Host IP": "192.0.2.1"},
        }])
    );
    assert_eq!(view["Peers"][0]["PublicKey"], json!(format!("{}=", "A".repeat(43))));
}

#[test]
fn an_empty_answer_has_every_field() {
    let view = json::value(&NetworkView::new(v1::GetNetworkResponse::default(), &[], false));
    for field in ["Containers", "Services", "Options", "Labels"] {
        assert_eq!(view[field], json!({}), "{field}");
    }
    assert_eq!((&view["Peers"], &view["IPAM"]["Config"]), (&json!([]), &json!([])));
    assert_eq!((bare(&[1, 2]).as_str(), bare(&[10, 9, 0, 7]).as_str()), ("0102", "10.9.0.7"));
}
