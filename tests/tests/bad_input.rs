//! Mistakes get a clear sentence, the right exit code, and leave nothing half-made; the daemon lives on.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use skep_tests::{Lab, busybox, until_some};

const SOON: Duration = Duration::from_secs(30);
const FAILED: i32 = 1;
const USAGE: i32 = 64;
const TEMPORARY: i32 = 75;
const UNSUPPORTED: i32 = 78;

#[test]
fn services_with_mistakes_are_refused() {
    let lab = Lab::up("mistakes", 1, &[]);
    lab.skep_with_input(1, &["image", "load"], &busybox("busybox:1").archive()).ok();
    let create = |args: &[&str]| lab.skep(1, &[&["service", "create", "--detach"], args].concat());

    create(&["--name", "we b", "busybox:1"]).fails(USAGE, "not a valid name");
    create(&["--name", &"x".repeat(64), "busybox:1"]).fails(USAGE, "at most 63");
    create(&["--name", "web", "--replicas", "100001", "busybox:1"]).fails(USAGE, "at most 100000");
    create(&["--name", "web", "--replicas", "-1", "busybox:1"]).fails(USAGE, "-1");
    create(&["--name", "web", "--no-such-flag", "busybox:1"]).fails(USAGE, "--no-such-flag");
    create(&["--name", "web", "--tty", "busybox:1"]).fails(UNSUPPORTED, "not supported yet: --tty");
    create(&["--name", "web", "--hostname", "{{.Bogus}}", "busybox:1"]).fails(USAGE, "hostname");
    create(&["--name", "web", "--limit-memory", "1k", "busybox:1"]).fails(USAGE, "at least 4 MiB");
    create(&["--name", "web", "--constraint", "node.colour==red", "busybox:1"]).fails(USAGE, "node.colour");
    create(&["--name", "web", "--publish", "80:80", "--network", "none", "busybox:1"]).fails(USAGE, "publish ports");
    create(&["--name", "web", "--network", "nosuch", "busybox:1"]).fails(FAILED, "nosuch");
    create(&["--name", "web", "web/UPPER:1"]).fails(USAGE, "UPPER");
    create(&["--name", "web", "127.0.0.1:1/nosuch:1"]).fails(TEMPORARY, "127.0.0.1:1");
    assert_eq!(lab.list(1, &["service", "ls"]).len(), 0, "nothing is half-made");

    create(&["--name", "web", "--replicas", "0", "busybox:1"]).ok();
    create(&["--name", "web", "busybox:1"]).fails(FAILED, "name web");
    lab.skep(1, &["service", "scale", "--detach", "web=100001"]).fails(USAGE, "at most 100000");
    lab.skep(1, &["service", "scale", "--detach", "nosuch=1"]).fails(FAILED, "nosuch");
    lab.skep(1, &["service", "inspect", "nosuch"]).fails(FAILED, "no such service: nosuch");
    lab.skep(1, &["node", "inspect", "nosuch"]).fails(FAILED, "nosuch");
    lab.skep(1, &["task", "inspect", "nosuch"]).fails(FAILED, "nosuch");
    lab.skep(1, &["service", "update", "--generic-resource-add", "x", "web"])
        .fails(UNSUPPORTED, "not supported yet: --generic-resource-add");
    assert_eq!(lab.list(1, &["service", "ls"]).len(), 1);
    let findings = lab.skep(1, &["swarm", "doctor"]);
    assert_eq!(findings.code, 0, "{findings:?}");
}

#[test]
fn ambiguous_prefixes_are_refused_and_unique_ones_found() {
    let lab = Lab::up("prefix", 1, &[]);
    lab.skep_with_input(1, &["image", "load"], &busybox("busybox:1").archive()).ok();
    let ids: Vec<String> = (0..40)
        .map(|number| {
            let name = format!("s{number}");
            lab.skep(1, &["service", "create", "--detach", "--replicas", "0", "--name", &name, "busybox:1"]).ok()
        })
        .collect();
    // 40 ids over 36 first digits: two must share one.
    let shared = ids.iter().map(|id| &id[..1]).find(|digit| ids.iter().filter(|id| id.starts_with(*digit)).count() > 1);
    lab.skep(1, &["service", "inspect", shared.unwrap()]).fails(USAGE, "more than one service");
    lab.skep(1, &["service", "inspect", &ids[7][..12]]).ok();
}

