//! The encrypted way to other hosts: the one WireGuard device of this host and its peers, either the kernel's or skep's own.
//!
//! Driven by [`crate::netd`] and [`crate::network`], under the lock of a network or none; it locks itself only, and calls
//! nobody back. Which device it is, it decides when it starts one: the kernel's where there is one. Both speak the same on
//! the wire, VXLAN in WireGuard, so hosts with either are in one mesh. The kernel's lives on without this process; skep's
//! own lives in it: while it is away, encrypted networks stand still, and each network is connected again when it is made
//! right by the next one.

mod kernel;
mod userspace;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use skep_fabric::tap::{Tap, TapError};
use skep_fabric::{Change, DeviceError, Forward, Key, Mac, Offload, PeerConfig, PrivateKey};
use skep_netlink::{Inside, Namespace, NetlinkError, Rtnetlink};
use skep_proto::id::NodeId;
use skep_proto::v1;

use self::kernel::Kernel;
use self::userspace::Userspace;
use crate::network::OverlayPort;
use crate::plan::mesh::{TablePeers, fabric_address, number, peers};
use crate::sandbox::SandboxError;
use crate::table::Table;

/// UDP port of VXLAN inside the mesh.
pub const VXLAN_PORT: u16 = 4790;
/// What the kernel makes TAPs with.
const TUN: &str = "/dev/net/tun";
/// How often the kernel's device is looked at while a host changes its key, at most, and at least.
const LOOKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Why the mesh cannot be as it should.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The agent has not told something yet.
    #[error("encrypted networks wait for {0}, which this host's agent has not told yet")]
    Waits(&'static str),
    /// A key that is none.
    #[error("the {0} has {1} bytes instead of 32")]
    Key(&'static str, usize),
    /// An address that is none.
    #[error("{0:?} is no address and port for the mesh")]
    Address(String),
    /// A number that no host has.
    #[error("{0} is no number of a host in the mesh")]
    Number(u32),
    /// The device.
    #[error("the device of encrypted networks failed")]
    Device(#[from] DeviceError),
    /// The kernel's device.
    #[error("the kernel's device of encrypted networks failed")]
    Kernel(#[from] NetlinkError),
    /// The folder of its namespace.
    #[error(transparent)]
    Folder(#[from] SandboxError),
    /// A network's TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The MTU does not fit its type.
    #[error("{0} is no MTU of an encrypted network")]
    Mtu(u32),
    /// A network that was made for the other kind of device.
    #[error("the device of encrypted networks is another one now")]
    Other,
}

/// Which device it is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The kernel's where there is one.
    #[default]
    Auto,
    /// The kernel's, or none.
    Kernel,
    /// skep's own.
    Userspace,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kernel" => Ok(Self::Kernel),
            "userspace" => Ok(Self::Userspace),
            _ => Err("it is kernel, userspace or auto".to_owned()),
        }
    }
}

/// What the agent says of this host in the mesh.
#[derive(Clone, Default)]
struct Settings {
    own: Option<NodeId>,
    /// Newest first; none: no encrypted networks.
    keys: Vec<PrivateKey>,
    listen: Option<SocketAddr>,
}

/// Who this host is in the mesh: what a device is made of.
struct Identity {
    /// Newest first; at least one.
    keys: Vec<PrivateKey>,
    listen: SocketAddr,
    /// Inside the mesh.
    address: IpAddr,
}

impl Settings {
    fn read(own: Option<NodeId>, request: &v1::ConfigureRequest) -> Result<Self, MeshError> {
        let read = |bytes: &[u8], name| {
            let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| MeshError::Key(name, bytes.len()))?;
            Ok::<_, MeshError>(PrivateKey::from_bytes(bytes))
        };
        let mut keys = Vec::new();
        if !request.private_key.is_empty() {
            keys.push(read(&request.private_key, "private key")?);
            if !request.previous_private_key.is_empty() {
                keys.push(read(&request.previous_private_key, "previous private key")?);
            }
        }
        let listen = match request.wireguard_addr.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| MeshError::Address(text.to_owned()))?),
        };
        Ok(Self { own, keys, listen })
    }

    fn public(&self) -> Option<Key> {
        self.keys.first().map(PrivateKey::public)
    }
}

/// What [`Mesh::configure`] would answer.
pub(crate) fn public_key(request: &v1::ConfigureRequest) -> Result<Option<Key>, MeshError> {
    Settings::read(None, request).map(|settings| settings.public())
}

