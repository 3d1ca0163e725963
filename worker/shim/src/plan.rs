//! The plan of a container: all that its first process does before it becomes the container's command, worked out by the
//! agent as far as that can be done before the root file system is mounted.
//!
//! Part of the start message ([`config`](crate::config)). Pure. Numbers are the kernel's own (`MOUNT_ATTR_…`, `RLIMIT_…`,
//! `CLONE_…`), so that the monitor translates nothing.

use crate::entry::Rlimit;
use crate::fields::Fields;
use crate::ids::IdRange;

/// What a container is made of. Paths of the container are absolute and name its own tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Written into files of the container's cgroups, in this order, when they have been made.
    pub settings: Vec<Setting>,
    /// Folder of the container's group in cgroup v2, where that is the only hierarchy; empty: v1.
    pub unified: String,
    /// Files of cgroups into which the first process writes `0` to join them.
    pub join: Vec<String>,
    /// Instructions that tell which devices may be used in `unified`, as they lie in memory; empty: none are asked.
    pub device_filter: Vec<u8>,
    /// The namespaces that it gets of its own, besides those of mounts and process ids: `CLONE_NEW…`.
    pub namespaces: u32,
    /// The network namespace that it joins; empty: its monitor's.
    pub network: String,
    /// The user namespace that it joins, which owns `network`; empty: the host's. With it come the ids that it has.
    pub user_namespace: String,
    /// Its user ids; empty: the host's.
    pub uids: Vec<IdRange>,
    /// Its group ids; empty: the host's.
    pub gids: Vec<IdRange>,
    /// Host name in a namespace of its own; empty: the monitor's.
    pub hostname: String,
    /// Mounted in this order.
    pub mounts: Vec<Mount>,
    /// Symbolic links, made in this order when all is mounted: place and target.
    pub links: Vec<(String, String)>,
    /// Device nodes, made on the mount at `/dev`; empty where that is not the container's own.
    pub devices: Vec<Device>,
    /// Kernel parameters: path below `/proc/sys`, and value.
    pub sysctls: Vec<(String, String)>,
    /// Covered, where they are there.
    pub masked: Vec<String>,
    /// Made read-only, where they are there.
    pub read_only: Vec<String>,
    /// Whether the root is.
    pub read_only_root: bool,
    /// `user[:group]` by name or id, looked up in the root file system. Empty: root.
    pub user: String,
    /// Further groups, by name or id.
    pub groups: Vec<String>,
    /// Capabilities (bit n is capability n) that it may ever hold; root holds them at once.
    pub capabilities: u64,
    /// Whether set-uid programs gain nothing (PR_SET_NO_NEW_PRIVS).
    pub no_new_privileges: bool,
    /// The AppArmor profile that its command runs under; empty: its monitor's.
    pub apparmor: String,
    /// -1000 to 1000.
    pub oom_score_adj: i32,
    /// Limits of each process.
    pub rlimits: Vec<Rlimit>,
    /// Working directory; made if it is not there.
    pub cwd: String,
    /// Program and arguments; at least one.
    pub args: Vec<String>,
    /// How many of `args` come before the command itself: those of a tiny init.
    pub wrapped: u32,
    /// `NAME=value`; HOME is added where it is not there.
    pub env: Vec<String>,
    /// Instructions for seccomp(2), as they lie in memory; empty: no filter.
    pub filter: Vec<u8>,
}

/// A value of a cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Setting {
    /// The file.
    pub file: String,
    /// What is written.
    pub value: String,
}

/// A file system at a place of the container's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// Where; made if it is not there.
    pub target: String,
    /// `MOUNT_ATTR_…` of mount_setattr(2).
    pub attributes: u64,
    /// What.
    pub what: What,
    /// Whether it is one of every container's, and not the user's: its place must be a true folder, without links on the
    /// way to it.
    pub standard: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A new instance of a kind of file system.
    New {
        /// As in `/proc/filesystems`.
        kind: String,
        /// Its options, `key[=value]` with commas in between.
        options: String,
    },
    /// A path of the host.
    Bind {
        /// The path.
        source: String,
        /// With what is mounted below.
        recursive: bool,
        /// `MS_PRIVATE`, `MS_SHARED` or `MS_SLAVE`.
        propagation: u64,
    },
    /// A file or folder of the file system that holds the container's secrets and configs.
    Memory {
        /// Its path there.
        path: String,
    },
}

