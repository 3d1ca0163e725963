//! The file format of snapshots: a stream, encrypted in chunks.
//!
//! ```text
//! "skepsnap"  format u32  data key u32  chunk size u32  file id 16 bytes
//! then chunks: length u32, last u8, nonce 24, ciphertext, tag 16
//! ```
//! Header, number and `last` of every chunk are authenticated with it: chunks cannot be reordered, dropped, taken from
//! another file, or end early. Pure over `Read` and `Write`.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::{Buf, BufMut};

use crate::crypto::{KeyRing, NONCE_LEN, TAG_LEN, random_id};

const MAGIC: &[u8; 8] = b"skepsnap";
/// Newest format that this build reads and the one it writes.
pub(crate) const FORMAT: u32 = 1;
const HEADER_LEN: usize = 8 + 4 + 4 + 4 + 16;
const CHUNK_LEN: usize = 256 * 1024;

type Header = [u8; HEADER_LEN];

/// Why a snapshot file cannot be read. Travels inside `io::Error`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSnapshot {
    #[error("it is no snapshot")]
    Foreign,
    #[error("it has format {0}, this skep reads up to {FORMAT}")]
    NewerFormat(u32),
    #[error("it was written with a data key that is not known here")]
    UnknownKey,
    #[error("it is cut off")]
    CutOff,
    #[error("chunk {0} has a wrong checksum")]
    Chunk(u64),
    #[error("bytes follow its end")]
    Trailing,
}

