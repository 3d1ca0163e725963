//! A streaming tar reader (POSIX pax, GNU and v7 forms) that holds bounded memory whatever the archive says. Used by
//! the layer unpacker and by `image load`. Reads only; knows nothing of file systems.
//!
//! The `tar` crate decodes the header blocks; the member loop is ours, because that crate reads long names and pax records
//! of any length into memory. Where forms differ we read as Go's `archive/tar` does, since that is what wrote most images.

use std::io::{self, Read};

use tar::{EntryType, Header};

/// Bytes of a tar block.
const BLOCK: u64 = 512;
/// Most bytes of one pax or GNU long-name header: above what any file system can hold as names and attributes.
const MAX_EXTENSION: u64 = 1 << 20;

/// One member, without its data: read that from the [`TarReader`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As written, not checked in any way.
    pub path: Vec<u8>,
    /// Target of a hard or symbolic link, as written. Empty for others.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime_seconds: i64,
    /// Nanoseconds of the second.
    pub mtime_nanoseconds: u32,
    /// Bytes of data that follow; zero for all but files.
    pub size: u64,
    /// Extended attributes in the order written.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The kind of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With data.
    File,
    /// Another name of an earlier file.
    HardLink,
    /// With a target.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character device.
    Char {
        /// Device number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Device number.
        major: u32,
        /// Device number.
        minor: u32,
    },
}

/// Why a stream is not a readable tar archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream ended inside a member.
    #[error("the archive is truncated")]
    Truncated,
    /// The stream itself failed.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// A header block that does not add up: not a tar archive, or damaged.
    #[error("not a tar archive, or a damaged one: bad header checksum at byte {0}")]
    Checksum(u64),
    /// A number in a header that is none, or out of range.
    #[error("damaged tar archive: bad {field} of {path:?}")]
    Number {
        /// Which number.
        field: &'static str,
        /// Whose.
        path: String,
    },
    /// A broken pax record.
    #[error("damaged tar archive: bad extended header at byte {0}")]
    Pax(u64),
    /// An extended header beyond [`MAX_EXTENSION`].
    #[error("hostile tar archive: an extended header of {0} bytes (at most {MAX_EXTENSION} are accepted)")]
    Extension(u64),
    /// Sparse files, multi-volume archives …
    #[error("tar member {path:?} has the type {kind:?}, which is not supported: make the archive without --sparse")]
    Kind {
        /// Which member.
        path: String,
        /// The type flag.
        kind: char,
    },
}

/// What pax and GNU headers say about the next member.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
}

/// Reads members one after the other. `Read` gives the data of the current one.
pub struct TarReader<R> {
    input: R,
    /// Bytes of the current member's data not read yet.
    data_left: u64,
    /// Bytes up to the next block boundary behind that data.
    padding: u64,
    position: u64,
    ended: bool,
}

impl<R: Read> TarReader<R> {
    /// Starts at the beginning of `input`.
    pub fn new(input: R) -> Self {
        Self { input, data_left: 0, padding: 0, position: 0, ended: false }
    }

