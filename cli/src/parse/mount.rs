//! `--mount type=bind,source=/a,target=/b,readonly`.

use skep_proto::v1::{MountSpec, MountType};

use super::{ParseError, boolean, csv, size};

const PROPAGATIONS: [&str; 6] = ["rprivate", "private", "rshared", "shared", "rslave", "slave"];

/// Reads one mount in Docker's long form; a type is needed, as Docker's default (a volume) does not exist yet.
pub(crate) fn parse(text: &str) -> Result<MountSpec, ParseError> {
    let mut mount = MountSpec::default();
    let mut kind = None;
    let mut only_bind = Vec::new();
    let mut only_tmpfs = Vec::new();
    for field in csv::fields(text)? {
        let (key, value) = csv::key_value(&field);
        match key.as_str() {
            "readonly" | "ro" => mount.read_only = flag(&key, value)?,
            "bind-nonrecursive" => {
                mount.non_recursive = flag(&key, value)?;
                only_bind.push(key);
            }
            "type" => kind = Some(mount_type(needed(&key, value)?)?),
            "source" | "src" => mount.source = needed(&key, value)?.to_owned(),
            "target" | "dst" | "destination" => mount.target = needed(&key, value)?.to_owned(),
            "bind-propagation" => {
                mount.propagation = propagation(needed(&key, value)?)?;
                only_bind.push(key);
            }
            "tmpfs-size" => {
                mount.tmpfs_size_bytes = size::bytes(needed(&key, value)?)?;
                only_tmpfs.push(key);
            }
            "tmpfs-mode" => {
                mount.tmpfs_mode = tmpfs_mode(needed(&key, value)?)?;
                only_tmpfs.push(key);
            }
            "consistency" | "bind-recursive" | "bind-create-src" | "tmpfs-options" => {
                return Err(ParseError::unsupported(key));
            }
            _ if key.starts_with("volume-") || key.starts_with("image-") => {
                return Err(ParseError::unsupported(key));
            }
            _ => {
                return Err(ParseError::invalid(format!(
                    "{key:?} is not known: use type, source, target, readonly, bind-propagation, bind-nonrecursive, \
                     tmpfs-size, tmpfs-mode"
                )));
            }
        }
    }
    let kind = kind.ok_or_else(|| ParseError::unsupported("without a type (a volume)"))?;
    mount.set_type(kind);
    check(&mount, kind, &only_bind, &only_tmpfs)?;
    Ok(mount)
}

fn check(mount: &MountSpec, kind: MountType, only_bind: &[String], only_tmpfs: &[String]) -> Result<(), ParseError> {
    if mount.target.is_empty() {
        return Err(ParseError::invalid("target is required"));
    }
    if !mount.target.starts_with('/') {
        return Err(ParseError::invalid(format!("target {:?} is not an absolute path", mount.target)));
    }
    let foreign = match kind {
        MountType::Bind => only_tmpfs.first(),
        MountType::Tmpfs | MountType::Volume => only_bind.first(),
    };
    if let Some(key) = foreign {
        let name = if kind == MountType::Bind { "bind" } else { "tmpfs" };
        return Err(ParseError::invalid(format!("{key} does not go with type={name}")));
    }
    match kind {
        MountType::Bind if mount.source.is_empty() => Err(ParseError::invalid("source is required with type=bind")),
        MountType::Bind if !mount.source.starts_with('/') => {
            Err(ParseError::invalid(format!("source {:?} is not an absolute path", mount.source)))
        }
        MountType::Tmpfs if !mount.source.is_empty() => Err(ParseError::invalid("source does not go with type=tmpfs")),
        MountType::Bind | MountType::Tmpfs | MountType::Volume => Ok(()),
    }
}

fn mount_type(text: &str) -> Result<MountType, ParseError> {
    match text.to_lowercase().as_str() {
        "bind" => Ok(MountType::Bind),
        "tmpfs" => Ok(MountType::Tmpfs),
        other @ ("volume" | "npipe" | "cluster" | "image") => Err(ParseError::unsupported(format!("type={other}"))),
        _ => Err(ParseError::invalid(format!("type {text:?} is not known: use bind or tmpfs"))),
    }
}

fn propagation(text: &str) -> Result<String, ParseError> {
    if PROPAGATIONS.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(ParseError::invalid(format!("bind-propagation {text:?} is not known: use {}", PROPAGATIONS.join(", "))))
    }
}

fn tmpfs_mode(text: &str) -> Result<u32, ParseError> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| ParseError::invalid(format!("tmpfs-mode {text:?} is not an octal mode such as 1777")))
}

fn flag(key: &str, value: Option<&str>) -> Result<bool, ParseError> {
    value.map_or(Ok(true), boolean).map_err(|error| ParseError::invalid(format!("{key}: {error}")))
}

fn needed<'a>(key: &str, value: Option<&'a str>) -> Result<&'a str, ParseError> {
    value.filter(|value| !value.is_empty()).ok_or_else(|| ParseError::invalid(format!("{key} needs a value")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn binds() {
        let mount = parse("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave,bind-nonrecursive=true").unwrap();
        assert_eq!(mount.r#type(), MountType::Bind);
        assert_eq!((mount.source.as_str(), mount.target.as_str()), ("/a", "/b"));
        assert!(mount.read_only && mount.non_recursive);
        assert_eq!(mount.propagation, "rslave");
        assert!(!parse("type=bind,source=/a,target=/b,ro=false").unwrap().read_only);
    }

    #[test]
    fn tmpfs() {
        let mount = parse("type=tmpfs,target=/run,tmpfs-size=64m,tmpfs-mode=0755").unwrap();
        assert_eq!(mount.r#type(), MountType::Tmpfs);
        assert_eq!((mount.tmpfs_size_bytes, mount.tmpfs_mode), (64 << 20, 0o755));
    }

    #[test]
    fn refusals() {
        for (text, why) in [
            ("type=bind,source=/a", "target is required"),
            ("type=bind,target=/b", "source is required"),
            ("type=bind,source=a,target=/b", "absolute"),
            ("type=bind,source=/a,target=b", "absolute"),
            ("type=tmpfs,source=/a,target=/b", "does not go"),
            ("type=tmpfs,target=/b,bind-propagation=shared", "does not go with type=tmpfs"),
            ("type=bind,source=/a,target=/b,tmpfs-size=1m", "does not go with type=bind"),
            ("type=nope,target=/b", "is not known"),
            ("type=bind,source=/a,target=/b,readonly=maybe", "neither true nor false"),
            ("type=tmpfs,target=/b,tmpfs-mode=999", "octal"),
            ("type=tmpfs,target=/b,bogus=1", "is not known"),
            ("type=tmpfs,target=", "needs a value"),
        ] {
            match parse(text) {
                Err(ParseError::Invalid(message)) => assert!(message.contains(why), "{text}: {message}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        for text in ["source=v,target=/b", "type=volume,target=/b", "type=bind,source=/a,target=/b,volume-nocopy=true"]
        {
            assert!(matches!(parse(text), Err(ParseError::Unsupported(_))), "{text}");
        }
    }
}
