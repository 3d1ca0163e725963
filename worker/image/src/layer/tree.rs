//! A directory tree that is written by descriptor, never by path: no component is ever followed through a symbolic link,
//! so nothing outside the root can be named. Used by the unpacker on blocking threads; does the system calls, decides
//! only how to keep inside.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{self, FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fstatat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};

use super::path::LayerPath;

/// Marks a directory that hides the same directory of the layers below
/// (kernel documentation, filesystems/overlayfs.rst, "whiteouts and opaque directories").
const OPAQUE_XATTR: &std::ffi::CStr = c"trusted.overlay.opaque";

/// Owner, permissions and time of one entry.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `0o7777`.
    pub mode: u32,
    /// Modification time, also given as access time.
    pub mtime: TimeSpec,
}

/// Why an entry could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A parent is a symbolic link: writing would go wherever it points.
    #[error("it would be written through the symbolic link {0:?}")]
    ThroughSymlink(String),
    /// A parent is a file.
    #[error("its parent {0:?} is not a directory")]
    NotADirectory(String),
    /// A hard link to nothing.
    #[error("it is a hard link to {0:?}, which this layer does not contain")]
    LinkTarget(String),
    /// A hard link to a directory.
    #[error("it is a hard link to the directory {0:?}")]
    LinkToDirectory(String),
    /// The root itself given as something else than a directory.
    #[error("it replaces the root directory")]
    Root,
    /// The kernel refused.
    #[error("{0} failed")]
    System(&'static str, #[source] Errno),
}

type Result<T> = std::result::Result<T, TreeError>;

fn system(call: &'static str) -> impl FnOnce(Errno) -> TreeError {
    move |errno| TreeError::System(call, errno)
}

