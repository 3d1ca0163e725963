//! Unpacks one layer into a fresh directory: decompress, check sizes and diff id, write each member safely. Called on
//! blocking threads by the store. Never writes outside `destination`, whatever the archive says; on an error the caller
//! removes the directory.
//!
//! Decisions where archives and kernels leave room:
//! - Whiteouts become what overlayfs wants: character devices 0:0 and `trusted.overlay.opaque`.
//! - Device nodes: the eight harmless ones that every container gets anyway (`null`, `zero`, …) are made, since base
//!   systems carry them; any other device node is refused.
//! - A member whose path goes through a symbolic link is refused, even where the link would stay inside.
//! - Absolute member paths and hard link targets are taken relative to the layer's root, as Docker does.

use std::io::{self, Read, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, makedev};
use nix::sys::time::TimeSpec;

use super::decode::{self, Compression, LimitExceeded, Meter};
use super::path::{self, LayerPath, Meaning, PathError};
use super::tarstream::{Kind, Member, TarError, TarReader};
use super::tree::{Attributes, Tree, TreeError};
use crate::digest::Digest;

/// Bytes copied at a time from archive to file.
const COPY_BUFFER: usize = 256 << 10;

/// What one layer may be at most. Beyond it the layer is refused as a bomb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Uncompressed bytes, whatever the compressed size.
    pub max_bytes: u64,
    /// Uncompressed bytes for each compressed one, beyond [`Limits::ratio_free_bytes`]. DEFLATE reaches 1032.
    pub max_ratio: u64,
    /// Uncompressed bytes below which the ratio does not count.
    pub ratio_free_bytes: u64,
    /// Members: each costs an inode.
    pub max_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 64 << 30, max_ratio: 1032, ratio_free_bytes: 1 << 30, max_entries: 4_000_000 }
    }
}

