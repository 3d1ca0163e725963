//! The message that tells `skep-shim exec` what to run in which container, as the first thing on its connection.
//!
//! Sent by skep-runtime, read once by the process that it has just started from the same build, so it has no versions to
//! bridge. Two lengths (`u32`, little endian) go before it: of the text (`key=value` ended by NUL, because a path may hold
//! every other byte) and of the seccomp program behind it.
//!
//! The answer is one line: `exited <code>`, or `failed <code> <sentence>` for a command that never ran. An end of the
//! connection from the sender's side kills the command and all that it started.

use std::io::{self, Read, Write};

use crate::fields::Fields;

/// Longest message, in bytes: more than execve(2) takes of arguments and environment by default.
const MAX_BYTES: u32 = 16 << 20;

/// A limit for setrlimit(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_…`.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A command and the container that it is to run in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The container's first process.
    pub pid: i32,
    /// Field 22 of its `/proc/<pid>/stat`: with the pid it names the process for good.
    pub start_ticks: u64,
    /// Folder of a cgroup inside the container's, made if it is not there, by which all that the command starts is found.
    pub group: String,
    /// `cgroup.kill` of that group (cgroup v2, Linux 5.14); empty: not there.
    pub kill_file: String,
    /// Folder of that group in the v1 freezer; empty: not there.
    pub freezer: String,
    /// A `cgroup.procs` that lists every process of that group.
    pub procs_file: String,
    /// Files of cgroups into which a process of one thread writes `0` to join them.
    pub join: Vec<String>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further group ids.
    pub groups: Vec<u32>,
    /// Capabilities (bit n is capability n) that it may ever hold; root holds them at once.
    pub capabilities: u64,
    /// Whether set-uid programs gain nothing (PR_SET_NO_NEW_PRIVS).
    pub no_new_privileges: bool,
    /// The AppArmor profile that the command runs under; empty: the helper's.
    pub apparmor: String,
    /// -1000 to 1000.
    pub oom_score_adj: i32,
    /// Limits of each process.
    pub rlimits: Vec<Rlimit>,
    /// Absolute working directory in the container.
    pub cwd: String,
    /// Program and arguments; at least one.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Instructions for seccomp(2), as they lie in memory; empty: no filter.
    pub filter: Vec<u8>,
}

impl Entry {
    /// Sends it.
    pub fn send(&self, mut to: impl Write) -> io::Result<()> {
        let text = self.encode()?.into_bytes();
        let mut message = Vec::with_capacity(8 + text.len() + self.filter.len());
        for part in [&text, &self.filter] {
            let length = u32::try_from(part.len()).ok().filter(|length| *length <= MAX_BYTES);
            let length = length.ok_or_else(|| io::Error::other("the command is longer than 16 MiB"))?;
            message.extend_from_slice(&length.to_le_bytes());
        }
        message.extend_from_slice(&text);
        message.extend_from_slice(&self.filter);
        to.write_all(&message)
    }

