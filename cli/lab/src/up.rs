//! `skep lab up`: all or nothing.

use std::fs;
use std::io;
use std::path::Path;

use crate::args::UpArgs;
use crate::cgroup::CgroupTree;
use crate::daemon;
use crate::down;
use crate::error::{Context, LabError, Result};
use crate::interrupt;
use crate::lab::{Binary, Lab, LabLock};
use crate::network;
use crate::power;
use crate::state::{HostState, LabState, Phase, machine_boot_id};
use crate::swarm;

/// Makes the lab; on any failure, Ctrl-C included, takes down what it made.
pub(crate) fn up(lab: &Lab, args: &UpArgs) -> Result<()> {
    if !args.no_swarm && args.managers > args.nodes {
        return Err(LabError::TooManyManagers { managers: args.managers, nodes: args.nodes });
    }
    if lab.dir.starts_with("/run") {
        return Err(LabError::UnderRun(lab.dir.clone()));
    }
    network::check_tools()?;
    // Nothing is made in a directory that is something else's; a lock file there is waited for.
    if !lab.lock_file().exists() {
        refuse_existing(lab)?;
    }
    interrupt::catch().context("catch", "SIGINT")?;
    fs::create_dir_all(&lab.dir).context("create", &lab.dir)?;
    let _lock = LabLock::acquire(lab, true)?;
    // Another `up` may have been at work until now.
    refuse_existing(lab)?;
    let mut state = new_state(lab, args)?;
    let outcome = make(lab, &mut state, args);
    if let Err(error) = outcome {
        eprintln!("taking down what was made");
        down::remove_all(lab, Some(&state), false)?;
        return Err(error);
    }
    Ok(())
}

fn new_state(lab: &Lab, args: &UpArgs) -> Result<LabState> {
    let host = |number| HostState { number, boot_id: String::new(), holder: None, daemon: None };
    let registries =
        args.insecure_registry.iter().flat_map(|registry| ["--insecure-registry".to_owned(), registry.clone()]);
    Ok(LabState {
        name: lab.name.clone(),
        phase: Phase::Starting,
        machine_boot_id: machine_boot_id()?,
        bridge: None,
        hosts: (1..=args.nodes).map(host).collect(),
        daemon_args: registries.chain(args.daemon_arg.iter().cloned()).collect(),
        cuts: Default::default(),
    })
}

fn make(lab: &Lab, state: &mut LabState, args: &UpArgs) -> Result<()> {
    let all: Vec<u16> = (1..=args.nodes).collect();
    state.save(&lab.state_file())?;
    let binary = Binary::of(lab)?;
    power::ensure_bridge(lab, state, &binary)?;
    power::power_on(lab, state, &binary, &all)?;
    interrupt::check()?;
    daemon::start(lab, state, &binary, &all)?;
    eprintln!("{} host{} up", all.len(), if all.len() == 1 { " is" } else { "s are" });
    if !args.no_swarm {
        swarm::form(lab, state, &binary, args.managers)?;
    }
    interrupt::check()?;
    state.phase = Phase::Up;
    state.save(&lab.state_file())?;
    eprintln!("lab {:?} is ready; try: skep lab{} exec 1 -- skep node ls", lab.name, lab.flags());
    Ok(())
}

/// Fails if there is a lab of this name, or remains of one, or something else in its directory.
fn refuse_existing(lab: &Lab) -> Result<()> {
    let remains = |what| Err(LabError::Remains { name: lab.name.clone(), what });
    match LabState::load(&lab.state_file())? {
        Some(state) if state.name != lab.name => return Err(LabError::ForeignDirectory(lab.dir.clone())),
        Some(state) => match state.phase {
            Phase::Starting => return remains("was left half made"),
            Phase::Kept => return remains("was taken down, but its data was kept"),
            Phase::Up if state.bridge.is_none() => return remains("was up before this machine was rebooted"),
            Phase::Up => return Err(LabError::AlreadyUp { name: lab.name.clone(), dir: lab.dir.clone() }),
        },
        None => refuse_foreign_files(&lab.dir, lab)?,
    }
    refuse_foreign_processes(lab, &lab.cgroups()?)
}

fn refuse_foreign_files(dir: &Path, lab: &Lab) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("read", dir),
    };
    for entry in entries {
        if entry.context("read", dir)?.path() != lab.lock_file() {
            return Err(LabError::ForeignDirectory(dir.to_owned()));
        }
    }
    Ok(())
}

/// A lab's name is its cgroup's, so a lab in another directory must not have the same.
fn refuse_foreign_processes(lab: &Lab, cgroups: &CgroupTree) -> Result<()> {
    if let Some(dir) = down::dir_of_running(lab, cgroups) {
        return Err(LabError::Elsewhere { name: lab.name.clone(), dir });
    }
    if !cgroups.pids("").is_empty() {
        return Err(LabError::Remains { name: lab.name.clone(), what: "has left processes behind" });
    }
    Ok(())
}
