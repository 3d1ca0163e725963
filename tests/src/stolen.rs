//! A stolen data directory or disk, and whether it gives something away: plain, in base64 or in hex.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Of a disk image. What was never written is all zeroes, and left out.
const BLOCK: usize = 4096;

/// All bytes of a directory's files, or of a disk's blocks.
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
        Self::of(all)
    }

    /// Reads the image of a disk, whose blocks belong to files or to none.
    pub fn disk(image: &Path) -> Self {
        let mut file = fs::File::open(image).expect("the image can be read");
        let (mut all, mut blocks) = (Vec::new(), vec![0; 256 * BLOCK]);
        loop {
            let count = file.read(&mut blocks).expect("the image can be read");
            if count == 0 {
                return Self::of(all);
            }
            for block in blocks[..count].chunks(BLOCK).filter(|block| block != &[0; BLOCK]) {
                all.extend(block);
            }
        }
    }

    fn of(mut all: Vec<u8>) -> Self {
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
    fn a_disk_is_searched_but_for_what_was_never_written() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        let (secret, other) = (b"quiet-otter-9321".as_slice(), b"brave-heron-5518".as_slice());
        image.as_file().set_len(64 << 20).expect("a length");
        // Over the edge between two blocks that are read apart.
        let at = (256 * BLOCK - 5) as u64;
        std::os::unix::fs::FileExt::write_all_at(image.as_file(), secret, at).expect("written");
        let disk = Stolen::disk(image.path());
        assert!(disk.gives_away(secret) && !disk.gives_away(other));
        assert_eq!(disk.whole.len(), 2 * BLOCK);
    }

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
