//! skep-lab
