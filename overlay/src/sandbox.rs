//! What the containers of one task share: a folder in memory, with a named network namespace with loopback up in it.
//!
//! Used by the worker's executor, one for each task. Safe in a multi-threaded process, as `skep_netlink::Namespace` is that
//! makes the namespaces. Blocks for about a millisecond: call it from a blocking context. Never touches anything outside
//! its folder.
//!
//! The folder is a tmpfs of its own: nothing in it is worth a disk's time, and a reboot takes all of it. It is shared (as
//! ip-netns(8) does): a mount namespace that was copied meanwhile (each container's monitor has one) then loses a sandbox
//! together with us; otherwise it would keep a removed one alive.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use skep_netlink::users::{self, USERS};
use skep_netlink::{Namespace, NetlinkError};

/// Why a sandbox could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A call on the folder or on a sandbox in it failed.
    #[error("cannot {action} {}", path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Its namespace could not be made or removed.
    #[error(transparent)]
    Namespace(#[from] NetlinkError),
    /// A name that is no single path component.
    #[error("{0:?} cannot name a sandbox")]
    Name(String),
}

impl SandboxError {
    fn path(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> Self {
        let path = path.to_owned();
        move |errno| Self::Path { action, path, source: errno.into() }
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Path { action, path, source }
    }
}

/// The sandboxes in one folder: each is a folder of its name, with its namespace as `net` in it.
#[derive(Debug, Clone)]
pub struct Sandboxes {
    dir: PathBuf,
}

/// Name of the namespace in a sandbox's folder.
const NET: &str = "net";
/// Options of the folder's tmpfs: a sandbox takes some 20 KiB.
const TMPFS_OPTIONS: &str = "mode=0700,size=256m,nr_inodes=0";

impl Sandboxes {
    /// Makes the folder, and mounts a tmpfs of its own there if there is none yet.
    pub fn open(dir: &Path) -> Result<Self, SandboxError> {
        fs::create_dir_all(dir).map_err(SandboxError::io("make", dir))?;
        let dir = dir.canonicalize().map_err(SandboxError::io("find", dir))?;
        if !mount_points()?.contains(&dir) {
            let (none, flags) = (None::<&str>, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC);
            mount(Some("skep-sandboxes"), &dir, Some("tmpfs"), flags, Some(TMPFS_OPTIONS))
                .map_err(SandboxError::path("mount a tmpfs at", &dir))?;
            // Private first: it leaves the peer group that the surrounding mount may be in, so that sandboxes do not
            // show up elsewhere; then a group of its own.
            for flags in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
                mount(none, &dir, none, flags, none).map_err(SandboxError::path("share the mount", &dir))?;
            }
        }
        Ok(Self { dir })
    }

    /// The folder of a sandbox, for whatever else its containers share.
    pub fn dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where a sandbox's network namespace is or would be.
    pub fn net(&self, name: &str) -> PathBuf {
        self.dir.join(name).join(NET)
    }

    /// Where a sandbox's user namespace is or would be.
    pub fn users(&self, name: &str) -> PathBuf {
        self.dir.join(name).join(USERS)
    }

    /// Makes a user namespace in a sandbox (and the sandbox), or finds it as it is: the network namespace that is made after it
    /// belongs to it. `uids` and `gids` are lines of its `uid_map` and `gid_map`.
    pub fn make_users(&self, name: &str, uids: &str, gids: &str) -> Result<PathBuf, SandboxError> {
        let path = self.make(name)?.join(USERS);
        if !Namespace::is_at(&path) {
            users::create(&path, uids, gids)?;
        }
        Ok(path)
    }

    /// Whether a sandbox's network namespace belongs to its user namespace.
    pub fn users_own_net(&self, name: &str) -> Result<bool, SandboxError> {
        Ok(users::owns(&self.users(name), &self.net(name))?)
    }

