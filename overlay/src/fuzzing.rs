//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use std::net::IpAddr;

use skep_dns::View;
use skep_netlink::Prefix;
use skep_proto::id::NetworkId;
use skep_proto::v1;

use crate::check::probe;
use crate::mesh;
use crate::netd::{keep, request};
use crate::plan::ingress::Port;

/// The kept file of a network's table. Gives the version that it holds.
pub fn kept_table(network: NetworkId, bytes: &[u8]) -> Option<u64> {
    keep::table(network, bytes).ok().map(|kept| kept.followed.current().version)
}

/// A message as it is kept.
pub fn keep(message: &impl prost::Message) -> Vec<u8> {
    keep::record(message)
}

/// A kept file of one message: who the host is, or how a sandbox was attached. Whether either could be read.
pub fn kept_message(bytes: &[u8]) -> bool {
    keep::one::<v1::ConfigureRequest>(bytes).is_ok() | keep::one::<v1::AttachRequest>(bytes).is_ok()
}

/// What came back to an ICMP socket that sent requests as `id`. Gives the number of the request that it answers, and its size.
pub fn probe_answer(packet: &[u8], ipv6: bool, id: u16) -> Option<(usize, u32)> {
    probe::answer(packet, ipv6, id)
}

/// Who the agent says that this host is. Gives its public key.
pub fn configure(request: &v1::ConfigureRequest) -> Option<[u8; 32]> {
    mesh::public_key(request).ok().flatten()
}

/// Network, addresses and gateways of an endpoint.
pub type End = (NetworkId, Vec<Prefix>, Vec<IpAddr>);

/// What the agent asks for a sandbox, all of whose networks are like this one. Gives its endpoints.
pub fn attach(request: &v1::AttachRequest, network: &v1::Network) -> Option<Vec<End>> {
    let _task = request::task_of(request).ok()?;
    let _ports: Vec<Port> = request.host_ports.iter().filter_map(Port::of).collect();
    let dns = request.dns.clone().unwrap_or_default();
    let _servers = request::name_servers(&dns);
    let _view = View::new(Vec::new()).search(&dns.search).options(&dns.options);
    let place = |end: request::End| {
        request::place(network, &end.addresses).map(|place| (end.network, place.addresses, place.gateways))
    };
    request::ends(request).ok()?.into_iter().map(place).collect::<Result<_, _>>().ok()
}
