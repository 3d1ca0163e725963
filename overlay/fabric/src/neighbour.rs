//! Answers for the neighbours on other hosts: ARP (RFC 826) and neighbour solicitations (RFC 4861). Pure.
//!
//! [`crate::transmit`] asks for each broadcast or multicast frame from a TAP whether it is a question that the table answers;
//! so no such question ever crosses the fabric.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Mac;
use crate::checksum::pseudo_header;
use crate::frame::{ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV6, PROTOCOL_ICMPV6, be16, be32, put16};

const ARP_LENGTH: usize = ETHERNET_HEADER + 28;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Ethernet, IPv6, advertisement, and the option with our address.
const ADVERTISEMENT_LENGTH: usize = ETHERNET_HEADER + 40 + 24 + 8;
/// Solicited, override (RFC 4861, section 4.4).
const ADVERTISEMENT_FLAGS: u8 = 0x60;

/// A question for the hardware address of `target`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Who asks.
    pub mac: Mac,
    /// Its IP address.
    pub sender: IpAddr,
    /// Whose hardware address is wanted.
    pub target: IpAddr,
}

/// The question in a frame, if it is one. Announcements and probes for duplicate addresses are none: nobody is to answer
/// them here.
pub fn parse(frame: &[u8]) -> Option<Question> {
    let mac: Mac = *frame.get(6..12)?.first_chunk()?;
    if frame.len() < ETHERNET_HEADER {
        return None;
    }
    match be16(frame, 12) {
        ETHERTYPE_ARP => parse_arp(frame, mac),
        ETHERTYPE_IPV6 => parse_solicitation(frame, mac),
        _ => None,
    }
}

fn parse_arp(frame: &[u8], mac: Mac) -> Option<Question> {
    let arp = frame.get(ETHERNET_HEADER..ARP_LENGTH)?;
    // Ethernet, IPv4, lengths 6 and 4, request.
    if arp[..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
        return None;
    }
    let (sender, target) = (Ipv4Addr::from(be32(arp, 14)), Ipv4Addr::from(be32(arp, 24)));
    (sender != target && !sender.is_unspecified()).then_some(Question {
        mac,
        sender: sender.into(),
        target: target.into(),
    })
}

fn parse_solicitation(frame: &[u8], mac: Mac) -> Option<Question> {
    let ip = frame.get(ETHERNET_HEADER..ETHERNET_HEADER + 40 + 24)?;
    let length = usize::from(be16(ip, 4));
    // The hop limit proves that it was sent on this link.
    if ip[0] >> 4 != 6
        || ip[6] != PROTOCOL_ICMPV6
        || ip[7] != 255
        || length < 24
        || ip[40] != SOLICITATION
        || ip[41] != 0
    {
        return None;
    }
    let address = |at: usize| -> Option<Ipv6Addr> { Some(Ipv6Addr::from(*ip.get(at..at + 16)?.first_chunk::<16>()?)) };
    let (sender, target) = (address(8)?, address(48)?);
    (!sender.is_unspecified() && !sender.is_multicast() && !target.is_multicast() && sender != target)
        .then_some(Question { mac, sender: sender.into(), target: target.into() })
}

