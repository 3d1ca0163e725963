//! Decompression of layers, told by content and not by media type, as Docker does; and the counting, hashing reader that
//! stops a decompression bomb. Used by the unpacker and archives. Reads only.

use std::io::{self, BufRead, BufReader, Read};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::manifest::media;

/// Read-ahead in front of the decompressors, in bytes.
const BUFFER: usize = 128 << 10;
/// Largest zstd window accepted, as a power of two: 128 MiB, the decoder's own default for untrusted input.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Plain tar.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// Tells by the first bytes. `Err` names a known form that is not supported.
    pub fn sniff(start: &[u8]) -> Result<Self, &'static str> {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            // A skippable frame in front, as pzstd and zstd:chunked write.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', ..] => Err("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err("xz"),
            _ => Ok(Self::None),
        }
    }

    /// The OCI media type of a layer in this form.
    pub fn layer_media_type(self) -> &'static str {
        match self {
            Self::None => media::OCI_LAYER,
            Self::Gzip => media::OCI_LAYER_GZIP,
            Self::Zstd => media::OCI_LAYER_ZSTD,
        }
    }
}

/// A decompressing reader, and the form it found.
pub type Decoded<'a> = (Box<dyn Read + Send + 'a>, Compression);

/// Decompresses `input`. An unsupported form is an error of kind `Unsupported` that names it.
pub fn decode<'a>(input: impl Read + Send + 'a) -> io::Result<Decoded<'a>> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    // A `BufReader` may fill with less than asked for: look at what a few reads give.
    let start = peek(&mut input)?;
    let compression = Compression::sniff(&start).map_err(|form| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            format!("compressed with {form}, which is not supported: use gzip, zstd or plain tar"),
        )
    })?;
    let rest = io::Cursor::new(start).chain(input);
    let reader: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(rest),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(rest)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(rest)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    };
    Ok((reader, compression))
}

/// Takes up to six bytes off `input`.
fn peek(input: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(6);
    input.by_ref().take(6).read_to_end(&mut start)?;
    Ok(start)
}

/// Marks the error of a stream that exceeded its limit.
#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
pub struct LimitExceeded(pub u64);

/// Counts, hashes and bounds what is read through it.
pub struct Meter<R> {
    input: R,
    hasher: Hasher,
    count: u64,
    limit: u64,
}

impl<R: Read> Meter<R> {
    /// Fails with [`LimitExceeded`] after `limit` bytes.
    pub fn new(input: R, limit: u64) -> Self {
        Self { input, hasher: Hasher::new(), count: 0, limit }
    }

    /// Reads the rest, then tells digest and length of everything.
    pub fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.hasher.finish(), self.count))
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count += count as u64;
        if self.count > self.limit {
            return Err(io::Error::other(LimitExceeded(self.limit)));
        }
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    fn decoded(data: &[u8]) -> io::Result<(Vec<u8>, Compression)> {
        let (mut reader, compression) = decode(data)?;
        let mut out = Vec::new();
        reader.read_to_end(&mut out)?;
        Ok((out, compression))
    }

    #[test]
    fn every_form_is_recognised() {
        let text = b"some content".repeat(1000);
        assert_eq!(decoded(&text).unwrap(), (text.clone(), Compression::None));
        // Several gzip members in a row are one stream (stargz, pigz).
        let two = [gzip(&text[..5000]), gzip(&text[5000..])].concat();
        assert_eq!(decoded(&two).unwrap(), (text.clone(), Compression::Gzip));
        assert_eq!(decoded(&zstd::encode_all(&text[..], 1).unwrap()).unwrap(), (text.clone(), Compression::Zstd));
        assert_eq!(decoded(b"").unwrap().0, b"");
        assert_eq!(decoded(b"ab").unwrap().0, b"ab");
        assert!(decoded(b"BZh9xxxx").unwrap_err().to_string().contains("bzip2"));
        assert!(decoded(&gzip(&text)[..100]).is_err());
    }

    #[test]
    fn the_meter_stops_a_bomb() {
        let bomb = zstd::encode_all(&vec![0; 10 << 20][..], 3).unwrap();
        let (reader, _) = decode(&bomb[..]).unwrap();
        let error = Meter::new(reader, 1 << 20).finish().unwrap_err();
        assert!(error.get_ref().unwrap().is::<LimitExceeded>());
        let (reader, _) = decode(&bomb[..]).unwrap();
        let (digest, length) = Meter::new(reader, 10 << 20).finish().unwrap();
        assert_eq!((digest, length), (Digest::of(&vec![0; 10 << 20]), 10 << 20));
    }
}
