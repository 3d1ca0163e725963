//! A stolen data directory, and whether it gives something away: plain, in base64 or in hex.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// All bytes of a directory's files.
pub struct Stolen {
    /// A character for each byte, since the standard library searches text fast.
    whole: String,
    /// Without white space.
    joined: String,
}

impl Stolen {
    /// Reads it. Files may come and go meanwhile.
    pub fn from(dir: &Path) -> Self {
        let mut all = Vec::new();
        collect(dir, &mut all);
        let whole = text(&all);
        all.retain(|byte| !byte.is_ascii_whitespace());
        Self { whole, joined: text(&all) }
    }

    /// Whether it holds a secret: plain, in hex, or in base64 at any place of a longer text, with or without line breaks.
    pub fn gives_away(&self, secret: &[u8]) -> bool {
        assert!(secret.len() >= 12, "too short to be told from chance");
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![text(secret), hex.to_uppercase(), hex];
        for skip in 0..3 {
            let whole = &secret[skip..];
            forms.push(STANDARD.encode(&whole[..whole.len() / 3 * 3]));
        }
        forms.iter().any(|form| self.whole.contains(form) || self.joined.contains(form))
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn collect(dir: &Path, all: &mut Vec<u8>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // Links are not followed: they may lead out.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect(&entry.path(), all);
        } else if kind.is_file()
            && let Ok(bytes) = fs::read(entry.path())
        {
            all.extend(bytes);
            all.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_found_at_every_place() {
        let dir = tempfile::tempdir().expect("a folder");
        let (secret, other) = (b"quiet-otter-9321".as_slice(), b"brave-heron-5518".as_slice());
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut texts = vec![secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
        for before in ["", "x", "xy"] {
            let encoded = STANDARD.encode([before.as_bytes(), secret, b"more"].concat());
            texts.push(format!("{}\n{}", &encoded[..9], &encoded[9..]).into_bytes());
            texts.push(encoded.into_bytes());
        }
        for found in texts {
            fs::create_dir_all(dir.path().join("deep/er")).expect("folders");
            fs::write(dir.path().join("deep/er/file"), [b"\0\xff", found.as_slice(), b"\0"].concat()).expect("a file");
            let stolen = Stolen::from(dir.path());
            assert!(stolen.gives_away(secret), "{}", String::from_utf8_lossy(&found));
            assert!(!stolen.gives_away(other));
        }
    }
}
