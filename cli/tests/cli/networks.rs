//! `network …`, and what services and swarms say of networks.

use serde_json::Value;
use skep_proto::v1::{
    CheckArea, CheckSeverity, FabricEndpoint, GetNetworkResponse, MeshPeer, MeshResponse, Network, NetworkAddresses,
    NetworkEndpoint, NetworkFinding, NetworkPeer, NetworkSpec, NodeMesh, PortSpec, Subnet,
};

use crate::fake::{Fake, Script, node, service};
use crate::run::skep;

fn id(bytes: &[u8]) -> String {
    skep_proto::id::NetworkId::from_wire(bytes).unwrap().to_string()
}

/// A VNI of 0 makes the fake say that it is in use.
fn network(number: u8, name: &str, vni: u32) -> GetNetworkResponse {
    let subnet = Subnet { subnet: format!("10.0.{number}.0/24"), ..Subnet::default() };
    let spec = NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() };
    let network = Network { id: vec![number; 16], spec: Some(spec), subnets: vec![subnet], vni, ..Network::default() };
    GetNetworkResponse { network: Some(network), ..GetNetworkResponse::default() }
}

fn script() -> Script {
    Script { networks: vec![network(2, "front10", 4098), network(1, "front9", 0)], ..Script::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_prints_the_id() {
    let fake = Fake::manager(script());
    let args = ["network", "create", "-d", "overlay", "--subnet", "10.9.0.0/16", "--label", "a=b", "back"];
    let run = skep(fake.socket(), &args).await;
    assert_eq!((run.code, run.out), (Some(0), format!("{}\n", id(&[3; 16]))), "{}", run.err);
    let created = fake.script.lock().unwrap().networks_created.remove(0);
    assert_eq!(created.write.unwrap().request_id.len(), 16);
    let spec = created.spec.unwrap();
    assert_eq!(
        (spec.name.as_str(), spec.subnets[0].subnet.as_str(), spec.labels["a"].as_str()),
        ("back", "10.9.0.0/16", "b")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hosts_cannot_do_yet_is_told() {
    let fake = Fake::manager(Script::default());
    let run = skep(fake.socket(), &["network", "create", "front"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(78), ""));
    assert_eq!(run.err, "error: not supported yet: overlay networks (driver)\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn ls_is_dockers_table() {
    let fake = Fake::manager(script());
    let run = skep(fake.socket(), &["network", "ls"]).await;
    let (first, second) = (&id(&[1; 16])[..12], &id(&[2; 16])[..12]);
    let table = format!(
        "NETWORK ID     NAME      DRIVER    SCOPE\n{first}   front9    overlay   swarm\n{second}   front10   overlay   \
         swarm\n"
    );
    assert_eq!((run.code, run.out), (Some(0), table), "{}", run.err);
    let run = skep(fake.socket(), &["network", "list", "-q", "--no-trunc", "--filter", "name=10"]).await;
    assert_eq!(run.out, format!("{}\n", id(&[2; 16])));
    let run = skep(fake.socket(), &["network", "ls", "--format", "{{.Name}} {{.IPv6}}", "-f", "driver=bridge"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_names_hosts_and_what_is_missing() {
    let mut script = script();
    let host = node(1, "host1");
    script.networks[0].endpoints = vec![NetworkEndpoint {
        task_id: vec![5; 16],
        node_id: host.id.clone(),
        addresses: vec![vec![10, 0, 2, 7]],
        names: vec!["web.1.x".to_owned()],
        ..NetworkEndpoint::default()
    }];
    script.nodes = vec![host];
    let fake = Fake::manager(script);
    let run = skep(fake.socket(), &["network", "inspect", "front10", "gone"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: no such network: gone\n"));
    let value: Value = serde_json::from_str(&run.out).unwrap();
    let endpoint = &value[0]["Containers"][id(&[5; 16])];
    assert_eq!((&endpoint["NodeHostname"], &endpoint["IPv4Address"]), (&"host1".into(), &"10.0.2.7/24".into()));
    let format = "{{.Name}} {{(index .IPAM.Config 0).Subnet}}";
    let run = skep(fake.socket(), &["network", "inspect", "-f", format, "front9"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "front9 10.0.1.0/24\n"), "{}", run.err);
    // Docker's templates know an id by either name; a service's or node's is the same.
    let run = skep(fake.socket(), &["network", "inspect", "-f", "{{.Id}} {{.ID}} {{json .Labels}}", "front9"]).await;
    let first = id(&[1; 16]);
    assert_eq!((run.code, run.out), (Some(0), format!("{first} {first} {{}}\n")), "{}", run.err);
    let run =
        skep(fake.socket(), &["node", "inspect", "-f", "{{.Id}}{{if .ManagerStatus}} manager{{end}}", "host1"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    for (noun, reference, format, error) in [
        ("network", "front9", "{{.Spec.Name}}", "Spec: did you mean .Name?"),
        ("network", "front9", "{{.Subnet}}", "Subnet: there is AddressUse, Attachable"),
        ("node", "host1", "{{.Hostname}}", "Hostname: did you mean .Description.Hostname?"),
    ] {
        let run = skep(fake.socket(), &[noun, "inspect", "--format", format, reference]).await;
        let said = format!("error: --format: template: can't evaluate field {error}");
        assert!(run.code == Some(64) && run.err.starts_with(&said), "{} {}", run.code.unwrap_or(-1), run.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rm_goes_on_after_a_refusal() {
    let fake = Fake::manager(script());
    let run = skep(fake.socket(), &["network", "rm", "front9", "gone", "front10"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(1), "front10\n"));
    assert_eq!(run.err, "error: network front9 is in use by service web\nerror: no such network: gone\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn rm_waits_for_tasks_that_stop_and_force_forgives_what_is_not_there() {
    let fake = Fake::manager(Script { stopping_tasks: 3, ..script() });
    let run = skep(fake.socket(), &["network", "rm", "front10"]).await;
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (Some(0), "front10\n", ""));
    let run = skep(fake.socket(), &["network", "rm", "--force", "gone", "front10"]).await;
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (Some(0), "front10\n", ""));
    let run = skep(fake.socket(), &["network", "rm", "-f", "front9"]).await;
    assert_eq!(
        (run.code, run.err.as_str()),
        (Some(1), "error: network front9 is in use by service web\n"),
        "it removes nothing by force"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_removes_what_nobody_uses() {
    let fake = Fake::manager(script());
    let run = skep(fake.socket(), &["network", "prune"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""), "nobody says yes");
    assert!(
        run.err.contains("all networks that no service and no task is on") && run.err.contains("-f"),
        "{}",
        run.err
    );
    let run = skep(fake.socket(), &["network", "prune", "-f"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "Deleted Networks:\nfront10\n\n"), "{}", run.err);
    let run = skep(fake.socket(), &["network", "prune", "-f", "--filter", "label=other"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), ""), "{}", run.err);
    let run = skep(fake.socket(), &["network", "ls", "--format", "{{.Name}}", "--filter", "dangling=true"]).await;
    assert_eq!(run.out, "front10\n", "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_show_their_addresses() {
    let mut script = script();
    let mut web = service("web", 2);
    let object = web.service.as_mut().unwrap();
    let on_network =
        |number: u8| NetworkAddresses { network_id: vec![number; 16], addresses: vec![vec![10, 0, number, 5]] };
    object.virtual_addresses = vec![on_network(1), on_network(2)];
    object.ports = vec![PortSpec { target_port: 80, published_port: 8080, ..PortSpec::default() }];
    script.services = vec![web];
    let fake = Fake::manager(script);
    let format = "{{.Spec.EndpointSpec.Mode}}{{range .Endpoint.VirtualIPs}} {{.NetworkName}}={{.Addr}}{{end}}";
    let run = skep(fake.socket(), &["service", "inspect", "--format", format, "web"]).await;
    assert_eq!(run.out, "vip front9=10.0.1.5/24 front10=10.0.2.5/24\n", "{}", run.err);
    let run = skep(fake.socket(), &["service", "inspect", "--pretty", "web"]).await;
    let lines = "Endpoint Mode:      vip\nVirtual Addresses:\n front9 10.0.1.5/24\n front10 10.0.2.5/24\n";
    assert!(run.out.contains(lines), "{}", run.out);
    let run = skep(fake.socket(), &["service", "ls", "--format", "{{.Ports}}"]).await;
    assert_eq!(run.out, "*:8080->80/tcp\n", "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_swarm_is_told_its_pools() {
    let fake = Fake::manager(Script::default());
    let args = [
        "swarm",
        "init",
        "--default-addr-pool",
        "10.64.0.0/10",
        "--default-addr-pool-mask-length",
        "26",
        "--data-path-port",
        "4790",
    ];
    let run = skep(fake.socket(), &args).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    let init = fake.script.lock().unwrap().init.clone().unwrap();
    assert_eq!(
        (init.address_pools, init.subnet_length, init.data_path_port),
        (vec!["10.64.0.0/10".to_owned()], 26, 4790)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_what_is_wrong_and_fails_then() {
    let mut script = script();
    script.nodes = vec![node(1, "host1"), node(2, "host2")];
    let fake = Fake::manager(script);
    let run = skep(fake.socket(), &["network", "doctor"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), ""), "{}", run.err);
    assert_eq!(run.err, "checked 0 hosts, 0 pairs of them, 0 networks: all well\n");
    let run = skep(fake.socket(), &["network", "doctor", "gone"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: no such network: gone\n"));
    let ids: Vec<Vec<u8>> = fake.script.lock().unwrap().nodes.iter().map(|node| node.id.clone()).collect();
    let finding = NetworkFinding {
        severity: CheckSeverity::Error.into(),
        area: CheckArea::Mtu.into(),
        node_id: ids[0].clone(),
        peer_id: ids[1].clone(),
        network_id: vec![2; 16],
        problem: "too large".to_owned(),
        advice: "make it smaller".to_owned(),
    };
    fake.script.lock().unwrap().network_doctor.findings.push(finding);
    let run = skep(fake.socket(), &["network", "doctor", "front10"]).await;
    let text = "host1:\n  error (to host2): too large\n    -> make it smaller\n";
    assert_eq!((run.code, run.out.as_str()), (Some(1), text), "{}", run.err);
    let run = skep(fake.socket(), &["network", "doctor", "--format", "json"]).await;
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(
        (run.code, value["Network"].as_str(), value["Area"].as_str(), value["Peer"].as_str()),
        (Some(1), Some("front10"), Some("mtu"), Some("host2"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_shows_the_mesh() {
    let mut script = script();
    script.nodes = vec![node(1, "host1"), node(2, "host2")];
    let fabric = FabricEndpoint { wireguard_addr: "10.0.0.1:51820".to_owned(), ..FabricEndpoint::default() };
    for (number, node) in script.nodes.iter_mut().enumerate() {
        node.description.as_mut().unwrap().fabric = Some(fabric.clone());
        node.fabric_number = 1 + number as u32;
    }
    let ids: Vec<Vec<u8>> = script.nodes.iter().map(|node| node.id.clone()).collect();
    let peer = |id: &Vec<u8>| MeshPeer { node_id: id.clone(), sent_bytes: 5, ..MeshPeer::default() };
    let mesh = MeshResponse { device: "userspace".to_owned(), peers: vec![peer(&ids[1]), peer(&vec![9; 16])] };
    script.mesh = vec![
        NodeMesh { node_id: ids[0].clone(), mesh: Some(mesh), ..NodeMesh::default() },
        NodeMesh { node_id: ids[1].clone(), error: "no answer within 2 s".to_owned(), ..NodeMesh::default() },
    ];
    script.networks[0].peers = ids.iter().map(|id| NetworkPeer { node_id: id.clone(), ..Default::default() }).collect();
    let fake = Fake::manager(script);
    let run = skep(fake.socket(), &["node", "inspect", "host1", "host2"]).await;
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(value[0]["Fabric"]["Address"], "100.64.0.1", "{}", run.err);
    assert_eq!(value[0]["Mesh"]["Peers"].as_array().unwrap().len(), 2);
    assert_eq!(value[0]["Mesh"]["Peers"][0]["Name"], "host2");
    assert_eq!(value[1]["Mesh"]["Error"], "no answer within 2 s");
    let run = skep(fake.socket(), &["network", "inspect", "--verbose", "front10"]).await;
    let value: Value = serde_json::from_str(&run.out).unwrap();
    let peers = &value[0]["Peers"];
    assert_eq!(peers[0]["Mesh"]["Peers"].as_array().unwrap().len(), 1, "only those of the network: {peers}");
    assert_eq!(peers[1]["Mesh"]["Error"], "no answer within 2 s");
    let run = skep(fake.socket(), &["network", "inspect", "front10"]).await;
    assert!(!run.out.contains("Mesh"), "{}", run.out);
}
