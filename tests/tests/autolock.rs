//! Keys at rest: a manager that restarts is locked until it gets the unlock key, a stolen data directory of it gives
//! nothing away, and keys are replaced while a loop writes and loses nothing.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::Value;
use skep_tests::{IDLE, Lab, Output, alive, until, until_some};

const SOON: Duration = Duration::from_secs(60);
const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used";
/// The manager that is restarted. The others keep the majority.
const RESTARTED: u32 = 3;

/// `skep swarm unlock` on a host, the key on standard input.
fn unlock(lab: &Lab, host: u32, key: &str) -> Output {
    let input = lab.dir().join("unlock-key");
    fs::write(&input, format!("{key}\n")).unwrap();
    let output = lab.skep_with_input(host, &["swarm", "unlock"], &input);
    fs::remove_file(input).unwrap();
    output
}

fn swarm_state(lab: &Lab, host: u32) -> String {
    lab.skep(host, &["info", "--format", "{{.Swarm.LocalNodeState}}"]).stdout.trim().to_owned()
}

fn restart(lab: &Lab, host: u32) {
    lab.command(&["kill", &host.to_string()]).ok();
    lab.command(&["start", &host.to_string()]).ok();
}

fn wait_locked(lab: &Lab, host: u32) {
    until("the manager to be locked", SOON, || swarm_state(lab, host) == "locked");
}

/// Writes all the time, and counts what was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u32>,
}

impl Writer {
    /// Gives labels to the services of a host's manager, one after the other. The command waits for its answer.
    fn start(lab: &Lab, host: u32, service: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, service) = (Arc::clone(&stop), service.to_owned());
        let mut commands: Vec<Command> = Vec::new();
        for number in 0..400 {
            let label = format!("n{number}=acknowledged");
            commands.push(lab.on(host, &["skep", "service", "update", "--detach", "--label-add", &label, &service]));
        }
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

    /// Stops, and checks that nothing acknowledged is lost as `host` sees it.
    fn check(self, lab: &Lab, host: u32, service: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let acknowledged = self.thread.join().unwrap();
        assert!(acknowledged > 0);
        eprintln!("{acknowledged} writes were acknowledged");
        let printed = lab.skep(host, &["service", "inspect", service]).ok();
        let inspected: Value = serde_json::from_str(&printed).unwrap();
        let labels = inspected[0]["Spec"]["Labels"].as_object().unwrap();
        for number in 0..acknowledged {
            assert!(labels.contains_key(&format!("n{number}")), "write {number} of {acknowledged} is lost");
        }
    }
}

/// All bytes of a data directory but for images and containers' own files.
struct Stolen {
    /// A character for each byte, since the standard library searches text fast.
    whole: String,
    /// Without white space.
    joined: String,
}

impl Stolen {
    fn from(dir: &Path) -> Self {
        let mut all = Vec::new();
        collect(dir, &mut all);
        let whole = text(&all);
        all.retain(|byte| !byte.is_ascii_whitespace());
        Self { whole, joined: text(&all) }
    }

    /// Whether it holds a secret: plain, in hex, or in base64 at any place of a longer text, with or without line breaks.
    fn gives_away(&self, secret: &[u8]) -> bool {
        assert!(secret.len() >= 12, "too short to be told from chance");
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![text(secret), hex.to_uppercase(), hex];
        for skip in 0..3 {
            let whole = &secret[skip..];
            forms.push(STANDARD.encode(&whole[..whole.len() / 3 * 3]));
        }
        forms.iter().any(|form| self.whole.contains(form) || self.joined.contains(form))
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn collect(dir: &Path, all: &mut Vec<u8>) {
    // The daemon goes on, and files come and go.
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["images", "containers", "layers", "sandboxes"].contains(&name.as_str()) {
                collect(&path, all);
            }
        } else if path.is_file()
            && let Ok(bytes) = fs::read(&path)
        {
            all.extend(bytes);
            all.push(b'\n');
        }
    }
}

/// The private number of a PKCS#8 key in PEM (RFC 5915: 32 bytes from 36 on).
fn private_number(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(body).unwrap()[36..68].to_vec()
}

