//! The seed corpus: real messages of every kind, small. Written to `corpus/` by `examples/seeds.rs`, for the fuzzer to
//! start from; new keys and random numbers make them other bytes each time, of the same meaning.

// A seed that cannot be made is a mistake here, and nothing else.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use prost::Message as _;
use skep_core::change::{Change, Group, Op, Transaction};
use skep_core::codec;
use skep_core::object::{ImageName, Meta};
use skep_fabric::vxlan::Outer;
use skep_identity::ca::{DEFAULT_NODE_VALIDITY, NodeGrant, RootCa};
use skep_identity::{Credentials, JoinToken, NodeKey, Role, TokenSecret, ticket};
use skep_image::Digest;
use skep_netlink::message::Batch;
use skep_proto::id::{ClusterId, NetworkId, NodeId, SecretId, ServiceId, TaskId};
use skep_proto::v1;
use skep_shim::config::{External, ShimConfig};
use skep_shim::entry::{Entry, Rlimit};
use skep_shim::files;
use skep_shim::logline;
use skep_shim::plan::{self, Plan, What};
use skep_shim::protocol::{self, Kind};

use crate::{api, network};

/// Everything, by target and name.
pub fn all() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut add = |target: &'static str, seeds: Vec<Vec<u8>>| {
        let numbered = seeds.into_iter().enumerate();
        all.extend(numbered.map(|(number, bytes)| (target, format!("seed{number}"), bytes)));
    };
    let lines = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    add(
        "constraint",
        lines(&[
            "node.labels.disk==ssd",
            "node.role != manager",
            "node.platform.os==linux",
            "spread=node.labels.zone",
            "node.ip==10.0.0.0/8",
        ]),
    );
    add(
        "placeholders",
        lines(&[
            "{{.Service.Name}}-{{ .Task.Slot }}",
            "{{index .Service.Labels \"a.b\"}}",
            "{{.Node.Platform.OS}} {{",
            "{{ env \"A\" }}\n{{secret `db`}}{{config \"/etc/web.conf\"}}",
        ]),
    );
    add("addresses", lines(&["10.1.0.0/16 10.1.2.0/24", "fd00::/64 fd00::/8", "0.0.0.0/0 255.255.255.255/32"]));
    add(
        "cli_values",
        lines(&[
            "type=bind,source=/a,target=/b,readonly",
            "published=80,target=8080,mode=host,protocol=udp",
            "80:8080/tcp",
            "name=front,alias=web,ip=10.1.0.7",
            "nofile=1024:2048",
            "1h30m5s",
            "1.5g",
            "max-size=10m",
            "KEY=value",
            "2026-01-02T03:04:05Z",
            "linux/arm64/v8",
            "label=a=b",
            "host:192.0.2.1",
            "sh -c 'a \"b\" \\c'",
            "net.ipv4.ip_forward=1",
            "[\"a\",\"b\"]",
            "source=db@2,target=/etc/db,uid=33,gid=34,mode=0440",
            "unix:///run/skep/skep.sock",
        ]),
    );
    add("identifiers", lines(&["q8xnzk5r2v7c1m4t9w3e6y0a7", "SIGRTMIN+3", "CAP_NET_ADMIN", "0123456789abcdef"]));
    add(
        "docker_config",
        lines(&[
            "{\"auths\":{\"registry.example\":{\"auth\":\"dTpw\"}},\"credHelpers\":{\"x.example\":\"y\"}}",
            "{\"auths\":{\"https://registry.example/v1/\":{\"identitytoken\":\"t\"}},\"credsStore\":\"z\"}",
        ])
        .into_iter()
        .map(|text| parts(&[b"registry.example/a:1", &text]))
        .collect(),
    );
    add(
        "image_change",
        lines(&[
            "CMD [\"/bin/sh\"]\nENTRYPOINT sh -c x\nENV A=1 B=\"two words\"\nENV a b\nLABEL a=b\nUSER 1:2",
            "EXPOSE 80 53/udp 8000-8002/tcp\nWORKDIR /a\nWORKDIR b\nVOLUME [\"/x\"]\nSTOPSIGNAL SIGTERM",
            "HEALTHCHECK --interval=5s --retries=3 CMD curl -f x\nHEALTHCHECK NONE\nONBUILD RUN x",
        ]),
    );
    add(
        "host_files",
        lines(&[
            "\0search a b\nnameserver 127.0.0.53\nnameserver\t::1 # local\nnameserver fe80::1%7\n",
            "\x0136 35 98:0 / /sys/fs/cgroup\\040x rw shared:1 - cgroup2 cgroup2 rw\n37 35 0:5 / /c rw - cgroup cgroup rw,memory\n",
        ]),
    );
    add("container_log", lines(&["\x05one line\nand \"another\"\tno end", "\x01\u{e9}\u{20ac}\u{1f600}\r\n\n"]));
    add(
        "cli_format",
        lines(&[
            "{{.ID}}\t{{.Name}}",
            "table {{.Name}}\t{{json .Labels}}",
            "{{range .Ports}}{{.}},{{else}}-{{end}}",
            "{{if and .Name (eq .Replicas 3)}}{{upper .Name}}{{end}}",
            "{{with .Spec.Mode}}{{.Replicated.Replicas}}{{end}}{{index .Labels \"a.b\"}}",
        ])
        .into_iter()
        .map(|text| parts(&[&text, b"web"]))
        .collect(),
    );
    add(
        "image_reference",
        lines(&[
            "busybox",
            "docker.io/library/redis:7",
            "registry.example:5000/a/b_c/d.e@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "[::1]:5000/x:tag",
            "localhost/x",
        ]),
    );
    add(
        "registry_answer",
        lines(&[
            "Bearer realm=\"https://auth.example/token\",service=\"registry\",scope=\"repository:a/b:pull\"",
            "Basic realm=\"x\", Bearer realm=\"https://a\\\"b\"",
            "bytes 100-199/200",
            "{\"token\":\"abc\"}",
            "{\"access_token\":\"x\",\"expires_in\":300}",
            "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"no\"}]}",
        ]),
    );
    add(
        "registry_login",
        lines(&[
            "{\"auths\":{\"registry.example\":{\"auth\":\"dTpw\"},\"https://index.docker.io/v1/\":{\"username\":\"u\",\"password\":\"p\"}}}",
            "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAifQ==",
            "{\"identitytoken\":\"t\"}",
        ]),
    );
    identity(&mut add);
    images(&mut add);
    managers(&mut add);
    networks(&mut add);
    worker(&mut add);
    requests(&mut add);
    calls(&mut add);
    refusals(&mut add);
    all
}

