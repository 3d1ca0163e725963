//! The host's name servers: reads resolv.conf(5), and again when it changed.
//!
//! Used by the forwarder. Looks at the file when a question is to be forwarded, once a second at most, so nothing runs
//! while nobody asks. A file that is missing or half written for a moment leaves the servers as they were.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::upstream::{NameServers, Origin};

/// The port of name servers.
const PORT: u16 = 53;
/// As many as the C library uses (MAXNS in resolv.h).
const SERVERS: usize = 3;
/// How old what we know of the file may be.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What tells one version of the file from another: device, inode, size, time of change in nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

#[derive(Debug)]
struct State {
    checked: Option<Instant>,
    stamp: Option<Stamp>,
    servers: Arc<NameServers>,
}

/// The host's resolv.conf.
#[derive(Debug)]
pub(crate) struct HostServers {
    path: PathBuf,
    state: Mutex<State>,
}

impl HostServers {
    pub(crate) fn new(path: PathBuf) -> Self {
        let servers = Arc::new(NameServers::new(&[], Origin::Host));
        Self { path, state: Mutex::new(State { checked: None, stamp: None, servers }) }
    }

    /// The servers of the file as it is at `now`, or was at most a second before. Blocks for a look at the file.
    pub(crate) fn current(&self, now: Instant) -> Arc<NameServers> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.checked.is_none_or(|checked| now.saturating_duration_since(checked) >= CHECK_INTERVAL) {
            state.checked = Some(now);
            if let Err(error) = self.look(&mut state) {
                tracing::debug!(path = %self.path.display(), %error, "cannot read the host's name servers");
            }
        }
        Arc::clone(&state.servers)
    }

    fn look(&self, state: &mut State) -> io::Result<()> {
        let stamp = stamp(&self.path)?;
        if state.stamp == Some(stamp) {
            return Ok(());
        }
        let servers = parse(&fs::read_to_string(&self.path)?, scope);
        tracing::info!(path = %self.path.display(), ?servers, "read the host's name servers");
        if servers != state.servers.addresses() {
            state.servers = Arc::new(NameServers::new(&servers, Origin::Host));
        }
        // Of the time before the reading: a change during it is seen next time.
        state.stamp = Some(stamp);
        Ok(())
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let found = fs::metadata(path)?;
    Ok((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

/// The name servers of a resolv.conf, the first three. `scope` turns the name of an interface into its index.
pub(crate) fn parse(text: &str, scope: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            if words.next()? != "nameserver" {
                return None;
            }
            let (address, interface) = match words.next()?.split_once('%') {
                None => (line.split_whitespace().nth(1)?, None),
                Some((address, interface)) => (address, Some(interface)),
            };
            match (address.parse().ok()?, interface) {
                (IpAddr::V6(address), Some(interface)) => {
                    Some(SocketAddr::V6(SocketAddrV6::new(address, PORT, 0, scope(interface)?)))
                }
                (address, _) => Some(SocketAddr::new(address, PORT)),
            }
        })
        .take(SERVERS)
        .collect()
}

fn scope(interface: &str) -> Option<u32> {
    interface.parse().ok().or_else(|| nix::net::if_::if_nametoindex(interface).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn servers_are_read_as_the_c_library_reads_them() {
        let text = "# a comment\nsearch a b\n nameserver 127.0.0.53\nnameserver\t::1 # local\n\
                    nameserver fe80::1%eth7\nnameserver fe80::1%gone\nnameserver nonsense\nnameserver 9.9.9.9\n";
        let read = parse(text, |name| (name == "eth7").then_some(7));
        let expected = ["127.0.0.53:53", "[::1]:53", "[fe80::1%7]:53"].map(|text| text.parse().unwrap());
        assert_eq!(read, expected);
        assert_eq!(scope("lo"), Some(1));
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_missing_one_keeps_the_servers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let host = HostServers::new(path.clone());
        let start = Instant::now();
        let at = |second: u64| host.current(start + Duration::from_secs(second)).addresses().to_vec();
        assert!(at(0).is_empty());
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert!(at(0).is_empty(), "within a second the file is not looked at again");
        assert_eq!(at(1), ["192.0.2.1:53".parse().unwrap()]);
        // Same size, and put in place as system tools do it.
        fs::write(dir.path().join("new"), "nameserver 192.0.2.2\n").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(at(2), ["192.0.2.2:53".parse().unwrap()]);
        fs::remove_file(&path).unwrap();
        assert_eq!(at(3), ["192.0.2.2:53".parse().unwrap()]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(nameserver |[ \\t\\n%:.0-9a-f]|\\PC){0,60}") {
            prop_assert!(parse(&text, |_| None).len() <= SERVERS);
        }
    }
}
