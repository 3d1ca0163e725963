//! What a sandbox's name server answers: questions by the second, and how long one takes, where a service has 1,000 tasks.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use skep_netlink::NetlinkError;

use super::Net;
use super::netd::Netd;
use super::table::{Network, Row};
use super::underlay::Underlay;
use crate::metric;
use crate::samples::median;

const TASKS: u32 = 1000;
const QUESTIONS: u16 = 40_000;
/// Under way at a time, where the rate is measured.
const WINDOW: u16 = 64;
const SERVER: &str = "127.0.0.11:53";
/// Nothing takes longer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// `web A?` (RFC 1035, 4.1), behind the number of the question.
const QUESTION: &[u8] = b"\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";

/// [`metric::NET_NAMES`].
pub(super) fn measure(net: &Net<'_>) -> Result<()> {
    let underlay = Underlay::new()?;
    let host = underlay.host(1)?;
    let netd = Netd::start(net.run, &net.runtime, "names", &host)?;
    let network = Network::new(6, false);
    netd.apply(network.whole(1, &[1, 2], (1..=TASKS).map(|task| Row::serving(2, task))))?;
    let sandbox = netd.attach(network.attach(TASKS + 1))?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let socket = sandbox.enter(|inside| Ok::<_, NetlinkError>(inside.udp(any)))??;
    socket.set_read_timeout(Some(TIMEOUT))?;
    // Of three rounds, so that one in which the machine had other things to do does not count.
    let rounds = |window| (0..3).map(|_| ask(&socket, window)).collect::<Result<Vec<_>>>();
    let rates: Vec<f64> = rounds(WINDOW)?.iter().map(|round| f64::from(QUESTIONS) / round.took.as_secs_f64()).collect();
    let times: Vec<f64> = rounds(1)?.iter().filter_map(|round| median(&round.micros)).collect();
    net.ratio(&metric::NAMES_RATE, median(&rates), None, None)?;
    net.at_most(&metric::NAMES_TIME, median(&times), None)
}

struct Round {
    took: Duration,
    micros: Vec<f64>,
}

/// Asks all questions, so many under way at a time.
fn ask(socket: &UdpSocket, window: u16) -> Result<Round> {
    let started = Instant::now();
    let mut sent = vec![started; usize::from(QUESTIONS)];
    let mut micros = Vec::with_capacity(usize::from(QUESTIONS));
    let (mut next, mut answered, mut buffer) = (0_u16, 0_u16, [0; 4096]);
    while answered < QUESTIONS {
        while next < QUESTIONS && next - answered < window {
            sent[usize::from(next)] = Instant::now();
            socket.send_to(&[&next.to_be_bytes(), QUESTION].concat(), SERVER)?;
            next += 1;
        }
        let length = socket.recv(&mut buffer).context("a question was not answered")?;
        let number = u16::from_be_bytes([buffer[0], buffer[1]]);
        // No error, and an address.
        ensure!(length > QUESTION.len() + 2 && buffer[3] & 0x0f == 0 && buffer[7] == 1, "not the right answer");
        let asked = sent.get(usize::from(number)).context("an answer to no question")?;
        micros.push(asked.elapsed().as_secs_f64() * 1e6);
        answered += 1;
    }
    Ok(Round { took: started.elapsed(), micros })
}
