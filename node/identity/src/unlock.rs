//! The unlock key: what a locked manager's own keys are sealed with on its disk, and how an operator writes it.
//!
//! Used by the node (its files), the manager (which hands it out) and the command line. XChaCha20-Poly1305 with a random
//! 24-byte nonce (draft-irtf-cfrg-xchacha-03); what is sealed is bound to its place, so that files cannot be swapped. The
//! key is never printed but by [`UnlockKey::to_text`], and its memory is wiped when it goes.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use rand::RngCore as _;
use rand::rngs::OsRng;
use zeroize::Zeroizing;

/// What the written form begins with: Swarm's own, so that tools which look for it find it.
const PREFIX: &str = "SWMKEY-1-";
/// Bytes of a nonce.
const NONCE: usize = 24;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey(Zeroizing<[u8; 32]>);

/// A text that is no unlock key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid key: an unlock key has the form SWMKEY-1-…, as `skep swarm unlock-key` prints it on a manager")]
pub struct NotAnUnlockKey;

/// What was sealed with another key, or is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unopened;

impl UnlockKey {
    /// Takes 32 bytes; the caller wipes its own copy.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Makes a new one from the system's random source.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        OsRng.fill_bytes(bytes.as_mut_slice());
        Self(bytes)
    }

    /// The key itself: for the swarm's state and for Raft's files, nothing else.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The form that an operator keeps: `SWMKEY-1-` and the key in base64 without padding, as Swarm writes it.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}{}", BASE64.encode(*self.0)))
    }

    /// Nonce, ciphertext and tag of `plain`, bound to `place`.
    pub(crate) fn seal(&self, place: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE];
        OsRng.fill_bytes(&mut nonce);
        let sealed = self.cipher().encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: place });
        let sealed = sealed.expect("a key is far below the cipher's limit of 256 GiB");
        [&nonce[..], &sealed].concat()
    }

    /// Opens what [`Self::seal`] made for the same place.
    pub(crate) fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(Unopened)?;
        let opened = self.cipher().decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: place });
        opened.map(Zeroizing::new).map_err(|_| Unopened)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }
}

impl FromStr for UnlockKey {
    type Err = NotAnUnlockKey;

    /// Reads the written form; surrounding white space does not matter.
    fn from_str(text: &str) -> Result<Self, NotAnUnlockKey> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(NotAnUnlockKey)?;
        let bytes = Zeroizing::new(BASE64.decode(digits).map_err(|_| NotAnUnlockKey)?);
        Ok(Self::new(bytes.as_slice().try_into().map_err(|_| NotAnUnlockKey)?))
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_written_form_comes_back_and_others_are_refused() {
        let key = UnlockKey::generate();
        let text = key.to_text();
        assert_eq!(text.len(), PREFIX.len() + 43);
        assert_eq!(format!(" {}\n", text.as_str()).parse(), Ok(key.clone()));
        assert_eq!(format!("{key:?}"), "UnlockKey(hidden)");
        let short = &text[..text.len() - 2];
        for wrong in ["", "SWMKEY-1-", "SWMKEY-1-abc", "swmkey", short, &text[9..], &format!("{}AA", text.as_str())] {
            assert_eq!(wrong.parse::<UnlockKey>(), Err(NotAnUnlockKey), "{wrong}");
        }
        // As Swarm's own tests have it: 32 bytes, base64 without padding.
        let known: UnlockKey = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8".parse().unwrap();
        assert_eq!(known.expose()[..4], [0, 1, 2, 3]);
    }

    #[test]
    fn only_the_same_key_and_place_open() {
        let key = UnlockKey::generate();
        let sealed = key.seal(b"here", b"secret");
        assert_eq!(key.open(b"here", &sealed).unwrap().as_slice(), b"secret");
        assert!(key.open(b"there", &sealed).is_err());
        assert!(UnlockKey::generate().open(b"here", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(key.open(b"here", &altered).is_err(), "byte {at}");
        }
        assert!(key.open(b"here", &sealed[..10]).is_err());
    }
}
