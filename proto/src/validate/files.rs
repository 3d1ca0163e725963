//! Secrets and configs: their specs and sizes, and the files by which containers have them.

use super::{Invalid, labels, name};
use crate::v1::{ConfigSpec, ContainerSpec, FileTarget, SecretSpec};

/// Where containers have secrets, unless another place is asked for. What lies below can be swapped while they run.
pub const SECRETS_DIR: &str = "/run/secrets";
/// The most bytes of a secret: Swarm's limit, and what a transaction of the managers can hold.
pub const MAX_SECRET_BYTES: usize = 500 * 1024;
/// The most bytes of a config.
pub const MAX_CONFIG_BYTES: usize = 1000 * 1024;
/// Mode of a file that asks for none.
pub const DEFAULT_MODE: u32 = 0o444;
/// Longest path (`PATH_MAX` of limits.h, less the final NUL).
const MAX_PATH: usize = 4095;
/// Longest name in a path (`NAME_MAX` of limits.h).
const MAX_COMPONENT: usize = 255;

/// A secret's spec.
pub fn secret_spec(spec: &SecretSpec) -> Result<(), Invalid> {
    name("name", &spec.name)?;
    labels("labels", &spec.labels)
}

/// A config's spec.
pub fn config_spec(spec: &ConfigSpec) -> Result<(), Invalid> {
    name("name", &spec.name)?;
    labels("labels", &spec.labels)
}

/// Whether a secret may have so many bytes.
pub fn secret_size(bytes: usize) -> Result<(), Invalid> {
    match bytes {
        0 => Err(Invalid::new("data", "a secret must have at least one byte")),
        1..=MAX_SECRET_BYTES => Ok(()),
        _ => Err(too_large("secret", bytes, MAX_SECRET_BYTES)),
    }
}

/// Whether a config may have so many bytes.
pub fn config_size(bytes: usize) -> Result<(), Invalid> {
    if bytes <= MAX_CONFIG_BYTES { Ok(()) } else { Err(too_large("config", bytes, MAX_CONFIG_BYTES)) }
}

fn too_large(kind: &str, bytes: usize, limit: usize) -> Invalid {
    Invalid::new("data", format!("a {kind} has at most {limit} bytes ({} KiB), not {bytes}", limit / 1024))
}

/// The file of a secret in the container, absolute and without empty or `.` components.
pub fn secret_path(path: &str) -> String {
    absolute(SECRETS_DIR, path)
}

/// The file of a config in the container.
pub fn config_path(path: &str) -> String {
    absolute("", path)
}

fn absolute(base: &str, path: &str) -> String {
    let base = if path.starts_with('/') { "" } else { base };
    let whole = [base.split('/'), path.split('/')].into_iter().flatten();
    whole.filter(|part| !part.is_empty() && *part != ".").fold(String::new(), |path, part| path + "/" + part)
}

/// Whether an absolute path is one of a file whose data can be swapped in a running container: below [`SECRETS_DIR`].
pub fn is_secrets_path(path: &str) -> bool {
    path.strip_prefix(SECRETS_DIR).is_some_and(|rest| rest.starts_with('/'))
}

/// One file: what it is called in messages, and where it lies.
struct File {
    title: String,
    field: String,
    path: String,
}

/// The secrets and configs of a container: each with a name, at a place of its own.
pub fn files(spec: &ContainerSpec) -> Result<(), Invalid> {
    let secrets = spec.secrets.iter().enumerate().map(|(index, one)| {
        file("secret", index, (&one.name, &one.secret_id, one.pinned && one.version == 0), one.target.as_ref())
    });
    let configs = spec.configs.iter().enumerate().map(|(index, one)| {
        file("config", index, (&one.name, &one.config_id, one.pinned && one.version == 0), one.target.as_ref())
    });
    let files: Vec<File> = secrets.chain(configs).collect::<Result<_, _>>()?;
    for (index, file) in files.iter().enumerate() {
        for other in &files[..index] {
            apart(&file.field, (&other.title, &other.path), (&file.title, &file.path))?;
        }
        for mount in &spec.mounts {
            let (title, target) = (format!("the mount of {}", mount.target), config_path(&mount.target));
            if target == file.path {
                apart(&file.field, (&title, &target), (&file.title, &file.path))?;
            }
        }
    }
    Ok(())
}

