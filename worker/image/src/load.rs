//! `image load`: images from archives that `docker save`, `podman save`, `skopeo` or `buildx` wrote, read as a stream.
//! Two forms: an OCI image layout (`index.json`, `blobs/`), whose digests are kept, and Docker's own (`manifest.json`), for
//! which a manifest is made: always the same for the same archive. An archive with both is read as a layout.
//!
//! Every file goes into the store as a blob while it streams by; what no image turns out to need is removed at the end.

use std::collections::HashMap;
use std::io::Read;

use serde::Deserialize;
use tokio::io::AsyncRead;

use crate::digest::Digest;
use crate::images::Images;
use crate::layer::decode;
use crate::layer::path::{LayerPath, PathError};
use crate::layer::tarstream::{Kind, Member, TarError, TarReader};
use crate::manifest::{self, Descriptor, Document, MAX_DOCUMENT_BYTES, Manifest, ManifestError, media};
use crate::pipe::with_reader;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::pull::PullError;
use crate::reference::{Reference, ReferenceError};
use crate::store::{BlobError, ImageRecord, LayerError, Pin, Store, StoreError, StoredBlob, blocking};

/// Most members of an archive; each becomes a file.
const MAX_MEMBERS: usize = 100_000;
/// Bytes read from the archive at a time.
const BUFFER: usize = 256 << 10;

/// Why an archive could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The stream or its compression.
    #[error("cannot read the archive")]
    Read(#[source] std::io::Error),
    /// Not a tar archive.
    #[error("this is not an image archive")]
    Tar(#[from] TarError),
    /// It holds no image.
    #[error(
        "this is not an image archive: it has neither index.json nor manifest.json; for a root file system use skep image import"
    )]
    NoImages,
    /// Nothing in it.
    #[error("the archive is empty")]
    Empty,
    /// A member's name.
    #[error("refused member {path:?} of the archive: {problem}")]
    Path {
        /// As written.
        path: String,
        /// Why.
        problem: PathError,
    },
    /// More members than [`MAX_MEMBERS`].
    #[error("the archive has more than {MAX_MEMBERS} members")]
    TooMany,
    /// A file that it should have.
    #[error("the archive is incomplete: {file:?} is missing")]
    Missing {
        /// Which file.
        file: String,
    },
    /// `index.json`.
    #[error("the archive's {file} cannot be used")]
    Manifest {
        /// Which file.
        file: &'static str,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// `manifest.json`.
    #[error("the archive's manifest.json is malformed: {0}")]
    Json(String),
    /// A name in it.
    #[error("the archive names an image badly")]
    Name(#[from] ReferenceError),
    /// A file whose content is not what its name says.
    #[error("the archive is damaged: {path}")]
    Blob {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: BlobError,
    },
    /// Making an image of it.
    #[error(transparent)]
    Image(#[from] PullError),
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LoadError {
    /// Set where this node is to blame (a full disk, a damaged store), not the archive.
    pub fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error)
            | Self::Blob { source: BlobError::Store(error), .. }
            | Self::Image(PullError::Store(error))
            | Self::Image(PullError::Blob(BlobError::Store(error)))
            | Self::Image(PullError::Layer(LayerError::Store(error))) => Some(error),
            _ => None,
        }
    }
}

/// One entry of Docker's `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An archive after it streamed by.
#[derive(Default)]
struct Contents {
    /// Files in the store, by cleaned path.
    blobs: HashMap<LayerPath, StoredBlob>,
    /// Links to other files of the archive: old `docker save` wrote repeated layers so.
    links: HashMap<LayerPath, LayerPath>,
}

/// One image that the archive holds.
struct Planned {
    digest: Digest,
    names: Vec<Reference>,
    /// Keeps a manifest that was made here until its record is written.
    _pin: Option<Pin>,
}

impl Images {
    /// Loads all images of an archive that run on this machine, with their names. An archive whose images all are for
    /// other platforms is refused.
    pub async fn load(
        &self,
        archive: impl AsyncRead + Send,
        progress: Progress,
    ) -> Result<Vec<ImageRecord>, LoadError> {
        let loaded = self.load_all(archive, progress).await;
        // Whatever no image needs must not stay, after a failure above all.
        let store = self.store().clone();
        let swept = blocking::<_, StoreError>(move || store.collect()).await;
        let loaded = loaded?;
        swept?;
        Ok(loaded)
    }