impl Default for What {
    fn default() -> Self {
        Self::New { kind: String::new(), options: String::new() }
    }
}

/// A character device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Name in `/dev`, and the path of the host's own by it.
    pub name: String,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Plan {
    /// Adds its fields to a message. The two programs are not text and travel by themselves.
    pub(crate) fn encode(&self, out: &mut Fields) {
        for Setting { file, value } in &self.settings {
            out.put("setting", file);
            out.put("setting-value", value);
        }
        out.put("unified", &self.unified);
        out.put("namespaces", self.namespaces);
        out.put("network", &self.network);
        out.put("user-namespace", &self.user_namespace);
        out.put_all("uids", &self.uids);
        out.put_all("gids", &self.gids);
        out.put("hostname", &self.hostname);
        out.put("apparmor", &self.apparmor);
        for mount in &self.mounts {
            mount.encode(out);
        }
        for (at, to) in &self.links {
            out.put("link", at);
            out.put("link-to", to);
        }
        for Device { name, major, minor } in &self.devices {
            out.put("device", format_args!("{major}:{minor}:{name}"));
        }
        for (path, value) in &self.sysctls {
            out.put("sysctl", path);
            out.put("sysctl-value", value);
        }
        out.put("read-only-root", u8::from(self.read_only_root));
        out.put("user", &self.user);
        out.put("capabilities", self.capabilities);
        out.put("no-new-privileges", u8::from(self.no_new_privileges));
        out.put("oom", self.oom_score_adj);
        for Rlimit { resource, soft, hard } in &self.rlimits {
            out.put("rlimit", format_args!("{resource}:{soft}:{hard}"));
        }
        out.put("cwd", &self.cwd);
        out.put("wrapped", self.wrapped);
        out.put_all("enter", &self.join);
        out.put_all("masked", &self.masked);
        out.put_all("read-only", &self.read_only);
        out.put_all("group", &self.groups);
        out.put_all("arg", &self.args);
        out.put_all("env", &self.env);
    }

    /// Takes one field of the text; false: it is none, or out of place.
    pub(crate) fn take(&mut self, key: &str, value: &str) -> bool {
        self.try_take(key, value).is_some()
    }

    fn try_take(&mut self, key: &str, value: &str) -> Option<()> {
        let text = || value.to_owned();
        match key {
            "setting" => self.settings.push(Setting { file: text(), value: String::new() }),
            "setting-value" => self.settings.last_mut()?.value = text(),
            "unified" => self.unified = text(),
            "namespaces" => self.namespaces = value.parse().ok()?,
            "network" => self.network = text(),
            "user-namespace" => self.user_namespace = text(),
            "uids" => self.uids.push(IdRange::parse(value)?),
            "gids" => self.gids.push(IdRange::parse(value)?),
            "hostname" => self.hostname = text(),
            "apparmor" => self.apparmor = text(),
            "mount" => self.mounts.push(Mount { target: text(), ..Mount::default() }),
            "link" => self.links.push((text(), String::new())),
            "link-to" => self.links.last_mut()?.1 = text(),
            "device" => self.devices.push(device(value)?),
            "sysctl" => self.sysctls.push((text(), String::new())),
            "sysctl-value" => self.sysctls.last_mut()?.1 = text(),
            "read-only-root" => self.read_only_root = value == "1",
            "user" => self.user = text(),
            "capabilities" => self.capabilities = value.parse().ok()?,
            "no-new-privileges" => self.no_new_privileges = value == "1",
            "oom" => self.oom_score_adj = value.parse().ok()?,
            "rlimit" => self.rlimits.push(Rlimit::parse(value)?),
            "cwd" => self.cwd = text(),
            "wrapped" => self.wrapped = value.parse().ok()?,
            "enter" => self.join.push(text()),
            "masked" => self.masked.push(text()),
            "read-only" => self.read_only.push(text()),
            "group" => self.groups.push(text()),
            "arg" => self.args.push(text()),
            "env" => self.env.push(text()),
            _ => return self.mounts.last_mut()?.take(key, value),
        }
        Some(())
    }

    /// The command without what wraps it.
    pub fn command(&self) -> &[String] {
        self.args.get(self.wrapped as usize..).unwrap_or_default()
    }
}

