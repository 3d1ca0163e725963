//! Makes a TAP device with offloads (Documentation/networking/tuntap.rst, linux/if_tun.h).
//!
//! Called by whoever builds a network, in a thread that is in the network's namespace; the device becomes a port of the
//! network's bridge there. It stays when its queues are closed, so that a restart of the process does not disturb the bridge.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::config::Offload;
use crate::virtio::VIRTIO_HEADER;

const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the TAP device {name:?}")]
pub struct TapError {
    /// What was tried.
    pub action: &'static str,
    /// The interface.
    pub name: String,
    /// What the kernel says.
    #[source]
    pub source: io::Error,
}

/// An open TAP.
#[derive(Debug)]
pub struct Tap {
    /// One descriptor per queue; they do not block.
    pub queues: Vec<OwnedFd>,
    /// What the kernel granted: `tap_tso` and `tap_uso`.
    pub offload: Offload,
}

/// Opens, and makes where it does not exist, the TAP `name` in the namespace of the calling thread, with so many queues. It is
/// down and without addresses at first.
///
/// # Errors
/// [`TapError`] when the name is no interface name, or is taken by another kind, or the kernel refuses. Offloads that the
/// kernel does not have are no error.
pub fn open(name: &str, queues: usize, offload: Offload) -> Result<Tap, TapError> {
    let fail = |action| move |source| TapError { action, name: name.to_owned(), source };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '%', '\0']) {
        return Err(fail("name")(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let mut opened = Vec::with_capacity(queues.max(1));
    let mut granted = offload;
    for _ in 0..queues.max(1) {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(fail("open /dev/net/tun for"))?;
        let queue = OwnedFd::from(file);
        attach(&queue, name).map_err(fail("open"))?;
        set(&queue, libc::TUNSETVNETHDRSZ, &(VIRTIO_HEADER as libc::c_int)).map_err(fail("set the header of"))?;
        granted = offer(&queue, granted).map_err(fail("set the offloads of"))?;
        set_value(&queue, libc::TUNSETPERSIST, 1).map_err(fail("keep"))?;
        opened.push(queue);
    }
    Ok(Tap { queues: opened, offload: granted })
}

/// Removes the TAP `name` in the namespace of the calling thread. All its queues must be closed, or it goes with the last one.
///
/// # Errors
/// As [`open`].
pub fn remove(name: &str) -> Result<(), TapError> {
    let tap = open(name, 1, Offload { tap_tso: false, tap_uso: false, ..Offload::default() })?;
    let fail = |source| TapError { action: "remove", name: name.to_owned(), source };
    tap.queues.iter().try_for_each(|queue| set_value(queue, libc::TUNSETPERSIST, 0)).map_err(fail)
}

fn attach(queue: &OwnedFd, name: &str) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    set(queue, libc::TUNSETIFF, &request)
}

/// Turns on as much of the wanted offloads as the kernel has.
fn offer(queue: &OwnedFd, wanted: Offload) -> io::Result<Offload> {
    let uso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6;
    let tso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    if wanted.tap_tso && wanted.tap_uso && set_value(queue, libc::TUNSETOFFLOAD, uso).is_ok() {
        return Ok(wanted);
    }
    if wanted.tap_tso && set_value(queue, libc::TUNSETOFFLOAD, tso).is_ok() {
        return Ok(Offload { tap_uso: false, ..wanted });
    }
    set_value(queue, libc::TUNSETOFFLOAD, TUN_F_CSUM)?;
    Ok(Offload { tap_tso: false, tap_uso: false, ..wanted })
}

fn set<T>(queue: &OwnedFd, request: libc::Ioctl, value: &T) -> io::Result<()> {
    // SAFETY: `value` is what this request reads (an ifreq or an int), and lives during the call.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), request, std::ptr::from_ref(value)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_value(queue: &OwnedFd, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these requests take a number.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), request, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