    async fn load_all(
        &self,
        archive: impl AsyncRead + Send,
        progress: Progress,
    ) -> Result<Vec<ImageRecord>, LoadError> {
        let store = self.store().clone();
        let (contents, plan) = with_reader(archive, move |reader| {
            let contents = Contents::read(&store, reader)?;
            let plan = contents.plan(&store)?;
            Ok::<_, LoadError>((contents, plan))
        })
        .await?;
        let mut loaded = Vec::new();
        let mut foreign = None;
        for planned in plan {
            match self.adopt(planned.digest, planned.names, progress.clone()).await {
                Ok(record) => loaded.push(record),
                Err(error @ PullError::Platform { .. }) => foreign = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        drop(contents);
        match (loaded.is_empty(), foreign) {
            (true, Some(error)) => Err(error.into()),
            (true, None) => Err(LoadError::NoImages),
            (false, _) => Ok(loaded),
        }
    }
}

impl Contents {
    /// Streams the archive into the store.
    fn read(store: &Store, reader: impl Read + Send) -> Result<Self, LoadError> {
        let (reader, _) = decode::decode(reader).map_err(LoadError::Read)?;
        let mut archive = TarReader::new(reader);
        let mut contents = Self::default();
        let mut buffer = vec![0; BUFFER];
        let mut members = 0;
        while let Some(member) = archive.next_member()? {
            members += 1;
            if members > MAX_MEMBERS {
                return Err(LoadError::TooMany);
            }
            let shown = || String::from_utf8_lossy(&member.path).into_owned();
            let path = LayerPath::clean(&member.path).map_err(|problem| LoadError::Path { path: shown(), problem })?;
            match member.kind {
                Kind::File => {
                    let blob = store_member(store, &member, &path, &mut archive, &mut buffer)?;
                    contents.blobs.insert(path, blob);
                }
                Kind::Symlink | Kind::HardLink => {
                    let target =
                        link_target(&path, &member).map_err(|problem| LoadError::Path { path: shown(), problem })?;
                    contents.links.insert(path, target);
                }
                Kind::Directory | Kind::Fifo | Kind::Char { .. } | Kind::Block { .. } => {}
            }
        }
        // Read on to the end: a sender that still writes must not see a broken pipe.
        std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).map_err(LoadError::Read)?;
        Ok(contents)
    }

    fn find(&self, file: &str) -> Option<&StoredBlob> {
        let mut path = LayerPath::clean(file.as_bytes()).ok()?;
        // A few links in a row at most: a circle ends here too.
        for _ in 0..8 {
            match (self.blobs.get(&path), self.links.get(&path)) {
                (Some(blob), _) => return Some(blob),
                (None, Some(target)) => path = target.clone(),
                (None, None) => return None,
            }
        }
        None
    }

    fn need(&self, file: &str) -> Result<&StoredBlob, LoadError> {
        self.find(file).ok_or_else(|| LoadError::Missing { file: file.to_owned() })
    }

    /// Which image digests the archive holds, and their names.
    fn plan(&self, store: &Store) -> Result<Vec<Planned>, LoadError> {
        let docker = match self.find("manifest.json") {
            Some(blob) => {
                let json = store.read_blob(&blob.digest, MAX_DOCUMENT_BYTES)?;
                serde_json::from_slice::<Vec<DockerEntry>>(&json).map_err(|error| LoadError::Json(error.to_string()))?
            }
            None => Vec::new(),
        };
        match self.find("index.json") {
            Some(index) => self.plan_layout(store, index, &docker),
            None => docker.iter().map(|entry| self.plan_docker(store, entry)).collect(),
        }
    }

    fn plan_layout(
        &self,
        store: &Store,
        index: &StoredBlob,
        docker: &[DockerEntry],
    ) -> Result<Vec<Planned>, LoadError> {
        let file = "index.json";
        let json = store.read_blob(&index.digest, MAX_DOCUMENT_BYTES)?;
        let index = match manifest::parse(&json).map_err(|source| LoadError::Manifest { file, source })? {
            Document::Index(index) => index,
            Document::Manifest(_) => return Err(LoadError::Json("index.json is not an index".to_owned())),
        };
        let mut plan = Vec::new();
        for entry in index.manifests.iter().filter(|entry| is_image(entry)) {
            let blob = self.need(&format!("blobs/sha256/{}", entry.digest.hex()))?;
            let mut names: Vec<Reference> = name_of(entry).into_iter().collect();
            if names.is_empty() {
                names = self.docker_names(store, blob, docker)?;
            }
            plan.push(Planned { digest: entry.digest, names, _pin: None });
        }
        Ok(plan)
    }

    /// The names that `manifest.json` gives to the image of a layout that `index.json` leaves nameless.
    fn docker_names(
        &self,
        store: &Store,
        blob: &StoredBlob,
        docker: &[DockerEntry],
    ) -> Result<Vec<Reference>, LoadError> {
        let json = store.read_blob(&blob.digest, MAX_DOCUMENT_BYTES)?;
        let Ok(Document::Manifest(manifest)) = manifest::parse(&json) else { return Ok(Vec::new()) };
        let same = |entry: &&DockerEntry| self.find(&entry.config).is_some_and(|c| c.digest == manifest.config.digest);
        let tags = docker.iter().filter(same).flat_map(|entry| entry.repo_tags.iter().flatten());
        Ok(tags.map(|tag| Reference::parse(tag)).collect::<Result<_, _>>()?)
    }

    /// Makes the manifest of an image in Docker's form. Its fields and their order are fixed: it has one digest wherever
    /// it is loaded.
    fn plan_docker(&self, store: &Store, entry: &DockerEntry) -> Result<Planned, LoadError> {
        let config = self.need(&entry.config)?;
        let mut layers = Vec::with_capacity(entry.layers.len());
        for layer in &entry.layers {
            let blob = self.need(layer)?;
            let media_type = store.blob_compression(&blob.digest)?.layer_media_type();
            layers.push(descriptor(media_type, blob.digest, blob.size));
        }
        let manifest = store_manifest(store, descriptor(media::OCI_CONFIG, config.digest, config.size), layers)?;
        let tags = entry.repo_tags.iter().flatten();
        let names = tags.map(|tag| Reference::parse(tag)).collect::<Result<_, _>>()?;
        Ok(Planned { digest: manifest.digest, names, _pin: Some(manifest.pin) })
    }
}

/// Writes one file of the archive as a blob; under `blobs/sha256/` the name tells the digest.
fn store_member(
    store: &Store,
    member: &Member,
    path: &LayerPath,
    data: &mut impl Read,
    buffer: &mut [u8],
) -> Result<StoredBlob, LoadError> {
    let shown = || String::from_utf8_lossy(&member.path).into_owned();
    let named = path.as_bytes().strip_prefix(b"blobs/sha256/").and_then(|name| std::str::from_utf8(name).ok());
    let expected = named.and_then(Digest::from_hex).map(|digest| (digest, member.size));
    let failed = |source: BlobError| match source {
        BlobError::Store(error) => LoadError::Store(error),
        source => LoadError::Blob { path: shown(), source },
    };
    let mut writer = store.blob_writer(expected)?;
    loop {
        match data.read(buffer).map_err(LoadError::Read)? {
            0 => return writer.finish().map_err(failed),
            count => writer.write(&buffer[..count]).map_err(failed)?,
        }
    }
}

/// Where a link inside the archive leads: a symbolic one from its own directory, a hard one from the root.
fn link_target(path: &LayerPath, member: &Member) -> Result<LayerPath, PathError> {
    if member.kind == Kind::HardLink {
        return LayerPath::clean(&member.link);
    }
    let mut parts: Vec<&[u8]> = path.as_bytes().split(|b| *b == b'/').collect();
    parts.pop();
    for part in member.link.split(|b| *b == b'/') {
        match part {
            b".." => drop(parts.pop().ok_or(PathError::DotDot)?),
            part => parts.push(part),
        }
    }
    LayerPath::clean(&parts.join(&b'/'))
}

/// Whether an entry of a layout is an image, and not an attestation or signature.
fn is_image(entry: &Descriptor) -> bool {
    let known = matches!(
        entry.media_type.as_str(),
        "" | media::OCI_MANIFEST | media::OCI_INDEX | media::DOCKER_MANIFEST | media::DOCKER_LIST
    );
    let unknown = entry.platform.as_ref().is_some_and(|platform: &Platform| platform.os == "unknown");
    known && !unknown && !entry.annotations.contains_key("vnd.docker.reference.type")
}

/// The full name in a layout's annotations. `org.opencontainers.image.ref.name` may also be a bare tag: that names nothing.
fn name_of(entry: &Descriptor) -> Option<Reference> {
    let full = entry.annotations.get("io.containerd.image.name");
    let short = entry.annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
    Reference::parse(full.or(short)?).ok()
}

pub(crate) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: Default::default() }
}

/// Writes a manifest of our own making.
pub(crate) fn store_manifest(
    store: &Store,
    config: Descriptor,
    layers: Vec<Descriptor>,
) -> Result<StoredBlob, LoadError> {
    let manifest = Manifest { schema_version: 2, media_type: Some(media::OCI_MANIFEST.to_owned()), config, layers };
    let json = serde_json::to_vec(&manifest).map_err(|error| LoadError::Json(error.to_string()))?;
    // Checks the number of layers and the like, as for one from a registry.
    manifest::parse(&json).map_err(|source| LoadError::Manifest { file: "manifest.json", source })?;
    store.put_document(&json, None).map_err(|source| match source {
        BlobError::Store(error) => LoadError::Store(error),
        source => LoadError::Blob { path: "manifest.json".to_owned(), source },
    })
}
