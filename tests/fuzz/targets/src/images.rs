//! What comes from registries, archives and other nodes: names, manifests, configurations, layers.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use skep_image::change;
use skep_image::config::RunConfig;
use skep_image::layer::unpack::{Limits, unpack};
use skep_image::manifest::{self, Document};
use skep_image::registry::{InsecureEntry, RegistryAuth, RegistryConfig};
use skep_image::{ImageConfig, Images, Platform, Progress, Reference, Registry, Store, StoreOptions};

use crate::text;

/// Small enough for thousands of runs a second; what is refused for its size is refused alike.
const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_ratio: 1032, ratio_free_bytes: 1 << 18, max_entries: 500 };
/// A file system in memory.
const MEMORY: &str = "/dev/shm";

/// An image's name.
pub fn image_reference(data: &[u8]) {
    let Ok(reference) = Reference::parse(text(data)) else { return };
    for written in [reference.canonical(), reference.familiar(), reference.to_string()] {
        assert_eq!(Reference::parse(&written).ok().as_ref(), Some(&reference), "{written}");
    }
}

/// A manifest or an index.
pub fn image_manifest(data: &[u8]) {
    if let Ok(Document::Index(index)) = manifest::parse(data) {
        let chosen = index.choose(&Platform::host());
        assert!(chosen.is_none() || !index.platforms().is_empty() || chosen.is_some_and(|one| one.platform.is_none()));
    }
}

/// An image's configuration.
pub fn image_config(data: &[u8]) {
    if let Ok(config) = ImageConfig::parse(data) {
        let _ = config.check_layers(1);
    }
}

/// `image import --change`: one instruction on each line.
pub fn image_change(data: &[u8]) {
    let mut config = RunConfig::default();
    for line in text(data).lines() {
        let before = config.clone();
        if change::apply(&mut config, line).is_err() {
            assert_eq!(config, before, "what is refused changes nothing");
        }
    }
}

/// The file of an image store that says what it holds.
pub fn image_records(data: &[u8]) {
    let _ = skep_image::fuzzing::records(data);
}

/// A layer, unpacked next to a folder that is none of its business.
pub fn layer_tar(data: &[u8]) {
    let place = Place::new();
    let root = place.path().join("root");
    let unpacked = fs::create_dir(&root).map(|()| unpack(data, data.len() as u64, None, &root, &LIMITS));
    assert!(unpacked.is_ok(), "{unpacked:?}");
    place.check();
}

/// An archive of images, as `skep image load` takes it.
pub fn image_archive(data: &[u8]) {
    let place = Place::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    let options = StoreOptions { limits: LIMITS, unpackers: 1 };
    match Store::open(&place.path().join("root"), options) {
        Ok(store) => {
            let images = Images::new(store, Registry::new(RegistryConfig::default()));
            let _ = runtime.block_on(images.load(data, Progress::none()));
        }
        Err(error) => panic!("no store can be made: {error}"),
    }
    drop(runtime);
    place.check();
}

/// Headers and bodies of a registry's answers, and the registries that need no verified TLS.
pub fn registry_answer(data: &[u8]) {
    skep_image::fuzzing::registry_answer(text(data));
    if let Ok(entry) = text(data).parse::<InsecureEntry>() {
        assert_eq!(entry.to_string().parse(), Ok(entry));
    }
}

/// What the command line takes out of `~/.docker/config.json`, and what a request carries.
pub fn registry_login(data: &[u8]) {
    let _ = RegistryAuth::from_docker_json(data);
    let _ = RegistryAuth::from_docker_header(text(data));
}

/// A folder with room for a root, and a neighbour that must stay as it is.
struct Place(tempfile::TempDir);

const KEPT: &str = "what was here before";

impl Place {
    fn new() -> Self {
        let memory = Path::new(MEMORY);
        let within = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let made = tempfile::Builder::new().prefix("skep-fuzz-").tempdir_in(within).and_then(|dir| {
            fs::create_dir(dir.path().join("beside"))?;
            fs::write(dir.path().join("beside/file"), KEPT)?;
            Ok(dir)
        });
        match made {
            Ok(dir) => Self(dir),
            Err(error) => panic!("no folder can be made: {error}"),
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Nothing outside the root changed.
    fn check(self) {
        let names = |path: &Path| -> Vec<String> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.path()), ["beside", "root"]);
        let beside = self.path().join("beside");
        assert_eq!(names(&beside), ["file"]);
        let file = beside.join("file");
        assert_eq!(fs::read_to_string(&file).ok().as_deref(), Some(KEPT));
        let told = fs::symlink_metadata(&file).map(|told| (told.nlink(), told.mode() & 0o7777, told.uid()));
        assert!(matches!(told, Ok((1, mode, _)) if mode & 0o6111 == 0), "{told:?}");
        // Names of any bytes, modes of any kind: all of it can be removed.
        let removed = self.0.close();
        assert!(removed.is_ok(), "{removed:?}");
    }
}
