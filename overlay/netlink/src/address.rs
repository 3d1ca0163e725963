//! Addresses of devices (`ip address`).

use std::net::IpAddr;

use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Malformed, Message, Writer};
use crate::rtnetlink::{Changes, Rtnetlink};
use crate::types::Prefix;

/// An address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The device's number.
    pub device: u32,
    /// The address and the network that it is in. The kernel makes the route to that.
    pub prefix: Prefix,
    /// Cannot be used yet, or never (IPv6: detection of duplicates goes on, or found one). Only read.
    pub tentative: bool,
}

impl Address {
    /// Of a device.
    pub fn new(device: u32, prefix: Prefix) -> Self {
        Self { device, prefix, tentative: false }
    }
}

impl Changes {
    /// Adds an address. Addresses are unique by allocation, so IPv6 does not look for duplicates; still packets to an
    /// IPv6 address are taken only when the device is connected, which the kernel finds out a moment after both ends
    /// of a pair are up, under load some hundred milliseconds: then there is a route of
    /// [`crate::route::Target::Local`] to it. Refused where the address is there already.
    pub fn add_address(&mut self, device: u32, prefix: Prefix) {
        let action = format!("add address {prefix} to device number {device}");
        self.push(action, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, |message| write(message, device, prefix));
    }

    /// Deletes an address.
    pub fn delete_address(&mut self, device: u32, prefix: Prefix) {
        let action = format!("delete address {prefix} of device number {device}");
        self.push(action, RTM_DELADDR, 0, |message| write(message, device, prefix));
    }
}

fn write(message: &mut Writer<'_>, device: u32, prefix: Prefix) {
    message.raw(&header(prefix.family(), prefix.length, device));
    message.ip(IFA_LOCAL, prefix.address);
    message.ip(IFA_ADDRESS, prefix.address);
    match (prefix.address, prefix.mask()) {
        (IpAddr::V4(address), IpAddr::V4(mask)) if prefix.length < 31 => {
            message.bytes(IFA_BROADCAST, &(address | !mask).octets());
        }
        (IpAddr::V6(_), _) => message.u32(IFA_FLAGS, IFA_F_NODAD),
        _ => {}
    }
}

/// `struct ifaddrmsg`.
fn header(family: u8, length: u8, device: u32) -> [u8; 8] {
    let [a, b, c, d] = device.to_ne_bytes();
    [family, length, 0, RT_SCOPE_UNIVERSE, a, b, c, d]
}

impl Rtnetlink {
    /// All addresses of both families.
    pub fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        self.dump("list addresses", RTM_GETADDR, |message| message.raw(&header(AF_UNSPEC, 0, 0)), parse)
    }
}

/// Reads an `RTM_NEWADDR`; `None` for any other message.
pub(crate) fn parse(message: Message<'_>) -> Result<Option<Address>, Malformed> {
    if message.kind != RTM_NEWADDR {
        return Ok(None);
    }
    let (fixed, attributes) = message.split(8)?;
    let &[_, length, flags, _, a, b, c, d] = fixed else { return Err(Malformed("an address is too short")) };
    let (mut local, mut address, mut flags) = (None, None, u32::from(flags));
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            // Of a point-to-point device this is the other end; `local` is then there too.
            IFA_ADDRESS => address = Some(attribute.ip()?),
            IFA_LOCAL => local = Some(attribute.ip()?),
            IFA_FLAGS => flags = attribute.u32()?,
            _ => {}
        }
    }
    let address = local.or(address).ok_or(Malformed("an address lacks the address"))?;
    let prefix = Prefix::new(address, length).ok_or(Malformed("a prefix is too long"))?;
    let tentative = flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) != 0;
    Ok(Some(Address { device: u32::from_ne_bytes([a, b, c, d]), prefix, tentative }))
}