/// The writer. One thread, one tree.
pub struct Tree {
    root: OwnedFd,
    /// The directory written to last: archives are sorted, so it is nearly always the next one too.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories whose times are set at the end, since writing into them changes those.
    directories: Vec<(LayerPath, TimeSpec)>,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Tree {
    /// Writes below `root`, an existing directory.
    pub fn open(root: &Path) -> Result<Self> {
        let root = nix::fcntl::open(root, OFlag::O_RDONLY | DIRECTORY, Mode::empty()).map_err(system("open"))?;
        Ok(Self { root, last_parent: None, directories: Vec::new() })
    }

    /// Creates a directory or, if there is one, changes its attributes. One that replaces a whiteout is opaque.
    pub fn directory(
        &mut self,
        path: &LayerPath,
        attributes: &Attributes,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<()> {
        let fd = match path.split() {
            None => self.root.try_clone().map_err(|_| TreeError::System("dup", Errno::last()))?,
            Some((parent, name)) => {
                self.enter(parent)?;
                self.make_directory(name)?
            }
        };
        set_attributes(fd.as_fd(), attributes, xattrs, None)?;
        self.directories.push((path.clone(), attributes.mtime));
        Ok(())
    }

    /// Creates an empty file, in place of whatever has its name, without other permissions than ours.
    pub fn file(&mut self, path: &LayerPath) -> Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd =
            self.place(path, "open", |parent, name| openat(parent, name, flags, Mode::from_bits_truncate(0o600)))?;
        Ok(File::from(fd))
    }

    /// Attributes of a file written with [`Tree::file`]; times last.
    pub fn finish_file(file: &File, attributes: &Attributes, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        set_attributes(file.as_fd(), attributes, xattrs, Some(attributes.mtime))
    }

    /// Creates a symbolic link with any target: targets are resolved inside the container, never here.
    pub fn symlink(&mut self, path: &LayerPath, target: &[u8], attributes: &Attributes) -> Result<()> {
        self.place(path, "symlinkat", |parent, name| symlinkat(OsStr::from_bytes(target), parent, name))?;
        self.finish_node(path, attributes, false)
    }

    /// Creates another name of a file or link written before.
    pub fn hard_link(&mut self, path: &LayerPath, target: &LayerPath) -> Result<()> {
        let shown = || String::from_utf8_lossy(target.as_bytes()).into_owned();
        let Some((target_parent, target_name)) = target.split() else {
            return Err(TreeError::LinkToDirectory("/".into()));
        };
        let from = self.find(target_parent)?.ok_or_else(|| TreeError::LinkTarget(shown()))?;
        let target_name = OsStr::from_bytes(target_name);
        let found = match fstatat(&from, target_name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Err(TreeError::LinkTarget(shown())),
            Err(errno) => return Err(TreeError::System("fstatat", errno)),
        };
        if is(&found, SFlag::S_IFDIR) {
            return Err(TreeError::LinkToDirectory(shown()));
        }
        if is_whiteout(&found) {
            return Err(TreeError::LinkTarget(shown()));
        }
        if path == target {
            return Ok(());
        }
        self.place(path, "linkat", |parent, name| linkat(&from, target_name, parent, name, AtFlags::empty()))
    }

    /// Creates a fifo or a character device.
    pub fn node(&mut self, path: &LayerPath, kind: SFlag, device: libc::dev_t, attributes: &Attributes) -> Result<()> {
        self.place(path, "mknodat", |parent, name| {
            stat::mknodat(parent, name, kind, Mode::from_bits_truncate(0o600), device)
        })?;
        self.finish_node(path, attributes, true)
    }

    /// Hides `name` of the layers below: a character device 0:0, or the opaque mark if this layer has a directory of that
    /// name. A file of that name in this layer already hides it.
    pub fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<()> {
        let parent = self.enter(parent)?;
        let file_name = OsStr::from_bytes(name);
        match stat::mknodat(parent, file_name, SFlag::S_IFCHR, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => match openat(parent, file_name, OFlag::O_RDONLY | DIRECTORY, Mode::empty()) {
                Ok(directory) => set_opaque(directory.as_fd()),
                Err(Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
                Err(errno) => Err(TreeError::System("openat", errno)),
            },
            Err(errno) => Err(TreeError::System("mknodat", errno)),
        }
    }

    /// Hides everything that the layers below have in the directory `path`.
    pub fn opaque(&mut self, path: &[u8]) -> Result<()> {
        let parent = self.enter(path)?;
        let directory = openat(parent, ".", OFlag::O_RDONLY | DIRECTORY, Mode::empty()).map_err(system("openat"))?;
        set_opaque(directory.as_fd())
    }

    /// Sets the times of all directories: call it last.
    pub fn finish(mut self) -> Result<()> {
        for (path, mtime) in std::mem::take(&mut self.directories).into_iter().rev() {
            let Some((parent, name)) = path.split() else {
                stat::futimens(&self.root, &mtime, &mtime).map_err(system("futimens"))?;
                continue;
            };
            // A later entry may have replaced the directory or one above it.
            let parent = match self.find(parent) {
                Ok(Some(parent)) => parent,
                Ok(None) | Err(TreeError::ThroughSymlink(_)) => continue,
                Err(error) => return Err(error),
            };
            match stat::utimensat(parent, OsStr::from_bytes(name), &mtime, &mtime, UtimensatFlags::NoFollowSymlink) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(TreeError::System("utimensat", errno)),
            }
        }
        Ok(())
    }

    /// Runs `create` for the parent and name of `path`; if something is there already, removes that and runs it again.
    fn place<T>(
        &mut self,
        path: &LayerPath,
        call: &'static str,
        create: impl Fn(BorrowedFd<'_>, &OsStr) -> nix::Result<T>,
    ) -> Result<T> {
        let (parent, name) = path.split().ok_or(TreeError::Root)?;
        let name = OsStr::from_bytes(name);
        match create(self.enter(parent)?, name) {
            Err(Errno::EEXIST) => {}
            other => return other.map_err(system(call)),
        }
        self.remove(parent, name)?;
        create(self.enter(parent)?, name).map_err(system(call))
    }

    fn remove(&mut self, parent: &[u8], name: &OsStr) -> Result<()> {
        let directory = self.enter(parent)?;
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => return Ok(()),
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(errno) => return Err(TreeError::System("unlinkat", errno)),
        }
        // The path goes through our own descriptor, and the removal itself never follows links.
        let path: PathBuf = [OsStr::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())), name].iter().collect();
        let removed = std::fs::remove_dir_all(path);
        self.last_parent = None;
        removed.map_err(|error| TreeError::System("rmdir", Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))
    }

    /// Makes or opens the directory `name` in the directory entered last.
    fn make_directory(&mut self, name: &[u8]) -> Result<OwnedFd> {
        let (parent_path, parent) = self.last_parent.as_ref().map_or((&[][..], &self.root), |(path, fd)| (path, fd));
        let (parent_path, name) = (parent_path.to_vec(), OsStr::from_bytes(name));
        let open = |parent: BorrowedFd<'_>| openat(parent, name, OFlag::O_RDONLY | DIRECTORY, Mode::empty());
        let permissions = Mode::from_bits_truncate(0o755);
        match stat::mkdirat(parent, name, permissions) {
            Ok(()) => return open(parent.as_fd()).map_err(system("openat")),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(TreeError::System("mkdirat", errno)),
        }
        let found = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(system("fstatat"))?;
        if is(&found, SFlag::S_IFDIR) {
            return open(parent.as_fd()).map_err(system("openat"));
        }
        self.remove(&parent_path, name)?;
        let parent = self.enter(&parent_path)?;
        stat::mkdirat(parent, name, permissions).map_err(system("mkdirat"))?;
        let made = open(parent).map_err(system("openat"))?;
        if is_whiteout(&found) {
            set_opaque(made.as_fd())?;
        }
        Ok(made)
    }

    /// The directory `path`, made with its parents if missing, and remembered.
    fn enter(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>> {
        if path.is_empty() {
            self.last_parent = None;
            return Ok(self.root.as_fd());
        }
        if self.last_parent.as_ref().is_none_or(|(last, _)| last != path) {
            let fd = match open_beneath(self.root.as_fd(), path) {
                Ok(fd) => fd,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENOSYS | Errno::EPERM) => {
                    self.walk(path, true)?.ok_or(TreeError::System("openat", Errno::ENOENT))?
                }
                Err(errno) => return Err(TreeError::System("openat2", errno)),
            };
            self.last_parent = Some((path.to_vec(), fd));
        }
        match &self.last_parent {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Ok(self.root.as_fd()),
        }
    }

    /// The directory `path` if it is there.
    fn find(&mut self, path: &[u8]) -> Result<Option<OwnedFd>> {
        match open_beneath(self.root.as_fd(), path) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::ENOSYS | Errno::EPERM) => self.walk(path, false),
            Err(errno) => Err(TreeError::System("openat2", errno)),
        }
    }

    /// Opens `path` component by component; makes missing directories if `make`, owned by root with mode 0755 as Docker
    /// does. Names the component that is in the way.
    fn walk(&mut self, path: &[u8], make: bool) -> Result<Option<OwnedFd>> {
        self.last_parent = None;
        let mut current = self.root.try_clone().map_err(|_| TreeError::System("dup", Errno::last()))?;
        let mut seen = Vec::new();
        for component in path.split(|b| *b == b'/').filter(|component| !component.is_empty()) {
            if !seen.is_empty() {
                seen.push(b'/');
            }
            seen.extend_from_slice(component);
            let name = OsStr::from_bytes(component);
            let shown = || String::from_utf8_lossy(&seen).into_owned();
            current = match openat(&current, name, OFlag::O_PATH | DIRECTORY, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::ENOENT) if !make => return Ok(None),
                Err(Errno::ENOENT) => make_parent(current.as_fd(), name, false)?,
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    let found = fstatat(&current, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(system("fstatat"))?;
                    match () {
                        () if is(&found, SFlag::S_IFLNK) => return Err(TreeError::ThroughSymlink(shown())),
                        () if is_whiteout(&found) && make => {
                            unlinkat(&current, name, UnlinkatFlags::NoRemoveDir).map_err(system("unlinkat"))?;
                            make_parent(current.as_fd(), name, true)?
                        }
                        () if make => return Err(TreeError::NotADirectory(shown())),
                        () => return Ok(None),
                    }
                }
                Err(errno) => return Err(TreeError::System("openat", errno)),
            };
        }
        Ok(Some(current))
    }

    fn finish_node(&mut self, path: &LayerPath, attributes: &Attributes, has_mode: bool) -> Result<()> {
        let (parent, name) = path.split().ok_or(TreeError::Root)?;
        let (parent, name) = (self.enter(parent)?, OsStr::from_bytes(name));
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(system("fchownat"))?;
        if has_mode {
            // We made the node a moment ago in a tree that only we write: it is no link.
            stat::fchmodat(parent, name, Mode::from_bits_truncate(attributes.mode), FchmodatFlags::FollowSymlink)
                .map_err(system("fchmodat"))?;
        }
        stat::utimensat(parent, name, &attributes.mtime, &attributes.mtime, UtimensatFlags::NoFollowSymlink)
            .map_err(system("utimensat"))
    }
}

