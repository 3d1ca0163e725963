//! The start file `shim.conf`: what the agent tells a new monitor.
//!
//! Written by skep-runtime, read once by the monitor, both of the same build, so it has no versions to bridge; the
//! version is only checked. The form is `key=value` ended by NUL, because a path may hold every other byte.

use std::fmt;

/// Version of the start file. A monitor refuses any other.
pub const CONFIG_VERSION: u32 = 1;

/// Everything a monitor needs. Relative paths are relative to the container's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShimConfig {
    /// Where the root file system is mounted.
    pub rootfs: String,
    /// Overlay layers, topmost first. At least one.
    pub lower: Vec<String>,
    /// The writable layer.
    pub upper: String,
    /// Overlay's work directory, on the same file system as `upper`.
    pub work: String,
    /// Current log file; rotated ones get `.1`, `.2`, … behind the name.
    pub log_path: String,
    /// Size in bytes at which the log is rotated.
    pub log_max_bytes: u64,
    /// How many log files are kept, the current one included; at least 1.
    pub log_max_files: u32,
    /// Program and arguments that create the container.
    pub creator: Vec<String>,
    /// `cgroup.procs` files that the monitor joins.
    pub join: Vec<String>,
    /// The container's cgroup folders, removed after its end.
    pub cgroups: Vec<String>,
    /// `cgroup.kill` of the container (cgroup v2, Linux 5.14); empty: not there.
    pub kill_file: String,
    /// Folder of the v1 freezer of the container; empty: not there.
    pub freezer: String,
    /// A `cgroup.procs` that lists every process of the container.
    pub procs_file: String,
    /// File with a line `oom_kill N` (v1 `memory.oom_control`, v2 `memory.events`); empty: not there.
    pub oom_file: String,
}

/// Why a start file was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigError {
    /// Another version, or none.
    Version,
    /// A line that is not `key=value`, is not UTF-8, has an unknown key or a bad number.
    Line(String),
    /// A required key is absent.
    Missing(&'static str),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version => write!(f, "start file is not of version {CONFIG_VERSION}"),
            Self::Line(line) => write!(f, "start file has a bad line {line:?}"),
            Self::Missing(key) => write!(f, "start file lacks {key:?}"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl ShimConfig {
    /// The file's contents.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        let mut put = |key: &str, value: &str| {
            out.extend_from_slice(key.as_bytes());
            out.push(b'=');
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        };
        put("version", &CONFIG_VERSION.to_string());
        put("rootfs", &self.rootfs);
        put("upper", &self.upper);
        put("work", &self.work);
        put("log", &self.log_path);
        put("log-max-bytes", &self.log_max_bytes.to_string());
        put("log-max-files", &self.log_max_files.to_string());
        put("kill-file", &self.kill_file);
        put("freezer", &self.freezer);
        put("procs-file", &self.procs_file);
        put("oom-file", &self.oom_file);
        for (key, values) in
            [("lower", &self.lower), ("creator", &self.creator), ("join", &self.join), ("cgroup", &self.cgroups)]
        {
            for value in values {
                put(key, value);
            }
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut version = None;
        for raw in bytes.split(|b| *b == 0).filter(|line| !line.is_empty()) {
            let bad = || ConfigError::Line(String::from_utf8_lossy(raw).into_owned());
            let line = std::str::from_utf8(raw).map_err(|_| bad())?;
            let (key, value) = line.split_once('=').ok_or_else(bad)?;
            let text = value.to_owned();
            match key {
                "version" => version = value.parse::<u32>().ok(),
                "rootfs" => config.rootfs = text,
                "upper" => config.upper = text,
                "work" => config.work = text,
                "log" => config.log_path = text,
                "log-max-bytes" => config.log_max_bytes = value.parse().map_err(|_| bad())?,
                "log-max-files" => config.log_max_files = value.parse().map_err(|_| bad())?,
                "kill-file" => config.kill_file = text,
                "freezer" => config.freezer = text,
                "procs-file" => config.procs_file = text,
                "oom-file" => config.oom_file = text,
                "lower" => config.lower.push(text),
                "creator" => config.creator.push(text),
                "join" => config.join.push(text),
                "cgroup" => config.cgroups.push(text),
                _ => return Err(bad()),
            }
        }
        if version != Some(CONFIG_VERSION) {
            return Err(ConfigError::Version);
        }
        for (key, empty) in [
            ("rootfs", config.rootfs.is_empty()),
            ("lower", config.lower.is_empty()),
            ("upper", config.upper.is_empty()),
            ("work", config.work.is_empty()),
            ("log", config.log_path.is_empty()),
            ("creator", config.creator.is_empty()),
        ] {
            if empty {
                return Err(ConfigError::Missing(key));
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> ShimConfig {
        ShimConfig {
            rootfs: "rootfs".into(),
            lower: vec!["/a,b:c=d\n".into(), "/z".into()],
            upper: "upper".into(),
            work: "work".into(),
            log_path: "logs/container.log".into(),
            log_max_bytes: 10_000_000,
            log_max_files: 3,
            creator: vec!["/bin/skep".into(), "create-container".into(), "/d".into()],
            join: vec!["/sys/fs/cgroup/x/cgroup.procs".into()],
            cgroups: vec!["/sys/fs/cgroup/x/t".into()],
            kill_file: String::new(),
            freezer: "/f".into(),
            procs_file: "/p".into(),
            oom_file: "/o".into(),
        }
    }

    #[test]
    fn round_trip_keeps_every_byte() {
        assert_eq!(ShimConfig::decode(&example().encode()), Ok(example()));
    }

    #[test]
    fn refuses_other_versions_unknown_keys_and_holes() {
        assert_eq!(ShimConfig::decode(b"version=2\0"), Err(ConfigError::Version));
        assert_eq!(ShimConfig::decode(b""), Err(ConfigError::Version));
        assert_eq!(ShimConfig::decode(b"version=1\0colour=red\0"), Err(ConfigError::Line("colour=red".into())));
        let mut no_layers = example();
        no_layers.lower.clear();
        assert_eq!(ShimConfig::decode(&no_layers.encode()), Err(ConfigError::Missing("lower")));
    }
}
