//! Image references by Docker's rules (github.com/distribution/reference). Used by the command line, the managers and
//! the pull engine. Pure: never does I/O.
//!
//! `busybox` means `docker.io/library/busybox:latest`: the part before the first slash is a registry only if it holds a
//! dot or a colon, or is `localhost`, or has capitals; an image without tag and digest has the tag `latest`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Digest, DigestError};

/// The registry meant when none is written.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag meant when neither tag nor digest is written.
pub const DEFAULT_TAG: &str = "latest";
/// Longest repository path (without the registry), by the reference implementation.
const MAX_PATH: usize = 255;
/// Longest tag, by the distribution specification.
const MAX_TAG: usize = 128;

/// A normalised image reference: registry, repository, and at least one of tag and digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("an image reference must not be empty")]
    Empty,
    /// The registry's host or port.
    #[error("invalid registry {domain:?} in image reference {text:?}: use host or host:port")]
    Domain {
        /// The whole text.
        text: String,
        /// The refused part.
        domain: String,
    },
    /// Capitals in the repository.
    #[error("invalid image reference {0:?}: the repository name must be lower case")]
    UpperCase(String),
    /// A path component with characters or separators that are not allowed.
    #[error(
        "invalid image reference {text:?}: {component:?} is not a repository name (a-z, 0-9, separated by one of . _ __ or hyphens)"
    )]
    Component {
        /// The whole text.
        text: String,
        /// The refused part.
        component: String,
    },
    /// The repository path is too long.
    #[error("invalid image reference: the repository name has {0} characters, at most {MAX_PATH} are allowed")]
    TooLong(usize),
    /// The tag's form.
    #[error(
        "invalid tag {tag:?} in image reference {text:?}: a tag is 1 to {MAX_TAG} characters of a-z A-Z 0-9 _ . - and starts with none of . -"
    )]
    Tag {
        /// The whole text.
        text: String,
        /// The refused part.
        tag: String,
    },
    /// The digest's form.
    #[error("invalid digest in image reference {text:?}")]
    Digest {
        /// The whole text.
        text: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
    /// 64 hexadecimal digits are an id, not a name.
    #[error("invalid image reference {0:?}: 64 hexadecimal digits are an image id; write <name>@sha256:<digits>")]
    LooksLikeId(String),
}

impl Reference {
    /// Parses and normalises. Entry for fuzzing too: never panics.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if Digest::from_hex(text).is_some() {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (name, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => {
                let digest =
                    digest.parse().map_err(|source| ReferenceError::Digest { text: text.to_owned(), source })?;
                (name, Some(digest))
            }
        };
        let (domain, rest) = split_domain(name);
        let (path, tag) = match rest.split_once(':') {
            None => (rest, None),
            Some((path, tag)) => (path, Some(tag)),
        };
        check_domain(text, domain)?;
        let path =
            if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        check_path(text, &path)?;
        if let Some(tag) = tag
            && !valid_tag(tag)
        {
            return Err(ReferenceError::Tag { text: text.to_owned(), tag: tag.to_owned() });
        }
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { domain: domain.to_owned(), path, tag, digest })
    }

    /// The registry, `host` or `host:port`, as written (`docker.io` for Docker Hub).
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository path, for example `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag. `None` only if there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository and tag, pinned to `digest`: what a service stores after resolution.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The same repository without a tag, pinned to `digest`: the name of an image that came by its digest.
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same reference without its digest: the tag, or `latest`.
    pub fn without_digest(&self) -> Self {
        Self { tag: Some(self.tag.clone().unwrap_or_else(|| DEFAULT_TAG.to_owned())), digest: None, ..self.clone() }
    }

    /// The full form, `docker.io/library/busybox:latest`.
    pub fn canonical(&self) -> String {
        self.with_suffix(&format!("{}/{}", self.domain, self.path))
    }

    /// The form a user writes, `busybox:latest`. Parses back to the same reference. Same as `Display`.
    pub fn familiar(&self) -> String {
        self.with_suffix(&self.familiar_name())
    }

    /// The repository as a user writes it, without tag and digest: `busybox`, `localhost:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return format!("{}/{}", self.domain, self.path);
        }
        match self.path.strip_prefix("library/") {
            // `docker.io/library/a/b` cannot be shortened to `a/b`: that is another repository. A first component that
            // would be read as an id keeps its prefix too.
            Some(short) if !short.contains('/') && Digest::from_hex(short).is_none() => short.to_owned(),
            _ if self.first_is_domain() => format!("{}/{}", self.domain, self.path),
            _ => self.path.clone(),
        }
    }

    /// Whether the path alone would be read as having a registry, for example `localhost/x` on Docker Hub.
    fn first_is_domain(&self) -> bool {
        split_domain(&self.path).1 != self.path
    }

    fn with_suffix(&self, name: &str) -> String {
        let mut out = name.to_owned();
        if let Some(tag) = &self.tag {
            out.push(':');
            out.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            out.push('@');
            out.push_str(&digest.to_string());
        }
        out
    }
}

