//! Network namespaces: makes them, keeps them at a path, and works inside of them.
//!
//! Used by whoever sets networks up. Safe in a multi-threaded process: whatever happens inside a namespace happens on
//! a thread of its own that ends with it, so that no other thread ever changes its network. Such a call blocks for as
//! long as its closure; entering costs some 50 µs. Sockets that were opened inside stay there and can be used from
//! any thread: open them once, in the visit that makes the namespace, and keep them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::conntrack::Conntrack;
use crate::error::NetlinkError;
use crate::link::LinkChange;
use crate::nft::Nft;
use crate::offload::{self, Offload};
use crate::rtnetlink::{Changes, Rtnetlink};
use crate::sysctl::Sysctl;
use crate::tcp::TcpSockets;
use crate::users;
use crate::wireguard::Wireguard;

/// `f_type` of a namespace file (statfs(2), linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// The namespace of the calling thread.
const HERE: &str = "/proc/thread-self/ns/net";
/// Stack of a visiting thread: closures send and receive, no more.
const STACK: usize = 512 << 10;

/// A network namespace, held by a descriptor.
#[derive(Debug)]
pub struct Namespace {
    file: OwnedFd,
    /// Sysctls may be written although it is the process's own.
    host: bool,
}

impl Namespace {
    /// Makes a namespace with the loopback up, runs `setup` inside, and then keeps it at `path`, where an empty file
    /// may lie already. When anything fails, nothing is left of the namespace. Where a user namespace is kept beside it
    /// ([`users::USERS`](crate::users::USERS)), it belongs to that one.
    ///
    /// # Errors
    /// Also when there is a namespace at `path` already. `setup`'s own errors are returned as they are.
    pub fn create<T, E>(path: &Path, setup: impl FnOnce(&Inside) -> Result<T, E> + Send) -> Result<(Self, T), E>
    where
        T: Send,
        E: From<NetlinkError> + Send,
    {
        let shown = path.display();
        if Self::is_at(path) {
            let problem = "there is one already".to_owned();
            return Err(
                NetlinkError::Invalid { action: format!("make a network namespace at {shown}"), problem }.into()
            );
        }
        // Not truncated: what has something in it is no leftover of ours.
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        let length =
            file.and_then(|file| file.metadata()).map_err(NetlinkError::io(format!("make the file {shown}")))?.len();
        if length > 0 {
            let problem = "there is a file with something in it".to_owned();
            return Err(
                NetlinkError::Invalid { action: format!("make a network namespace at {shown}"), problem }.into()
            );
        }
        let made = on_a_thread(|| {
            let owner = path.with_file_name(users::USERS);
            let inside = Inside::begin(Self::is_at(&owner).then_some(owner.as_path()))?;
            let value = setup(&inside)?;
            mount(Some(HERE), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(NetlinkError::errno_of(format!("bind a network namespace to {shown}")))?;
            Ok((inside.namespace, value))
        });
        if made.is_err() {
            let _ = fs::remove_file(path);
        }
        made
    }

    /// Makes a namespace like [`Namespace::create`] that has no path: it ends with its last descriptor and process.
    pub fn anonymous<T, E>(setup: impl FnOnce(&Inside) -> Result<T, E> + Send) -> Result<(Self, T), E>
    where
        T: Send,
        E: From<NetlinkError> + Send,
    {
        on_a_thread(|| {
            let inside = Inside::begin(None)?;
            let value = setup(&inside)?;
            Ok((inside.namespace, value))
        })
    }

    /// Whether a namespace is kept at `path`, of whatever kind.
    pub fn is_at(path: &Path) -> bool {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
        // SAFETY: statfs is plain data, for which all zeroes is valid.
        let mut info: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid for the call.
        let found = unsafe { libc::statfs(path.as_ptr(), &raw mut info) };
        // The field's type differs between architectures.
        #[allow(clippy::unnecessary_cast)]
        let kind = info.f_type as i64;
        found == 0 && kind == NSFS_MAGIC
    }

    /// Opens the namespace that is kept at `path`.
    pub fn open(path: &Path) -> Result<Self, NetlinkError> {
        let action = || format!("open the network namespace {}", path.display());
        let file = File::open(path).map_err(NetlinkError::io(action()))?;
        if !Self::is_at(path) {
            let problem = "it is no namespace".to_owned();
            return Err(NetlinkError::Invalid { action: action(), problem });
        }
        Ok(Self { file: file.into(), host: false })
    }

    /// Takes a descriptor of a namespace, as it comes from another process.
    pub fn from_fd(file: OwnedFd) -> Self {
        Self { file, host: false }
    }

    /// The namespace of this process: the host's. Only through this handle may the host's sysctls be written.
    pub fn host() -> Result<Self, NetlinkError> {
        let file = File::open("/proc/self/ns/net").map_err(NetlinkError::io("open the host's network namespace"))?;
        Ok(Self { file: file.into(), host: true })
    }

    /// Another handle on the same namespace.
    pub fn try_clone(&self) -> Result<Self, NetlinkError> {
        let file =
            self.file.try_clone().map_err(NetlinkError::io("duplicate the descriptor of a network namespace"))?;
        Ok(Self { file, host: self.host })
    }

    /// What tells it from all other namespaces that exist: device and inode.
    pub fn identity(&self) -> Result<(u64, u64), NetlinkError> {
        let file = self.try_clone()?.file;
        let meta = File::from(file).metadata().map_err(NetlinkError::io("look at a network namespace"))?;
        Ok((meta.dev(), meta.ino()))
    }

    /// Runs `visit` inside, on a thread of its own, and returns what it returns. Panics where it panics.
    pub fn enter<T, E>(&self, visit: impl FnOnce(&Inside) -> Result<T, E> + Send) -> Result<T, E>
    where
        T: Send,
        E: From<NetlinkError> + Send,
    {
        let namespace = self.try_clone()?;
        on_a_thread(|| {
            setns(&namespace.file, CloneFlags::CLONE_NEWNET)
                .map_err(NetlinkError::errno_of("enter a network namespace"))?;
            visit(&Inside { namespace, here: PhantomData })
        })
    }

    /// Removes what keeps a namespace at `path`. It ends with its last descriptor and process. Idempotent.
    pub fn remove(path: &Path) -> Result<(), NetlinkError> {
        loop {
            match umount2(path, MntFlags::MNT_DETACH) {
                // More than one mount can lie on it after a crash between two steps.
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(NetlinkError::errno_of(format!("unmount {}", path.display()))(errno)),
            }
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetlinkError::io(format!("remove {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Proof that this thread is inside a namespace, and what can be done there. Cannot leave its thread.
#[derive(Debug)]
pub struct Inside {
    namespace: Namespace,
    here: PhantomData<*const ()>,
}

impl Inside {
    /// Moves this thread into a new namespace with the loopback up, which belongs to the user namespace at `owner`.
    fn begin(owner: Option<&Path>) -> Result<Self, NetlinkError> {
        match owner {
            Some(owner) => setns(users::network_of(owner)?, CloneFlags::CLONE_NEWNET)
                .map_err(NetlinkError::errno_of("enter a network namespace"))?,
            None => unshare(CloneFlags::CLONE_NEWNET).map_err(NetlinkError::errno_of("make a network namespace"))?,
        }
        let file = File::open(HERE).map_err(NetlinkError::io("open a new network namespace"))?;
        let inside = Self { namespace: Namespace { file: file.into(), host: false }, here: PhantomData };
        let mut changes = Changes::new();
        // The first device of any namespace is `lo`, number 1.
        changes.change_link(1, &LinkChange { up: Some(true), ..LinkChange::default() });
        inside.rtnetlink()?.apply(&changes)?;
        Ok(inside)
    }

    /// The namespace, for moving devices into it.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Opens rtnetlink: links, addresses, routes, neighbours.
    pub fn rtnetlink(&self) -> Result<Rtnetlink, NetlinkError> {
        Rtnetlink::open_here()
    }

    /// Opens nftables.
    pub fn nft(&self) -> Result<Nft, NetlinkError> {
        Nft::open_here()
    }

    /// Opens connection tracking.
    pub fn conntrack(&self) -> Result<Conntrack, NetlinkError> {
        Conntrack::open_here()
    }

    /// Opens the queues of listening sockets.
    pub fn tcp_sockets(&self) -> Result<TcpSockets, NetlinkError> {
        TcpSockets::open_here()
    }

    /// Opens the configuration of kernel WireGuard devices.
    pub fn wireguard(&self) -> Result<Wireguard, NetlinkError> {
        Wireguard::open_here()
    }

    /// Binds a UDP socket. It blocks, as std's do.
    pub fn udp(&self, address: SocketAddr) -> Result<UdpSocket, NetlinkError> {
        UdpSocket::bind(address).map_err(NetlinkError::io(format!("bind UDP {address}")))
    }

    /// Listens for TCP connections. It blocks, as std's do.
    pub fn tcp(&self, address: SocketAddr) -> Result<TcpListener, NetlinkError> {
        TcpListener::bind(address).map_err(NetlinkError::io(format!("listen on TCP {address}")))
    }

    /// Reads a sysctl.
    pub fn sysctl(&self, sysctl: &Sysctl) -> Result<String, NetlinkError> {
        let text = fs::read_to_string(sysctl.path()?).map_err(NetlinkError::io(format!("read sysctl {sysctl}")))?;
        Ok(text.trim_end().to_owned())
    }

    /// Writes sysctls.
    ///
    /// # Errors
    /// Refuses the namespace of this process, unless it was opened by [`Namespace::host`]: a handle that was mixed up
    /// must not change the host.
    pub fn write_sysctls(&self, sysctls: &[(Sysctl, &str)]) -> Result<(), NetlinkError> {
        if !self.namespace.host && self.namespace.identity()? == Namespace::host()?.identity()? {
            let problem = "this is the host's network namespace".to_owned();
            return Err(NetlinkError::Invalid { action: "write sysctls".to_owned(), problem });
        }
        for (sysctl, value) in sysctls {
            // Not as `fs::write` does it: to look up what may have to be made costs more, the more namespaces there are.
            let write = |path: &Path| fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes());
            write(&sysctl.path()?).map_err(NetlinkError::io(format!("write {value:?} to sysctl {sysctl}")))?;
        }
        Ok(())
    }

    /// Switches an offload of a device.
    pub fn set_offload(&self, device: &str, offload: Offload, on: bool) -> Result<(), NetlinkError> {
        offload::set_here(device, offload, on)
    }

    /// Whether an offload of a device is on.
    pub fn offload(&self, device: &str, offload: Offload) -> Result<bool, NetlinkError> {
        offload::get_here(device, offload)
    }
}

/// Runs `work` on a thread of its own, and panics where it panics.
fn on_a_thread<T: Send, E: From<NetlinkError> + Send>(work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("skep-netns".to_owned()).stack_size(STACK);
        match thread.spawn_scoped(scope, work) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => Err(NetlinkError::io("start a thread for a network namespace")(error).into()),
        }
    })
}