type Add<'a> = dyn FnMut(&'static str, Vec<Vec<u8>>) + 'a;

/// Each part but the last with its length before it.
fn parts(parts: &[&[u8]]) -> Vec<u8> {
    let (last, before) = parts.split_last().unwrap();
    let mut out = Vec::new();
    for part in before {
        out.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
        out.extend(*part);
    }
    out.extend(*last);
    out
}

/// All parts with their lengths.
fn framed(list: &[Vec<u8>]) -> Vec<u8> {
    let mut list: Vec<&[u8]> = list.iter().map(Vec::as_slice).collect();
    list.push(&[]);
    parts(&list)
}

fn identity(add: &mut Add<'_>) {
    let now = SystemTime::now();
    let authority = RootCa::generate(ClusterId::new(1), now).unwrap();
    let token = JoinToken::new(authority.cert().digest(), TokenSecret::new([7; 16]));
    add("join_token", vec![token.to_string().into_bytes(), b"SWMTKN-1-".to_vec()]);
    let key = NodeKey::generate().unwrap();
    let request = key.signing_request().unwrap();
    let grant = NodeGrant { node_id: NodeId::new(7), role: Role::Manager, validity: DEFAULT_NODE_VALIDITY };
    let issued = authority.issue(&request, &grant, now).unwrap();
    let root = authority.cert().der().to_vec();
    let bundle = authority.bundle();
    add("certificates", vec![authority.cert().to_pem().into_bytes(), issued.chain_pem.clone().into_bytes(), root]);
    add("signing_request", vec![request]);
    let credentials = Credentials::new(key, &issued.chain_pem, bundle).unwrap();
    let digest = format!("sha256:{}", "0".repeat(64));
    add(
        "image_ticket",
        vec![ticket::issue(&credentials, NodeId::new(7), &digest, now + Duration::from_secs(60)).unwrap()],
    );
}

