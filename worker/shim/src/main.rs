//! The resident monitor of one container.
fn main() {}
