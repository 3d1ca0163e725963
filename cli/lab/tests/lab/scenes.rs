//! What a lab promises, one promise a test.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::Test;
use crate::world::{World, cgroup_mounts, machine_network, read, runs, wait_child, wait_for};

pub(crate) const ALL: &[Test] = &[
    ("up_makes_hosts_and_down_leaves_nothing", up_makes_hosts_and_down_leaves_nothing),
    ("hosts_have_a_world_of_their_own", hosts_have_a_world_of_their_own),
    ("exec_is_transparent", exec_is_transparent),
    ("kill_start_stop", kill_start_stop),
    ("power_off_is_a_power_cut", power_off_is_a_power_cut),
    ("partitions_add_up_until_healed", partitions_add_up_until_healed),
    ("labs_do_not_meet", labs_do_not_meet),
    ("a_failed_up_leaves_nothing", a_failed_up_leaves_nothing),
    ("ctrl_c_leaves_nothing", ctrl_c_leaves_nothing),
    ("down_cleans_up_after_killed_commands", down_cleans_up_after_killed_commands),
    ("down_finds_all_without_the_directory", down_finds_all_without_the_directory),
    ("foreign_directories_are_left_alone", foreign_directories_are_left_alone),
    ("logs", logs),
    ("kept_data", kept_data),
];

fn up_makes_hosts_and_down_leaves_nothing() {
    let world = World::new("up");
    let network = machine_network();
    let start = Instant::now();
    world.ok(&["up", "--nodes", "3", "--managers", "1"]);
    let up = start.elapsed();
    assert_eq!(world.exec(1, &["skep", "node", "ls", "--format", "json"]).lines().count(), 3);
    for number in 1..=3 {
        let host = world.host(number);
        assert_eq!((&host["Power"], &host["Daemon"]), (&"on".into(), &"running".into()));
        assert_eq!(host["Role"], if number == 1 { "leader" } else { "worker" });
        assert_eq!(world.probe(number, number % 3 + 1), Some(format!("host{}", number % 3 + 1)));
    }
    assert!(world.fails(&["up"]).contains("already up"));
    let elsewhere = World { name: world.name.clone(), dir: world.dir.with_extension("elsewhere") };
    for verb in ["up", "down"] {
        assert!(elsewhere.fails(&[verb]).contains(world.dir.to_str().unwrap()), "says where the lab is");
    }
    let traces = world.traces();
    for kind in ["directory", "cgroup", "process", "mount"] {
        assert!(traces.iter().any(|trace| trace.starts_with(kind)), "a lab that is up shows: {traces:?}");
    }
    let inside = world.run(&["exec", "1", "--", "skep", "lab", "--name", &world.name, "down"]);
    assert!(String::from_utf8(inside.stderr).unwrap().contains("on the machine itself"));
    let background = world.background(2);
    let start = Instant::now();
    world.ok(&["down"]);
    let down = start.elapsed();
    world.assert_gone();
    assert!(!runs(background));
    assert_eq!(machine_network(), network);
    assert!(world.fails(&["down"]).contains("there is no lab"));
    eprintln!("up of 3 hosts: {} ms, down: {} ms", up.as_millis(), down.as_millis());
    assert!(up < Duration::from_secs(10) && down < Duration::from_secs(5), "far from what is promised");
}

