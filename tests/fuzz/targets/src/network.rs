//! What comes by the network, from sandboxes, and from the kernel; what managers say of networks.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use prost::Message as _;
use skep_dns::{Endpoint, EndpointId, Network, Service, ServiceId, Upstream, View, Zone};
use skep_fabric::coalesce::Coalescer;
use skep_fabric::virtio::{VIRTIO_HEADER, VirtioHeader};
use skep_fabric::{neighbour, segment, vxlan};
use skep_netlink::message::{Message, Messages};
use skep_noise::x25519::{PublicKey, StaticSecret};
use skep_noise::{Packet, RateLimiter, TimerSettings, Tunn, TunnResult};
use skep_overlay::plan;
use skep_overlay::plan::balance::{Balance, Kind};
use skep_overlay::plan::forwarding::{Forwarding, Way};
use skep_overlay::table::{FollowedTable, Table};
use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1::{AttachRequest, ConfigureRequest, Network as Definition, NetworkTable, Subnet};

use crate::{choose, halves};

/// A sandbox's query, and what a name server says to it.
pub fn dns(data: &[u8]) {
    static VIEW: LazyLock<View> = LazyLock::new(|| {
        let network = Network::new("one", &[(IpAddr::from([10, 1, 0, 0]), 16)]);
        network.change(|zone| {
            let vip = vec![IpAddr::from([10, 1, 255, 2])];
            zone.put_service(ServiceId([1; 16]), &Service { names: vec!["web".to_owned()], virtual_addresses: vip });
            zone.put_service(ServiceId([2; 16]), &Service { names: vec!["db".to_owned()], virtual_addresses: vec![] });
            for task in 0..200_u8 {
                let endpoint = Endpoint {
                    service: Some(ServiceId([2; 16])),
                    addresses: vec![IpAddr::from([10, 1, 0, task])],
                    names: vec![format!("db.{task}.q8xnzk5r2v7c1m4t9w3e6y0a")],
                    serving: skep_dns::Serving::Yes,
                };
                zone.put_endpoint(EndpointId([task; 16]), &endpoint);
            }
        });
        let own = ["me".to_owned(), "web.1.q8xnzk5r2v7c1m4t9w3e6y0a7".to_owned()];
        View::new(vec![network])
            .own(&own, &[IpAddr::from([10, 1, 0, 7])])
            .search(&["corp.example".to_owned()])
            .upstream(Upstream::Host)
    });
    let (query, said) = halves(data);
    for (answer, limit) in skep_dns::fuzzing::exchange(&VIEW, query, said) {
        assert!(answer.len() <= limit, "{} octets instead of {limit}", answer.len());
        assert!(answer.len() >= 12 && answer[2] & 0x80 != 0, "an answer");
        assert_eq!(answer[..2], query[..2], "to this question");
    }
}

/// A datagram for a tunnel: as it comes; as if its first check had passed; and a real message of the peer, spoilt. What
/// comes out is only ever what the peer sealed.
pub fn wireguard(data: &[u8]) {
    let mut pair = Pair::new();
    pair.hear(data);
    if let Ok(packet) = Tunn::parse_incoming_packet(data) {
        let mut room = [0; 2048];
        let out = pair.ours.handle_verified_packet(packet, &mut room, NOW);
        assert!(!matches!(out, TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..)));
    }
    let (which, spoil) = choose(data);
    let mut pair = Pair::new();
    let mut spoilt = pair.message(which % 4);
    for place in spoil.chunks_exact(2) {
        let at = usize::from(place[0]) % spoilt.len();
        spoilt[at] ^= place[1];
    }
    pair.hear(&spoilt);
}

/// The bytes that make [`wireguard`] spoil a real message of a kind, or not at all.
pub(crate) fn spoilt_message(which: u8) -> Vec<u8> {
    vec![which, 9, 0]
}

/// An initiation that a peer made.
pub(crate) fn real_message() -> Vec<u8> {
    Pair::new().message(0)
}

const NOW: Duration = Duration::from_secs(1000);
/// 10.0.0.1 to 10.0.0.2, UDP, four bytes.
const PACKET: [u8; 32] =
    [0x45, 0, 0, 32, 0, 0, 0, 0, 5, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x16, 0x2e, 0, 23, 0, 12, 0, 0, 0, 1, 2, 3];

/// Two tunnels, of which one is fed.
struct Pair {
    ours: Tunn,
    theirs: Tunn,
}

impl Pair {
    fn new() -> Self {
        let keys = [StaticSecret::from([1; 32]), StaticSecret::from([2; 32])];
        let publics = keys.each_ref().map(PublicKey::from);
        let tunnel = |own: usize, peer: usize| {
            // Its own cookies from the second message on.
            let Ok(limiter) = RateLimiter::new(&publics[own], 1, NOW) else { panic!("no random numbers") };
            let settings = TimerSettings::default();
            Tunn::new(keys[own].clone(), publics[peer], None, None, 1, Arc::new(limiter), settings, NOW)
        };
        Self { ours: tunnel(0, 1), theirs: tunnel(1, 0) }
    }