impl Mount {
    fn encode(&self, out: &mut Fields) {
        out.put("mount", &self.target);
        out.put("mount-attributes", self.attributes);
        out.put("mount-standard", u8::from(self.standard));
        match &self.what {
            What::New { kind, options } => {
                out.put("mount-new", kind);
                out.put("mount-options", options);
            }
            What::Bind { source, recursive, propagation } => {
                out.put("mount-bind", source);
                out.put("mount-recursive", u8::from(*recursive));
                out.put("mount-propagation", propagation);
            }
            What::Memory { path } => out.put("mount-memory", path),
        }
    }

    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        let text = || value.to_owned();
        match (key, &mut self.what) {
            ("mount-attributes", _) => self.attributes = value.parse().ok()?,
            ("mount-standard", _) => self.standard = value == "1",
            ("mount-new", what) => *what = What::New { kind: text(), options: String::new() },
            ("mount-options", What::New { options, .. }) => *options = text(),
            ("mount-bind", what) => *what = What::Bind { source: text(), recursive: false, propagation: 0 },
            ("mount-memory", what) => *what = What::Memory { path: text() },
            ("mount-recursive", What::Bind { recursive, .. }) => *recursive = value == "1",
            ("mount-propagation", What::Bind { propagation, .. }) => *propagation = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

fn device(text: &str) -> Option<Device> {
    let mut parts = text.splitn(3, ':');
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Device { name: parts.next()?.to_owned(), major, minor })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every field with something in it.
    pub(crate) fn example() -> Plan {
        let text = |text: &str| text.to_owned();
        Plan {
            settings: vec![
                Setting { file: text("/m/limit"), value: text("1\n2=3") },
                Setting { file: text("/c"), ..Setting::default() },
            ],
            unified: text("/u"),
            join: vec![text("/a/tasks")],
            device_filter: vec![0, 9, 0],
            namespaces: 0x0800_0000,
            network: text("/run/net=x"),
            user_namespace: text("/run/user=x"),
            uids: vec![IdRange { inside: 0, outside: 100_000, count: 9 }, IdRange { inside: 9, outside: 1, count: 1 }],
            gids: vec![IdRange { inside: 0, outside: 200_000, count: 9 }],
            hostname: text("web"),
            apparmor: text("skep-default"),
            mounts: vec![
                Mount {
                    target: text("/proc"),
                    attributes: 14,
                    what: What::New { kind: text("proc"), options: text("a=b,c") },
                    standard: true,
                },
                Mount {
                    target: text("/d\n=é"),
                    attributes: 1,
                    what: What::Bind { source: text("/s=1"), recursive: true, propagation: 1 << 18 },
                    standard: false,
                },
                Mount {
                    target: text("/run/secrets"),
                    what: What::Memory { path: text("secrets") },
                    ..Mount::default()
                },
            ],
            links: vec![(text("/dev/fd"), text("/proc/self/fd"))],
            devices: vec![Device { name: text("n:u"), major: 1, minor: 3 }],
            sysctls: vec![(text("net/ipv4/x"), text("1 2"))],
            masked: vec![text("/proc/kcore")],
            read_only: vec![text("/proc/sys"), text("/proc/fs")],
            read_only_root: true,
            user: text("web:34"),
            groups: vec![text("5000")],
            capabilities: 1 << 40 | 3,
            no_new_privileges: true,
            oom_score_adj: -5,
            rlimits: vec![Rlimit { resource: 7, soft: 1, hard: u64::MAX }],
            cwd: text("/srv"),
            args: vec![text("init"), text("--"), text("sh"), String::new()],
            wrapped: 2,
            env: vec![text("A=b=c")],
            filter: vec![0, 1, 2, 0],
        }
    }

    #[test]
    fn the_command_is_what_is_not_wrapped_around_it() {
        assert_eq!(example().command(), ["sh", ""]);
        assert!(Plan { wrapped: 9, ..example() }.command().is_empty());
    }

    #[test]
    fn fields_out_of_place_are_refused() {
        let mut plan = Plan::default();
        for (key, value) in [("mount-new", "proc"), ("link-to", "/x"), ("setting-value", "1"), ("device", "1:null")] {
            assert!(!plan.take(key, value), "{key}");
        }
        assert!(plan.take("mount", "/x") && plan.take("mount-bind", "/y") && plan.take("mount-recursive", "1"));
        assert!(!plan.take("mount-options", "size=1"), "of another kind of mount");
    }
}
