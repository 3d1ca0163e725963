//! Measures the device against others' with the kernel's VXLAN, in one run: `fabric-bench [SECONDS [ROUNDS]]`, as root. The
//! others are wireguard-go and, where FABRIC_BORINGTUN names the program, boringtun-cli.
//!
//! Two hosts (namespaces) with a container each; every path is measured in every round, so that other load on the machine
//! meets all. Printed: TCP with one and four streams (iperf3), UDP packets per second, ping's median round trip, the CPU
//! seconds that the processes of both ends take per Gbit, and the two-ended cipher limit: what one core alone seals and opens
//! again, in packets of 1420 bytes (by its CPU time). On a machine that does other work, too, let it have its share:
//! `setsid -w sh -c 'echo -20 > /proc/self/autogroup; exec fabric-bench'` (sched(7)).

#[path = "../../tests/lab/mod.rs"]
mod lab;

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lab::{Lab, VNI, container_v4, fabric_address, inside, mac, until};
use skep_fabric::{Change, Config, Device, Forward, Offload, PrivateKey};
use skep_noise::{RateLimiter, TimerSettings, Tunn, TunnResult, x25519};

/// One of a path's figures.
type Figure = fn(&Figures) -> f64;

/// One path's figures.
#[derive(Debug, Clone, Default)]
struct Figures {
    tcp_gbits: f64,
    tcp4_gbits: f64,
    small_kpps: f64,
    large_kpps: f64,
    ping_us: f64,
    cpu_per_gbit: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|name| name == "node") {
        return node(&arguments[2..]);
    }
    let number = |at: usize, default| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (seconds, rounds) = (number(1, 4), number(2, 3));
    let mut programs = vec![("wireguard-go", "wireguard-go -f".to_owned())];
    if let Ok(program) = std::env::var("FABRIC_BORINGTUN") {
        programs.push(("boringtun", format!("{program} -f --disable-drop-privileges")));
    }
    let mut all: Vec<(&str, Vec<Figures>)> = vec![("skep", vec![])];
    all.extend(programs.iter().map(|(name, _)| (*name, vec![])));
    let mut limits = vec![];
    for round in 1..=rounds {
        limits.push(cipher_limit());
        print(&format!("round {round}: two-ended cipher limit {:.2} Gbit/s", limits[limits.len() - 1]));
        for (name, figures) in &mut all {
            let program = programs.iter().find(|(program, _)| program == name);
            let measured = program.map_or_else(|| skep(seconds), |(_, program)| other(program, seconds));
            print(&format!("round {round}: {name:12} {measured:.2?}"));
            figures.push(measured);
        }
    }
    summary(&mut limits, &all);
}

fn print(line: &str) {
    // Nobody reads what cannot be written.
    let _ = writeln!(io::stdout(), "{line}");
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn summary(limits: &mut [f64], all: &[(&str, Vec<Figures>)]) {
    let of = |figures: &[Figures], f: fn(&Figures) -> f64| median(&mut figures.iter().map(f).collect::<Vec<_>>());
    let rows: [(&str, Figure); 6] = [
        ("TCP, one stream, Gbit/s", |figures| figures.tcp_gbits),
        ("TCP, four streams, Gbit/s", |figures| figures.tcp4_gbits),
        ("UDP 64 bytes, 1000 packets/s received", |figures| figures.small_kpps),
        ("UDP 1300 bytes, 1000 packets/s received", |figures| figures.large_kpps),
        ("ping, median, microseconds", |figures| figures.ping_us),
        ("CPU seconds per Gbit, both ends", |figures| figures.cpu_per_gbit),
    ];
    let row = |name: &str, cells: &[String]| {
        print(&cells.iter().fold(format!("{name:42}"), |line, cell| format!("{line}{cell:>14}")));
    };
    row("median", &all.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>());
    for (name, f) in rows {
        row(name, &all.iter().map(|(_, figures)| format!("{:.2}", of(figures, f))).collect::<Vec<_>>());
    }
    let (limit, tcp) = (median(limits), of(&all[0].1, |figures| figures.tcp_gbits));
    print(&format!("{:42}{limit:>14.2}", "two-ended cipher limit, Gbit/s"));
    print(&format!("{:42}{:>14.2}", "TCP, one stream, share of the limit", tcp / limit));
}

/// Gbit/s that one core does for both ends.
fn cipher_limit() -> f64 {
    const PACKET: usize = 1420;
    let (mut a, mut b) = tunnels();
    let mut buffer = [0; 256];
    let now = Duration::from_secs(1);
    let mut message = match a.format_handshake_initiation(&mut buffer, false, now) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("{other:?}"),
    };
    for end in [&mut b, &mut a] {
        message = match end.decapsulate(None, &message, &mut buffer, now) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        };
    }
    let sender = a.current_session().expect("a session").clone();
    let index = u32::from_le_bytes([message[4], message[5], message[6], message[7]]);
    let receiver = b.sessions()[index as usize % skep_noise::N_SESSIONS].clone().expect("a session");
    let mut packet = [7; PACKET + skep_noise::DATA_OVERHEAD_SZ];
    let (start, mut count) = (thread_time(), 0u64);
    while count < 500_000 {
        sender.seal_in_place(sender.reserve(1), &mut packet).expect("sealed");
        receiver.open_in_place(&mut packet).expect("opened");
        count += 1;
    }
    (count * PACKET as u64 * 8) as f64 / (thread_time() - start).as_secs_f64() / 1e9
}

