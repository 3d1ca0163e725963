//! Keys at rest: a manager that restarts is locked until it gets the unlock key; a stolen data directory of it gives nothing
//! away; keys go with roles and members, and are replaced while others write, who lose nothing.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::Value;
use skep_tests::{IDLE, Lab, Output, Stolen, alive, until, until_some};

const SOON: Duration = Duration::from_secs(60);
const LOCKED: &str =
    "Swarm is encrypted and needs to be unlocked before it can be used. Use `skep swarm unlock` to unlock it.";
/// The manager that is restarted, or removed. The others keep the majority.
const RESTARTED: u32 = 3;
/// Of nobody.
const WRONG: &str = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// `skep swarm unlock` on a host, the key on standard input.
fn unlock(lab: &Lab, host: u32, key: &str) -> Output {
    let input = lab.dir().join(format!("unlock-key-{host}"));
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

/// Restarts it and waits until it is locked.
fn lock(lab: &Lab, host: u32) {
    restart(lab, host);
    wait_locked(lab, host);
}

fn wait_locked(lab: &Lab, host: u32) {
    until("the manager to be locked", SOON, || swarm_state(lab, host) == "locked");
}

/// Switches autolock on. Answers the key.
fn autolock(lab: &Lab) -> String {
    let updated = lab.skep(1, &["swarm", "update", "--autolock"]);
    assert_eq!(updated.stderr, "", "all managers are locked when the command returns");
    updated.ok().split_whitespace().find(|word| word.starts_with("SWMKEY-1-")).unwrap().to_owned()
}

fn read(lab: &Lab, host: u32, path: &str) -> String {
    fs::read_to_string(lab.data(host).join(path)).unwrap()
}

/// Names of what is in a host's Raft directory and begins so.
fn raft_files(lab: &Lab, host: u32, begin: &str) -> Vec<String> {
    let entries = fs::read_dir(lab.data(host).join("raft")).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(begin))
        .collect()
}

/// The data key of a manager that is not locked, in both its parts.
fn data_key(lab: &Lab, host: u32) -> Vec<Vec<u8>> {
    let file = raft_files(lab, host, "kek").pop().unwrap();
    let kek = read(lab, host, &format!("raft/{file}")).lines().nth(1).unwrap().to_owned();
    vec![unhex(&kek), unhex(&wrapped(lab, host))]
}

/// The data key in use, as its file has it.
fn wrapped(lab: &Lab, host: u32) -> String {
    let keys: Value = serde_json::from_str(&read(lab, host, "raft/keys")).unwrap();
    keys["keys"][0]["wrapped"].as_str().unwrap().to_owned()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// The private number of a PKCS#8 key in PEM (RFC 5915: 32 bytes from 36 on).
fn private_number(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(body).unwrap()[36..68].to_vec()
}

/// What opens everything that a manager has, by name. Read while it is not locked.
fn keys_of(lab: &Lab, host: u32) -> Vec<(&'static str, Vec<u8>)> {
    let tls = private_number(&read(lab, host, "identity/node.key"));
    let wireguard = STANDARD.decode(read(lab, host, "identity/wireguard.key").trim()).unwrap();
    let [kek, wrapped] = <[Vec<u8>; 2]>::try_from(data_key(lab, host)).unwrap();
    vec![("TLS key", tls), ("WireGuard key", wireguard), ("key-encryption key", kek), ("wrapped data key", wrapped)]
}

/// Makes one secret or config after the other on a host, and counts what was acknowledged.
struct Writer {
    host: u32,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<String>>,
}

impl Writer {
    /// `steady`: its manager stays up, and every write is to be acknowledged.
    fn start(lab: &Lab, host: u32, steady: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let data = lab.dir().join(format!("written-{host}"));
        fs::write(&data, "data").unwrap();
        // More than it gets done.
        let commands = (0..5000).map(|number| {
            let name = format!("by{host}-{number}");
            let mut command = lab.on(host, &["skep", "config", "create", &name, &data.display().to_string()]);
            command.stdin(Stdio::null());
            (name, command)
        });
        let mut commands: Vec<(String, Command)> = commands.collect();
        let thread = thread::spawn(move || {
            let mut acknowledged = Vec::new();
            for (name, command) in &mut commands {
                if stopped.load(Ordering::Relaxed) {
                    return acknowledged;
                }
                let output = command.output().unwrap();
                if output.status.success() {
                    acknowledged.push(name.clone());
                } else {
                    assert!(!steady, "{name}: {}", String::from_utf8_lossy(&output.stderr));
                }
            }
            panic!("it ran out of writes before the test was over");
        });
        Self { host, stop, thread }
    }

    /// Stops it. Answers what was acknowledged.
    fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let acknowledged = self.thread.join().unwrap();
        eprintln!("{} writes through host {} were acknowledged", acknowledged.len(), self.host);
        assert!(!acknowledged.is_empty(), "host {} acknowledged nothing", self.host);
        acknowledged
    }
}

