//! skep-manager