#[test]
fn tasks_that_cannot_start_say_why() {
    let lab = Lab::up("nostart", 1, &[]);
    lab.skep_with_input(1, &["image", "load"], &busybox("busybox:1").archive()).ok();
    let cases: [(&str, &[&str], &[&str], &str); 3] = [
        ("command", &[], &["nosuchcommand"], "nosuchcommand"),
        ("bind", &["--mount", "type=bind,source=/no/such/path,target=/data"], &["sleep", "9"], "/no/such/path"),
        ("user", &["--user", "nosuchuser"], &["sleep", "9"], "nosuchuser"),
    ];
    for (name, flags, command, part) in cases {
        let head = ["service", "create", "--detach", "--restart-condition", "none", "--name", name];
        lab.skep(1, &[&head[..], flags, &["busybox:1"], command].concat()).ok();
        until_some("the task to say why", SOON, || {
            let tasks = lab.tasks(name);
            let told = tasks.iter().any(|task| task["Error"].as_str().is_some_and(|error| error.contains(part)));
            if told { Ok(()) } else { Err(format!("{tasks:#?}")) }
        });
    }
}

#[test]
fn swarms_are_made_and_joined_once_and_with_the_right_token() {
    let lab = Lab::without_swarm("tokens", 3, &[]);
    lab.skep(1, &["node", "ls"]).fails(FAILED, "not a swarm manager");
    lab.skep(1, &["swarm", "init", "--advertise-addr", "10.90.0.1"]).ok();
    lab.skep(1, &["swarm", "init"]).fails(FAILED, "already part of a swarm");
    lab.skep(2, &["swarm", "init", "--advertise-addr", "10.90.0.2"]).ok();
    let foreign = lab.skep(2, &["swarm", "join-token", "-q", "worker"]).ok();
    let token = lab.skep(1, &["swarm", "join-token", "-q", "worker"]).ok();
    let join = |token: &str| lab.skep(3, &["swarm", "join", "--token", token, "10.90.0.1:2377"]);

    join("SWMTKN-1-short").fails(USAGE, "token");
    join(&foreign).fails(FAILED, "");
    let (head, _) = token.rsplit_once('-').unwrap();
    join(&format!("{head}-{}", "0".repeat(25))).fails(FAILED, "token");
    let rotated = lab.skep(1, &["swarm", "join-token", "-q", "--rotate", "worker"]).ok();
    assert_ne!(rotated, token);
    join(&token).fails(FAILED, "token");
    lab.skep(3, &["swarm", "join", "--token", &rotated, "10.90.0.9:2377"]).fails(FAILED, "10.90.0.9");
    assert_eq!(lab.list(1, &["node", "ls"]).len(), 1, "no failed join left a node");
    join(&rotated).ok();
    join(&rotated).fails(FAILED, "already part of a swarm");
    assert_eq!(lab.list(1, &["node", "ls"]).len(), 2);
    lab.skep(3, &["service", "ls"]).fails(FAILED, "worker");
    lab.skep(1, &["swarm", "leave"]).fails(FAILED, "--force");
    lab.skep(3, &["swarm", "leave"]).ok();
    lab.skep(3, &["swarm", "leave"]).fails(FAILED, "not part of a swarm");
}

#[test]
fn a_second_daemon_on_the_data_directory_is_refused() {
    let lab = Lab::without_swarm("twice", 1, &[]);
    let data = lab.dir().join("hosts/1/data");
    let data = data.display().to_string();
    let second = lab.exec(1, &["skep", "daemon", "--data-dir", &data, "--socket", "/run/skep/other.sock"]);
    assert_ne!(second.code, 0);
    assert!(second.stderr.contains("in use by another skep daemon"), "{second:?}");
    lab.skep(1, &["info"]).ok();
}
