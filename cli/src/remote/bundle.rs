//! A person's key, certificate and managers in one file: what `skep client create` writes, `skep context create` takes, and a
//! context is. JSON. The text is read by [`parse`], which is pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use skep_identity::{ClientCredentials, ClientCredentialsError};
use skep_proto::v1::ClientRole;

use super::hosts::{self, HostsError};

/// The format that this version writes, and the highest that it reads.
const FORMAT: u32 = 1;
/// Far more than a few certificates need.
pub(crate) const MAX_BYTES: usize = 256 << 10;

/// One file's content.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Bundle {
    /// Format of the file.
    pub(crate) format: u32,
    /// The client's name in the swarm; empty where it was put together by hand.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) client: String,
    /// His role when it was made, for a person: what counts is what the managers say. Empty as above.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) role: String,
    /// `host:port` of managers; the next one is asked where one is down.
    pub(crate) hosts: Vec<String>,
    /// The swarm's root certificates, PEM: nobody else is believed.
    pub(crate) ca: String,
    /// The client's certificate chain, PEM.
    pub(crate) cert: String,
    /// Its private key, PEM (PKCS#8).
    pub(crate) key: String,
}

/// Why a text is no bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    #[error("it has more than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("it is no file of `skep client create`: {0}")]
    Json(serde_json::Error),
    #[error("it has format {0}, this version knows up to {FORMAT}: upgrade skep here")]
    Format(u32),
    #[error("its addresses are wrong: {0}")]
    Hosts(HostsError),
    #[error("it names no manager")]
    NoHost,
    #[error("{}", with_cause(.0))]
    Credentials(#[source] ClientCredentialsError),
}

fn with_cause(error: &ClientCredentialsError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Only the format, to tell a newer file from a wrong one.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// Reads a file's text and checks all that can be checked without a manager. Certificates that have ended are taken: the
/// managers say so.
pub(crate) fn parse(text: &str) -> Result<(Bundle, ClientCredentials), BundleError> {
    if text.len() > MAX_BYTES {
        return Err(BundleError::TooLarge);
    }
    if let Ok(Head { format }) = serde_json::from_str(text)
        && format > FORMAT
    {
        return Err(BundleError::Format(format));
    }
    let bundle: Bundle = serde_json::from_str(text).map_err(BundleError::Json)?;
    bundle.check()
}

impl Bundle {
    /// Puts one together.
    pub(crate) fn new(hosts: Vec<String>, ca: String, cert: String, key: String) -> Self {
        Self { format: FORMAT, client: String::new(), role: String::new(), hosts, ca, cert, key }
    }

    /// Says whose it is.
    pub(crate) fn of(self, client: &str, role: ClientRole) -> Self {
        Self { client: client.to_owned(), role: role_name(role).to_owned(), ..self }
    }

    /// As [`parse`], for one that was put together.
    pub(crate) fn check(self) -> Result<(Self, ClientCredentials), BundleError> {
        if self.hosts.is_empty() {
            return Err(BundleError::NoHost);
        }
        let hosts = hosts::parse(&self.hosts.join(",")).map_err(BundleError::Hosts)?;
        let credentials = ClientCredentials::from_pem(&self.ca, &self.cert, &self.key);
        Ok((Self { hosts, ..self }, credentials.map_err(BundleError::Credentials)?))
    }

    /// The file's text. It holds the key.
    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("text and numbers are JSON") + "\n"
    }
}

impl fmt::Debug for Bundle {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle").field("client", &self.client).field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// `viewer`, `operator` or `admin`.
pub(crate) fn role_name(role: ClientRole) -> &'static str {
    match role {
        ClientRole::Viewer => "viewer",
        ClientRole::Operator => "operator",
        ClientRole::Admin => "admin",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, SystemTime};

    use skep_identity::{ClientGrant, ClientKey, RootCa};
    use skep_proto::id::{ClientId, ClusterId};

    use super::*;

    /// A client of a swarm of its own.
    pub(crate) fn sample(hosts: &[&str]) -> Bundle {
        let (ca, key) =
            (RootCa::generate(ClusterId::new(1), SystemTime::now()).unwrap(), ClientKey::generate().unwrap());
        let grant = ClientGrant { client_id: ClientId::new(7), validity: Duration::from_secs(86_400) };
        let request = key.signing_request_pem().unwrap();
        let issued = ca.issue_client(request.as_bytes(), &grant, SystemTime::now()).unwrap();
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Bundle::new(hosts, ca.cert().to_pem(), issued.chain_pem, key.to_pem().to_string())
    }

    #[test]
    fn it_comes_back_and_hides_its_key() {
        let bundle = sample(&["a:2377", "b:2377"]).of("alice", ClientRole::Operator);
        let (back, credentials) = parse(&bundle.to_text()).unwrap();
        assert_eq!(back, bundle);
        assert_eq!(credentials.identity().client_id, ClientId::new(7));
        assert!(!format!("{back:?}{credentials:?}").contains("PRIVATE"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let good = sample(&["a:2377"]);
        let wrong = |bundle: &Bundle| parse(&bundle.to_text()).unwrap_err().to_string();
        assert!(wrong(&Bundle { format: 2, ..good.clone() }).contains("upgrade skep"));
        assert!(wrong(&Bundle { hosts: vec![], ..good.clone() }).contains("no manager"));
        assert!(wrong(&Bundle { hosts: vec!["a b".into()], ..good.clone() }).contains("addresses"));
        assert!(wrong(&Bundle { ca: sample(&["a"]).ca, ..good.clone() }).contains("not one of this swarm"));
        assert!(wrong(&Bundle { key: sample(&["a"]).key, ..good.clone() }).contains("does not belong"));
        assert!(wrong(&Bundle { key: String::new(), ..good.clone() }).contains("no private key"));
        assert!(wrong(&Bundle { cert: good.ca.clone(), ..good.clone() }).contains("not one of this swarm"));
        for text in ["", "{}", "null", "{\"format\": 1, \"what\": 2}", "\u{0}", &"x".repeat(MAX_BYTES + 1)] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
