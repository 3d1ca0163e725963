//! What people type, and scripts.

use serde_json::json;

use crate::{halves, text};

/// The value of any flag.
pub fn cli_values(data: &[u8]) {
    skep_cli::fuzzing::value(text(data), 1_700_000_000_000_000_000);
}

/// `--format` templates, filled in with a row.
pub fn cli_format(data: &[u8]) {
    let (template, value) = halves(data);
    let row = json!({
        "ID": "q8xnzk5r2v", "Name": text(value), "Replicas": 3, "Ratio": 0.5, "Ports": ["80", "443"], "Labels": {"a.b": "c"},
        "Spec": {"Mode": {"Replicated": {"Replicas": u64::MAX}}, "Nothing": null},
    });
    let _ = skep_cli::fuzzing::format(text(template), &row);
}

/// `~/.docker/config.json`, and the image whose registry's credential is looked for.
pub fn docker_config(data: &[u8]) {
    let (image, json) = halves(data);
    skep_cli::fuzzing::docker_config(json, text(image));
}