/// The answer that `target` has the address `mac`, as a frame: written to the begin of `out`, returns its length.
pub fn answer(question: &Question, mac: Mac, out: &mut [u8; 128]) -> usize {
    out.fill(0);
    out[..6].copy_from_slice(&question.mac);
    out[6..12].copy_from_slice(&mac);
    match (question.sender, question.target) {
        (IpAddr::V4(sender), IpAddr::V4(target)) => {
            put16(out, 12, ETHERTYPE_ARP);
            let arp = &mut out[ETHERNET_HEADER..ARP_LENGTH];
            arp[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
            arp[8..14].copy_from_slice(&mac);
            arp[14..18].copy_from_slice(&target.octets());
            arp[18..24].copy_from_slice(&question.mac);
            arp[24..28].copy_from_slice(&sender.octets());
            ARP_LENGTH
        }
        (IpAddr::V6(sender), IpAddr::V6(target)) => {
            put16(out, 12, ETHERTYPE_IPV6);
            let ip = &mut out[ETHERNET_HEADER..ADVERTISEMENT_LENGTH];
            ip[0] = 0x60;
            put16(ip, 4, 32);
            ip[6] = PROTOCOL_ICMPV6;
            ip[7] = 255;
            ip[8..24].copy_from_slice(&target.octets());
            ip[24..40].copy_from_slice(&sender.octets());
            ip[40] = ADVERTISEMENT;
            ip[44] = ADVERTISEMENT_FLAGS;
            ip[48..64].copy_from_slice(&target.octets());
            // Option: target link-layer address, in units of 8 bytes.
            ip[64..66].copy_from_slice(&[2, 1]);
            ip[66..72].copy_from_slice(&mac);
            let sum = pseudo_header(&ip[8..40], PROTOCOL_ICMPV6, 32).bytes(&ip[40..]).checksum();
            put16(ip, 42, sum);
            ADVERTISEMENT_LENGTH
        }
        // A question has two addresses of one family.
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ASKER: Mac = [2, 0, 0, 0, 0, 1];
    const OWNER: Mac = [2, 0, 0, 0, 0, 9];

    fn arp_request(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(ASKER);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(ASKER);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    }

    fn solicitation(sender: &str, target: &str) -> Vec<u8> {
        let (sender, target): (Ipv6Addr, Ipv6Addr) = (sender.parse().unwrap(), target.parse().unwrap());
        let mut frame = vec![0x33, 0x33, 0xff, 0, 0, 2];
        frame.extend(ASKER);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
        frame.extend(sender.octets());
        frame.extend("ff02::1:ff00:2".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(target.octets());
        frame.extend([1, 1]);
        frame.extend(ASKER);
        frame
    }

    #[test]
    fn an_arp_request_is_answered() {
        let question = parse(&arp_request([10, 0, 0, 1], [10, 0, 0, 2])).unwrap();
        assert_eq!(question.target, IpAddr::from([10, 0, 0, 2]));
        let mut out = [0; 128];
        let length = answer(&question, OWNER, &mut out);
        assert_eq!(out[..6], ASKER);
        assert_eq!(out[20..22], [0, 2], "a reply");
        assert_eq!(out[22..28], OWNER);
        assert_eq!(out[28..32], [10, 0, 0, 2]);
        assert_eq!(length, 42);
        assert_eq!(parse(&out[..length]), None, "an answer is no question");
    }

    #[test]
    fn announcements_and_probes_are_not_answered() {
        assert_eq!(parse(&arp_request([10, 0, 0, 1], [10, 0, 0, 1])), None);
        assert_eq!(parse(&arp_request([0, 0, 0, 0], [10, 0, 0, 1])), None);
        assert_eq!(parse(&solicitation("::", "fd00::2")), None);
    }

    #[test]
    fn a_solicitation_is_answered() {
        let question = parse(&solicitation("fd00::1", "fd00::2")).unwrap();
        let mut out = [0; 128];
        let length = answer(&question, OWNER, &mut out);
        let ip = &out[ETHERNET_HEADER..length];
        assert_eq!(pseudo_header(&ip[8..40], PROTOCOL_ICMPV6, 32).bytes(&ip[40..]).folded(), 0xffff);
        assert_eq!(ip[66..72], OWNER);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_ignored(bytes in prop::collection::vec(any::<u8>(), 0..100), kind in 0..3u8) {
            let mut bytes = bytes;
            if bytes.len() > 14 {
                let ethertype = [[8u8, 6], [0x86, 0xdd], [8, 0]][usize::from(kind)];
                bytes[12..14].copy_from_slice(&ethertype);
            }
            if let Some(question) = parse(&bytes) {
                prop_assert!(answer(&question, OWNER, &mut [0; 128]) > 0);
            }
        }
    }
}