    /// A message of the peer's: an initiation, a response, a keepalive, a packet.
    fn message(&mut self, which: u8) -> Vec<u8> {
        if which == 0 {
            return sent(|room| self.theirs.format_handshake_initiation(room, false, NOW));
        }
        let initiation = sent(|room| self.ours.format_handshake_initiation(room, false, NOW));
        let response = sent(|room| self.theirs.decapsulate(None, &initiation, room, NOW));
        if which == 1 {
            return response;
        }
        let keepalive = sent(|room| self.ours.decapsulate(None, &response, room, NOW));
        let mut room = [0; 2048];
        self.theirs.decapsulate(None, &keepalive, &mut room, NOW);
        let packet: &[u8] = if which == 2 { &[] } else { &PACKET };
        sent(|room| self.theirs.encapsulate(packet, room, NOW))
    }

    fn hear(&mut self, datagram: &[u8]) {
        let mut room = [0; 2048];
        let sender = Some(IpAddr::from(Ipv4Addr::LOCALHOST));
        for _ in 0..2 {
            match self.ours.decapsulate(sender, datagram, &mut room, NOW) {
                TunnResult::WriteToTunnelV4(packet, _) => assert_eq!(packet, PACKET),
                TunnResult::WriteToTunnelV6(..) => panic!("nobody sent this"),
                TunnResult::WriteToNetwork(answer) => {
                    let kind = Tunn::parse_incoming_packet(answer);
                    assert!(!matches!(kind, Ok(Packet::HandshakeInit(_)) | Err(_)), "what it answers can be read");
                }
                TunnResult::Done | TunnResult::Err(_) => {}
            }
        }
    }
}

fn sent(make: impl for<'a> FnOnce(&'a mut [u8]) -> TunnResult<'a>) -> Vec<u8> {
    let mut room = [0; 2048];
    match make(&mut room) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// A packet out of the tunnel.
pub fn vxlan(data: &[u8]) {
    let ours = [IpAddr::from([100, 64, 0, 2]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2])];
    if let Ok(inner) = vxlan::parse(data, &ours, 4790) {
        let (start, end) = inner.frame;
        assert!(start <= end && end <= data.len() && inner.vni < 1 << 24);
        // What comes to a frame's address is looked at too.
        ask(&data[start..end]);
    }
}

/// What a TAP gives: its header, and a frame of up to 64 KiB, which is cut.
pub fn tap_frame(data: &[u8]) {
    let Ok(header) = VirtioHeader::parse(data) else { return };
    let frame = &data[VIRTIO_HEADER..];
    ask(frame);
    let Ok(plan) = segment::plan(&header, frame) else { return };
    let mut room = vec![0; 1 << 17];
    for index in 0..plan.count() {
        let length = plan.length(index);
        plan.write(frame, index, &mut room[..length]);
    }
}

fn ask(frame: &[u8]) {
    if let Some(question) = neighbour::parse(frame) {
        let mut room = [0; 128];
        let length = neighbour::answer(&question, [2, 0, 0, 0, 0, 1], &mut room);
        assert!(neighbour::parse(&room[..length]).is_none(), "an answer asks nothing");
    }
}

/// Frames of several packets, which are put together: all of their bytes come out, in whatever groups.
pub fn coalesce(data: &[u8]) {
    let (kind, rest) = choose(data);
    let (mut buffer, mut places, mut rest) = (Vec::new(), Vec::new(), rest);
    while !rest.is_empty() && places.len() < 64 {
        let (frame, behind) = halves(rest);
        if behind.len() == rest.len() {
            break;
        }
        let start = buffer.len();
        buffer.extend_from_slice(frame);
        places.push(start..buffer.len());
        rest = behind;
    }
    let mut came = 0;
    let mut emit = |buffer: &[u8], output: skep_fabric::coalesce::Output<'_>| {
        came += output.headers.len();
        for piece in output.pieces {
            came += buffer[piece.clone()].len();
        }
    };
    let mut coalescer = Coalescer::new(kind & 1 == 1);
    let mut sent = 0;
    for (number, place) in places.into_iter().enumerate() {
        sent += place.len();
        coalescer.push(&buffer, place, number % 2, &mut emit);
    }
    coalescer.flush(&buffer, &mut emit);
    assert!(came <= sent, "{came} of {sent}");
}

/// Answers of the kernel.
pub fn netlink(data: &[u8]) {
    let messages: Vec<Message<'_>> = Messages(data).map_while(Result::ok).collect();
    for message in &messages {
        skep_netlink::fuzzing::answer(*message);
    }
    skep_netlink::fuzzing::dump(messages.iter().copied());
}

