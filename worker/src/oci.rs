//! The real executor: images, sandboxes and containers of this host.

mod files;
mod images;
mod layout;
mod peers;
mod progress;
