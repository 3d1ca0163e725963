//! What a container's monitor is told and tells, and the files of a container.

use skep_shim::config::{External, ShimConfig};
use skep_shim::entry::{Entry, Rlimit};
use skep_shim::files;
use skep_shim::logline;
use skep_shim::plan::{self, Plan, What};
use skep_shim::protocol::{self, Kind};

use super::{Add, parts};

pub(super) fn add(add: &mut Add<'_>) {
    let mut stream = vec![8];
    let exit = b"{\"version\":1,\"exit_code\":3,\"signal\":0,\"oom_killed\":false,\"started_at_unix_ns\":1,\"finished_at_unix_ns\":2,\"error\":\"\"}";
    let started = [&42_u32.to_le_bytes()[..], &7_u64.to_le_bytes(), &9_u64.to_le_bytes()].concat();
    let frames: [(Kind, &[u8]); 5] = [
        (Kind::Hello, &[]),
        (Kind::Started, &started),
        (Kind::Reply, &[0; 4]),
        (Kind::LogLoss, b"full"),
        (Kind::Exited, exit),
    ];
    for (kind, payload) in frames {
        stream.extend(protocol::encode(kind, 1, payload));
    }
    let mut config = vec![1];
    ShimConfig { mount_point: "/b".to_owned(), lower: vec!["/l".to_owned()], ..ShimConfig::default() }
        .send(&mut config)
        .unwrap();
    add(
        "shim_protocol",
        vec![stream, config, b"\x0142 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1234 20".to_vec()],
    );
    add("shim_config", shim_config());
    let file = |path: &str, swappable| files::Entry {
        path: path.to_owned(),
        swappable,
        mode: 0o444,
        ..files::Entry::default()
    };
    let manifest = files::Manifest { version: 7, files: vec![file("db/password", true), file("0", false)] };
    add("secret_files", vec![manifest.encode().unwrap()[4..].to_vec()]);
    let mut line = vec![0];
    logline::encode(&mut line, logline::Stream::Stdout, b"hello \"x\"\n", 1_700_000_000_123_456_789);
    let users = parts(&[b"root:x:0:0::/root:/bin/sh\nweb:x:10:20::/:\n", b"web:x:20:\nmore:x:30:web,root\n", b"web"]);
    add("container_files", vec![line, [&[1][..], exit].concat(), [&[2][..], &users].concat()]);
}

/// The text of a start message and of a command, with programs of the kernel's behind it.
fn shim_config() -> Vec<Vec<u8>> {
    let text = |text: &str| text.to_owned();
    let bind = What::Bind { source: text("/srv=1"), recursive: true, propagation: 1 << 18 };
    let new = What::New { kind: text("proc"), options: text("a=b,c") };
    let mount = |target: &str, what| plan::Mount { target: text(target), attributes: 14, what, standard: false };
    let rlimit = Rlimit { resource: 7, soft: 1, hard: u64::MAX };
    let plan = Plan {
        settings: vec![plan::Setting { file: text("/c/memory.max"), value: text("1\n2") }],
        join: vec![text("/c/cgroup.procs")],
        namespaces: 0x0800_0000,
        hostname: text("web"),
        mounts: vec![mount("/proc", new), mount("/data", bind)],
        links: vec![(text("/dev/fd"), text("/proc/self/fd"))],
        devices: vec![plan::Device { name: text("null"), major: 1, minor: 3 }],
        sysctls: vec![(text("net/ipv4/ip_forward"), text("1"))],
        masked: vec![text("/proc/kcore")],
        user: text("web:34"),
        groups: vec![text("5000")],
        rlimits: vec![rlimit],
        args: vec![text("init"), text("--"), text("sh")],
        wrapped: 2,
        env: vec![text("A=b=c")],
        ..Plan::default()
    };
    let config = ShimConfig {
        mount_point: text("/b"),
        lower: vec![text("/l,:=")],
        upper: text("upper"),
        work: text("work"),
        log_path: text("logs/container.log"),
        plan,
        external: External { program: text("/bin/runc"), id: text("x"), config: text("{}"), ..External::default() },
        ..ShimConfig::default()
    };
    let entry = Entry {
        pid: 42,
        start_ticks: 7,
        groups: vec![3],
        rlimits: vec![rlimit],
        cwd: text("/"),
        args: vec![text("sh")],
        env: vec![text("A=b")],
        ..Entry::default()
    };
    let mut messages = [(Vec::new(), 12), (Vec::new(), 8)];
    config.send(&mut messages[0].0).unwrap();
    entry.send(&mut messages[1].0).unwrap();
    messages.map(|(message, lengths)| parts(&[&message[lengths..], &[6, 0, 0, 0, 0, 0, 0xff, 0x7f], b"devices"])).into()
}
