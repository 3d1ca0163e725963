//! The container's cgroups: made and limited by its monitor, joined by its first process itself.
//!
//! Used by the container's creation. Which folders, files and values there are is the plan's; here v1 and v2 are the same.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use skep_shim::config::ShimConfig;
use skep_shim::plan::Plan;

use super::{Failure, at};
use crate::device_filter;

/// Makes the groups and sets what is asked. Returns the folder in which a process can be begun (cgroup v2).
pub(super) fn make(config: &ShimConfig) -> Result<Option<OwnedFd>, Failure> {
    for folder in &config.cgroups {
        // Its parents are there, but for one that somebody has removed.
        match fs::create_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
        .map_err(at(format!("cannot make the cgroup {folder}")))?;
    }
    let mut open: Option<(&str, File)> = None;
    for setting in &config.plan.settings {
        let step = || at(format!("cannot write {:?} to {}", setting.value, setting.file));
        // A file may take many values, one write(2) each.
        let mut file = match open.take() {
            Some((path, file)) if path == setting.file => file,
            _ => OpenOptions::new().write(true).open(&setting.file).map_err(step())?,
        };
        file.write_all(setting.value.as_bytes()).map_err(step())?;
        open = Some((&setting.file, file));
    }
    if config.plan.unified.is_empty() {
        return Ok(None);
    }
    let group = File::open(&config.plan.unified).map_err(at(format!("cannot open {}", config.plan.unified)))?;
    if !config.plan.device_filter.is_empty() {
        device_filter::attach(&group, &config.plan.device_filter)
            .map_err(at("cannot restrict the container's devices"))?;
    }
    Ok(Some(group.into()))
}

/// Joins the groups, as the process with one thread that this is, and takes the container's OOM score. `/proc` is still
/// the host's.
pub(super) fn join(plan: &Plan, in_group: bool) -> Result<(), Failure> {
    for file in plan.join.iter().filter(|_| !in_group) {
        fs::write(file, "0").map_err(at(format!("cannot join the cgroup by {file}")))?;
    }
    fs::write("/proc/self/oom_score_adj", plan.oom_score_adj.to_string()).map_err(at("cannot set the OOM score"))
}
