//! Real resolvers in a real sandbox: glibc's, and musl's where `musl-gcc` is there (Debian: musl-tools), in a network
//! namespace with a resolv.conf of its own. Takes root; says so and passes without.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use skep_dns::{Endpoint, EndpointId, Network, Origin, Server, Service, ServiceId, Upstream, View};

/// Prints the addresses of a name, or with `-x` the name of an address, one in a line.
const CLIENT: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    char text[1024];
    if (argc == 3) {
        struct sockaddr_in address = {.sin_family = AF_INET};
        inet_pton(AF_INET, argv[2], &address.sin_addr);
        int code = getnameinfo((void *)&address, sizeof address, text, sizeof text, 0, 0, NI_NAMEREQD);
        puts(code ? "failed" : text);
        return 0;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int code = getaddrinfo(argv[1], 0, &hints, &found);
    if (code) { puts(code == EAI_AGAIN ? "again" : "none"); return 0; }
    for (; found; found = found->ai_next) {
        getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST);
        puts(text);
    }
    return 0;
}
"#;

/// Compiles the client for each C library that is there.
fn clients(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    fs::write(dir.join("client.c"), CLIENT).unwrap();
    let compile = |compiler: &'static str, options: &[&str]| {
        let program = dir.join(compiler);
        let mut command = Command::new(compiler);
        let made =
            command.args(options).arg("-D_GNU_SOURCE").arg(dir.join("client.c")).arg("-o").arg(&program).status();
        match made {
            Ok(status) if status.success() => Some((compiler, program)),
            _ => {
                eprintln!("skipped: {compiler} is not there or does not work");
                None
            }
        }
    };
    [compile("cc", &[]), compile("musl-gcc", &["-static"])].into_iter().flatten().collect()
}

/// A name server that knows no name at all.
fn ignorant() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            buffer[2] |= 0x80;
            buffer[3] = 0x83;
            socket.send_to(&buffer[..length], client).unwrap();
        }
    });
    address
}

fn network() -> Arc<Network> {
    let network = Network::new("one", &[(IpAddr::from([10, 0, 1, 0]), 24)]);
    let service = |name: &str, address: &str| Service {
        names: vec![name.to_owned()],
        virtual_addresses: address.parse().into_iter().collect(),
    };
    network.change(|zone| {
        zone.put_service(ServiceId([1; 16]), &service("web", "10.0.1.2"));
        zone.put_service(ServiceId([2; 16]), &service("six", "fd00::2"));
        zone.put_service(ServiceId([3; 16]), &service("db", ""));
        zone.put_service(ServiceId([4; 16]), &service("asleep", ""));
        for task in 0..100 {
            let row = Endpoint {
                service: Some(ServiceId([3; 16])),
                addresses: vec![[10, 0, 1, 100 + task].into()],
                names: vec![format!("db.{task}.x8k2")],
                serving: skep_dns::Serving::Yes,
            };
            zone.put_endpoint(EndpointId([task; 16]), &row);
        }
    });
    network
}

/// Runs `inside` on a thread with a network and mounts of its own: loopback is up, and resolv.conf is this text.
fn sandbox<T: Send>(dir: &Path, resolv_conf: &str, inside: impl FnOnce(UdpSocket, TcpListener) -> T + Send) -> T {
    let file = dir.join("resolv.conf");
    fs::write(&file, resolv_conf).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            mount::<str, str, str, str>(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None).unwrap();
            mount::<Path, str, str, str>(Some(&file), "/etc/resolv.conf", None, MsFlags::MS_BIND, None).unwrap();
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            inside(UdpSocket::bind("127.0.0.11:53").unwrap(), TcpListener::bind("127.0.0.11:53").unwrap())
        });
        thread.join().unwrap()
    })
}

#[test]
fn resolvers_of_containers_get_along() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: network namespaces take root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let clients = clients(dir.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = Server::new(runtime.handle().clone(), "/nonexistent".into());
    let outside = Upstream::servers(&[ignorant()], Origin::Host);
    let texts = ["options ndots:0", "search corp.example", "search corp.example\noptions ndots:2 use-vc edns0"];
    for (number, (text, upstream)) in
        texts.iter().flat_map(|text| [(text, Upstream::None), (text, outside.clone())]).enumerate()
    {
        let words = |key: &str| -> Vec<String> {
            let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect()
        };
        let view =
            View::new(vec![network()]).search(&words("search")).options(&words("options")).upstream(upstream.clone());
        let id = number.to_string();
        sandbox(dir.path(), &format!("nameserver 127.0.0.11\n{text}\n"), |udp, tcp| {
            server.add(&id, udp, tcp, view).unwrap();
            for (library, program) in &clients {
                check(&format!("{library}, {text:?}, {upstream:?}"), library, program);
            }
        });
        runtime.block_on(server.remove(&id));
    }
}

fn check(what: &str, library: &str, program: &Path) {
    let ask = |arguments: &[&str]| -> Vec<String> {
        let start = Instant::now();
        let output = Command::new(program).args(arguments).output().unwrap();
        // A resolver that is not content waits for seconds.
        assert!(start.elapsed() < Duration::from_secs(2), "{what}: {arguments:?} took {:?}", start.elapsed());
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    };
    assert_eq!(ask(&["web"]), ["10.0.1.2"], "{what}");
    assert_eq!(ask(&["WEB.one"]), ["10.0.1.2"], "{what}");
    assert_eq!(ask(&["six"]), ["fd00::2"], "{what}");
    assert_eq!(ask(&["db.7.x8k2"]), ["10.0.1.107"], "{what}");
    for name in ["nobody", "nobody.example.org", "asleep", "tasks.asleep"] {
        assert_eq!(ask(&[name]), ["none"], "{what}: {name}");
    }
    for name in ["db", "tasks.db"] {
        let mut found = ask(&[name]);
        found.sort();
        found.dedup();
        // glibc comes back over TCP, as the answer has 1.6 KB. musl takes what the cut answer has before its version 1.2.4,
        // and never more than 48 addresses (its MAXADDRS).
        let expected = if library == "cc" { 100..=100 } else { 25..=48 };
        assert!(expected.contains(&found.len()), "{what}: {name}: {}", found.len());
    }
    assert_eq!(ask(&["-x", "10.0.1.107"]), ["db.7.x8k2"], "{what}");
    assert_eq!(ask(&["-x", "10.0.1.2"]), ["web"], "{what}");
    assert_eq!(ask(&["-x", "10.0.1.3"]), ["failed"], "{what}");
}
