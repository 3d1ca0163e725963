//! Files of what netd keeps, so that the next one is whole without any agent: who this host is, a table's messages, a
//! sandbox's request. They lie in memory (tmpfs), in mode 0600, and go when everything is taken down.
//!
//! Used by [`super::restore`] and by whatever changes what is kept. A file is a row of records, each with its length and
//! its checksum: what a kill tore off at the end is left out, and a file that is wrong anywhere else is as if it was not
//! there. Reading what is there never panics.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use prost::Message;
use skep_proto::id::NetworkId;
use skep_proto::v1;

use crate::table::{FollowedTable, Table};

/// Length and checksum (CRC-32) of a record, little-endian.
const HEADER: usize = 8;
/// Differences are written behind the whole table until they have as many bytes as that, but this many in any case.
const APPENDED: u64 = 64 << 10;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptError {
    /// It cannot be read.
    #[error("cannot read it")]
    File(#[from] io::Error),
    /// A checksum.
    #[error("the record at byte {0} is damaged")]
    Record(usize),
    /// A message.
    #[error("it holds another message")]
    Message(#[from] prost::DecodeError),
    /// A table's messages do not follow each other, or say what cannot be.
    #[error(transparent)]
    Table(#[from] crate::table::TableError),
    /// It has one record.
    #[error("it has {0} records instead of one")]
    Count(usize),
}

/// A record as it is written.
pub(crate) fn record(message: &impl Message) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    message.encode_raw(&mut bytes);
    let length = u32::try_from(bytes.len() - HEADER).unwrap_or(u32::MAX);
    let sum = crc32fast::hash(&bytes[HEADER..]);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..HEADER].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The records of a file, and whether its end is torn off.
fn records(bytes: &[u8]) -> Result<(Vec<&[u8]>, bool), KeptError> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let number = |from: usize| bytes.get(at + from..at + from + 4).and_then(|bytes| bytes.try_into().ok());
        let (Some(length), Some(sum)) = (number(0).map(u32::from_le_bytes), number(4).map(u32::from_le_bytes)) else {
            return Ok((found, true));
        };
        let start = at + HEADER;
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
        let Some(payload) = end.and_then(|end| bytes.get(start..end)) else { return Ok((found, true)) };
        if crc32fast::hash(payload) != sum {
            return Err(KeptError::Record(at));
        }
        found.push(payload);
        at = start + payload.len();
    }
    Ok((found, false))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Puts a file of one record in place of what was there.
pub(super) fn write(path: &Path, message: &impl Message) -> io::Result<()> {
    replace(path, &record(message)).map(drop)
}

/// Puts a file in place, at once, and gives it for more to be written.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let hidden = path.with_extension("new");
    let mut file = create(&hidden)?;
    file.write_all(bytes)?;
    fs::rename(&hidden, path)?;
    Ok(file)
}

/// Reads a file of one record. `None`: there is none.
pub(super) fn read<M: Message + Default>(path: &Path) -> Result<Option<M>, KeptError> {
    bytes(path)?.map(|bytes| one(&bytes)).transpose()
}

/// The message of such a file.
pub(crate) fn one<M: Message + Default>(bytes: &[u8]) -> Result<M, KeptError> {
    match records(bytes)?.0.as_slice() {
        [one] => Ok(M::decode(*one)?),
        other => Err(KeptError::Count(other.len())),
    }
}

fn bytes(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A table as it was kept.
#[derive(Debug, Default)]
pub(crate) struct KeptTable {
    pub(crate) followed: FollowedTable,
    /// No task here needs it, said its last message.
    pub(super) dropped: bool,
}

/// A table from the bytes of its file.
pub(crate) fn table(network: NetworkId, bytes: &[u8]) -> Result<KeptTable, KeptError> {
    let mut kept = KeptTable::default();
    for record in records(bytes)?.0 {
        let message = v1::NetworkTable::decode(record)?;
        kept.dropped = message.dropped;
        if !message.dropped {
            kept.followed.take(network, &message)?;
        }
    }
    Ok(kept)
}

/// The file of one network's table: the whole of it, then the differences since.
#[derive(Debug)]
pub(super) struct Journal {
    network: NetworkId,
    path: PathBuf,
    /// Open where what is in it is right.
    file: Option<File>,
    whole: u64,
    appended: u64,
}

impl Journal {
    pub(super) fn new(dir: &Path, network: NetworkId) -> Self {
        Self { network, path: dir.join(network.to_string()), file: None, whole: 0, appended: 0 }
    }

    /// What it holds. It is written anew with the next change.
    pub(super) fn read(&self) -> Result<KeptTable, KeptError> {
        bytes(&self.path)?.map_or_else(|| Ok(KeptTable::default()), |bytes| table(self.network, &bytes))
    }

    /// Keeps a version, which `difference` alone has led to from the one before, if it is there.
    pub(super) fn keep(&mut self, table: &Table, difference: Option<&v1::NetworkTable>) {
        let difference = difference.filter(|_| self.file.is_some() && self.appended < self.whole.max(APPENDED));
        let written = match difference {
            Some(difference) => self.append(difference),
            None => self.rewrite(table),
        };
        self.settle(written);
    }

    /// Keeps that no task here needs it any more.
    pub(super) fn drop_table(&mut self, table: &Table) {
        let message = v1::NetworkTable { dropped: true, ..v1::NetworkTable::default() };
        let written = match self.file {
            Some(_) => Ok(()),
            None => self.rewrite(table),
        };
        let written = written.and_then(|()| self.append(&message));
        self.settle(written);
    }

    fn append(&mut self, message: &v1::NetworkTable) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let record = record(message);
        file.write_all(&record)?;
        self.appended += record.len() as u64;
        Ok(())
    }

    fn rewrite(&mut self, table: &Table) -> io::Result<()> {
        let record = record(&table.message(self.network));
        self.file = Some(replace(&self.path, &record)?);
        (self.whole, self.appended) = (record.len() as u64, 0);
        Ok(())
    }

    fn settle(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::warn!(network = %self.network, "cannot keep its table: {error}");
            self.remove();
        }
    }

    /// Forgets it: none is better than one that is not right.
    pub(super) fn remove(&mut self) {
        self.file = None;
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(network = %self.network, "cannot forget its table: {error}");
        }
    }
}

#[cfg(test)]
#[path = "keep_test.rs"]
mod tests;
