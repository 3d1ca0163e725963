//! `skep lab ls`

use std::io::{self, Write};

use serde::Serialize;

use crate::args::ListFormat;
use crate::error::{Context, Result};
use crate::lab::Lab;
use crate::network;
use crate::state::{HostState, LabState};
use crate::swarm;

/// One host, as JSON shows it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    number: u16,
    host: String,
    address: String,
    /// `on` or `off`
    power: &'static str,
    /// `running` or `stopped`
    daemon: &'static str,
    /// Of the daemon; null while it does not run.
    pid: Option<i32>,
    /// `leader`, `manager` or `worker` in the swarm; null where no manager of the lab says it.
    role: Option<&'static str>,
    boot_id: String,
    /// Hosts that it cannot reach because of `partition`.
    cut_from: Vec<u16>,
}

/// Prints the hosts to stdout.
pub(crate) fn list(lab: &Lab, format: ListFormat) -> Result<()> {
    let state = lab.load()?;
    let roles = swarm::roles(lab, &state);
    let rows: Vec<_> = state.hosts.iter().map(|host| row(&state, host, roles.get(&host.name()).copied())).collect();
    let text = match format {
        ListFormat::Table => table(&rows),
        ListFormat::Json => json(&rows).context("print", "the list")?,
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("write to", "stdout"),
    }
}

fn row(state: &LabState, host: &HostState, role: Option<&'static str>) -> Row {
    let on = host.is_on();
    let daemon = host.live_daemon();
    let cut_from = state.cuts.iter().filter_map(|(a, b)| match host.number {
        n if n == *a => Some(*b),
        n if n == *b => Some(*a),
        _ => None,
    });
    Row {
        number: host.number,
        host: host.name(),
        address: network::address(host.number).to_string(),
        power: if on { "on" } else { "off" },
        daemon: if daemon.is_some() { "running" } else { "stopped" },
        pid: daemon.map(|daemon| daemon.pid),
        role,
        boot_id: host.boot_id.clone(),
        cut_from: cut_from.collect(),
    }
}

fn json(rows: &[Row]) -> io::Result<String> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row)?);
        text.push('\n');
    }
    Ok(text)
}

fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut line = |columns: [&str; 7]| {
        let [host, address, power, daemon, pid, role, cut] = columns;
        let line = format!("{host:<9}{address:<14}{power:<7}{daemon:<9}{pid:<9}{role:<9}{cut}");
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(["HOST", "ADDRESS", "POWER", "DAEMON", "PID", "ROLE", "CUT FROM"]);
    for row in rows {
        let pid = row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let cut: Vec<_> = row.cut_from.iter().map(u16::to_string).collect();
        line([&row.host, &row.address, row.power, row.daemon, &pid, row.role.unwrap_or("-"), &cut.join(",")]);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::state::Phase;

    #[test]
    fn a_cut_shows_on_both_sides() {
        let host = |number| HostState { number, boot_id: "b".to_owned(), holder: None, daemon: None };
        let state = LabState {
            name: "lab".to_owned(),
            phase: Phase::Up,
            machine_boot_id: String::new(),
            bridge: None,
            hosts: vec![host(1), host(2), host(3)],
            daemon_args: Vec::new(),
            cuts: [(1, 2), (1, 3)].into(),
        };
        let rows: Vec<_> = state.hosts.iter().map(|host| row(&state, host, Some("worker"))).collect();
        assert_eq!(rows[0].cut_from, [2, 3]);
        assert_eq!(rows[2].cut_from, [1]);
        assert!(table(&rows).contains("host1    10.90.0.1     off    stopped  -        worker   2,3\n"));
        let line: serde_json::Value = serde_json::from_str(json(&rows).unwrap().lines().next().unwrap()).unwrap();
        assert_eq!((&line["Host"], &line["Pid"]), (&"host1".into(), &serde_json::Value::Null));
    }
}
