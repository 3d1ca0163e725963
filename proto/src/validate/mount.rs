//! Mounts of a container.

use super::{Invalid, not_negative, placeholders};
use crate::v1::{MountSpec, MountType};

const PROPAGATIONS: [&str; 7] = ["", "rprivate", "private", "rshared", "shared", "rslave", "slave"];

pub(super) fn mount(spec: &MountSpec) -> Result<(), Invalid> {
    absolute("target", &spec.target)?;
    if spec.target.trim_end_matches('/').is_empty() {
        return Err(Invalid::new("target", "cannot be the root directory"));
    }
    for (field, path) in [("target", &spec.target), ("source", &spec.source)] {
        placeholders(field, path)?;
    }
    match spec.r#type() {
        MountType::Bind => {
            absolute("source", &spec.source)?;
            if !PROPAGATIONS.contains(&spec.propagation.as_str()) {
                let message = format!("{:?} is not one of {}", spec.propagation, PROPAGATIONS[1..].join(", "));
                return Err(Invalid::new("propagation", message));
            }
            if spec.tmpfs_size_bytes != 0 || spec.tmpfs_mode != 0 {
                return Err(Invalid::new("type", "size and mode are for tmpfs mounts"));
            }
        }
        MountType::Tmpfs => {
            if !spec.source.is_empty() {
                return Err(Invalid::new("source", "a tmpfs has no source"));
            }
            if !spec.propagation.is_empty() || spec.non_recursive {
                return Err(Invalid::new("type", "propagation is for bind mounts"));
            }
            not_negative("tmpfs_size_bytes", spec.tmpfs_size_bytes)?;
            if spec.tmpfs_mode > 0o7777 {
                return Err(Invalid::new("tmpfs_mode", format!("{:o} is not a file mode", spec.tmpfs_mode)));
            }
        }
        MountType::Volume => return Err(Invalid::new("type", "not supported yet: volumes")),
    }
    Ok(())
}

/// Absolute, and without steps upwards.
fn absolute(field: &str, path: &str) -> Result<(), Invalid> {
    if !path.starts_with('/') {
        return Err(Invalid::new(field, format!("{path:?} is not an absolute path")));
    }
    if path.split('/').any(|part| part == "..") || path.contains('\0') {
        return Err(Invalid::new(field, format!("{path:?} must not contain \"..\" or NUL")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mounts_are_checked_by_type() {
        let bind = MountSpec { source: "/srv".into(), target: "/data".into(), ..MountSpec::default() };
        assert_eq!(mount(&bind), Ok(()));
        let refused = |change: fn(&mut MountSpec)| {
            let mut spec = bind.clone();
            change(&mut spec);
            mount(&spec).unwrap_err().field
        };
        assert_eq!(refused(|spec| spec.target = "data".into()), "target");
        assert_eq!(refused(|spec| spec.target = "/".into()), "target");
        assert_eq!(refused(|spec| spec.source = "/a/../b".into()), "source");
        assert_eq!(refused(|spec| spec.source = "/a/{{.Task".into()), "source");
        assert_eq!(refused(|spec| spec.propagation = "sideways".into()), "propagation");
        assert_eq!(refused(|spec| spec.r#type = MountType::Volume.into()), "type");
        assert_eq!(refused(|spec| spec.r#type = MountType::Tmpfs.into()), "source");
    }
}