impl Limits {
    /// The most uncompressed bytes accepted from `compressed` bytes.
    fn uncompressed(&self, compressed: u64) -> u64 {
        self.max_bytes.min(self.ratio_free_bytes.max(compressed.saturating_mul(self.max_ratio)))
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// sha256 of the uncompressed archive.
    pub diff_id: Digest,
    /// Sum of the file sizes, in bytes.
    pub content_bytes: u64,
    /// Members.
    pub entries: u64,
    /// What the archive was compressed with.
    pub compression: Compression,
}

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream cannot be read or decompressed.
    #[error("the layer is damaged or truncated")]
    Read(#[source] io::Error),
    /// Not a tar archive we read.
    #[error("the layer is not a usable tar archive")]
    Tar(#[source] TarError),
    /// A member's name.
    #[error("refused member {path:?} of the layer: {problem}")]
    Path {
        /// As written.
        path: String,
        /// Why.
        problem: PathError,
    },
    /// A member that would leave the root, or cannot be written.
    #[error("refused member {path:?} of the layer")]
    Entry {
        /// As written.
        path: String,
        /// Why.
        #[source]
        problem: TreeError,
    },
    /// A device node that gives access to the host.
    #[error(
        "refused member {path:?} of the layer: it is a {kind} device node {major}:{minor}; only null, zero, full, random, urandom, tty, console and ptmx are allowed"
    )]
    Device {
        /// As written.
        path: String,
        /// `character` or `block`.
        kind: &'static str,
        /// Device number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// No space on the disk or in the quota.
    #[error("no space left for the layer")]
    DiskFull,
    /// Writing failed otherwise.
    #[error("cannot write member {path:?} of the layer")]
    Write {
        /// As written.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The content is not what the image says.
    #[error("wrong layer content: its diff id is {actual}, the image says {expected}")]
    DiffId {
        /// The image config's.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// A bomb.
    #[error("the layer unpacks to more than {0} bytes, which is beyond the limit for its compressed size")]
    TooLarge(u64),
    /// A bomb of many small members.
    #[error("the layer has more than {0} members")]
    TooMany(u64),
}

impl UnpackError {
    /// Whether the disk, not the layer, is to blame.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull)
    }
}

/// Unpacks `layer` (`compressed_bytes` long, for the bomb check) below `destination`, an empty directory.
/// `expected` is the diff id the image states; `None` for an import, which learns it here.
pub fn unpack(
    layer: impl Read + Send,
    compressed_bytes: u64,
    expected: Option<&Digest>,
    destination: &Path,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let (reader, compression) = decode::decode(layer).map_err(UnpackError::Read)?;
    let mut archive = TarReader::new(Meter::new(reader, limits.uncompressed(compressed_bytes)));
    let mut writer = Writer {
        tree: Tree::open(destination).map_err(|problem| entry_error("/", problem))?,
        buffer: vec![0; COPY_BUFFER],
        content_bytes: 0,
    };
    let mut entries = 0;
    while let Some(member) = archive.next_member().map_err(tar_error)? {
        entries += 1;
        if entries > limits.max_entries {
            return Err(UnpackError::TooMany(limits.max_entries));
        }
        writer.member(&member, &mut archive)?;
    }
    let (diff_id, _) = archive.into_inner().finish().map_err(read_error)?;
    if let Some(expected) = expected
        && *expected != diff_id
    {
        return Err(UnpackError::DiffId { expected: *expected, actual: diff_id });
    }
    writer.tree.finish().map_err(|problem| entry_error("/", problem))?;
    Ok(Unpacked { diff_id, content_bytes: writer.content_bytes, entries, compression })
}

struct Writer {
    tree: Tree,
    buffer: Vec<u8>,
    content_bytes: u64,
}

impl Writer {
    fn member(&mut self, member: &Member, data: &mut impl Read) -> Result<(), UnpackError> {
        let shown = || String::from_utf8_lossy(&member.path).into_owned();
        let path_error = |problem| UnpackError::Path { path: shown(), problem };
        let failed = |problem| entry_error(&shown(), problem);
        let path = LayerPath::clean(&member.path).map_err(path_error)?;
        if let Some((parent, name)) = path.split() {
            match path::meaning(name).map_err(path_error)? {
                Meaning::Plain => {}
                Meaning::Hides(hidden) => return self.tree.whiteout(parent, hidden).map_err(failed),
                Meaning::Opaque => return self.tree.opaque(parent).map_err(failed),
                Meaning::Ignored => return Ok(()),
            }
        }
        let attributes = attributes(member);
        match member.kind {
            Kind::Directory => self.tree.directory(&path, &attributes, &member.xattrs).map_err(failed),
            Kind::File => self.file(member, &path, &attributes, data),
            Kind::Symlink => self.tree.symlink(&path, &member.link, &attributes).map_err(failed),
            Kind::HardLink => {
                let target = LayerPath::clean(&member.link).map_err(path_error)?;
                self.tree.hard_link(&path, &target).map_err(failed)
            }
            Kind::Fifo => self.tree.node(&path, SFlag::S_IFIFO, 0, &attributes).map_err(failed),
            Kind::Char { major, minor } if is_harmless(major, minor) => {
                let device = makedev(u64::from(major), u64::from(minor));
                self.tree.node(&path, SFlag::S_IFCHR, device, &attributes).map_err(failed)
            }
            Kind::Char { major, minor } => Err(UnpackError::Device { path: shown(), kind: "character", major, minor }),
            Kind::Block { major, minor } => Err(UnpackError::Device { path: shown(), kind: "block", major, minor }),
        }
    }

    fn file(
        &mut self,
        member: &Member,
        path: &LayerPath,
        attributes: &Attributes,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let shown = || String::from_utf8_lossy(&member.path).into_owned();
        let mut file = self.tree.file(path).map_err(|problem| entry_error(&shown(), problem))?;
        let mut left = member.size;
        while left > 0 {
            let count = data.read(&mut self.buffer).map_err(read_error)?;
            if count == 0 {
                return Err(UnpackError::Tar(TarError::Truncated));
            }
            file.write_all(&self.buffer[..count]).map_err(|source| write_error(&shown(), source))?;
            left = left.saturating_sub(count as u64);
        }
        self.content_bytes = self.content_bytes.saturating_add(member.size);
        Tree::finish_file(&file, attributes, &member.xattrs).map_err(|problem| entry_error(&shown(), problem))
    }
}

fn attributes(member: &Member) -> Attributes {
    Attributes {
        uid: member.uid,
        gid: member.gid,
        mode: member.mode,
        mtime: TimeSpec::new(member.mtime_seconds, i64::from(member.mtime_nanoseconds)),
    }
}

/// The devices of every container's own `/dev` (OCI runtime spec, "Default Devices"), plus `console`.
fn is_harmless(major: u32, minor: u32) -> bool {
    matches!((major, minor), (1, 3 | 5 | 7 | 8 | 9) | (5, 0..=2))
}

fn entry_error(path: &str, problem: TreeError) -> UnpackError {
    match problem {
        TreeError::System(_, Errno::ENOSPC | Errno::EDQUOT) => UnpackError::DiskFull,
        problem => UnpackError::Entry { path: path.to_owned(), problem },
    }
}

fn write_error(path: &str, source: io::Error) -> UnpackError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => UnpackError::DiskFull,
        _ => UnpackError::Write { path: path.to_owned(), source },
    }
}

fn read_error(error: io::Error) -> UnpackError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<LimitExceeded>()) {
        Some(LimitExceeded(limit)) => UnpackError::TooLarge(*limit),
        None => UnpackError::Read(error),
    }
}

fn tar_error(error: TarError) -> UnpackError {
    match error {
        TarError::Read(source) => read_error(source),
        other => UnpackError::Tar(other),
    }
}
