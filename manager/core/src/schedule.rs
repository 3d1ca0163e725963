//! Which node runs which task. Filters say who can, spread and counts say who should; a task that nobody can take is
//! told why. Called by the scheduler's loop on the leader; pure.

mod filter;
mod ledger;
pub mod matching;
mod pass;
mod spread;

pub use filter::{Needs, Reason, Refusals, parsed_constraints};
pub use ledger::{Ledger, Load, reserved_by};
pub use pass::plan;

#[cfg(test)]
mod pass_test;
