//! Layers: from a compressed tar of unknown origin to a directory that overlayfs can stack. Used by the pull engine,
//! archives and imports, always on blocking threads. Never writes outside the directory it is given.

pub mod decode;
pub mod path;
pub mod tarstream;
pub mod tree;
pub mod unpack;

#[cfg(test)]
mod unpack_test;
