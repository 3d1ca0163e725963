//! The start message: what the agent tells a new monitor, as the first thing on their connection.
//!
//! Sent by skep-runtime, read once by the monitor, both of the same build, so it has no versions to bridge; the version
//! is only checked. A length (`u32`, little endian) goes before it. The form is `key=value` ended by NUL, because a path
//! may hold every other byte. It is no file, for every file of a container costs its start an inode of the disk.

use std::fmt;
use std::io::{self, Read, Write};

/// Version of the start message. A monitor refuses any other.
pub const CONFIG_VERSION: u32 = 2;

/// Longest start message, in bytes: more than execve(2) takes of arguments and environment by default.
const MAX_BYTES: u32 = 16 << 20;

/// Everything a monitor needs. Relative paths are relative to the container's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShimConfig {
    /// Where the monitor mounts a small file system in memory, for the creator alone; absolute. The root file system is
    /// mounted on `rootfs` in it.
    pub bundle: String,
    /// What the creator finds in it as `creator.json`.
    pub creator_file: String,
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
    /// Files of cgroups (`tasks`, `cgroup.procs`) into which the monitor writes `0` to join them.
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

/// Why a start message was refused.
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
            Self::Version => write!(f, "start message is not of version {CONFIG_VERSION}"),
            Self::Line(line) => write!(f, "start message has a bad line {line:?}"),
            Self::Missing(key) => write!(f, "start message lacks {key:?}"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl ShimConfig {
    /// Sends it.
    pub fn send(&self, mut to: impl Write) -> io::Result<()> {
        let body = self.encode();
        let length = u32::try_from(body.len()).ok().filter(|length| *length <= MAX_BYTES);
        let length = length.ok_or_else(|| io::Error::other("the container's configuration is longer than 16 MiB"))?;
        to.write_all(&length.to_le_bytes())?;
        to.write_all(&body)
    }

    /// Receives what [`send`](Self::send) sent, and not a byte more.
    pub fn receive(mut from: impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length > MAX_BYTES {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let mut body = vec![0; length as usize];
        from.read_exact(&mut body)?;
        Self::decode(&body).map_err(io::Error::other)
    }

    /// The message.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        let mut put = |key: &str, value: &str| {
            out.extend_from_slice(key.as_bytes());
            out.push(b'=');
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        };
        put("version", &CONFIG_VERSION.to_string());
        put("bundle", &self.bundle);
        put("creator-file", &self.creator_file);
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
    fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut version = None;
        for raw in bytes.split(|b| *b == 0).filter(|line| !line.is_empty()) {
            let bad = || ConfigError::Line(String::from_utf8_lossy(raw).into_owned());
            let line = std::str::from_utf8(raw).map_err(|_| bad())?;
            let (key, value) = line.split_once('=').ok_or_else(bad)?;
            let text = value.to_owned();
            match key {
                "version" => version = value.parse::<u32>().ok(),
                "bundle" => config.bundle = text,
                "creator-file" => config.creator_file = text,
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
            ("bundle", config.bundle.is_empty()),
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
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn example() -> ShimConfig {
        ShimConfig {
            bundle: "/d/bundle".into(),
            creator_file: "{\"id\":\"a=b\\n\"}".into(),
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
    fn a_message_ends_where_the_first_frame_begins() {
        let mut sent = Vec::new();
        example().send(&mut sent).unwrap();
        sent.extend_from_slice(b"frame");
        let mut rest = sent.as_slice();
        assert_eq!(ShimConfig::receive(&mut rest).unwrap(), example());
        assert_eq!(rest, b"frame");
        let cut = ShimConfig::receive(&sent[..40]).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        let absurd = ShimConfig::receive(&u32::MAX.to_le_bytes()[..]).unwrap_err();
        assert_eq!(absurd.kind(), io::ErrorKind::InvalidData);
        let huge = ShimConfig { creator_file: "x".repeat(17 << 20), ..example() };
        assert!(huge.send(io::sink()).is_err());
    }

    #[test]
    fn refuses_other_versions_unknown_keys_and_holes() {
        assert_eq!(ShimConfig::decode(b"version=1\0"), Err(ConfigError::Version));
        assert_eq!(ShimConfig::decode(b""), Err(ConfigError::Version));
        assert_eq!(ShimConfig::decode(b"version=2\0colour=red\0"), Err(ConfigError::Line("colour=red".into())));
        let mut no_layers = example();
        no_layers.lower.clear();
        assert_eq!(ShimConfig::decode(&no_layers.encode()), Err(ConfigError::Missing("lower")));
    }
}
