//! Image manifests and indexes, OCI and Docker schema 2 (opencontainers/image-spec manifest.md and image-index.md;
//! Docker's "Image Manifest V 2, Schema 2"). Used by the pull engine, archives and the managers' resolution. Pure.
//!
//! Only the fields that matter are read; the bytes themselves are what is stored and hashed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::{self, Platform};

/// Largest manifest, index or config accepted, in bytes: registries refuse manifests above 4 MiB.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Most layers an image may have: overlayfs stacks at most 500 lower directories.
pub const MAX_LAYERS: usize = 500;
/// Most entries of an index that are looked at.
const MAX_INDEX_ENTRIES: usize = 1000;

/// OCI media types, as written by this crate.
pub mod media {
    /// An OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// A Docker image manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// A Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// An OCI image config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// An uncompressed layer.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// A gzip layer.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A zstd layer.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// What a client accepts, for the `Accept` header.
    pub const ACCEPT: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
}

/// A blob and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// See [`media`].
    #[serde(default)]
    pub media_type: String,
    /// Its content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// In an index: what the manifest is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free text, for example an image's name in an archive.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Optional in OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
}

/// The same image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Optional in OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// In order of preference.
    pub manifests: Vec<Descriptor>,
}

/// What an image digest leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One platform.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// Why bytes are not a usable manifest or index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or fields missing or of a wrong type.
    #[error("malformed manifest: {0}")]
    Json(String),
    /// Beyond [`MAX_DOCUMENT_BYTES`].
    #[error("manifest of {0} bytes is too large: at most {MAX_DOCUMENT_BYTES} are accepted")]
    TooLarge(u64),
    /// Docker's schema 1, or nothing known.
    #[error("manifest schema version {0} is not supported: push the image again with a current client")]
    Schema(u64),
    /// A manifest of something else.
    #[error("media type {0:?} is not an image manifest or index")]
    MediaType(String),
    /// No layers, or too many.
    #[error("manifest has {0} layers: 1 to {MAX_LAYERS} are supported")]
    Layers(usize),
    /// Too many entries.
    #[error("index has {0} manifests: at most {MAX_INDEX_ENTRIES} are supported")]
    Entries(usize),
    /// An artifact that is not a container image (a chart, a signature, a WebAssembly module …).
    #[error("not a container image: its config has the media type {0:?}")]
    Artifact(String),
    /// A layer in a form that cannot be unpacked.
    #[error("layer {digest} has the media type {media_type:?}, which is not a container image layer")]
    LayerType {
        /// Which layer.
        digest: Digest,
        /// What it says it is.
        media_type: String,
    },
}

/// Reads a manifest or an index. Entry for fuzzing too: never panics.
pub fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
    /// What tells the kinds apart.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        schema_version: Option<u64>,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let length = bytes.len() as u64;
    if length > MAX_DOCUMENT_BYTES {
        return Err(ManifestError::TooLarge(length));
    }
    let json = |error: serde_json::Error| ManifestError::Json(error.to_string());
    let probe: Probe = serde_json::from_slice(bytes).map_err(json)?;
    match probe.schema_version {
        Some(2) => {}
        Some(other) => return Err(ManifestError::Schema(other)),
        None => return Err(ManifestError::Json("no schemaVersion".to_owned())),
    }
    // A document that is both would be read differently by different clients (CVE-2021-41190).
    if probe.manifests.is_some() && probe.layers.is_some() {
        return Err(ManifestError::Json("it has both manifests and layers".to_owned()));
    }
    match probe.media_type.as_deref() {
        Some(media::OCI_INDEX | media::DOCKER_LIST) => index(bytes),
        Some(media::OCI_MANIFEST | media::DOCKER_MANIFEST) => manifest(bytes),
        None | Some("") if probe.manifests.is_some() => index(bytes),
        None | Some("") => manifest(bytes),
        Some(other) => Err(ManifestError::MediaType(other.to_owned())),
    }
}

fn index(bytes: &[u8]) -> Result<Document, ManifestError> {
    let index: Index = serde_json::from_slice(bytes).map_err(|error| ManifestError::Json(error.to_string()))?;
    if index.manifests.len() > MAX_INDEX_ENTRIES {
        return Err(ManifestError::Entries(index.manifests.len()));
    }
    Ok(Document::Index(index))
}