    /// Makes a sandbox's folder. Idempotent.
    pub fn make(&self, name: &str) -> Result<PathBuf, SandboxError> {
        let dir = self.checked(name)?;
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(SandboxError::io("make", &dir)(error)),
            _ => Ok(dir),
        }
    }

    /// Makes the network namespace of a sandbox (and the sandbox), or finds it as it is. Returns its path, for `setns`
    /// and runtimes.
    pub fn make_net(&self, name: &str) -> Result<PathBuf, SandboxError> {
        let path = self.make(name)?.join(NET);
        if !Namespace::is_at(&path) {
            Namespace::create(&path, |_| Ok::<_, NetlinkError>(()))?;
        }
        Ok(path)
    }

    /// Removes a sandbox with all that is in it. The namespace goes with the last process in it. Idempotent.
    pub fn remove(&self, name: &str) -> Result<(), SandboxError> {
        let dir = self.checked(name)?;
        Namespace::remove(&dir.join(NET))?;
        Namespace::remove(&dir.join(USERS))?;
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SandboxError::io("remove", &dir)(error)),
            _ => Ok(()),
        }
    }

    /// Removes all whose name `keep` refuses. Returns their names; goes on past errors and returns the first.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) -> Result<Vec<String>, SandboxError> {
        let mut removed = Vec::new();
        let mut first_error = None;
        for entry in fs::read_dir(&self.dir).map_err(SandboxError::io("list", &self.dir))? {
            let entry = entry.map_err(SandboxError::io("list", &self.dir))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if keep(&name) {
                continue;
            }
            match self.remove(&name) {
                Ok(()) => removed.push(name),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(removed), Err)
    }

    /// Removes everything, the folder too.
    pub fn close(self) -> Result<(), SandboxError> {
        self.retain(|_| false)?;
        match umount2(&self.dir, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(SandboxError::path("unmount", &self.dir)(errno)),
        }
        fs::remove_dir(&self.dir).map_err(SandboxError::io("remove", &self.dir))
    }

    fn checked(&self, name: &str) -> Result<PathBuf, SandboxError> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(SandboxError::Name(name.to_owned()));
        }
        Ok(self.dir.join(name))
    }
}

/// Mount points of this mount namespace (proc_pid_mountinfo(5), field 5).
fn mount_points() -> Result<Vec<PathBuf>, SandboxError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read(path).map_err(SandboxError::io("read", path))?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(field))))
        .collect())
}

/// Blanks, tabs, line feeds and backslashes are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal =
            behind.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                out.push(u8::try_from(value & 0xff).unwrap_or(b'?'));
                rest = &behind[3..];
            }
            None => {
                out.push(first);
                rest = behind;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mountinfo_escapes() {
        assert_eq!(unescape(b"/a\\040b\\134c\\1"), b"/a b\\c\\1");
        assert!(mount_points().unwrap().contains(&PathBuf::from("/proc")));
    }

    /// The real kernel: needs root, as all that makes namespaces does.
    #[test]
    fn made_found_again_and_removed() {
        if !nix::unistd::geteuid().is_root() {
            #[allow(clippy::print_stdout)]
            {
                println!("skipped: needs root");
            }
            return;
        }
        let dir = std::env::temp_dir().join(format!("skep netns {}", std::process::id()));
        let sandboxes = Sandboxes::open(&dir).unwrap();
        let before = fs::read_link("/proc/self/ns/net").unwrap();
        let path = sandboxes.make_net("one").unwrap();
        assert!(Namespace::is_at(&path));
        // Neither this thread nor the process moved.
        assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
        // It is another namespace, and made only once.
        let inode = fs::metadata(&path).map(|meta| std::os::unix::fs::MetadataExt::ino(&meta)).unwrap();
        assert!(!before.to_string_lossy().contains(&inode.to_string()));
        assert_eq!(sandboxes.make_net("one").unwrap(), path);
        assert_eq!(fs::metadata(&path).map(|meta| std::os::unix::fs::MetadataExt::ino(&meta)).unwrap(), inode);
        // Loopback is up in it: a thread goes there and looks.
        let inside = path.clone();
        let flags = std::thread::spawn(move || {
            let file = fs::File::open(inside).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let to = socket.local_addr().unwrap();
            socket.send_to(b"x", to).unwrap()
        });
        assert_eq!(flags.join().unwrap(), 1);

        // A second handle on the same folder (a restarted agent) does not mount it again.
        let again = Sandboxes::open(&dir).unwrap();
        assert_eq!(mount_points().unwrap().iter().filter(|point| **point == again.dir).count(), 1);
        again.make_net("two").unwrap();
        assert_eq!(again.retain(|name| name == "one").unwrap(), ["two"]);
        assert!(Namespace::is_at(&path));
        fs::write(again.dir("one").join("hosts"), "127.0.0.1 localhost").unwrap();
        again.remove("one").unwrap();
        again.remove("one").unwrap();
        assert!(!again.dir("one").exists());
        assert!(matches!(again.make("../x"), Err(SandboxError::Name(_))));
        again.make_net("three").unwrap();
        sandboxes.close().unwrap();
        assert!(!dir.exists());
        assert!(!mount_points().unwrap().iter().any(|point| point.starts_with(&dir)));
    }
}