/// openat2(2): the kernel refuses links and anything outside `root` while it resolves.
fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> nix::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let how = OpenHow::new().flags(OFlag::O_PATH | DIRECTORY).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV,
    );
    openat2(root, OsStr::from_bytes(path), how)
}

fn make_parent(parent: BorrowedFd<'_>, name: &OsStr, opaque: bool) -> Result<OwnedFd> {
    stat::mkdirat(parent, name, Mode::from_bits_truncate(0o755)).map_err(system("mkdirat"))?;
    let made = openat(parent, name, OFlag::O_RDONLY | DIRECTORY, Mode::empty()).map_err(system("openat"))?;
    // The umask may have taken bits away, and a set-group-id parent may have given its group.
    fchown(&made, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).map_err(system("fchown"))?;
    stat::fchmod(&made, Mode::from_bits_truncate(0o755)).map_err(system("fchmod"))?;
    if opaque {
        set_opaque(made.as_fd())?;
    }
    Ok(made)
}

/// Owner first, since chown(2) clears set-user-id and capabilities; then mode, attributes, times.
fn set_attributes(
    fd: BorrowedFd<'_>,
    attributes: &Attributes,
    xattrs: &[(Vec<u8>, Vec<u8>)],
    mtime: Option<TimeSpec>,
) -> Result<()> {
    fchown(fd, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid))).map_err(system("fchown"))?;
    stat::fchmod(fd, Mode::from_bits_truncate(attributes.mode)).map_err(system("fchmod"))?;
    for (name, value) in xattrs {
        set_xattr(fd, name, value)?;
    }
    match mtime {
        Some(mtime) => stat::futimens(fd, &mtime, &mtime).map_err(system("futimens")),
        None => Ok(()),
    }
}

