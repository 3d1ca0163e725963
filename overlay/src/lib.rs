//! skep-overlay
