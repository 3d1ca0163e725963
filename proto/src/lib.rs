//! What goes over the wire and onto disk: the API manual (`v1/*.proto`), its generated Rust, typed ids, task states,
//! units, and the validation of specs. The only crate that every other one may depend on; it never does I/O.

pub mod access;
pub mod cidr;
pub mod constraint;
pub mod id;
mod redact;
pub mod state;
pub mod template;
pub mod time;
pub mod validate;

/// Code generated from `v1/*.proto`; `tests/generated.rs` keeps it in step.
#[allow(clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications, missing_docs)]
pub mod v1 {
    include!("gen/skep.v1.rs");
}
