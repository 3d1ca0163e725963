//! The unpacker against good, odd and hostile archives, on the real kernel. Needs root: layers carry owners and whiteouts.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::unpack::{Limits, UnpackError, Unpacked, unpack};
use crate::digest::Digest;

/// Builds archives with names and targets exactly as given, which the `tar` crate's own setters would refuse.
struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(mut self, path: &str, kind: EntryType, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1000);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.add(path, EntryType::Regular, "", data.as_bytes())
    }

    fn dir(self, path: &str) -> Self {
        self.add(path, EntryType::Directory, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.add(path, EntryType::Symlink, target, b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.add(path, EntryType::Link, target, b"")
    }

    fn device(mut self, path: &str, kind: EntryType, major: u32, minor: u32) -> Self {
        let mut header = Header::new_gnu();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o666);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self.0.append(&header, &[][..]).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A root to unpack into, next to a canary that must never change.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("canary")).unwrap();
        fs::write(dir.path().join("canary/file"), "untouched").unwrap();
        Self(dir)
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.path().join("root")
    }

    fn canary(&self) -> String {
        self.0.path().join("canary").display().to_string()
    }

    /// A path that does not exist, and that no archive may make.
    fn outside(&self) -> std::path::PathBuf {
        self.0.path().join("outside")
    }

    fn unpack(&self, archive: &[u8]) -> Result<Unpacked, UnpackError> {
        unpack(archive, archive.len() as u64, None, &self.root(), &Limits::default())
    }

    fn assert_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "something appeared beside the root: {names:?}");
        let canary = self.0.path().join("canary");
        assert_eq!(fs::read_dir(&canary).unwrap().count(), 1, "something appeared in the canary");
        assert_eq!(fs::read(canary.join("file")).unwrap(), b"untouched");
        assert_eq!(fs::metadata(canary.join("file")).unwrap().nlink(), 1, "the canary was hard linked");
        assert_eq!(fs::metadata(canary.join("file")).unwrap().permissions().mode() & 0o7777, 0o644);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        out = format!("{out}: {inner}");
        source = inner.source();
    }
    out
}

