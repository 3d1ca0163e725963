//! An image as `image inspect` prints it.

use serde::Serialize;
use serde_json::Value;
use skep_proto::v1;

use crate::output::time;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ImageView {
    /// The digest that tasks run.
    id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    created: String,
    architecture: String,
    os: String,
    variant: String,
    size: i64,
    in_use: bool,
    /// The `config` part of the OCI image configuration.
    config: Value,
    #[serde(rename = "RootFS")]
    root_fs: RootFs,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs {
    r#type: &'static str,
    layers: Vec<String>,
}

/// Repository and tag of a familiar name; a port is no tag.
pub(crate) fn split_name(name: &str) -> (&str, &str) {
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, ""),
    }
}

impl From<v1::InspectImageResponse> for ImageView {
    fn from(answer: v1::InspectImageResponse) -> Self {
        let image = answer.image.unwrap_or_default();
        let platform = image.platform.unwrap_or_default();
        let config: Value = serde_json::from_slice(&answer.config_json).unwrap_or_default();
        let mut repositories: Vec<&str> = image.names.iter().map(|name| split_name(name).0).collect();
        repositories.dedup();
        Self {
            repo_digests: repositories.iter().map(|repository| format!("{repository}@{}", image.digest)).collect(),
            id: image.digest,
            repo_tags: image.names,
            created: time::rfc3339_ms(image.created_at_ms),
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
            size: image.size_bytes,
            in_use: image.in_use,
            config: config.get("config").cloned().unwrap_or_default(),
            root_fs: RootFs { r#type: "layers", layers: answer.layers },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_tag() {
        assert_eq!(split_name("nginx:1"), ("nginx", "1"));
        assert_eq!(split_name("localhost:5000/a/b:2"), ("localhost:5000/a/b", "2"));
        assert_eq!(split_name("localhost:5000/a"), ("localhost:5000/a", ""));
        assert_eq!(split_name("a@sha256:00"), ("a", ""));
    }
}
