//! skep-worker