/// Tables of a network from a manager, one message after the other, and what they mean for this host: what follows the
/// changes has what is made from the whole at once.
pub fn network_table(data: &[u8]) {
    let network = NetworkId::new(7);
    let mut followed = FollowedTable::default();
    let mut plans = Plans::new();
    let mut rest = data;
    while !rest.is_empty() {
        let (message, behind) = halves(rest);
        if behind.len() == rest.len() {
            break;
        }
        if let Ok(message) = NetworkTable::decode(message) {
            let before = followed.current().clone();
            match followed.take(network, &message) {
                Ok(true) => plans.follow(&before, followed.current()),
                Ok(false) => {}
                Err(_) => assert_eq!(followed.current(), &before, "what cannot be read changes nothing"),
            }
        }
        rest = behind;
    }
    // As it is kept: all of it, and the same.
    let mut again = FollowedTable::default();
    let whole = followed.current().message(network);
    if followed.current().version > 0 {
        assert!(again.take(network, &whole).is_ok());
        assert_eq!(again.current(), followed.current());
    }
}

/// What a host makes of a table.
struct Plans {
    names: Zone,
    balances: [Balance; 2],
    forwarding: [Forwarding; 2],
}

impl Plans {
    fn new() -> Self {
        let own = NodeId::new(1);
        let balances = [Balance::new(Kind::Addresses, "skep", false), Balance::new(Kind::Ports, "skep", true)];
        let forwarding = [Forwarding::new(own, Way::Underlay), Forwarding::new(own, Way::Mesh)];
        Self { names: Zone::default(), balances, forwarding }
    }

    fn follow(&mut self, before: &Table, table: &Table) {
        let change = table.since(before);
        plan::names::change(&mut self.names, &change);
        let _ = plan::drain::ended(table, &change);
        let own = Some(NodeId::new(1));
        let peers = plan::mesh::TablePeers::of(table);
        let _ = plan::mesh::peers(NodeId::new(1), std::iter::once(&peers));
        for balance in &mut self.balances {
            balance.change(table, &change);
            let mut whole = balance.afresh();
            whole.change(table, &table.all());
            let has = |one: &Balance, other: &Balance| {
                other.served().all(|frontend| {
                    let backends = one.backends_of(frontend).map(<[_]>::len);
                    backends == other.backends_of(frontend).map(<[_]>::len)
                })
            };
            assert!(has(balance, &whole) && has(&whole, balance));
        }
        let [underlay, mesh] = &mut self.forwarding;
        underlay.change(table, &change, 3);
        mesh.change_forwards(table, &change);
        let _ = plan::local::table(table, own);
    }
}

/// The files that a netd keeps for the next one.
pub fn netd_kept(data: &[u8]) {
    let _ = skep_overlay::fuzzing::kept_table(NetworkId::new(7), data);
    skep_overlay::fuzzing::kept_message(data);
}

/// What an agent asks of netd: who this host is, and a sandbox.
pub fn netd_requests(data: &[u8]) {
    static NETWORK: LazyLock<Definition> = LazyLock::new(|| {
        let subnet = |subnet: &str, gateway: &str| Subnet {
            subnet: subnet.to_owned(),
            gateway: gateway.to_owned(),
            ..Subnet::default()
        };
        let subnets = vec![subnet("10.1.0.0/16", "10.1.0.1"), subnet("fd00::/64", "fd00::1")];
        Definition { subnets, ..Definition::default() }
    });
    let (kind, rest) = choose(data);
    if kind & 1 == 0 {
        let Ok(request) = ConfigureRequest::decode(rest) else { return };
        let key = skep_overlay::fuzzing::configure(&request);
        assert!(key.is_none() || request.private_key.len() == 32, "a key has 32 bytes");
    } else if let Ok(request) = AttachRequest::decode(rest)
        && let Some(ends) = skep_overlay::fuzzing::attach(&request, &NETWORK)
    {
        let mut networks: Vec<_> = ends.iter().map(|(network, ..)| *network).collect();
        networks.sort();
        networks.dedup();
        assert_eq!(networks.len(), request.endpoints.len(), "one endpoint on each network");
        for (end, asked) in ends.iter().zip(&request.endpoints) {
            let (_, addresses, gateways) = end;
            assert!(addresses.len() == asked.addresses.len() && gateways.len() == addresses.len());
            let own = ["10.1.0.0", "fd00::"];
            assert!(addresses.iter().all(|one| own.contains(&one.network().to_string().as_str())), "{addresses:?}");
        }
    }
}

/// What comes back to a probe of another host: whatever that one, or one in between, sends.
pub fn probe_answer(data: &[u8]) {
    let (kind, packet) = choose(data);
    let ipv6 = kind & 1 == 1;
    if let Some((number, size)) = skep_overlay::fuzzing::probe_answer(packet, ipv6, 7) {
        assert!(number <= usize::from(u16::MAX) && size as usize >= packet.len());
    }
}