/// What must not be found, by name. Read while the manager is open.
fn secrets(lab: &Lab, host: u32) -> Vec<(&'static str, Vec<u8>)> {
    let read = |path: &str| fs::read_to_string(lab.data(host).join(path)).unwrap();
    let tls = private_number(&read("identity/node.key"));
    let wireguard = STANDARD.decode(read("identity/wireguard.key").trim()).unwrap();
    let kek = read("raft/kek").lines().nth(1).unwrap().as_bytes().to_vec();
    let keys: Value = serde_json::from_str(&read("raft/keys")).unwrap();
    let wrapped = keys["keys"][0]["wrapped"].as_str().unwrap().as_bytes().to_vec();
    vec![("TLS key", tls), ("WireGuard key", wireguard), ("key-encryption key", kek), ("wrapped data key", wrapped)]
}

fn token(lab: &Lab, role: &str) -> Vec<u8> {
    let token = lab.skep(1, &["swarm", "join-token", "-q", role]).ok();
    token.rsplit('-').next().unwrap().as_bytes().to_vec()
}

#[test]
fn a_restarted_manager_is_locked_and_its_disk_gives_nothing_away() {
    let lab = Lab::with_managers("autolock", 3, 3);
    lab.create("web", &["--replicas", "3", "--env", "MARKER=found-only-in-the-swarms-state"], &IDLE);
    let before = lab.running("web", 3, SOON);
    let processes = lab.pids(&before);
    // Before autolock, so that what lay open then is searched for too.
    let (open, known) = (Stolen::from(&lab.data(RESTARTED)), secrets(&lab, RESTARTED));
    for (name, secret) in &known {
        assert!(open.gives_away(secret), "the search cannot find the {name} of a manager that is not locked");
    }

    let writer = Writer::start(&lab, 1, "web");
    let updated = lab.skep(1, &["swarm", "update", "--autolock"]);
    assert_eq!(updated.stderr, "", "all managers are locked when the command returns");
    let updated = updated.ok();
    let key = updated.split_whitespace().find(|word| word.starts_with("SWMKEY-1-")).unwrap().to_owned();
    assert_eq!(lab.skep(2, &["swarm", "unlock-key", "-q"]).ok(), key);
    writer.check(&lab, 2, "web");
    for host in 1..=3 {
        let data = lab.data(host);
        assert!(!data.join("raft/kek").exists() && !data.join("raft/db").exists(), "host {host}");
    }

    restart(&lab, RESTARTED);
    wait_locked(&lab, RESTARTED);
    lab.skep(RESTARTED, &["node", "ls"]).fails(1, LOCKED);
    lab.skep(RESTARTED, &["service", "ls"]).fails(1, LOCKED);
    lab.skep(RESTARTED, &["image", "ls"]).fails(1, LOCKED);
    lab.skep(RESTARTED, &["swarm", "leave"]).fails(1, LOCKED);
    lab.skep(RESTARTED, &["swarm", "unlock-key"]).fails(1, LOCKED);
    let listening = lab.exec(RESTARTED, &["sh", "-c", "cat /proc/net/tcp /proc/net/tcp6"]).ok();
    // 2377, listening.
    assert!(!listening.lines().any(|line| line.contains(":0949 ") && line.contains(" 0A ")), "{listening}");
    assert!(processes.values().all(|pid| alive(*pid)), "containers run on");

    let stolen_now = Stolen::from(&lab.data(RESTARTED));
    let mut searched = known.clone();
    let digits = key.trim_start_matches("SWMKEY-1-");
    searched.push(("unlock key", digits.as_bytes().to_vec()));
    searched.push(("unlock key's bytes", STANDARD_NO_PAD.decode(digits).unwrap()));
    searched.push(("worker token", token(&lab, "worker")));
    searched.push(("manager token", token(&lab, "manager")));
    for (name, secret) in &searched {
        assert!(!stolen_now.gives_away(secret), "the locked manager's disk gives the {name} away");
    }

    unlock(&lab, RESTARTED, "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8").fails(1, "invalid key");
    unlock(&lab, RESTARTED, "nonsense").fails(1, "invalid key");
    assert_eq!(swarm_state(&lab, RESTARTED), "locked");
    unlock(&lab, RESTARTED, &key).ok();
    lab.settled(3, SOON);
    unlock(&lab, RESTARTED, &key).fails(1, "swarm is not locked");
    lab.skep(RESTARTED, &["service", "ls"]).ok();

    // Another key, while a manager is down: that one starts with the old key, and learns the new one.
    lab.command(&["kill", &RESTARTED.to_string()]).ok();
    let rotated = lab.skep(1, &["swarm", "unlock-key", "--rotate", "-q"]);
    assert!(rotated.stderr.contains("host3") && !rotated.stderr.contains("host2"), "{}", rotated.stderr);
    let next = rotated.ok();
    assert_ne!(next, key);
    lab.command(&["start", &RESTARTED.to_string()]).ok();
    wait_locked(&lab, RESTARTED);
    unlock(&lab, RESTARTED, &next).fails(1, "invalid key");
    unlock(&lab, RESTARTED, &key).ok();
    let sealed =
        |count: usize| lab.log(RESTARTED).matches("sealed with the swarm's present unlock key").count() >= count;
    until("the next key to be in use", SOON, || sealed(2));
    restart(&lab, RESTARTED);
    wait_locked(&lab, RESTARTED);
    unlock(&lab, RESTARTED, &key).fails(1, "invalid key");
    unlock(&lab, RESTARTED, &next).ok();
    lab.settled(3, SOON);

    // Off again.
    let updated = lab.skep(1, &["swarm", "update", "--autolock=false"]);
    assert_eq!((updated.stderr.as_str(), updated.stdout.as_str()), ("", "Swarm updated.\n"));
    restart(&lab, RESTARTED);
    until("the manager to be back by itself", SOON, || swarm_state(&lab, RESTARTED) == "active");
    lab.settled(3, SOON);
    lab.skep(RESTARTED, &["swarm", "unlock-key"]).fails(1, "no unlock key is set");
    let after = lab.running("web", 3, SOON);
    assert_eq!(lab.pids(&after), processes, "no task noticed");
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}

