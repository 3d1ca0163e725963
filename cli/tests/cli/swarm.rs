//! `swarm …`, `info`, `version`.

use std::os::fd::AsRawFd as _;

use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::Value;
use skep_proto::v1::{
    Cluster, ClusterSpec, DoctorResponse, Finding, InfoResponse, ManagerKeys, Meta, NodeDescription, NodeRole,
    Severity, SwarmInitRequest, SwarmState,
};

use crate::fake::{Fake, Script};
use crate::run::{command, finish, read_until, signal, skep};

/// A well-formed token of nobody.
fn token() -> String {
    format!("SWMTKN-1-{}-{}", "0".repeat(50), "1".repeat(25))
}

#[tokio::test(flavor = "multi_thread")]
async fn init_prints_the_join_command() {
    let fake = Fake::manager(Script::default());
    let run = skep(fake.socket(), &["swarm", "init"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.starts_with("Swarm initialized: current node ("), "{}", run.out);
    assert!(run.out.contains("\n    skep swarm join --token SWMTKN-1-worker 192.0.2.1:2377\n"), "{}", run.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens() {
    let fake = Fake::manager(Script::default());
    let run = skep(fake.socket(), &["swarm", "join-token", "-q", "worker"]).await;
    assert_eq!(run.out, "SWMTKN-1-old\n");
    let run = skep(fake.socket(), &["swarm", "join-token", "--rotate", "manager"]).await;
    assert!(run.out.starts_with("Successfully rotated manager join token.\n\nTo add a manager"), "{}", run.out);
    assert!(run.out.contains("    skep swarm join --token SWMTKN-1-new 192.0.2.1:2377\n"), "{}", run.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn join_and_leave() {
    let fake = Fake::manager(Script::default());
    let run =
        skep(fake.socket(), &["swarm", "join", "--token", &token(), "--availability", "drain", "192.0.2.1"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "This node joined a swarm as a worker.\n"), "{}", run.err);
    let joined = fake.script.lock().unwrap().joined.clone().unwrap();
    assert_eq!((joined.remote_addrs, joined.token), (vec!["192.0.2.1:2377".to_owned()], token()));
    assert_eq!(joined.availability, 2);
    let run = skep(fake.socket(), &["swarm", "leave"]).await;
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains("last manager"), "{}", run.err);
    let run = skep(fake.socket(), &["swarm", "leave", "--force"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "Node left the swarm.\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_joins() {
    let fake = Fake::manager(Script { join_role: NodeRole::Manager, ..Script::default() });
    let run = skep(fake.socket(), &["swarm", "join", "--token", &token(), "192.0.2.1:2377"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "This node joined a swarm as a manager.\n"), "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_quorum_is_given_up() {
    let fake = Fake::manager(Script::default());
    let run = skep(fake.socket(), &["swarm", "init", "--force-new-cluster", "--advertise-addr", "192.0.2.1"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    let init = fake.script.lock().unwrap().init.clone().unwrap();
    let asked = SwarmInitRequest {
        force_new_cluster: true,
        advertise_addr: "192.0.2.1".to_owned(),
        ..SwarmInitRequest::default()
    };
    assert_eq!(init, asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_change_one_by_one() {
    let spec = ClusterSpec { heartbeat_period_ms: 2_000, task_history_limit: 3, ..ClusterSpec::default() };
    let cluster =
        Cluster { meta: Some(Meta { version: 7, ..Meta::default() }), spec: Some(spec.clone()), ..Cluster::default() };
    let fake = Fake::manager(Script { cluster, ..Script::default() });
    let run = skep(fake.socket(), &["swarm", "update", "--task-history-limit", "0", "--cert-expiry", "2h"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "Swarm updated.\n"), "{}", run.err);
    let request = fake.script.lock().unwrap().cluster_updated.clone().unwrap();
    assert_eq!(request.spec, Some(ClusterSpec { task_history_limit: -1, node_cert_expiry_ms: 7_200_000, ..spec }));
    assert_eq!((request.expect_version, request.write.unwrap().request_id.len()), (7, 16));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctors_findings_decide_the_exit_code() {
    let doctor = |findings| DoctorResponse { findings, checked: [("nodes".to_owned(), 3)].into() };
    let fake = Fake::manager(Script { doctor: doctor(Vec::new()), ..Script::default() });
    let run = skep(fake.socket(), &["swarm", "doctor"]).await;
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (Some(0), "", "checked nodes: 3 (nothing wrong)\n"));
    let mut finding =
        Finding { object: "service web".to_owned(), message: "has no revision".to_owned(), ..Finding::default() };
    finding.set_severity(Severity::Error);
    let fake = Fake::manager(Script { doctor: doctor(vec![finding]), ..Script::default() });
    let run = skep(fake.socket(), &["swarm", "doctor"]).await;
    assert_eq!(run.code, Some(1));
    assert!(run.out.contains("error      service web   has no revision"), "{}", run.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn info_has_dockers_shape() {
    let mut info = InfoResponse {
        version: "0.1.0".to_owned(),
        node_id: vec![7; 16],
        control_available: true,
        manager_addrs: vec!["192.0.2.1:2377".to_owned()],
        description: Some(NodeDescription { hostname: "host1".to_owned(), ..NodeDescription::default() }),
        ..InfoResponse::default()
    };
    info.set_state(SwarmState::Active);
    let fake = Fake::manager(Script { info, ..Script::default() });
    let run = skep(fake.socket(), &["info", "--format", "json"]).await;
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(value["Swarm"]["LocalNodeState"], "active");
    assert_eq!((&value["Swarm"]["ControlAvailable"], &value["Swarm"]["Nodes"]), (&Value::Bool(true), &Value::from(3)));
    assert_eq!(value["Swarm"]["RemoteManagers"][0]["Addr"], "192.0.2.1:2377");
    let run = skep(fake.socket(), &["info"]).await;
    assert!(run.out.contains("Name: host1\n") && run.out.contains("Swarm: active\n"), "{}", run.out);
    let run = skep(fake.socket(), &["info", "-f", "{{.Swarm.LocalNodeState}}"]).await;
    assert_eq!(run.out, "active\n");
    let run = skep(fake.socket(), &["version", "--format", "{{.Server.Version}}"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "0.1.0\n"));
}

const KEY: &str = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

fn keys() -> Vec<ManagerKeys> {
    let done = ManagerKeys { hostname: "host1".to_owned(), done: true, data_key_epoch: 2, ..ManagerKeys::default() };
    let away = ManagerKeys { hostname: "host2".to_owned(), message: "it is away".to_owned(), ..ManagerKeys::default() };
    vec![done, away]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unlock_key_is_shown_as_docker_shows_it() {
    let unlock_key = KEY.to_owned();
    let fake = Fake::manager(Script { unlock_key, keys: keys(), ..Script::default() });
    let run = skep(fake.socket(), &["swarm", "unlock-key", "-q"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), format!("{KEY}\n").as_str()), "{}", run.err);
    assert!(run.err.contains("(host2): it is away") && !run.err.contains("host1"), "{}", run.err);
    let run = skep(fake.socket(), &["swarm", "unlock-key", "--rotate"]).await;
    assert!(
        run.out.starts_with("Successfully rotated manager unlock key.\n\nTo unlock a swarm manager"),
        "{}",
        run.out
    );
    assert!(run.out.contains(&format!("\n\n    {KEY}\n\n")), "{}", run.out);
    let run = skep(fake.socket(), &["swarm", "init", "--autolock"]).await;
    assert!(run.out.contains("run the `skep swarm unlock`") && run.out.contains(KEY), "{}", run.out);
    assert!(fake.script.lock().unwrap().init.clone().unwrap().autolock);
    let run = skep(fake.socket(), &["swarm", "update", "--autolock"]).await;
    assert!(run.out.starts_with("Swarm updated.\n\nTo unlock") && run.out.contains(KEY), "{}", run.out);
    for (flag, wanted) in [("--autolock", true), ("--autolock=true", true), ("--autolock=false", false)] {
        assert_eq!(skep(fake.socket(), &["swarm", "update", flag]).await.code, Some(0));
        let request = fake.script.lock().unwrap().cluster_updated.clone().unwrap();
        assert_eq!(request.spec.unwrap().autolock, wanted);
    }
    let fake = Fake::manager(Script::default());
    let run = skep(fake.socket(), &["swarm", "unlock-key"]).await;
    assert!(run.code == Some(1) && run.err.contains("no unlock key is set"), "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_keys_are_listed_and_a_rotation_says_who_is_late() {
    let fake = Fake::manager(Script { keys: keys(), ..Script::default() });
    let run = skep(fake.socket(), &["swarm", "data-key", "--format", "{{.Hostname}} {{.Status}} {{.DataKey}}"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "host1 done 2\nhost2 pending \n"), "{}", run.err);
    let run = skep(fake.socket(), &["swarm", "data-key", "--rotate"]).await;
    assert!(run.code == Some(1) && run.err.contains("(host2): it is away"), "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_locked_manager_is_unlocked() {
    let mut script = Script { unlock_key: KEY.to_owned(), ..Script::default() };
    script.info.set_state(SwarmState::Active);
    let fake = Fake::manager(script);
    let run = skep(fake.socket(), &["swarm", "unlock"]).await;
    assert!(run.code == Some(1) && run.err.contains("swarm is not locked"), "{}", run.err);
    fake.script.lock().unwrap().info.set_state(SwarmState::Inactive);
    let run = skep(fake.socket(), &["swarm", "unlock"]).await;
    assert!(run.err.contains("this node is not part of a swarm"), "{}", run.err);
    fake.script.lock().unwrap().info.set_state(SwarmState::Locked);
    let run = skep(fake.socket(), &["info"]).await;
    assert!(run.out.contains("Swarm: locked\n") && !run.out.contains("Certificate"), "{}", run.out);
    // Nothing on standard input.
    let run = skep(fake.socket(), &["swarm", "unlock"]).await;
    assert!(run.code == Some(1) && run.err.contains("invalid key"), "{}", run.err);
    assert!(!fake.script.lock().unwrap().unlocked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_typed_on_a_terminal_is_not_shown_and_the_terminal_is_left_as_it_was() {
    let mut script = Script { unlock_key: KEY.to_owned(), ..Script::default() };
    script.info.set_state(SwarmState::Locked);
    let fake = Fake::manager(script);
    for (typed, interrupt) in [(format!("{KEY}\n"), None), (String::new(), Some(libc::SIGINT))] {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let echoes = || tcgetattr(&terminal.slave).unwrap().local_flags.contains(LocalFlags::ECHO);
        let stdin = terminal.slave.try_clone().unwrap();
        let mut child = command(fake.socket(), &["swarm", "unlock"]).stdin(stdin).spawn().unwrap();
        read_until(&mut child, "Please enter unlock key: ").await;
        let hidden = async {
            while echoes() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), hidden).await.expect("what is typed is hidden");
        nix::unistd::write(&terminal.master, typed.as_bytes()).unwrap();
        if let Some(interrupt) = interrupt {
            signal(child.id(), interrupt);
        }
        let run = finish(child).await;
        assert_eq!(run.code, Some(if interrupt.is_some() { 130 } else { 0 }), "{}", run.err);
        assert!(echoes(), "the terminal shows what is typed again");
        // Only what the command wrote to standard error was said; the terminal itself got no echo but of the line's end.
        let mut shown = [0; 256];
        let fd = terminal.master.as_raw_fd();
        // SAFETY: FIONREAD writes one int.
        let waiting = unsafe {
            let mut waiting: libc::c_int = 0;
            assert_eq!(libc::ioctl(fd, libc::FIONREAD, &raw mut waiting), 0);
            waiting
        };
        if waiting > 0 {
            let length = nix::unistd::read(&terminal.master, &mut shown).unwrap();
            assert!(!String::from_utf8_lossy(&shown[..length]).contains("SWMKEY"));
        }
    }
    assert!(fake.script.lock().unwrap().unlocked);
}
