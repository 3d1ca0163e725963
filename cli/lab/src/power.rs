//! Hosts going on and off, and `skep lab start | stop | kill | power-off`.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::args::HostNumbers;
use crate::daemon;
use crate::error::{Context, Result};
use crate::holder::{Held, NewHolder, exec_cgroup};
use crate::lab::{Binary, HostDir, Lab, find_host, host_cgroup};
use crate::network;
use crate::process::ProcessId;
use crate::state::{HostState, LabState, new_boot_id};

/// Boots these hosts, which are off: cgroups, a new boot id, namespaces, network. The bridge must be there.
pub(crate) fn power_on(lab: &Lab, state: &mut LabState, binary: &Binary, numbers: &[u16]) -> Result<()> {
    let cgroups = lab.cgroups()?;
    let count = u16::try_from(state.hosts.len()).expect("a lab has at most 250 hosts");
    let mut holders = Vec::with_capacity(numbers.len());
    for number in numbers {
        let host = find_host(state, *number)?;
        (host.boot_id, host.daemon) = (new_boot_id()?, None);
        cgroups.create(&exec_cgroup(*number))?;
        write_files(&lab.host_dir(*number), &host.name(), &host.boot_id, count)?;
        holders.push(NewHolder::start(lab, &binary.exe, Held::Host(*number))?);
    }
    let mut links = Vec::with_capacity(numbers.len());
    for (number, holder) in numbers.iter().zip(&mut holders) {
        let id = holder.wait_ready()?;
        find_host(state, *number)?.holder = Some(id);
        links.push((*number, id));
    }
    state.save(&lab.state_file())?;
    holders.into_iter().try_for_each(NewHolder::keep)?;
    match state.bridge {
        Some(bridge) => network::connect(bridge, &links),
        None => Ok(()),
    }
}

/// Cuts the power of these hosts; it does not matter what still runs there.
pub(crate) fn power_off(lab: &Lab, state: &mut LabState, numbers: &[u16]) -> Result<()> {
    let cgroups = lab.cgroups()?;
    for number in numbers {
        find_host(state, *number)?;
    }
    // First nothing runs any more, then nothing is heard any more, then nothing is there any more: a process killed
    // while connected would tell its peers so.
    for number in numbers {
        cgroups.freeze(&host_cgroup(*number));
    }
    // A link that cannot be cut is told at the end: nothing may stay frozen.
    let bridge = state.bridge.filter(|bridge| bridge.is_alive());
    let cut =
        numbers.iter().try_for_each(|number| bridge.map_or(Ok(()), |bridge| network::disconnect(bridge, *number)));
    for number in numbers {
        cgroups.kill(&host_cgroup(*number))?;
        cgroups.remove(&host_cgroup(*number))?;
        let host = find_host(state, *number)?;
        (host.holder, host.daemon) = (None, None);
    }
    state.save(&lab.state_file())?;
    cut
}

fn write_files(dir: &HostDir, name: &str, boot_id: &str, host_count: u16) -> Result<()> {
    for (folder, mode) in [(dir.data(), 0o700), (dir.etc(), 0o755)] {
        DirBuilder::new().recursive(true).mode(mode).create(&folder).context("create", &folder)?;
    }
    let write = |file: &str, text: &str| {
        let path = dir.etc().join(file);
        fs::write(&path, text).context("write", Path::new(&path))
    };
    write("hosts", &network::hosts_file(host_count))?;
    write("hostname", &format!("{name}\n"))?;
    write("resolv.conf", "# A lab has no name server; /etc/hosts knows its hosts.\n")?;
    write("boot_id", &format!("{boot_id}\n"))
}

/// `skep lab start`: boots what is off, starts the daemons that do not run, waits until they are ready.
pub(crate) fn start(lab: &Lab, hosts: &HostNumbers) -> Result<()> {
    let (_lock, mut state) = lab.lock_and_load()?;
    let binary = Binary::of(lab)?;
    let (mut off, mut idle) = (Vec::new(), Vec::new());
    for number in hosts.of(state.hosts.len()) {
        let host = find_host(&mut state, number)?;
        if !host.is_on() {
            off.push(number);
        }
        if host.live_daemon().is_none() {
            idle.push(number);
        } else if *hosts != HostNumbers::All {
            eprintln!("host {number}: its daemon is running already");
        }
    }
    ensure_bridge(lab, &mut state, &binary)?;
    // Whatever a host left that lost its holder otherwise than by `power-off`.
    power_off(lab, &mut state, &off)?;
    if let Err(error) = power_on(lab, &mut state, &binary, &off) {
        power_off(lab, &mut state, &off)?;
        return Err(error);
    }
    daemon::start(lab, &mut state, &binary, &idle)?;
    idle.iter().for_each(|number| eprintln!("host {number} is up"));
    Ok(())
}

/// Makes the bridge, unless it is there, and connects the hosts that are on with it.
pub(crate) fn ensure_bridge(lab: &Lab, state: &mut LabState, binary: &Binary) -> Result<ProcessId> {
    if let Some(bridge) = state.bridge.filter(|bridge| bridge.is_alive()) {
        return Ok(bridge);
    }
    lab.cgroups()?.create(crate::holder::BRIDGE_CGROUP)?;
    let mut holder = NewHolder::start(lab, &binary.exe, Held::Bridge)?;
    let bridge = holder.wait_ready()?;
    state.bridge = Some(bridge);
    state.save(&lab.state_file())?;
    holder.keep()?;
    network::make_bridge(bridge)?;
    let on: Vec<_> = state.hosts.iter().filter(|h| h.is_on()).filter_map(|h| Some((h.number, h.holder?))).collect();
    network::connect(bridge, &on)?;
    if !state.cuts.is_empty() {
        network::set_cuts(bridge, &state.cuts)?;
    }
    Ok(bridge)
}

/// `skep lab stop`
pub(crate) fn stop(lab: &Lab, hosts: &HostNumbers) -> Result<()> {
    let (_lock, mut state) = lab.lock_and_load()?;
    let numbers = meant(&state, hosts, |host| host.live_daemon().is_some());
    daemon::stop(lab, &mut state, &numbers)
}

/// `skep lab kill`
pub(crate) fn kill(lab: &Lab, hosts: &HostNumbers) -> Result<()> {
    let (_lock, mut state) = lab.lock_and_load()?;
    let numbers = meant(&state, hosts, |host| host.live_daemon().is_some());
    daemon::kill(lab, &mut state, &numbers)
}

/// `skep lab power-off`
pub(crate) fn power_off_command(lab: &Lab, hosts: &HostNumbers) -> Result<()> {
    let (_lock, mut state) = lab.lock_and_load()?;
    let numbers = meant(&state, hosts, HostState::is_on);
    power_off(lab, &mut state, &numbers)
}

/// `all` means all that it makes sense for; a host named by its number is meant in any case.
fn meant(state: &LabState, hosts: &HostNumbers, makes_sense: impl Fn(&HostState) -> bool) -> Vec<u16> {
    match hosts {
        HostNumbers::These(numbers) => numbers.clone(),
        HostNumbers::All => state.hosts.iter().filter(|host| makes_sense(host)).map(|host| host.number).collect(),
    }
}
