//! Image tickets: a manager's signed word that a node may fetch an image, shown to the peer that holds it.
//!
//! Managers issue them with assignments; the serving worker verifies them with nothing but its roots, no call needed: the
//! manager's certificate chain travels along. Pure: time is passed in. The bearer is whoever the TLS connection says.
//!
//! Bytes: version (1) | bearer id (16) | end, ms since 1970, big endian (8) | digest length (1) | digest (ASCII) |
//! number of certificates (1) | each: length (2), DER | ECDSA P-256 signature (ASN.1, to the end). The signature covers a
//! context string and everything before itself, so a ticket cannot be read as any other thing that the key signs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use skep_proto::id::{ClusterId, NodeId};

use crate::Role;
use crate::chain::{self, CLOCK_TOLERANCE};
use crate::credentials::Credentials;
use crate::key::KeyError;
use crate::peer::PeerIdentity;
use crate::roots::RootBundle;

/// What the signature begins with.
const CONTEXT: &[u8] = b"skep image ticket v1\0";
const VERSION: u8 = 1;
/// `sha512:` and 128 hex digits.
const MAX_DIGEST: usize = 135;
/// A manager's own certificate and one cross-signed root, with room.
const MAX_CERTIFICATES: usize = 4;
/// A chain of [`MAX_CERTIFICATES`] takes 3 KiB; longer bytes are not looked at.
const MAX_TICKET: usize = 16 * 1024;
/// An ASN.1 ECDSA P-256 signature.
const MAX_SIGNATURE: usize = 72;

/// Why a ticket cannot be made or does not hold.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// Not the bytes of a ticket.
    #[error("the image ticket is malformed: {0}")]
    Malformed(&'static str),
    /// Made by a newer version.
    #[error("the image ticket has form {0}, this version reads form {VERSION}")]
    Version(u8),
    /// Not `sha256:…` or `sha512:…` in lower-case hex.
    #[error("{0:?} is not an image digest")]
    Digest(String),
    /// Shown by another node than it was made for.
    #[error("the image ticket is for node {bearer}, node {shown_by} showed it")]
    Bearer {
        /// The node it was made for.
        bearer: NodeId,
        /// The node that showed it.
        shown_by: NodeId,
    },
    /// Past its end, beyond the clock tolerance.
    #[error("the image ticket has expired")]
    Expired,
    /// The signer's certificate is not of this cluster.
    #[error("the image ticket's signer is not trusted")]
    Chain(#[source] rustls::Error),
    /// The roots are of another cluster than this node.
    #[error("the image ticket's signer is of cluster {found}, not {expected}")]
    Cluster {
        /// This node's cluster.
        expected: ClusterId,
        /// The signer's.
        found: ClusterId,
    },
    /// A worker signed it.
    #[error("the image ticket was signed by {0}, which is not a manager")]
    Signer(NodeId),
    /// The bytes were changed.
    #[error("the image ticket's signature is wrong")]
    Signature,
    /// The end lies outside of what the form can say.
    #[error("the image ticket's end is out of range")]
    Range,
    /// The key cannot sign.
    #[error("cannot sign the image ticket")]
    Sign(#[source] KeyError),
}

/// What a verified ticket allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTicket {
    /// The node that may fetch.
    pub bearer: NodeId,
    /// The image manifest's digest, `sha256:…`; it allows what that manifest names, too.
    pub digest: String,
    /// The end, in whole milliseconds.
    pub not_after: SystemTime,
    /// The manager that signed. The caller also asks its deny list about it.
    pub signer: PeerIdentity,
}

/// Signs a ticket with a manager's credentials. Refused for a worker's: nobody would accept it.
pub fn issue(
    credentials: &Credentials,
    bearer: NodeId,
    digest: &str,
    not_after: SystemTime,
) -> Result<Vec<u8>, TicketError> {
    if credentials.role() != Role::Manager {
        return Err(TicketError::Signer(credentials.node_id()));
    }
    check_digest(digest)?;
    let end_ms = not_after.duration_since(UNIX_EPOCH).map_err(|_| TicketError::Range)?.as_millis();
    let mut out = vec![VERSION];
    out.extend(bearer.value().to_be_bytes());
    out.extend(u64::try_from(end_ms).map_err(|_| TicketError::Range)?.to_be_bytes());
    out.push(u8::try_from(digest.len()).expect("a checked digest has at most 135 bytes"));
    out.extend(digest.as_bytes());
    let chain = credentials.chain();
    let count = u8::try_from(chain.len()).ok().filter(|count| usize::from(*count) <= MAX_CERTIFICATES);
    out.push(count.ok_or(TicketError::Malformed("the chain is too long"))?);
    for cert in chain {
        let length = u16::try_from(cert.len()).map_err(|_| TicketError::Malformed("a certificate is too long"))?;
        out.extend(length.to_be_bytes());
        out.extend_from_slice(cert);
    }
    let signature = credentials.key().sign(&[CONTEXT, &out].concat()).map_err(TicketError::Sign)?;
    out.extend(signature);
    Ok(out)
}

/// Checks a ticket that `shown_by` showed at `now`: made for it, not expired, signed by a manager of `cluster_id` whose
/// certificate leads to `roots`. The caller asks its deny list about [`ImageTicket::signer`].
pub fn verify(
    ticket: &[u8],
    roots: &RootBundle,
    cluster_id: ClusterId,
    shown_by: NodeId,
    now: SystemTime,
) -> Result<ImageTicket, TicketError> {
    let parts = Parts::read(ticket)?;
    if parts.bearer != shown_by {
        return Err(TicketError::Bearer { bearer: parts.bearer, shown_by });
    }
    let not_after = UNIX_EPOCH.checked_add(Duration::from_millis(parts.end_ms)).ok_or(TicketError::Range)?;
    if not_after.checked_add(CLOCK_TOLERANCE).is_none_or(|end| end < now) {
        return Err(TicketError::Expired);
    }
    let (leaf, intermediates) = parts.chain.split_first().ok_or(TicketError::Malformed("no certificate"))?;
    let facts = chain::verify(roots, leaf, intermediates, now).map_err(TicketError::Chain)?;
    let signer = facts.identity;
    if signer.cluster_id != cluster_id {
        return Err(TicketError::Cluster { expected: cluster_id, found: signer.cluster_id });
    }
    if signer.role != Role::Manager {
        return Err(TicketError::Signer(signer.node_id));
    }
    ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_ASN1, &facts.public_key)
        .verify(&[CONTEXT, parts.signed].concat(), parts.signature)
        .map_err(|_| TicketError::Signature)?;
    Ok(ImageTicket { bearer: parts.bearer, digest: parts.digest.to_owned(), not_after, signer })
}

