//! What the fuzz targets do with their bytes: each function takes whatever bytes and must not panic, nor may what it checks
//! be untrue. Plain Rust: cargo-fuzz calls them by the program `../fuzz.rs`, and `tests/corpus.rs` gives each one
//! its seed corpus in the ordinary test run.

mod api;
mod calls;
mod command_line;
mod identity;
mod images;
mod managers;
mod network;
pub mod seeds;
mod worker;

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also of the folder of its corpus.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($module:ident: $($name:ident)+;)+) => {
        $($(pub use $module::$name;)+)+

        /// All of them.
        pub const TARGETS: &[Target] = &[$($(Target { name: stringify!($name), run: $name },)+)+];
    };
}

targets! {
    api: api_requests constraint placeholders addresses identifiers;
    calls: manager_calls refusals;
    command_line: cli_values cli_format docker_config contexts;
    identity: join_token certificates signing_request image_ticket unlock_key key_files;
    images: image_reference image_manifest image_config image_change image_records layer_tar image_archive registry_answer
        registry_login;
    managers: store_snapshot store_entry raft_message raft_record raft_snapshot raft_keys;
    network: dns wireguard vxlan tap_frame coalesce netlink network_table netd_kept netd_requests probe_answer;
    worker: shim_protocol shim_config secret_files worker_record container_files container_log assignments host_files
        swarm_record seccomp_profile;
}

/// Bytes as text, as far as they are; most parsers take text.
fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or_default()
}

/// The first byte, and the rest.
fn choose(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// Two parts: the first two bytes are the length of the first one.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return (data, &[]) };
    rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()))
}
