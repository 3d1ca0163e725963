//! Pauses between tries of what failed for a reason that may pass, and which reasons those are.

use std::io;
use std::time::Duration;

/// The first pause; each further one is twice as long, up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(500);
/// Somebody who has just freed a port or a disk should not have to wait long.
const LONGEST: Duration = Duration::from_secs(10);

/// Growing pauses.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// How long to wait before the next try.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST);
        pause
    }

    /// It worked: the next failure begins anew.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Whether a failure may go away without anybody touching this node's files: a taken port, a full disk, a network that
/// is not there yet. Damaged and missing files do not mend themselves.
pub(crate) fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(kind_may_pass)
            || cause.downcast_ref::<tonic::Status>().is_some_and(status_may_pass)
    }) || is_disk_full(error)
}

/// An error and its causes in one sentence. A status says its message only: its code is for programs.
pub(crate) fn words(error: &anyhow::Error) -> String {
    let word = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<tonic::Status>() {
        Some(status) => status.message().to_owned(),
        None => cause.to_string(),
    };
    error.chain().map(word).collect::<Vec<_>>().join(": ")
}

/// Whether the disk is full. Some libraries hand on no more of the system's error than its words, and a manager does not
/// try where there is too little space.
pub(crate) fn is_disk_full(error: &anyhow::Error) -> bool {
    skep_manager::is_disk_full(error)
        || error.chain().any(|cause| match cause.downcast_ref::<io::Error>() {
            Some(error) => matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
            None => cause.to_string().contains(NO_SPACE),
        })
}

/// strerror(ENOSPC).
const NO_SPACE: &str = "No space left on device";

fn kind_may_pass(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let exhausted = [nix::libc::EMFILE, nix::libc::ENFILE, nix::libc::ENOBUFS];
    matches!(
        error.kind(),
        Kind::AddrInUse
            | Kind::AddrNotAvailable
            | Kind::ConnectionAborted
            | Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::HostUnreachable
            | Kind::NetworkDown
            | Kind::NetworkUnreachable
            | Kind::OutOfMemory
            | Kind::QuotaExceeded
            | Kind::StorageFull
            | Kind::TimedOut
            | Kind::WouldBlock
    ) || error.raw_os_error().is_some_and(|code| exhausted.contains(&code))
}

/// A manager that is there but cannot answer now, as opposed to one that says no.
pub(crate) fn status_may_pass(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Cancelled
            | Code::Unknown
            | Code::ResourceExhausted
            | Code::Internal
    )
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause()).collect();
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!((pauses[0], pauses[7]), (FIRST, LONGEST));
        backoff.reset();
        assert_eq!(backoff.pause(), FIRST);
    }

    #[test]
    fn a_taken_port_and_a_full_disk_pass_and_a_damaged_file_does_not() {
        let wrapped =
            |kind: io::ErrorKind| Err::<(), _>(io::Error::from(kind)).context("cannot start").expect_err("it");
        assert!(may_pass(&wrapped(io::ErrorKind::AddrInUse)));
        assert!(may_pass(&wrapped(io::ErrorKind::StorageFull)));
        assert!(!may_pass(&wrapped(io::ErrorKind::InvalidData)));
        assert!(!may_pass(&wrapped(io::ErrorKind::NotFound)));
        let full = anyhow::Error::from(io::Error::from_raw_os_error(nix::libc::ENOSPC));
        assert!(is_disk_full(&full) && may_pass(&full));
        // A manager's files that are not opened at all: nothing of the system's is in this one.
        let (dir, free_bytes, needed_bytes) = ("/data".into(), 1, 2);
        let unopened = skep_raft::StoreError::DiskFull { dir, free_bytes, needed_bytes };
        let unopened = anyhow::Error::new(skep_raft::StartError::from(unopened)).context("cannot start Raft");
        assert!(is_disk_full(&unopened) && may_pass(&unopened));
        let hidden = anyhow::anyhow!("IO error: No space left on device (os error 28)").context("cannot open");
        assert!(is_disk_full(&hidden) && may_pass(&hidden));
    }

    #[test]
    fn a_status_is_told_once_and_without_its_code() {
        let refusal = anyhow::Error::new(tonic::Status::failed_precondition("the address is taken"));
        let error = refusal.context("manager a:1 does not let this node in");
        assert_eq!(words(&error), "manager a:1 does not let this node in: the address is taken");
    }

    #[test]
    fn a_manager_that_says_no_is_not_asked_again() {
        assert!(may_pass(&tonic::Status::unavailable("no leader").into()));
        assert!(!may_pass(&tonic::Status::permission_denied("wrong token").into()));
    }
}
