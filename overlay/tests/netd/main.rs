//! netd on the real kernel: hosts are namespaces on one bridge, driven by hand-made tables over the real API. Takes root;
//! says so and passes without.
#![allow(clippy::unwrap_used)]

mod check;
mod draining;
mod encrypted;
mod firewall;
mod given;
mod kept;
mod lab;
mod ports;
mod published;
mod restart;
mod source;
mod stress;
mod traffic;
mod ways;

/// No test: the netd of a host, in a process of its own.
#[test]
fn netd_process() {
    let Some(dir) = std::env::var_os(lab::NETD).map(std::path::PathBuf::from) else { return };
    let options = skep_overlay::netd::Options {
        socket: dir.join("netd.sock"),
        sandboxes: dir.join("sandboxes"),
        resolv_conf: dir.join("resolv.conf"),
        mesh: lab::choice(),
        dir,
    };
    skep_overlay::netd::run(options).unwrap();
}