fn tunnels() -> (Tunn, Tunn) {
    let keys = [(); 2].map(|()| skep_noise::random_secret().expect("a key"));
    let now = Duration::from_secs(1);
    let tunnel = |ours: usize, theirs: usize| {
        let public = x25519::PublicKey::from(&keys[ours]);
        let limiter = Arc::new(RateLimiter::new(&public, 100, now).expect("secrets"));
        let theirs = x25519::PublicKey::from(&keys[theirs]);
        Tunn::new(keys[ours].clone(), theirs, None, None, 1, limiter, TimerSettings::default(), now)
    };
    (tunnel(0, 1), tunnel(1, 0))
}

/// CPU time of this thread: what other load takes does not count.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A host's device as a process of its own, so that its CPU time can be told: host, prefix, keys of all hosts.
fn node(arguments: &[String]) {
    let host: usize = arguments[0].parse().expect("a host");
    let (network, mtu): (&str, u16) = (&arguments[1], arguments[2].parse().expect("an MTU"));
    let key = |text: &String| {
        let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex");
        PrivateKey::from_bytes(std::array::from_fn(byte))
    };
    let keys = [key(&arguments[3]), key(&arguments[4])];
    let other = 3 - host;
    let config = Config {
        private_key: keys[host - 1].clone(),
        listen: vec![([0u8; 4], lab::PORT).into()],
        fabric_addresses: vec![fabric_address(host)],
        vxlan_port: lab::VXLAN_PORT,
        threads: 1,
        offload: Offload::default(),
        timers: TimerSettings::default(),
    };
    let device = Device::start(config).expect("the device");
    let tap = inside(network, || skep_fabric::tap::open("fabric0", 1, Offload::default())).expect("a TAP");
    let port = skep_fabric::PortConfig { vni: VNI, queues: tap.queues, mtu, uso: tap.offload.tap_uso, flood: false };
    device.attach(port).expect("attached");
    let addresses = vec![container_v4(other)];
    let entry = Forward { mac: mac(other), addresses, peer: fabric_address(other) };
    device.forward(VNI, Change::put(vec![entry])).expect("an entry");
    let peer = skep_fabric::PeerConfig {
        fabric_address: fabric_address(other),
        public_keys: vec![keys[other - 1].public()],
        endpoint: Some(([192, 0, 2, other as u8], lab::PORT).into()),
        keepalive: None,
    };
    device.peers(Change::put(vec![peer])).expect("the peer");
    // Until the bench ends it.
    let mut line = String::new();
    let _ = io::stdin().read_line(&mut line);
    if std::env::var_os("FABRIC_STATISTICS").is_some() {
        let _ = writeln!(io::stderr(), "{:?}", device.statistics());
    }
}

