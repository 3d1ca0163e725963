//! A lab's hosts as this machine sees them: daemons' logs and files, connections and bytes on the wire, small disks that
//! fill, clocks that step. Nothing of it goes beyond the lab: no clock of this machine is ever set.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::lab::Lab;

/// Debian's `libfaketime`, by architecture.
const FAKETIME: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"];
/// The state of an established connection in `/proc/net/tcp` (include/net/tcp_states.h).
const ESTABLISHED: &str = "01";

impl Lab {
    fn host_dir(&self, host: u32) -> PathBuf {
        self.dir().join("hosts").join(host.to_string())
    }

    /// The daemon's data directory, as this machine sees it.
    pub fn data(&self, host: u32) -> PathBuf {
        self.host_dir(host).join("data")
    }

    /// Process of the host's daemon. Only while it runs.
    pub fn daemon(&self, host: u32) -> i64 {
        let number = usize::try_from(host).expect("a host's number is small");
        self.state()["hosts"][number - 1]["daemon"]["pid"].as_i64().expect("the daemon runs")
    }

    /// All that the host's daemons wrote.
    pub fn log(&self, host: u32) -> String {
        fs::read_to_string(self.host_dir(host).join("daemon.log")).unwrap_or_default()
    }

    /// How often the daemons of all hosts wrote `text`.
    pub fn logged(&self, text: &str) -> usize {
        (1..=self.hosts()).map(|host| self.log(host).matches(text).count()).sum()
    }

    /// Leaders that began to lead, and times that nodes were found to be down, since the lab is up.
    pub fn upheavals(&self) -> Upheavals {
        Upheavals { leaders: self.logged("this manager leads"), downs: self.logged("nodes are silent: they are down") }
    }

    /// `swarm.json` of a host; null without one.
    pub fn swarm_file(&self, host: u32) -> Value {
        let text = fs::read(self.data(host).join("swarm.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// The host's seat among the managers: its id in Raft.
    pub fn raft_id(&self, host: u32) -> Option<u64> {
        self.swarm_file(host)["seat"]["raft_id"].as_u64()
    }

    fn state(&self) -> Value {
        let text = fs::read(self.dir().join("lab.json")).expect("the lab has a state");
        serde_json::from_slice(&text).expect("the lab's state is JSON")
    }

    /// First process of a host, which keeps its namespaces. Only while it is on.
    fn holder(&self, host: u32) -> i64 {
        let number = usize::try_from(host).expect("a host's number is small");
        self.state()["hosts"][number - 1]["holder"]["pid"].as_i64().expect("the host is on")
    }

    /// Runs something in the host's network, on a thread of its own: what it connects to, the host connects to.
    pub fn in_network<T, W>(&self, host: u32, work: W) -> T
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.holder(host))).expect("the host is on");
        let thread = std::thread::spawn(move || {
            // Of this thread alone (setns(2)).
            nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("the tests run as root");
            work()
        });
        thread.join().expect("no panic in the host's network")
    }