fn hosts_have_a_world_of_their_own() {
    let world = World::new("own");
    world.ok(&["up", "--nodes", "2", "--no-swarm", "--insecure-registry", "host1:5000", "--daemon-arg=--extra"]);
    let machine = nix::unistd::gethostname().unwrap();
    assert_eq!(world.exec(2, &["uname", "-n"]), "host2");
    assert_eq!(nix::unistd::gethostname().unwrap(), machine);
    assert!(world.exec(2, &["cat", "/etc/hosts"]).contains("10.90.0.1\thost1"));
    assert_eq!(world.exec(2, &["cat", "/etc/hostname"]), "host2");
    let boot_id = world.exec(2, &["cat", "/proc/sys/kernel/random/boot_id"]);
    assert_eq!(world.host(2)["BootId"], *boot_id);
    assert_ne!(boot_id, world.exec(1, &["cat", "/proc/sys/kernel/random/boot_id"]));
    assert_eq!(world.exec(2, &["ls", "/sys/class/net"]), "eth0\nlo");
    assert_eq!(world.exec(2, &["ls", "/run"]), "lock\nskep");
    // Mounts of a host stay there, and the machine's cgroups stay visible.
    world.exec(2, &["sh", "-c", "mkdir /run/m && mount -t tmpfs lab-test-mount /run/m"]);
    assert!(!read("/proc/self/mountinfo").contains("lab-test-mount"));
    assert!(!world.exec(1, &["cat", "/proc/self/mountinfo"]).contains("lab-test-mount"));
    let daemon = world.host(2)["Pid"].as_i64().unwrap();
    for mount in cgroup_mounts() {
        let cgroup = mount.join("skep").join(&world.name).join("host2");
        assert_eq!(world.exec(2, &["cat", cgroup.join("daemon/cgroup.procs").to_str().unwrap()]), daemon.to_string());
    }
    let log = world.ok(&["logs", "2"]);
    for argument in [
        format!("--data-dir {}/hosts/2/data", world.dir.display()),
        format!("--cgroup-parent skep/{}/host2", world.name),
        format!("--boot-id {boot_id}"),
        "--socket /run/skep/skep.sock --".to_owned(),
        "--advertise-addr 10.90.0.2".to_owned(),
        "--insecure-registry host1:5000".to_owned(),
        "--extra".to_owned(),
    ] {
        assert!(log.contains(&argument), "{argument}: {log}");
    }
    assert!(world.fails(&["exec", "3", "--", "true"]).contains("has no host 3"));
}

