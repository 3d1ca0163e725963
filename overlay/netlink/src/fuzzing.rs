//! Doors to private parsers for `tests/fuzz`, and for nobody else: no part of the interface.

use crate::message::Message;
use crate::{address, conntrack, link, neighbour, nft, route, rule, tcp, wireguard};

/// Gives a message to every reader of answers. How many made something of it.
pub fn answer(message: Message<'_>) -> usize {
    let found = [
        link::list::parse(message).map(|found| found.is_some()),
        address::parse(message).map(|found| found.is_some()),
        route::parse(message).map(|found| found.is_some()),
        neighbour::parse(message).map(|found| found.is_some()),
        rule::parse(message).map(|found| found.is_some()),
        conntrack::parse(message).map(|found| found.is_some()),
        nft::parse_table(message).map(|found| found.is_some()),
        nft::parse_chain(message).map(|found| found.is_some()),
        wireguard::parse_family(message).map(|found| found.is_some()),
        tcp::parse(&message).map(|found| found.and_then(tcp::address).is_some()),
    ];
    found.into_iter().filter(|found| *found == Ok(true)).count()
}

/// Gives a whole dump to the readers that put messages together. Whether each made something of it.
pub fn dump<'a>(messages: impl Iterator<Item = Message<'a>> + Clone) -> [bool; 2] {
    let mut device = wireguard::Device::default();
    let mut content = nft::Content::default();
    let peers = messages.clone().all(|message| wireguard::parse_device(&mut device, message).is_ok());
    let rules = messages.into_iter().all(|message| content.take(message).is_ok());
    [peers && device != wireguard::Device::default(), rules && content != nft::Content::default()]
}
