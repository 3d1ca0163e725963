//! What registers, keys and elements hold: addresses, protocols, ports, numbers, and several of them in a row.

use std::net::IpAddr;

use crate::types::MacAddress;

/// Longest value (`NFT_DATA_VALUE_MAXLEN`).
const MAX: usize = 64;

/// What a part of a key or of a map's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// An IPv4 address.
    Ip4,
    /// An IPv6 address.
    Ip6,
    /// An Ethernet address.
    Mac,
    /// An IP protocol.
    Protocol,
    /// A port.
    Port,
    /// A number in the machine's order: of a backend.
    Number,
    /// A mark.
    Mark,
    /// The name of a device.
    Device,
}

impl Field {
    /// nft(8)'s number of the type. The kernel only keeps it, so that `nft list` can name it.
    pub(crate) fn type_number(self) -> u32 {
        match self {
            Self::Number => 4,
            Self::Ip4 => 7,
            Self::Ip6 => 8,
            Self::Mac => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::Device => 41,
        }
    }

    /// Bytes.
    pub(crate) fn length(self) -> usize {
        match self {
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Ip4 | Self::Number | Self::Mark => 4,
            Self::Mac => 6,
            Self::Ip6 | Self::Device => 16,
        }
    }

    /// Registers of four bytes.
    pub(crate) fn registers(self) -> u32 {
        match self {
            Self::Ip6 | Self::Device => 4,
            Self::Mac => 2,
            _ => 1,
        }
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Its number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A value, or several in a row, as registers hold them: each begins at a multiple of four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    bytes: [u8; MAX],
    length: usize,
}

impl Value {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { bytes: [0; MAX], length: 0 }
    }

    /// Appends an address.
    pub fn ip(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.push(&address.octets()),
            IpAddr::V6(address) => self.push(&address.octets()),
        }
    }

    /// Appends an Ethernet address.
    pub fn mac(self, address: MacAddress) -> Self {
        self.push(&address.0)
    }

    /// Appends a protocol.
    pub fn protocol(self, protocol: Transport) -> Self {
        self.push(&[protocol.number()])
    }

    /// Appends a port.
    pub fn port(self, port: u16) -> Self {
        self.push(&port.to_be_bytes())
    }

    /// Appends a number, mark or set of bits in the machine's order.
    pub fn number(self, number: u32) -> Self {
        self.push(&number.to_ne_bytes())
    }

    /// Appends a byte.
    pub fn byte(self, byte: u8) -> Self {
        self.push(&[byte])
    }

    /// Appends the type of a device (`ARPHRD_*`).
    pub fn type_of_device(self, number: u16) -> Self {
        self.push(&number.to_ne_bytes())
    }

    /// Appends the name of a device, in the 16 bytes that the kernel compares.
    pub fn device(self, name: &str) -> Self {
        let mut bytes = [0; 16];
        // The last one stays zero, whatever the name.
        for (slot, byte) in bytes[..15].iter_mut().zip(name.bytes()) {
            *slot = byte;
        }
        self.push(&bytes)
    }

    /// Appends what the names of devices begin with.
    pub fn device_prefix(self, prefix: &str) -> Self {
        self.push(prefix.as_bytes())
    }

    /// What a single value is on the wire, or several: only between values there is padding, and behind the last of
    /// several.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Appends bytes, at a register's beginning. What does not fit the kernel's longest value is left away: the kernel
    /// then refuses the length.
    fn push(mut self, value: &[u8]) -> Self {
        let padded = self.length.next_multiple_of(4);
        if let Some(room) = self.bytes.get_mut(padded..padded + value.len()) {
            room.copy_from_slice(value);
            // A row of values ends at a register's end.
            self.length = padded + if self.length == 0 { value.len() } else { value.len().next_multiple_of(4) };
        }
        self
    }
}

impl Default for Value {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_are_aligned_as_registers_are() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let value = Value::new().ip(address).protocol(Transport::Tcp).port(80);
        assert_eq!(value.bytes(), [10, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0]);
        assert_eq!(Value::new().port(80).bytes(), [0, 80]);
        assert_eq!(Value::new().protocol(Transport::Udp).port(53).bytes(), [17, 0, 0, 0, 0, 53, 0, 0]);
        assert_eq!(Value::new().device("eth0").bytes(), *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0");
        let six: IpAddr = "fd00::1".parse().unwrap();
        let long = (0..4).fold(Value::new(), |value, _| value.ip(six));
        assert_eq!((long.bytes().len(), long.port(1).bytes().len()), (64, 64));
    }
}
