//! Hosts on this machine: network namespaces with one underlay, and on each host a network's bridge and a container.
//!
//! Names are unique to the process and the lab; everything is removed when the lab is dropped, also on a panic.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use skep_fabric::{
    Change, Config, Device, Forward, Mac, Offload, PeerConfig, PortConfig, PrivateKey, TimerSettings, tap,
};

pub(crate) const PORT: u16 = 51820;
pub(crate) const VXLAN_PORT: u16 = 4790;
pub(crate) const VNI: u32 = 0x1234;

static LABS: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct Lab {
    prefix: String,
    pub(crate) hosts: usize,
    namespaces: Vec<String>,
    children: Vec<Child>,
    /// Of others' devices, which leave them behind when they are killed.
    sockets: Vec<String>,
    pub(crate) v6_underlay: bool,
    pub(crate) overlay_mtu: u16,
}

pub(crate) fn mac(host: usize) -> Mac {
    [2, 0, 0, 0, 0, host as u8]
}

fn mac_text(host: usize) -> String {
    format!("02:00:00:00:00:{host:02x}")
}

pub(crate) fn fabric_address(host: usize) -> IpAddr {
    IpAddr::from([10, 255, 0, host as u8])
}

pub(crate) fn container_v4(host: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, host as u8])
}

pub(crate) fn container_v6(host: usize) -> IpAddr {
    format!("fd00:1::{host:x}").parse().expect("an address")
}

/// Runs one program, and says what it printed if it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {text}");
    text
}