/// Every manager has what was acknowledged.
fn check_written(lab: &Lab, hosts: impl IntoIterator<Item = u32>, acknowledged: &[String]) {
    for host in hosts {
        let listed = lab.skep(host, &["config", "ls", "--format", "{{.Name}}"]).ok();
        let listed: Vec<&str> = listed.lines().collect();
        for name in acknowledged {
            assert!(listed.contains(&name.as_str()), "{name} was acknowledged, and host {host} does not have it");
        }
    }
}

/// Soft and hard limit of a process's core dumps, as proc(5) shows them.
fn core_limit(pid: u64) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_restarted_manager_is_locked_until_it_gets_the_key() {
    // Not the soft half alone: whatever this test was started with.
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, hard, hard).unwrap();
    let lab = Lab::with_managers("autolock", 3, 3);
    // A locked manager is down for the others, who would start its tasks elsewhere.
    lab.run(&["swarm", "update", "--dispatcher-heartbeat", "40s"]).ok();
    lab.create("web", &["--replicas", "3"], &IDLE);
    let before = lab.running("web", 3, SOON);
    let processes = lab.pids(&before);
    let daemon = u64::try_from(lab.daemon(RESTARTED)).unwrap();
    assert!(core_limit(daemon).starts_with("0 "), "the daemon holds keys and dumps no core: {}", core_limit(daemon));
    let own = core_limit(u64::from(std::process::id()));
    assert!(processes.values().all(|pid| core_limit(*pid) == own), "containers have what the daemon was started with");

    let writer = Writer::start(&lab, 1, true);
    let key = autolock(&lab);
    assert_eq!(lab.skep(2, &["swarm", "unlock-key", "-q"]).ok(), key);
    check_written(&lab, 1..=3, &writer.stop());

    lock(&lab, RESTARTED);
    for command in [
        ["node", "ls"].as_slice(),
        &["service", "ls"],
        &["image", "ls"],
        &["swarm", "leave"],
        &["swarm", "unlock-key"],
        &["swarm", "init", "--force-new-cluster"],
    ] {
        lab.skep(RESTARTED, command).fails(1, LOCKED);
    }
    let info = lab.skep(RESTARTED, &["info"]).ok();
    assert!(info.contains("Swarm: locked") && !info.contains("Managers:"), "{info}");
    let listening = lab.exec(RESTARTED, &["sh", "-c", "cat /proc/net/tcp /proc/net/tcp6"]).ok();
    // 2377, listening.
    assert!(!listening.lines().any(|line| line.contains(":0949 ") && line.contains(" 0A ")), "{listening}");
    assert!(processes.values().all(|pid| alive(*pid)), "containers run on");
    // It ends when it is told to, and is locked again.
    let asked = Instant::now();
    lab.command(&["stop", &RESTARTED.to_string()]).ok();
    assert!(asked.elapsed() < Duration::from_secs(10), "a locked daemon ended after {:?}", asked.elapsed());
    lab.command(&["start", &RESTARTED.to_string()]).ok();
    wait_locked(&lab, RESTARTED);

    unlock(&lab, RESTARTED, WRONG).fails(1, "invalid key");
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
    all_done(&lab);
    lock(&lab, RESTARTED);
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

/// Waits until every manager has its keys as the swarm wants them.
fn all_done(lab: &Lab) {
    until_some("every manager to have the keys that are wanted", SOON, || {
        let listed = lab.skep(1, &["swarm", "data-key", "--format", "{{.Status}}"]);
        if listed.stdout.lines().all(|status| status == "done") && listed.code == 0 {
            Ok(())
        } else {
            Err(format!("{listed:?}"))
        }
    });
}

/// Puts a stolen directory into a host that reaches no other, and starts its daemon on it.
fn boot(lab: &Lab, thief: u32, stolen: &Path) {
    lab.command(&["kill", &thief.to_string()]).ok();
    fs::remove_dir_all(lab.data(thief)).unwrap();
    copy(stolen, &lab.data(thief));
    lab.command(&["start", &thief.to_string()]).ok();
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", "--"]).args([from, to]).status().unwrap();
    assert!(copied.success());
}

