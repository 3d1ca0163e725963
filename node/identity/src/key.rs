//! A node's private key: made on the node, never leaves it, signs its requests and (on managers) tickets.
//!
//! Used by join and renewal. The key is never printed; `to_pem` is only for the credentials directory.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _, SigningKey as _};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use zeroize::Zeroizing;

use crate::pem;
use crate::unlock::UnlockKey;

/// PEM label of an unsealed key (RFC 7468 section 10).
pub(crate) const PLAIN_LABEL: &str = "PRIVATE KEY";
/// PEM label of a key that is sealed with the swarm's unlock key.
pub(crate) const SEALED_LABEL: &str = "SKEP SEALED PRIVATE KEY";

/// What a sealed key is bound to.
const PLACE: &[u8] = b"skep node key";

/// What went wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system's random source or the library failed.
    #[error("cannot make a key pair")]
    Generate(#[source] rcgen::Error),
    /// The bytes are no PKCS#8 key.
    #[error("the private key is damaged")]
    Malformed(#[source] rcgen::Error),
    /// Another kind of key than ECDSA P-256.
    #[error("the private key is not an ECDSA P-256 key")]
    Algorithm,
    /// Signing failed.
    #[error("cannot sign with the private key")]
    Sign(#[source] rcgen::Error),
}

/// An ECDSA P-256 key pair.
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// Makes a new key from the system's random source.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(Self).map_err(KeyError::Generate)
    }

    /// Reads a PKCS#8 key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(der)).map_err(KeyError::Malformed)?;
        if pair.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(KeyError::Algorithm);
        }
        Ok(Self(pair))
    }

    /// The same key once more: for credentials that change all else.
    pub(crate) fn duplicate(&self) -> Result<Self, KeyError> {
        Self::from_pkcs8_der(self.0.serialized_der())
    }

    /// A certificate signing request (PKCS#10, DER) that proves possession of the key. Its subject is a placeholder:
    /// the authority decides who the node is.
    pub fn signing_request(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "skep-node");
        Ok(params.serialize_request(&self.0).map_err(KeyError::Sign)?.der().to_vec())
    }

    /// The same as PEM, for the certificate authority's API.
    pub fn signing_request_pem(&self) -> Result<String, KeyError> {
        Ok(pem::encode("CERTIFICATE REQUEST", &self.signing_request()?))
    }

    /// The secret as PEM, sealed if there is a key for that: for a file of mode 0600, nothing else.
    pub(crate) fn to_pem(&self, seal: Option<&UnlockKey>) -> Zeroizing<String> {
        let der = self.0.serialized_der();
        Zeroizing::new(match seal {
            Some(seal) => pem::encode(SEALED_LABEL, &seal.seal(PLACE, der)),
            None => pem::encode(PLAIN_LABEL, der),
        })
    }

    /// Opens what [`Self::to_pem`] sealed.
    pub(crate) fn unseal(sealed: &[u8], seal: &UnlockKey) -> Option<Result<Self, KeyError>> {
        seal.open(PLACE, sealed).ok().map(|der| Self::from_pkcs8_der(&der))
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }

    /// The uncompressed curve point, as in a certificate.
    pub(crate) fn public_point(&self) -> &[u8] {
        self.0.der_bytes()
    }

    pub(crate) fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.0.serialized_der().to_vec().into())
    }

    /// An ASN.1 ECDSA signature with SHA-256. The caller puts a context string before the message.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message).map_err(KeyError::Sign)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(hidden)")
    }
}
