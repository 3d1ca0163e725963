//! The encrypted mesh as nodes see it, in `node inspect` and `network inspect --verbose`.

use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use skep_proto::v1;

use super::network::bare;
use crate::output::time;

/// The mesh as one node sees it.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct MeshView {
    /// Why it is not known. Then nothing else is.
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    /// `kernel`, `userspace` or `none`.
    device: String,
    peers: Vec<MeshPeer>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct MeshPeer {
    /// The other node's hostname.
    name: String,
    #[serde(rename = "NodeID")]
    node_id: String,
    /// Where it was last heard from; empty: not yet.
    endpoint: String,
    /// When the two last agreed on keys; empty: never.
    last_handshake: String,
    received_bytes: u64,
    sent_bytes: u64,
}

impl MeshView {
    /// What a node says. `only`: of these peers.
    pub(crate) fn new(said: v1::NodeMesh, hostname: impl Fn(&[u8]) -> String, only: Option<&[Vec<u8>]>) -> Self {
        let Some(mesh) = said.mesh else { return Self::failed(said.error) };
        let wanted = |peer: &v1::MeshPeer| only.is_none_or(|only| only.contains(&peer.node_id));
        let peers = mesh.peers.into_iter().filter(wanted).map(|peer| MeshPeer {
            name: hostname(&peer.node_id),
            node_id: super::id(&peer.node_id),
            endpoint: peer.endpoint,
            last_handshake: match peer.last_handshake_ms {
                0 => String::new(),
                at => time::rfc3339_ms(at),
            },
            received_bytes: peer.received_bytes,
            sent_bytes: peer.sent_bytes,
        });
        Self { error: String::new(), device: mesh.device, peers: peers.collect() }
    }

    /// It could not be asked.
    pub(crate) fn failed(error: String) -> Self {
        Self { error, ..Self::default() }
    }
}

/// A node's end of the mesh.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct FabricView {
    /// Never another node's; 0: none yet.
    number: u32,
    /// Its address inside the mesh.
    address: String,
    public_key: String,
    /// `ip:port` of its WireGuard device.
    wire_guard_addr: String,
    /// Where its end of overlays is that are not encrypted.
    vxlan_addr: String,
    /// Its own addresses on the routing mesh's network.
    ingress_addresses: Vec<String>,
}

impl FabricView {
    /// `None`: the node has no end in the mesh.
    pub(crate) fn of(node: &v1::Node) -> Option<Self> {
        let fabric = node.description.as_ref()?.fabric.as_ref()?;
        let number = node.fabric_number;
        // The mesh's range (RFC 6598) and the number in it.
        let inside = || Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)).wrapping_add(number)).to_string();
        let own = node.ingress.as_ref().map(|ingress| ingress.addresses.as_slice()).unwrap_or_default();
        Some(Self {
            number,
            address: if number == 0 { String::new() } else { inside() },
            public_key: BASE64_STANDARD.encode(&fabric.public_key),
            wire_guard_addr: fabric.wireguard_addr.clone(),
            vxlan_addr: fabric.vxlan_addr.clone(),
            ingress_addresses: own.iter().map(|address| bare(address)).collect(),
        })
    }
}
