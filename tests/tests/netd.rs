//! Networks of hosts: who keeps them, and that nothing of them stays.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_tests::{Lab, addresses, alive, until, until_some};

const SOON: Duration = Duration::from_secs(60);

/// Processes that run `skep netd` for a host: their folder of sandboxes is in its data directory.
fn netds(lab: &Lab, host: u32) -> Vec<u64> {
    let sandboxes = lab.data(host).join("sandboxes").display().to_string();
    let runs = |pid: u64| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&&b"netd"[..]) && words.contains(&sandboxes.as_bytes())
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| runs(*pid)).collect()
}

#[track_caller]
fn the_netd(lab: &Lab, host: u32) -> u64 {
    until_some("one netd", SOON, || match netds(lab, host)[..] {
        [pid] => Ok(pid),
        ref other => Err(format!("{other:?}")),
    })
}

/// How often daemons of a host have found netd, or started it, and told it who the host is.
fn told(lab: &Lab, host: u32) -> usize {
    lab.log(host).matches("netd knows this host").count()
}

#[test]
fn netd_outlives_daemons_and_ends_with_the_membership_and_the_host() {
    let lab = Lab::up("netd", 3, &[]);
    let first: Vec<u64> = (1..=3).map(|host| the_netd(&lab, host)).collect();
    (1..=3).for_each(|host| until("netd to be told", SOON, || told(&lab, host) == 1));
    let key = |host| lab.data(host).join("identity").join("wireguard.key");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let keys: Vec<String> = (1..=3).map(|host| std::fs::read_to_string(key(host)).unwrap()).collect();
    assert!((1..=3).all(|host| mode(&key(host)) == 0o600));
    assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);

    // Without a daemon it stays; a daemon that comes finds it.
    lab.command(&["kill", "2"]).ok();
    assert!(alive(first[1]));
    lab.command(&["start", "2"]).ok();
    until("netd to be told again", SOON, || told(&lab, 2) == 2);
    assert_eq!(netds(&lab, 2), [first[1]]);
    assert_eq!(std::fs::read_to_string(key(2)).unwrap(), keys[1], "the same key");
    // Killed, it is started again.
    kill(Pid::from_raw(first[1].try_into().unwrap()), Signal::SIGKILL).unwrap();
    until("another netd to be told", SOON, || told(&lab, 2) == 3);
    assert_ne!(the_netd(&lab, 2), first[1]);

    // It goes with the membership, and so does the key.
    lab.skep(2, &["swarm", "leave"]).ok();
    until("netd to be gone", SOON, || netds(&lab, 2).is_empty());
    assert!(!key(2).exists());
    lab.exec(2, &["ls", "/run/skep/skep.netd"]).fails(2, "No such file");

    let last = the_netd(&lab, 3);
    lab.command(&["power-off", "3"]).ok();
    assert!(!alive(last), "a host without power runs nothing");
    lab.command(&["start", "3"]).ok();
    let last = the_netd(&lab, 3);
    assert_eq!(netds(&lab, 1), [first[0]], "nothing happened to it");
    let dir = lab.dir().to_owned();
    drop(lab);
    assert!(!alive(last) && !alive(first[0]), "netd runs on after the lab");
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!dir.exists() && !mounts.contains(&dir.display().to_string()), "something of the lab is left");
}

#[test]
fn networks_work_while_no_agent_does() {
    let lab = Lab::with_busybox("absent", 2);
    lab.run(&["network", "create", "front"]).ok();
    let (listen, wait) = (["nc", "-ll", "-p", "80", "-e", "echo", "hello"], ["sleep", "1000"]);
    lab.create("web", &["--network", "front", "--constraint", "node.hostname==host1"], &listen);
    lab.create("probe", &["--network", "front", "--constraint", "node.hostname==host2"], &wait);
    let web = lab.running("web", 1, SOON).remove(0);
    let probe = lab.running("probe", 1, SOON).remove(0);
    let connects = || lab.inside(&probe, &["nc", "-w", "2", "web", "80"]).stdout == "hello\n";
    until("web to answer", SOON, connects);

    // Neither host's agent is there: every ping in 30 s, every name, every connection by a virtual address.
    let to = addresses(&lab, &probe, "tasks.web").into_iter().next().unwrap();
    let ping = ["ping", "-c", "300", "-i", "0.1", "-W", "5", &to];
    let pings = lab.enter(&probe).args(ping).stdout(Stdio::piped()).spawn().unwrap();
    // They are entered before there is nobody to ask where.
    let mut connect = lab.enter(&probe);
    connect.args(["nc", "-w", "2", "web", "80"]);
    lab.command(&["kill", "all"]).ok();
    let start = Instant::now();
    let mut connected = 0;
    while start.elapsed() < Duration::from_secs(30) {
        let said = connect.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "hello\n", "after {connected} connections");
        connected += 1;
    }
    let said = pings.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(said.contains(" 0% packet loss"), "{said}");
    lab.command(&["start", "all"]).ok();
    assert_eq!(lab.running("web", 1, SOON), [web]);
    until("web to answer", SOON, connects);

    // Killed itself, netd comes back, and so does everything.
    let netd = the_netd(&lab, 2);
    kill(Pid::from_raw(netd.try_into().unwrap()), Signal::SIGKILL).unwrap();
    until("netd to be back", SOON, || netds(&lab, 2).iter().any(|pid| *pid != netd));
    until("web to answer", SOON, connects);
}
