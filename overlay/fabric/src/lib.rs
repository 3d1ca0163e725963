//! The fabric device.
