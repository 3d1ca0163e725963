//! Who a certificate says its holder is. Used by the TLS verifiers, the transport and tickets.
//!
//! Reading a certificate is not believing it: [`PeerIdentity::read`] is called on certificates whose chain was checked,
//! or whose chain is checked right after. It must never panic, whatever bytes a stranger presents.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skep_proto::id::{ClusterId, NodeId};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;
use x509_parser::x509::AttributeTypeAndValue;

use crate::Role;

/// The holder of a node certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The common name.
    pub node_id: NodeId,
    /// The organisational unit.
    pub role: Role,
    /// The organisation.
    pub cluster_id: ClusterId,
    /// When the certificate ends. A connection made with it is closed then (see [`crate::DenyList::close_expired`]).
    pub not_after: SystemTime,
}

/// Why a certificate names no node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The bytes are not one X.509 certificate.
    #[error("not an X.509 certificate")]
    Malformed,
    /// The subject has no such attribute, several of it, or one that is not text.
    #[error("the certificate's subject needs exactly one {attribute}")]
    Attribute {
        /// The attribute's usual name: `CN`, `OU` or `O`.
        attribute: &'static str,
    },
    /// The common name is not a node id.
    #[error("the certificate's common name {0:?} is not a node id")]
    NodeId(String),
    /// The common name is not a client id.
    #[error("the certificate's common name {0:?} is not a client id")]
    ClientId(String),
    /// The organisational unit is not a role.
    #[error("the certificate's organisational unit {0:?} is not a role of skep")]
    Role(String),
    /// The organisation is not a cluster id.
    #[error("the certificate's organisation {0:?} is not a cluster id")]
    ClusterId(String),
    /// The validity lies before 1970 or beyond what the clock can say.
    #[error("the certificate's validity is out of range")]
    Validity,
}

/// What [`PeerIdentity::read`] is made from, with the validity's start.
#[derive(Debug, Clone)]
pub(crate) struct CertificateFacts {
    pub(crate) identity: PeerIdentity,
    pub(crate) not_before: SystemTime,
    /// The uncompressed P-256 point, or whatever key the certificate holds.
    pub(crate) public_key: Vec<u8>,
}

impl PeerIdentity {
    /// Reads a DER certificate's subject and end, without judging its chain.
    pub fn read(der: &[u8]) -> Result<Self, PeerError> {
        CertificateFacts::read(der).map(|facts| facts.identity)
    }
}

impl CertificateFacts {
    pub(crate) fn read(der: &[u8]) -> Result<Self, PeerError> {
        let cert = parse(der)?;
        let subject = cert.subject();
        let common_name = only(subject.iter_common_name(), "CN")?;
        let unit = only(subject.iter_organizational_unit(), "OU")?;
        let organisation = only(subject.iter_organization(), "O")?;
        Ok(Self {
            identity: PeerIdentity {
                node_id: common_name.parse().map_err(|_| PeerError::NodeId(common_name.to_owned()))?,
                role: Role::from_certificate_name(unit).ok_or_else(|| PeerError::Role(unit.to_owned()))?,
                cluster_id: organisation.parse().map_err(|_| PeerError::ClusterId(organisation.to_owned()))?,
                not_after: system_time(cert.validity().not_after)?,
            },
            not_before: system_time(cert.validity().not_before)?,
            public_key: cert.public_key().subject_public_key.data.to_vec(),
        })
    }
}

/// Parses exactly one certificate: trailing bytes are refused.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PeerError> {
    match X509Certificate::from_der(der) {
        Ok(([], cert)) => Ok(cert),
        _ => Err(PeerError::Malformed),
    }
}

/// The one value of an attribute: two common names would let two readers see two nodes.
pub(crate) fn only<'a>(
    mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
    attribute: &'static str,
) -> Result<&'a str, PeerError> {
    match (values.next(), values.next()) {
        (Some(value), None) => value.as_str().map_err(|_| PeerError::Attribute { attribute }),
        _ => Err(PeerError::Attribute { attribute }),
    }
}

pub(crate) fn system_time(time: ASN1Time) -> Result<SystemTime, PeerError> {
    let seconds = u64::try_from(time.timestamp()).map_err(|_| PeerError::Validity)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(PeerError::Validity)
}
