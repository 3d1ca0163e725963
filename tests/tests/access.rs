//! Who may call what, on real hosts: a worker's certificate by hand, people with theirs from a host outside of the swarm, and
//! those who have no good one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use skep_proto::id::TaskId;
use skep_proto::v1::assignment_item::Item;
use skep_proto::v1::dispatch_client::DispatchClient;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::{Assignments, ImageSourcesRequest, NodeDescription, Register, SessionUp};
use skep_tests::{IDLE, Lab, Output, call, channel, credentials, methods, until};
use tonic::transport::Channel;
use tonic::{Code, Status};

const SOON: Duration = Duration::from_secs(60);
const MANAGER: &str = "10.90.0.1:2377";
/// What a worker may call. Everything else in `proto/v1` is refused to it, whatever it is.
const WORKERS: [&str; 7] = [
    "CertificateAuthority.GetRoot",
    "CertificateAuthority.Renew",
    "Dispatch.ImageSources",
    "Dispatch.PublishLogs",
    "Dispatch.PublishNetworkCheck",
    "Dispatch.Session",
    "Peer.FetchBlob",
];
/// What a host without a certificate may call.
const STRANGERS: [&str; 2] = ["CertificateAuthority.GetRoot", "CertificateAuthority.Issue"];
/// The host outside of the swarm.
const LAPTOP: u32 = 4;

fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Calls every method from a host's network; what became of each.
fn call_all(lab: &Lab, host: u32, show: bool) -> Vec<(String, Result<(), Status>)> {
    // A laptop has no credentials of its own: it trusts what a worker trusts.
    let credentials = credentials(lab, if show { host } else { 2 });
    lab.in_network(host, move || {
        in_runtime(async {
            let channel = channel(MANAGER, &credentials, show);
            let mut answers = Vec::new();
            for method in methods() {
                let answer = call(&channel, &method).await;
                answers.push((method, answer));
            }
            answers
        })
    })
}

#[test]
fn a_workers_certificate_by_hand_gets_its_own_and_nothing_else() {
    let lab = Lab::with_managers("byhand", 3, 1);
    lab.create("web", &["--mode", "global"], &IDLE);
    lab.running("web", 3, SOON);
    let answers = call_all(&lab, 2, true);
    assert!(answers.len() > 80, "{} methods", answers.len());
    let node = lab.run(&["node", "inspect", "host2", "--format", "{{.ID}}"]).ok();
    for (method, answer) in &answers {
        let refusal = answer.as_ref().err().filter(|status| status.code() == Code::PermissionDenied);
        if WORKERS.contains(&method.as_str()) {
            assert!(refusal.is_none(), "{method}: {answer:?}");
        } else {
            let why = refusal.unwrap_or_else(|| panic!("{method}: {answer:?}")).message();
            assert!(why.starts_with(&format!("node {node} (a worker) may not call {method}: it is for ")), "{why}");
        }
    }
    for (method, answer) in call_all(&lab, 3, false) {
        let unknown = answer.as_ref().is_err_and(|status| status.code() == Code::Unauthenticated);
        assert_eq!(!unknown, STRANGERS.contains(&method.as_str()), "{method}: {answer:?}");
    }
    // Nothing of it did any harm.
    lab.settled(1, SOON);
    lab.running("web", 3, SOON);
}

/// Opens a session as the node whose certificate it is, and takes the complete set of assignments.
async fn assignments(channel: &Channel, register: Register) -> Assignments {
    let first = SessionUp { message: Some(Up::Register(register)) };
    let up = futures::stream::once(async { first }).chain(futures::stream::pending());
    let mut down = DispatchClient::new(channel.clone()).session(up).await.unwrap().into_inner();
    let mut all = Assignments::default();
    loop {
        let message = tokio::time::timeout(SOON, down.message()).await.unwrap().unwrap().unwrap();
        if let Some(Down::Assignments(part)) = message.message {
            assert!(part.complete || !all.put.is_empty());
            all.put.extend(part.put);
            return all;
        }
    }
}