    /// The next member; skips what is unread of the last. `None` at the archive's end, for good.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let mut extension = Extension::default();
        let mut described = false;
        loop {
            self.skip_data()?;
            let at = self.position;
            let Some(header) = self.read_header()? else {
                return if described { Err(TarError::Truncated) } else { Ok(None) };
            };
            let kind = header.entry_type();
            let magic = header.as_gnu().is_some() || header.as_ustar().is_some();
            match kind {
                EntryType::XHeader if magic => {
                    let data = self.read_extension(&header)?;
                    parse_pax(&data, &mut extension).ok_or(TarError::Pax(at))?;
                }
                // Global headers carry comments (git archive); nothing in them concerns us.
                EntryType::XGlobalHeader if magic => {
                    self.read_extension(&header)?;
                    continue;
                }
                EntryType::GNULongName if magic => extension.path = Some(until_nul(self.read_extension(&header)?)),
                EntryType::GNULongLink if magic => extension.link = Some(until_nul(self.read_extension(&header)?)),
                _ => return self.member(&header, extension).map(Some),
            }
            described = true;
        }
    }

    /// Gives the input back: what follows the archive's end is still in it.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn member(&mut self, header: &Header, extension: Extension) -> Result<Member, TarError> {
        let path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let shown = || String::from_utf8_lossy(&path).into_owned();
        let old = header.as_old();
        // A field left blank means zero, as in Go.
        let number = |field: &'static str, raw: &[u8], value: io::Result<u64>| match value {
            Err(_) if raw.iter().all(|b| matches!(b, 0 | b' ')) => Ok(0),
            value => value.map_err(|_| TarError::Number { field, path: shown() }),
        };
        let id = |field: &'static str, given: Option<u64>, raw: &[u8], written: io::Result<u64>| {
            let value = given.map_or_else(|| number(field, raw, written), Ok)?;
            // chown(2) takes the highest value for "leave as it is".
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| TarError::Number { field, path: shown() })
        };
        let device = || {
            let part = |value: io::Result<Option<u32>>| {
                value.ok().flatten().ok_or_else(|| TarError::Number { field: "device number", path: shown() })
            };
            Ok((part(header.device_major())?, part(header.device_minor())?))
        };
        let kind = match header.entry_type() {
            // v7 archives write directories as files with a slash behind the name.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Link => Kind::HardLink,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Directory => Kind::Directory,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => device().map(|(major, minor)| Kind::Char { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| Kind::Block { major, minor })?,
            other => return Err(TarError::Kind { path: shown(), kind: char::from(other.as_byte()) }),
        };
        if extension.sparse {
            return Err(TarError::Kind { path: shown(), kind: 'S' });
        }
        let size = match extension.size {
            Some(size) => size,
            None => number("size", &old.size, header.entry_size())?,
        };
        // Go reads no data behind anything but files, whatever the size says.
        let size = if kind == Kind::File { size } else { 0 };
        let (mtime_seconds, mtime_nanoseconds) = extension
            .mtime
            .unwrap_or_else(|| (header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0), 0));
        let link = match kind {
            Kind::HardLink | Kind::Symlink => {
                extension.link.unwrap_or_else(|| header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default())
            }
            _ => Vec::new(),
        };
        let member = Member {
            kind,
            mode: u32::try_from(number("mode", &old.mode, header.mode().map(u64::from))? & 0o7777).unwrap_or(0),
            uid: id("owner", extension.uid, &old.uid, header.uid())?,
            gid: id("group", extension.gid, &old.gid, header.gid())?,
            mtime_seconds,
            mtime_nanoseconds,
            size,
            xattrs: extension.xattrs,
            link,
            path,
        };
        self.expect_data(size, &member.path)?;
        Ok(member)
    }

    fn expect_data(&mut self, size: u64, path: &[u8]) -> Result<(), TarError> {
        let bad = || TarError::Number { field: "size", path: String::from_utf8_lossy(path).into_owned() };
        size.checked_add(BLOCK).filter(|sum| *sum < 1 << 62).ok_or_else(bad)?;
        self.data_left = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(())
    }

    fn read_extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let bad = || TarError::Number { field: "size", path: "extended header".to_owned() };
        let size = header.entry_size().map_err(|_| bad())?;
        if size > MAX_EXTENSION {
            return Err(TarError::Extension(size));
        }
        self.expect_data(size, b"extended header")?;
        let mut data = vec![0; usize::try_from(size).map_err(|_| bad())?];
        self.fill(&mut data)?;
        self.data_left = 0;
        Ok(data)
    }

    /// One header block; `None` at the end: a zero block, or the end of the stream between members, as in Go.
    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let at = self.position;
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let first = self.input.read(&mut block[..]).map_err(TarError::Read)?;
        if first == 0 {
            self.ended = true;
            return Ok(None);
        }
        self.position += first as u64;
        self.fill(&mut block[first..])?;
        if block.iter().all(|b| *b == 0) {
            self.ended = true;
            return Ok(None);
        }
        let sum: u32 =
            block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * u32::from(b' ');
        match header.cksum() {
            Ok(written) if written == sum => Ok(Some(header)),
            _ => Err(TarError::Checksum(at)),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated,
            _ => TarError::Read(error),
        })?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        let mut scratch = [0; 8192];
        let mut left = self.data_left + self.padding;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
            self.fill(&mut scratch[..piece])?;
            left -= piece as u64;
        }
        (self.data_left, self.padding) = (0, 0);
        Ok(())
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data_left -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|b| *b == 0) {
        name.truncate(end);
    }
    name
}

