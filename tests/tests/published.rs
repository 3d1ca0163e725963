//! Ports that hosts publish: the routing mesh on all of them, mode host on the tasks' own.
#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::Duration;

use skep_tests::{Lab, busybox, nginx, socat, until, until_some};

const SOON: Duration = Duration::from_secs(60);

/// The page at an address, asked for on a host.
fn page(lab: &Lab, from: u32, address: &str) -> Result<String, String> {
    let said = lab.exec(from, &["curl", "-sS", "--max-time", "3", &format!("http://{address}/")]);
    if said.code == 0 { Ok(said.stdout) } else { Err(said.stderr) }
}

#[track_caller]
fn answers(lab: &Lab, from: u32, address: &str) {
    let page = until_some(&format!("a page at {address} from host{from}"), SOON, || page(lab, from, address));
    assert_eq!(page.trim(), "hello from nginx");
}

#[test]
fn every_host_answers_for_a_service_of_one_task() {
    let lab = Lab::up("mesh", 3, &[]);
    lab.skep_with_input(1, &["image", "load"], &nginx("nginx:1").archive()).ok();
    let create = |name: &str, port: &str, flags: &[&str]| {
        let head = ["service", "create", "--detach", "--name", name, "--publish", port];
        lab.run(&[&head[..], flags, &["nginx:1"]].concat())
    };
    create("web", "80:8080", &[]).ok();
    lab.running("web", 1, SOON);
    for host in 1..=3 {
        answers(&lab, host, "10.90.0.1:80");
        answers(&lab, 1, &format!("10.90.0.{host}:80"));
    }
    // Taken is taken, free is free.
    create("other", "80:8080", &[]).fails(1, "web");
    lab.run(&["service", "update", "--detach", "--publish-rm", "8080", "--publish-add", "81:8080", "web"]).ok();
    for host in 1..=3 {
        answers(&lab, host, &format!("10.90.0.{host}:81"));
    }
    until_some("port 80 to be closed", SOON, || page(&lab, 2, "10.90.0.2:80").err().ok_or("open".to_owned()));
    create("other", "80:8080", &[]).ok();
    answers(&lab, 3, "10.90.0.2:80");
    lab.run(&["service", "rm", "web", "other"]).ok();
    for port in [80, 81] {
        let address = format!("10.90.0.1:{port}");
        until_some("the port to be closed", SOON, || page(&lab, 3, &address).err().ok_or("open".to_owned()));
    }

    // Of one host only.
    let flags = ["--constraint", "node.hostname==host2"];
    create("here", "published=82,target=8080,mode=host", &flags).ok();
    lab.running("here", 1, SOON);
    answers(&lab, 1, "10.90.0.2:82");
    answers(&lab, 2, "10.90.0.2:82");
    page(&lab, 1, "10.90.0.3:82").unwrap_err();
}

#[test]
fn datagrams_are_balanced_too() {
    let lab = Lab::up("datagrams", 2, &[]);
    lab.skep_with_input(1, &["image", "load"], &socat("socat:1").archive()).ok();
    let head = ["service", "create", "--detach", "--name", "echo", "--replicas", "2"];
    let tail = ["--publish", "9000:9000/udp", "socat:1", "UDP4-RECVFROM:9000,fork", "PIPE"];
    lab.run(&[&head[..], &tail].concat()).ok();
    lab.running("echo", 2, SOON);
    for (from, to) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let ask = format!("echo hello | socat -t 2 - UDP4:10.90.0.{to}:9000");
        until_some("an echo", SOON, || {
            let said = lab.exec(from, &["sh", "-c", &ask]);
            if said.stdout == "hello\n" { Ok(()) } else { Err(format!("{said:?}")) }
        });
    }
}

#[test]
fn connections_pass_over_a_host_that_died() {
    let lab = Lab::up("died", 3, &[]);
    lab.skep_with_input(1, &["image", "load"], &nginx("nginx:1").archive()).ok();
    let flags = ["--name", "web", "--mode", "global", "--publish", "80:8080", "nginx:1"];
    lab.run(&[&["service", "create"][..], &flags].concat()).ok();
    lab.running("web", 3, SOON);
    answers(&lab, 1, "10.90.0.2:80");
    lab.command(&["power-off", "3"]).ok();
    // Nobody says that the task there has ended: it is wanted still. One in three would fail.
    let all = || (0..24).all(|_| page(&lab, 1, "10.90.0.2:80").is_ok());
    until("all connections to be answered", SOON, all);
    assert!(all() && all());
    lab.command(&["start", "3"]).ok();
    lab.running("web", 3, SOON);
    answers(&lab, 1, "10.90.0.3:80");
}

