//! The start message: what the agent tells a new monitor, as the first thing on their connection.
//!
//! Sent by skep-runtime, read once by the monitor, both of the same build, so it has no versions to bridge; the version
//! is only checked. Three lengths (`u32`, little endian) go before it: of the text (`key=value` ended by NUL, because a
//! path may hold every other byte), of the seccomp program behind it and of the device program behind that. It is no
//! file, for every file of a container costs its start an inode of the disk.

use std::fmt;
use std::io::{self, Read, Write};

use crate::fields::Fields;
use crate::plan::Plan;

/// Version of the start message. A monitor refuses any other.
pub const CONFIG_VERSION: u32 = 5;

/// Longest part of a start message, in bytes: more than execve(2) takes of arguments and environment by default.
const MAX_BYTES: u32 = 16 << 20;

/// Everything a monitor needs. Relative paths are relative to the container's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShimConfig {
    /// Folder of the host on which the container's root file system is mounted, out of the host's sight; absolute.
    pub mount_point: String,
    /// Overlay layers, topmost first. At least one.
    pub lower: Vec<String>,
    /// A layer below all others with the folders and files that most mounts go on, so that they need not be made for each
    /// container; empty: none.
    pub points: String,
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
    /// What the container is made of.
    pub plan: Plan,
    /// The runtime that makes the container by the configuration below; empty program: the monitor does.
    pub external: External,
    /// The kind of file system that holds its secrets and configs; empty: it has none. Otherwise a byte follows the message,
    /// and with it the file in memory that they come in ([`files`](crate::files)).
    pub memory: String,
    /// That file system's options, `key[=value]` with commas in between.
    pub memory_options: String,
}

