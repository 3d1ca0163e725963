//! PEM (RFC 7468) around the DER that this crate works with. Private; pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use zeroize::Zeroizing;

/// Columns of base64 per line (RFC 7468 section 2).
const LINE: usize = 64;

/// Writes one PEM section.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(LINE) {
        out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// Label and content.
type Section<'a> = (&'a str, Zeroizing<Vec<u8>>);

/// All sections of a PEM text with their labels, in order; text between them is skipped. None: one is damaged.
pub(crate) fn sections(text: &str) -> Option<Vec<Section<'_>>> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        let end = format!("-----END {label}-----");
        let mut body = Zeroizing::new(String::new());
        loop {
            match lines.next()? {
                line if line == end => break,
                line => body.push_str(line),
            }
        }
        found.push((label, Zeroizing::new(STANDARD.decode(body.as_bytes()).ok()?)));
    }
    Some(found)
}

/// All certificates of a PEM text, in order; other sections are skipped.
pub(crate) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect()
}

/// Writes certificates in order.
pub(crate) fn encode_certificates(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|der| encode("CERTIFICATE", der)).collect()
}
