//! What a service's virtual address adds to its task's own: round trips on an open connection, and connecting. One by one
//! in turn, from a task on another host, so that both meet the same machine; and each as often behind each other one, as
//! who comes behind a way that shares most of its own finds the caches warm.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use skep_netlink::{Inside, Namespace, NetlinkError};

use super::Net;
use super::bare::{Bare, container};
use super::netd::Netd;
use super::table::{Network, Row};
use super::underlay::Underlay;
use crate::metric::{self, Metric};
use crate::report::Peer;
use crate::samples::median;

const ROUND_TRIPS: usize = 4000;
const CONNECTIONS: usize = 1500;
const PORT: u16 = 80;
/// Nothing takes longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A way to a server, and the microseconds that it took each time.
struct Way<'a> {
    name: &'static str,
    from: &'a Namespace,
    to: SocketAddr,
    times: Vec<f64>,
}

/// [`metric::NET_VIP`].
pub(super) fn measure(net: &Net<'_>) -> Result<()> {
    let underlay = Underlay::new()?;
    let hosts = [underlay.host(1)?, underlay.host(2)?];
    let network = Network::new(7, false);
    let (mut netds, mut sandboxes) = (Vec::new(), Vec::new());
    for host in &hosts {
        let netd = Netd::start(net.run, &net.runtime, &format!("vip{}", host.number), host)?;
        // Only the one on the other host is a backend.
        let tasks = [Row { host: 1, task: 1, serving: false }, Row::serving(2, 2)];
        netd.apply(network.whole(1, &[1, 2], tasks.into_iter()))?;
        sandboxes.push(netd.attach(network.attach(host.number.into()))?);
        netds.push(netd);
    }
    let bare = Bare::vxlan([&hosts[0], &hosts[1]])?;
    for server in [&sandboxes[1], &bare.containers[1]] {
        serve(server)?;
    }
    let way = |name, from, to: IpAddr| Way { name, from, to: SocketAddr::from((to, PORT)), times: Vec::new() };
    let mut ways = [
        way("VIP", &sandboxes[0], network.vip().into()),
        way("the task's address", &sandboxes[0], network.address(2)),
        way("ip link VXLAN without rules", &bare.containers[0], container(2)),
    ];
    if net.selection.has(&metric::VIP_ROUND_TRIP) {
        round_trips(&mut ways)?;
        report(net, &metric::VIP_ROUND_TRIP, &mut ways)?;
    }
    if net.selection.has(&metric::VIP_CONNECT) {
        connections(&mut ways)?;
        report(net, &metric::VIP_CONNECT, &mut ways)?;
    }
    Ok(())
}

fn report(net: &Net<'_>, metric: &'static Metric, ways: &mut [Way<'_>]) -> Result<()> {
    let figures: Vec<Option<f64>> = ways.iter().map(|way| median(&way.times)).collect();
    for (way, figure) in ways.iter().zip(&figures).skip(1) {
        let peer = figure.map(|value| Peer { name: way.name.to_owned(), value });
        // Less than a tenth is added to the way without a VIP; what the network itself costs is shown only.
        let least = way.name.contains("address").then_some(1.0 / 1.1);
        net.ratio(metric, figures[0], peer, least)?;
    }
    ways.iter_mut().for_each(|way| way.times.clear());
    Ok(())
}

/// Answers each byte with itself, for as long as this process lives.
fn serve(namespace: &Namespace) -> Result<()> {
    let listener = namespace.enter(|inside: &Inside| inside.tcp(SocketAddr::from(([0, 0, 0, 0], PORT))))?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut byte = [0];
                // A connection that is reset is one that ends.
                let _ = stream.set_nodelay(true);
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    Ok(())
}

fn ask(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [b'?'];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte).context("the server does not answer")
}

fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // Closed by a reset: no port waits in TIME_WAIT, of which there would soon be none left.
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(stream, sockopt::Linger, &linger).context("cannot set SO_LINGER")
}

/// The turns of a round: forwards from another one each time, then backwards.
fn order(round: usize, ways: usize) -> impl Iterator<Item = usize> {
    let backwards = (round / ways) % 2 == 1;
    (0..ways).map(move |turn| (round + if backwards { ways - turn } else { turn }) % ways)
}

fn round_trips(ways: &mut [Way<'_>]) -> Result<()> {
    let mut streams = Vec::new();
    for way in ways.iter() {
        let to = way.to;
        let connect = |_: &Inside| Ok::<_, NetlinkError>(TcpStream::connect_timeout(&to, TIMEOUT));
        let stream = way.from.enter(connect)?.with_context(|| format!("cannot connect to {}", way.name))?;
        prepare(&stream)?;
        streams.push(stream);
    }
    for number in 0..ROUND_TRIPS {
        for at in order(number, ways.len()) {
            let (way, stream) = (&mut ways[at], &mut streams[at]);
            let started = Instant::now();
            ask(stream)?;
            // The first ones fill caches.
            if number >= ROUND_TRIPS / 10 {
                way.times.push(started.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    Ok(())
}

/// Connects, asks and resets, from a thread inside each namespace that waits for its turn.
fn connections(ways: &mut [Way<'_>]) -> Result<()> {
    let mut turns = Vec::new();
    for way in ways.iter() {
        let (namespace, to) = (way.from.try_clone()?, way.to);
        let (ask_turn, turn) = std::sync::mpsc::channel::<()>();
        let (answer, took) = std::sync::mpsc::channel::<Result<f64>>();
        // Ends with the sender of its turns.
        thread::spawn(move || {
            let visit = |_: &Inside| {
                for () in turn {
                    if answer.send(once(to)).is_err() {
                        break;
                    }
                }
                Ok::<_, NetlinkError>(())
            };
            drop(namespace.enter(visit));
        });
        turns.push((ask_turn, took));
    }
    for number in 0..CONNECTIONS {
        for at in order(number, ways.len()) {
            let (way, (ask_turn, took)) = (&mut ways[at], &turns[at]);
            ask_turn.send(()).context("a thread has ended")?;
            let time = took.recv().context("a thread has ended")??;
            if number >= CONNECTIONS / 10 {
                way.times.push(time);
            }
        }
    }
    Ok(())
}

/// Microseconds of a connection with one question.
fn once(to: SocketAddr) -> Result<f64> {
    let started = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT).with_context(|| format!("cannot connect to {to}"))?;
    prepare(&stream)?;
    ask(&mut stream)?;
    Ok(started.elapsed().as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_as_often_behind_each_other() {
        let turns: Vec<usize> = (0..6).flat_map(|round| order(round, 3)).collect();
        for way in 0..3 {
            for other in (0..3).filter(|other| *other != way) {
                let count =
                    turns.chunks(3).flat_map(|turns| turns.windows(2)).filter(|two| **two == [other, way]).count();
                assert_eq!(count, 2, "{way} behind {other}: {turns:?}");
            }
        }
    }
}
