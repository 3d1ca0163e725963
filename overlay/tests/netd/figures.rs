//! What it costs: `cargo test -p skep-overlay --test netd figures -- --ignored --nocapture`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use crate::lab::*;

/// CPU seconds of a process and its threads (proc_pid_stat(5), fields 14 and 15).
fn cpu(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 5, 16, 0)) + number).into()
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let net = network(5, |_| {});
    let mut table = whole(&net, 1);
    table.put_services = vec![service(9, "web", Ipv4Addr::new(10, 5, 0, 2), Vec::new())];
    table.put_peers = vec![peer(1), peer(2)];
    table.put_endpoints =
        (0..1000).map(|number| endpoint(2, 1000 + u128::from(number), 9, address(1000 + number), true)).collect();
    host.follow(&[table]);
    host.attach(&attach_request(999, &[(&net, address(999))]));
    let (start, before) = (Instant::now(), cpu(host.pid()));
    for number in 0..200 {
        host.attach(&attach_request(number.into(), &[(&net, address(number))]));
    }
    let (wall, used) = (start.elapsed().as_secs_f64() * 5.0, (cpu(host.pid()) - before) * 5.0);
    eprintln!("attach with a service of 1000 backends: {wall:.2} ms, {used:.2} ms CPU each (200 in turn)");
    let mut worst: (f64, f64) = (0.0, 0.0);
    for version in 2..12 {
        let mut change = difference(&net, version);
        change.put_endpoints = vec![endpoint(2, 1001, 9, address(1001), version % 2 == 1)];
        let (start, before) = (Instant::now(), cpu(host.pid()));
        host.follow(&[change]);
        let (wall, used) = (start.elapsed().as_secs_f64() * 1000.0, (cpu(host.pid()) - before) * 1000.0);
        worst = (worst.0.max(wall), worst.1.max(used));
        eprintln!("one change, 200 sandboxes, 1000 backends: {wall:.1} ms, {used:.0} ms CPU");
    }
    eprintln!("worst: {worst:?}");
    let other = network(6, |_| {});
    let mut table = whole(&other, 2);
    table.put_services = vec![service(9, "web", Ipv4Addr::new(10, 6, 0, 2), Vec::new())];
    table.put_peers = vec![peer(1), peer(2)];
    let at = |number: u32| -> IpAddr { Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 6, 16, 0)) + number).into() };
    table.put_endpoints =
        (0..10_000).map(|number| endpoint(2, 10_000 + u128::from(number), 9, at(number), true)).collect();
    host.know(&other);
    host.attach(&attach_request(900, &[(&other, at(20_000))]));
    let start = Instant::now();
    host.follow(&[table]);
    eprintln!("10000 endpoints, all: {:.0} ms", start.elapsed().as_secs_f64() * 1000.0);
    for version in 3..8 {
        let mut change = difference(&other, version);
        change.put_endpoints = vec![endpoint(2, 10_001, 9, at(30_000 + u32::try_from(version).unwrap()), true)];
        let start = Instant::now();
        host.follow(&[change]);
        eprintln!("10000 endpoints, one change: {:.1} ms", start.elapsed().as_secs_f64() * 1000.0);
    }
}
