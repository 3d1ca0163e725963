//! Image configs (opencontainers/image-spec config.md, with Docker's `Healthcheck`). Used by the store to say how to run
//! an image, and by archives and imports to make one. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;

/// How an image wants to be run, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// RFC 3339, as the builder wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// What it runs on.
    #[serde(flatten)]
    pub platform: Platform,
    /// How it runs.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: RunConfig,
    /// The layers by uncompressed content.
    pub rootfs: RootFs,
    /// How it was made, lowest layer first.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// The defaults a container of this image starts with. Empty means not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user`, `uid`, `user:group`, `uid:gid` …; empty is root.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Keys `8080/tcp`; the values are always empty objects.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `KEY=value`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// In front of `cmd` or of the arguments given.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Default arguments.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Paths that want a volume.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Empty>,
    /// Absolute path; empty is `/`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Free text.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `15` …; `None` is SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// What shell lines are given to; empty is `/bin/sh -c`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// The check that tells whether it works. `None`: not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// Docker's health check. Durations are nanoseconds on the wire; zero means the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", line]`; empty inherits.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub interval: Duration,
    /// For one check.
    #[serde(with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub timeout: Duration,
    /// Failures at the start that do not count.
    #[serde(with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub start_period: Duration,
    /// Between two checks during the start period.
    #[serde(with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub start_interval: Duration,
    /// Failures in a row that make it unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: u32,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// sha256 of each uncompressed layer, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// One step of the build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// True if the step made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// `{}` on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Why bytes are not a usable image config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or fields missing or of a wrong type.
    #[error("malformed image config: {0}")]
    Json(String),
    /// The config and the manifest disagree.
    #[error("the image config lists {config} layers and the manifest {manifest}")]
    LayerCount {
        /// `rootfs.diff_ids`.
        config: usize,
        /// `layers`.
        manifest: usize,
    },
    /// A value that a container could not be started with.
    #[error("malformed image config: {0} contains a zero byte")]
    Nul(&'static str),
}

impl ImageConfig {
    /// Reads a config. Entry for fuzzing too: never panics.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(bytes).map_err(|error| ConfigError::Json(error.to_string()))?;
        let run = &config.config;
        let lists = [("Env", &run.env), ("Entrypoint", &run.entrypoint), ("Cmd", &run.cmd), ("Shell", &run.shell)];
        for (name, values) in lists {
            if values.iter().any(|value| value.contains('\0')) {
                return Err(ConfigError::Nul(name));
            }
        }
        if run.healthcheck.iter().flat_map(|check| &check.test).any(|word| word.contains('\0')) {
            return Err(ConfigError::Nul("Healthcheck"));
        }
        if run.working_dir.contains('\0') {
            return Err(ConfigError::Nul("WorkingDir"));
        }
        Ok(config)
    }

    /// Checks that it has one diff id for each layer of a manifest.
    pub fn check_layers(&self, manifest: usize) -> Result<(), ConfigError> {
        match self.rootfs.diff_ids.len() {
            config if config == manifest => Ok(()),
            config => Err(ConfigError::LayerCount { config, manifest }),
        }
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// Docker writes `null` for every empty list and map.
fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Go's `time.Duration` in JSON. Negative values mean the default, as zero does.
mod nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let value = Option::<i64>::deserialize(deserializer)?.unwrap_or(0);
        Ok(Duration::from_nanos(u64::try_from(value).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn docker_config_parses() {
        let value = json!({
            "architecture": "arm64", "variant": "v8", "os": "linux", "created": "2024-01-01T00:00:00Z",
            "container": "ignored",
            "config": {
                "User": "www", "ExposedPorts": {"80/tcp": {}}, "Env": ["PATH=/bin"], "Cmd": null,
                "Entrypoint": ["/run.sh"], "Volumes": null, "WorkingDir": "/srv", "Labels": {"a": "b"},
                "StopSignal": "SIGQUIT", "ArgsEscaped": true, "OnBuild": null,
                "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5000000000u64, "Retries": 3, "Timeout": -1},
                "Shell": ["/bin/bash", "-c"],
            },
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"x")]},
            "history": null,
        });
        let config = ImageConfig::parse(value.to_string().as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64/v8");
        assert_eq!((config.config.user.as_str(), config.config.cmd.len()), ("www", 0));
        let health = config.config.healthcheck.as_ref().unwrap();
        assert_eq!((health.interval, health.timeout, health.retries), (Duration::from_secs(5), Duration::ZERO, 3));
        assert_eq!(config.config.shell, ["/bin/bash", "-c"]);
        assert!(config.check_layers(1).is_ok());
        assert!(config.check_layers(2).unwrap_err().to_string().contains("lists 1 layers and the manifest 2"));
        let again = ImageConfig::parse(&serde_json::to_vec(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn zero_bytes_are_refused() {
        let value =
            json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["a\0b"]}, "rootfs": {"diff_ids": []}});
        assert!(ImageConfig::parse(value.to_string().as_bytes()).unwrap_err().to_string().contains("Cmd"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = ImageConfig::parse(&bytes);
        }
    }
}
