//! The peers of skep's overlays, on the same hosts: a container on each of two hosts, joined by bridges and VXLAN as one
//! makes them with ip(8), on the hosts' own network or on somebody else's WireGuard device.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use skep_netlink::{Inside, Namespace};

use super::table::key;
use super::underlay::{Host, Process, address, batch, inside, path};

/// UDP port of VXLAN on the hosts' network and of the first device, the others' follow: skep uses other ones.
const PORT: u16 = 5500;
/// The namespace of a program is its own, so each device can have this name.
const DEVICE: &str = "wg0";
/// Its number of a network; on ports of its own, it may be anyone's.
const VNI: u32 = 77;

/// A WireGuard device of somebody else, as a program.
#[derive(Clone)]
pub(super) struct Program {
    /// With its version.
    pub(super) name: String,
    command: Vec<String>,
}

/// Debian's wireguard-go and boringtun's own program, where they are installed. Says on stderr which are not.
pub(super) fn programs() -> Vec<Program> {
    let of = |name: &str, args: &[&str], hint: &str| {
        let Some(path) = find(name) else {
            eprintln!("bench: {name} is not measured: it is not installed ({hint})");
            return None;
        };
        let mut command = vec![path.display().to_string()];
        command.extend(args.iter().map(|arg| (*arg).to_owned()));
        let version = std::process::Command::new(&path).arg("--version").output().ok();
        let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let version = text.split_whitespace().find(|word| word.contains('.') && word.contains(char::is_numeric));
        let version = version.map(|version| format!(" {}", version.trim_start_matches('v'))).unwrap_or_default();
        Some(Program { name: format!("{}{version}", name.trim_end_matches("-cli")), command })
    };
    let found = [
        of("wireguard-go", &["-f"], "Debian: wireguard-go"),
        of("boringtun-cli", &["-f", "--disable-drop-privileges"], "cargo install boringtun-cli"),
    ];
    found.into_iter().flatten().collect()
}

/// A program in PATH, or where cargo installs programs.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo = std::env::home_dir().map(|home| home.join(".cargo/bin"));
    std::env::split_paths(&path).chain(cargo).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Two containers that reach each other. Everything goes with it.
pub(super) struct Bare {
    pub(super) containers: Vec<Namespace>,
    /// The devices' programs.
    pub(super) processes: Vec<Process>,
    /// The bridges'.
    _networks: Vec<Namespace>,
}

/// The address of the container on a host.
pub(super) fn container(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 66, 0, host).into()
}

impl Bare {
    /// On the hosts' network, MTU 1450.
    pub(super) fn vxlan(hosts: [&Host; 2]) -> Result<Self> {
        let mut bare = Self::empty();
        for (host, other) in pairs(hosts) {
            bare.connect(&host.namespace, host.number, 1450, PORT, &address(host.number), &address(other.number))?;
        }
        Ok(bare)
    }

    /// On a WireGuard device, MTU 1370, as skep's encrypted overlays. `number` is the device's among those on these hosts,
    /// from 1.
    pub(super) fn wireguard(hosts: [&Host; 2], program: &Program, number: u8) -> Result<Self> {
        let mut bare = Self::empty();
        let port = PORT + u16::from(number);
        let inner = |host: &Host| Ipv4Addr::new(10, 67, number, host.number);
        for (host, other) in pairs(hosts) {
            bare.device(host, other, program, port, inner(host), inner(other))?;
            bare.connect(&host.namespace, host.number, 1370, port, &inner(host), &inner(other))?;
        }
        Ok(bare)
    }

    fn empty() -> Self {
        Self { containers: Vec::new(), processes: Vec::new(), _networks: Vec::new() }
    }

