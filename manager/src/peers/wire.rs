//! Refusals on the wire: the sender's sentence is the receiver's, and so is its kind.

use skep_core::apply::Refused;
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::v1::group_refusal::Kind;
use skep_proto::v1::{GroupRefusal, RefusedGroup};

/// The fixed words that refusals are made of. One of a later version reads as the first.
const WORDS: [&str; 32] = [
    "part",
    "tcp",
    "udp",
    "service",
    "slot",
    "node",
    "state",
    "wanted state",
    "revision",
    "bytes",
    "changes",
    "revisions are numbered from 1",
    "it has no name",
    "it is reported in a state that is not known",
    "its state and its status differ",
    "it has no wanted state",
    "its state says that it was placed, but it has no node",
    "slots are numbered from 1",
    "its place is a node, but not its node",
    "a start at 0 means none",
    "subnets",
    "addresses",
    "VNI",
    "settings",
    "an overlay has a VNI, and no other network",
    "a VNI is 1 to 16777215",
    "it has two subnets of one family",
    "a gateway of it is outside its subnet",
    "a range of it is outside its subnet",
    "it has addresses of one network twice",
    "fabric numbers begin at 1",
    "an address of it is outside the network",
];

fn word(text: &str) -> &'static str {
    WORDS.into_iter().find(|word| *word == text).unwrap_or(WORDS[0])
}

/// A refused group as the leader tells it.
pub(crate) fn refused_to_wire((index, refused): &(usize, Refused)) -> RefusedGroup {
    let index = u32::try_from(*index).unwrap_or(u32::MAX);
    RefusedGroup { index, refusal: Some(refusal_to_wire(refused)) }
}

/// A refused group as a follower reads it.
pub(crate) fn refused_from_wire(wire: RefusedGroup) -> (usize, Refused) {
    (usize::try_from(wire.index).unwrap_or(usize::MAX), refusal_from_wire(wire.refusal.unwrap_or_default()))
}

fn refusal_to_wire(refused: &Refused) -> GroupRefusal {
    let of = |kind: Kind| GroupRefusal { kind: kind.into(), ..GroupRefusal::default() };
    match refused.clone() {
        Refused::Exists { object } => GroupRefusal { object, ..of(Kind::Exists) },
        Refused::Gone { object } => GroupRefusal { object, ..of(Kind::Gone) },
        Refused::OutOfSequence { object, stored, expected } => {
            GroupRefusal { object, stored, expected, ..of(Kind::OutOfSequence) }
        }
        Refused::NameTaken { name, holder } => {
            GroupRefusal { object: name, id: holder.to_vec(), ..of(Kind::NameTaken) }
        }
        Refused::PortTaken { node, protocol, port, holder } => GroupRefusal {
            id: node.to_vec(),
            part: protocol.to_owned(),
            stored: port.into(),
            other_id: holder.to_vec(),
            ..of(Kind::PortTaken)
        },
        Refused::Taken { what, holder } => GroupRefusal { object: what, by: holder, ..of(Kind::Taken) },
        Refused::Overlaps { subnet, other, network } => {
            GroupRefusal { object: network, from: subnet.to_string(), to: other.to_string(), ..of(Kind::Overlaps) }
        }
        Refused::Missing { object, needed_by } => GroupRefusal { object, by: needed_by, ..of(Kind::Missing) },
        Refused::InUse { object, by } => GroupRefusal { object, by, ..of(Kind::InUse) },
        Refused::NodeRemoved { node } => GroupRefusal { id: node.to_vec(), ..of(Kind::NodeRemoved) },
        Refused::OtherCluster => of(Kind::OtherCluster),
        Refused::Fixed { object, part } => GroupRefusal { object, part: part.to_owned(), ..of(Kind::Fixed) },
        Refused::Backwards { object, part, from, to } => {
            GroupRefusal { object, part: part.to_owned(), from, to, ..of(Kind::Backwards) }
        }
        Refused::Malformed { object, why } => GroupRefusal { object, part: why.to_owned(), ..of(Kind::Malformed) },
        Refused::TooLarge { size, limit, unit } => {
            GroupRefusal { stored: size as u64, expected: limit as u64, part: unit.to_owned(), ..of(Kind::TooLarge) }
        }
    }
}

