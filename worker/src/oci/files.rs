//! The files that a sandbox's containers share: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`. Contents are pure.

use std::net::{IpAddr, Ipv4Addr};
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
    /// On its first network.
    pub(super) addresses: &'a [IpAddr],
    /// Whether netd answers names at [`NAME_SERVER`].
    pub(super) name_server: bool,
    /// `name:address`.
    pub(super) extra_hosts: &'a [String],
    pub(super) dns: Option<&'a DnsSpec>,
}

/// Where netd's name server is in each sandbox; Docker's.
const NAME_SERVER: &str = "127.0.0.11";

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

    /// Writes all three; their folder is there. `owner`: whose they are, if not root's. Blocks.
    pub(super) fn write(&self, sandbox: &Sandbox<'_>, owner: Option<(u32, u32)>) -> Result<(), FileError> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| FileError::Write { path, source }
        };
        let contents = [
            (&self.hosts, hosts(sandbox, &read("/etc/hosts"))?),
            (&self.hostname, format!("{}\n", sandbox.hostname)),
            (&self.resolv_conf, resolv_conf(sandbox.dns, sandbox.name_server, &read("/etc/resolv.conf"))),
        ];
        for (path, content) in contents {
            std::fs::write(path, content).map_err(failed(path))?;
            if let Some((uid, gid)) = owner {
                std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(failed(path))?;
            }
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
        NetworkMode::Default | NetworkMode::None => {
            let mut out = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                           ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
                .to_owned();
            let own = |address: &dyn std::fmt::Display| format!("{address}\t{}\n", sandbox.hostname);
            match sandbox.addresses {
                [] => out.push_str(&own(&Ipv4Addr::LOCALHOST)),
                addresses => out.extend(addresses.iter().map(|address| own(address))),
            }
            out
        }
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

/// `/etc/resolv.conf` (resolv.conf(5)): what the spec says, and the node's own for what it does not. With netd's name
/// server, that one alone: it asks the others.
fn resolv_conf(dns: Option<&DnsSpec>, name_server: bool, host_file: &str) -> String {
    let empty = DnsSpec::default();
    let dns = dns.unwrap_or(&empty);
    if *dns == empty && !name_server {
        return host_file.to_owned();
    }
    let of_host = |keyword: &str| -> Vec<String> {
        let lines = host_file.lines().map(str::split_whitespace);
        lines
            .filter_map(|mut words| (words.next() == Some(keyword)).then(|| words.map(str::to_owned)))
            .flatten()
            .collect()
    };
    let said = |own: &[String], keyword: &str| if own.is_empty() { of_host(keyword) } else { own.to_vec() };
    let mut options = said(&dns.options, "options");
    let servers = if name_server { vec![NAME_SERVER.to_owned()] } else { said(&dns.nameservers, "nameserver") };
    if name_server && !options.iter().any(|option| option.starts_with("ndots:")) {
        // Names without a dot are the swarm's first (Docker's).
        options.insert(0, "ndots:0".to_owned());
    }
    let mut out = String::new();
    let line = |keyword: &str, words: &[String]| match words {
        [] => String::new(),
        words => format!("{keyword} {}\n", words.join(" ")),
    };
    out.push_str(&line("search", &said(&dns.search, "search")));
    servers.into_iter().for_each(|server| out.push_str(&line("nameserver", &[server])));
    out.push_str(&line("options", &options));
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sandbox<'a>(network: NetworkMode, extra_hosts: &'a [String]) -> Sandbox<'a> {
        Sandbox { network, hostname: "web-1", addresses: &[], name_server: false, extra_hosts, dns: None }
    }

    #[test]
    fn hosts_of_an_own_network_and_of_the_hosts() {
        let extra = ["db:10.0.0.5".to_owned(), "v6:fd00::1".to_owned()];
        let own = hosts(&sandbox(NetworkMode::None, &extra), "9.9.9.9 secret\n").unwrap();
        assert!(own.starts_with("127.0.0.1\tlocalhost\n") && own.contains("127.0.0.1\tweb-1\n"));
        assert!(own.ends_with("10.0.0.5\tdb\nfd00::1\tv6\n") && !own.contains("secret"));
        let shared = hosts(&sandbox(NetworkMode::Host, &extra[..1]), "1.2.3.4 other").unwrap();
        assert_eq!(shared, "1.2.3.4 other\n10.0.0.5\tdb\n");
        let addresses = ["10.0.1.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let on = Sandbox { addresses: &addresses, ..sandbox(NetworkMode::Default, &[]) };
        assert!(hosts(&on, "").unwrap().ends_with("ff02::2\tip6-allrouters\n10.0.1.7\tweb-1\nfd00::7\tweb-1\n"));
        let bad = ["nocolon".to_owned()];
        assert_eq!(
            hosts(&sandbox(NetworkMode::None, &bad), "").unwrap_err().to_string(),
            "extra host \"nocolon\" is not of the form name:address"
        );
    }

    #[test]
    fn resolv_conf_is_the_nodes_with_what_the_spec_says() {
        let node = "search lan\nnameserver 192.168.0.1\noptions ndots:2\n";
        assert_eq!(resolv_conf(None, false, node), node);
        let dns = DnsSpec { nameservers: vec!["1.1.1.1".to_owned(), "::1".to_owned()], ..DnsSpec::default() };
        assert_eq!(
            resolv_conf(Some(&dns), false, node),
            "search lan\nnameserver 1.1.1.1\nnameserver ::1\noptions ndots:2\n"
        );
        let dns = DnsSpec { search: vec!["a".to_owned(), "b".to_owned()], ..DnsSpec::default() };
        assert_eq!(resolv_conf(Some(&dns), false, node), "search a b\nnameserver 192.168.0.1\noptions ndots:2\n");
        // Netd's asks the others; it honours what the user said, so only the resolver's own part is here.
        assert_eq!(resolv_conf(Some(&dns), true, node), "search a b\nnameserver 127.0.0.11\noptions ndots:2\n");
        assert_eq!(resolv_conf(None, true, "nameserver 9.9.9.9\n"), "nameserver 127.0.0.11\noptions ndots:0\n");
        let dns = DnsSpec { options: vec!["timeout:1".to_owned()], ..DnsSpec::default() };
        assert_eq!(
            resolv_conf(Some(&dns), true, node),
            "search lan\nnameserver 127.0.0.11\noptions ndots:0 timeout:1\n"
        );
    }
}
