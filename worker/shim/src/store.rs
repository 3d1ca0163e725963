//! The container's secrets and configs: a small file system in memory, which the monitor fills, changes and wipes.
//!
//! Used by the monitor. The file system is attached to no tree that anything else could look into: the monitor has it by a
//! descriptor, and the container read-only. So nothing of it is in the node's mount table, and it goes with the two of them,
//! however they end. What is in it comes as a file in memory and is copied inside the kernel.
//!
//! Files that can be replaced lie in a folder each version has of its own, `..v<N>`; `..data` is a link to the folder that
//! counts, and what the container opens are links through it. A change is one rename(2) of `..data`: a container sees all
//! old files or all new ones (the kubelet's way with projected volumes).

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use skep_shim::files::{Entry, Manifest, SINGLE, SWAPPABLE};

use crate::sys::check;
use crate::tree;

/// Nobody runs a program of it, and no device or set-uid bit in it means anything.
const ATTRIBUTES: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
/// The link to the version that counts, and its successor before the rename.
const CURRENT: &str = "..data";
const NEXT: &str = "..next";
/// Of folders: what is in them has rights of its own.
const FOLDER_MODE: u32 = 0o755;

/// The file system.
pub(crate) struct Store {
    /// Its root.
    mount: OwnedFd,
    /// The version in [`SWAPPABLE`]. `None`: there are no such files.
    version: Option<u64>,
}

impl Store {
    /// Makes one and fills it.
    pub(crate) fn make(kind: &str, options: &str, source: &File) -> io::Result<Self> {
        let mount = tree::new_file_system(kind, options, ATTRIBUTES)?;
        let mut store = Self { mount, version: None };
        let (manifest, first) = read(source)?;
        for folder in [SWAPPABLE, SINGLE] {
            make_folder(&store.path(folder))?;
        }
        let mut at = first;
        for file in &manifest.files {
            if !file.swappable {
                copy(file, &store.path(SINGLE), source, at)?;
            }
            at += file.length;
        }
        if manifest.files.iter().any(|file| file.swappable) {
            store.put(&manifest, source, first)?;
            store.version = Some(manifest.version);
        }
        Ok(store)
    }

    /// The mount, to be attached in the container's namespace.
    pub(crate) fn mount(&self) -> &OwnedFd {
        &self.mount
    }

    /// Replaces what can be replaced; false: it is the same version.
    pub(crate) fn replace(&mut self, source: &File) -> io::Result<bool> {
        let old = self.version.ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
        let (manifest, first) = read(source)?;
        if manifest.version == old {
            return Ok(false);
        }
        self.put(&manifest, source, first)?;
        self.version = Some(manifest.version);
        // A process may still read what it opened before: that it keeps, and nobody else can come by it.
        forget(&self.path(SWAPPABLE).join(version_name(old)));
        Ok(true)
    }

    /// Overwrites everything.
    pub(crate) fn wipe(&self) {
        overwrite_all(&self.path(SWAPPABLE));
        overwrite_all(&self.path(SINGLE));
    }

    /// Puts a version in its place.
    fn put(&self, manifest: &Manifest, source: &File, first: u64) -> io::Result<()> {
        let (top, name) = (self.path(SWAPPABLE), version_name(manifest.version));
        let folder = top.join(&name);
        // What an attempt left that broke off.
        let _ = fs::remove_file(top.join(NEXT));
        if folder.exists() {
            forget(&folder);
        }
        // What does not fit must not take up the room of what does, nor be seen.
        fill(&folder, manifest, source, first).inspect_err(|_| forget(&folder))?;
        symlink(&name, top.join(NEXT))?;
        fs::rename(top.join(NEXT), top.join(CURRENT))?;
        let files = manifest.files.iter().filter(|file| file.swappable);
        for file in files {
            let first = file.path.split('/').next().unwrap_or_default();
            match symlink(format!("{CURRENT}/{first}"), top.join(first)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// A path of this process to what is in it.
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.mount.as_raw_fd()))
    }
}

fn version_name(version: u64) -> String {
    format!("..v{version}")
}

/// The manifest, and where the bytes begin.
fn read(source: &File) -> io::Result<(Manifest, u64)> {
    let mut head = [0; 4];
    source.read_exact_at(&mut head, 0)?;
    let mut text = vec![0; Manifest::text_length(head)?];
    source.read_exact_at(&mut text, head.len() as u64)?;
    let manifest = Manifest::decode(&text)?;
    Ok((manifest, (head.len() + text.len()) as u64))
}

/// Makes the folder of a version.
fn fill(folder: &Path, manifest: &Manifest, source: &File, first: u64) -> io::Result<()> {
    make_folder(folder)?;
    let mut at = first;
    for file in &manifest.files {
        if file.swappable {
            copy(file, folder, source, at)?;
        }
        at += file.length;
    }
    Ok(())
}

/// Makes one file, with the folders on the way to it.
fn copy(entry: &Entry, below: &Path, source: &File, at: u64) -> io::Result<()> {
    let path = below.join(&entry.path);
    let missing: Vec<&Path> =
        path.ancestors().skip(1).take_while(|folder| *folder != below && !folder.exists()).collect();
    missing.into_iter().rev().try_for_each(make_folder)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let mut from = at as libc::off_t;
    let end = from + entry.length as libc::off_t;
    while from < end {
        // SAFETY: both descriptors are open; `from` is a place for the new offset.
        let sent =
            unsafe { libc::sendfile(file.as_raw_fd(), source.as_raw_fd(), &raw mut from, (end - from) as usize) };
        match check(sent as i32) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
    // The owner first: a change of it takes set-uid bits away.
    fchown(&file, Some(entry.uid), Some(entry.gid))?;
    file.set_permissions(Permissions::from_mode(entry.mode))
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    // The mode of a creation is less the umask.
    fs::set_permissions(path, Permissions::from_mode(FOLDER_MODE))
}

/// Overwrites and removes a version that counts no more.
fn forget(folder: &Path) {
    let mut files = Vec::new();
    each_file(folder, &mut |path| files.extend(to_overwrite(path)));
    let _ = fs::remove_dir_all(folder);
    for file in files {
        // A lease to write is given only where nobody else has the file open (fcntl(2)): who reads on must not read zeros.
        // SAFETY: the descriptor is open; plain numbers.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) } == 0 {
            overwrite(&file);
        }
    }
}

fn overwrite_all(folder: &Path) {
    each_file(folder, &mut |path| {
        if let Some(file) = to_overwrite(path) {
            overwrite(&file);
        }
    });
}

fn to_overwrite(path: &Path) -> Option<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path).ok()
}

fn overwrite(file: &File) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let length = file.metadata().map_or(0, |found| found.len());
    let mut at = 0;
    while at < length {
        let count = usize::try_from(length - at).unwrap_or(ZEROS.len()).min(ZEROS.len());
        if file.write_all_at(&ZEROS[..count], at).is_err() {
            return;
        }
        at += count as u64;
    }
}

fn each_file(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => each_file(&entry.path(), visit),
            Ok(kind) if kind.is_file() => visit(&entry.path()),
            _ => {}
        }
    }
}
