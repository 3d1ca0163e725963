//! Encryption at rest: XChaCha20-Poly1305 with a random 24-byte nonce for every record.
//!
//! Used by the keys file, the log and the snapshots. Each record names the key it was sealed with, so that a new data
//! key can come into use while old records stay readable. The place of a record (file, index, position) is
//! authenticated with it, so records cannot change places. Keys are erased from memory when dropped and never printed.
//! Source: draft-irtf-cfrg-xchacha-03; 24-byte random nonces do not collide in practice.

use std::fmt;

use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305, XNonce};
use rand::RngCore;
use rand::rngs::OsRng;
use zeroize::Zeroizing;

/// Bytes of a nonce.
pub(crate) const NONCE_LEN: usize = 24;
/// Bytes of an authentication tag.
pub(crate) const TAG_LEN: usize = 16;

/// The key that wraps the data keys. With autolock only the operator has it.
pub struct KeyEncryptionKey(Zeroizing<[u8; 32]>);

impl KeyEncryptionKey {
    /// Takes 32 bytes of key; the caller erases its own copy.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Makes a new one from the system's random numbers.
    pub fn generate() -> Self {
        Self(random_key())
    }

    /// The key's bytes, for showing it once to the operator or for writing the key file.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether both are the same key.
    pub fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    /// Another handle on the same key, which erases its own memory.
    pub fn copy(&self) -> Self {
        Self(self.0.clone())
    }

    pub(crate) fn cipher(&self) -> Cipher {
        Cipher::new(&self.0)
    }
}

impl fmt::Debug for KeyEncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyEncryptionKey(..)")
    }
}

pub(crate) fn random_key() -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    OsRng.fill_bytes(key.as_mut_slice());
    key
}

pub(crate) fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    OsRng.fill_bytes(&mut id);
    id
}

/// A record did not open: altered, in the wrong place, or sealed with another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unauthentic;

/// One key, ready for use. The engine erases its copy on drop (feature `zeroize`).
pub(crate) struct Cipher(XChaCha20Poly1305);

impl Cipher {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(XChaCha20Poly1305::new(key.into()))
    }

    /// Seals `plain`, authenticating `place` with it: nonce, ciphertext, tag.
    pub(crate) fn seal(&self, place: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(NONCE_LEN + plain.len() + TAG_LEN);
        self.seal_into(place, plain, &mut out);
        out
    }

    /// As [`Self::seal`], appended to `out`.
    pub(crate) fn seal_into(&self, place: &[u8], plain: &[u8], out: &mut Vec<u8>) {
        let mut nonce = [0; NONCE_LEN];
        // The thread's generator is a ChaCha stream seeded by the system: no system call for every record.
        rand::thread_rng().fill_bytes(&mut nonce);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plain);
        let tag = self
            .0
            .encrypt_inout_detached(&XNonce::from(nonce), place, (&mut out[start..]).into())
            .expect("a record is far below the cipher's limit of 256 GiB");
        out.extend_from_slice(&tag);
    }

    /// Opens what [`Self::seal`] made for the same place.
    pub(crate) fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unauthentic> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Unauthentic)?;
        let (cipher_text, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(Unauthentic)?;
        let mut plain = cipher_text.to_vec();
        self.0
            .decrypt_inout_detached(&XNonce::from(*nonce), place, plain.as_mut_slice().into(), &(*tag).into())
            .map_err(|_| Unauthentic)?;
        Ok(plain)
    }
}

/// The data keys of a directory: one in use, older ones still readable.
pub(crate) struct KeyRing {
    current: u32,
    keys: Vec<(u32, Cipher)>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("current", &self.current).finish_non_exhaustive()
    }
}

impl KeyRing {
    /// `keys` by id; None if `current` is not among them.
    pub(crate) fn new(current: u32, keys: Vec<(u32, Cipher)>) -> Option<Self> {
        keys.iter().any(|(id, _)| *id == current).then_some(Self { current, keys })
    }

    /// Id of the key in use.
    pub(crate) fn current(&self) -> u32 {
        self.current
    }

    /// The key with this id, if it is still known.
    pub(crate) fn get(&self, id: u32) -> Option<&Cipher> {
        self.keys.iter().find(|(known, _)| *known == id).map(|(_, cipher)| cipher)
    }

    /// Seals with the key in use: key id, nonce, ciphertext, tag.
    pub(crate) fn seal(&self, place: &[u8], plain: &[u8]) -> Vec<u8> {
        let cipher = self.get(self.current).expect("the constructor checked that the current key is there");
        let mut out = Vec::with_capacity(4 + NONCE_LEN + plain.len() + TAG_LEN);
        out.extend_from_slice(&self.current.to_be_bytes());
        cipher.seal_into(place, plain, &mut out);
        out
    }

    /// Opens what [`Self::seal`] made for the same place.
    pub(crate) fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unauthentic> {
        let (id, rest) = sealed.split_first_chunk::<4>().ok_or(Unauthentic)?;
        self.get(u32::from_be_bytes(*id)).ok_or(Unauthentic)?.open(place, rest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ring() -> KeyRing {
        KeyRing::new(2, vec![(1, Cipher::new(&[1; 32])), (2, Cipher::new(&[2; 32]))]).unwrap()
    }

    #[test]
    fn a_record_opens_only_in_its_place_and_unaltered() {
        let ring = ring();
        let sealed = ring.seal(b"log 7", b"plain text");
        assert_eq!(ring.open(b"log 7", &sealed).unwrap(), b"plain text");
        assert_eq!(ring.open(b"log 8", &sealed), Err(Unauthentic));
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(ring.open(b"log 7", &altered), Err(Unauthentic), "byte {at}");
        }
        for len in 0..sealed.len() {
            assert_eq!(ring.open(b"log 7", &sealed[..len]), Err(Unauthentic), "first {len} bytes");
        }
    }

    #[test]
    fn older_keys_still_open_and_nonces_differ() {
        let old = KeyRing::new(1, vec![(1, Cipher::new(&[1; 32]))]).unwrap();
        assert_eq!(ring().open(b"x", &old.seal(b"x", b"y")).unwrap(), b"y");
        assert_ne!(old.seal(b"x", b"y"), old.seal(b"x", b"y"));
        assert!(KeyRing::new(3, vec![(1, Cipher::new(&[1; 32]))]).is_none());
    }

    #[test]
    fn matches_the_published_test_vector() {
        // draft-irtf-cfrg-xchacha-03, appendix A.3.1.
        let key: [u8; 32] = std::array::from_fn(|i| 0x80 + u8::try_from(i).unwrap());
        let nonce: [u8; 24] = std::array::from_fn(|i| 0x40 + u8::try_from(i).unwrap());
        let aad = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
        let tag = [0xc0, 0x87, 0x59, 0x24, 0xc1, 0xc7, 0x98, 0x79, 0x47, 0xde, 0xaf, 0xd8, 0x78, 0x0a, 0xcf, 0x49];
        let plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
        let cipher = Cipher::new(&key);
        let mut text = plain.to_vec();
        let made = cipher.0.encrypt_inout_detached(&XNonce::from(nonce), &aad, text.as_mut_slice().into()).unwrap();
        assert_eq!(made.as_slice(), tag);
        let sealed = [&nonce[..], &text, &tag].concat();
        assert_eq!(cipher.open(&aad, &sealed).unwrap(), plain);
    }
}
