//! Netlink messages as bytes: writes headers and nested attributes, and reads them back (netlink(7)).
//!
//! Used by every module of this crate. Pure: no socket, no clock. What it reads comes from the kernel, but is trusted
//! no more than a stranger's bytes: whatever does not fit is [`Malformed`], never a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::MacAddress;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_F_NESTED`: the attribute holds attributes.
const NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that are its number (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

/// Bytes that are no netlink message, or not the one that they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Messages to be sent together. Numbers them from 1 on, so that answers can be told apart; can be sent any number of
/// times, through any socket of its protocol.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    starts: Vec<usize>,
    oversized: Option<usize>,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a message. `fill` writes what follows the header. `flags` are `NLM_F_*` besides `NLM_F_REQUEST`.
    pub fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer<'_>)) {
        let start = self.bytes.len();
        self.starts.push(start);
        let sequence = u32::try_from(self.starts.len()).unwrap_or(u32::MAX);
        header(&mut self.bytes, kind, flags, sequence);
        let mut writer = Writer { bytes: &mut self.bytes, oversized: false };
        fill(&mut writer);
        if writer.oversized {
            self.oversized.get_or_insert(self.starts.len() - 1);
        }
        close(&mut self.bytes, start);
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// All messages, one after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Index of the first message with an attribute of more than 65,535 bytes, which netlink cannot carry.
    pub(crate) fn oversized(&self) -> Option<usize> {
        self.oversized
    }

    /// Where message `index` begins, or where the last one ends.
    pub(crate) fn start(&self, index: usize) -> usize {
        self.starts.get(index).copied().unwrap_or(self.bytes.len())
    }
}

/// Appends a message header whose length is not known yet.
pub(crate) fn header(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32) {
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
}

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;

/// Writes the length of the message that began at `start` and ends here.
pub(crate) fn close(bytes: &mut [u8], start: usize) {
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Sets flags of the message that begins at `start`.
pub(crate) fn add_flags(bytes: &mut [u8], start: usize, flags: u16) {
    if let Some([low, high]) = bytes.get_mut(start + 6..start + 8) {
        let both = (u16::from_ne_bytes([*low, *high]) | flags).to_ne_bytes();
        (*low, *high) = (both[0], both[1]);
    }
}

/// Writes the payload of one message.
#[derive(Debug)]
pub struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    oversized: bool,
}

impl Writer<'_> {
    /// Plain bytes, padded to four: the fixed header of a family.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// An attribute of bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len() + ATTRIBUTE_HEADER) else {
            self.oversized = true;
            return;
        };
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// An attribute that only has to be there.
    pub fn flag(&mut self, kind: u16) {
        self.bytes(kind, &[]);
    }

    /// A byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// 16 bits in the machine's order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// 32 bits in the machine's order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// 16 bits in network order.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// 32 bits in network order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// 64 bits in network order.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Text with a zero byte behind it.
    pub fn string(&mut self, kind: u16, value: &str) {
        let mut text = Vec::with_capacity(value.len() + 1);
        text.extend_from_slice(value.as_bytes());
        text.push(0);
        self.bytes(kind, &text);
    }

    /// 4 or 16 bytes of address.
    pub fn ip(&mut self, kind: u16, value: IpAddr) {
        match value {
            IpAddr::V4(address) => self.bytes(kind, &address.octets()),
            IpAddr::V6(address) => self.bytes(kind, &address.octets()),
        }
    }

    /// An attribute of attributes.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Writer<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
    }

    /// How many bytes the batch has so far, for those who must begin a new message in time.
    pub(crate) fn position(&self) -> usize {
        self.bytes.len()
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

/// One message that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// Number of the message that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first `length` bytes of the payload (the family's fixed header) and the attributes behind them.
    pub fn split(&self, length: usize) -> Result<(&'a [u8], Attributes<'a>), Malformed> {
        let (fixed, rest) = self.payload.split_at_checked(length).ok_or(Malformed("a message is too short"))?;
        let padding = (length.next_multiple_of(4) - length).min(rest.len());
        Ok((fixed, Attributes(&rest[padding..])))
    }
}

/// The messages in what one `recv` gave.
#[derive(Debug, Clone)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let Some((head, _)) = bytes.split_first_chunk::<HEADER>() else {
            return Some(Err(Malformed("a message header is cut off")));
        };
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *head;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let Some(payload) = bytes.get(HEADER..length) else {
            return Some(Err(Malformed("a message's length is wrong")));
        };
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        }))
    }
}

/// The attributes in a payload.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let Some((&[l0, l1, k0, k1], _)) = bytes.split_first_chunk::<ATTRIBUTE_HEADER>() else {
            return Some(Err(Malformed("an attribute header is cut off")));
        };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(payload) = bytes.get(ATTRIBUTE_HEADER..length) else {
            return Some(Err(Malformed("an attribute's length is wrong")));
        };
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Attribute { kind: u16::from_ne_bytes([k0, k1]) & TYPE_MASK, payload }))
    }
}

/// One attribute that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its number, without flags.
    pub kind: u16,
    /// Its value.
    pub payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    fn array<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.payload.try_into().map_err(|_| Malformed("an attribute has another length than its type"))
    }

    /// A byte.
    pub fn u8(&self) -> Result<u8, Malformed> {
        self.array().map(|[byte]: [u8; 1]| byte)
    }

    /// 16 bits in the machine's order.
    pub fn u16(&self) -> Result<u16, Malformed> {
        self.array().map(u16::from_ne_bytes)
    }

    /// 32 bits in the machine's order.
    pub fn u32(&self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    /// 64 bits in the machine's order.
    pub fn u64(&self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    /// 16 bits in network order.
    pub fn be16(&self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// 32 bits in network order.
    pub fn be32(&self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// Text up to the first zero byte or the end.
    pub fn string(&self) -> Result<String, Malformed> {
        let text = self.payload.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).map(str::to_owned).map_err(|_| Malformed("a name is not UTF-8"))
    }

    /// An address of 4 or 16 bytes.
    pub fn ip(&self) -> Result<IpAddr, Malformed> {
        if let Ok(octets) = self.array::<4>() {
            return Ok(Ipv4Addr::from(octets).into());
        }
        self.array::<16>().map(|octets| Ipv6Addr::from(octets).into())
    }

    /// An Ethernet address.
    pub fn mac(&self) -> Result<MacAddress, Malformed> {
        self.array().map(MacAddress)
    }

    /// The attributes within.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes(self.payload)
    }
}

#[cfg(test)]
#[path = "message_test.rs"]
mod tests;