fn exec_is_transparent() {
    let world = World::new("exec");
    world.ok(&["up", "--nodes", "1", "--no-swarm"]);
    let code = |command: &str| world.run(&["exec", "1", "--", "sh", "-c", command]).status.code();
    assert_eq!(code("exit 7"), Some(7));
    assert_eq!(world.run(&["exec", "1", "--", "no-such-command"]).status.code(), Some(127));
    assert_eq!(world.run(&["exec", "1", "--", "/etc/hosts"]).status.code(), Some(126));
    assert_eq!(world.exec(1, &["sh", "-c", "echo $SKEP_HOST"]), "unix:///run/skep/skep.sock");
    let skep = world.exec(1, &["sh", "-c", "readlink -f $(command -v skep)"]);
    assert_eq!(fs::canonicalize(skep).unwrap(), std::env::current_exe().unwrap().canonicalize().unwrap());
    // The working directory is kept where the host has it, stdin goes through.
    let mut cat = world.command(&["exec", "1", "--", "sh", "-c", "pwd; cat"]);
    let mut cat = cat.current_dir("/usr").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let mut out = String::new();
    cat.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(out, "/usr\nthrough\n");
    assert!(wait_child(&mut cat).success());
    // A signal reaches the command itself, and what it does to it is seen.
    let mut sleep = world.command(&["exec", "1", "--", "sh", "-c", "echo on; exec sleep 1000"]);
    let mut sleep = sleep.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(sleep.stdout.take().unwrap()).read_line(&mut line).unwrap();
    kill(Pid::from_raw(sleep.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(wait_child(&mut sleep).signal(), Some(15));
}

fn kill_start_stop() {
    let world = World::new("kill");
    world.ok(&["up", "--nodes", "2", "--no-swarm"]);
    let container = world.background(2);
    let boot_id = world.host(2)["BootId"].clone();
    let first = world.host(2)["Pid"].as_i64().unwrap();
    world.ok(&["kill", "2"]);
    assert!(!runs(first.try_into().unwrap()));
    assert_eq!(world.host(2)["Daemon"], "stopped");
    assert_eq!(world.probe(1, 2), None);
    assert!(world.fails(&["kill", "2"]).contains("is not running"));
    world.ok(&["start", "2"]);
    assert_eq!(world.probe(1, 2), Some("host2".to_owned()));
    assert!(!world.ok(&["logs", "2"]).contains("stopped gracefully"));
    world.ok(&["stop", "1,2"]);
    assert_eq!(world.host(1)["Daemon"], "stopped");
    assert!(world.ok(&["logs", "2", "--tail", "1"]).contains("stopped gracefully"));
    world.ok(&["start", "1,2"]);
    let again = world.host(2)["Pid"].clone();
    world.ok(&["start", "2"]);
    assert_eq!(world.host(2)["Pid"], again, "what runs is not started twice");
    world.ok(&["kill", "1"]);
    world.ok(&["kill", "all"]);
    assert_eq!((&world.host(1)["Daemon"], &world.host(2)["Daemon"]), (&"stopped".into(), &"stopped".into()));
    assert!(!runs(again.as_i64().unwrap().try_into().unwrap()));
    world.ok(&["start", "all"]);
    assert_eq!(world.probe(1, 2), Some("host2".to_owned()));
    assert!(runs(container), "containers keep running through all of it");
    assert_eq!(world.host(2)["BootId"], boot_id);
}

fn power_off_is_a_power_cut() {
    let world = World::new("power");
    world.ok(&["up", "--nodes", "3", "--no-swarm"]);
    let before = world.host(2);
    let container = world.background(2);
    // A container whose runtime moved it into a frozen cgroup of its own.
    let paused = world.background(2);
    pause(&world, paused);
    world.exec(2, &["touch", "/run/marker"]);
    let hold = |to: u16| {
        let address = format!("10.90.0.{to}:{}", crate::stand_in::NAME_PORT);
        let mut child =
            world.command(&["exec", "1", "--", "skep", "hold", &address]).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "connected\n");
        (child, out)
    };
    let (mut to_cut, _out) = hold(2);
    let (mut to_killed, mut out) = hold(3);
    world.ok(&["power-off", "2"]);
    world.ok(&["kill", "3"]);
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "closed\n", "a killed daemon's kernel closes its connections");
    assert!(wait_child(&mut to_killed).success());
    assert!(to_cut.try_wait().unwrap().is_none(), "a host without power does not");
    to_cut.kill().unwrap();
    to_cut.wait().unwrap();

    assert!(!runs(container) && !runs(paused));
    assert_eq!((&world.host(2)["Power"], &world.host(2)["Daemon"]), (&"off".into(), &"stopped".into()));
    for mount in cgroup_mounts() {
        assert!(!mount.join("skep").join(&world.name).join("host2").exists(), "{}", mount.display());
    }
    assert!(world.fails(&["exec", "2", "--", "true"]).contains("powered off"));
    assert!(world.fails(&["kill", "2"]).contains("is not running"));
    world.ok(&["power-off", "2"]);

    world.ok(&["start", "2,3"]);
    assert_ne!(world.host(2)["BootId"], before["BootId"]);
    assert_eq!(world.exec(2, &["ls", "/run"]), "lock\nskep");
    assert_eq!(world.probe(1, 2), Some("host2".to_owned()));
    assert_eq!(world.probe(2, 3), Some("host3".to_owned()));
    world.ok(&["down"]);
    world.assert_gone();
}

/// Freezes a process in a cgroup of the host's own, as a paused container.
fn pause(world: &World, pid: i32) {
    let mut paused = false;
    for mount in cgroup_mounts() {
        let cgroup = mount.join("skep").join(&world.name).join("host2/paused");
        let (file, value) =
            if mount.ends_with("freezer") { ("freezer.state", "FROZEN") } else { ("cgroup.freeze", "1") };
        fs::create_dir(&cgroup).unwrap();
        if cgroup.join(file).exists() && !paused {
            fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
            fs::write(cgroup.join(file), value).unwrap();
            paused = true;
        }
    }
    assert!(paused, "this machine has a freezer");
}

