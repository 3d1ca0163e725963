//! The daemon's own API on its unix socket (`daemon.proto`).

mod daemon;
mod images;
mod progress;

pub use daemon::DaemonService;
pub use images::ImagesService;
