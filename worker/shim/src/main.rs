//! skep-shim: the resident monitor of one container, the tiny init inside one, and the way into one.
//!
//! `skep-shim <dir>` is started by skep-runtime for each container; `<dir>` is the container's directory. `skep-shim
//! init -- <command>` is what `--init` puts in front of the command, with this file mounted into the container. `skep-shim exec` runs a
//! command inside a running one, and ends with it.
//!
//! One such process lives as long as its container, so it is built small (static, non-PIE, no Rust runtime set-up:
//! hence `no_main`) and holds next to nothing. It must never depend on the agent, never block on a client or on the
//! log's disk, and never exit before `exit.json` is on the disk.
#![cfg_attr(not(test), no_main)]

mod cgroup;
mod clients;
mod create;
mod device_filter;
mod enter;
mod exec;
mod init;
mod log;
mod monitor;
mod program;
mod report;
mod rights;
mod store;
mod sys;
mod tree;

use std::ffi::{CStr, c_char, c_int};

/// Entry point, called by the C runtime.
///
/// # Safety
/// `argv` holds `argc` C strings, as the C runtime passes them.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let mut args = Vec::new();
    for i in 1..usize::try_from(argc).unwrap_or(0) {
        // SAFETY: the C runtime passes `argc` valid strings, which live as long as the process.
        args.push(unsafe { CStr::from_ptr(*argv.add(i)) });
    }
    match args.split_first() {
        Some((first, rest)) if first.to_bytes() == b"init" => init::run(rest),
        Some((first, [])) if first.to_bytes() == b"exec" => exec::run(),
        Some((dir, [])) => monitor::run(dir),
        _ => {
            sys::complain("usage: skep-shim <container directory> | exec | init -- <command>");
            125
        }
    }
}