#[test]
fn a_worker_does_not_get_another_nodes_assignments() {
    const DATA: &str = "for host3 alone";
    let lab = Lab::with_busybox("assigned", 3);
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut secret, DATA.as_bytes()).unwrap();
    lab.run(&["secret", "create", "db", secret.path().to_str().unwrap()]).ok();
    lab.create("own", &["--constraint", "node.hostname==host2"], &IDLE);
    lab.create("other", &["--constraint", "node.hostname==host3", "--secret", "db"], &IDLE);
    let own = lab.running("own", 1, SOON)[0].id.clone();
    let other = lab.running("other", 1, SOON)[0].id.clone();
    let (as_two, as_three) = (credentials(&lab, 2), credentials(&lab, 3));
    let digest = "sha256:".to_owned() + &"0".repeat(64);
    let (two, three, sources) = lab.in_network(2, move || {
        in_runtime(async {
            let register = |hostname: &str| Register {
                description: Some(NodeDescription { hostname: hostname.into(), ..NodeDescription::default() }),
                ..Register::default()
            };
            let (two, three) = (channel(MANAGER, &as_two, true), channel(MANAGER, &as_three, true));
            // It says that it is host3; its certificate says otherwise.
            let lie = assignments(&two, register("host3")).await;
            let sources = DispatchClient::new(two.clone()).image_sources(ImageSourcesRequest { digest }).await;
            (lie, assignments(&three, register("host3")).await, sources)
        })
    });
    let tasks = |set: &Assignments| -> BTreeSet<String> {
        let task = |item: &Option<Item>| match item {
            Some(Item::Task(task)) => Some(TaskId::from_wire(&task.id).unwrap().to_string()),
            _ => None,
        };
        set.put.iter().filter_map(|one| task(&one.item)).collect()
    };
    let payloads = |set: &Assignments| set.put.iter().filter(|one| matches!(one.item, Some(Item::Payload(_)))).count();
    assert_eq!((tasks(&two), payloads(&two)), (BTreeSet::from([own]), 0));
    // The control: with host3's certificate both are there.
    assert_eq!((tasks(&three), payloads(&three)), (BTreeSet::from([other]), 1));
    assert_eq!(sources.unwrap_err().code(), Code::PermissionDenied, "an image that none of its tasks runs");
    // The agents take their sessions back.
    lab.settled(1, SOON);
}

/// The laptop's user: a home of its own, and nothing of the lab's in the environment.
struct Laptop<'a> {
    lab: &'a Lab,
    home: tempfile::TempDir,
}