/// The device.
enum Running {
    Kernel(Kernel),
    Userspace(Box<Userspace>),
}

/// What a mesh is made with.
struct Origin {
    /// Folder of the kernel device's namespace.
    dir: PathBuf,
    choice: Choice,
    host: Namespace,
    rtnetlink: Rtnetlink,
}

struct Inner {
    origin: Origin,
    settings: Settings,
    /// This host's number, as the tables say.
    number: Option<u32>,
    running: Option<Running>,
    /// Counts devices, so that networks see that theirs is another one.
    generation: u64,
    networks: BTreeMap<u32, TablePeers>,
    installed: BTreeMap<IpAddr, (NodeId, PeerConfig)>,
    /// A thread looks at the kernel's device.
    watched: bool,
}

/// This host's part of the mesh.
pub struct Mesh(Arc<Mutex<Inner>>);

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Origin {
    fn start(&self, identity: &Identity) -> Result<Running, MeshError> {
        let there = || self.host.enter(|inside| inside.wireguard().map(drop)).is_ok();
        if self.choice == Choice::Kernel || (self.choice == Choice::Auto && there()) {
            match Kernel::start(&self.dir, &self.rtnetlink, identity) {
                Ok(kernel) => return Ok(Running::Kernel(kernel)),
                // It knows how to configure devices, and not how to make them.
                Err(MeshError::Kernel(error))
                    if self.choice == Choice::Auto && error.errno() == Some(Errno::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        // What an earlier netd may have left has our port.
        kernel::remove(&self.dir)?;
        Ok(Running::Userspace(Box::new(Userspace::start(identity)?)))
    }
}

impl Inner {
    /// Starts the device where it should run and does not.
    fn start(&mut self) -> Result<(), MeshError> {
        if self.running.is_none() {
            self.running = Some(self.origin.start(&self.identity()?)?);
            self.generation += 1;
            self.sync_peers()?;
        }
        Ok(())
    }

    fn identity(&self) -> Result<Identity, MeshError> {
        let Settings { keys, listen, .. } = &self.settings;
        if keys.is_empty() {
            return Err(MeshError::Waits("this host's key"));
        }
        let listen = listen.ok_or(MeshError::Waits("this host's address in the mesh"))?;
        let number = self.number.ok_or(MeshError::Waits("this host's number in the mesh"))?;
        let address = fabric_address(number).ok_or(MeshError::Number(number))?;
        Ok(Identity { keys: keys.clone(), listen, address })
    }

    /// Stops it; networks have to be attached again to the next one of skep's own.
    fn stop(&mut self) {
        if let Some(Running::Kernel(kernel)) = self.running.take()
            && let Err(error) = kernel.stop()
        {
            tracing::warn!("{}", crate::netd::text(&error));
        }
        self.installed.clear();
    }

    /// Looks whether the device is what it should be, and starts it where it is not.
    fn follow(&mut self) -> Result<(), MeshError> {
        if let Some(own) = self.settings.own
            && let Some(number) = number(own, self.networks.values())
        {
            self.number = Some(number);
        }
        let identity = match self.identity() {
            Ok(identity) => identity,
            Err(error) => {
                self.stop();
                return if matches!(error, MeshError::Waits(_)) { Ok(()) } else { Err(error) };
            }
        };
        if matches!(&self.running, Some(Running::Userspace(device)) if device.is_outdated(&identity)) {
            self.stop();
        }
        self.start()?;
        match &mut self.running {
            Some(Running::Userspace(device)) => device.rotate(&identity.keys)?,
            Some(Running::Kernel(device)) => {
                let moved = device.address() != identity.address;
                device.follow(&identity)?;
                self.generation += u64::from(moved);
            }
            None => {}
        }
        self.sync_peers()
    }

    /// Tells the device of peers that came, changed or went.
    fn sync_peers(&mut self) -> Result<(), MeshError> {
        let (Some(running), Some(own)) = (&mut self.running, self.settings.own) else { return Ok(()) };
        let wanted = peers(own, self.networks.values());
        let configs = wanted.values().map(|(_, config)| config);
        match running {
            Running::Userspace(device) => device.sync(configs)?,
            Running::Kernel(device) => device.sync(configs)?,
        }
        self.installed = wanted;
        Ok(())
    }

    fn userspace(&mut self) -> Option<&mut Userspace> {
        match &mut self.running {
            Some(Running::Userspace(device)) => Some(device),
            _ => None,
        }
    }

    fn is_unsettled(&self) -> Option<bool> {
        match &self.running {
            Some(Running::Kernel(device)) => device.is_unsettled(),
            _ => None,
        }
    }
}

/// Looks at the kernel's device for as long as it can change without a table: some thousandths of a processor.
fn watch(inner: &Weak<Mutex<Inner>>) {
    let (mut wait, most) = LOOKS;
    loop {
        std::thread::sleep(wait);
        let Some(inner) = inner.upgrade() else { return };
        let mut inner = lock(&inner);
        let Some(soon) = inner.is_unsettled() else {
            inner.watched = false;
            return;
        };
        let begun = Instant::now();
        if let Err(error) = inner.sync_peers() {
            tracing::warn!("{}", crate::netd::text(&error));
        }
        wait = if soon { (begun.elapsed() * 100).clamp(LOOKS.0, most) } else { most };
    }
}

impl Mesh {
    /// The mesh of this process's namespace. `dir`: the folder for what the kernel's device needs. Nothing is made yet.
    ///
    /// # Errors
    /// [`NetlinkError`], where there is no netlink.
    pub fn open(dir: &Path, choice: Choice) -> Result<Self, NetlinkError> {
        let host = Namespace::host()?;
        let rtnetlink = host.enter(Inside::rtnetlink)?;
        let origin = Origin { dir: dir.to_owned(), choice, host, rtnetlink };
        Ok(Self(Arc::new(Mutex::new(Inner {
            origin,
            settings: Settings::default(),
            number: None,
            running: None,
            generation: 0,
            networks: BTreeMap::new(),
            installed: BTreeMap::new(),
            watched: false,
        }))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// Has the kernel's device looked at where it needs that.
    fn watch(&self, inner: &mut Inner) {
        if inner.watched || inner.is_unsettled().is_none() {
            return;
        }
        let weak = Arc::downgrade(&self.0);
        let thread = std::thread::Builder::new().name("skep-mesh".to_owned()).spawn(move || watch(&weak));
        // Without the thread the next table does it.
        inner.watched = thread.is_ok();
    }

    /// Takes who this host is, and makes the device follow. Returns the public key; `None` without one. A device that
    /// cannot be started is no error here: it is tried again with each network that needs it.
    ///
    /// # Errors
    /// [`MeshError`] where the request makes no sense; nothing changed then.
    pub fn configure(&self, own: Option<NodeId>, request: &v1::ConfigureRequest) -> Result<Option<Key>, MeshError> {
        let settings = Settings::read(own, request)?;
        let public = settings.public();
        let mut inner = self.lock();
        if inner.settings.own != settings.own {
            inner.number = None;
        }
        inner.settings = settings;
        if let Err(error) = inner.follow() {
            tracing::warn!("{}", crate::netd::text(&error));
        }
        self.watch(&mut inner);
        Ok(public)
    }

    /// The number of its device among those of this process: with another one, networks are to be looked at again.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Makes sure that the device runs. Returns the way of a network to other hosts.
    ///
    /// # Errors
    /// [`MeshError::Waits`], or what the device fails with.
    pub fn port(&self, vni: u32) -> Result<OverlayPort, MeshError> {
        let mut inner = self.lock();
        inner.start()?;
        self.watch(&mut inner);
        match &inner.running {
            Some(Running::Kernel(device)) => Ok(OverlayPort::Sealed { vni, local: device.address() }),
            _ => Ok(OverlayPort::Fabric { vni, device: inner.generation }),
        }
    }

    /// Ends the device, and removes all that there is of it.
    ///
    /// # Errors
    /// [`MeshError`], where the kernel refuses it.
    pub fn stop(&self) -> Result<(), MeshError> {
        let mut inner = self.lock();
        inner.stop();
        inner.networks.clear();
        kernel::remove(&inner.origin.dir)
    }

    /// Whether a network is attached to skep's own device.
    pub fn is_attached(&self, vni: u32) -> bool {
        self.lock().userspace().is_some_and(|device| device.is_attached(vni))
    }

    /// Attaches a network to skep's own device by a TAP, which `open` makes or finds: with so many queues and these
    /// offloads.
    ///
    /// # Errors
    /// [`MeshError`], or what `open` fails with.
    pub fn attach<E: From<MeshError>>(
        &self,
        vni: u32,
        mtu: u32,
        open: impl FnOnce(usize, Offload) -> Result<Tap, E>,
    ) -> Result<(), E> {
        let mut inner = self.lock();
        inner.start()?;
        inner.userspace().ok_or(MeshError::Other)?.attach(vni, mtu, open)
    }

    /// Calls `make` with a handle on the namespace where VXLAN devices of networks with such packets find the kernel's
    /// device.
    ///
    /// # Errors
    /// [`MeshError`], or what `make` fails with.
    pub fn carry<E: From<MeshError>>(&self, mtu: u32, make: impl FnOnce(&Rtnetlink) -> Result<(), E>) -> Result<(), E> {
        let mut inner = self.lock();
        inner.start()?;
        match &inner.running {
            Some(Running::Kernel(device)) => make(device.carry(mtu)?),
            _ => Err(MeshError::Other.into()),
        }
    }

    /// Detaches a network's TAP. Idempotent.
    pub fn detach(&self, vni: u32) {
        if let Some(device) = self.lock().userspace() {
            device.detach(vni);
        }
    }

    /// Forgets a network, and the peers that only it had.
    ///
    /// # Errors
    /// [`MeshError::Device`], [`MeshError::Kernel`].
    pub fn leave(&self, vni: u32) -> Result<(), MeshError> {
        self.detach(vni);
        let mut inner = self.lock();
        match inner.networks.remove(&vni) {
            Some(_) => inner.sync_peers(),
            None => Ok(()),
        }
    }

    /// Follows the peers of a network's table. Where this host's own row has another number, another device runs then, or
    /// the device has another address, and all networks have to be looked at again.
    ///
    /// # Errors
    /// [`MeshError::Device`], [`MeshError::Kernel`], [`MeshError::Number`].
    pub fn follow_peers(&self, vni: u32, table: &Table) -> Result<(), MeshError> {
        let mut inner = self.lock();
        inner.networks.insert(vni, TablePeers::of(table));
        let followed = inner.follow();
        self.watch(&mut inner);
        followed
    }

    /// Changes a network's entries in skep's own device.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    pub fn forward(&self, vni: u32, change: Change<Forward, Mac>) -> Result<(), MeshError> {
        match self.lock().userspace() {
            Some(device) => device.forward(vni, change),
            None => Ok(()),
        }
    }

    /// Makes a network's entries in skep's own device these.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    pub fn sync_forwards(&self, vni: u32, wanted: Vec<Forward>) -> Result<(), MeshError> {
        match self.lock().userspace() {
            Some(device) => device.sync_forwards(vni, wanted),
            None => Ok(()),
        }
    }

    /// How it is.
    ///
    /// # Errors
    /// [`MeshError::Kernel`].
    pub fn status(&self) -> Result<v1::MeshResponse, MeshError> {
        let inner = self.lock();
        let (device, peers) = match &inner.running {
            None => ("none", Vec::new()),
            Some(Running::Kernel(device)) => ("kernel", device.status(&inner.installed)?),
            Some(Running::Userspace(device)) => ("userspace", device.status(&inner.installed)),
        };
        Ok(v1::MeshResponse { device: device.to_owned(), peers })
    }

    /// What the kernel lacks for encrypted networks and what is done instead, a sentence each. `kernel_wireguard`: it has
    /// that.
    pub fn notes(&self, kernel_wireguard: bool) -> Vec<String> {
        let inner = self.lock();
        let note = match (&inner.running, inner.origin.choice, kernel_wireguard) {
            (Some(Running::Kernel(_)), _, _) => return Vec::new(),
            (None, Choice::Auto | Choice::Kernel, true) => return Vec::new(),
            (None, Choice::Kernel, false) => "the kernel has no WireGuard, and no other device is wanted",
            (_, Choice::Userspace, true) => "encrypted networks go through skep's own device, as netd was told",
            _ => "the kernel has no WireGuard; encrypted networks go through skep's own device",
        };
        let mut notes = vec![note.to_owned()];
        if !Path::new(TUN).exists() {
            notes.push(format!("there is no {TUN}, so encrypted networks cannot work: load the module tun"));
        }
        if let Some(Running::Userspace(device)) = &inner.running {
            notes.extend(device.note().map(str::to_owned));
        }
        notes
    }
}