fn refusal_from_wire(wire: GroupRefusal) -> Refused {
    let node = |bytes: &[u8]| NodeId::from_wire(bytes).unwrap_or(NodeId::new(0));
    let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let (kind, part) = (wire.kind(), word(&wire.part));
    let GroupRefusal { object, by, from, to, stored, expected, id, other_id, .. } = wire;
    match kind {
        Kind::Other => Refused::Malformed { object, why: "the leader is newer than this manager, and says no" },
        Kind::Exists => Refused::Exists { object },
        Kind::Gone => Refused::Gone { object },
        Kind::OutOfSequence => Refused::OutOfSequence { object, stored, expected },
        Kind::NameTaken => {
            Refused::NameTaken { name: object, holder: ServiceId::from_wire(&id).unwrap_or(ServiceId::new(0)) }
        }
        Kind::PortTaken => Refused::PortTaken {
            node: node(&id),
            protocol: part,
            port: u32::try_from(stored).unwrap_or(u32::MAX),
            holder: TaskId::from_wire(&other_id).unwrap_or(TaskId::new(0)),
        },
        Kind::Taken => Refused::Taken { what: object, holder: by },
        Kind::Overlaps => match (from.parse(), to.parse()) {
            (Ok(subnet), Ok(other)) => Refused::Overlaps { subnet, other, network: object },
            _ => Refused::Taken { what: format!("subnet {from}"), holder: format!("network {object}") },
        },
        Kind::Missing => Refused::Missing { object, needed_by: by },
        Kind::InUse => Refused::InUse { object, by },
        Kind::NodeRemoved => Refused::NodeRemoved { node: node(&id) },
        Kind::OtherCluster => Refused::OtherCluster,
        Kind::Fixed => Refused::Fixed { object, part },
        Kind::Backwards => Refused::Backwards { object, part, from, to },
        Kind::Malformed => Refused::Malformed { object, why: part },
        Kind::TooLarge => Refused::TooLarge { size: count(stored), limit: count(expected), unit: part },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_comes_back_as_it_was() {
        let object = || "service web".to_owned();
        let all = [
            Refused::Exists { object: object() },
            Refused::Gone { object: object() },
            Refused::OutOfSequence { object: object(), stored: 7, expected: 6 },
            Refused::NameTaken { name: "web".to_owned(), holder: ServiceId::new(3) },
            Refused::PortTaken { node: NodeId::new(1), protocol: "tcp", port: 80, holder: TaskId::new(2) },
            Refused::Taken { what: "VNI 4097".to_owned(), holder: "network a".to_owned() },
            Refused::Overlaps {
                subnet: "10.0.1.0/24".parse().expect("it is written so"),
                other: "10.0.0.0/16".parse().expect("it is written so"),
                network: "a".to_owned(),
            },
            Refused::Missing { object: object(), needed_by: "task 5".to_owned() },
            Refused::InUse { object: object(), by: "task 5".to_owned() },
            Refused::NodeRemoved { node: NodeId::new(1) },
            Refused::OtherCluster,
            Refused::Fixed { object: object(), part: "slot" },
            Refused::Backwards { object: object(), part: "state", from: "running".into(), to: "new".into() },
            Refused::Malformed { object: object(), why: "it has no name" },
            Refused::TooLarge { size: 9, limit: 8, unit: "bytes" },
        ];
        for (index, refused) in all.into_iter().enumerate() {
            let group = (index, refused);
            assert_eq!(refused_from_wire(refused_to_wire(&group)), group);
        }
    }
}
