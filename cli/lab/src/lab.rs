//! Where a lab lies, and the lock that keeps two commands from changing one lab at the same time.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::cgroup::CgroupTree;
use crate::error::{Context, LabError, Result};
use crate::state::{HostState, LabState, Phase, host_name};

/// Parent of the lab directories that nobody named.
pub(crate) const DEFAULT_PARENT: &str = "/var/lib/skep-lab";

/// A lab's name and directory; it need not exist.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    pub(crate) name: String,
    /// Absolute.
    pub(crate) dir: PathBuf,
}

impl Lab {
    pub(crate) fn new(name: String, dir: Option<PathBuf>) -> Result<Self> {
        let dir = dir.unwrap_or_else(|| Path::new(DEFAULT_PARENT).join(&name));
        let dir = std::path::absolute(&dir).context("find", &dir)?;
        Ok(Self { name, dir })
    }

    /// The flags that name this lab, each with a blank before it; none for the default one.
    pub(crate) fn flags(&self) -> String {
        let mut flags = String::new();
        if self.name != "lab" {
            flags += &format!(" --name {}", self.name);
        }
        if self.dir != Path::new(DEFAULT_PARENT).join(&self.name) {
            flags += &format!(" --lab-dir {}", self.dir.display());
        }
        flags
    }

    pub(crate) fn state_file(&self) -> PathBuf {
        self.dir.join("lab.json")
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Holds one folder for each host.
    pub(crate) fn hosts_dir(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    pub(crate) fn host_dir(&self, number: u16) -> HostDir {
        HostDir(self.hosts_dir().join(number.to_string()))
    }

    /// Holds, one folder down, a link named `skep` for every binary that was used with this lab.
    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// The lab's cgroups.
    pub(crate) fn cgroups(&self) -> Result<CgroupTree> {
        CgroupTree::discover(&self.name)
    }

    /// The state of a lab that is up (or half up).
    pub(crate) fn load(&self) -> Result<LabState> {
        match LabState::load(&self.state_file())? {
            Some(state) if state.phase != Phase::Kept && state.name == self.name => Ok(state),
            _ => Err(LabError::NotUp { name: self.name.clone(), dir: self.dir.clone() }),
        }
    }

    /// Waits for the lock and reads the state.
    pub(crate) fn lock_and_load(&self) -> Result<(LabLock, LabState)> {
        let missing = || LabError::NotUp { name: self.name.clone(), dir: self.dir.clone() };
        let lock = LabLock::acquire(self, false)?.ok_or_else(missing)?;
        Ok((lock, self.load()?))
    }

    /// Adds or replaces the link to this very binary and returns its folder, to be put into a PATH.
    ///
    /// Each binary has a folder of its own, so that an older and a newer `skep` can be used with one lab at one time.
    pub(crate) fn link_binary(&self, exe: &Path) -> Result<PathBuf> {
        let file = fs::metadata(exe).context("look at", exe)?;
        let folder = self.bin_dir().join(format!("{:x}-{:x}", file.dev(), file.ino()));
        let link = folder.join("skep");
        if fs::read_link(&link).is_ok_and(|target| target == exe) {
            return Ok(folder);
        }
        fs::create_dir_all(&folder).context("create", &folder)?;
        let new = folder.join(format!("skep.{}", std::process::id()));
        std::os::unix::fs::symlink(exe, &new).context("create", &new)?;
        fs::rename(&new, &link).context("replace", &link)?;
        Ok(folder)
    }
}

/// The running `skep` and the folder of its link in a lab.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    pub(crate) exe: PathBuf,
    /// Holds one entry, `skep`.
    pub(crate) bin: PathBuf,
}

impl Binary {
    pub(crate) fn of(lab: &Lab) -> Result<Self> {
        let exe = std::env::current_exe().context("find", "/proc/self/exe")?;
        let bin = lab.link_binary(&exe)?;
        Ok(Self { exe, bin })
    }
}

/// `<lab-dir>/hosts/N`
#[derive(Clone, Debug)]
pub(crate) struct HostDir(pub(crate) PathBuf);

impl HostDir {
    pub(crate) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("daemon.log")
    }

    /// Files that are bound over the machine's in the host: hosts, hostname, resolv.conf, boot_id.
    pub(crate) fn etc(&self) -> PathBuf {
        self.0.join("etc")
    }
}

/// The host with that number.
pub(crate) fn find_host(state: &mut LabState, number: u16) -> Result<&mut HostState> {
    let count = state.hosts.len();
    let name = state.name.clone();
    state.hosts.get_mut(usize::from(number).wrapping_sub(1)).ok_or(LabError::NoSuchHost { name, number, count })
}

/// Cgroup of a host, below the lab's.
pub(crate) fn host_cgroup(number: u16) -> String {
    host_name(number)
}

/// Held while a lab is changed (flock(2) on `<lab-dir>/lock`).
pub(crate) struct LabLock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl LabLock {
    /// Waits for the lock; None if the lab has no lock file and `create` is not set.
    pub(crate) fn acquire(lab: &Lab, create: bool) -> Result<Option<Self>> {
        let path = lab.lock_file();
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(create).mode(0o600);
            let file = match options.open(&path) {
                Ok(file) => file,
                Err(error) if missing(&error) && !create => return Ok(None),
                Err(error) => return Err(error).context("open", &path),
            };
            let lock = lock_file(file, &path, &lab.name)?;
            // `down` unlinks the file before it lets go of the lock: then this one locks nothing any more.
            let held = lock.metadata().context("look at", &path)?;
            match fs::metadata(&path) {
                Ok(now) if (now.dev(), now.ino()) == (held.dev(), held.ino()) => return Ok(Some(Self(lock))),
                Ok(_) => {}
                Err(error) if missing(&error) && create => fs::create_dir_all(&lab.dir).context("create", &lab.dir)?,
                Err(error) if missing(&error) => return Ok(None),
                Err(error) => return Err(error).context("look at", &path),
            }
        }
    }
}

fn missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn lock_file(file: File, path: &Path, name: &str) -> Result<Flock<File>> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => {
            eprintln!("waiting for another command on lab {name:?}");
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("lock", path)
        }
        Err((_, errno)) => Err(errno).context("lock", path),
    }
}