/// Whether neither lies where the other is, or would have to be a directory.
fn apart(field: &str, a: (&str, &str), b: (&str, &str)) -> Result<(), Invalid> {
    if a.1 == b.1 {
        return Err(Invalid::new(field, format!("{} and {} have the same target {}", a.0, b.0, a.1)));
    }
    let lies_below = |below: &str, above: &str| below.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
    for (above, below) in [(a, b), (b, a)] {
        if lies_below(below.1, above.1) {
            let message = format!("{} is a file at {}, so {} cannot be at {}", above.0, above.1, below.0, below.1);
            return Err(Invalid::new(field, message));
        }
    }
    Ok(())
}

fn file(
    kind: &str,
    index: usize,
    (name, id, unversioned): (&str, &[u8], bool),
    target: Option<&FileTarget>,
) -> Result<File, Invalid> {
    let field = format!("{kind}s[{index}]");
    if name.is_empty() && id.is_empty() {
        return Err(Invalid::new(field, format!("the name of a {kind} is needed")));
    }
    if unversioned {
        return Err(Invalid::new(field, "versions are numbered from 1"));
    }
    let given = target.map_or("", |target| target.path.as_str());
    let given = if given.is_empty() { name } else { given };
    place(given).map_err(|message| Invalid::new(format!("{field}.target.path"), message))?;
    if let Some(target) = target {
        for (which, id) in [("uid", &target.uid), ("gid", &target.gid)] {
            // The highest number means "no change" to chown(2).
            if !id.is_empty() && !id.parse::<u32>().is_ok_and(|id| id != u32::MAX) {
                let message =
                    format!("{id:?} is not the number of a {}", if which == "uid" { "user" } else { "group" });
                return Err(Invalid::new(format!("{field}.target.{which}"), message));
            }
        }
        if target.mode > 0o7777 {
            let message = format!("{:o} (octal) is no file mode: at most 7777", target.mode);
            return Err(Invalid::new(format!("{field}.target.mode"), message));
        }
    }
    let path = if kind == "secret" { secret_path(given) } else { config_path(given) };
    Ok(File { title: format!("{kind} {name}"), field, path })
}

