//! Where a container's secrets and configs go, and what is in them: Docker's rules. Pure.
//!
//! Used by the executor's plans and preparations. Errors name objects and places, never what is in them.

use std::sync::Arc;

use skep_proto::id::{ConfigId, SecretId};
use skep_proto::template::{DataError, Facts, Inside, render_data};
use skep_proto::v1::{ContainerSpec, FileTarget};
use skep_proto::validate::files::{
    DEFAULT_MODE, MAX_CONFIG_BYTES, MAX_SECRET_BYTES, SECRETS_DIR, config_path, secret_path,
};
use skep_runtime::{Files, MemoryFile, MemoryPlace, Mount, MountKind, UserNamespace};
use zeroize::Zeroizing;

use super::spec::SpecError;
use crate::payload::{PayloadId, PayloadOwner, Payloads};

/// What of a container's secrets and configs cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PayloadError {
    /// A reference without an id.
    #[error("{0} is not known to the managers")]
    Unresolved(String),
    /// A target.
    #[error("{title} cannot be at {path:?}: a target is a path without parts that begin with \"..\"")]
    Target {
        /// Whose.
        title: String,
        /// Which.
        path: String,
    },
    /// An owner.
    #[error("{title}: {id:?} is not the number of a user or group")]
    Owner {
        /// Of what.
        title: String,
        /// Which.
        id: String,
    },
    /// The managers sent others than were asked for.
    #[error("{0} was not sent")]
    Absent(String),
    /// A placeholder.
    #[error("cannot fill in {title}: {error}")]
    Data {
        /// In what.
        title: String,
        /// What is wrong with it.
        error: DataError,
    },
}

/// One secret or config of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) id: PayloadId,
    /// "secret db"
    title: String,
    /// As the user wrote it, or the object's name.
    target: String,
    /// Absolute path in the container.
    path: String,
    place: MemoryPlace,
    uid: u32,
    gid: u32,
    mode: u32,
}

/// All of a container, in the order of its spec.
pub(super) fn uses(container: &ContainerSpec) -> Result<Vec<Use>, PayloadError> {
    let mut uses: Vec<Use> = Vec::new();
    for one in &container.secrets {
        let title = format!("secret {}", one.name);
        let id = SecretId::from_wire(&one.secret_id).map_err(|_| PayloadError::Unresolved(title.clone()))?;
        let id = PayloadId { owner: PayloadOwner::Secret(id), version: one.version };
        uses.push(use_of(id, title, &one.name, one.target.as_ref(), secret_path, uses.len())?);
    }
    for one in &container.configs {
        let title = format!("config {}", one.name);
        let id = ConfigId::from_wire(&one.config_id).map_err(|_| PayloadError::Unresolved(title.clone()))?;
        let id = PayloadId { owner: PayloadOwner::Config(id), version: one.version };
        uses.push(use_of(id, title, &one.name, one.target.as_ref(), config_path, uses.len())?);
    }
    Ok(uses)
}

fn use_of(
    id: PayloadId,
    title: String,
    name: &str,
    target: Option<&FileTarget>,
    absolute: fn(&str) -> String,
    number: usize,
) -> Result<Use, PayloadError> {
    let empty = FileTarget::default();
    let wanted = target.unwrap_or(&empty);
    let target = if wanted.path.is_empty() { name } else { &wanted.path };
    let path = absolute(target);
    if target.ends_with('/') || path.is_empty() || path.split('/').any(|part| part.starts_with("..")) {
        return Err(PayloadError::Target { title, path: target.to_owned() });
    }
    let number_of = |id: &str| match id {
        "" => Ok(0),
        id => id.parse().map_err(|_| PayloadError::Owner { title: title.clone(), id: id.to_owned() }),
    };
    let (uid, gid) = (number_of(&wanted.uid)?, number_of(&wanted.gid)?);
    let place = match path.strip_prefix(SECRETS_DIR).and_then(|below| below.strip_prefix('/')) {
        Some(below) => MemoryPlace::Swappable(below.to_owned()),
        None => MemoryPlace::Single(u32::try_from(number).unwrap_or(u32::MAX)),
    };
    let mode = if wanted.mode == 0 { DEFAULT_MODE } else { wanted.mode };
    Ok(Use { id, title, target: target.to_owned(), path, place, uid, gid, mode })
}