/// A ticket's fields, not yet believed.
struct Parts<'a> {
    bearer: NodeId,
    end_ms: u64,
    digest: &'a str,
    chain: Vec<CertificateDer<'a>>,
    signed: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Parts<'a> {
    fn read(ticket: &'a [u8]) -> Result<Self, TicketError> {
        if ticket.len() > MAX_TICKET {
            return Err(TicketError::Malformed("too long"));
        }
        let mut rest = ticket;
        match take::<1>(&mut rest)? {
            [VERSION] => {}
            [other] => return Err(TicketError::Version(other)),
        }
        let bearer = NodeId::new(u128::from_be_bytes(take(&mut rest)?));
        let end_ms = u64::from_be_bytes(take(&mut rest)?);
        let [digest_len] = take(&mut rest)?;
        let digest = std::str::from_utf8(take_slice(&mut rest, usize::from(digest_len))?)
            .map_err(|_| TicketError::Malformed("the digest is not text"))?;
        check_digest(digest)?;
        let [count] = take(&mut rest)?;
        if !(1..=MAX_CERTIFICATES).contains(&usize::from(count)) {
            return Err(TicketError::Malformed("wrong number of certificates"));
        }
        let mut chain = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let length = u16::from_be_bytes(take(&mut rest)?);
            chain.push(CertificateDer::from(take_slice(&mut rest, usize::from(length))?));
        }
        if rest.is_empty() || rest.len() > MAX_SIGNATURE {
            return Err(TicketError::Malformed("wrong length of the signature"));
        }
        let signed = &ticket[..ticket.len() - rest.len()];
        Ok(Self { bearer, end_ms, digest, chain, signed, signature: rest })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], TicketError> {
    let (head, tail) = rest.split_first_chunk().ok_or(TicketError::Malformed("cut off"))?;
    *rest = tail;
    Ok(*head)
}

fn take_slice<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], TicketError> {
    let (head, tail) = rest.split_at_checked(length).ok_or(TicketError::Malformed("cut off"))?;
    *rest = tail;
    Ok(head)
}

/// OCI image-spec descriptor.md: the two registered algorithms, lower-case hex.
fn check_digest(digest: &str) -> Result<(), TicketError> {
    let hex_len = match digest.split_once(':') {
        Some(("sha256", hex)) if is_hex(hex) => Some((hex.len(), 64)),
        Some(("sha512", hex)) if is_hex(hex) => Some((hex.len(), 128)),
        _ => None,
    };
    match hex_len {
        Some((found, expected)) if found == expected && digest.len() <= MAX_DIGEST => Ok(()),
        _ => Err(TicketError::Digest(digest.chars().take(MAX_DIGEST).collect())),
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
