//! Prints the figures and appends them to `target/bench/results.jsonl`.

use std::fs::{self, File, OpenOptions};
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::metric::{self, Metric};

/// A peer's figure.
pub(crate) struct Peer {
    /// With its version: `Docker Swarm 20.10.24`.
    pub(crate) name: String,
    pub(crate) value: f64,
}

/// Where figures go.
pub(crate) struct Report {
    file: File,
}

impl Report {
    /// Prints the table's head.
    pub(crate) fn open() -> Result<Self> {
        let path = target_dir().join("bench/results.jsonl");
        let dir = path.parent().expect("the path was joined to a folder");
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        writeln!(stdout(), "metric | skep | peer | ratio")?;
        Ok(Self { file })
    }

    /// One metric. The ratio says how many times better skep's figure is.
    pub(crate) fn add(&mut self, metric: &Metric, skep: f64, peer: Option<&Peer>) -> Result<()> {
        // Not one by nothing, which is no number of JSON.
        let ratio = peer.map(|peer| metric.ratio(skep, peer.value)).filter(|ratio| ratio.is_finite());
        let unit = metric.unit;
        let peer_text = peer.map_or("-".to_owned(), |peer| format!("{} {unit} ({})", number(peer.value), peer.name));
        let ratio_text = ratio
            .map_or("-".to_owned(), |ratio| if ratio < 10.0 { format!("{ratio:.2}") } else { format!("{ratio:.1}") });
        writeln!(stdout(), "{} | {} {unit} | {peer_text} | {ratio_text}", metric.name, number(skep))?;
        let line = json!({
            "metric": metric.name,
            "unit": unit,
            "skep": skep,
            "peer": peer.map(|peer| peer.value),
            "peer_name": peer.map(|peer| &peer.name),
            "ratio": ratio,
        });
        // One write, so that runs side by side do not mix their lines.
        self.file.write_all(format!("{line}\n").as_bytes()).context("cannot write the results")
    }

    /// A metric that skep has no figure for: shown, but no result.
    pub(crate) fn missing(&mut self, metric: &Metric, peer: Option<&Peer>) -> Result<()> {
        let peer =
            peer.map_or("-".to_owned(), |peer| format!("{} {} ({})", number(peer.value), metric.unit, peer.name));
        writeln!(stdout(), "{} | not measured | {peer} | -", metric.name).context("cannot print")
    }
}

/// `bench --list`.
pub(crate) fn print_names() {
    let names: Vec<&str> = metric::all().map(|metric| metric.name).collect();
    // Fails only when the reader is gone.
    let _ = writeln!(stdout(), "{}", names.join("\n"));
}

/// Three digits after the point for small figures, one for large ones.
fn number(value: f64) -> String {
    if value < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") }
}

fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target"),
    }
}