/// Reads pax records (`length key=value\n`) into `out`. `None` if they are broken.
fn parse_pax(mut data: &[u8], out: &mut Extension) -> Option<()> {
    let text = |value: &[u8]| std::str::from_utf8(value).ok().map(str::to_owned);
    while !data.is_empty() {
        let space = data.iter().take(20).position(|b| *b == b' ')?;
        let length: usize = text(&data[..space])?.parse().ok()?;
        if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
            return None;
        }
        let record = &data[space + 1..length - 1];
        data = &data[length..];
        let equals = record.iter().position(|b| *b == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => out.path = Some(value.to_vec()),
            b"linkpath" => out.link = Some(value.to_vec()),
            b"size" => out.size = Some(text(value)?.parse().ok()?),
            b"uid" => out.uid = Some(text(value)?.parse().ok()?),
            b"gid" => out.gid = Some(text(value)?.parse().ok()?),
            b"mtime" => out.mtime = Some(parse_time(&text(value)?)?),
            _ if key.starts_with(b"GNU.sparse.") => out.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    out.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Some(())
}

/// `-12.25` → 13 seconds before 1970 and 750,000,000 ns behind that.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (seconds.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((whole.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((whole, nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn members(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
        let mut reader = TarReader::new(bytes);
        let mut out = Vec::new();
        while let Some(member) = reader.next_member()? {
            let mut data = Vec::new();
            reader.read_to_end(&mut data).map_err(TarError::Read)?;
            out.push((member, data));
        }
        Ok(out)
    }

    #[test]
    fn reads_what_the_tar_crate_writes() {
        let long = "d/".repeat(90) + "file";
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(99);
        builder
            .append_pax_extensions([("mtime", &b"-1.25"[..]), ("SCHILY.xattr.user.a", b"b=\nc"), ("uid", b"70000")])
            .unwrap();
        builder.append_data(&mut header.clone(), "a", &b"abc"[..]).unwrap();
        builder.append_data(&mut header, &long, &b"xyz"[..]).unwrap();
        let read = members(&builder.into_inner().unwrap()).unwrap();
        let (first, data) = &read[0];
        assert_eq!((first.path.as_slice(), data.as_slice(), first.uid, first.gid), (&b"a"[..], &b"abc"[..], 70000, 8));
        assert_eq!((first.mode, first.mtime_seconds, first.mtime_nanoseconds), (0o4755, -2, 750_000_000));
        assert_eq!(first.xattrs, [(b"user.a".to_vec(), b"b=\nc".to_vec())]);
        assert_eq!((read[1].0.path.as_slice(), read[1].1.as_slice()), (long.as_bytes(), &b"xyz"[..]));
        assert_eq!((read[1].0.uid, read[1].0.mtime_seconds), (7, 99));
    }

    #[test]
    fn damaged_archives_are_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(600);
        builder.append_data(&mut header, "a", &[1; 600][..]).unwrap();
        let good = builder.into_inner().unwrap();
        assert!(matches!(members(&good[..900]), Err(TarError::Read(_) | TarError::Truncated)));
        assert!(matches!(members(&good[..100]), Err(TarError::Truncated)));
        let mut bad = good.clone();
        bad[0] ^= 1;
        assert!(matches!(members(&bad), Err(TarError::Checksum(0))));
        assert!(matches!(members(&[1; 512]), Err(TarError::Checksum(0))));
        // The end-of-archive blocks may be missing, and an empty stream is an empty archive.
        assert_eq!(members(&good[..1536]).unwrap().len(), 1);
        assert_eq!(members(&[]).unwrap().len(), 0);
    }

    #[test]
    fn huge_extension_is_refused_before_it_is_read() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        assert!(matches!(members(header.as_bytes()), Err(TarError::Extension(size)) if size == 1 << 40));
    }

    proptest! {
        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), fix: bool, kind: u8) {
            if fix && bytes.len() >= 512 {
                // A right checksum lets the rest of the header be reached.
                let mut header = Header::new_gnu();
                header.as_mut_bytes().copy_from_slice(&bytes[..512]);
                header.set_entry_type(EntryType::new(kind));
                header.set_cksum();
                bytes[..512].copy_from_slice(header.as_bytes());
            }
            let _ = members(&bytes);
        }

        #[test]
        fn pax_never_panics(bytes: Vec<u8>, text in "[0-9]{1,3} [a-z]{1,4}=[^\n]{0,9}\n") {
            let _ = parse_pax(&bytes, &mut Extension::default());
            let _ = parse_pax(text.as_bytes(), &mut Extension::default());
            let _ = parse_time(&text);
        }
    }
}
