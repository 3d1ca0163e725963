//! Which process of the host has a port: read from /proc, for a message, and only when a port was found to be taken.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};

use skep_netlink::nft::Transport;

use super::ports::{Holder, Published};

/// A TCP socket that listens, and a UDP socket that hears everybody (`st` of proc_net_tcp, the kernel's tcp_states.h).
const LISTENS: [u8; 2] = [10, 7];

/// Who has each of these ports in this thread's namespace. A process that cannot be seen, or has ended meanwhile, is left
/// out.
pub(super) fn find(ports: &[Published]) -> BTreeMap<Published, Holder> {
    let inodes: BTreeMap<u64, Published> = ports.iter().filter_map(|port| Some((inode(*port)?, *port))).collect();
    let mut found = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if found.len() == inodes.len() {
            break;
        }
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            if let Some(port) = target.to_str().and_then(socket).and_then(|inode| inodes.get(&inode)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.entry(*port).or_insert_with(|| Holder { pid, name: name.trim_end().to_owned() });
            }
        }
    }
    found
}

/// The inode of the socket that has a port: of one that takes connections, if there is one.
fn inode(port: Published) -> Option<u64> {
    let files: &[&str] = match (port.transport, port.ipv6) {
        // A socket of IPv6 may take both.
        (Transport::Tcp, false) => &["tcp", "tcp6"],
        (Transport::Tcp, true) => &["tcp6"],
        (Transport::Udp, false) => &["udp", "udp6"],
        (Transport::Udp, true) => &["udp6"],
    };
    let mut any = None;
    for file in files {
        let Ok(file) = File::open(format!("/proc/thread-self/net/{file}")) else { continue };
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            match entry(&line) {
                Some((number, state, inode)) if number == port.port && inode != 0 => {
                    if LISTENS.contains(&state) {
                        return Some(inode);
                    }
                    any.get_or_insert(inode);
                }
                _ => {}
            }
        }
    }
    any
}

/// Port, state and inode of a line of /proc/net/tcp or its like. `None`: its first line, or something unknown.
fn entry(line: &str) -> Option<(u16, u8, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (_, port) = words.nth(1)?.rsplit_once(':')?;
    let state = words.nth(1)?;
    Some((u16::from_str_radix(port, 16).ok()?, u8::from_str_radix(state, 16).ok()?, words.nth(5)?.parse().ok()?))
}

/// The inode of a socket, from what a descriptor's link says.
fn socket(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn lines_are_read() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(entry(head), None);
        let tcp = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 38462 1";
        assert_eq!(entry(tcp), Some((8080, 10, 38462)));
        let udp = " 1234: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 \
                   00000000:00000000 00:00000000 00000000   101        0 20123 2 0000000000000000 0";
        assert_eq!(entry(udp), Some((53, 7, 20123)));
        assert_eq!((socket("socket:[7]"), socket("pipe:[7]")), (Some(7), None));
        assert_eq!(entry(""), None);
    }

    #[test]
    fn this_process_is_found() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let address = tcp.local_addr().unwrap();
        // Not the connections of it.
        let _client = TcpStream::connect(address).unwrap();
        let ports = [
            Published { ipv6: false, transport: Transport::Tcp, port: address.port() },
            Published { ipv6: true, transport: Transport::Udp, port: udp.local_addr().unwrap().port() },
            Published { ipv6: false, transport: Transport::Tcp, port: 1 },
        ];
        let found = find(&ports);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.values().all(|holder| holder.pid == std::process::id() && !holder.name.is_empty()), "{found:?}");
    }
}
