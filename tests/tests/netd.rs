//! Networks of hosts: who keeps them, and that nothing of them stays.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_tests::{Lab, alive, until, until_some};

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
    drop(lab);
    assert!(!alive(last) && !alive(first[0]), "netd runs on after the lab");
}
