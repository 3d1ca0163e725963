//! Measurements, by hand: `cargo test -p skep-dns --release -- --ignored --nocapture --test-threads 1 measure`.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;

use super::server_test::{endpoint, endpoint_id, network, query, sockets};
use super::*;
use crate::zone::{Service, ServiceId, Zone};

const TASKS: u32 = 10_000;

/// Resident memory in KiB (proc_pid_status(5)).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn serve(server: &Server, count: usize, network: &Arc<crate::Network>) -> Vec<SocketAddr> {
    let one = |number: usize| {
        let (udp, tcp, address) = sockets();
        let view = View::new(vec![Arc::clone(network)]).own(&[format!("own{number}")], &[Ipv4Addr::LOCALHOST.into()]);
        server.add(&number.to_string(), udp, tcp, view).unwrap();
        address
    };
    (0..count).map(one).collect()
}

/// Asks each server in turn, `window` questions under way. Gives questions per second, and the median and 99th percentile
/// of the time to an answer.
fn load(servers: &[SocketAddr], name: &str, window: usize, total: usize) -> (f64, Duration, Duration) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut sent = vec![Instant::now(); 1 << 16];
    let mut times = Vec::with_capacity(total);
    let mut question = query(name, RecordType::A, 0, None);
    let mut buffer = [0; 4096];
    let (start, mut next) = (Instant::now(), 0_usize);
    while times.len() < total {
        while next < total && next - times.len() < window {
            question[..2].copy_from_slice(&(next as u16).to_be_bytes());
            sent[next & 0xffff] = Instant::now();
            socket.send_to(&question, servers[next % servers.len()]).unwrap();
            next += 1;
        }
        let length = socket.recv(&mut buffer).unwrap();
        assert!(length > 12 && buffer[3] & 0x0f == 0);
        times.push(sent[usize::from(u16::from_be_bytes([buffer[0], buffer[1]]))].elapsed());
    }
    let rate = total as f64 / start.elapsed().as_secs_f64();
    times.sort();
    (rate, times[total / 2], times[total * 99 / 100])
}

#[test]
#[ignore = "a measurement"]
fn measure_questions() {
    let runtime = runtime();
    for (count, tasks) in [(1, 100), (200, 100), (200, TASKS)] {
        let server = Server::new(runtime.handle().clone(), "/nonexistent".into());
        let network = network(tasks);
        let servers = serve(&server, count, &network);
        for (name, window) in [("web", 1), ("web", 64), ("db", 1), ("db", 64)] {
            let (rate, median, late) = load(&servers, name, window, 40_000);
            eprintln!(
                "{count} sandboxes, {tasks} tasks, {name}, {window} under way: {rate:.0}/s, median {median:?}, p99 {late:?}"
            );
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn measure_memory() {
    let runtime = runtime();
    let server = Server::new(runtime.handle().clone(), "/nonexistent".into());
    let before = resident();
    let network = network(TASKS);
    eprintln!("{TASKS} endpoints: {} KiB", resident() - before);
    let first = serve(&server, 10, &network);
    load(&first, "web", 1, 1000);
    let before = resident();
    let more = (0..1000)
        .map(|number| {
            let (udp, tcp, address) = sockets();
            let view =
                View::new(vec![Arc::clone(&network)]).own(&[format!("own{number}")], &[Ipv4Addr::LOCALHOST.into()]);
            server.add(&format!("more{number}"), udp, tcp, view).unwrap();
            address
        })
        .collect::<Vec<_>>();
    load(&more, "web", 1, 5000);
    eprintln!("1000 more sandboxes, each asked: {} KiB", resident() - before);
}

#[test]
#[ignore = "a measurement"]
fn measure_changes() {
    let runtime = runtime();
    let server = Server::new(runtime.handle().clone(), "/nonexistent".into());
    let start = Instant::now();
    let mut zone = Zone::default();
    zone.put_service(ServiceId([2; 16]), &Service { names: vec!["db".to_owned()], virtual_addresses: vec![] });
    (0..TASKS).for_each(|task| zone.put_endpoint(endpoint_id(task), &endpoint(task, true)));
    eprintln!("a whole table of {TASKS} endpoints: {:?}", start.elapsed());
    let network = network(1);
    network.replace(zone);
    let servers = serve(&server, 200, &network);
    load(&servers, "db", 1, 1000);
    let mut times: Vec<Duration> = (0..10_000_u32)
        .map(|round| {
            let task = round.wrapping_mul(7919) % TASKS;
            let start = Instant::now();
            network.change(|zone| zone.put_endpoint(endpoint_id(task), &endpoint(task, round % 2 == 0)));
            start.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("a change: median {:?}, p99 {:?}, worst {:?}", times[5_000], times[9_900], times[9_999]);
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let question = query("db.77.q8xnzk5r2v7c1m4t9w3e6y0a77", RecordType::A, 3, None);
    let mut slowest = Duration::ZERO;
    for round in 0..100 {
        let start = Instant::now();
        network.change(|zone| zone.put_endpoint(endpoint_id(77), &endpoint(77, round % 2 == 0)));
        for server in &servers {
            client.send_to(&question, server).unwrap();
        }
        for _ in &servers {
            let mut reply = [0; 512];
            client.recv(&mut reply).unwrap();
            assert_eq!(reply[7], 1 - round % 2, "the answer of after the change");
        }
        slowest = slowest.max(start.elapsed());
    }
    eprintln!("a change, and the right answer from each of 200 sandboxes: at most {slowest:?}");
}