#[test]
fn a_stolen_disk_of_a_locked_manager_gives_nothing_away() {
    const THIEF: u32 = 4;
    let lab = Lab::with_managers("stolen", 4, 3);
    lab.skep(THIEF, &["swarm", "leave"]).ok();
    until("the host that left to be down", SOON, || lab.nodes()[&THIEF]["Status"] == "Down");
    lab.run(&["node", "rm", "host4"]).ok();
    lab.command(&["partition", "4", "1,2,3"]).ok();
    // What is in the swarm's state only: no task of the stolen host has it.
    let (secret, config, variable) = (b"quiet-otter-secret-9321", b"brave-heron-config-5518", b"plain-badger-env-7706");
    for (what, data) in [("secret", secret), ("config", config)] {
        let file = lab.dir().join(what);
        fs::write(&file, data).unwrap();
        lab.run(&[what, "create", "marked", &file.display().to_string()]).ok();
    }
    let variable_text = format!("MARKED={}", String::from_utf8_lossy(variable));
    let flags = ["--secret", "marked", "--config", "marked", "--env", &variable_text];
    lab.create("web", &[flags.as_slice(), &["--constraint", "node.hostname==host1"]].concat(), &IDLE);
    lab.running("web", 1, SOON);
    let token = |role: &str| {
        // Right after the start, on a busy machine, there may be no leader for a moment.
        until_some("a join token", SOON, || {
            let told = lab.run(&["swarm", "join-token", "-q", role]);
            if told.code == 0 { Ok(told.ok()) } else { Err(format!("{told:?}")) }
        })
    };
    let tokens = (token("worker"), token("manager"));

    // Before autolock: the search finds the keys, and who has them has the swarm.
    lab.command(&["stop", "3"]).ok();
    let (open, mut searched) = (Stolen::from(&lab.data(RESTARTED)), keys_of(&lab, RESTARTED));
    for (name, key) in &searched {
        assert!(open.gives_away(key), "the search cannot find the {name} of a manager that is not locked");
    }
    let taken = lab.dir().join("taken");
    copy(&lab.data(RESTARTED), &taken);
    boot(&lab, THIEF, &taken);
    until_some("the thief to lead the stolen swarm", SOON, || {
        let led = lab.skep(THIEF, &["swarm", "init", "--force-new-cluster"]);
        if led.code == 0 { Ok(()) } else { Err(format!("{led:?}")) }
    });
    assert_eq!(lab.skep(THIEF, &["swarm", "join-token", "-q", "manager"]).ok(), tokens.1);
    lab.command(&["start", "3"]).ok();
    lab.settled(3, SOON);

    let key = autolock(&lab);
    for host in 1..=3 {
        assert_eq!(raft_files(&lab, host, "kek"), [""; 0], "host {host}");
        assert_eq!(raft_files(&lab, host, "db").len(), 1, "host {host}");
        assert!(!lab.data(host).join("raft/db").exists(), "host {host} has a new database");
    }
    // While it runs, and after.
    for stopped in [false, true] {
        if stopped {
            lab.command(&["stop", "3"]).ok();
        }
        let digits = key.trim_start_matches("SWMKEY-1-");
        searched.push(("unlock key", digits.as_bytes().to_vec()));
        searched.push(("unlock key's bytes", STANDARD_NO_PAD.decode(digits).unwrap()));
        for (role, token) in [("worker token", &tokens.0), ("manager token", &tokens.1)] {
            searched.push((role, token.rsplit('-').next().unwrap().as_bytes().to_vec()));
        }
        searched.extend([("secret", secret.to_vec()), ("config", config.to_vec()), ("variable", variable.to_vec())]);
        let locked = Stolen::from(&lab.data(RESTARTED));
        for (name, key) in &searched {
            assert!(!locked.gives_away(key), "the locked manager's disk gives the {name} away (stopped: {stopped})");
        }
    }
    let taken = lab.dir().join("taken-locked");
    copy(&lab.data(RESTARTED), &taken);
    boot(&lab, THIEF, &taken);
    wait_locked(&lab, THIEF);
    lab.skep(THIEF, &["swarm", "init", "--force-new-cluster"]).fails(1, LOCKED);
    lab.skep(THIEF, &["swarm", "join-token", "-q", "manager"]).fails(1, LOCKED);
    unlock(&lab, THIEF, WRONG).fails(1, "invalid key");
    assert_eq!(swarm_state(&lab, THIEF), "locked");
}