fn opaque(path: &Path) -> bool {
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let mut value = [0u8; 4];
    // SAFETY: both strings end with a zero byte and the buffer's length is given.
    let length = unsafe {
        libc::lgetxattr(name.as_ptr(), c"trusted.overlay.opaque".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    length == 1 && value[0] == b'y'
}

fn is_whiteout(path: &Path) -> bool {
    let found = fs::symlink_metadata(path).unwrap();
    found.file_type().is_char_device() && found.rdev() == 0
}

#[test]
fn attributes_links_and_fifos_arrive() {
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("SCHILY.xattr.user.note", &b"hello"[..]), ("mtime", b"5.5")]).unwrap();
    let mut header = Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o4751);
    header.set_uid(1234);
    header.set_gid(4321);
    builder.append_data(&mut header, "bin/tool", &b"data"[..]).unwrap();
    let archive = Tar(builder)
        .hard_link("bin/other", "bin/tool")
        .hard_link("bin/absolute", "/bin/tool")
        .symlink("bin/shell", "/etc/passwd")
        .add("pipe", EntryType::Fifo, "", b"")
        .device("dev/null", EntryType::Char, 1, 3)
        .dir("./empty/")
        .bytes();
    let place = Place::new();
    let done = place.unpack(&archive).unwrap();
    assert_eq!((done.diff_id, done.content_bytes, done.entries), (Digest::of(&archive), 4, 7));
    let root = place.root();
    let tool = fs::metadata(root.join("bin/tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.uid(), tool.gid(), tool.nlink()), (0o4751, 1234, 4321, 3));
    assert_eq!((tool.mtime(), tool.mtime_nsec()), (5, 500_000_000));
    assert_eq!(fs::read_link(root.join("bin/shell")).unwrap(), Path::new("/etc/passwd"));
    assert!(fs::metadata(root.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(root.join("dev/null")).unwrap().rdev(), nix::sys::stat::makedev(1, 3));
    assert_eq!(fs::metadata(root.join("empty")).unwrap().mtime(), 1000);
    assert_eq!(fs::metadata(root.join("bin")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn whiteouts_become_overlayfs_marks() {
    let archive = Tar::new()
        .dir("a")
        .file("a/.wh.gone", "")
        .dir("b")
        .file("b/.wh..wh..opq", "")
        .file("b/new", "x")
        // A whiteout before and behind what replaces it.
        .file(".wh.early", "")
        .dir("early")
        .file("early/file", "x")
        .dir("late")
        .file(".wh.late", "")
        .file("kept", "x")
        .file(".wh.kept", "")
        .file("c/.wh.deep", "")
        .file("c/deep/file", "x")
        .file(".wh..wh.plnk", "")
        .bytes();
    let place = Place::new();
    place.unpack(&archive).unwrap();
    let root = place.root();
    assert!(is_whiteout(&root.join("a/gone")));
    assert!(opaque(&root.join("b")) && root.join("b/new").exists());
    assert!(opaque(&root.join("early")) && root.join("early/file").exists());
    assert!(opaque(&root.join("late")) && opaque(&root.join("c/deep")));
    assert_eq!(fs::read(root.join("kept")).unwrap(), b"x");
    let names: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.starts_with(".wh.")), "{names:?}");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let archive = Tar::new()
        .dir("a")
        .file("a/b", "1")
        .file("a", "file now")
        .file("c", "1")
        .dir("c")
        .file("c/d", "2")
        .symlink("l", "c")
        .file("l", "plain now")
        .symlink("m", "c")
        .dir("m")
        .file("m/inside", "x")
        .bytes();
    let place = Place::new();
    place.unpack(&archive).unwrap();
    let root = place.root();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"file now");
    assert_eq!(fs::read(root.join("c/d")).unwrap(), b"2");
    assert_eq!(fs::read(root.join("l")).unwrap(), b"plain now");
    assert!(!root.join("c/inside").exists() && root.join("m/inside").exists());
}

#[test]
fn hostile_archives_are_refused_with_the_reason() {
    let place = Place::new();
    let canary = place.canary();
    let outside = place.outside();
    let cases: Vec<(Tar, &str)> = vec![
        (Tar::new().file("../evil", "x"), "\"..\""),
        (Tar::new().file("a/../../evil", "x"), "\"..\""),
        (Tar::new().dir(".."), "\"..\""),
        (Tar::new().symlink("link", &canary).file("link/evil", "x"), "through the symbolic link \"link\""),
        (Tar::new().symlink("link", "../canary").file("link/evil", "x"), "through the symbolic link"),
        (Tar::new().symlink("link", "/").dir(&format!("link{}", outside.display())), "through the symbolic link"),
        (Tar::new().dir("a").symlink("a/b", &canary).file("a/b/c/evil", "x"), "through the symbolic link \"a/b\""),
        (Tar::new().symlink("link", ".").file("link/file", "x"), "through the symbolic link"),
        (Tar::new().symlink("link", &canary).file("link/.wh.file", ""), "through the symbolic link"),
        (Tar::new().symlink("link", &canary).file("link/.wh..wh..opq", ""), "through the symbolic link"),
        (Tar::new().symlink("link", &canary).hard_link("got", "link/file"), "through the symbolic link"),
        (Tar::new().hard_link("got", &format!("{canary}/file")), "does not contain"),
        (Tar::new().hard_link("got", "/etc/passwd"), "does not contain"),
        (Tar::new().hard_link("got", "../canary/file"), "\"..\""),
        (Tar::new().dir("d").hard_link("got", "d"), "hard link to the directory"),
        (Tar::new().hard_link("got", "/"), "hard link to the directory"),
        (Tar::new().file("f", "x").file("f/below", "x"), "not a directory"),
        (Tar::new().file(".wh...", ""), "whiteout"),
        (Tar::new().symlink("/", "x"), "root directory"),
        (Tar::new().device("sda", EntryType::Block, 8, 0), "block device node 8:0"),
        (Tar::new().device("dev/mem", EntryType::Char, 1, 1), "character device node 1:1"),
        (Tar::new().device("hidden", EntryType::Char, 0, 0), "character device node 0:0"),
        (Tar::new().add("s", EntryType::GNUSparse, "", b""), "--sparse"),
    ];
    for (tar, reason) in cases {
        let place = Place::new();
        let error = place.unpack(&tar.bytes()).unwrap_err();
        let message = chain(&error);
        assert!(message.contains(reason), "{message:?} does not say {reason:?}");
        place.assert_untouched();
    }
    place.assert_untouched();
    assert!(!outside.exists());
}

#[test]
fn a_symlink_is_replaced_not_followed() {
    let place = Place::new();
    let target = format!("{}/file", place.canary());
    let archive = Tar::new().symlink("link", &target).file("link", "mine").bytes();
    place.unpack(&archive).unwrap();
    assert_eq!(fs::read(place.root().join("link")).unwrap(), b"mine");
    place.assert_untouched();
    // A hard link to a symbolic link is another name of the link, not of its target.
    let place = Place::new();
    let archive = Tar::new().symlink("link", &target).hard_link("second", "link").bytes();
    place.unpack(&archive).unwrap();
    assert!(fs::symlink_metadata(place.root().join("second")).unwrap().is_symlink());
    place.assert_untouched();
}

#[test]
fn overlay_attributes_of_an_archive_are_left_out() {
    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..]),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .unwrap();
    let place = Place::new();
    place.unpack(&Tar(builder).dir("d").bytes()).unwrap();
    assert!(!opaque(&place.root().join("d")));
}

