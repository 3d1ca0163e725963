//! skep-tests
