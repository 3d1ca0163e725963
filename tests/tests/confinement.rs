//! Hosts that remap user ids, and services that say how they are confined, seen through the binary.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use skep_tests::{Lab, Running, until, until_some};

const SOON: Duration = Duration::from_secs(60);
/// First id of containers on these hosts.
const FIRST: u32 = 200_000;

/// The host's user id of a task's first process.
fn host_uid(lab: &Lab, task: &Running) -> u32 {
    let status = fs::read_to_string(format!("/proc/{}/status", lab.pid(&task.id))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Waits until the service's logs hold all of `words`.
fn logged(lab: &Lab, service: &str, words: &[&str]) -> String {
    until_some(&format!("{service} to say {words:?}"), SOON, || {
        let out = lab.run(&["service", "logs", "--raw", service]);
        let said = format!("{}{}", out.stdout, out.stderr);
        if words.iter().all(|word| said.contains(word)) { Ok(said) } else { Err(said) }
    })
}

/// Why the newest task of a service does not run.
fn refusal(lab: &Lab, service: &str, part: &str) {
    until_some(&format!("{service} to be refused"), SOON, || {
        let out = lab.run(&["service", "ps", "--no-trunc", service]).ok();
        if out.contains(part) { Ok(()) } else { Err(out) }
    });
}

#[test]
fn tasks_of_remapped_hosts_have_networks_secrets_and_ids_of_nobody() {
    let remap = format!("--daemon-arg=--userns-remap={FIRST}:{FIRST}:65536");
    let lab = Lab::up("remapped", 2, &[&remap]);
    lab.load_busybox();
    assert!(lab.run(&["info"]).ok().contains(&format!("userns: {FIRST}:{FIRST}:65536")));
    lab.run(&["network", "create", "sealed"]).ok();
    let secret = lab.dir().join("secret");
    fs::write(&secret, "first-secret").unwrap();
    let secret = secret.to_string_lossy().into_owned();
    lab.run(&["secret", "create", "s", &secret]).ok();

    // A port that takes a capability of its own network, on the other host.
    let serve = ["sh", "-c", "while true; do echo served-by-$(id -u) | nc -l -p 80; done"];
    let check = ["--health-cmd", "test $(id -u) = 0 && test -w /etc/hosts", "--health-interval", "1s"];
    let flags = [&["--network", "sealed", "--constraint", "node.hostname==host2"][..], &check].concat();
    lab.create("store", &flags, &serve);
    let store = lab.running("store", 1, SOON).remove(0);
    assert_eq!(host_uid(&lab, &store), FIRST);

    let ask = "id -u; until nc -w 3 store 80 | grep served; do sleep 0.2; done; while true; do cat /run/secrets/s; echo; sleep 0.5; done";
    let with_secret = ["--network", "sealed", "--constraint", "node.hostname==host1", "--user", "33:34"];
    let with_secret = [&with_secret[..], &["--secret", "source=s,uid=33,gid=34,mode=0400"]].concat();
    lab.create("client", &with_secret, &["sh", "-c", ask]);
    let client = lab.running("client", 1, SOON).remove(0);
    assert_eq!(host_uid(&lab, &client), FIRST + 33);
    logged(&lab, "client", &["33\n", "served-by-0", "first-secret"]);
    fs::write(&secret, "second-secret").unwrap();
    lab.run(&["secret", "rotate", "--live", "s", &secret]).ok();
    logged(&lab, "client", &["second-secret"]);
    assert_eq!(lab.running("client", 1, SOON).remove(0).id, client.id, "replaced in place");

    // A daemon that restarts goes on with them.
    lab.command(&["kill", "2"]).ok();
    lab.command(&["start", "2"]).ok();
    until("host2 to be back", SOON, || lab.skep(2, &["info"]).stdout.contains("userns"));
    assert_eq!(lab.running("store", 1, SOON).remove(0).id, store.id);

    // Out of it, where a service says so; and what cannot be is said.
    lab.create("hosts", &["--userns", "host", "--network", "host"], &["sleep", "1000"]);
    assert_eq!(host_uid(&lab, &lab.running("hosts", 1, SOON)[0]), 0);
    lab.create("both", &["--network", "host"], &["sleep", "1000"]);
    refusal(&lab, "both", "the host's network cannot be used on a node that remaps user ids");
    for service in ["store", "client", "hosts", "both"] {
        lab.run(&["service", "rm", service]).ok();
    }
    until("all namespaces to be gone", SOON, || {
        [1, 2].iter().all(|host| {
            let left = lab.exec(*host, &["sh", "-c", "cat /proc/mounts | grep -c 'sandboxes/.*/user'"]);
            left.stdout.trim() == "0"
        })
    });
}

#[test]
fn services_say_how_they_are_confined() {
    let lab = Lab::with_busybox("confined", 1);
    let profile = lab.dir().join("profile.json");
    fs::write(
        &profile,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW",
             "syscalls": [ { "names": [ "mkdir", "mkdirat" ], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 } ] }"#,
    )
    .unwrap();
    let option = format!("seccomp={}", profile.display());
    let command = ["sh", "-c", "mkdir /tmp/x; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; sleep 1000"];
    lab.create("web", &["--security-opt", &option, "--security-opt", "no-new-privileges=false"], &command);
    logged(&lab, "web", &["No space left on device", "NoNewPrivs:\t0", "Seccomp:\t2"]);
    let pretty = lab.run(&["service", "inspect", "--pretty", "web"]).ok();
    assert!(pretty.contains("no-new-privileges=false, seccomp=custom profile"), "{pretty}");
    let json = lab.run(&["service", "inspect", "--format", "{{json .}}", "web"]).ok();
    assert!(json.contains(r#""Seccomp":{"Mode":"custom""#), "{json}");
    // Back to what everybody has, in one update.
    let back = ["--security-opt", "seccomp=default", "--security-opt", "no-new-privileges"];
    lab.run(&[&["service", "update"][..], &back, &["web"]].concat()).ok();
    logged(&lab, "web", &["NoNewPrivs:\t1"]);
    assert!(!lab.run(&["service", "inspect", "--pretty", "web"]).ok().contains("Security Options"));

    lab.create("own", &["--userns", "private"], &["sleep", "1000"]);
    refusal(&lab, "own", "this node does not remap user ids");
    if lab.run(&["info"]).ok().contains("apparmor: not in this kernel") {
        lab.create("armor", &["--security-opt", "apparmor=web"], &["sleep", "1000"]);
        refusal(&lab, "armor", "this host's kernel has no AppArmor");
    }
    let create = |option: &str| {
        let flags = ["--security-opt", option, "busybox:1"];
        lab.run(&[&["service", "create", "--detach"][..], &flags].concat())
    };
    create("label=disable").fails(78, "not supported yet: --security-opt label");
    create("bogus").fails(64, "\"bogus\" is not known");
    create("seccomp=/no/such/file").fails(64, "cannot read /no/such/file");
}
