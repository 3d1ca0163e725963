//! Credentials and authentication challenges (RFC 7235, RFC 6750; distribution "Token Authentication Specification").
//! Pure: the requests themselves are in `session.rs`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

/// What to show to a registry. Never printed: `Debug` hides it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistryAuth {
    /// Nothing.
    #[default]
    Anonymous,
    /// Name and password, by HTTP basic authentication to the registry or its token server.
    Password {
        /// Login name.
        username: String,
        /// Password or access token that takes its place.
        password: String,
    },
    /// A refresh token for the registry's token server (Docker's `identitytoken`).
    IdentityToken {
        /// The token.
        token: String,
    },
    /// A bearer token for the registry itself (Docker's `registrytoken`).
    RegistryToken {
        /// The token.
        token: String,
    },
}

/// Why credentials cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthParseError {
    /// Not base64.
    #[error("registry credentials are not base64")]
    Base64,
    /// Not JSON, or other fields. The content is not repeated: it is secret.
    #[error("registry credentials are not the JSON object that docker login writes")]
    Json,
    /// `auth` without a colon.
    #[error("registry credentials have an \"auth\" field that is not base64 of name:password")]
    Auth,
}

impl RegistryAuth {
    /// Reads an entry of `auths` in Docker's `config.json`, or an `AuthConfig` of its API.
    pub fn from_docker_json(json: &[u8]) -> Result<Self, AuthParseError> {
        #[derive(Deserialize)]
        #[serde(default)]
        #[derive(Default)]
        struct AuthConfig {
            username: String,
            password: String,
            auth: String,
            identitytoken: String,
            registrytoken: String,
        }
        let config: AuthConfig = serde_json::from_slice(json).map_err(|_| AuthParseError::Json)?;
        if !config.registrytoken.is_empty() {
            return Ok(Self::RegistryToken { token: config.registrytoken });
        }
        if !config.identitytoken.is_empty() {
            return Ok(Self::IdentityToken { token: config.identitytoken });
        }
        if !config.auth.is_empty() {
            let plain = any_base64(&config.auth).ok_or(AuthParseError::Auth)?;
            let plain = String::from_utf8(plain).map_err(|_| AuthParseError::Auth)?;
            let (username, password) = plain.split_once(':').ok_or(AuthParseError::Auth)?;
            let password = password.trim_end_matches('\0');
            return Ok(Self::Password { username: username.to_owned(), password: password.to_owned() });
        }
        match config.username.is_empty() {
            true => Ok(Self::Anonymous),
            false => Ok(Self::Password { username: config.username, password: config.password }),
        }
    }

    /// Reads the API's `X-Registry-Auth` header: the same JSON in base64. Empty means nothing.
    pub fn from_docker_header(text: &str) -> Result<Self, AuthParseError> {
        if text.is_empty() {
            return Ok(Self::Anonymous);
        }
        Self::from_docker_json(&any_base64(text).ok_or(AuthParseError::Base64)?)
    }

    pub(super) fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous)
    }
}

fn any_base64(text: &str) -> Option<Vec<u8>> {
    [&STANDARD, &URL_SAFE, &STANDARD_NO_PAD, &URL_SAFE_NO_PAD].iter().find_map(|engine| engine.decode(text.trim()).ok())
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Password { .. } => "Password(hidden)",
            Self::IdentityToken { .. } => "IdentityToken(hidden)",
            Self::RegistryToken { .. } => "RegistryToken(hidden)",
        })
    }
}

/// What a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password.
    Basic,
    /// A token from elsewhere.
    Bearer {
        /// Where to get it.
        realm: String,
        /// For whom it is.
        service: Option<String>,
        /// What it must allow.
        scope: Option<String>,
    },
}

/// Reads the value of one `WWW-Authenticate` header, which may hold several challenges: a bearer challenge wins.
pub(crate) fn parse_challenge(header: &str) -> Option<Challenge> {
    let mut found = None;
    let mut rest = header;
    while let Some((scheme, parameters, behind)) = next_challenge(rest) {
        rest = behind;
        let parameter = |name: &str| {
            parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = parameter("realm")
        {
            return Some(Challenge::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
        }
        if scheme.eq_ignore_ascii_case("basic") {
            found = Some(Challenge::Basic);
        }
    }
    found
}

type Parameters = Vec<(String, String)>;

/// `scheme key=value, key="value", …` and what follows it. `None` when nothing readable is left.
fn next_challenge(text: &str) -> Option<(String, Parameters, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
    let (scheme, mut rest) = text.split_at(end);
    if scheme.is_empty() {
        return None;
    }
    let mut parameters = Vec::new();
    loop {
        let trimmed = rest.trim_start_matches([' ', '\t', ',']);
        let Some((key, behind)) = trimmed.split_once('=') else { return Some((scheme.to_owned(), parameters, "")) };
        let key = key.trim_end();
        // A space inside the "key" means that the next challenge's scheme stands before it.
        if key.is_empty() || key.contains([' ', '\t', ',', '"']) {
            return Some((scheme.to_owned(), parameters, trimmed));
        }
        let (value, behind) = parameter_value(behind.trim_start())?;
        parameters.push((key.to_owned(), value));
        rest = behind;
    }
}

/// A token or a quoted string with backslash escapes, and what follows.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.into(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn challenges() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull""#;
        assert_eq!(
            parse_challenge(hub),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/x:pull"))
        );
        assert_eq!(parse_challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(parse_challenge("basic"), Some(Challenge::Basic));
        assert_eq!(parse_challenge("Basic realm=x, Bearer realm = \"a\\\"b\" , error=e"), bearer("a\"b", None, None));
        assert_eq!(parse_challenge("Negotiate, Basic realm=\"a, b\""), Some(Challenge::Basic));
        assert_eq!(parse_challenge("Bearer service=x"), None);
        assert_eq!(parse_challenge("Bearer realm=\"open"), None);
        assert_eq!(parse_challenge(""), None);
    }

    #[test]
    fn docker_credentials() {
        let password = RegistryAuth::Password { username: "u".into(), password: "p:w".into() };
        assert_eq!(RegistryAuth::from_docker_json(br#"{"auth":"dTpwOnc="}"#).unwrap(), password);
        assert_eq!(RegistryAuth::from_docker_json(br#"{"username":"u","password":"p:w"}"#).unwrap(), password);
        let header = URL_SAFE.encode(r#"{"identitytoken":"t","username":"u"}"#);
        assert_eq!(
            RegistryAuth::from_docker_header(&header).unwrap(),
            RegistryAuth::IdentityToken { token: "t".into() }
        );
        assert_eq!(RegistryAuth::from_docker_header("").unwrap(), RegistryAuth::Anonymous);
        assert_eq!(RegistryAuth::from_docker_json(b"{}").unwrap(), RegistryAuth::Anonymous);
        assert_eq!(RegistryAuth::from_docker_json(b"secret"), Err(AuthParseError::Json));
        assert!(!format!("{password:?}").contains("p:w"));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*", shaped in "(Bearer|Basic)?[ ,=\"\\\\a-z]{0,30}") {
            let _ = parse_challenge(&text);
            let _ = parse_challenge(&shaped);
            let _ = RegistryAuth::from_docker_header(&text);
        }
    }
}
