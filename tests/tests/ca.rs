//! The certificate authority: a change of the root under load with managers that restart and a worker that is off; a root
//! from outside; and swarms whose certificates all ran out while they were off, with their root and without.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use skep_tests::{IDLE, Lab, call, channel, credentials, until, until_some};

const SOON: Duration = Duration::from_secs(90);
/// The worker that is off while the root changes.
const WORKER: u32 = 4;

/// The root certificate as a manager shows it.
fn root(lab: &Lab) -> String {
    lab.run(&["swarm", "ca", "--quiet"]).ok()
}

/// A node as a manager shows it.
fn inspect(lab: &Lab, node: &str) -> Value {
    let nodes: Value = serde_json::from_str(&lab.run(&["node", "inspect", node]).ok()).unwrap();
    nodes[0].clone()
}

/// Digests of the roots that signed the nodes' certificates, as the nodes say.
fn issuers(lab: &Lab, hosts: u32) -> BTreeSet<String> {
    let issuer = |host: u32| inspect(lab, &format!("host{host}"))["Certificate"]["IssuerDigest"].clone();
    (1..=hosts).map(|host| issuer(host).as_str().unwrap().to_owned()).collect()
}

fn info(lab: &Lab, host: u32) -> Value {
    serde_json::from_str(&lab.skep(host, &["info", "--format", "json"]).stdout).unwrap_or_default()
}

/// How many nodes have a certificate of the new root, of how many.
fn progress(lab: &Lab, host: u32) -> Option<(u64, u64)> {
    let info = info(lab, host);
    let rotation = &info["Swarm"]["Cluster"]["RootRotation"];
    Some((rotation["NodesDone"].as_u64()?, rotation["Nodes"].as_u64()?))
}