impl<'a> Laptop<'a> {
    fn new(lab: &'a Lab) -> Self {
        Self { lab, home: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let home = format!("HOME={}", self.home.path().display());
        let clean = ["env", "-u", "SKEP_HOST", "-u", "XDG_CONFIG_HOME", &home, "skep"];
        self.lab.on(LAPTOP, &[&clean[..], args].concat())
    }

    fn skep(&self, args: &[&str]) -> Output {
        let output = self.command(args).stdin(Stdio::null()).output().unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Has a client made on a manager, and a context of it here.
    fn client(&self, name: &str, role: &str) {
        let file = self.home.path().join(format!("{name}.skep")).display().to_string();
        self.lab.run(&["client", "create", "--role", role, "--output", &file, name]).ok();
        self.skep(&["context", "create", "--bundle", &file, name]).ok();
    }
}

/// Three managers in a swarm, and a fourth host that is not.
fn with_laptop(name: &str) -> Lab {
    let lab = Lab::without_swarm(name, 4, &[]);
    lab.run(&["swarm", "init"]).ok();
    let token = lab.run(&["swarm", "join-token", "--quiet", "manager"]).ok();
    for host in [2, 3] {
        lab.skep(host, &["swarm", "join", "--token", &token, MANAGER]).ok();
    }
    lab.settled(3, SOON);
    lab.load_busybox();
    lab
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn people_run_the_swarm_from_a_laptop() {
    let lab = with_laptop("laptop");
    let laptop = Laptop::new(&lab);
    laptop.skep(&["service", "ls"]).fails(1, "not a swarm manager");
    laptop.client("alice", "admin");
    let bundle = laptop.home.path().join("alice.skep");
    let context = laptop.home.path().join(".config/skep/contexts/alice.json");
    assert_eq!((mode(&bundle), mode(&context)), (0o600, 0o600));
    laptop.skep(&["context", "use", "alice"]).ok();
    assert_eq!(laptop.skep(&["context", "show"]).ok(), "alice");
    assert_eq!(laptop.skep(&["node", "ls", "--format", "{{.Hostname}}"]).ok(), "host1\nhost2\nhost3");

    // Long commands: progress until it runs, and a log that goes on.
    let create = ["service", "create", "--name", "web", "--replicas", "3", "busybox:1"];
    laptop.skep(&[&create[..], &["sh", "-c", "while :; do echo tick; sleep 0.2; done"]].concat()).ok();
    let mut logs = laptop.command(&["service", "logs", "--follow", "web"]);
    let mut logs = logs.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut first = [0; 4];
    std::io::Read::read_exact(logs.stdout.as_mut().unwrap(), &mut first).unwrap();
    logs.kill().unwrap();
    logs.wait().unwrap();
    laptop.skep(&["node", "update", "--label-add", "zone=a", "host2"]).ok();
    laptop.skep(&["service", "scale", "web=2"]).ok();
    assert!(laptop.skep(&["swarm", "join-token", "--quiet", "worker"]).ok().starts_with("SWMTKN-1-"));
    assert!(laptop.skep(&["version"]).ok().contains("Server:"));

    // What is about a host says so.
    for command in [&["image", "ls"][..], &["info"], &["swarm", "leave"], &["swarm", "init"]] {
        laptop.skep(command).fails(1, "is about the daemon of a host");
    }
    assert!(laptop.skep(&["--context", "default", "info"]).ok().contains("Swarm: inactive"));
    laptop.skep(&["-c", "nobody", "node", "ls"]).fails(1, "no such context: nobody");
    laptop.skep(&["-H", "tcp://10.90.0.1:2377", "node", "ls"]).fails(64, "skep context create");

    // The next manager is asked where one is down.
    lab.ask(2);
    let leader = lab.leader();
    for host in [1, 2, 3] {
        lab.command(&["kill", &host.to_string()]).ok();
        let started = Instant::now();
        laptop.skep(&["service", "ls"]).ok();
        assert!(
            started.elapsed() < Duration::from_secs(15),
            "{:?} without host {host} (leader {leader})",
            started.elapsed()
        );
        lab.command(&["start", &host.to_string()]).ok();
        lab.ask(host % 3 + 1);
        lab.settled(3, SOON);
    }

    // A file that others can read is not used.
    std::fs::set_permissions(&context, std::fs::Permissions::from_mode(0o644)).unwrap();
    laptop.skep(&["service", "ls"]).fails(1, "chmod 600");
}

#[test]
fn roles_hold_and_a_removed_client_is_out() {
    let lab = with_laptop("roles");
    let laptop = Laptop::new(&lab);
    for (name, role) in [("alice", "admin"), ("otto", "operator"), ("vera", "viewer")] {
        laptop.client(name, role);
    }
    let skep = |who: &str, args: &[&str]| laptop.skep(&[&["--context", who], args].concat());
    let secret = laptop.home.path().join("data");
    std::fs::write(&secret, "hunter2").unwrap();
    let secret = secret.display().to_string();
    skep("otto", &["secret", "create", "db", &secret]).ok();
    skep("otto", &["service", "create", "--detach", "--name", "web", "busybox:1", "sleep", "1d"]).ok();
    lab.running("web", 1, SOON);
    skep("vera", &["service", "ps", "web"]).ok();
    assert!(!skep("vera", &["secret", "inspect", "db"]).ok().contains("hunter2"));
    for args in [&["service", "scale", "--detach", "web=2"][..], &["secret", "rm", "db"], &["network", "create", "x"]] {
        skep("vera", args).fails(1, "client vera (viewer) may not call");
    }
    for args in [
        &["node", "update", "--availability", "drain", "host2"][..],
        &["swarm", "join-token", "worker"],
        &["client", "create", "--role", "admin", "--output", "-", "mallory"],
        &["client", "rm", "alice"],
    ] {
        skep("otto", args).fails(1, "client otto (operator) may not call");
        skep("vera", args).fails(1, "client vera (viewer) may not call");
    }
    assert_eq!(
        skep("alice", &["client", "ls", "--format", "{{.Name}} {{.Role}}"]).ok(),
        "alice admin\notto operator\nvera viewer"
    );

    // Out at once: where he listens, and at every manager.
    let mut logs = laptop.command(&["--context", "otto", "service", "logs", "--follow", "web"]);
    let mut logs = logs.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(logs.try_wait().unwrap().is_none());
    let started = Instant::now();
    skep("alice", &["client", "rm", "otto"]).ok();
    until("his log to end", Duration::from_secs(5), || logs.try_wait().unwrap().is_some());
    let ended = started.elapsed();
    let said = logs.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("no client"), "{said:?}");
    eprintln!("from the start of `client rm` his log ended after {ended:?}");
    for host in 1..=3 {
        let context = format!("otto{host}");
        let bundle = laptop.home.path().join("otto.skep").display().to_string();
        let address = format!("tcp://10.90.0.{host}");
        laptop.skep(&["context", "create", "--bundle", &bundle, "--host", &address, &context]).ok();
        skep(&context, &["service", "ls"]).fails(1, "no client");
    }
    skep("vera", &["service", "ls"]).ok();
}

#[test]
fn a_manager_of_another_swarm_is_refused_and_so_is_a_client_of_one() {
    let lab = with_laptop("foreign");
    let laptop = Laptop::new(&lab);
    laptop.client("alice", "admin");
    lab.skep(LAPTOP, &["swarm", "init"]).ok();
    let file = laptop.home.path().join("mallory.skep").display().to_string();
    lab.skep(LAPTOP, &["client", "create", "--role", "admin", "--output", &file, "mallory"]).ok();
    // Both directions: each context at the other swarm's manager.
    let wrong = |name: &str, bundle: &str, host: &str| {
        laptop.skep(&["context", "create", "--bundle", bundle, "--host", host, name]).ok();
        laptop.skep(&["--context", name, "node", "ls"]).fails(1, "it is no manager of the context's swarm");
    };
    wrong("astray", &laptop.home.path().join("alice.skep").display().to_string(), "10.90.0.4");
    wrong("intruder", &file, "10.90.0.1");
    // An intruder who believes anyone: the manager does not believe him.
    let bundle: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let write = |name: &str, text: &[u8]| {
        let path = laptop.home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (cert, key) = (
        write("c", bundle["cert"].as_str().unwrap().as_bytes()),
        write("k", bundle["key"].as_str().unwrap().as_bytes()),
    );
    let empty = format!("@{}", write("e", &[0; 5]));
    let url = format!("https://{MANAGER}/skep.v1.Nodes/List");
    let mut curl = vec!["curl", "--silent", "--show-error", "--include", "--insecure", "--http2", "--max-time", "5"];
    curl.extend(["--cert", &cert, "--key", &key, "--data-binary", &empty]);
    curl.extend(["-H", "content-type: application/grpc", "-H", "te: trailers", &url]);
    let refused = lab.exec(LAPTOP, &curl);
    // By an alert, or by a connection that is closed before curl has looked.
    assert!(refused.code != 0 && !refused.stdout.contains("grpc-status"), "{refused:?}");
}

#[test]
fn an_expired_client_is_told_so() {
    let lab = with_laptop("expired");
    let laptop = Laptop::new(&lab);
    let file = laptop.home.path().join("guest.skep").display().to_string();
    lab.run(&["client", "create", "--role", "viewer", "--expiry", "1h", "--output", &file, "guest"]).ok();
    laptop.skep(&["context", "create", "--bundle", &file, "--host", "10.90.0.3", "guest"]).ok();
    laptop.skep(&["--context", "guest", "node", "ls"]).ok();
    // Its hour is over, and the one that clocks may differ by.
    lab.command(&["stop", "3"]).ok();
    lab.start_on_own_clock(3);
    lab.step_clock(3, "+3h");
    until("its certificate to be refused", SOON, || {
        let looked = laptop.skep(&["--context", "guest", "node", "ls"]);
        looked.code == 1 && looked.stderr.contains("certificate has expired")
    });
}

#[test]
fn the_socket_is_roots_unless_a_group_has_it() {
    let alone = Lab::without_swarm("root", 1, &[]);
    let stat = ["stat", "-c", "%a %u %g", "/run/skep/skep.sock"];
    assert_eq!(alone.exec(1, &stat).ok(), "600 0 0");
    let daemon = Lab::without_swarm("group", 1, &["--daemon-arg=--group=nogroup"]);
    let group = nix::unistd::Group::from_name("nogroup").unwrap().unwrap().gid;
    assert_eq!(daemon.exec(1, &stat).ok(), format!("660 0 {group}"));
    // By a user of no rights: the binary itself may lie where he cannot go.
    let may_write = |gid: u32| {
        let gid = format!("--regid={gid}");
        let run = ["setpriv", "--reuid=65534", &gid, "--clear-groups", "--", "test", "-w", "/run/skep/skep.sock"];
        daemon.exec(1, &run).code == 0
    };
    assert!(may_write(group.as_raw()) && !may_write(12345));
    let wrong = daemon.skep(1, &["daemon", "--group", "no-such-group"]);
    wrong.fails(64, "there is no group \"no-such-group\"");
}