#[test]
fn no_request_fails_while_all_tasks_are_replaced() {
    let lab = Lab::up("rolling", 3, &[]);
    lab.skep_with_input(1, &["image", "load"], &nginx("nginx:1").archive()).ok();
    let head = ["service", "create", "--name", "web", "--replicas", "3", "--publish", "80:8080"];
    lab.run(&[&head[..], &["--update-monitor", "1s", "--update-order", "start-first", "nginx:1"]].concat()).ok();
    let before = lab.running("web", 3, SOON);
    for host in 1..=3 {
        answers(&lab, 1, &format!("10.90.0.{host}:80"));
    }
    // Connection after connection to every host until the update is over, and a few more.
    let script = "n=0; while [ ! -e $1 ] || [ $n -lt 100 ]; do
        curl -sS --max-time 5 -o /dev/null http://$2/ || exit 1; n=$((n + 1)); done; echo $n";
    let over = lab.dir().join("over");
    let clients: Vec<_> = (1..=3)
        .map(|host| {
            let mut command = lab.on(host, &["sh", "-c", script, "sh"]);
            let address = format!("10.90.0.{}:80", host % 3 + 1);
            command.arg(&over).arg(address).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    lab.run(&["service", "update", "--force", "--update-parallelism", "1", "web"]).ok();
    std::fs::write(&over, "").unwrap();
    for client in clients {
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success(), "a request failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let after = lab.running("web", 3, SOON);
    assert!(after.iter().all(|task| before.iter().all(|old| old.id != task.id)), "all are new");
}

#[test]
fn a_task_that_listens_late_runs_when_it_does() {
    let lab = Lab::up("late", 2, &[]);
    lab.skep_with_input(1, &["image", "load"], &busybox("box:1").archive()).ok();
    let create = |name: &str, port: &str, script: &str| {
        let head = ["service", "create", "--detach", "--name", name, "--publish", port];
        lab.run(&[&head[..], &["box:1", "sh", "-c", script]].concat()).ok();
    };
    create("late", "80:8080", "sleep 3; exec httpd -f -p 8080 -h /etc");
    lab.running("late", 1, SOON);
    // At the first try, on either host.
    for host in [1, 2] {
        let page = format!("http://10.90.0.{}/passwd", 3 - host);
        let said = lab.exec(host, &["curl", "-sS", "--max-time", "3", &page]);
        assert!(said.stdout.starts_with("root:"), "{said:?}");
    }
    create("deaf", "81:8081", "exec httpd -f -p 127.0.0.1:8081 -h /etc");
    let task = &lab.running("deaf", 1, SOON)[0];
    let told = &lab.task(&task.id)["Status"]["Message"];
    assert_eq!(told, "started; nothing in it listens on TCP port 8081, which is published");
}

#[test]
fn tasks_see_their_clients_where_the_mesh_was_made_so() {
    let lab = Lab::up("source", 3, &[]);
    lab.skep_with_input(1, &["image", "load"], &nginx("nginx:1").archive()).ok();
    lab.run(&["network", "rm", "ingress"]).ok();
    lab.run(&["network", "create", "--ingress", "--opt", "keep-source", "mesh"]).ok();
    let flags = ["--publish", "80:8080", "--constraint", "node.hostname==host2", "nginx:1"];
    lab.run(&[&["service", "create", "--detach", "--name", "web"][..], &flags].concat()).ok();
    lab.running("web", 1, SOON);
    for (from, to) in [(1, 3), (3, 1), (1, 2)] {
        answers(&lab, from, &format!("10.90.0.{to}:80"));
    }
    // Its access log begins with the client's address.
    until_some("both clients in the log", SOON, || {
        let log = lab.run(&["service", "logs", "--raw", "web"]).stdout;
        let has = |client: &str| log.lines().any(|line| line.starts_with(client));
        if has("10.90.0.1 ") && has("10.90.0.3 ") { Ok(()) } else { Err(log) }
    });
}