/// Calls `f` in a thread of its own that is in the namespace.
pub(crate) fn inside<T: Send>(namespace: &str, f: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).expect("the namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
            f()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Waits until `f` is true; says `what` was waited for when it takes too long.
pub(crate) fn until(what: &str, seconds: u64, mut f: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !f() {
        assert!(Instant::now() < deadline, "waited {seconds} s in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Lab {
    /// So many hosts (numbered from 1) on an underlay with this MTU.
    pub(crate) fn new(hosts: usize, underlay_mtu: u16, v6_underlay: bool) -> Lab {
        let prefix = format!("sf{}x{}", std::process::id(), LABS.fetch_add(1, Relaxed));
        let overlay_mtu = underlay_mtu - 130;
        let mut lab =
            Lab { prefix, hosts, namespaces: vec![], children: vec![], sockets: vec![], v6_underlay, overlay_mtu };
        let underlay = lab.add("u");
        lab.ip(&underlay, &["link add br0 type bridge", "link set br0 up"]);
        for host in 1..=hosts {
            let (h, n, c) = (lab.add(&format!("h{host}")), lab.add(&format!("n{host}")), lab.add(&format!("c{host}")));
            lab.ip(
                &underlay,
                &[
                    &format!(
                        "link add p{host} mtu {underlay_mtu} type veth peer name eth0 mtu {underlay_mtu} netns {h}"
                    ),
                    &format!("link set p{host} master br0 up"),
                ],
            );
            lab.ip(
                &h,
                &[
                    "link set lo up",
                    &format!("address add 192.0.2.{host}/24 dev eth0"),
                    &format!("address add 2001:db8::{host:x}/64 dev eth0 nodad"),
                    "link set eth0 up",
                ],
            );
            let mtu = overlay_mtu;
            let container = format!("address {} mtu {mtu}", mac_text(host));
            lab.ip(
                &n,
                &[
                    &format!("link add br0 mtu {mtu} type bridge"),
                    "link set br0 addrgenmode none",
                    "link set br0 up",
                    &format!("link add p0 mtu {mtu} type veth peer name eth0 {container} netns {c}"),
                    "link set p0 addrgenmode none",
                    "link set p0 master br0 up",
                ],
            );
            lab.ip(
                &c,
                &[
                    "link set lo up",
                    &format!("address add 10.0.0.{host}/24 dev eth0"),
                    &format!("address add fd00:1::{host:x}/64 dev eth0 nodad"),
                    "link set eth0 up",
                ],
            );
        }
        lab
    }

    fn add(&mut self, name: &str) -> String {
        let name = self.name(name);
        run(Command::new("ip").args(["netns", "add", &name]));
        self.namespaces.push(name.clone());
        name
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) fn host(&self, host: usize) -> String {
        self.name(&format!("h{host}"))
    }

    pub(crate) fn network(&self, host: usize) -> String {
        self.name(&format!("n{host}"))
    }

    pub(crate) fn container(&self, host: usize) -> String {
        self.name(&format!("c{host}"))
    }

    /// Several ip(8) commands at once.
    pub(crate) fn ip(&self, namespace: &str, commands: &[&str]) {
        let mut child = Command::new("ip")
            .args(["-n", namespace, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip(8)");
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(commands.join("\n").as_bytes()).expect("a pipe");
        drop(input);
        let output = child.wait_with_output().expect("ip(8)");
        assert!(output.status.success(), "{commands:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn command(&self, namespace: &str, line: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).args(line.split_whitespace());
        command
    }

    pub(crate) fn exec(&self, namespace: &str, line: &str) -> String {
        run(&mut self.command(namespace, line))
    }

    /// Starts a program that is ended with the lab; returns its process id.
    pub(crate) fn spawn(&mut self, namespace: &str, line: &str) -> u32 {
        let child =
            self.command(namespace, line).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{line}: {error}"));
        let id = child.id();
        self.children.push(child);
        id
    }

    pub(crate) fn endpoint(&self, host: usize) -> SocketAddr {
        let address: IpAddr = if self.v6_underlay {
            format!("2001:db8::{host:x}").parse().expect("an address")
        } else {
            IpAddr::from([192, 0, 2, host as u8])
        };
        (address, PORT).into()
    }

    pub(crate) fn config(&self, host: usize, key: &PrivateKey) -> Config {
        let any: IpAddr = if self.v6_underlay { [0u16; 8].into() } else { [0u8; 4].into() };
        Config {
            private_key: key.clone(),
            listen: vec![(any, PORT).into()],
            fabric_addresses: vec![fabric_address(host)],
            vxlan_port: VXLAN_PORT,
            threads: 2,
            offload: Offload::default(),
            timers: TimerSettings::default(),
        }
    }

    /// Starts a device on a host, with its TAP in the network's bridge and entries for all other hosts' containers.
    pub(crate) fn start(&self, host: usize, config: Config) -> Device {
        let (offload, queues) = (config.offload, config.threads);
        let device = inside(&self.host(host), || Device::start(config)).expect("the device starts");
        let network = self.network(host);
        let tap = inside(&network, || tap::open("fabric0", queues, offload)).expect("a TAP");
        let mtu = self.overlay_mtu;
        let setup = [&format!("link set fabric0 mtu {mtu} addrgenmode none"), "link set fabric0 master br0 up"];
        self.ip(&network, &setup);
        let port = PortConfig { vni: VNI, queues: tap.queues, mtu, uso: tap.offload.tap_uso, flood: false };
        device.attach(port).expect("attached");
        let others = (1..=self.hosts).filter(|other| *other != host);
        let entries = others.map(|other| Forward {
            mac: mac(other),
            addresses: vec![container_v4(other), container_v6(other)],
            peer: fabric_address(other),
        });
        device.forward(VNI, Change::put(entries.collect())).expect("entries");
        device
    }

    pub(crate) fn peer(&self, host: usize, key: &PrivateKey) -> PeerConfig {
        PeerConfig {
            fabric_address: fabric_address(host),
            public_keys: vec![key.public()],
            endpoint: Some(self.endpoint(host)),
            keepalive: None,
        }
    }

    /// Devices on all hosts that know each other.
    pub(crate) fn mesh(&self, change: impl Fn(&mut Config)) -> (Vec<Device>, Vec<PrivateKey>) {
        let keys: Vec<_> = (0..self.hosts).map(|_| PrivateKey::generate().expect("a key")).collect();
        let devices: Vec<_> = (1..=self.hosts)
            .map(|host| {
                let mut config = self.config(host, &keys[host - 1]);
                change(&mut config);
                self.start(host, config)
            })
            .collect();
        for host in 1..=self.hosts {
            let others = (1..=self.hosts).filter(|other| *other != host);
            let peers = others.map(|other| self.peer(other, &keys[other - 1])).collect();
            devices[host - 1].peers(Change::put(peers)).expect("peers");
        }
        (devices, keys)
    }

    /// Whether one ping gets through.
    pub(crate) fn ping(&self, from: usize, to: IpAddr) -> bool {
        let line = format!("ping -n -c 1 -W 1 {to}");
        self.command(&self.container(from), &line).output().is_ok_and(|output| output.status.success())
    }

    /// The other end as others build it: their device (a program that gets the interface's name and serves wg(8)) with the
    /// kernel's VXLAN on it, and entries for `peer`'s container. Returns the program's process id.
    pub(crate) fn other_device(
        &mut self,
        program: &str,
        host: usize,
        key: &PrivateKey,
        peer: usize,
        peer_key: &PrivateKey,
    ) -> u32 {
        let (namespace, network) = (self.host(host), self.network(host));
        let interface = format!("{}w{host}", &self.prefix[2..]).replace('x', "_");
        self.sockets.push(format!("/var/run/wireguard/{interface}.sock"));
        let id = self.spawn(&namespace, &format!("{program} {interface}"));
        let show = format!("wg show {interface}");
        until("the other device answers", 10, || {
            self.command(&namespace, &show).output().is_ok_and(|output| output.status.success())
        });
        let file = std::env::temp_dir().join(format!("{}-{host}.key", self.prefix));
        std::fs::write(&file, base64(&key.to_bytes())).expect("a file for the key");
        let endpoint = self.endpoint(peer);
        let line = format!(
            "wg set {interface} listen-port {PORT} private-key {} peer {} endpoint {endpoint} allowed-ips {}/32",
            file.display(),
            base64(&peer_key.public()),
            fabric_address(peer),
        );
        self.exec(&namespace, &line);
        std::fs::remove_file(&file).expect("removing the key");
        let mtu = self.overlay_mtu;
        let wireguard_mtu = mtu + 50;
        self.ip(
            &namespace,
            &[
                &format!("address add {}/24 dev {interface}", fabric_address(host)),
                &format!("link set {interface} mtu {wireguard_mtu} up"),
                &format!(
                    "link add vx0 mtu {mtu} type vxlan id {VNI} dstport {VXLAN_PORT} local {} nolearning",
                    fabric_address(host)
                ),
                &format!("link set vx0 netns {network}"),
            ],
        );
        self.ip(&network, &["link set vx0 addrgenmode none", "link set vx0 master br0 up"]);
        for destination in [mac_text(peer), mac_text(0).replace("02:", "00:")] {
            let line = format!("bridge fdb append {destination} dev vx0 dst {}", fabric_address(peer));
            self.exec(&network, &line);
        }
        id
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

/// RFC 4648, for wg(8).
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().chain(&[0, 0]).take(3).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= chunk.len() { DIGITS[value] as char } else { '=' });
        }
    }
    text
}

/// Sends `bytes` over TCP to a container and checks that all arrive unharmed.
pub(crate) fn tcp(lab: &Lab, from: usize, to: usize, v6: bool, bytes: usize) {
    let address = if v6 { container_v6(to) } else { container_v4(to) };
    let listener = inside(&lab.container(to), || std::net::TcpListener::bind((address, 0))).expect("listening");
    let target = listener.local_addr().expect("an address");
    let pattern = |at: usize| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7];
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            let (mut at, mut buffer) = (0, vec![0; 1 << 16]);
            loop {
                let length = stream.read(&mut buffer).expect("data");
                if length == 0 {
                    return at;
                }
                for byte in &buffer[..length] {
                    assert_eq!(*byte, pattern(at), "byte {at} changed on the way");
                    at += 1;
                }
            }
        });
        let connect = || std::net::TcpStream::connect_timeout(&target, Duration::from_secs(10));
        let mut stream = inside(&lab.container(from), connect).expect("a connection");
        let data: Vec<u8> = (0..bytes).map(pattern).collect();
        stream.write_all(&data).expect("sending");
        drop(stream);
        assert_eq!(receiver.join().expect("the receiver"), bytes);
    });
}
