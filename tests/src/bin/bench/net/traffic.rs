//! What a path between two containers carries: iperf3(1) and ping(8) in them.

use std::net::IpAddr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_netlink::Namespace;

use super::bare::{Bare, container};
use super::netd::Netd;
use super::underlay::{Process, inside};
use crate::samples::median;

/// Of one measurement. Several short ones in turn with the peers' tell more than a long one.
const SECONDS: u32 = 2;

/// iperf3's server listens again by then.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A path, with a server at its end.
pub(super) struct Path<'a> {
    /// Whose it is.
    pub(super) name: String,
    client: &'a Namespace,
    address: IpAddr,
    /// The processes that move its packets, on both hosts.
    processes: Vec<&'a Process>,
    _listening: Process,
}

/// What TCP reached.
pub(super) struct Tcp {
    pub(super) gbits: f64,
    /// CPU seconds of the devices' processes per Gbit.
    pub(super) cpu_per_gbit: f64,
}

impl<'a> Path<'a> {
    /// Between sandboxes of two hosts.
    pub(super) fn of_skep(netds: &'a [Netd<'a>], ends: &'a [Namespace], address: IpAddr) -> Result<Self> {
        Self::new("skep", ends, address, netds.iter().map(|netd| &netd.process).collect())
    }

    /// Between a peer's containers.
    pub(super) fn of_peer(name: &str, bare: &'a Bare) -> Result<Self> {
        Self::new(name, &bare.containers, container(2), bare.processes.iter().collect())
    }

    fn new(name: &str, ends: &'a [Namespace], address: IpAddr, processes: Vec<&'a Process>) -> Result<Self> {
        let [client, server] = ends else { anyhow::bail!("a path has two ends") };
        let mut listening = Process::start(&mut inside(server, &["iperf3", "--server"]))?;
        // Also brings up what comes up with the first packet.
        let pings = || {
            let ping = inside(client, &["ping", "-n", "-c", "1", "-W", "1", &address.to_string()]).status();
            ping.is_ok_and(|status| status.success()).then_some(())
        };
        listening.until(&format!("waited for {name} to carry a ping"), pings)?;
        // Once without counting.
        iperf(client, address, 1, &[]).with_context(|| name.to_owned())?;
        Ok(Self { name: name.to_owned(), client, address, processes, _listening: listening })
    }

    fn iperf(&self, args: &[&str]) -> Result<Value> {
        iperf(self.client, self.address, SECONDS, args).with_context(|| self.name.clone())
    }

    fn cpu(&self) -> Result<Duration> {
        self.processes.iter().map(|process| process.cpu()).sum()
    }

    /// With so many streams.
    pub(super) fn tcp(&self, streams: u32) -> Result<Tcp> {
        let before = self.cpu()?;
        let end = self.iperf(&["--parallel", &streams.to_string()])?;
        let used = self.cpu()?.saturating_sub(before).as_secs_f64();
        let received = &end["sum_received"];
        let gbits = number(&received["bits_per_second"])? / 1e9;
        Ok(Tcp { gbits, cpu_per_gbit: used / (number(&received["bytes"])? * 8.0 / 1e9) })
    }

    /// Thousand packets of so many bytes that arrive in a second, when as many are sent as can be.
    pub(super) fn udp(&self, bytes: u32) -> Result<f64> {
        let end = self.iperf(&["--udp", "--bitrate", "0", "--length", &bytes.to_string()])?;
        let sum = &end["sum"];
        Ok((number(&sum["packets"])? - number(&sum["lost_packets"])?) / number(&sum["seconds"])? / 1e3)
    }

    /// The median round trip in microseconds; other than an average it does not tell of other load.
    pub(super) fn ping(&self) -> Result<f64> {
        let address = self.address.to_string();
        let mut command = inside(self.client, &["ping", "-n", "-c", "500", "-i", "0.002", &address]);
        let output = command.stdout(Stdio::piped()).output().context("cannot run ping")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let times = text.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse::<f64>().ok());
        let times: Vec<f64> = times.map(|milliseconds| milliseconds * 1e3).collect();
        ensure!(times.len() > 400, "{}: {} of 500 pings arrive", self.name, times.len());
        median(&times).context("no ping arrives")
    }
}

/// What iperf3 says at its end. Asks again where its server cannot be reached: between two clients it does not listen.
fn iperf(client: &Namespace, address: IpAddr, seconds: u32, args: &[&str]) -> Result<Value> {
    let (address, time) = (address.to_string(), seconds.to_string());
    let started = Instant::now();
    loop {
        let mut command = inside(client, &["iperf3", "--json", "--client", &address, "--time", &time]);
        let output = command.args(args).stdout(Stdio::piped()).output().context("cannot run iperf3")?;
        let answer: Value = serde_json::from_slice(&output.stdout).context("iperf3 prints no JSON")?;
        let Some(error) = answer["error"].as_str() else { return Ok(answer["end"].clone()) };
        let not_yet = ["unable to connect", "busy", "reset by peer"].iter().any(|text| error.contains(text));
        ensure!(not_yet && started.elapsed() < PATIENCE, "iperf3 {args:?}: {error}");
        thread::sleep(LOOK_AGAIN);
    }
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("iperf3 leaves a figure away")
}
