//! Secrets and configs on three hosts: made on one, read in a container on another, and nowhere else: on no disk, in no
//! environment and on no wire. Replaced while tasks run; gone with them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use skep_tests::{Capture, IDLE, Lab, Running, until};

const SOON: Duration = Duration::from_secs(60);
/// The manager, and the host of the tasks.
const MANAGER: u32 = 1;
const WORKER: u32 = 3;
/// What is kept secret, and what every search must find.
const SECRET: &str = "kV7-quiet-otter-secret-9321";
const ROTATED: &str = "pW2-brave-heron-rotated-5518";
const CONTROL: &str = "zT4-plain-badger-control-7706";

/// A text as it may lie somewhere: itself, in base64 at each of its three positions, in hex.
fn forms(text: &str) -> Vec<String> {
    let mut forms = vec![text.to_owned(), hex(text), hex(text).to_uppercase()];
    for before in 0..3 {
        let encoded = STANDARD.encode([&b"\0\0"[..before], text.as_bytes()].concat());
        // Without what depends on the neighbours.
        forms.push(encoded.trim_end_matches('=')[before + 1..encoded.trim_end_matches('=').len() - 2].to_owned());
    }
    forms
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Files below a folder that hold the text in any form.
fn files_with(text: &str, folder: &Path) -> Vec<String> {
    let mut grep = Command::new("grep");
    grep.args(["-rlaF", "-D", "skip"]);
    for form in forms(text) {
        grep.args(["-e", &form]);
    }
    let found = grep.arg(folder).output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}

/// The same of what a host has outside of the lab's folder.
fn host_files_with(text: &str, lab: &Lab, host: u32) -> String {
    let forms = forms(text);
    let mut grep = vec!["grep", "-rlaF", "-D", "skip"];
    forms.iter().for_each(|form| grep.extend(["-e", form]));
    grep.extend(["/run", "/var/log"]);
    lab.exec(host, &grep).stdout
}

/// Processes of this machine with the text in environment or command line.
fn processes_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["environ", "cmdline"] {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            let holds = |form: &String| bytes.windows(form.len()).any(|window| window == form.as_bytes());
            // The search itself is not meant: grep has ended, and this process has it in neither.
            if forms(text).iter().any(holds) {
                found.push(format!("{}/{file}", entry.path().display()));
            }
        }
    }
    found
}

/// A mount of secrets in the namespace of any process, told by the container's own place for it.
fn mounts_of_secrets(of: &[u64]) -> usize {
    let mounts = |pid: &u64| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    of.iter().map(|pid| mounts(pid).lines().filter(|line| line.contains(" /secrets /run/secrets ")).count()).sum()
}

/// Every process that sees a mount of secrets, and every one that has the file in memory by which they travel.
fn holders(lab: &Lab) -> Vec<String> {
    let ours = lab.dir().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        // Other labs of this machine have theirs.
        if mounts.contains(" /secrets /run/secrets ") && mounts.contains(&ours) {
            found.push(format!("{} sees it", entry.path().display()));
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if !String::from_utf8_lossy(&command).contains(&ours) {
            continue;
        }
        for fd in fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            let open = fs::read_link(fd.path()).unwrap_or_default();
            if open.to_string_lossy().contains("memfd:skep-files") {
                found.push(format!("{} has it open", entry.path().display()));
            }
        }
    }
    found
}

struct Case {
    lab: Lab,
    /// Outside of the lab's folder, in which nothing may be found.
    outside: tempfile::TempDir,
}

impl Case {
    fn give(&self, args: &[&str], data: &str) {
        let file = self.outside.path().join("data");
        fs::write(&file, data).unwrap();
        self.lab.skep_with_input(MANAGER, &[args, &["-"]].concat(), &file).ok();
    }

    fn read(&self, task: &Running, path: &str) -> String {
        self.lab.inside(task, &["cat", path]).stdout
    }

    fn service(&self, name: &str, flags: &[&str], command: &[&str]) -> Running {
        let place = format!("node.hostname==host{WORKER}");
        let flags = [&["--constraint", &place, "--network", "none"], flags].concat();
        self.lab.create(name, &flags, command);
        self.lab.running(name, 1, SOON).remove(0)
    }

    /// Service `web`: its files are there as asked, in its own mount namespace only.
    fn task_that_was_given_it(&self) -> Running {
        let secrets = ["--secret", "db", "--secret", "source=db,target=/etc/keys/db,uid=33,gid=44,mode=0400"];
        let configs =
            ["--config", "app.conf", "--config", "source=filled.conf,target=/etc/filled", "--env", "MODE=fast"];
        let task = self.service("web", &[&secrets[..], &configs].concat(), &["sh", "-c", TELLS]);
        assert_eq!(self.read(&task, "/run/secrets/db"), SECRET);
        assert_eq!(self.read(&task, "/etc/keys/db"), SECRET);
        assert_eq!(self.read(&task, "/app.conf"), CONTROL);
        assert_eq!(self.read(&task, "/etc/filled"), format!("slot 1 of web, fast: {CONTROL}\n"));
        let owners =
            self.lab.inside(&task, &["stat", "-L", "-c", "%u:%g %a", "/run/secrets/db", "/etc/keys/db", "/app.conf"]);
        assert_eq!(owners.ok(), "0:0 444\n33:44 400\n0:0 444");
        assert!(self.lab.inside(&task, &["sh", "-c", "echo x > /run/secrets/db"]).code != 0, "read-only");
        let pid = self.lab.pid(&task.id);
        assert_eq!(mounts_of_secrets(&[pid]), 1);
        // A search of the host's own namespace, and of the daemon's, finds no such mount.
        assert_eq!(mounts_of_secrets(&[1, u64::from(std::process::id())]), 0);
        task
    }