fn partitions_add_up_until_healed() {
    let world = World::new("cut");
    world.ok(&["up", "--nodes", "3", "--no-swarm"]);
    let reach = |from, to| world.probe(from, to).is_some();
    world.ok(&["partition", "1", "2"]);
    assert!(!reach(1, 2) && !reach(2, 1));
    assert!(reach(1, 3) && reach(3, 1) && reach(2, 3));
    world.ok(&["partition", "3", "1,2"]);
    assert!(!reach(1, 2) && !reach(1, 3) && !reach(2, 3));
    assert_eq!(world.host(1)["CutFrom"], serde_json::json!([2, 3]));
    // A host that comes back is still cut off.
    world.ok(&["power-off", "2"]);
    world.ok(&["start", "2"]);
    assert!(!reach(1, 2));
    world.ok(&["heal", "3"]);
    assert!(!reach(1, 2) && reach(1, 3) && reach(2, 3));
    world.ok(&["heal"]);
    assert!(reach(1, 2) && reach(2, 1) && reach(1, 3) && reach(3, 2));
    world.ok(&["partition", "2", "all"]);
    assert!(!reach(1, 2) && !reach(3, 2) && reach(1, 3));
    world.ok(&["heal"]);
    assert!(reach(1, 2) && reach(3, 2));
    assert!(world.fails(&["partition", "1", "1,2"]).contains("both sides"));
    assert!(world.fails(&["partition", "1", "4"]).contains("has no host 4"));
}

fn labs_do_not_meet() {
    let worlds = [World::new("one"), World::new("two")];
    let network = machine_network();
    let ups: Vec<_> = worlds
        .iter()
        .map(|world| world.command(&["up", "--nodes", "2"]).stdin(Stdio::null()).spawn().unwrap())
        .collect();
    for mut up in ups {
        assert!(wait_child(&mut up).success());
    }
    let [one, two] = &worlds;
    one.ok(&["kill", "2"]);
    assert_eq!(one.probe(1, 2), None, "the other lab's host 2 has this address too");
    assert_eq!(two.probe(1, 2), Some("host2".to_owned()));
    one.ok(&["down"]);
    one.assert_gone();
    assert_eq!(two.probe(2, 1), Some("host1".to_owned()));
    two.ok(&["down"]);
    two.assert_gone();
    assert_eq!(machine_network(), network);
}

fn a_failed_up_leaves_nothing() {
    let world = World::new("fail");
    let output = world.command(&["up", "--nodes", "2"]).env("STAND_IN_FAIL", "host2").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("the daemon of host 2 ended") && text.contains("this daemon was told to fail"), "{text}");
    world.assert_gone();
    assert!(world.fails(&["up", "--nodes", "1", "--managers", "2"]).contains("do not fit"));
    world.assert_gone();
}