/// A program with runc's command line, and the parts of its configuration that do not depend on the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct External {
    /// Its path.
    pub program: String,
    /// The container's id.
    pub id: String,
    /// The OCI configuration as one JSON object, without `process`.
    pub config: String,
    /// `process` as one JSON object, without user, capabilities and environment.
    pub process: String,
    /// The names of the capabilities as a JSON array.
    pub capabilities: String,
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
        let text = self.encode()?;
        let parts = [text.as_bytes(), &self.plan.filter, &self.plan.device_filter];
        let mut message = Vec::with_capacity(12 + parts.iter().map(|part| part.len()).sum::<usize>());
        for part in parts {
            let length = u32::try_from(part.len()).ok().filter(|length| *length <= MAX_BYTES);
            let length =
                length.ok_or_else(|| io::Error::other("the container's configuration is longer than 16 MiB"))?;
            message.extend_from_slice(&length.to_le_bytes());
        }
        parts.iter().for_each(|part| message.extend_from_slice(part));
        to.write_all(&message)
    }

    /// Receives what [`send`](Self::send) sent, and not a byte more.
    pub fn receive(mut from: impl Read) -> io::Result<Self> {
        let mut lengths = [[0; 4]; 3];
        from.read_exact(lengths.as_flattened_mut())?;
        let lengths = lengths.map(u32::from_le_bytes);
        if lengths.iter().any(|length| *length > MAX_BYTES) {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let mut parts = lengths.map(|length| vec![0; length as usize]);
        for part in &mut parts {
            from.read_exact(part)?;
        }
        let [text, filter, device_filter] = parts;
        let mut config = Self::decode(&text).map_err(io::Error::other)?;
        (config.plan.filter, config.plan.device_filter) = (filter, device_filter);
        Ok(config)
    }

    /// The text.
    fn encode(&self) -> io::Result<String> {
        let mut out = Fields::with_capacity(4096);
        out.put("version", CONFIG_VERSION);
        out.put("mount-point", &self.mount_point);
        out.put("points", &self.points);
        out.put("upper", &self.upper);
        out.put("work", &self.work);
        out.put("log", &self.log_path);
        out.put("log-max-bytes", self.log_max_bytes);
        out.put("log-max-files", self.log_max_files);
        out.put("kill-file", &self.kill_file);
        out.put("freezer", &self.freezer);
        out.put("procs-file", &self.procs_file);
        out.put("oom-file", &self.oom_file);
        out.put_all("lower", &self.lower);
        out.put_all("join", &self.join);
        out.put_all("cgroup", &self.cgroups);
        if !self.external.program.is_empty() {
            out.put("external", &self.external.program);
            out.put("external-id", &self.external.id);
            out.put("external-config", &self.external.config);
            out.put("external-process", &self.external.process);
            out.put("external-capabilities", &self.external.capabilities);
        }
        if !self.memory.is_empty() {
            out.put("memory", &self.memory);
            out.put("memory-options", &self.memory_options);
        }
        self.plan.encode(&mut out);
        out.finish()
    }

    /// Reads what [`encode`](Self::encode) wrote.
    fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut version = None;
        for raw in bytes.split(|b| *b == 0).filter(|line| !line.is_empty()) {
            let bad = || ConfigError::Line(String::from_utf8_lossy(raw).into_owned());
            let line = std::str::from_utf8(raw).map_err(|_| bad())?;
            let (key, value) = line.split_once('=').ok_or_else(bad)?;
            let text = || value.to_owned();
            match key {
                "version" => version = value.parse::<u32>().ok(),
                "mount-point" => config.mount_point = text(),
                "points" => config.points = text(),
                "upper" => config.upper = text(),
                "work" => config.work = text(),
                "log" => config.log_path = text(),
                "log-max-bytes" => config.log_max_bytes = value.parse().map_err(|_| bad())?,
                "log-max-files" => config.log_max_files = value.parse().map_err(|_| bad())?,
                "kill-file" => config.kill_file = text(),
                "freezer" => config.freezer = text(),
                "procs-file" => config.procs_file = text(),
                "oom-file" => config.oom_file = text(),
                "lower" => config.lower.push(text()),
                "join" => config.join.push(text()),
                "cgroup" => config.cgroups.push(text()),
                "external" => config.external.program = text(),
                "external-id" => config.external.id = text(),
                "external-config" => config.external.config = text(),
                "external-process" => config.external.process = text(),
                "external-capabilities" => config.external.capabilities = text(),
                "memory" => config.memory = text(),
                "memory-options" => config.memory_options = text(),
                _ if config.plan.take(key, value) => {}
                _ => return Err(bad()),
            }
        }
        if version != Some(CONFIG_VERSION) {
            return Err(ConfigError::Version);
        }
        for (key, empty) in [
            ("mount-point", config.mount_point.is_empty()),
            ("lower", config.lower.is_empty()),
            ("upper", config.upper.is_empty()),
            ("work", config.work.is_empty()),
            ("log", config.log_path.is_empty()),
            ("arg", config.plan.args.is_empty()),
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
    use crate::plan;

    fn example() -> ShimConfig {
        ShimConfig {
            mount_point: "/d/rootfs".into(),
            lower: vec!["/a,b:c=d\n".into(), "/z".into()],
            points: "/d/points".into(),
            upper: "upper".into(),
            work: "work".into(),
            log_path: "logs/container.log".into(),
            log_max_bytes: 10_000_000,
            log_max_files: 3,
            join: vec!["/sys/fs/cgroup/x/cgroup.procs".into()],
            cgroups: vec!["/sys/fs/cgroup/x/t".into()],
            kill_file: String::new(),
            freezer: "/f".into(),
            procs_file: "/p".into(),
            oom_file: "/o".into(),
            plan: plan::tests::example(),
            external: External {
                program: "/bin/runc".into(),
                id: "x".into(),
                config: "{\"a\":\"=\"}".into(),
                process: "{}".into(),
                capabilities: "[]".into(),
            },
            memory: "tmpfs".into(),
            memory_options: "mode=755,noswap".into(),
        }
    }

    #[test]
    fn a_message_keeps_every_byte_and_ends_where_the_first_frame_begins() {
        let mut sent = Vec::new();
        example().send(&mut sent).unwrap();
        sent.extend_from_slice(b"frame");
        let mut rest = sent.as_slice();
        assert_eq!(ShimConfig::receive(&mut rest).unwrap(), example());
        assert_eq!(rest, b"frame");
        let cut = ShimConfig::receive(&sent[..40]).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        let absurd = ShimConfig::receive(&[0xff; 12][..]).unwrap_err();
        assert_eq!(absurd.kind(), io::ErrorKind::InvalidData);
        let mut huge = example();
        huge.plan.env = vec!["x".repeat(17 << 20)];
        assert!(huge.send(io::sink()).is_err());
    }

    #[test]
    fn refuses_other_versions_unknown_keys_and_holes() {
        assert_eq!(ShimConfig::decode(b"version=1\0"), Err(ConfigError::Version));
        assert_eq!(ShimConfig::decode(b""), Err(ConfigError::Version));
        assert_eq!(ShimConfig::decode(b"version=5\0colour=red\0"), Err(ConfigError::Line("colour=red".into())));
        let mut no_layers = example();
        no_layers.lower.clear();
        assert_eq!(ShimConfig::decode(no_layers.encode().unwrap().as_bytes()), Err(ConfigError::Missing("lower")));
        let mut no_command = example();
        no_command.plan.args.clear();
        assert_eq!(ShimConfig::decode(no_command.encode().unwrap().as_bytes()), Err(ConfigError::Missing("arg")));
    }
}
