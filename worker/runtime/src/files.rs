//! Secrets and configs on their way into a container: a sealed file in memory, handed to the monitor over its socket.
//!
//! Used by the runtime and by a container's connection. Nothing here is on a disk, and nothing stays: the file goes when both
//! sides have closed it.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use skep_shim::files::{Entry, Manifest, SINGLE, SWAPPABLE};
use zeroize::Zeroizing;

/// Room for each file that can be replaced, more than three of its size at most: for what it is, what it becomes, and what
/// a process still reads of before.
const ROOM_BYTES: u64 = 3 << 20;
/// The largest page that Linux has on the processors that skep runs on.
const PAGE_BYTES: u64 = 64 << 10;

/// The secrets and configs of a container.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Another number for other contents below the secrets' folder: a change to the same number changes nothing.
    pub version: u64,
    pub files: Vec<MemoryFile>,
}

/// One secret or config.
#[derive(Clone)]
pub struct MemoryFile {
    pub place: MemoryPlace,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub data: Arc<Zeroizing<Vec<u8>>>,
}

/// Where a file lies in the file system that holds a container's secrets and configs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryPlace {
    /// Below the folder that is mounted as a whole; can be replaced while the container runs.
    Swappable(String),
    /// By itself, mounted alone.
    Single(u32),
}

impl MemoryPlace {
    /// What a [`MountKind::Memory`](crate::MountKind::Memory) of it names: the folder, or the file alone.
    pub fn mounted(&self) -> String {
        match self {
            Self::Swappable(_) => SWAPPABLE.to_owned(),
            Self::Single(number) => format!("{SINGLE}/{number}"),
        }
    }
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFile").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Files {
    /// How large their file system may become.
    fn limit_bytes(&self) -> u64 {
        let room = |file: &MemoryFile| match file.place {
            MemoryPlace::Swappable(_) => ROOM_BYTES,
            MemoryPlace::Single(_) => (file.data.len() as u64).next_multiple_of(PAGE_BYTES),
        };
        self.files.iter().map(room).sum::<u64>().max(PAGE_BYTES)
    }

    fn manifest(&self) -> Manifest {
        let entry = |file: &MemoryFile| {
            let (swappable, path) = match &file.place {
                MemoryPlace::Swappable(path) => (true, path.clone()),
                MemoryPlace::Single(number) => (false, number.to_string()),
            };
            let (uid, gid, mode, length) = (file.uid, file.gid, file.mode, file.data.len() as u64);
            Entry { path, swappable, uid, gid, mode, length }
        };
        Manifest { version: self.version, files: self.files.iter().map(entry).collect() }
    }

    /// Only what can be replaced.
    pub(crate) fn swappable(&self) -> Self {
        let swappable = |file: &&MemoryFile| matches!(file.place, MemoryPlace::Swappable(_));
        Self { version: self.version, files: self.files.iter().filter(swappable).cloned().collect() }
    }

    /// A file in memory that nobody can change any more, with all of it.
    pub(crate) fn sealed(&self) -> io::Result<OwnedFd> {
        let head = self.manifest().encode()?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // Kernels before 6.3 do not know that a file is never to be run.
        let never_run = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
        let made = memfd_create(c"skep-files", flags | never_run).or_else(|_| memfd_create(c"skep-files", flags))?;
        let mut file = File::from(made);
        file.write_all(&head)?;
        for one in &self.files {
            file.write_all(&one.data)?;
        }
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file.into())
    }
}

/// The kind of file system that holds secrets here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Never written to swap, limited in size (Linux 6.4).
    Tmpfs,
    /// Never written to swap either, but without a limit.
    Ramfs,
}

impl Memory {
    /// What this kernel has.
    pub(crate) fn detect() -> Self {
        match no_swap_tmpfs() {
            Ok(()) => Self::Tmpfs,
            Err(error) => {
                tracing::info!(%error, "this kernel's tmpfs may be swapped (before Linux 6.4): secrets are kept in ramfs");
                Self::Ramfs
            }
        }
    }

    /// As the monitor is told: the kind, and its options.
    pub(crate) fn told(self, files: &Files) -> (String, String) {
        match self {
            Self::Tmpfs => ("tmpfs".to_owned(), format!("mode=755,noswap,size={}", files.limit_bytes())),
            Self::Ramfs => ("ramfs".to_owned(), "mode=755".to_owned()),
        }
    }
}

/// Whether tmpfs takes `noswap`: an instance is asked for, and none is made.
fn no_swap_tmpfs() -> io::Result<()> {
    let result = |code: libc::c_long| if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code) };
    // SAFETY: C strings that live through the calls; a fresh descriptor is owned by nobody else.
    unsafe {
        let opened = result(libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), libc::FSOPEN_CLOEXEC))?;
        let context = OwnedFd::from_raw_fd(opened as RawFd);
        let none = std::ptr::null::<libc::c_char>();
        let (fd, set) = (context.as_raw_fd(), libc::FSCONFIG_SET_FLAG);
        result(libc::syscall(libc::SYS_fsconfig, fd, set, c"noswap".as_ptr(), none, 0)).map(drop)
    }
}

/// Sends bytes and, with the first of them, a descriptor (`SCM_RIGHTS`, unix(7)). Returns how many bytes went.
pub(crate) fn send_with(stream: &impl AsRawFd, bytes: &[u8], file: &OwnedFd) -> io::Result<usize> {
    let files = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&files)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None);
    sent.map_err(io::Error::from)
}

/// Hands the file to a new monitor, behind its start message.
pub(crate) fn hand_over(stream: &UnixStream, file: &OwnedFd) -> io::Result<()> {
    send_with(stream, &[0], file).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::FileExt;

    use super::*;

    fn files() -> Files {
        let file = |place, data: &[u8]| {
            let data = Arc::new(Zeroizing::new(data.to_vec()));
            MemoryFile { place, uid: 1, gid: 2, mode: 0o400, data }
        };
        Files {
            version: 7,
            files: vec![file(MemoryPlace::Single(0), b"conf"), file(MemoryPlace::Swappable("a/b".into()), b"secret")],
        }
    }

    #[test]
    fn the_file_in_memory_holds_all_and_cannot_be_changed() {
        let file = File::from(files().sealed().unwrap());
        let mut all = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut all, 0).unwrap();
        let (head, rest) = all.split_first_chunk().unwrap();
        let (text, data) = rest.split_at(Manifest::text_length(*head).unwrap());
        assert_eq!(data, b"confsecret");
        let manifest = Manifest::decode(text).unwrap();
        assert_eq!(manifest, files().manifest());
        assert_eq!((manifest.files[1].length, manifest.files[1].swappable), (6, true));
        assert!(file.write_at(b"x", 0).is_err() && file.set_len(1).is_err());
        assert_eq!(files().swappable().manifest().files.len(), 1);
    }

    #[test]
    fn contents_are_not_printed() {
        let printed = format!("{:?}", files());
        assert!(printed.contains("a/b") && !printed.contains("secret") && !printed.contains("115"), "{printed}");
    }

    #[test]
    fn there_is_room_for_a_change_and_a_limit() {
        assert_eq!(Files::default().limit_bytes(), PAGE_BYTES);
        assert_eq!(files().limit_bytes(), PAGE_BYTES + ROOM_BYTES);
        assert!(Memory::Tmpfs.told(&files()).1.contains("noswap"));
        assert_eq!(Memory::Ramfs.told(&files()), ("ramfs".to_owned(), "mode=755".to_owned()));
    }
}