fn rotation(lab: &Lab, host: u32) -> Child {
    let mut command = lab.on(host, &["skep", "swarm", "ca", "--rotate"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Its end; the certificate that it prints.
fn finished(rotation: Child) -> String {
    let output = rotation.wait_with_output().unwrap();
    let (out, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{notes}");
    assert!(notes.contains("desired root digest: sha256:"), "{notes}");
    out.trim().to_owned()
}

/// Makes configs all the time, and counts what was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u32>,
}

impl Writer {
    fn start(lab: &Lab, host: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let make = |number: u32| {
            let name = format!("w{number}");
            lab.on(host, &["skep", "config", "create", &name, "/etc/hostname"])
        };
        let mut commands: Vec<Command> = (0..2_000).map(make).collect();
        let thread = thread::spawn(move || {
            let mut acknowledged = 0;
            for command in &mut commands {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let output = command.stdin(Stdio::null()).output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                acknowledged += 1;
            }
            acknowledged
        });
        Self { stop, thread }
    }

    /// Stops; all that was acknowledged is there.
    fn check(self, lab: &Lab) {
        self.stop.store(true, Ordering::Relaxed);
        let acknowledged = self.thread.join().unwrap();
        let stored = lab.run(&["config", "ls", "--quiet"]).ok().lines().count();
        eprintln!("{acknowledged} writes were acknowledged");
        assert!(acknowledged > 0 && stored == usize::try_from(acknowledged).unwrap(), "{stored} of {acknowledged}");
    }
}

#[test]
fn a_root_changes_under_load_while_managers_restart_and_a_worker_is_off() {
    let lab = Lab::with_managers("ca", 4, 3);
    lab.create("spread", &["--mode", "global", "--failover-delay", "1h"], &IDLE);
    let tasks = lab.running("spread", 4, SOON);
    let processes = lab.pids(&tasks);
    let old = root(&lab);
    until("all certificates to be told of", SOON, || issuers(&lab, 4).len() == 1);
    let before = issuers(&lab, 4);
    let leader = lab.leader();
    let (asked, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    lab.ask(asked);
    let writer = Writer::start(&lab, asked);

    // Off, as a host that is being mended: its containers are not disturbed, as nobody moves global tasks.
    let stolen = lab.dir().join("stolen");
    fs::create_dir(&stolen).unwrap();
    for file in ["node.key", "node.crt", "root.crt"] {
        fs::copy(lab.data(WORKER).join("identity").join(file), stolen.join(file)).unwrap();
    }
    lab.command(&["kill", &WORKER.to_string()]).ok();

    // The leader dies as soon as it has begun, and another manager after it.
    let rotating = rotation(&lab, asked);
    until("the change to begin", SOON, || progress(&lab, asked).is_some());
    lab.command(&["kill", &leader.to_string()]).ok();
    lab.command(&["start", &leader.to_string()]).ok();
    lab.command(&["kill", &other.to_string()]).ok();
    lab.command(&["start", &other.to_string()]).ok();
    until("all but the worker to have new certificates", SOON, || progress(&lab, asked) == Some((3, 4)));
    assert_eq!(root(&lab), old, "the old root stays while a node needs it");
    until_some("the doctor to say who is waited for", SOON, || {
        let said = lab.run(&["swarm", "doctor"]);
        let told = said.stdout.contains("waits for 1 of the nodes, which are away (host4)");
        if told { Ok(()) } else { Err(format!("{said:?}")) }
    });

    lab.command(&["start", &WORKER.to_string()]).ok();
    let new = finished(rotating);
    assert!(new.contains("BEGIN CERTIFICATE") && new != old && new == root(&lab));
    let after = issuers(&lab, 4);
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    lab.settled(3, SOON);
    writer.check(&lab);
    let now = lab.running("spread", 4, SOON);
    assert_eq!(lab.pids(&now), processes, "no task was restarted");
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
    let worker = inspect(&lab, "host4");
    let remaining = worker["Certificate"]["Remaining"].as_str().unwrap();
    assert!(["2 months", "3 months"].contains(&remaining), "{worker:#}");

    // Whoever comes with a certificate of the old root is nobody.
    lab.command(&["kill", &WORKER.to_string()]).ok();
    let identity = lab.data(WORKER).join("identity");
    let kept = lab.dir().join("kept");
    fs::create_dir(&kept).unwrap();
    for file in ["node.key", "node.crt", "root.crt"] {
        fs::copy(identity.join(file), kept.join(file)).unwrap();
        fs::copy(stolen.join(file), identity.join(file)).unwrap();
    }
    let sessions = || lab.log(WORKER).matches("session open").count();
    let before = sessions();
    lab.command(&["start", &WORKER.to_string()]).ok();
    until("the node with the old certificate to be down", SOON, || {
        lab.nodes().get(&WORKER).is_some_and(|node| node["Status"] == "Down")
    });
    until_some("the node to say why, and what is to be done", SOON, || {
        let info = info(&lab, WORKER);
        let error = info["Swarm"]["Error"].as_str().unwrap_or_default();
        let is_told = ["belongs to another cluster", "swarm join-token worker"].iter().all(|part| error.contains(part));
        if is_told { Ok(()) } else { Err(format!("{info:#}")) }
    });
    assert_eq!(sessions(), before, "no manager talks to it");
    // Its key is not the one that it had last: anybody may have it.
    let token = lab.run(&["swarm", "join-token", "--quiet", "worker"]).ok();
    let manager = format!("10.90.0.{asked}:2377");
    lab.skep(WORKER, &["swarm", "join", "--token", &token, &manager]).fails(1, "its key is not the one that node");
    lab.command(&["kill", &WORKER.to_string()]).ok();
    for file in ["node.key", "node.crt", "root.crt"] {
        fs::copy(kept.join(file), identity.join(file)).unwrap();
    }
    lab.command(&["start", &WORKER.to_string()]).ok();
    lab.settled(3, SOON);
    assert_eq!(lab.pids(&lab.running("spread", 4, SOON)), processes, "no task was restarted");
}

#[test]
fn open_connections_of_the_old_root_end_with_it() {
    let lab = Lab::with_busybox("caopen", 2);
    let stolen = credentials(&lab, 2);
    let mut rotation = lab.on(1, &["skep", "swarm", "ca", "--rotate", "--quiet"]);
    rotation.stdin(Stdio::null());
    lab.in_network(2, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // It stays open, and calls by it need no other handshake.
        let thief = runtime.block_on(async { channel("10.90.0.1:2377", &stolen, true) });
        let calls = || runtime.block_on(call(&thief, "CertificateAuthority.GetRoot"));
        calls().unwrap();
        let rotated = rotation.output().unwrap();
        assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
        until("the thief to be nobody", SOON, || calls().is_err());
    });
    lab.settled(1, SOON);
    until("the worker to have come back", SOON, || lab.nodes().get(&2).is_some_and(|node| node["Status"] == "Ready"));
    // The worker's end may be closed by then.
    let told = || lab.log(1).contains("a root that is trusted no more are closed");
    until("the manager to have closed what it had", SOON, told);
}

#[test]
fn a_root_can_come_from_outside_and_nothing_else_can() {
    let lab = Lab::up("cagiven", 2, &[]);
    let cluster = info(&lab, 1)["Swarm"]["Cluster"]["ID"].as_str().unwrap().to_owned();
    let (key, cert) = (lab.dir().join("ca.key"), lab.dir().join("ca.crt"));
    let (key, cert) = (key.to_str().unwrap(), cert.to_str().unwrap());
    let openssl = |subject: &str| {
        let new_key = ["ecparam", "-name", "prime256v1", "-genkey", "-noout"];
        let made = Command::new("openssl").args(new_key).output().unwrap();
        let mut to_pkcs8 = Command::new("openssl");
        to_pkcs8.args(["pkcs8", "-topk8", "-nocrypt", "-out", key]).stdin(Stdio::piped());
        let mut child = to_pkcs8.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &made.stdout).unwrap();
        assert!(child.wait().unwrap().success());
        let sign = ["req", "-x509", "-new", "-days", "3650", "-key", key, "-out", cert, "-subj", subject];
        assert!(Command::new("openssl").args(sign).output().unwrap().status.success());
    };
    openssl("/CN=somebody");
    let given = ["swarm", "ca", "--rotate", "--ca-cert", cert, "--ca-key", key];
    lab.run(&given).fails(64, &format!("its organisation (O) must be {cluster}"));
    lab.run(&["swarm", "ca", "--ca-cert", cert, "--ca-key", key]).fails(64, "--rotate");
    openssl(&format!("/C=CH/O={cluster}/CN=our own root"));
    let printed = lab.run(&[&given[..], &["--cert-expiry", "48h"]].concat()).ok();
    assert_eq!(printed, fs::read_to_string(cert).unwrap().trim());
    assert_eq!(issuers(&lab, 2).len(), 1);
    for host in ["host1", "host2"] {
        let remaining = inspect(&lab, host)["Certificate"]["Remaining"].as_str().unwrap().to_owned();
        assert!(["47 hours", "48 hours", "2 days"].contains(&remaining.as_str()), "{remaining}");
    }
    // Another one after it, and a host that joins by the new token.
    lab.run(&["swarm", "ca", "--rotate", "--quiet"]).ok();
    assert_ne!(root(&lab), printed);
}

#[test]
fn a_swarm_whose_certificates_ran_out_comes_back_without_being_made_anew() {
    let lab = Lab::with_busybox("cagone", 2);
    lab.create("spread", &["--mode", "global", "--failover-delay", "1h"], &IDLE);
    let processes = lab.pids(&lab.running("spread", 2, SOON));
    let id = inspect(&lab, "host2")["ID"].clone();
    for host in [1, 2] {
        lab.command(&["kill", &host.to_string()]).ok();
        lab.start_on_clock(host, "+100d");
    }
    // The only manager has nobody to ask but itself.
    until("the manager's own node to be ready", SOON, || {
        lab.nodes().get(&1).is_some_and(|node| node["Status"] == "Ready")
    });
    let error = until_some("the worker to say what is to be done", SOON, || {
        let info = info(&lab, 2);
        let error = info["Swarm"]["Error"].as_str().unwrap_or_default().to_owned();
        if error.contains("swarm join-token worker") { Ok(error) } else { Err(format!("{info:#}")) }
    });
    assert!(error.contains("certificate has ended"), "{error}");
    until("the daemon's log to say so", SOON, || lab.log(2).contains("its tasks go on"));
    let token = |role: &str| lab.run(&["swarm", "join-token", "--quiet", role]).ok();
    let manager = "10.90.0.1:2377";
    // The manager's own certificate may be a moment away.
    until_some("the wrong role's token to be refused", SOON, || {
        let said = lab.skep(2, &["swarm", "join", "--token", &token("manager"), manager]);
        let refused = said.code == 1 && said.stderr.contains("its way back needs that role's token");
        if refused { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let joined = lab.skep(2, &["swarm", "join", "--token", &token("worker"), manager]).ok();
    assert!(joined.contains("is back in its swarm as a worker"), "{joined}");
    lab.settled(1, SOON);
    assert_eq!(inspect(&lab, "host2")["ID"], id, "it is the node that it was");
    assert_eq!(lab.pids(&lab.running("spread", 2, SOON)), processes, "no task was restarted");
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}

/// All certificates end with the root that signed them: then there is nobody whom to ask, and nothing to sign with.
#[test]
fn a_swarm_whose_root_ran_out_gets_another() {
    let lab = Lab::with_busybox("cagone-root", 2);
    lab.create("spread", &["--mode", "global", "--failover-delay", "1h"], &IDLE);
    let processes = lab.pids(&lab.running("spread", 2, SOON));
    let before = root(&lab);
    for host in [1, 2] {
        lab.command(&["kill", &host.to_string()]).ok();
        lab.start_on_clock(host, "+21y");
    }
    until_some("the doctor to say what is to be done", SOON, || {
        let said = lab.run(&["swarm", "doctor"]);
        let told = said.stdout.contains("the root certificate") && said.stdout.contains("`skep swarm ca --rotate`");
        if told { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let printed = finished(rotation(&lab, 1));
    assert_ne!(printed, before);
    assert_eq!(root(&lab).trim(), printed, "nobody is waited for");
    let token = lab.run(&["swarm", "join-token", "--quiet", "worker"]).ok();
    // The manager's own certificate may be a moment away.
    until_some("the worker to come back", SOON, || {
        let said = lab.skep(2, &["swarm", "join", "--token", &token, "10.90.0.1:2377"]);
        let is_back = said.stdout.contains("is back in its swarm as a worker");
        if is_back { Ok(()) } else { Err(format!("{said:?}")) }
    });
    lab.settled(1, SOON);
    assert_eq!(issuers(&lab, 2).len(), 1);
    assert_eq!(lab.pids(&lab.running("spread", 2, SOON)), processes, "no task was restarted");
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}
