//! Builds the monitor a second time, static and small, so that the library can carry it: `skep-shim` is position-bound
//! (a relocated program dirties memory in every process) and needs nothing of the host.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let workspace = manifest.join("../..");
    let shim = workspace.join("worker/shim");
    for watched in [shim.join("src"), shim.join("Cargo.toml"), manifest.join("build.rs")] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let target = env::var("TARGET").expect("cargo sets it");
    let built = build(&workspace, &out.join("shim"), &target);
    std::fs::copy(built, out.join("skep-shim")).expect("the monitor was built");
}

fn build(workspace: &Path, target_dir: &Path, target: &str) -> PathBuf {
    let status = Command::new(env::var_os("CARGO").expect("cargo sets it"))
        .current_dir(workspace)
        .args(["build", "--quiet", "--locked", "--profile", "shim", "-p", "skep-shim", "--bin", "skep-shim"])
        .args(["--target", target, "--target-dir"])
        .arg(target_dir)
        // The outer build's flags are for another kind of program.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the monitor could not be built");
    target_dir.join(target).join("shim/skep-shim")
}
