//! A user namespace, with a network namespace that belongs to it, for tests of containers.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::fs;
use std::process::{Child, Command, Stdio};

use skep_runtime::{IdRange, NetworkNamespace, UserNamespace};

/// First id of the host's that containers have.
pub const FIRST: u32 = 300_000;
/// How many.
pub const COUNT: u32 = 65_536;

/// Held by a process that waits.
pub struct Users(Child);

impl Users {
    pub fn new() -> Self {
        // It says so when it is there.
        let mut waiting = Command::new("unshare")
            .args(["--user", "--net", "sh", "-c", "echo; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(&mut waiting.stdout.take().unwrap(), &mut [0]).unwrap();
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{file}", waiting.id()), format!("0 {FIRST} {COUNT}\n")).unwrap();
        }
        Self(waiting)
    }

    pub fn namespace(&self) -> UserNamespace {
        let range = vec![IdRange { inside: 0, outside: FIRST, count: COUNT }];
        UserNamespace { path: self.file("user").into(), uids: range.clone(), gids: range }
    }

    pub fn network(&self) -> NetworkNamespace {
        NetworkNamespace::Path(self.file("net").into())
    }

    fn file(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.0.id())
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