/// Sets an attribute of the archive. Only those that mean something inside a container and nothing to overlayfs or to the
/// host's own policy are taken: `user.*` and file capabilities. File systems without `user.*` drop those, as Docker does.
fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<()> {
    let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    if !user && name != b"security.capability" {
        tracing::debug!(name = %String::from_utf8_lossy(name), "extended attribute of a layer left out");
        return Ok(());
    }
    let Ok(name) = std::ffi::CString::new(name) else { return Ok(()) };
    match fsetxattr(fd, &name, value) {
        Err(Errno::EOPNOTSUPP | Errno::EPERM) if user => Ok(()),
        other => other.map_err(system("fsetxattr")),
    }
}

fn set_opaque(fd: BorrowedFd<'_>) -> Result<()> {
    fsetxattr(fd, OPAQUE_XATTR, b"y").map_err(system("setting trusted.overlay.opaque"))
}

fn fsetxattr(fd: BorrowedFd<'_>, name: &std::ffi::CStr, value: &[u8]) -> nix::Result<()> {
    // SAFETY: the descriptor is open for the whole call, the name ends with a zero byte, and pointer and length of the
    // value belong to one slice; the kernel only reads them.
    let done = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

fn is(found: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == kind
}

fn is_whiteout(found: &FileStat) -> bool {
    is(found, SFlag::S_IFCHR) && found.st_rdev == 0
}