    /// Receives what [`send`](Self::send) sent, and not a byte more.
    pub fn receive(mut from: impl Read) -> io::Result<Self> {
        let mut lengths = [[0; 4]; 2];
        from.read_exact(lengths.as_flattened_mut())?;
        let [text, filter] = lengths.map(u32::from_le_bytes);
        if text > MAX_BYTES || filter > MAX_BYTES {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let (mut body, mut program) = (vec![0; text as usize], vec![0; filter as usize]);
        from.read_exact(&mut body)?;
        from.read_exact(&mut program)?;
        let entry = Self::decode(&body).ok_or(io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { filter: program, ..entry })
    }

    fn encode(&self) -> io::Result<String> {
        let mut out = Fields::with_capacity(2048);
        out.put("pid", self.pid);
        out.put("ticks", self.start_ticks);
        out.put("group", &self.group);
        out.put("kill-file", &self.kill_file);
        out.put("freezer", &self.freezer);
        out.put("procs-file", &self.procs_file);
        out.put("uid", self.uid);
        out.put("gid", self.gid);
        out.put("capabilities", self.capabilities);
        out.put("no-new-privileges", u8::from(self.no_new_privileges));
        out.put("apparmor", &self.apparmor);
        out.put("oom", self.oom_score_adj);
        out.put("cwd", &self.cwd);
        for group in &self.groups {
            out.put("further", group);
        }
        for Rlimit { resource, soft, hard } in &self.rlimits {
            out.put("rlimit", format_args!("{resource}:{soft}:{hard}"));
        }
        out.put_all("join", &self.join);
        out.put_all("arg", &self.args);
        out.put_all("env", &self.env);
        out.finish()
    }

    /// Reads what [`encode`](Self::encode) wrote. `None`: it is something else.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut entry = Self::default();
        for raw in bytes.split_inclusive(|byte| *byte == 0) {
            let (key, value) = std::str::from_utf8(raw.strip_suffix(&[0])?).ok()?.split_once('=')?;
            let text = value.to_owned();
            match key {
                "pid" => entry.pid = value.parse().ok()?,
                "ticks" => entry.start_ticks = value.parse().ok()?,
                "group" => entry.group = text,
                "kill-file" => entry.kill_file = text,
                "freezer" => entry.freezer = text,
                "procs-file" => entry.procs_file = text,
                "uid" => entry.uid = value.parse().ok()?,
                "gid" => entry.gid = value.parse().ok()?,
                "capabilities" => entry.capabilities = value.parse().ok()?,
                "no-new-privileges" => entry.no_new_privileges = value == "1",
                "apparmor" => entry.apparmor = text,
                "oom" => entry.oom_score_adj = value.parse().ok()?,
                "cwd" => entry.cwd = text,
                "further" => entry.groups.push(value.parse().ok()?),
                "rlimit" => entry.rlimits.push(Rlimit::parse(value)?),
                "join" => entry.join.push(text),
                "arg" => entry.args.push(text),
                "env" => entry.env.push(text),
                _ => return None,
            }
        }
        (entry.pid > 0 && !entry.args.is_empty()).then_some(entry)
    }
}

impl Rlimit {
    /// Reads `resource:soft:hard`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(':');
        let mut next = || numbers.next()?.parse::<u64>().ok();
        Some(Self { resource: u32::try_from(next()?).ok()?, soft: next()?, hard: next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Entry {
        Entry {
            pid: 42,
            start_ticks: 7,
            group: "/sys/fs/cgroup/x/health".into(),
            kill_file: String::new(),
            freezer: "/f".into(),
            procs_file: "/p".into(),
            join: vec!["/a/tasks".into(), "/b/cgroup.procs".into()],
            uid: 33,
            gid: 34,
            groups: vec![1, 2],
            capabilities: 1 << 40 | 3,
            no_new_privileges: true,
            apparmor: "skep-default".into(),
            oom_score_adj: -5,
            rlimits: vec![Rlimit { resource: 7, soft: 1, hard: u64::MAX }],
            cwd: "/srv".into(),
            args: vec!["sh".into(), String::new(), "a=b\nc".into()],
            env: vec!["A=b=c".into()],
            filter: vec![0, 1, 2, 0],
        }
    }

    #[test]
    fn round_trip_keeps_every_byte() {
        let mut sent = Vec::new();
        example().send(&mut sent).ok();
        sent.push(9);
        let mut rest = sent.as_slice();
        assert_eq!(Entry::receive(&mut rest).ok(), Some(example()));
        assert_eq!(rest, [9]);
    }

    #[test]
    fn refuses_what_is_cut_absurd_or_unknown() {
        let mut sent = Vec::new();
        example().send(&mut sent).ok();
        for cut in 0..sent.len() {
            assert!(Entry::receive(&sent[..cut]).is_err());
        }
        assert!(Entry::receive(&[0xff; 64][..]).is_err());
        assert_eq!(Entry::decode(b"pid=4\0arg=x\0colour=red\0"), None);
        assert_eq!(Entry::decode(b"pid=0\0arg=x\0"), None);
        assert_eq!(Entry::decode(b"pid=4\0"), None);
    }
}