/// A tar archive of one of everything that a layer may have.
fn layer() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut put = |path: &str, kind: tar::EntryType, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        archive.append_data(&mut header, path, content).unwrap();
    };
    put("etc", tar::EntryType::Directory, "", b"");
    put("etc/passwd", tar::EntryType::Regular, "", b"root:x:0:0::/root:/bin/sh\n");
    put("etc/alias", tar::EntryType::Link, "etc/passwd", b"");
    put("out", tar::EntryType::Symlink, "../beside", b"");
    put("etc/.wh.gone", tar::EntryType::Regular, "", b"");
    put("etc/.wh..wh..opq", tar::EntryType::Regular, "", b"");
    put("run/pipe", tar::EntryType::Fifo, "", b"");
    archive.into_inner().unwrap()
}

/// A path that the tar crate would not write.
fn traversal(path: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(4);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(b"evil");
    bytes.resize(2048, 0);
    bytes
}

fn images(add: &mut Add<'_>) {
    let layer = layer();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&layer).unwrap();
    let mut long = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    long.append_data(&mut header, "a/".repeat(80) + "file", &b"x"[..]).unwrap();
    let zstd = zstd::encode_all(&layer[..], 1).unwrap();
    let extended = b"30 mtime=1700000000.123456789\n25 SCHILY.xattr.user.a=b\n".to_vec();
    let mut pax = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(extended.len() as u64);
    pax.append_data(&mut header, "PaxHeaders/x", &extended[..]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    pax.append_data(&mut header, "x", &b"x"[..]).unwrap();
    add(
        "layer_tar",
        vec![
            layer.clone(),
            packed.finish().unwrap(),
            zstd,
            long.into_inner().unwrap(),
            pax.into_inner().unwrap(),
            traversal("../beside/file"),
            traversal("/etc/../../beside/file"),
            traversal("out/file"),
        ],
    );
    let config = format!(
        "{{\"architecture\":\"{}\",\"os\":\"linux\",\"config\":{{\"Cmd\":[\"/bin/sh\"],\"Env\":[\"A=b\"],\"Healthcheck\":{{\"Test\":[\"CMD\",\"x\"],\"Interval\":1000000000}}}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}}}",
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, Digest::of(&layer),
    ).into_bytes();
    let descriptor = |kind: &str, content: &[u8]| {
        format!("{{\"mediaType\":\"{kind}\",\"digest\":\"{}\",\"size\":{}}}", Digest::of(content), content.len())
    };
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{},\"layers\":[{}]}}",
        descriptor("application/vnd.oci.image.config.v1+json", &config), descriptor("application/vnd.oci.image.layer.v1.tar", &layer),
    ).into_bytes();
    let index = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{}]}}",
        descriptor("application/vnd.oci.image.manifest.v1+json", &manifest).replace('}', ",\"platform\":{\"architecture\":\"amd64\",\"os\":\"linux\",\"variant\":\"v2\"},\"annotations\":{\"org.opencontainers.image.ref.name\":\"web:1\"}}"),
    ).into_bytes();
    let records = format!(
        "{{\"format\":1,\"images\":[{{\"digest\":\"{0}\",\"manifest\":\"{0}\",\"config\":\"{0}\",\"platform\":{{\"os\":\"linux\",\"architecture\":\"amd64\"}},\"names\":[\"docker.io/library/web:1\"],\"layers\":[],\"held_since\":1,\"last_used\":1}}]}}",
        Digest::of(&manifest),
    );
    add("image_records", vec![records.into_bytes()]);
    add("image_config", vec![config.clone()]);
    add("image_manifest", vec![manifest.clone(), index.clone()]);
    let blob = |content: &[u8]| format!("blobs/sha256/{}", Digest::of(content).hex());
    let oci = archive_of(&[
        ("oci-layout".to_owned(), b"{\"imageLayoutVersion\":\"1.0.0\"}"),
        ("index.json".to_owned(), &index),
        (blob(&manifest), &manifest),
        (blob(&config), &config),
        (blob(&layer), &layer),
    ]);
    let list = b"[{\"Config\":\"config.json\",\"RepoTags\":[\"web:1\"],\"Layers\":[\"a/layer.tar\"]}]";
    let docker = archive_of(&[
        ("config.json".to_owned(), &config),
        ("a/layer.tar".to_owned(), &layer),
        ("manifest.json".to_owned(), list),
    ]);
    add("image_archive", vec![oci, docker]);
}

