//! Switches of a device's offloads (ethtool(8) -K, include/uapi/linux/ethtool.h), by the old one-value ioctls, which
//! every kernel has.
//!
//! Only for repair: checksums and segmentation are worth a quarter of the throughput, and are on from the start.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use crate::error::NetlinkError;
use crate::link::checked_name;

/// What a device does in the kernel's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// Checksums of what is sent. Without it there is no segmentation either.
    TransmitChecksum,
    /// Checksums of what is received.
    ReceiveChecksum,
    /// TCP segmentation.
    TcpSegmentation,
    /// Segmentation late in the kernel.
    GenericSegmentation,
    /// Segments are joined on reception.
    GenericReceive,
}

impl Offload {
    /// `ETHTOOL_G…` and `ETHTOOL_S…`.
    fn commands(self) -> (u32, u32) {
        match self {
            Self::ReceiveChecksum => (0x14, 0x15),
            Self::TransmitChecksum => (0x16, 0x17),
            Self::TcpSegmentation => (0x1e, 0x1f),
            Self::GenericSegmentation => (0x23, 0x24),
            Self::GenericReceive => (0x2b, 0x2c),
        }
    }
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

pub(crate) fn set_here(device: &str, offload: Offload, on: bool) -> Result<(), NetlinkError> {
    let action = format!("switch {offload:?} of {device} {}", if on { "on" } else { "off" });
    ioctl(device, offload.commands().1, u32::from(on), action).map(drop)
}

pub(crate) fn get_here(device: &str, offload: Offload) -> Result<bool, NetlinkError> {
    ioctl(device, offload.commands().0, 0, format!("read {offload:?} of {device}")).map(|value| value != 0)
}

fn ioctl(device: &str, command: u32, data: u32, action: String) -> Result<u32, NetlinkError> {
    let name = checked_name(device, &action)?;
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(NetlinkError::io(action.clone()))?;
    let mut value = Value { command, data };
    // SAFETY: ifreq is plain data, for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *slot = libc::c_char::from_ne_bytes([*byte]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads one ifreq and reads and writes the ethtool_value it points to, which both live on.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    Errno::result(done).map_err(NetlinkError::errno_of(action))?;
    Ok(value.data)
}