#[test]
fn data_keys_are_replaced_under_load_while_a_manager_restarts() {
    let lab = Lab::with_managers("datakey", 3, 3);
    lab.create("web", &["--replicas", "2"], &IDLE);
    let processes = lab.pids(&lab.running("web", 2, SOON));
    let writer = Writer::start(&lab, 1, "web");
    for round in 1..=3_u64 {
        if round == 2 {
            lab.command(&["kill", &RESTARTED.to_string()]).ok();
        }
        let rotated = lab.skep(
            1,
            &["swarm", "data-key", "--rotate", "--format", "{{.Hostname}} {{.Status}} {{.DataKey}} {{.Pause}}"],
        );
        eprintln!("round {round}:\n{}", rotated.stdout);
        for host in 1..=3 {
            let done = rotated.stdout.contains(&format!("host{host} done {round} "));
            assert_eq!(done, round != 2 || host != RESTARTED, "round {round}: {rotated:?}");
        }
        if round == 2 {
            assert!(rotated.code == 1 && rotated.stderr.contains("host3"), "{rotated:?}");
            lab.command(&["start", &RESTARTED.to_string()]).ok();
            lab.settled(3, SOON);
        }
    }
    until_some("the restarted manager to have followed", SOON, || {
        let listed = lab.skep(1, &["swarm", "data-key"]);
        if listed.stdout.matches("done").count() == 3 { Ok(()) } else { Err(format!("{listed:?}")) }
    });
    for host in 1..=3 {
        let names: Vec<String> = fs::read_dir(lab.data(host).join("raft"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("db") || name.starts_with("kek"))
            .collect();
        assert_eq!(names.len(), 2, "host {host} keeps what an old key sealed: {names:?}");
        assert!(!names.contains(&"db".to_owned()));
    }
    writer.check(&lab, RESTARTED, "web");
    assert_eq!(lab.pids(&lab.running("web", 2, SOON)), processes);
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}
