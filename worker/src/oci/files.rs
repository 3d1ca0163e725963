//! The files that a sandbox's containers share: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`. Contents are pure.

use std::path::{Path, PathBuf};

use skep_proto::v1::{DnsSpec, NetworkMode};

/// Why a task's files cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// An extra host that is no `name:address`.
    #[error("extra host {0:?} is not of the form name:address")]
    Host(String),
    /// The disk.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What the files are made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sandbox<'a> {
    pub(super) network: NetworkMode,
    pub(super) hostname: &'a str,
    /// `name:address`.
    pub(super) extra_hosts: &'a [String],
    pub(super) dns: Option<&'a DnsSpec>,
}

/// Where the files are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) hosts: PathBuf,
    pub(super) hostname: PathBuf,
    pub(super) resolv_conf: PathBuf,
}

impl Files {
    pub(super) fn in_dir(dir: &Path) -> Self {
        Self { hosts: dir.join("hosts"), hostname: dir.join("hostname"), resolv_conf: dir.join("resolv.conf") }
    }

    /// Writes all three; their folder is there. Blocks.
    pub(super) fn write(&self, sandbox: &Sandbox<'_>) -> Result<(), FileError> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| FileError::Write { path, source }
        };
        let contents = [
            (&self.hosts, hosts(sandbox, &read("/etc/hosts"))?),
            (&self.hostname, format!("{}\n", sandbox.hostname)),
            (&self.resolv_conf, resolv_conf(sandbox.dns, &read("/etc/resolv.conf"))),
        ];
        for (path, content) in contents {
            std::fs::write(path, content).map_err(failed(path))?;
        }
        Ok(())
    }
}

/// `/etc/hosts` (hosts(5)); on the host's network it begins with the host's own.
fn hosts(sandbox: &Sandbox<'_>, host_file: &str) -> Result<String, FileError> {
    let mut out = match sandbox.network {
        NetworkMode::Host => {
            let mut out = host_file.to_owned();
            if !out.is_empty() && !out.ends_with('\n') {
                out.push('\n');
            }
            out
        }
        NetworkMode::None => format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
             ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.0.1\t{}\n",
            sandbox.hostname
        ),
    };
    for entry in sandbox.extra_hosts {
        // The address may be IPv6, so the name ends at the first colon.
        let (name, address) = entry
            .split_once(':')
            .filter(|(name, address)| !name.is_empty() && !address.is_empty())
            .ok_or_else(|| FileError::Host(entry.clone()))?;
        out.push_str(&format!("{address}\t{name}\n"));
    }
    Ok(out)
}

/// `/etc/resolv.conf` (resolv.conf(5)): what the spec says, and the node's own for what it does not.
fn resolv_conf(dns: Option<&DnsSpec>, host_file: &str) -> String {
    let empty = DnsSpec::default();
    let dns = dns.unwrap_or(&empty);
    if *dns == empty {
        return host_file.to_owned();
    }
    let kept = |keyword: &str, replaced: bool| -> String {
        let lines = host_file.lines().filter(|line| line.split_whitespace().next() == Some(keyword));
        if replaced { String::new() } else { lines.map(|line| format!("{line}\n")).collect() }
    };
    let mut out = kept("search", !dns.search.is_empty());
    if !dns.search.is_empty() {
        out.push_str(&format!("search {}\n", dns.search.join(" ")));
    }
    out.push_str(&kept("nameserver", !dns.nameservers.is_empty()));
    for server in &dns.nameservers {
        out.push_str(&format!("nameserver {server}\n"));
    }
    out.push_str(&kept("options", !dns.options.is_empty()));
    if !dns.options.is_empty() {
        out.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sandbox<'a>(network: NetworkMode, extra_hosts: &'a [String]) -> Sandbox<'a> {
        Sandbox { network, hostname: "web-1", extra_hosts, dns: None }
    }

    #[test]
    fn hosts_of_an_own_network_and_of_the_hosts() {
        let extra = ["db:10.0.0.5".to_owned(), "v6:fd00::1".to_owned()];
        let own = hosts(&sandbox(NetworkMode::None, &extra), "9.9.9.9 secret\n").unwrap();
        assert!(own.starts_with("127.0.0.1\tlocalhost\n") && own.contains("127.0.0.1\tweb-1\n"));
        assert!(own.ends_with("10.0.0.5\tdb\nfd00::1\tv6\n") && !own.contains("secret"));
        let shared = hosts(&sandbox(NetworkMode::Host, &extra[..1]), "1.2.3.4 other").unwrap();
        assert_eq!(shared, "1.2.3.4 other\n10.0.0.5\tdb\n");
        let bad = ["nocolon".to_owned()];
        assert_eq!(
            hosts(&sandbox(NetworkMode::None, &bad), "").unwrap_err().to_string(),
            "extra host \"nocolon\" is not of the form name:address"
        );
    }

    #[test]
    fn resolv_conf_is_the_nodes_with_what_the_spec_says() {
        let node = "search lan\nnameserver 192.168.0.1\noptions ndots:2\n";
        assert_eq!(resolv_conf(None, node), node);
        let dns = DnsSpec { nameservers: vec!["1.1.1.1".to_owned(), "::1".to_owned()], ..DnsSpec::default() };
        assert_eq!(resolv_conf(Some(&dns), node), "search lan\nnameserver 1.1.1.1\nnameserver ::1\noptions ndots:2\n");
        let dns = DnsSpec { search: vec!["a".to_owned(), "b".to_owned()], ..DnsSpec::default() };
        assert_eq!(resolv_conf(Some(&dns), node), "search a b\nnameserver 192.168.0.1\noptions ndots:2\n");
    }
}