#[test]
fn bombs_wrong_content_and_damage_are_refused() {
    let tar = Tar::new().file("zeros", &"\0".repeat(4 << 20)).bytes();
    let packed = zstd::encode_all(&tar[..], 3).unwrap();
    let limits = Limits { ratio_free_bytes: 1 << 20, max_ratio: 10, ..Limits::default() };
    let place = Place::new();
    let error = unpack(&packed[..], packed.len() as u64, None, &place.root(), &limits).unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge(limit) if limit == 1 << 20));

    let place = Place::new();
    let few = Limits { max_entries: 2, ..Limits::default() };
    let many = Tar::new().dir("a").dir("b").dir("c").bytes();
    assert!(matches!(unpack(&many[..], 0, None, &place.root(), &few), Err(UnpackError::TooMany(2))));

    let place = Place::new();
    let wrong = Digest::of(b"something else");
    let error = unpack(&tar[..], tar.len() as u64, Some(&wrong), &place.root(), &Limits::default()).unwrap_err();
    assert!(matches!(error, UnpackError::DiffId { actual, .. } if actual == Digest::of(&tar)));

    for damaged in [&packed[..packed.len() / 2], &tar[..700], b"this is no tar archive at all".as_slice()] {
        let place = Place::new();
        let error = place.unpack(damaged).unwrap_err();
        assert!(matches!(error, UnpackError::Read(_) | UnpackError::Tar(_)), "{error:?}");
    }
}

#[test]
fn content_behind_the_archives_end_counts_for_the_diff_id() {
    let mut tar = Tar::new().file("a", "x").bytes();
    tar.extend_from_slice(&[0; 4096]);
    let place = Place::new();
    assert_eq!(place.unpack(&tar).unwrap().diff_id, Digest::of(&tar));
}

/// One member of a random archive, drawn from few names so that they collide.
fn any_member() -> impl Strategy<Value = (String, u8, String)> {
    let name = prop_oneof![
        "[ab](/[ab]){0,2}",
        "(\\.\\./){1,3}canary/file",
        "/?(\\./)?[ab]/\\.wh\\.[ab]",
        "[ab]/\\.wh\\.\\.wh\\.\\.opq",
        "/canary/file",
        "(\\.|\\.\\.|/|//a|a//b|a/|\\./)",
    ];
    let target = prop_oneof!["[ab](/[ab]){0,1}", "(\\.\\./){1,4}canary(/file)?", "/CANARY(/file)?", "(/|\\.|\\.\\.)"];
    (name, 0u8..5, target)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_archives_never_touch_the_outside(members in proptest::collection::vec(any_member(), 1..12)) {
        let place = Place::new();
        let canary = place.canary();
        let mut tar = Tar::new();
        for (path, kind, target) in members {
            let target = target.replace("/CANARY", &canary);
            tar = match kind {
                0 => tar.file(&path, "evil"),
                1 => tar.dir(&path),
                2 => tar.symlink(&path, &target),
                3 => tar.hard_link(&path, &target),
                _ => tar.add(&path, EntryType::Fifo, "", b""),
            };
        }
        let archive = tar.bytes();
        if let Ok(done) = place.unpack(&archive) {
            prop_assert_eq!(done.diff_id, Digest::of(&archive));
        }
        place.assert_untouched();
    }
}
