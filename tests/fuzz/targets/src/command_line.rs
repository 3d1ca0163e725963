//! What people type, and scripts.

use std::path::{Component, Path};

use serde_json::json;

use crate::{choose, halves, text};

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

/// Contexts: managers' addresses, a client's file, a context's name.
pub fn contexts(data: &[u8]) {
    let (kind, rest) = choose(data);
    match kind % 3 {
        0 => {
            let Some(hosts) = skep_cli::fuzzing::hosts(text(rest)) else { return };
            assert_eq!(skep_cli::fuzzing::hosts(&skep_cli::fuzzing::show_hosts(&hosts)), Some(hosts));
        }
        1 => {
            let Some(first) = skep_cli::fuzzing::bundle(text(rest)) else { return };
            assert!(!first.1.is_empty(), "a context has managers");
            assert_eq!(skep_cli::fuzzing::bundle(&first.0).as_ref(), Some(&first), "it is read as it was written");
        }
        _ => {
            if skep_cli::fuzzing::context_name(text(rest)) {
                let mut parts = Path::new(text(rest)).components();
                assert!(matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)), "a file's name");
            }
        }
    }
}
