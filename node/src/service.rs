//! The daemon's own API on its unix socket (`daemon.proto`).

mod daemon;
mod images;
mod progress;

pub(crate) use daemon::DaemonService;
pub(crate) use images::ImagesService;