fn ctrl_c_leaves_nothing() {
    let world = World::new("ctrl-c");
    let mut up = world.command(&["up", "--nodes", "2"]).env("STAND_IN_HANG", "host2").spawn().unwrap();
    wait_for("the first daemon's log", || fs::read_to_string(log(&world, 1)).is_ok_and(|log| log.contains("ready")));
    kill(Pid::from_raw(up.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(wait_child(&mut up).code(), Some(130));
    world.assert_gone();
}

fn log(world: &World, host: u16) -> std::path::PathBuf {
    world.dir.join("hosts").join(host.to_string()).join("daemon.log")
}

fn down_cleans_up_after_killed_commands() {
    let world = World::new("killed");
    let mut up = world.command(&["up", "--nodes", "2"]).env("STAND_IN_HANG", "host2").spawn().unwrap();
    wait_for("the first daemon's log", || fs::read_to_string(log(&world, 1)).is_ok_and(|log| log.contains("ready")));
    up.kill().unwrap();
    up.wait().unwrap();
    assert!(world.fails(&["up"]).contains("half made"));
    // Without the processes that hold host 1 and the bridge, too.
    let state: serde_json::Value = serde_json::from_str(&read(world.dir.join("lab.json"))).unwrap();
    for holder in [&state["bridge"], &state["hosts"][0]["holder"]] {
        kill(Pid::from_raw(holder["pid"].as_i64().unwrap().try_into().unwrap()), Signal::SIGKILL).unwrap();
    }
    world.ok(&["down"]);
    world.assert_gone();
    // At any moment, from the first instruction on.
    for delay_ms in [1, 3, 10, 20, 40, 80, 120] {
        let mut up = world.command(&["up", "--nodes", "2"]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        up.kill().unwrap();
        up.wait().unwrap();
        world.run(&["down"]);
        wait_for("holders that nobody recorded end by themselves", || {
            world.run(&["down"]);
            world.traces().is_empty()
        });
    }
}

fn down_finds_all_without_the_directory() {
    let world = World::new("lost");
    world.ok(&["up", "--nodes", "1", "--no-swarm"]);
    let background = world.background(1);
    fs::remove_dir_all(&world.dir).unwrap();
    assert!(world.fails(&["up"]).contains("has left processes behind"));
    world.ok(&["down"]);
    world.assert_gone();
    assert!(!runs(background));
    // A damaged record is as good as none.
    world.ok(&["up", "--nodes", "1", "--no-swarm"]);
    fs::write(world.dir.join("lab.json"), "{").unwrap();
    assert!(world.fails(&["ls"]).contains("is damaged"));
    world.ok(&["down"]);
    world.assert_gone();
}

fn foreign_directories_are_left_alone() {
    let world = World::new("foreign");
    fs::create_dir_all(&world.dir).unwrap();
    fs::write(world.dir.join("thesis.txt"), "years of work").unwrap();
    assert!(world.fails(&["up", "--no-swarm"]).contains("does not hold this lab"));
    assert!(world.fails(&["down"]).contains("there is no lab"));
    assert_eq!(fs::read_dir(&world.dir).unwrap().count(), 1);
    // Files put next to a lab's stay as well.
    fs::remove_file(world.dir.join("thesis.txt")).unwrap();
    world.ok(&["up", "--nodes", "1", "--no-swarm"]);
    fs::write(world.dir.join("thesis.txt"), "years of work").unwrap();
    let other = World { name: format!("{}-other", world.name), dir: world.dir.clone() };
    assert!(other.fails(&["down"]).contains("there is no lab"));
    std::mem::forget(other);
    world.ok(&["down"]);
    assert_eq!(read(world.dir.join("thesis.txt")), "years of work");
    let under_run = World { name: world.name.clone(), dir: "/run/skep-lab-test".into() };
    assert!(under_run.fails(&["up"]).contains("lies under /run"));
    std::mem::forget(under_run);
}

fn logs() {
    let world = World::new("logs");
    world.ok(&["up", "--nodes", "1", "--no-swarm"]);
    wait_for("the daemon's last line", || world.ok(&["logs", "1"]).ends_with("ready\n"));
    assert_eq!(world.ok(&["logs", "1", "--tail", "1"]), "ready\n");
    let mut follow = world.command(&["logs", "1", "-f", "-n", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(follow.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(line(), "ready\n");
    world.ok(&["stop", "1"]);
    assert_eq!(line(), "stopped gracefully\n");
    world.ok(&["down"]);
    assert!(wait_child(&mut follow).success(), "ends with the lab");
}

fn kept_data() {
    let world = World::new("keep");
    world.ok(&["up", "--nodes", "1", "--no-swarm"]);
    world.ok(&["down", "--keep-data"]);
    assert_eq!(world.traces(), [format!("directory {}", world.dir.display())]);
    assert!(log(&world, 1).exists());
    assert!(world.fails(&["ls"]).contains("there is no lab"));
    assert!(world.fails(&["up"]).contains("its data was kept"));
    world.ok(&["down"]);
    world.assert_gone();
}