/// A small disk of its own, mounted.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// None: this machine cannot mount one.
    fn new() -> Option<Self> {
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        fs::File::create(disk.image()).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(disk.mounted()).unwrap();
        let run = |program: &str, args: &[&str], of: &Path| {
            let ran = Command::new(program).args(args).arg(disk.image()).arg(of).stderr(Stdio::null()).status();
            ran.is_ok_and(|status| status.success())
        };
        let is_made =
            run("mkfs.ext4", &["-q", "-F"], Path::new("512M")) && run("mount", &["-o", "loop"], &disk.mounted());
        is_made.then_some(disk)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn mounted(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// Names of those keys that any of its blocks holds, of files or of none.
    fn holds(&self, keys: &[(&'static str, Vec<u8>)]) -> Vec<&'static str> {
        assert!(Command::new("sync").arg("-f").arg(self.mounted()).status().unwrap().success());
        let disk = Stolen::disk(&self.image());
        keys.iter().filter(|(_, key)| disk.gives_away(key)).map(|(name, _)| *name).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It was never mounted, or what is left says so.
        let _ = Command::new("umount").arg(self.mounted()).stderr(Stdio::null()).status();
    }
}

#[test]
fn the_blocks_of_the_disk_hold_no_key_that_was_replaced_or_open_before() {
    let Some(disk) = Disk::new() else {
        eprintln!("skipped: needs mkfs.ext4 and loop devices");
        return;
    };
    let lab = Lab::at(&format!("blocks{}", std::process::id()), disk.mounted().join("lab"), 1, &["--managers", "1"]);
    let names = |keys: &[(&'static str, Vec<u8>)]| keys.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let [tls, wireguard, data @ ..] = <[_; 4]>::try_from(keys_of(&lab, 1)).unwrap();
    let first = [vec![tls], data.to_vec()].concat();
    assert_eq!(disk.holds(&first), names(&first), "the search finds what is there");
    lab.run(&["swarm", "data-key", "--rotate"]).ok();
    // The node renews its certificate, with another key.
    lab.run(&["swarm", "ca", "--rotate", "--quiet"]).ok();
    assert_eq!(disk.holds(&first), [""; 0], "keys that were replaced are still on the disk");
    let second = keys_of(&lab, 1);
    assert!(second.contains(&wireguard) && !second.contains(&first[0]));
    assert_eq!(disk.holds(&second), names(&second));
    autolock(&lab);
    assert_eq!(disk.holds(&second), [""; 0], "keys that were open are still on the disk");
}

#[test]
fn keys_go_with_roles_and_members_and_a_lost_quorum() {
    let lab = Lab::with_managers("keyroles", 3, 2);
    let open = data_key(&lab, 1);
    let stolen = Stolen::from(&lab.data(1));
    assert!(open.iter().all(|key| stolen.gives_away(key)));
    lab.run(&["node", "promote", "host3"]).ok();
    lab.settled(3, SOON);
    let epoch = || lab.skep(1, &["swarm", "data-key", "--format", "{{.DataKey}}"]).ok();
    assert_eq!(epoch(), "0\n0\n0", "nobody was removed yet");

    // Gone from the disks of those that stay when the command returns.
    lab.run(&["node", "demote", "host3"]).ok();
    let stolen = Stolen::from(&lab.data(1));
    assert!(open.iter().all(|key| !stolen.gives_away(key)), "the removal of a member did not replace the data key");
    assert_eq!(epoch(), "1\n1");
    until("its state to be gone", SOON, || !lab.data(3).join("raft").exists());

    let key = autolock(&lab);
    assert!(read(&lab, 3, "identity/node.key").contains("BEGIN PRIVATE KEY"), "a worker has nothing to lock");
    lab.run(&["node", "promote", "host3"]).ok();
    lab.settled(3, SOON);
    assert!(read(&lab, 3, "identity/node.key").contains("BEGIN SKEP SEALED PRIVATE KEY"));
    assert_eq!(raft_files(&lab, 3, "kek"), [""; 0], "its data key was never open");
    assert!(lab.data(3).join("raft/db").exists(), "it needs no second one");
    lock(&lab, 3);
    unlock(&lab, 3, &key).ok();
    lab.settled(3, SOON);
    lab.run(&["node", "demote", "host3"]).ok();
    until("the worker's keys to be open", SOON, || {
        fs::read_to_string(lab.data(3).join("identity/node.key")).is_ok_and(|key| key.contains("BEGIN PRIVATE KEY"))
    });
    restart(&lab, 3);
    until("the worker to be back by itself", SOON, || swarm_state(&lab, 3) == "active");

    // One that is removed while it is away.
    lab.run(&["node", "promote", "host3"]).ok();
    lab.settled(3, SOON);
    lab.command(&["kill", "3"]).ok();
    let before = [1, 2].map(|host| wrapped(&lab, host));
    lab.run(&["node", "rm", "--force", "host3"]).ok();
    assert!([1, 2].iter().zip(&before).all(|(host, before)| wrapped(&lab, *host) != *before), "new data keys");
    assert_eq!([1, 2].map(|host| raft_files(&lab, host, "db").len()), [1, 1]);

    // The quorum is lost, and what is left of it is locked.
    lab.command(&["power-off", "2"]).ok();
    lock(&lab, 1);
    lab.skep(1, &["swarm", "init", "--force-new-cluster"]).fails(1, LOCKED);
    unlock(&lab, 1, &key).ok();
    lab.run(&["swarm", "init", "--force-new-cluster"]).ok();
    assert_eq!(lab.run(&["swarm", "unlock-key", "-q"]).ok(), key, "the swarm keeps its key");
    lock(&lab, 1);
    unlock(&lab, 1, &key).ok();
    until("the manager to lead", SOON, || lab.run(&["service", "ls"]).code == 0);
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}

/// Starts a replacement of all data keys on a host.
fn rotate(lab: &Lab, host: u32) -> Child {
    let format = "{{.Hostname}} {{.Status}} {{.DataKey}} {{.Pause}}";
    let mut command = lab.on(host, &["skep", "swarm", "data-key", "--rotate", "--format", format]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What it answered.
fn rotated(child: Child) -> (String, String) {
    let output = child.wait_with_output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    eprintln!("{out}{err}");
    (out, err)
}

#[test]
fn data_keys_are_replaced_under_load_while_the_leader_restarts() {
    let lab = Lab::with_managers("datakey", 3, 3);
    lab.run(&["swarm", "update", "--dispatcher-heartbeat", "40s"]).ok();
    lab.create("web", &["--replicas", "3"], &IDLE);
    let processes = lab.pids(&lab.running("web", 3, SOON));
    let open: Vec<_> = (1..=3).map(|host| data_key(&lab, host)).collect();
    let leader = lab.leader();
    let others: Vec<u32> = (1..=3).filter(|host| *host != leader).collect();
    lab.ask(others[0]);
    let writers: Vec<Writer> = (1..=3).map(|host| Writer::start(&lab, host, host != leader)).collect();

    let (out, err) = rotated(rotate(&lab, others[0]));
    assert!((1..=3).all(|host| out.contains(&format!("host{host} done 1 "))), "{out}{err}");
    for (host, open) in (1..=3).zip(&open) {
        let stolen = Stolen::from(&lab.data(host));
        assert!(open.iter().all(|key| !stolen.gives_away(key)), "host {host} still has its old data key");
    }
    // In the middle of another.
    let rotating = rotate(&lab, others[1]);
    lab.command(&["kill", &leader.to_string()]).ok();
    let (out, err) = rotated(rotating);
    assert!(others.iter().all(|host| out.contains(&format!("host{host} done 2 "))), "{out}{err}");
    lab.command(&["start", &leader.to_string()]).ok();
    lab.settled(3, SOON);
    until_some("the restarted manager to have followed", SOON, || {
        let listed = lab.skep(others[0], &["swarm", "data-key", "--format", "{{.Hostname}} {{.Status}} {{.DataKey}}"]);
        if (1..=3).all(|host| listed.stdout.contains(&format!("host{host} done 2"))) {
            Ok(())
        } else {
            Err(format!("{listed:?}"))
        }
    });
    let (out, err) = rotated(rotate(&lab, leader));
    assert!((1..=3).all(|host| out.contains(&format!("host{host} done 3 "))), "{out}{err}");

    let acknowledged: Vec<String> = writers.into_iter().flat_map(Writer::stop).collect();
    check_written(&lab, 1..=3, &acknowledged);
    for host in 1..=3 {
        let parts = [raft_files(&lab, host, "db"), raft_files(&lab, host, "kek")].concat();
        assert!(
            parts.len() == 2 && !parts.contains(&"db".to_owned()),
            "host {host} keeps what an old key sealed: {parts:?}"
        );
    }
    assert_eq!(lab.pids(&lab.running("web", 3, SOON)), processes, "no task was restarted");
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}