/// Id of the key that a file is sealed with, from its beginning. None: it is shorter than that.
pub(crate) fn data_key(from: &mut impl Read) -> io::Result<Option<u32>> {
    let mut header = [0; 16];
    match from.read_exact(&mut header) {
        Ok(()) => Ok(Some((&header[12..]).get_u32())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn bad(what: BadSnapshot) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn place(header: &Header, number: u64, last: bool) -> Vec<u8> {
    let mut place = header.to_vec();
    place.put_u64(number);
    place.put_u8(last.into());
    place
}

/// Encrypts what is written to it.
pub(crate) struct Writer<W> {
    out: W,
    ring: Arc<KeyRing>,
    header: Header,
    number: u64,
    chunk: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(mut out: W, ring: Arc<KeyRing>) -> io::Result<Self> {
        let mut header = Vec::with_capacity(HEADER_LEN);
        header.put_slice(MAGIC);
        header.put_u32(FORMAT);
        header.put_u32(ring.current());
        header.put_u32(u32::try_from(CHUNK_LEN).expect("the constant is small"));
        header.put_slice(&random_id());
        let header: Header = header.try_into().expect("the fields add up to the header's length");
        out.write_all(&header)?;
        Ok(Self { out, ring, header, number: 0, chunk: Vec::with_capacity(CHUNK_LEN) })
    }

    fn write_chunk(&mut self, last: bool) -> io::Result<()> {
        let key = self.ring.get(self.ring.current()).expect("the ring always has its current key");
        let sealed = key.seal(&place(&self.header, self.number, last), &self.chunk);
        let len = u32::try_from(self.chunk.len()).expect("a chunk is at most 256 KiB");
        self.out.write_all(&len.to_be_bytes())?;
        self.out.write_all(&[last.into()])?;
        self.out.write_all(&sealed)?;
        self.number += 1;
        self.chunk.clear();
        Ok(())
    }

    /// Writes the ending. Without it the file does not count as complete.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.write_chunk(true)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.chunk.len() == CHUNK_LEN {
            self.write_chunk(false)?;
        }
        let taken = data.len().min(CHUNK_LEN - self.chunk.len());
        self.chunk.extend_from_slice(&data[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decrypts and checks. Ends with `Ok(0)` only after the authenticated last chunk and the end of the file.
pub(crate) struct Reader<R> {
    from: R,
    ring: Arc<KeyRing>,
    header: Header,
    key_id: u32,
    number: u64,
    chunk: Vec<u8>,
    position: usize,
    ended: bool,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(mut from: R, ring: Arc<KeyRing>) -> io::Result<Self> {
        let mut header = [0; HEADER_LEN];
        from.read_exact(&mut header).map_err(|error| cut_off(error, BadSnapshot::Foreign))?;
        let mut fields = header.strip_prefix(MAGIC).ok_or_else(|| bad(BadSnapshot::Foreign))?;
        let format = fields.get_u32();
        if format != FORMAT {
            return Err(bad(BadSnapshot::NewerFormat(format)));
        }
        let key_id = fields.get_u32();
        if ring.get(key_id).is_none() {
            return Err(bad(BadSnapshot::UnknownKey));
        }
        Ok(Self { from, ring, header, key_id, number: 0, chunk: Vec::new(), position: 0, ended: false })
    }

    /// The random id that names this file's content.
    pub(crate) fn file_id(&self) -> [u8; 16] {
        *self.header.last_chunk().expect("the header is longer than the id in it")
    }

    /// Reads to the end, so that all of the file is checked.
    pub(crate) fn drain(&mut self) -> io::Result<u64> {
        io::copy(self, &mut io::sink())
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let cut = |error| cut_off(error, BadSnapshot::CutOff);
        let mut head = [0; 5];
        self.from.read_exact(&mut head).map_err(cut)?;
        let len = usize::try_from((&head[..4]).get_u32()).unwrap_or(usize::MAX);
        if len > CHUNK_LEN || head[4] > 1 {
            return Err(bad(BadSnapshot::Chunk(self.number)));
        }
        let last = head[4] == 1;
        let mut sealed = vec![0; NONCE_LEN + len + TAG_LEN];
        self.from.read_exact(&mut sealed).map_err(cut)?;
        let key = self.ring.get(self.key_id).expect("the constructor checked that the key is known");
        self.chunk = key
            .open(&place(&self.header, self.number, last), &sealed)
            .map_err(|_| bad(BadSnapshot::Chunk(self.number)))?;
        self.position = 0;
        self.number += 1;
        if last {
            if self.from.read(&mut [0])? != 0 {
                return Err(bad(BadSnapshot::Trailing));
            }
            self.ended = true;
        }
        Ok(())
    }
}

fn cut_off(error: io::Error, what: BadSnapshot) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof { bad(what) } else { error }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.position == self.chunk.len() {
            if self.ended || out.is_empty() {
                return Ok(0);
            }
            self.next_chunk()?;
        }
        let taken = out.len().min(self.chunk.len() - self.position);
        out[..taken].copy_from_slice(&self.chunk[self.position..self.position + taken]);
        self.position += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::crypto::Cipher;

    fn ring(key: u8) -> Arc<KeyRing> {
        Arc::new(KeyRing::new(1, vec![(1, Cipher::new(&[key; 32]))]).unwrap())
    }

    fn write(plain: &[u8]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), ring(1)).unwrap();
        writer.write_all(plain).unwrap();
        writer.finish().unwrap()
    }

    fn read(file: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Reader::new(file, ring(1))?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn any_length_comes_back() {
        for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 2 * CHUNK_LEN, 2 * CHUNK_LEN + 77] {
            let plain: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            assert_eq!(read(&write(&plain)).unwrap(), plain, "{len} bytes");
        }
    }

    #[test]
    fn every_altered_byte_and_every_cut_is_refused() {
        let file = write(b"state");
        for at in 0..file.len() {
            // The chunk size in the header is informative, but authenticated like the rest.
            let mut altered = file.clone();
            altered[at] ^= 1;
            assert!(read(&altered).is_err(), "byte {at}");
            assert!(read(&file[..at]).is_err(), "first {at} bytes");
        }
        assert!(read(&[&file[..], b"x"].concat()).is_err());
        assert!(Reader::new(&file[..], ring(2)).unwrap().drain().is_err(), "another key");
    }

    #[test]
    fn chunks_cannot_be_dropped_swapped_or_made_last() {
        let chunk = 5 + NONCE_LEN + CHUNK_LEN + TAG_LEN;
        let file = write(&vec![9; 2 * CHUNK_LEN + 10]);
        let (header, body) = file.split_at(HEADER_LEN);
        let (one, rest) = body.split_at(chunk);
        let (two, three) = rest.split_at(chunk);
        read(&[header, one, two, three].concat()).unwrap();
        assert!(read(&[header, two, one, three].concat()).is_err());
        assert!(read(&[header, one, three].concat()).is_err());
        assert!(read(&[header, one, two].concat()).is_err());
        let mut ends_early = [header, one, two].concat();
        ends_early[HEADER_LEN + chunk + 4] = 1;
        assert!(read(&ends_early).is_err());
        let other = write(&vec![9; 2 * CHUNK_LEN + 10]);
        let foreign = &other[HEADER_LEN..HEADER_LEN + chunk];
        assert!(read(&[header, foreign, two, three].concat()).is_err());
    }
}