    /// Service `other` has nothing of it; it is also what each search must find.
    fn task_that_was_not(&self, capture: &Capture) {
        let control = self.lab.dir().join("control");
        fs::create_dir(&control).unwrap();
        let bind = format!("type=bind,source={},target=/out", control.display());
        let variable = format!("PLAIN={CONTROL}");
        let write = format!("cat /app.conf > /out/copy; {}", IDLE[2]);
        let flags = ["--config", "app.conf", "--mount", &bind, "--env", &variable];
        let other = self.service("other", &flags, &["sh", "-c", &write]);
        assert!(self.lab.inside(&other, &["ls", "/run/secrets"]).code != 0);
        // In the clear over the wire: from the manager's host to the worker's.
        let shout = format!("echo {CONTROL} > /dev/udp/10.90.0.{WORKER}/9");
        self.lab.exec(MANAGER, &["bash", "-c", &shout]).ok();
        until("the capture to see what goes over the wire", SOON, || capture.saw(CONTROL));
        until("the control to be written", SOON, || control.join("copy").exists());
        let found = files_with(CONTROL, self.lab.dir());
        assert!(found.iter().any(|file| file.ends_with("control/copy")), "{found:?}");
        assert!(!processes_with(CONTROL).is_empty());
    }

    /// The container has it still, and new tasks get it: service `again`.
    fn killed_agent(&self, task: &Running) -> Running {
        let pid = self.lab.pid(&task.id);
        self.lab.command(&["kill", &WORKER.to_string()]).ok();
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/root/run/secrets/db")).unwrap(), SECRET);
        self.lab.command(&["start", &WORKER.to_string()]).ok();
        let again = self.service("again", &["--secret", "db"], &IDLE);
        assert_eq!(self.read(&again, "/run/secrets/db"), SECRET);
        assert_eq!(self.lab.pid(&task.id), pid, "undisturbed");
        again
    }

    /// In place, with a signal; then by new tasks.
    fn replaced(&self, again: &Running) {
        // `web` has it at a place of its own too, where it cannot be replaced.
        self.lab.run(&["service", "rm", "web"]).ok();
        let live = self.service("live", &["--secret", "db"], &["sh", "-c", TELLS]);
        let live_pid = self.lab.pid(&live.id);
        self.give(&["secret", "rotate", "--live", "--signal", "HUP", "db"], ROTATED);
        until("the new version in place", SOON, || self.read(&live, "/run/secrets/db") == ROTATED);
        until("the other service too", SOON, || self.read(again, "/run/secrets/db") == ROTATED);
        until("the signal", SOON, || self.lab.run(&["service", "logs", "live"]).stdout.contains(ROTATED));
        assert_eq!(self.lab.pid(&live.id), live_pid);
        // By new tasks.
        self.give(&["secret", "rotate", "--detach", "db"], SECRET);
        until("a task with it", SOON, || {
            let tasks = self.lab.running("live", 1, SOON);
            tasks[0].id != live.id && self.read(&tasks[0], "/run/secrets/db") == SECRET
        });
    }

    /// Without managers, a restarted agent disturbs nothing.
    fn no_managers(&self) {
        let last = self.lab.running("live", 1, SOON).remove(0);
        let last_pid = self.lab.pid(&last.id);
        self.lab.command(&["kill", &MANAGER.to_string()]).ok();
        self.lab.command(&["kill", &WORKER.to_string()]).ok();
        self.lab.command(&["start", &WORKER.to_string()]).ok();
        assert_eq!(fs::read_to_string(format!("/proc/{last_pid}/root/run/secrets/db")).unwrap(), SECRET);
        self.lab.command(&["start", &MANAGER.to_string()]).ok();
        self.lab.settled(1, SOON);
        assert_eq!(self.lab.pid(&last.id), last_pid);
    }
}

/// Says what it sees whenever it is told.
const TELLS: &str = "trap 'cat /run/secrets/db; echo' HUP; trap 'exit 0' TERM; while :; do sleep 1 & wait; done";

#[test]
fn secrets_reach_their_tasks_and_nothing_else() {
    let case = Case { lab: Lab::with_busybox("secrets", 3), outside: tempfile::tempdir().unwrap() };
    let lab = &case.lab;
    let capture = Capture::start(lab, MANAGER);
    case.give(&["secret", "create", "db"], SECRET);
    case.give(&["config", "create", "app.conf"], CONTROL);
    let templated = "slot {{.Task.Slot}} of {{.Service.Name}}, {{env \"MODE\"}}: {{config \"app.conf\"}}\n";
    case.give(&["config", "create", "--template-driver", "golang", "filled.conf"], templated);

    let task = case.task_that_was_given_it();
    case.task_that_was_not(&capture);
    assert_eq!(files_with(SECRET, lab.dir()), Vec::<String>::new());
    (1..=WORKER).for_each(|host| assert_eq!(host_files_with(SECRET, lab, host), ""));
    assert_eq!(processes_with(SECRET), Vec::<String>::new());
    assert!(!forms(SECRET).iter().any(|form| capture.saw(form)));

    let again = case.killed_agent(&task);
    case.replaced(&again);
    case.no_managers();
    // Gone with their tasks.
    assert!(!holders(lab).is_empty(), "the search finds what is there");
    lab.run(&["service", "rm", "live", "again"]).ok();
    until("nobody to have it", SOON, || holders(lab).is_empty());
    assert_eq!(files_with(SECRET, lab.dir()), Vec::<String>::new());
}
