//! One run of the benchmarks: everything that it makes is named after it, so that the supervisor finds all of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Tells the measuring process its folder.
const DIR_VARIABLE: &str = "SKEP_BENCH_DIR";

/// Folder and names of a run.
#[derive(Clone)]
pub(crate) struct Run {
    dir: PathBuf,
    name: String,
}

impl Run {
    /// A new one, named after this process.
    pub(crate) fn create() -> Result<Self> {
        let name = format!("skep-bench-{}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir, name })
    }

    /// The run that this process measures for; `None` if it was not started by [`crate::supervise`].
    pub(crate) fn of_supervisor() -> Option<Self> {
        let dir = PathBuf::from(std::env::var_os(DIR_VARIABLE)?);
        let name = dir.file_name()?.to_str()?.to_owned();
        Some(Self { dir, name })
    }

    /// What the measuring process needs to be part of this run. Its temporary files go along with the run.
    pub(crate) fn environment(&self) -> [(&'static str, &Path); 2] {
        [(DIR_VARIABLE, &self.dir), ("TMPDIR", &self.dir)]
    }

    /// Absolute.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn lab_name(&self) -> &str {
        &self.name
    }

    pub(crate) fn lab_dir(&self) -> PathBuf {
        self.dir.join("lab")
    }

    /// Cgroup of all processes of a peer, relative to the mount points of the hierarchies.
    pub(crate) fn peer_cgroup(&self) -> PathBuf {
        PathBuf::from(&self.name)
    }

    /// The cgroup below it of the peer's daemon and its helpers.
    pub(crate) fn daemon_cgroup(&self) -> PathBuf {
        self.peer_cgroup().join("daemon")
    }
}
