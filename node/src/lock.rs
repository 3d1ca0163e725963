//! One daemon on one data directory. The lock is the kernel's: it goes with the process, however that ends.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("cannot use data directory {}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("data directory {} is in use by another skep daemon (pid {holder}): stop it, or use another --data-dir", .path.display())]
    InUse { path: PathBuf, holder: String },
}

/// Held while the daemon runs.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl DirLock {
    /// Takes `<dir>/lock`; makes the directory where it is missing. Nobody but its owner may enter it from then on: files of
    /// containers lie below, set-user-id programs among them.
    pub(crate) fn take(dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: dir.to_owned(), source };
        make_private(dir).map_err(failed)?;
        let path = dir.join("lock");
        let file = File::options().create(true).read(true).write(true).truncate(false).open(&path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                // The pid is for people only: a full disk must not keep the daemon from starting.
                let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
                Ok(Self(lock))
            }
            Err((_, nix::Error::EWOULDBLOCK)) => {
                let holder = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
                Err(LockError::InUse { path: dir.to_owned(), holder })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // One that an administrator made, or systemd, has another.
    if fs::metadata(dir)?.permissions().mode() & 0o7777 == 0o700 {
        return Ok(());
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_second_taker_hears_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirLock::take(dir.path()).unwrap();
        let refused = DirLock::take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(held);
        DirLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_that_was_open_to_others_is_closed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("skep");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        DirLock::take(&open).unwrap();
        assert_eq!(fs::metadata(&open).unwrap().permissions().mode() & 0o7777, 0o700);
    }
}