fn skep(seconds: u64) -> Figures {
    let lab = Lab::new(2, 1500, false);
    let keys = [(); 2].map(|()| PrivateKey::generate().expect("a key"));
    let hex = |key: &PrivateKey| key.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let program = std::env::current_exe().expect("this program");
    let mut nodes: Vec<_> = (1..=2)
        .map(|host| {
            let line = format!("{} node {host} {}", program.display(), lab.network(host));
            let line = format!("{line} {} {} {}", lab.overlay_mtu, hex(&keys[0]), hex(&keys[1]));
            lab.command(&lab.host(host), &line).stdin(Stdio::piped()).spawn().expect("a node")
        })
        .collect();
    for host in 1..=2 {
        let network = lab.network(host);
        until("there is a TAP", 10, || {
            let mut show = Command::new("ip");
            show.args(["-n", &network, "link", "show", "fabric0"]).output().is_ok_and(|output| output.status.success())
        });
        let mtu = format!("link set fabric0 mtu {}", lab.overlay_mtu);
        lab.ip(&network, &[&mtu, "link set fabric0 master br0 up"]);
    }
    let figures = measure(&lab, &nodes.iter().map(std::process::Child::id).collect::<Vec<_>>(), seconds);
    for node in &mut nodes {
        drop(node.stdin.take());
        node.wait().expect("a node");
    }
    figures
}

fn other(program: &str, seconds: u64) -> Figures {
    let mut lab = Lab::new(2, 1500, false);
    let keys = [(); 2].map(|()| PrivateKey::generate().expect("a key"));
    let ids = [1, 2].map(|host| lab.other_device(program, host, &keys[host - 1], 3 - host, &keys[2 - host]));
    measure(&lab, &ids, seconds)
}

fn measure(lab: &Lab, ids: &[u32], seconds: u64) -> Figures {
    until("pings arrive", 15, || lab.ping(1, container_v4(2)));
    // First: the kernel has nothing left to do for the others.
    let ping_us = ping(lab);
    let mut server = lab.command(&lab.container(2), "iperf3 -s").stdout(Stdio::null()).spawn().expect("iperf3");
    until("iperf3 listens", 10, || {
        let connect = || std::net::TcpStream::connect((container_v4(2), 5201));
        inside(&lab.container(1), connect).is_ok()
    });
    let iperf = |options: &str| {
        let line = format!("iperf3 -J -c 10.0.0.2 -t {seconds} {options}");
        let output = lab.command(&lab.container(1), &line).output().expect("iperf3");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // Once without counting: caches, and the first handshake.
    let _ = lab.command(&lab.container(1), "iperf3 -c 10.0.0.2 -t 1").output();
    let before = cpu(ids);
    let tcp = received(&iperf(""), "bits_per_second") / 1e9;
    let used = cpu(ids) - before;
    let figures = Figures {
        tcp_gbits: tcp,
        tcp4_gbits: received(&iperf("-P 4"), "bits_per_second") / 1e9,
        small_kpps: packets(&iperf("-u -b 0 -l 64"), seconds),
        large_kpps: packets(&iperf("-u -b 0 -l 1300"), seconds),
        ping_us,
        cpu_per_gbit: used / (tcp * seconds as f64),
    };
    let _ = server.kill();
    let _ = server.wait();
    figures
}

/// The last figure of this name that iperf3 reports: the receiver's.
fn received(json: &str, name: &str) -> f64 {
    let end = json.rfind("\"sum_received\"").or_else(|| json.rfind("\"sum\"")).unwrap_or(0);
    field(&json[end..], name)
}

fn field(json: &str, name: &str) -> f64 {
    let key = format!("\"{name}\":");
    let Some(at) = json.find(&key) else { return 0.0 };
    let rest = json[at + key.len()..].trim_start();
    let end = rest.find([',', '\n', '}']).unwrap_or(rest.len());
    rest[..end].trim().parse().unwrap_or(0.0)
}

/// Thousand packets a second that arrived.
fn packets(json: &str, seconds: u64) -> f64 {
    let end = &json[json.rfind("\"sum\"").unwrap_or(0)..];
    (field(end, "packets") - field(end, "lost_packets")) / seconds as f64 / 1e3
}

/// The median round trip in microseconds; other than an average it does not tell of other load.
fn ping(lab: &Lab) -> f64 {
    let output = lab.exec(&lab.container(1), "ping -n -c 1000 -i 0.002 10.0.0.2");
    let times = output.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse::<f64>().ok());
    median(&mut times.map(|time| time * 1e3).collect::<Vec<_>>())
}

/// CPU seconds of processes so far, with all their threads (proc_pid_stat(5), fields 14 and 15).
fn cpu(ids: &[u32]) -> f64 {
    let ticks = |id: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        number(11) + number(12)
    };
    ids.iter().map(ticks).sum::<f64>() / 100.0
}