fn manifest(bytes: &[u8]) -> Result<Document, ManifestError> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| ManifestError::Json(error.to_string()))?;
    let config = manifest.config.media_type.as_str();
    if !matches!(
        config,
        "" | media::OCI_CONFIG | "application/vnd.docker.container.image.v1+json" | "application/octet-stream"
    ) {
        return Err(ManifestError::Artifact(config.to_owned()));
    }
    if manifest.layers.is_empty() || manifest.layers.len() > MAX_LAYERS {
        return Err(ManifestError::Layers(manifest.layers.len()));
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
        return Err(ManifestError::LayerType { digest: layer.digest, media_type: layer.media_type.clone() });
    }
    Ok(Document::Manifest(manifest))
}

/// Whether a media type is that of a layer we can unpack. The compression itself is told by the content.
fn is_layer(media_type: &str) -> bool {
    let Some(kind) = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.")
        .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1."))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff."))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff."))
    else {
        return media_type.is_empty();
    };
    matches!(kind, "tar" | "tar.gzip" | "tar+gzip" | "tar.zstd" | "tar+zstd")
}

impl Index {
    /// The manifest for `host`. `None` if none fits; attestations (platform `unknown`) never fit.
    pub fn choose(&self, host: &Platform) -> Option<&Descriptor> {
        let at = platform::choose(self.manifests.iter().map(|entry| entry.platform.as_ref()), host);
        match at {
            Some(at) => self.manifests.get(at),
            // An index of one entry without a platform is what single-platform archives look like.
            None if self.manifests.len() == 1 => self.manifests.first().filter(|only| only.platform.is_none()),
            None => None,
        }
    }

    /// The platforms offered, in order, each once, without attestations.
    pub fn platforms(&self) -> Vec<Platform> {
        let mut out: Vec<Platform> = Vec::new();
        for platform in self.manifests.iter().filter_map(|entry| entry.platform.clone()) {
            if platform.os != "unknown" && !out.contains(&platform) {
                out.push(platform);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn descriptor(media_type: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": Digest::of(media_type.as_bytes()), "size": 3})
    }

    fn refused(value: serde_json::Value) -> String {
        parse(value.to_string().as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn both_families_parse() {
        for (manifest_type, config, layer) in [
            (media::OCI_MANIFEST, media::OCI_CONFIG, media::OCI_LAYER_ZSTD),
            (
                media::DOCKER_MANIFEST,
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
        ] {
            let value = json!({"schemaVersion": 2, "mediaType": manifest_type, "config": descriptor(config), "layers": [descriptor(layer)]});
            assert!(matches!(parse(value.to_string().as_bytes()), Ok(Document::Manifest(m)) if m.layers.len() == 1));
        }
        let entry = |arch: &str| json!({"mediaType": media::OCI_MANIFEST, "digest": Digest::of(arch.as_bytes()), "size": 1, "platform": {"os": "linux", "architecture": arch}});
        let value = json!({"schemaVersion": 2, "manifests": [entry("arm64"), entry("amd64")]});
        let Ok(Document::Index(index)) = parse(value.to_string().as_bytes()) else { panic!("not an index") };
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        assert_eq!(index.choose(&host).unwrap().digest, Digest::of(b"amd64"));
        assert_eq!(platform::list(&index.platforms()), "linux/arm64, linux/amd64");
    }

    #[test]
    fn refusals() {
        let config = descriptor(media::OCI_CONFIG);
        let layer = descriptor(media::OCI_LAYER);
        assert!(refused(json!([])).contains("malformed"));
        assert!(refused(json!({})).contains("schemaVersion"));
        assert!(refused(json!({"schemaVersion": 1})).contains("version 1"));
        assert!(refused(json!({"schemaVersion": 2, "config": config, "layers": []})).contains("0 layers"));
        assert!(refused(json!({"schemaVersion": 2, "layers": [], "manifests": []})).contains("both"));
        assert!(refused(json!({"schemaVersion": 2, "mediaType": "text/plain"})).contains("text/plain"));
        let helm = descriptor("application/vnd.cncf.helm.config.v1+json");
        assert!(
            refused(json!({"schemaVersion": 2, "config": helm, "layers": [layer]})).contains("not a container image")
        );
        let odd = descriptor("application/wasm");
        assert!(refused(json!({"schemaVersion": 2, "config": config, "layers": [odd]})).contains("application/wasm"));
        let negative =
            json!({"schemaVersion": 2, "config": {"digest": Digest::of(b""), "size": -1}, "layers": [layer]});
        assert!(refused(negative).contains("malformed"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
