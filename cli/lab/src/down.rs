//! `skep lab down`: leaves nothing, whatever was killed before or never finished.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::cgroup::CgroupTree;
use crate::daemon;
use crate::error::{Context, LabError, Result};
use crate::holder::{BRIDGE_CGROUP, lab_dir_of};
use crate::lab::{DEFAULT_PARENT, Lab, LabLock};
use crate::state::{LabState, Phase};

/// Takes down the lab.
pub(crate) fn down(lab: &Lab, keep_data: bool) -> Result<()> {
    let lock = LabLock::acquire(lab, false)?;
    let state = match LabState::load(&lab.state_file()) {
        Ok(state) => state,
        Err(error @ LabError::BadState { .. }) => {
            eprintln!("{error}; going by the cgroups");
            None
        }
        Err(error) => return Err(error),
    };
    let not_up = || Err(LabError::NotUp { name: lab.name.clone(), dir: lab.dir.clone() });
    match &state {
        Some(state) if state.name != lab.name => return not_up(),
        Some(state) if state.phase == Phase::Kept && keep_data => return not_up(),
        Some(_) => {}
        None => {
            let cgroups = lab.cgroups()?;
            if let Some(dir) = dir_of_running(lab, &cgroups) {
                return Err(LabError::Elsewhere { name: lab.name.clone(), dir });
            }
            // Without any record, a cgroup of that name could be a real cluster's; only labs have a bridge.
            if lock.is_none() && !cgroups.exists(BRIDGE_CGROUP) {
                return not_up();
            }
        }
    }
    remove_all(lab, state.as_ref(), keep_data)?;
    eprintln!("lab {:?} is gone", lab.name);
    Ok(())
}

/// Kills and removes everything. Can be repeated after a failure: the state is removed last.
pub(crate) fn remove_all(lab: &Lab, state: Option<&LabState>, keep_data: bool) -> Result<()> {
    let cgroups = lab.cgroups()?;
    cgroups.kill("")?;
    for process in
        state.iter().flat_map(|s| s.hosts.iter().flat_map(|h| [h.holder, h.daemon]).chain([s.bridge])).flatten()
    {
        // All are in the cgroups, unless somebody has moved them.
        daemon::signal(process, Signal::SIGKILL)?;
    }
    cgroups.remove("")?;
    remove_tree(&lab.bin_dir())?;
    match state {
        Some(state) if keep_data => keep(lab, state.clone()),
        _ => remove_files(lab),
    }
}

fn keep(lab: &Lab, mut state: LabState) -> Result<()> {
    (state.phase, state.bridge) = (Phase::Kept, None);
    for host in &mut state.hosts {
        (host.holder, host.daemon) = (None, None);
    }
    state.save(&lab.state_file())?;
    eprintln!("data and logs are kept in {}", lab.hosts_dir().display());
    Ok(())
}

/// Removes the files of the lab, and its directory unless something else lies there.
fn remove_files(lab: &Lab) -> Result<()> {
    remove_tree(&lab.hosts_dir())?;
    remove_file(&lab.state_file().with_extension("json.new"))?;
    remove_file(&lab.state_file())?;
    remove_file(&lab.lock_file())?;
    remove_if_empty(&lab.dir)?;
    if lab.dir.parent() == Some(Path::new(DEFAULT_PARENT)) {
        remove_if_empty(Path::new(DEFAULT_PARENT))?;
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> Result<()> {
    done_or_missing(fs::remove_dir_all(dir)).context("remove", dir)
}

fn remove_file(path: &Path) -> Result<()> {
    done_or_missing(fs::remove_file(path)).context("remove", path)
}

fn done_or_missing(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn remove_if_empty(dir: &Path) -> Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        done => done.context("remove", dir),
    }
}

/// The directory of a running lab of this name, if that is another one than ours and still holds its state.
pub(crate) fn dir_of_running(lab: &Lab, cgroups: &CgroupTree) -> Option<PathBuf> {
    let mut dirs = cgroups.pids("").into_iter().filter_map(lab_dir_of);
    dirs.find(|dir| *dir != lab.dir && dir.join("lab.json").exists())
}