/// Makes the owners of files those that the host has for them.
pub(super) fn remap(files: &mut Files, users: &UserNamespace) -> Result<(), SpecError> {
    for file in &mut files.files {
        let owner = users.outside(file.uid, file.gid);
        (file.uid, file.gid) = owner.ok_or_else(|| SpecError::Owner(format!("{:?}", file.place)))?;
    }
    Ok(())
}

/// What is mounted for them.
pub(super) fn mounts(uses: &[Use]) -> Vec<Mount> {
    let mount = |target: &str, place: &MemoryPlace| Mount {
        target: target.to_owned(),
        read_only: true,
        kind: MountKind::Memory { path: place.mounted() },
    };
    let mut mounts = Vec::new();
    let mut folder = false;
    for one in uses {
        match &one.place {
            MemoryPlace::Swappable(_) if std::mem::replace(&mut folder, true) => {}
            MemoryPlace::Swappable(_) => mounts.push(mount(SECRETS_DIR, &one.place)),
            MemoryPlace::Single(_) => mounts.push(mount(&one.path, &one.place)),
        }
    }
    mounts
}

/// The files with their contents; `env` is the container's final environment.
pub(super) fn fill(uses: &[Use], held: &Payloads, facts: &Facts, env: &[String]) -> Result<Files, PayloadError> {
    let around = Around { uses, held, env };
    let mut files = Vec::with_capacity(uses.len());
    for one in uses {
        let payload = held.get(&one.id).ok_or_else(|| PayloadError::Absent(one.title.clone()))?;
        let data = if payload.templated {
            let limit = match one.id.owner {
                PayloadOwner::Secret(_) => MAX_SECRET_BYTES,
                PayloadOwner::Config(_) => MAX_CONFIG_BYTES,
            };
            let filled = render_data(&payload.data, facts, &around, limit);
            let filled = filled.map_err(|error| PayloadError::Data { title: one.title.clone(), error })?;
            Arc::new(Zeroizing::new(filled))
        } else {
            Arc::clone(&payload.data)
        };
        files.push(MemoryFile { place: one.place.clone(), uid: one.uid, gid: one.gid, mode: one.mode, data });
    }
    Ok(Files { version: version(uses), files })
}

/// Rotations only raise the versions of what a container has, so their sum names what is in its files.
fn version(uses: &[Use]) -> u64 {
    uses.iter().fold(0, |sum, one| sum.wrapping_add(one.id.version))
}

/// What functions in templates look up.
struct Around<'a> {
    uses: &'a [Use],
    held: &'a Payloads,
    env: &'a [String],
}

impl Around<'_> {
    fn data(&self, target: &str, of: impl Fn(PayloadOwner) -> bool) -> Option<&[u8]> {
        let found = self.uses.iter().find(|one| of(one.id.owner) && one.target == target)?;
        Some(&self.held.get(&found.id)?.data)
    }
}

