//! Why a TLS peer hung up, in words. Used by the connection (which turns alerts into these words) and by the daemon and
//! CLI, which ask [`refusal`] what an RPC's error means.
//!
//! In TLS 1.3 a client learns only at its first read that its certificate was refused, and HTTP/2 hands on no more than
//! the text of such an error; so the text is the interface.

use std::io;

use rustls::AlertDescription;

/// The other side refused this node's certificate, or this side refused the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The peer knows this node as removed.
    #[error("this node was removed from the cluster")]
    Removed,
    /// The peer does not trust the authority that signed this node's certificate.
    #[error("the other side belongs to another cluster than this node")]
    OtherCluster,
    /// This node's certificate has ended, or one of the clocks is wrong.
    #[error("this node's certificate has expired or the clocks differ by hours")]
    Expired,
    /// The peer wants a certificate, and none was shown.
    #[error("the other side speaks only to members of the cluster")]
    CertificateRequired,
    /// This node refused the peer: removed, of another cluster, expired, or of another role or id than was called.
    #[error("this node refused the other side's certificate")]
    Peer,
}

const ALL: [Refusal; 5] =
    [Refusal::Removed, Refusal::OtherCluster, Refusal::Expired, Refusal::CertificateRequired, Refusal::Peer];

/// Finds a refusal in the causes of an error (a `tonic::Status`, a `tonic::transport::Error`, an `io::Error` …).
pub fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<Refusal> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if let Some(found) = ALL.into_iter().find(|refusal| text.contains(&refusal.to_string())) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Gives a TLS error the words above; others pass unchanged.
pub(crate) fn explain(error: io::Error) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let words = match tls {
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRevoked)) => Refusal::Removed.to_string(),
        Some(rustls::Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError)) => {
            Refusal::OtherCluster.to_string()
        }
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) => Refusal::Expired.to_string(),
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            Refusal::CertificateRequired.to_string()
        }
        Some(rustls::Error::InvalidCertificate(why)) => {
            format!("{}: {}", Refusal::Peer, certificate_words(why))
        }
        _ => return error,
    };
    io::Error::new(error.kind(), words)
}

fn certificate_words(why: &rustls::CertificateError) -> String {
    use rustls::CertificateError as E;
    match why {
        E::Revoked => "that node was removed from the cluster".to_owned(),
        E::UnknownIssuer | E::BadSignature => "it belongs to another cluster".to_owned(),
        E::Expired | E::ExpiredContext { .. } => "it has expired, or this host's clock is ahead".to_owned(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "it is not valid yet, so this host's clock is behind".to_owned()
        }
        E::Other(reason) => reason.0.to_string(),
        other => other.to_string(),
    }
}
