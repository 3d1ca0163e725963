//! The network between the hosts: a bridge in a namespace of the lab's own, one veth to each host.
//!
//! Nothing of it ever appears in the machine's own namespace, so labs can neither clash nor be seen, and all use the
//! same addresses. What to do is decided by pure functions that write scripts for `ip -batch` and `nft -f`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::{Context, LabError, Result};
use crate::namespaces::Namespaces;
use crate::process::ProcessId;

/// A program that the lab runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    name: &'static str,
    package: &'static str,
    args: &'static [&'static str],
}

/// `ip` of iproute2, reading commands.
pub(crate) const IP: Tool = Tool { name: "ip", package: "iproute2", args: &["-batch", "-"] };
/// `nft` of nftables, reading rules.
pub(crate) const NFT: Tool = Tool { name: "nft", package: "nftables", args: &["-f", "-"] };

impl Tool {
    /// Finds it in PATH and where system programs lie, which a user's PATH may lack.
    pub(crate) fn find(self) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
            .map(|folder| folder.join(self.name))
            .find(|file| file.is_file())
            .ok_or(LabError::ToolMissing { tool: self.name, package: self.package })
    }

    /// Starts it with a script in the network namespace of a holder.
    fn start(self, holder: ProcessId, script: &str) -> Result<RunningTool> {
        let program = self.find()?;
        let namespaces =
            Namespaces::open(holder)
                .context("open the namespaces of", format!("/proc/{}", holder.pid))?
                .ok_or_else(|| LabError::Tool { tool: self.name, output: "the namespace is gone".to_owned() })?;
        let mut command = Command::new(&program);
        command.args(self.args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = namespaces.run_in_network(&mut command).spawn().context("run", &program)?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A tool that ends before it has read all says why on stderr.
        let _ = stdin.write_all(script.as_bytes());
        Ok(RunningTool { tool: self, program, child })
    }

    fn run(self, holder: ProcessId, script: &str) -> Result<()> {
        self.start(holder, script)?.finish()
    }
}

struct RunningTool {
    tool: Tool,
    program: PathBuf,
    child: std::process::Child,
}

impl RunningTool {
    fn finish(self) -> Result<()> {
        let output = self.child.wait_with_output().context("wait for", &self.program)?;
        if output.status.success() {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(LabError::Tool { tool: self.tool.name, output })
    }
}

/// The address of a host; labs do not meet, so all use these.
pub(crate) fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 90, 0, u8::try_from(number).expect("a lab has at most 250 hosts"))
}

const PREFIX_LENGTH: u8 = 24;

/// Makes the bridge. Idempotent it is not: called once for a lab.
pub(crate) fn make_bridge(bridge: ProcessId) -> Result<()> {
    IP.run(bridge, "link set lo up\nlink add br0 type bridge\nlink set br0 up\n")
}

/// Connects hosts (number, holder) with the bridge and gives them their addresses.
pub(crate) fn connect(bridge: ProcessId, hosts: &[(u16, ProcessId)]) -> Result<()> {
    let mut script = String::new();
    for (number, holder) in hosts {
        script.push_str(&link_script(*number, holder.pid));
    }
    IP.run(bridge, &script)?;
    // All at once: each is a process of its own in a namespace of its own.
    let running: Vec<_> = hosts.iter().map(|(number, holder)| IP.start(*holder, &address_script(*number))).collect();
    running.into_iter().try_for_each(|tool| tool?.finish())
}

/// Removes the host's link as a power cut does: its peers hear nothing more, not even that connections close.
pub(crate) fn disconnect(bridge: ProcessId, number: u16) -> Result<()> {
    match IP.run(bridge, &format!("link del h{number}\n")) {
        // Half connected, or gone with the host's namespace.
        Err(LabError::Tool { output, .. }) if output.contains("Cannot find device") => Ok(()),
        done => done,
    }
}

/// Makes exactly these pairs unable to reach each other.
pub(crate) fn set_cuts(bridge: ProcessId, cuts: &BTreeSet<(u16, u16)>) -> Result<()> {
    NFT.run(bridge, &cuts_script(cuts))
}

/// The same hardware address at every boot, so that the others' ARP entries stay right.
fn link_script(number: u16, holder_pid: i32) -> String {
    let [a, b, c, d] = address(number).octets();
    format!(
        "link add h{number} type veth peer name eth0 address 02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x} netns {holder_pid}\n\
         link set h{number} master br0 up\n"
    )
}

fn address_script(number: u16) -> String {
    format!("link set lo up\naddr add {}/{PREFIX_LENGTH} dev eth0\nlink set eth0 up\n", address(number))
}

/// The whole table, replaced in one transaction.
fn cuts_script(cuts: &BTreeSet<(u16, u16)>) -> String {
    let mut script = "table bridge skep_lab\ndelete table bridge skep_lab\n".to_owned();
    if cuts.is_empty() {
        return script;
    }
    let pairs: Vec<_> =
        cuts.iter().flat_map(|(a, b)| [format!("\"h{a}\" . \"h{b}\""), format!("\"h{b}\" . \"h{a}\"")]).collect();
    let _ = write!(
        script,
        "table bridge skep_lab {{\n  set cut {{\n    type ifname . ifname\n    elements = {{ {} }}\n  }}\n  \
         chain forward {{\n    type filter hook forward priority 0; policy accept;\n    iifname . oifname @cut drop\n  }}\n}}\n",
        pairs.join(", ")
    );
    script
}

/// `/etc/hosts` of every host of a lab.
pub(crate) fn hosts_file(count: u16) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for number in 1..=count {
        let _ = writeln!(text, "{}\t{}", address(number), crate::state::host_name(number));
    }
    text
}

/// Fails early, before anything is made, if a program is missing.
pub(crate) fn check_tools() -> Result<()> {
    IP.find().map(drop)
}

/// All pairs between two groups, each (smaller, bigger).
///
/// # Errors
/// [`LabError::BothSides`] for a host in both.
pub(crate) fn pairs_between(left: &[u16], right: &[u16]) -> Result<BTreeSet<(u16, u16)>> {
    if let Some(both) = left.iter().find(|number| right.contains(number)) {
        return Err(LabError::BothSides(*both));
    }
    Ok(left.iter().flat_map(|a| right.iter().map(|b| (*a.min(b), *a.max(b)))).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pairs_are_ordered_and_add_up() {
        let mut cuts = pairs_between(&[2], &[1, 3]).unwrap();
        cuts.extend(pairs_between(&[1], &[2, 3]).unwrap());
        assert_eq!(cuts, BTreeSet::from([(1, 2), (1, 3), (2, 3)]));
        assert!(matches!(pairs_between(&[1, 2], &[2, 3]), Err(LabError::BothSides(2))));
    }

    #[test]
    fn healing_leaves_no_table() {
        assert_eq!(cuts_script(&BTreeSet::new()), "table bridge skep_lab\ndelete table bridge skep_lab\n");
        let script = cuts_script(&BTreeSet::from([(1, 3)]));
        assert!(script.contains("{ \"h1\" . \"h3\", \"h3\" . \"h1\" }"), "{script}");
    }

    #[test]
    fn hosts_know_each_other_by_name() {
        assert!(hosts_file(3).ends_with("10.90.0.2\thost2\n10.90.0.3\thost3\n"));
        assert!(link_script(16, 7).contains("address 02:00:0a:5a:00:10 netns 7"));
    }
}