    /// A bridge with a container and VXLAN to the other host.
    fn connect(
        &mut self,
        namespace: &Namespace,
        host: u8,
        mtu: u16,
        port: u16,
        local: &Ipv4Addr,
        remote: &Ipv4Addr,
    ) -> Result<()> {
        let (network, ()) = Namespace::anonymous(|_: &Inside| Ok::<_, anyhow::Error>(()))?;
        let (inner, ()) = Namespace::anonymous(|_: &Inside| Ok::<_, anyhow::Error>(()))?;
        let mac = |host: u8| format!("02:42:00:00:00:{host:02x}");
        let device = format!("vx{port}");
        let tunnel = format!("type vxlan id {VNI} dstport {port} local {local} nolearning");
        let lines =
            [format!("link add {device} mtu {mtu} {tunnel}"), format!("link set {device} netns {}", path(&network))];
        batch(namespace, "ip", &lines)?;
        let peer = format!("peer name eth0 address {} mtu {mtu} netns {}", mac(host), path(&inner));
        let lines = [
            format!("link add br0 mtu {mtu} type bridge"),
            "link set br0 addrgenmode none up".to_owned(),
            format!("link add p0 mtu {mtu} type veth {peer}"),
            "link set p0 addrgenmode none master br0 up".to_owned(),
            format!("link set {device} addrgenmode none master br0 up"),
        ];
        batch(&network, "ip", &lines)?;
        let other = 3 - host;
        let line = |mac: &str| format!("fdb append {mac} dev {device} dst {remote}");
        batch(&network, "bridge", &[line(&mac(other)), line("00:00:00:00:00:00")])?;
        let lines = [format!("address add {}/24 dev eth0", container(host)), "link set eth0 up".to_owned()];
        batch(&inner, "ip", &lines)?;
        self.containers.push(inner);
        self._networks.push(network);
        Ok(())
    }

    /// A WireGuard device on a host that knows the other.
    fn device(
        &mut self,
        host: &Host,
        other: &Host,
        program: &Program,
        port: u16,
        inner: Ipv4Addr,
        other_inner: Ipv4Addr,
    ) -> Result<()> {
        // The program's socket has a fixed place, and would be left there: it gets a place that ends with it. In the
        // host's network all devices need names of their own.
        let device = format!("{DEVICE}p{port}");
        let script = "mount -t tmpfs tmpfs /run && exec \"$@\"";
        let mut command = inside(&host.namespace, &["unshare", "--mount", "--propagation", "private", "sh", "-c"]);
        command.args([script, "sh"]).args(&program.command).arg(&device);
        let mut process = Process::start(&mut command)?;
        let pid = process.id().to_string();
        let wg = |args: &[&str]| {
            let mut command = std::process::Command::new("nsenter");
            command.args(["--target", &pid, "--mount", "--net", "--", "wg"]).args(args);
            command
        };
        let listens = || wg(&["show", &device]).output().is_ok_and(|output| output.status.success()).then_some(());
        process.until(&format!("waited for {}", program.name), listens)?;
        let secret = STANDARD.encode(key(host.number).to_bytes());
        let public = STANDARD.encode(key(other.number).public());
        let (listen, endpoint) = ((port + 1000).to_string(), format!("{}:{}", address(other.number), port + 1000));
        let allowed = format!("{other_inner}/32");
        let mut set = wg(&["set", &device, "listen-port", &listen, "private-key", "/dev/stdin", "peer", &public]);
        set.args(["endpoint", &endpoint, "allowed-ips", &allowed]).stdin(std::process::Stdio::piped());
        let mut set = set.spawn().context("cannot run nsenter")?;
        set.stdin.take().context("a child has no input")?.write_all(secret.as_bytes())?;
        ensure!(set.wait()?.success(), "{} cannot be configured", program.name);
        let lines = [format!("address add {inner}/24 dev {device}"), format!("link set {device} mtu 1420 up")];
        batch(&host.namespace, "ip", &lines)?;
        self.processes.push(process);
        Ok(())
    }
}

fn pairs(hosts: [&Host; 2]) -> [(&Host, &Host); 2] {
    [(hosts[0], hosts[1]), (hosts[1], hosts[0])]
}
