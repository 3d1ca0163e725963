//! The creator's program, kept for as long as monitors may need it: they start it by path, maybe after the agent that
//! named it was killed, or after an upgrade has put another program in its place. `Runtime` calls this at start.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::error::RuntimeError;

const PREFIX: &str = "skep-creator-";

/// Gives `program` (which may be a `/proc/<pid>/exe`) a name in `dir` and returns it: a hard link, or a copy where that
/// is not possible. The names of earlier programs go. On a full disk it is `program` itself, as containers that run
/// already must be found again.
pub(crate) fn pin(program: &Path, dir: &Path) -> Result<PathBuf, RuntimeError> {
    let meta = fs::metadata(program).map_err(RuntimeError::io("read", program))?;
    let name = format!("{PREFIX}{:x}-{:x}-{:x}-{:x}", meta.dev(), meta.ino(), meta.mtime_nsec(), meta.len());
    let path = dir.join(&name);
    // First: it makes room.
    remove_others(dir, &name).map_err(RuntimeError::io("clear", dir))?;
    if fs::metadata(&path).is_ok_and(|there| there.len() == meta.len()) {
        return Ok(path);
    }
    let temporary = dir.join(format!("{PREFIX}new"));
    let placed = link(program, &meta, &temporary)
        .or_else(|_| copy(program, &temporary))
        .and_then(|()| fs::rename(&temporary, &path));
    match placed {
        Ok(()) => Ok(path),
        Err(error) => {
            warn!(path = %path.display(), %error, "cannot keep the container creator: starts fail while the agent is killed");
            // A part of a copy, if anything.
            let _ = fs::remove_file(&temporary);
            Ok(program.to_owned())
        }
    }
}

/// Fails where the file has no name any more, or one in another file system.
fn link(program: &Path, meta: &Metadata, to: &Path) -> io::Result<()> {
    // A link to the magic link of /proc would be one in /proc.
    fs::hard_link(fs::canonicalize(program)?, to)?;
    let linked = fs::metadata(to)?;
    if (linked.dev(), linked.ino()) == (meta.dev(), meta.ino()) {
        return Ok(());
    }
    fs::remove_file(to)?;
    Err(io::Error::other("another program lies there now"))
}

fn copy(program: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(program)?;
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o755).open(to)?;
    io::copy(&mut from, &mut file)?;
    file.sync_all()
}

/// Makes the folder, too.
fn remove_others(dir: &Path, name: &str) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let other = entry.file_name();
        if other.to_string_lossy().starts_with(PREFIX) && other != name {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    #[test]
    fn the_program_outlives_its_name_and_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        let original = dir.path().join("sleep");
        fs::copy("/bin/sleep", &original).unwrap();
        let mut child = Command::new(&original).arg("100").spawn().unwrap();
        let exe = PathBuf::from(format!("/proc/{}/exe", child.id()));
        let linked = pin(&exe, &bin).unwrap();
        assert_eq!(fs::metadata(&linked).unwrap().ino(), fs::metadata(&original).unwrap().ino(), "no copy is made");
        assert_eq!(pin(&exe, &bin).unwrap(), linked);

        fs::remove_file(&original).unwrap();
        fs::remove_file(&linked).unwrap();
        let copied = pin(&exe, &bin).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Command::new(&copied).arg("0").status().unwrap().success(), "a deleted program is copied");

        let other = pin(Path::new("/bin/true"), &bin).unwrap();
        let names: Vec<PathBuf> = fs::read_dir(&bin).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, [other], "earlier programs go");
    }
}
