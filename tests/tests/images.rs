//! Images that do not come, or come wrong: a clear sentence each, nothing half-made.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use skep_tests::{Lab, Registry, busybox, foreign, until_some};

const SOON: Duration = Duration::from_secs(30);
const FAILED: i32 = 1;
const TEMPORARY: i32 = 75;

#[test]
fn a_registry_that_fails_is_named_and_a_silent_one_delays_no_start() {
    let address = Registry::address_on(1);
    let lab = Lab::up("trouble", 2, &["--insecure-registry", &address]);
    let mut registry = Registry::start(&lab, 1);
    let image = registry.push(&lab, &busybox("busybox:1"));
    let create = |name: &str, image: &str| {
        lab.skep(1, &["service", "create", "--detach", "--name", name, "--mode", "global", image, "sleep", "1000"])
    };
    create("missing", &format!("{address}/nosuch:1")).fails(FAILED, "nosuch");
    let digest = format!("{address}/busybox@sha256:{}", "0".repeat(64));
    let output = lab.skep(1, &["image", "pull", &digest]);
    assert_eq!(output.code, FAILED, "{output:?}");

    create("first", &image).ok();
    lab.running("first", 2, SOON);
    let resolved = lab.tasks("first")[0]["Image"].as_str().unwrap().to_owned();
    registry.stop();
    create("down", &format!("{address}/other:1")).fails(TEMPORARY, &address);
    // The digest is at hand on both hosts: nobody is asked.
    let started = Instant::now();
    create("second", &resolved).ok();
    lab.running("second", 2, SOON);
    assert!(started.elapsed() < Duration::from_secs(8), "a registry that is down delays nothing");
    assert_eq!(lab.list(1, &["service", "ls"]).len(), 2, "refused services are not there");
}

#[test]
fn a_registry_that_never_answers_is_given_up() {
    // Accepts and is silent, on this host's own loopback inside the lab host: started there by nc.
    let lab = Lab::up("silent", 1, &["--insecure-registry", "127.0.0.1:5001"]);
    let mut listener =
        lab.on(1, &["busybox", "nc", "-l", "-p", "5001"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    let refused = lab.skep(1, &["service", "create", "--name", "x", "127.0.0.1:5001/busybox:1"]);
    let waited = started.elapsed();
    let _ = listener.kill();
    let _ = listener.wait();
    assert!(refused.code != 0 && refused.stderr.contains("127.0.0.1:5001"), "{refused:?}");
    assert!(waited < Duration::from_secs(60), "{waited:?}");
    lab.skep(1, &["service", "ls"]).ok();
}

#[test]
fn hostile_and_broken_archives_are_refused_and_leave_nothing() {
    let lab = Lab::without_swarm("archives", 1, &[]);
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary");
    fs::write(&canary, "untouched").unwrap();
    // A step upwards is refused; an absolute path means the image's own root.
    let hostile =
        [("up.tar", "../../../../../../../../../../../tmp/skep-escape", FAILED), ("abs.tar", "/tmp/skep-escape", 0)];
    for (name, path, code) in hostile {
        let file = dir.path().join(name);
        let mut builder = tar::Builder::new(fs::File::create(&file).unwrap());
        let mut header = tar::Header::new_gnu();
        // `set_path` refuses such names: write the bytes as an attacker would.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(4);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, &b"evil"[..]).unwrap();
        builder.into_inner().unwrap();
        let refused = lab.skep_with_input(1, &["image", "import", "-", "evil:1"], &file);
        assert_eq!(refused.code, code, "{name}: {refused:?}");
        assert!(!std::path::Path::new("/tmp/skep-escape").exists(), "{name} wrote outside");
    }
    lab.skep(1, &["image", "rm", "evil:1"]).ok();
    let whole = fs::read(busybox("busybox:1").archive()).unwrap();
    let cut = dir.path().join("cut.tar");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let refused = lab.skep_with_input(1, &["image", "load"], &cut);
    assert_eq!(refused.code, FAILED, "{refused:?}");
    fs::write(&cut, "this is no archive").unwrap();
    lab.skep_with_input(1, &["image", "load"], &cut).fails(FAILED, "archive");
    assert_eq!(lab.list(1, &["image", "ls"]).len(), 0);
    assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched");
    lab.skep(1, &["info"]).ok();
}

#[test]
fn an_image_in_use_stays_and_an_unused_one_goes() {
    let lab = Lab::up("prune", 1, &[]);
    lab.skep_with_input(1, &["image", "load"], &busybox("used:1").archive()).ok();
    lab.skep(1, &["service", "create", "--detach", "--name", "user", "used:1", "sleep", "1000"]).ok();
    lab.running("user", 1, SOON);
    lab.skep(1, &["image", "rm", "used:1"]).fails(FAILED, "in use");
    lab.skep(1, &["service", "rm", "user"]).ok();
    until_some("the image to be free", SOON, || {
        let removed = lab.skep(1, &["image", "rm", "used:1"]);
        if removed.code == 0 { Ok(()) } else { Err(removed.stderr) }
    });
    assert_eq!(lab.list(1, &["image", "ls"]).len(), 0);
}

/// The port stays free for the lab: a listener of the machine's own namespace is another world.
#[test]
fn lab_hosts_have_ports_of_their_own() {
    let taken = TcpListener::bind("127.0.0.1:2377");
    let lab = Lab::up("ports", 1, &[]);
    lab.skep(1, &["node", "ls"]).ok();
    drop(taken);
}

#[test]
fn an_image_for_another_platform_says_so() {
    let address = Registry::address_on(1);
    let lab = Lab::up("foreign", 1, &["--insecure-registry", &address]);
    let registry = Registry::start(&lab, 1);
    let image = foreign("odd:1");
    let loaded = lab.skep_with_input(1, &["image", "load"], &image.archive());
    assert!(loaded.code != 0 && loaded.stderr.contains("s390x"), "{loaded:?}");
    let name = registry.push(&lab, &image);
    let pulled = lab.skep(1, &["image", "pull", &name]);
    assert!(pulled.code != 0 && pulled.stderr.contains("s390x"), "{pulled:?}");
    lab.skep(1, &["service", "create", "--detach", "--name", "odd", &name]).ok();
    until_some("the reason to be told", SOON, || {
        let tasks = lab.tasks("odd");
        let told = tasks.iter().any(|task| task["Error"].as_str().is_some_and(|error| error.contains("platform")));
        if told { Ok(()) } else { Err(format!("{tasks:#?}")) }
    });
}
