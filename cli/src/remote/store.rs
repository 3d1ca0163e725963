//! The contexts of this user, on disk: `contexts/NAME.json` (a bundle, mode 0600) and `current` (a name), below
//! `$XDG_CONFIG_HOME/skep` or `~/.config/skep`. Files are replaced whole, never written in place.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use skep_identity::ClientCredentials;
use skep_proto::validate;

use super::bundle::{self, Bundle, MAX_BYTES};
use super::choice::DEFAULT;
use crate::failure::Failure;

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Store(PathBuf);

impl Store {
    /// Where this user's are.
    pub(crate) fn of_user() -> Result<Self, Failure> {
        let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
        let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
        let config = config.ok_or_else(|| {
            Failure::Usage("there is no directory for contexts: set HOME or XDG_CONFIG_HOME".to_owned())
        })?;
        Ok(Self(config.join("skep")))
    }

    #[cfg(test)]
    pub(crate) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join("contexts").join(format!("{name}.json"))
    }

    /// Names, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>, Failure> {
        let folder = self.0.join("contexts");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &folder, &error)),
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
            .filter(|name| check_name(name).is_ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// A context. Its file must be the user's alone.
    pub(crate) fn read(&self, name: &str) -> Result<(Bundle, ClientCredentials), Failure> {
        check_name(name)?;
        let path = self.file(name);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(unknown(name)),
            Err(error) => return Err(failed("read", &path, &error)),
        };
        let mode = file.metadata().map_err(|error| failed("look at", &path, &error))?.mode();
        if mode & 0o077 != 0 {
            return Err(Failure::Failed(format!(
                "{0} holds a private key and others may read it: `chmod 600 {0}`, and have the client removed if they did",
                path.display()
            )));
        }
        let mut text = String::new();
        let limited = file.take(MAX_BYTES as u64 + 1).read_to_string(&mut text);
        limited.map_err(|error| failed("read", &path, &error))?;
        bundle::parse(&text).map_err(|error| Failure::Failed(format!("{} is damaged: {error}", path.display())))
    }

    /// Adds a context.
    pub(crate) fn create(&self, name: &str, bundle: &Bundle) -> Result<(), Failure> {
        check_name(name)?;
        let path = self.file(name);
        if path.exists() {
            return Err(Failure::Failed(format!(
                "context {name} exists already: change it with `skep context update {name}`, or remove it with \
                 `skep context rm {name}`"
            )));
        }
        self.replace(&path, bundle.to_text().as_bytes())
    }

    /// Changes a context.
    pub(crate) fn update(&self, name: &str, bundle: &Bundle) -> Result<(), Failure> {
        check_name(name)?;
        let path = self.file(name);
        if !path.exists() {
            return Err(unknown(name));
        }
        self.replace(&path, bundle.to_text().as_bytes())
    }

    /// Removes a context and its key.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Failure> {
        check_name(name)?;
        let path = self.file(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(unknown(name)),
            Err(error) => return Err(failed("remove", &path, &error)),
        }
        if self.current()? == name { self.set_current(DEFAULT) } else { Ok(()) }
    }

    /// The context that commands use where nothing else is said.
    pub(crate) fn current(&self) -> Result<String, Failure> {
        let path = self.0.join("current");
        match fs::read_to_string(&path) {
            Ok(name) if name.trim().is_empty() => Ok(DEFAULT.to_owned()),
            Ok(name) => Ok(name.trim().to_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(DEFAULT.to_owned()),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// Chooses it; it must be there.
    pub(crate) fn set_current(&self, name: &str) -> Result<(), Failure> {
        if name != DEFAULT {
            self.read(name)?;
        }
        self.replace(&self.0.join("current"), format!("{name}\n").as_bytes())
    }

    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), Failure> {
        let folder = path.parent().unwrap_or(&self.0);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| failed("make", folder, &error))?;
        write_new(&path.with_extension("new"), content, true)?;
        fs::rename(path.with_extension("new"), path).map_err(|error| failed("write", path, &error))
    }
}

/// Writes a file that is the user's alone. One that is there is replaced only where `over` says so.
pub(crate) fn write_new(path: &Path, content: &[u8], over: bool) -> Result<(), Failure> {
    let write = || {
        if over && let Err(error) = fs::remove_file(path) {
            // A file of an earlier try may have another mode.
            if error.kind() != ErrorKind::NotFound {
                return Err(error);
            }
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|error| failed("write", path, &error))
}

/// Whether a context may be called so.
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    if name == DEFAULT {
        return Err(Failure::Usage(format!("{DEFAULT} is this host's own daemon: choose another name")));
    }
    Ok(validate::name("context", name)?)
}

fn unknown(name: &str) -> Failure {
    Failure::Failed(format!("no such context: {name}: `skep context ls` lists them"))
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::remote::bundle::tests::sample;

    #[test]
    fn contexts_are_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(&dir.path().join("skep"));
        assert_eq!((store.names().unwrap(), store.current().unwrap()), (vec![], DEFAULT.to_owned()));
        store.create("prod", &sample(&["a:2377"])).unwrap();
        store.create("lab", &sample(&["b:2377"])).unwrap();
        assert_eq!(store.names().unwrap(), ["lab", "prod"]);
        assert_eq!(store.read("prod").unwrap().0.hosts, ["a:2377"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&store.file("prod")), mode(&store.0.join("contexts"))), (0o600, 0o700));
        assert!(store.create("prod", &sample(&["a:2377"])).unwrap_err().to_string().contains("exists already"));
        store.update("prod", &sample(&["c:2377"])).unwrap();
        assert_eq!(store.read("prod").unwrap().0.hosts, ["c:2377"]);
        assert_eq!(mode(&store.file("prod")), 0o600);
        assert!(store.update("gone", &sample(&["c:2377"])).unwrap_err().to_string().contains("no such context"));
        fs::set_permissions(store.file("prod"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(store.read("prod").unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn the_current_one_is_remembered_and_goes_with_its_context() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        assert!(store.set_current("prod").unwrap_err().to_string().contains("no such context"));
        store.create("prod", &sample(&["a:2377"])).unwrap();
        store.set_current("prod").unwrap();
        assert_eq!(store.current().unwrap(), "prod");
        store.remove("prod").unwrap();
        assert_eq!(store.current().unwrap(), DEFAULT);
        assert!(store.remove("prod").is_err());
    }

    #[test]
    fn names_lead_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        for name in ["", ".", "..", "a/b", "../x", "default", "a\nb", ".hidden"] {
            assert!(store.read(name).is_err() && store.create(name, &sample(&["a"])).is_err(), "{name:?}");
            assert!(store.remove(name).is_err(), "{name:?}");
        }
    }
}