fn archive_of(list: &[(String, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in list {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

fn managers(add: &mut Add<'_>) {
    let state = api::swarm();
    let mut snapshot = Vec::new();
    codec::write_snapshot(&state, &mut snapshot).unwrap();
    add("store_snapshot", vec![snapshot]);
    let image = ImageName { name: "web".into(), meta: Meta::default(), digest: "d".into(), platforms: Vec::new() };
    let objects = state.objects().filter_map(|object| match object {
        skep_core::store::Object::Node(node) => Some(Op::PutNode((*node).clone())),
        skep_core::store::Object::Network(network) => Some(Op::PutNetwork((*network).clone())),
        _ => None,
    });
    let mut groups: Vec<Group> = objects.map(|op| Group(vec![Change::create(op)])).collect();
    groups.push(Group(vec![Change::create(Op::PutImageName(image)), Change::any(Op::RemoveTask(TaskId::new(1)))]));
    let transaction = Transaction { groups, ..Transaction::default() };
    add(
        "store_entry",
        vec![
            codec::encode_entry(std::slice::from_ref(&transaction)),
            codec::encode_entry(&[transaction, Transaction::default()]),
        ],
    );
    let [messages, records, snapshots] = skep_raft::fuzzing::samples();
    add("raft_message", messages);
    add("raft_record", records);
    add("raft_snapshot", snapshots);
}

/// An Ethernet frame of IPv4 with TCP.
fn frame(sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![2, 66, 10, 1, 0, 2, 2, 66, 10, 1, 0, 1, 8, 0];
    frame.extend([0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2]);
    frame.extend([0x9c, 0x40, 0, 80]);
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0x50, 0x10, 2, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    frame
}

fn networks(add: &mut Add<'_>) {
    let question = |name: &str, kind: u8, edns: bool| {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        if edns {
            query.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        query
    };
    let answer = |query: &[u8], address: [u8; 4]| {
        let mut answer = query.to_vec();
        answer[2] = 0x81;
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
        answer
    };
    let (web, db) = (question("web", 1, false), question("tasks.db", 1, true));
    let (other, reverse) = (question("www.example", 1, false), question("7.0.1.10.in-addr.arpa", 12, false));
    add(
        "dns",
        vec![
            parts(&[&web, b""]),
            parts(&[&db, b""]),
            parts(&[&other, &answer(&other, [192, 0, 2, 1])]),
            parts(&[&reverse, b""]),
        ],
    );
    add("wireguard", (0..4).map(network::spoilt_message).chain([network::real_message()]).collect());
    let inner = frame(1, b"hello");
    let outer = Outer::new(IpAddr::from([100, 64, 0, 1]), IpAddr::from([100, 64, 0, 2]), 4790).unwrap();
    let mut packet = vec![0; outer.length()];
    packet.extend(&inner);
    outer.write(&mut packet, 4097, 7);
    add("vxlan", vec![packet]);
    let whole = [&[0; 10][..], &inner].concat();
    let large = frame(1, &[b'x'; 3000]);
    // Checksum wanted; TCP over IPv4; headers of 54 bytes; pieces of 1000; from byte 34 on, at 16 of them.
    let mut cut = vec![1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0];
    cut.extend(&large);
    let mut question =
        vec![255, 255, 255, 255, 255, 255, 2, 66, 10, 1, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 66, 10, 1, 0, 1];
    question.extend([10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 10, 1, 0, 2]);
    add("tap_frame", vec![whole, cut, [&[0; 10][..], &question].concat()]);
    let frames = framed(&[frame(1, &[b'x'; 100]), frame(101, &[b'y'; 100]), frame(201, b"end")]);
    add("coalesce", vec![[&[1][..], &frames].concat()]);
    let reply = [0, 0, 0, 0, 0, 7, 0, 9, 1, 2, 3, 4];
    let header = [0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
    add("probe_answer", vec![[&[0][..], &header, &reply].concat(), [&[1, 129][..], &reply[1..]].concat()]);
    add("netlink", netlink());
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
}

fn endpoint(task: u8) -> v1::NetworkEndpoint {
    v1::NetworkEndpoint {
        task_id: TaskId::new(task.into()).to_vec(),
        node_id: vec![1; 16],
        service_id: ServiceId::new(1).to_vec(),
        addresses: vec![vec![10, 0, 1, task]],
        names: vec![format!("web.{task}")],
        state: 1,
    }
}

/// As the kernel lays them out (rtnetlink(7), nfnetlink): a link, an address, a route, a neighbour, a rule, a connection,
/// a table of nftables, a WireGuard device.
fn netlink() -> Vec<Vec<u8>> {
    let one = |kind: u16, fixed: &[u8], attributes: &[(u16, &[u8])]| {
        let mut batch = Batch::new();
        batch.message(kind, 2, |message| {
            message.raw(fixed);
            attributes.iter().for_each(|(kind, value)| message.bytes(*kind, value));
        });
        batch.bytes().to_vec()
    };
    let nest = |attributes: &[(u16, &[u8])]| {
        let mut batch = Batch::new();
        batch.message(0, 0, |message| attributes.iter().for_each(|(kind, value)| message.bytes(*kind, value)));
        batch.bytes()[16..].to_vec()
    };
    let data = nest(&[(1, &7_u32.to_ne_bytes()), (4, &[10, 0, 0, 1])]);
    let info = nest(&[(1, b"vxlan\0"), (2, &data)]);
    let tuple = nest(&[
        (1, &nest(&[(1, &[10, 0, 0, 1]), (2, &[10, 0, 0, 2])])),
        (2, &nest(&[(1, &[6]), (2, &[1, 2]), (3, &[0, 80])])),
    ]);
    let allowed = nest(&[(0, &nest(&[(1, &2_u16.to_ne_bytes()), (2, &[10, 0, 0, 1]), (3, &[32])]))]);
    let peer = nest(&[(1, &[7; 32]), (4, &[2, 0, 0xca, 0x6c, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), (9, &allowed)]);
    vec![
        one(16, &[0; 16], &[(3, b"vx0\0"), (18, &info), (23, &[1; 192])]),
        one(20, &[2, 24, 0, 0, 1, 0, 0, 0], &[(2, &[10, 0, 0, 1])]),
        one(
            24,
            &[2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0],
            &[(1, &[10, 0, 0, 0]), (5, &[10, 0, 0, 1]), (4, &2_u32.to_ne_bytes())],
        ),
        one(28, &[7, 0, 0, 0, 2, 0, 0, 0, 0x80, 0, 2, 0], &[(1, &[10, 0, 0, 1]), (2, &[2, 0, 0, 0, 0, 1])]),
        one(32, &[2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], &[(15, &100_u32.to_ne_bytes()), (10, &1_u32.to_ne_bytes())]),
        one(256, &[2, 0, 0, 0], &[(1, &tuple), (2, &tuple)]),
        one(0xa00, &[1, 0, 0, 0], &[(1, b"skep\0")]),
        one(0x1c, &[0, 1, 0, 0], &[(3, &[1; 32]), (6, &51820_u16.to_ne_bytes()), (8, &nest(&[(0, &peer)]))]),
    ]
}

fn worker(add: &mut Add<'_>) {
    let mut stream = vec![8];
    let exit = b"{\"version\":1,\"exit_code\":3,\"signal\":0,\"oom_killed\":false,\"started_at_unix_ns\":1,\"finished_at_unix_ns\":2,\"error\":\"\"}";
    let started = [&42_u32.to_le_bytes()[..], &7_u64.to_le_bytes(), &9_u64.to_le_bytes()].concat();
    let frames: [(Kind, &[u8]); 5] = [
        (Kind::Hello, &[]),
        (Kind::Started, &started),
        (Kind::Reply, &[0; 4]),
        (Kind::LogLoss, b"full"),
        (Kind::Exited, exit),
    ];
    for (kind, payload) in frames {
        stream.extend(protocol::encode(kind, 1, payload));
    }
    let mut config = vec![1];
    ShimConfig { mount_point: "/b".to_owned(), lower: vec!["/l".to_owned()], ..ShimConfig::default() }
        .send(&mut config)
        .unwrap();
    add(
        "shim_protocol",
        vec![stream, config, b"\x0142 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1234 20".to_vec()],
    );
    add("shim_config", shim_config());
    let file = |path: &str, swappable| files::Entry {
        path: path.to_owned(),
        swappable,
        mode: 0o444,
        ..files::Entry::default()
    };
    let manifest = files::Manifest { version: 7, files: vec![file("db/password", true), file("0", false)] };
    add("secret_files", vec![manifest.encode().unwrap()[4..].to_vec()]);
    let task = v1::Task { id: TaskId::new(1).to_vec(), revision: 3, ..v1::Task::default() };
    let status =
        [&[1][..], &v1::TaskStatus { message: "started".to_owned(), ..v1::TaskStatus::default() }.encode_to_vec()]
            .concat();
    let key = |kind: &[u8]| [kind, &1_u128.to_be_bytes()].concat();
    let revision = v1::Revision { number: 3, ..v1::Revision::default() }.encode_to_vec();
    add(
        "worker_record",
        vec![framed(&[
            key(b"t"),
            task.encode_to_vec(),
            key(b"s"),
            status,
            [key(b"r"), 3_u64.to_be_bytes().to_vec()].concat(),
            revision,
            b"mboot".to_vec(),
            b"boot-1".to_vec(),
            b"msequence".to_vec(),
            4_u64.to_be_bytes().to_vec(),
            b"mformat".to_vec(),
            vec![1],
        ])],
    );
    let mut line = vec![0];
    logline::encode(&mut line, logline::Stream::Stdout, b"hello \"x\"\n", 1_700_000_000_123_456_789);
    let users = parts(&[b"root:x:0:0::/root:/bin/sh\nweb:x:10:20::/:\n", b"web:x:20:\nmore:x:30:web,root\n", b"web"]);
    add("container_files", vec![line, [&[1][..], exit].concat(), [&[2][..], &users].concat()]);
    let item = |item| v1::AssignmentItem { item: Some(item) };
    let owner = Some(v1::payload_key::Owner::SecretId(SecretId::new(1).to_vec()));
    let payload_key = v1::PayloadKey { owner, version: 2 };
    let payload = v1::Payload { key: Some(payload_key.clone()), data: b"{{ env \"A\" }}".to_vec().into() };
    let whole = v1::Assignments {
        complete: true,
        sequence: 1,
        put: vec![
            item(v1::assignment_item::Item::Task(v1::Task { service_id: ServiceId::new(1).to_vec(), ..task })),
            item(v1::assignment_item::Item::Payload(v1::AssignedPayload { payload: Some(payload), templated: true })),
        ],
        ..v1::Assignments::default()
    };
    let next = v1::Assignments {
        applies_to: 1,
        sequence: 2,
        remove: [
            v1::assignment_key::Key::TaskId(TaskId::new(1).to_vec()),
            v1::assignment_key::Key::Payload(payload_key),
        ]
        .map(|key| v1::AssignmentKey { key: Some(key) })
        .into(),
        ..v1::Assignments::default()
    };
    add("assignments", vec![framed(&[whole.encode_to_vec(), next.encode_to_vec()])]);
}

/// The text of a start message and of a command, with programs of the kernel's behind it.
fn shim_config() -> Vec<Vec<u8>> {
    let text = |text: &str| text.to_owned();
    let bind = What::Bind { source: text("/srv=1"), recursive: true, propagation: 1 << 18 };
    let new = What::New { kind: text("proc"), options: text("a=b,c") };
    let mount = |target: &str, what| plan::Mount { target: text(target), attributes: 14, what, standard: false };
    let rlimit = Rlimit { resource: 7, soft: 1, hard: u64::MAX };
    let plan = Plan {
        settings: vec![plan::Setting { file: text("/c/memory.max"), value: text("1\n2") }],
        join: vec![text("/c/cgroup.procs")],
        namespaces: 0x0800_0000,
        hostname: text("web"),
        mounts: vec![mount("/proc", new), mount("/data", bind)],
        links: vec![(text("/dev/fd"), text("/proc/self/fd"))],
        devices: vec![plan::Device { name: text("null"), major: 1, minor: 3 }],
        sysctls: vec![(text("net/ipv4/ip_forward"), text("1"))],
        masked: vec![text("/proc/kcore")],
        user: text("web:34"),
        groups: vec![text("5000")],
        rlimits: vec![rlimit],
        args: vec![text("init"), text("--"), text("sh")],
        wrapped: 2,
        env: vec![text("A=b=c")],
        ..Plan::default()
    };
    let config = ShimConfig {
        mount_point: text("/b"),
        lower: vec![text("/l,:=")],
        upper: text("upper"),
        work: text("work"),
        log_path: text("logs/container.log"),
        plan,
        external: External { program: text("/bin/runc"), id: text("x"), config: text("{}"), ..External::default() },
        ..ShimConfig::default()
    };
    let entry = Entry {
        pid: 42,
        start_ticks: 7,
        groups: vec![3],
        rlimits: vec![rlimit],
        cwd: text("/"),
        args: vec![text("sh")],
        env: vec![text("A=b")],
        ..Entry::default()
    };
    let mut messages = [(Vec::new(), 12), (Vec::new(), 8)];
    config.send(&mut messages[0].0).unwrap();
    entry.send(&mut messages[1].0).unwrap();
    messages.map(|(message, lengths)| parts(&[&message[lengths..], &[6, 0, 0, 0, 0, 0, 0xff, 0x7f], b"devices"])).into()
}

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

fn requests(add: &mut Add<'_>) {
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
    let chosen = |kind: u8, bytes: Vec<u8>| [vec![kind], bytes].concat();
    add(
        "api_requests",
        vec![
            chosen(0, create.encode_to_vec()),
            chosen(1, update.encode_to_vec()),
            chosen(2, network.encode_to_vec()),
            chosen(3, node.encode_to_vec()),
            chosen(4, cluster.encode_to_vec()),
            chosen(5, secret.encode_to_vec()),
            chosen(6, config.encode_to_vec()),
        ],
    );
}

/// A call of every method of the manager, and a few that follow each other.
fn calls(add: &mut Add<'_>) {
    let text = |text: &str| text.to_owned();
    let call = |caller: u8, method: &str, messages: &[Vec<u8>]| {
        [&[caller][..], &parts(&[method.as_bytes(), &framed(messages), b""])].concat()
    };
    let one = |method: &str, message: Vec<u8>| call(0, method, &[message]);
    let service = v1::CreateServiceRequest { spec: Some(service("api")), ..v1::CreateServiceRequest::default() };
    let update = v1::UpdateServiceRequest { reference: text("web"), spec: service.spec.clone(), ..Default::default() };
    let network = v1::NetworkSpec { name: text("back"), ..v1::NetworkSpec::default() };
    let secret = v1::SecretSpec { name: text("key2"), ..v1::SecretSpec::default() };
    let config = v1::ConfigSpec { name: text("site"), ..v1::ConfigSpec::default() };
    let rotate = v1::RotateRequest { reference: text("key"), data: b"newer".to_vec(), ..v1::RotateRequest::default() };
    let back = v1::RollbackPayloadRequest { reference: text("key"), ..v1::RollbackPayloadRequest::default() };
    let gone = v1::RemovePayloadsRequest { reference: text("db"), ..v1::RemovePayloadsRequest::default() };
    let digest = format!("sha256:{}", "0".repeat(64));
    let name = v1::PutImageNameRequest { name: text("web:1"), digest: digest.clone(), ..Default::default() };
    let role = v1::JoinTokenRequest { role: v1::NodeRole::Worker.into(), rotate: true, ..Default::default() };
    let node = v1::NodeSpec { labels: BTreeMap::from([(text("zone"), text("a"))]), ..v1::NodeSpec::default() };
    let node = v1::UpdateNodeRequest { reference: text("host1"), spec: Some(node), ..Default::default() };
    let service_id = ServiceId::new(5).to_vec();
    let logs = v1::ReadLogsRequest { service_id: service_id.clone(), ..v1::ReadLogsRequest::default() };
    let issue =
        v1::IssueRequest { csr_pem: text("-----BEGIN"), token: text("SWMTKN-1-"), ..v1::IssueRequest::default() };
    macro_rules! referring {
        ($($method:literal $message:ident $reference:literal;)+) => {[$(
            one($method, v1::$message { reference: text($reference), ..v1::$message::default() }.encode_to_vec()),
        )+]};
    }
    let by_reference = referring! {
        "Nodes/Get" GetNodeRequest "self"; "Nodes/Remove" RemoveNodeRequest "host2";
        "Services/Get" GetServiceRequest "web"; "Services/Rollback" RollbackServiceRequest "web";
        "Services/History" ServiceHistoryRequest "web"; "Services/Scale" ScaleServiceRequest "web";
        "Services/Remove" RemoveServiceRequest "web"; "Tasks/Get" GetTaskRequest "web.1";
        "Networks/Get" GetNetworkRequest "front"; "Networks/Remove" RemoveNetworkRequest "front";
        "Networks/Doctor" NetworkDoctorRequest "front"; "Secrets/Get" GetSecretRequest "db";
        "Configs/Get" GetConfigRequest "key";
    };
    let lists = ["Clusters/Get", "Clusters/Doctor", "Nodes/List", "Services/List", "Tasks/List", "Networks/List"];
    let lists = lists.into_iter().chain(["Networks/Mesh", "Secrets/List", "Configs/List", "ImageNames/List"]);
    let mut seeds: Vec<Vec<u8>> = lists.map(|method| one(method, Vec::new())).chain(by_reference).collect();
    seeds.extend([
        one("Clusters/JoinToken", role.encode_to_vec()),
        one("Nodes/Update", node.encode_to_vec()),
        one("Services/Create", service.encode_to_vec()),
        one("Services/Update", update.encode_to_vec()),
        one("Networks/Create", v1::CreateNetworkRequest { spec: Some(network), ..Default::default() }.encode_to_vec()),
        one("ImageNames/Put", name.encode_to_vec()),
        one(
            "ImageNames/Remove",
            v1::RemoveImageNameRequest { name: text("web:1"), ..Default::default() }.encode_to_vec(),
        ),
        one("Watch/Watch", v1::WatchRequest { service_id, nodes: true, services: true }.encode_to_vec()),
        one("Logs/Read", logs.encode_to_vec()),
        call(5, "CertificateAuthority/GetRoot", &[Vec::new()]),
        call(5, "CertificateAuthority/Issue", &[issue.encode_to_vec()]),
        call(1, "CertificateAuthority/Renew", &[Vec::new()]),
        call(1, "Dispatch/ImageSources", &[v1::ImageSourcesRequest { digest: digest.clone() }.encode_to_vec()]),
        call(1, "Dispatch/PublishNetworkCheck", &[Vec::new()]),
        call(1, "Dispatch/PublishLogs", &[Vec::new(), Vec::new()]),
        call(1, "Dispatch/Session", &session()),
        call(4, "Relay/Holders", &[v1::HoldersRequest { digest }.encode_to_vec()]),
        call(4, "Relay/Link", &[v1::RelayUp { complete: true, ..v1::RelayUp::default() }.encode_to_vec()]),
    ]);
    let secret = v1::CreateSecretRequest { spec: Some(secret), data: b"x".to_vec(), ..Default::default() };
    let config = v1::CreateConfigRequest { spec: Some(config), data: b"x".to_vec(), ..Default::default() };
    let follow = [
        one("Secrets/Create", secret.encode_to_vec()),
        one("Configs/Create", config.encode_to_vec()),
        one("Secrets/Rotate", rotate.encode_to_vec()),
        one("Configs/Rotate", rotate.encode_to_vec()),
        one("Secrets/Rollback", back.encode_to_vec()),
        one("Configs/Rollback", back.encode_to_vec()),
        one("Secrets/Remove", gone.encode_to_vec()),
    ];
    seeds.extend([follow[..4].concat(), follow[4..].concat(), follow[0].clone(), follow[2].clone()]);
    add("manager_calls", seeds);
}

/// What a node says: itself, that it lives, how its task is, and that it goes.
fn session() -> Vec<Vec<u8>> {
    use v1::session_up::Message;
    let description = v1::NodeDescription { hostname: "host1".to_owned(), ..v1::NodeDescription::default() };
    let status = v1::TaskStatus { state: v1::TaskState::Running.into(), ..v1::TaskStatus::default() };
    let observed =
        v1::TaskObserved { task_id: TaskId::new(1).to_vec(), node_id: NodeId::new(1).to_vec(), status: Some(status) };
    let said = [
        Message::Register(v1::Register { description: Some(description.clone()), ..v1::Register::default() }),
        Message::Heartbeat(v1::Heartbeat::default()),
        Message::Statuses(v1::StatusBatch { batch: 1, statuses: vec![observed] }),
        Message::Description(description),
        Message::Images(v1::HeldImages::default()),
        Message::Goodbye(v1::Goodbye::default()),
    ];
    said.map(|message| v1::SessionUp { message: Some(message) }.encode_to_vec()).into()
}

/// What another manager refuses, and why.
fn refusals(add: &mut Add<'_>) {
    use v1::group_refusal::Kind;
    let kinds = [Kind::Exists, Kind::OutOfSequence, Kind::NameTaken, Kind::PortTaken, Kind::Taken, Kind::Overlaps];
    let told = kinds.map(|kind| {
        let refusal = v1::GroupRefusal {
            kind: kind.into(),
            object: "service web".to_owned(),
            part: "tcp".to_owned(),
            id: vec![1; 16],
            other_id: vec![2; 16],
            from: "10.1.0.0/24".to_owned(),
            to: "10.1.0.0/16".to_owned(),
            stored: 80,
            ..v1::GroupRefusal::default()
        };
        v1::RefusedGroup { index: 1, refusal: Some(refusal) }.encode_to_vec()
    });
    add("refusals", told.into());
}