/// Whether a path can be a file's.
fn place(path: &str) -> Result<(), String> {
    let parts = || path.split('/');
    if path.is_empty() || path.ends_with('/') || parts().next_back() == Some(".") {
        return Err(format!("{path:?} is not the path of a file"));
    }
    if path.contains('\0') || path.len() > MAX_PATH || parts().any(|part| part.len() > MAX_COMPONENT) {
        return Err("is too long, or contains NUL".to_owned());
    }
    // Names with two dots in front hold the versions of what can be swapped.
    if parts().any(|part| part.starts_with("..")) {
        return Err(format!("{path:?} must not have a part that begins with \"..\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::v1::{ConfigRef, MountSpec, SecretRef};
    use proptest::prelude::*;

    fn at(path: &str) -> Option<FileTarget> {
        Some(FileTarget { path: path.to_owned(), ..FileTarget::default() })
    }

    fn secret(name: &str, path: &str) -> SecretRef {
        SecretRef { name: name.to_owned(), target: at(path), ..SecretRef::default() }
    }

    fn config(name: &str, path: &str) -> ConfigRef {
        ConfigRef { name: name.to_owned(), target: at(path), ..ConfigRef::default() }
    }

    fn refusal(secrets: Vec<SecretRef>, configs: Vec<ConfigRef>) -> String {
        let spec = ContainerSpec { secrets, configs, ..ContainerSpec::default() };
        files(&spec).unwrap_err().to_string()
    }

    #[test]
    fn sizes() {
        assert!(secret_size(1).is_ok() && secret_size(512_000).is_ok());
        assert!(config_size(0).is_ok() && config_size(1_024_000).is_ok());
        let text = secret_size(512_001).unwrap_err().to_string();
        assert_eq!(text, "data: a secret has at most 512000 bytes (500 KiB), not 512001");
        assert!(secret_size(0).is_err() && config_size(1_024_001).is_err());
    }

    #[test]
    fn paths() {
        assert_eq!(secret_path("db"), "/run/secrets/db");
        assert_eq!(secret_path("a/./b//c"), "/run/secrets/a/b/c");
        assert_eq!(secret_path("/etc/db"), "/etc/db");
        assert_eq!(config_path("nginx.conf"), "/nginx.conf");
        assert!(is_secrets_path("/run/secrets/a/b") && !is_secrets_path("/run/secretsx") && !is_secrets_path("/etc/a"));
    }

    #[test]
    fn targets_are_files_of_their_own() {
        for good in ["", "a", "a/b", "/etc/a", "a.b", ".a"] {
            let spec = ContainerSpec { secrets: vec![secret("db", good)], ..ContainerSpec::default() };
            assert_eq!(files(&spec), Ok(()), "{good:?}");
        }
        for bad in ["/", "a/", "../a", "a/../b", "/..data", "a/.", "a\0b", &"x".repeat(256)] {
            assert!(refusal(vec![secret("db", bad)], vec![]).starts_with("secrets[0].target.path: "), "{bad:?}");
        }
        let same = refusal(vec![secret("a", ""), secret("b", "/run/secrets//a")], vec![]);
        assert_eq!(same, "secrets[1]: secret a and secret b have the same target /run/secrets/a");
        let across = refusal(vec![secret("a", "/etc/x")], vec![config("b", "etc/x")]);
        assert_eq!(across, "configs[0]: secret a and config b have the same target /etc/x");
        for configs in [[config("a", "/x"), config("b", "/x/y")], [config("b", "/x/y"), config("a", "/x")]] {
            let above = refusal(vec![], configs.into());
            assert_eq!(above, "configs[1]: config a is a file at /x, so config b cannot be at /x/y");
        }
        assert!(refusal(vec![secret("a", "")], vec![config("b", "/run/secrets")]).contains("config b is a file"));
        let mount = MountSpec { target: "/run/secrets/a/".to_owned(), ..MountSpec::default() };
        let spec = ContainerSpec { secrets: vec![secret("a", "")], mounts: vec![mount], ..ContainerSpec::default() };
        assert!(files(&spec).unwrap_err().message.contains("have the same target /run/secrets/a"));
    }

    #[test]
    fn names_owners_and_modes() {
        let refused = |change: fn(&mut SecretRef)| {
            let mut one = secret("db", "a");
            change(&mut one);
            refusal(vec![one], vec![])
        };
        assert!(refused(|one| one.name.clear()).contains("the name of a secret is needed"));
        assert!(refused(|one| one.pinned = true).contains("versions are numbered from 1"));
        assert!(refused(|one| one.target.as_mut().unwrap().uid = "root".into()).starts_with("secrets[0].target.uid: "));
        assert!(refused(|one| one.target.as_mut().unwrap().gid = "4294967295".into()).contains("is not the number"));
        assert!(refused(|one| one.target.as_mut().unwrap().mode = 0o10000).contains("10000 (octal) is no file mode"));
    }

    proptest! {
        #[test]
        fn any_path_is_judged_and_none_leaves_its_place(path: String) {
            let spec = ContainerSpec { secrets: vec![secret("db", &path)], ..ContainerSpec::default() };
            if files(&spec).is_ok() {
                let whole = secret_path(if path.is_empty() { "db" } else { &path });
                prop_assert!(whole.starts_with('/') && !whole.contains("//") && !whole.contains("/../"), "{whole}");
                prop_assert!(path.starts_with('/') || is_secrets_path(&whole), "{whole}");
            }
        }
    }
}