impl Inside for Around<'_> {
    fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }

    fn secret(&self, target: &str) -> Option<&[u8]> {
        self.data(target, |owner| matches!(owner, PayloadOwner::Secret(_)))
    }

    fn config(&self, target: &str) -> Option<&[u8]> {
        self.data(target, |owner| matches!(owner, PayloadOwner::Config(_)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{ConfigRef, SecretRef};

    use super::*;
    use crate::payload::HeldPayload;

    fn target(path: &str, uid: &str, mode: u32) -> Option<FileTarget> {
        Some(FileTarget { path: path.to_owned(), uid: uid.to_owned(), mode, ..FileTarget::default() })
    }

    fn secret(number: u128, name: &str, target: Option<FileTarget>) -> SecretRef {
        let secret_id = SecretId::new(number).to_vec();
        SecretRef { secret_id, version: 2, name: name.to_owned(), target, pinned: false }
    }

    fn config(number: u128, name: &str, target: Option<FileTarget>) -> ConfigRef {
        let config_id = ConfigId::new(number).to_vec();
        ConfigRef { config_id, version: 3, name: name.to_owned(), target, pinned: false }
    }

    fn container() -> ContainerSpec {
        ContainerSpec {
            secrets: vec![secret(1, "db", None), secret(2, "tls", target("/etc/tls.key", "33", 0o400))],
            configs: vec![config(3, "app", None), config(4, "in", target("/run/secrets/a/b", "", 0))],
            ..ContainerSpec::default()
        }
    }

    fn held(container: &ContainerSpec, data: &[(u128, &str, bool)]) -> Payloads {
        let ids = crate::payload::of_container(container).collect::<Vec<_>>();
        let by_number = |number: u128| {
            let of = |id: &&PayloadId| {
                id.owner == PayloadOwner::Secret(SecretId::new(number))
                    || id.owner == PayloadOwner::Config(ConfigId::new(number))
            };
            *ids.iter().find(of).unwrap()
        };
        data.iter()
            .map(|(number, text, templated)| {
                let data = Arc::new(Zeroizing::new(text.as_bytes().to_vec()));
                (by_number(*number), HeldPayload { data, templated: *templated })
            })
            .collect()
    }

    #[test]
    fn targets_owners_and_modes_are_dockers() {
        let uses = uses(&container()).unwrap();
        let paths: Vec<&str> = uses.iter().map(|one| one.path.as_str()).collect();
        assert_eq!(paths, ["/run/secrets/db", "/etc/tls.key", "/app", "/run/secrets/a/b"]);
        assert_eq!((uses[0].uid, uses[0].gid, uses[0].mode), (0, 0, 0o444));
        assert_eq!((uses[1].uid, uses[1].gid, uses[1].mode), (33, 0, 0o400));
        let targets: Vec<String> = mounts(&uses).into_iter().map(|mount| mount.target).collect();
        assert_eq!(targets, ["/run/secrets", "/etc/tls.key", "/app"], "the folder once");
        assert!(mounts(&uses).iter().all(|mount| mount.read_only));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let refused = |one: SecretRef| {
            uses(&ContainerSpec { secrets: vec![one], ..ContainerSpec::default() }).unwrap_err().to_string()
        };
        for path in ["../x", "a/../x", "/run/secrets/..data", "a/", "/"] {
            assert!(refused(secret(1, "db", target(path, "", 0))).starts_with("secret db cannot be at"), "{path}");
        }
        let owner = refused(secret(1, "db", target("", "root", 0)));
        assert_eq!(owner, "secret db: \"root\" is not the number of a user or group");
        let unknown = refused(SecretRef { name: "db".to_owned(), ..SecretRef::default() });
        assert_eq!(unknown, "secret db is not known to the managers");
    }

    #[test]
    fn templates_see_the_containers_own_files_and_environment() {
        let container = container();
        let uses = uses(&container).unwrap();
        let text = "{{.Task.Slot}} {{secret \"db\"}} {{config \"app\"}} {{env \"MODE\"}}";
        let data = [(1, "hunter2", false), (2, "key", false), (3, "{{literal}}", false), (4, text, true)];
        let facts = Facts { task_slot: "7".to_owned(), ..Facts::default() };
        let env = ["MODE=slow".to_owned(), "MODE=fast".to_owned()];
        let files = fill(&uses, &held(&container, &data), &facts, &env).unwrap();
        assert_eq!(files.files[3].data.as_slice(), b"7 hunter2 {{literal}} fast");
        assert_eq!(files.files[2].data.as_slice(), b"{{literal}}", "not templated");
        assert_eq!(files.version, 2 + 2 + 3 + 3);

        let wrong = [(1, "x {{secret \"tls\"}}hunter2", true), (2, "", false), (3, "", false), (4, "", false)];
        let error = fill(&uses, &held(&container, &wrong), &facts, &env).unwrap_err().to_string();
        assert!(error.starts_with("cannot fill in secret db: the placeholder secret \"tls\" in line 1"), "{error}");
        assert!(!error.contains("hunter2"));
        let absent = fill(&uses, &Payloads::new(), &facts, &env).unwrap_err();
        assert_eq!(absent.to_string(), "secret db was not sent");
    }

    #[test]
    fn a_rotation_makes_another_version() {
        let mut container = container();
        let before = version(&uses(&container).unwrap());
        container.secrets[0].version += 1;
        assert_ne!(version(&uses(&container).unwrap()), before);
    }
}