    /// Established connections of `host` with `peer` in which the host's own port is `port`: the peer's ports.
    pub fn connections(&self, host: u32, port: u16, peer: u32) -> Vec<u16> {
        let folder = PathBuf::from(format!("/proc/{}/net", self.holder(host)));
        let address = u32::from_le_bytes(address(peer).octets());
        let peer = format!("{address:08X}");
        let mut found = Vec::new();
        for table in ["tcp", "tcp6"] {
            let text = fs::read_to_string(folder.join(table)).unwrap_or_default();
            for line in text.lines().skip(1) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [_, local, remote, ESTABLISHED, ..] = words[..] else { continue };
                let of = |socket: &str| u16::from_str_radix(socket.rsplit(':').next().unwrap_or(""), 16).ok();
                // An IPv4 address in tcp6 is mapped: its last four bytes.
                let is_peer = remote.split(':').next().is_some_and(|address| address.ends_with(&peer));
                if is_peer && of(local) == Some(port) {
                    found.extend(of(remote));
                }
            }
        }
        found
    }

    /// Bytes that came in from the hosts' network.
    pub fn received(&self, host: u32) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.holder(host))).unwrap_or_default();
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("the host has an eth0")
    }

    /// Lets no more than `mbit` a second through to a host (tc-tbf(8) on its port of the bridge).
    #[track_caller]
    pub fn throttle(&self, host: u32, mbit: u32) {
        let bridge = self.state()["bridge"]["pid"].as_i64().expect("the lab has a bridge").to_string();
        let port = format!("h{host}");
        let rate = format!("{mbit}mbit");
        let shape = ["tc", "qdisc", "add", "dev", &port, "root", "tbf", "rate", &rate, "burst", "64kb"];
        let done = Command::new("nsenter").args(["-t", &bridge, "-n"]).args(shape).args(["latency", "50ms"]).status();
        assert!(done.expect("nsenter runs").success(), "traffic to host {host} cannot be shaped");
    }

    /// Puts the data directories of these hosts on disks of `mib` each. Their daemons are killed and started again.
    #[track_caller]
    pub fn on_small_disks(&self, hosts: &[u32], mib: u32) {
        let numbers = hosts.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        self.command(&["kill", &numbers]).ok();
        for host in hosts {
            // In the host's own mount namespace: it goes with the host.
            let script = "mkdir /run/aside && cp -a \"$1/.\" /run/aside && mount -t tmpfs -o mode=700,size=$2m tmpfs \
                          \"$1\" && cp -a /run/aside/. \"$1\" && rm -rf /run/aside";
            let data = self.data(*host).display().to_string();
            self.exec(*host, &["sh", "-ec", script, "sh", &data, &mib.to_string()]).ok();
        }
        self.command(&["start", &numbers]).ok();
    }

    /// Fills a host's small disk until `left` bytes are free.
    #[track_caller]
    pub fn fill_disk(&self, host: u32, left: u64) {
        let script = "free=$(($(stat -f -c '%a*%S' \"$1\"))); fallocate -l $((free - $2)) \"$1/filler\"";
        let data = self.data(host).display().to_string();
        self.exec(host, &["sh", "-ec", script, "sh", &data, &left.to_string()]).ok();
    }

    /// Takes away what [`Self::fill_disk`] made.
    #[track_caller]
    pub fn empty_disk(&self, host: u32) {
        let filler = self.data(host).join("filler").display().to_string();
        self.exec(host, &["rm", &filler]).ok();
    }

    /// Starts a host's daemon on a clock of its own, which [`Self::step_clock`] steps. Monotonic time stays true.
    #[track_caller]
    pub fn start_on_own_clock(&self, host: u32) {
        self.start_on_clock(host, "+0");
    }

    /// The same on a clock that is off by `offset` from the start.
    #[track_caller]
    pub fn start_on_clock(&self, host: u32, offset: &str) {
        let library = FAKETIME.iter().find(|path| Path::new(path).exists()).expect("faketime is installed");
        self.step_clock(host, offset);
        let mut start = self.lab_command();
        start.args(["start", &host.to_string()]).env("LD_PRELOAD", library);
        start.env("FAKETIME_TIMESTAMP_FILE", self.clock_file(host)).env("FAKETIME_NO_CACHE", "1");
        // The second name is that of older versions. Files keep the times that they have.
        start.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
        let started = start.output().expect("skep starts");
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    }

    /// Puts the clock of such a daemon off by `offset`, as `+1h` or `-1h`.
    pub fn step_clock(&self, host: u32, offset: &str) {
        // Renamed into place: the daemon reads it all the time.
        let new = self.clock_file(host).with_extension("new");
        fs::write(&new, format!("{offset}\n")).expect("the clock's file is written");
        fs::rename(&new, self.clock_file(host)).expect("the clock's file is replaced");
    }

    fn clock_file(&self, host: u32) -> PathBuf {
        self.host_dir(host).join("clock")
    }
}

/// See [`Lab::upheavals`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upheavals {
    pub leaders: usize,
    pub downs: usize,
}

/// The host's address on the lab's network.
fn address(host: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 90, 0, u8::try_from(host).expect("a lab has at most 250 hosts"))
}
