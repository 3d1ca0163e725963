//! Names inside a layer: cleaning and whiteout recognition. Used by the unpacker. Pure.

/// Longest path component of Linux file systems.
const NAME_MAX: usize = 255;
/// Deepest path accepted: more than any real tree, and few enough that a tree can be removed with one descriptor a level.
const MAX_DEPTH: usize = 256;
/// Prefix of whiteouts (image spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";

/// Why a name in a layer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It climbs.
    #[error("its path contains \"..\"")]
    DotDot,
    /// It cannot be given to the kernel.
    #[error("its path contains a zero byte")]
    Nul,
    /// A component that is too long.
    #[error("its path has a component of more than {NAME_MAX} bytes")]
    Name,
    /// Too many components.
    #[error("its path is more than {MAX_DEPTH} directories deep")]
    Depth,
    /// A whiteout that names nothing.
    #[error("it is a whiteout without a usable name")]
    Whiteout,
}

/// A path relative to the layer's root, without empty, `.` and `..` components. Empty: the root itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerPath(Vec<u8>);

impl LayerPath {
    /// Cleans a path as written in an archive. A leading slash means the layer's root, as in Docker: archives made by
    /// Nix have it. `..` is refused even where it would stay inside.
    pub fn clean(written: &[u8]) -> Result<Self, PathError> {
        let mut out = Vec::with_capacity(written.len());
        let mut depth = 0;
        if written.contains(&0) {
            return Err(PathError::Nul);
        }
        for component in written.split(|b| *b == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(PathError::DotDot),
                _ if component.len() > NAME_MAX => return Err(PathError::Name),
                _ => {}
            }
            if !out.is_empty() {
                out.push(b'/');
            }
            out.extend_from_slice(component);
            depth += 1;
        }
        if depth > MAX_DEPTH { Err(PathError::Depth) } else { Ok(Self(out)) }
    }

    /// The bytes, `a/b/c`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Parent directory and last component. `None` for the root.
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => Some((&self.0[..at], &self.0[at + 1..])),
            None if self.0.is_empty() => None,
            None => Some((&[], &self.0)),
        }
    }
}

/// What a last component means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// An ordinary name.
    Plain,
    /// `.wh.name`: hide `name` of the layers below.
    Hides(&'a [u8]),
    /// `.wh..wh..opq`: hide everything that the layers below have in this directory.
    Opaque,
    /// `.wh..wh.*`: book-keeping of aufs, without meaning for us.
    Ignored,
}

/// Tells whiteouts from names.
pub fn meaning(name: &[u8]) -> Result<Meaning<'_>, PathError> {
    let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(Meaning::Plain) };
    match hidden {
        b"" | b"." | b".." => Err(PathError::Whiteout),
        b".wh..opq" => Ok(Meaning::Opaque),
        _ if hidden.starts_with(WHITEOUT) => Ok(Meaning::Ignored),
        _ => Ok(Meaning::Hides(hidden)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cleaning() {
        let clean = |text: &str| LayerPath::clean(text.as_bytes()).map(|path| String::from_utf8(path.0).unwrap());
        assert_eq!(clean("./a//b/./c/"), Ok("a/b/c".into()));
        assert_eq!(clean("/nix/store"), Ok("nix/store".into()));
        assert_eq!(clean("./"), Ok(String::new()));
        assert_eq!(clean("a/../b"), Err(PathError::DotDot));
        assert_eq!(clean("..."), Ok("...".into()));
        assert_eq!(clean("a\0b"), Err(PathError::Nul));
        assert_eq!(clean(&"a".repeat(256)), Err(PathError::Name));
        assert_eq!(clean(&"a/".repeat(257)), Err(PathError::Depth));
    }

    #[test]
    fn whiteouts() {
        assert_eq!(meaning(b"a"), Ok(Meaning::Plain));
        assert_eq!(meaning(b".wh.a"), Ok(Meaning::Hides(b"a")));
        assert_eq!(meaning(b".wh..wh..opq"), Ok(Meaning::Opaque));
        assert_eq!(meaning(b".wh..wh.plnk"), Ok(Meaning::Ignored));
        assert_eq!(meaning(b".wh."), Err(PathError::Whiteout));
        assert_eq!(meaning(b".wh..."), Err(PathError::Whiteout));
    }

    proptest! {
        #[test]
        fn cleaned_paths_stay_inside(bytes: Vec<u8>, text in "[./a]{0,12}") {
            for written in [bytes.as_slice(), text.as_bytes()] {
                if let Ok(path) = LayerPath::clean(written) {
                    prop_assert!(!path.0.starts_with(b"/"));
                    let mut parts = path.0.split(|b| *b == b'/');
                    prop_assert!(path.0.is_empty() || parts.all(|part| !matches!(part, b"" | b"." | b"..")));
                }
            }
        }
    }
}
