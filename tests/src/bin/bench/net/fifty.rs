//! A host with fifty peers, and traffic to all at once: a netd and a task on each of 51 hosts, one encrypted network.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use skep_netlink::{Inside, Namespace, NetlinkError};

use super::Net;
use super::netd::Netd;
use super::table::{Network, Row};
use super::underlay::Underlay;
use crate::metric;

const PEERS: u8 = 50;
const PORT: u16 = 9;
const WARM_UP: Duration = Duration::from_secs(1);
const TIME: Duration = Duration::from_secs(3);
/// All are reached by then.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Of one write, and one read.
const BUFFER: usize = 128 << 10;

/// Bytes that arrived, by peer.
type Counters = Arc<Vec<AtomicU64>>;

/// [`metric::NET_FIFTY`].
pub(super) fn measure(net: &Net<'_>) -> Result<()> {
    let underlay = Underlay::new()?;
    let network = Network::new(12, true);
    let numbers: Vec<u8> = (1..=PEERS + 1).collect();
    let (mut hosts, mut netds, mut sandboxes) = (Vec::new(), Vec::new(), Vec::new());
    for number in &numbers {
        let host = underlay.host(*number)?;
        let netd = Netd::start(net.run, &net.runtime, &format!("fifty{number}"), &host)?;
        // Who is no hub knows the hub only, as if the others had nothing for it.
        let known: &[u8] = if *number == 1 { &numbers } else { &[1, *number] };
        netd.apply(network.whole(1, known, known.iter().map(|host| Row::serving(*host, (*host).into()))))?;
        sandboxes.push(netd.attach(network.attach((*number).into()))?);
        hosts.push(host);
        netds.push(netd);
    }
    let counters: Counters = Arc::new((0..PEERS).map(|_| AtomicU64::new(0)).collect());
    let stop = Arc::new(AtomicBool::new(false));
    for (peer, sandbox) in sandboxes.iter().skip(1).enumerate() {
        sink(sandbox, Arc::clone(&counters), peer)?;
    }
    for number in 2..=PEERS + 1 {
        source(&sandboxes[0], network.address(number.into()), Arc::clone(&stop))?;
    }
    thread::sleep(WARM_UP);
    let received = || counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let (started, before, cpu) = (Instant::now(), received(), netds[0].cpu()?);
    thread::sleep(TIME);
    let (took, after) = (started.elapsed().as_secs_f64(), received());
    let used = netds[0].cpu()?.saturating_sub(cpu).as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let each: Vec<u64> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
    let silent = each.iter().filter(|bytes| **bytes == 0).count();
    ensure!(silent == 0, "{silent} of {PEERS} peers got nothing in {TIME:?}");
    let gbits = each.iter().sum::<u64>() as f64 * 8.0 / 1e9;
    let extremes = each.iter().min().zip(each.iter().max());
    if let Some((least, most)) = extremes {
        let megabits = |bytes: &u64| *bytes as f64 * 8.0 / 1e6 / took;
        eprintln!("bench: {PEERS} peers: {:.0} to {:.0} Mbit/s each", megabits(least), megabits(most));
    }
    if net.selection.has(&metric::FIFTY_TCP) {
        net.ratio(&metric::FIFTY_TCP, Some(gbits / took), None, None)?;
    }
    if net.selection.has(&metric::FIFTY_CPU) {
        net.ratio(&metric::FIFTY_CPU, Some(used / gbits), None, None)?;
    }
    Ok(())
}

/// Takes all that comes on one connection.
fn sink(namespace: &Namespace, counters: Counters, peer: usize) -> Result<()> {
    let listener = namespace.enter(|inside: &Inside| inside.tcp(SocketAddr::from(([0, 0, 0, 0], PORT))))?;
    thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut buffer = vec![0; BUFFER];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            counters[peer].fetch_add(length as u64, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Sends as much as it can.
fn source(namespace: &Namespace, to: IpAddr, stop: Arc<AtomicBool>) -> Result<()> {
    let to = SocketAddr::from((to, PORT));
    let connect = |_: &Inside| Ok::<_, NetlinkError>(TcpStream::connect_timeout(&to, Duration::from_secs(10)));
    // On a busy machine a handshake takes longer than the kernel waits for a neighbour.
    let started = Instant::now();
    let mut stream = loop {
        match namespace.enter(connect)? {
            Err(_) if started.elapsed() < PATIENCE => thread::sleep(LOOK_AGAIN),
            answer => break answer.with_context(|| format!("cannot connect to {to}"))?,
        }
    };
    thread::spawn(move || {
        let buffer = vec![7; BUFFER];
        while !stop.load(Ordering::Relaxed) && stream.write_all(&buffer).is_ok() {}
    });
    Ok(())
}
