//! The way back of a node whose certificate ran out: it shows that certificate and signs with its key, so that with a join
//! token it gets a new one for the node that it was. Used by the node that comes back and by the manager's CA.
//!
//! Only who was there is proved here. Whether that node may come back is the manager's to decide.

use std::time::SystemTime;

use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use crate::chain;
use crate::key::KeyError;
use crate::peer::{CertificateFacts, PeerError, PeerIdentity};
use crate::roots::RootBundle;
use crate::{Credentials, pem};

/// Goes before what is signed, so that the signature is of no use elsewhere.
const CONTEXT: &[u8] = b"skep returning node 1\n";
/// Certificates of a chain: the node's own, and a root that another one signed.
const MAX_CERTIFICATES: usize = 4;

/// Why nobody believes a node that wants to come back.
#[derive(Debug, thiserror::Error)]
pub enum ReturnError {
    /// The chain is damaged, empty or too long.
    #[error("the node's former certificate cannot be read")]
    Chain,
    /// It names no node.
    #[error("the node's former certificate cannot be used")]
    Certificate(#[source] PeerError),
    /// The request is damaged.
    #[error("the certificate request is malformed")]
    Request,
    /// This node's key cannot sign.
    #[error("cannot sign the request")]
    Sign(#[source] KeyError),
    /// Signed by another key.
    #[error("the request is not signed by the key of the node's former certificate")]
    Signature,
}

/// Who was at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Returned {
    /// By the certificate, whose key the other end has.
    pub identity: PeerIdentity,
    /// SHA-256 of that key.
    pub key: [u8; 32],
    /// The certificate leads to one of the roots; whether it has ended does not count.
    pub is_trusted: bool,
}

/// SHA-256 of a public key in its uncompressed form, as nodes and managers name keys.
pub(crate) fn key_digest(point: &[u8]) -> [u8; 32] {
    Sha256::digest(point).into()
}

impl Credentials {
    /// The proof for a request (PEM): the chain as PEM, and the signature.
    pub fn prove_return(&self, request_pem: &str) -> Result<(String, Vec<u8>), ReturnError> {
        let request = read_request(request_pem)?;
        let signature = self.key().sign(&[CONTEXT, request.as_ref()].concat()).map_err(ReturnError::Sign)?;
        Ok((self.chain_pem(), signature))
    }
}

fn read_request(pem: &str) -> Result<CertificateSigningRequestDer<'static>, ReturnError> {
    CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| ReturnError::Request)
}

/// Checks a proof for a request (PEM). Takes any bytes.
pub fn verify_return(
    request_pem: &str,
    chain_pem: &str,
    signature: &[u8],
    roots: &RootBundle,
) -> Result<Returned, ReturnError> {
    let request = read_request(request_pem)?;
    let certs = pem::certificates(chain_pem).map_err(|_| ReturnError::Chain)?;
    let (leaf, others) = certs.split_first().filter(|_| certs.len() <= MAX_CERTIFICATES).ok_or(ReturnError::Chain)?;
    let facts = CertificateFacts::read(leaf).map_err(ReturnError::Certificate)?;
    ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_ASN1, &facts.public_key)
        .verify(&[CONTEXT, request.as_ref()].concat(), signature)
        .map_err(|_| ReturnError::Signature)?;
    let ended: SystemTime = facts.identity.not_after;
    let is_trusted = chain::verify(roots, leaf, others, ended).is_ok();
    Ok(Returned { key: key_digest(&facts.public_key), identity: facts.identity, is_trusted })
}
