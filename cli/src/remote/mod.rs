//! Contexts: which managers a command talks to, and as whom. A context is one file (`bundle.rs`) in the user's configuration
//! directory (`store.rs`); `choice.rs` decides which one a command uses, `hosts.rs` reads addresses.
//!
//! Private keys lie here: files are made with mode 0600, and those that others can read are not used.

pub(crate) mod bundle;
pub(crate) mod choice;
pub(crate) mod hosts;
pub(crate) mod store;