/// Splits off the registry by Docker's rule. The second part keeps tag, without digest.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            // Docker Hub's historic second name.
            (if first == "index.docker.io" { DEFAULT_DOMAIN } else { first }, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn check_domain(text: &str, domain: &str) -> Result<(), ReferenceError> {
    let bad = || ReferenceError::Domain { text: text.to_owned(), domain: domain.to_owned() };
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            match port {
                "" => return Ok(()),
                port => (None, Some(port.strip_prefix(':').ok_or_else(bad)?)),
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
    };
    let host_ok = host.is_none_or(|host| host.len() <= 253 && host.split('.').all(label));
    let port_ok =
        port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p != 0));
    if host_ok && port_ok { Ok(()) } else { Err(bad()) }
}

fn check_path(text: &str, path: &str) -> Result<(), ReferenceError> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase(text.to_owned()));
    }
    if let Some(component) = path.split('/').find(|component| !valid_component(component)) {
        return Err(ReferenceError::Component { text: text.to_owned(), component: component.to_owned() });
    }
    if path.len() > MAX_PATH {
        return Err(ReferenceError::TooLong(path.len()));
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn valid_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes
        .split(alphanumeric)
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

fn valid_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG
        && tag
            .bytes()
            .enumerate()
            .all(|(at, b)| b.is_ascii_alphanumeric() || b == b'_' || (at > 0 && matches!(b, b'.' | b'-')))
        && !tag.is_empty()
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.familiar())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn docker_normal_forms() {
        let pinned = format!("busybox@{DIGEST}");
        let both = format!("host.example/a/b:1@{DIGEST}");
        let cases = [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/busybox:1", "docker.io/library/busybox:1", "busybox:1"),
            ("index.docker.io/foo/bar", "docker.io/foo/bar:latest", "foo/bar:latest"),
            ("foo/bar:Tag_1.0-x", "docker.io/foo/bar:Tag_1.0-x", "foo/bar:Tag_1.0-x"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/a/b/c:1", "localhost:5000/a/b/c:1", "localhost:5000/a/b/c:1"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest", "127.0.0.1:5000/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            ("UPPER/x", "UPPER/x:latest", "UPPER/x:latest"),
            ("a__b/c.d/e--f", "docker.io/a__b/c.d/e--f:latest", "a__b/c.d/e--f:latest"),
        ];
        for (text, canonical, familiar) in cases {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.canonical(), canonical, "{text}");
            assert_eq!(reference.to_string(), familiar, "{text}");
        }
        let reference = Reference::parse(&pinned).unwrap();
        assert_eq!((reference.tag(), reference.to_string()), (None, pinned));
        assert_eq!(reference.without_digest().to_string(), "busybox:latest");
        assert_eq!(Reference::parse(&both).unwrap().to_string(), both);
    }

    #[test]
    fn refusals_name_the_part() {
        let cases = [
            ("", "empty"),
            ("Busybox", "lower case"),
            ("a/Busybox", "lower case"),
            ("a//b", "\"\""),
            ("a..b", "a..b"),
            ("a___b", "a___b"),
            ("-a", "-a"),
            ("a_", "a_"),
            ("a:", "invalid tag \"\""),
            ("a:.x", "invalid tag \".x\""),
            ("a:b:c", "invalid tag \"b:c\""),
            ("host:port/x", "invalid registry \"host:port\""),
            ("host:0/x", "invalid registry"),
            ("host:70000/x", "invalid registry"),
            ("[::1/x", "invalid registry"),
            ("-a.b/x", "invalid registry"),
            ("a@sha256:12", "invalid digest"),
            ("a@", "invalid digest"),
            ("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "image id"),
            (" a", " a"),
        ];
        for (text, part) in cases {
            let message = Reference::parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text:?}: {message}");
        }
        assert!(Reference::parse(&"a".repeat(256)).is_err());
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
    }

    proptest! {
        #[test]
        fn never_panics_and_round_trips(text in "\\PC*") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.canonical()).unwrap(), &reference);
                prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
            }
        }

        #[test]
        fn well_formed_ones_round_trip(
            domain in "(localhost|[a-z]{1,5}\\.[a-zA-Z0-9]{1,5}|[a-z]{1,4}:[1-9][0-9]{0,3}|docker\\.io)?",
            path in "[a-z0-9]{1,4}([._-][a-z0-9]{1,3})?(/[a-z0-9]{1,4}){0,3}",
            tag in proptest::option::of("[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,9}"),
            pinned: bool,
        ) {
            let mut text = if domain.is_empty() { path } else { format!("{domain}/{path}") };
            if let Some(tag) = tag {
                text = format!("{text}:{tag}");
            }
            if pinned {
                text = format!("{text}@{DIGEST}");
            }
            let reference = Reference::parse(&text).unwrap();
            prop_assert_eq!(&Reference::parse(&reference.canonical()).unwrap(), &reference);
            prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
        }
    }
}
