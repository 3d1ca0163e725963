//! Registry credentials from Docker's own file, `~/.docker/config.json` (or `$DOCKER_CONFIG/config.json`). Read only;
//! never printed, not even in `Debug`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;
use skep_proto::v1::RegistryAuth;

use crate::failure::Failure;

/// Where images without a registry in their name come from, in the file's words.
const DOCKER_HUB: &str = "index.docker.io";

#[derive(Deserialize, Default)]
#[serde(default)]
struct ConfigFile {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credsStore")]
    creds_store: String,
    #[serde(rename = "credHelpers")]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// The credential for an image's registry, if the file has one. With `required` (`--with-registry-auth`), a credential
/// that is there but cannot be read is an error; else the image is tried without.
pub(crate) fn credential(image: &str, required: bool) -> Result<Option<RegistryAuth>, Failure> {
    let Some(path) = config_path() else {
        return Ok(None);
    };
    let found = match std::fs::read(&path) {
        Ok(bytes) => from_config(&bytes, image, &path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::Usage(format!("cannot read {}: {error}", path.display()))),
    };
    if required { found } else { Ok(found.unwrap_or_default()) }
}

fn config_path() -> Option<PathBuf> {
    let directory = match std::env::var_os("DOCKER_CONFIG").filter(|value| !value.is_empty()) {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(&std::env::var_os("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

pub(crate) fn from_config(bytes: &[u8], image: &str, path: &Path) -> Result<Option<RegistryAuth>, Failure> {
    let config: ConfigFile = serde_json::from_slice(bytes)
        .map_err(|error| Failure::Usage(format!("{} is not a Docker configuration: {error}", path.display())))?;
    let registry = registry_of(image);
    if config.cred_helpers.keys().any(|key| host_of(key) == registry) {
        return Err(Failure::Unsupported(format!("credHelpers in {}", path.display())));
    }
    let entry = config.auths.into_iter().find(|(key, _)| host_of(key) == registry).map(|(_, entry)| entry);
    if let Some(auth) = entry.map(|entry| read_entry(entry, registry, path)).transpose()?.flatten() {
        return Ok(Some(auth));
    }
    if config.creds_store.is_empty() {
        Ok(None)
    } else {
        Err(Failure::Unsupported(format!("credsStore in {}", path.display())))
    }
}

/// An entry without anything in it only says that a credential store has it.
fn read_entry(entry: Entry, registry: &str, path: &Path) -> Result<Option<RegistryAuth>, Failure> {
    let token = [entry.identitytoken, entry.registrytoken].into_iter().find(|token| !token.is_empty());
    if let Some(token) = token {
        return Ok(Some(RegistryAuth { token, ..RegistryAuth::default() }));
    }
    let (username, password) = if entry.auth.is_empty() {
        (entry.username, entry.password)
    } else {
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(entry.auth.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        let (username, password) = pair.ok_or_else(|| {
            Failure::Usage(format!("{}: the entry for {registry} is not base64 of user:password", path.display()))
        })?;
        (username.to_owned(), password.trim_end_matches('\0').to_owned())
    };
    Ok((!username.is_empty()).then(|| RegistryAuth { username, password, ..RegistryAuth::default() }))
}

/// `https://index.docker.io/v1/` and `index.docker.io` mean the same.
fn host_of(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = key.split('/').next().unwrap_or(key);
    if host == "docker.io" || host == "registry-1.docker.io" { DOCKER_HUB } else { host }
}

/// The registry of an image: its first part if that looks like a host.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => host_of(first),
        _ => DOCKER_HUB,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn find(config: &str, image: &str) -> Result<Option<RegistryAuth>, Failure> {
        from_config(config.as_bytes(), image, Path::new("config.json"))
    }

    #[test]
    fn registries_of_images() {
        assert_eq!(registry_of("nginx"), DOCKER_HUB);
        assert_eq!(registry_of("library/nginx:1"), DOCKER_HUB);
        assert_eq!(registry_of("docker.io/library/nginx"), DOCKER_HUB);
        assert_eq!(registry_of("localhost/a"), "localhost");
        assert_eq!(registry_of("registry.example:5000/a/b"), "registry.example:5000");
    }

    #[test]
    fn entries() {
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dXNlcjpwYTpzcw=="},
            "registry.example:5000": {"username": "u", "password": "p"},
            "token.example": {"identitytoken": "t"},
            "empty.example": {},
            "bad.example": {"auth": "!!"}
        }}"#;
        let hub = find(config, "nginx").unwrap().unwrap();
        assert_eq!((hub.username.as_str(), hub.password.as_str()), ("user", "pa:ss"));
        assert_eq!(find(config, "registry.example:5000/x").unwrap().unwrap().username, "u");
        assert_eq!(find(config, "token.example/x").unwrap().unwrap().token, "t");
        assert!(find(config, "empty.example/x").unwrap().is_none());
        assert!(find(config, "other.example/x").unwrap().is_none());
        assert!(matches!(find(config, "bad.example/x"), Err(Failure::Usage(_))));
    }

    #[test]
    fn stores_are_not_supported_yet() {
        let config = r#"{"auths": {"registry.example": {}}, "credsStore": "desktop"}"#;
        assert_eq!(
            find(config, "registry.example/x").unwrap_err().to_string(),
            "not supported yet: credsStore in config.json"
        );
        assert!(matches!(find("{", "x"), Err(Failure::Usage(_))));
    }
}
