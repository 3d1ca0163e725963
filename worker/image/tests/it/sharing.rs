//! Nodes that serve each other, and collection by use.

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use skep_image::{
    BlobRequest, BlobSource, BlobStream, Digest, FetchError, Policy, Progress, Reference, RegistryAuth, RemoveError,
    Store, Wish,
};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::common::{Fake, Image, Layer, Node, RealRegistry, tar};
use crate::require;

/// Another node, without the network between: serves as a node serves a ticket.
struct Peer {
    store: Store,
    /// Change each byte.
    lies: bool,
}

impl BlobSource for Peer {
    fn describe(&self) -> String {
        "node peer".to_owned()
    }

    fn fetch(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, FetchError>> {
        async move {
            let not_found =
                |_| FetchError::NotFound { what: format!("blob {}", request.digest), place: "node peer".to_owned() };
            let (_, mut file) = self.store.open_blob(&request.digest).await.map_err(not_found)?;
            file.seek(std::io::SeekFrom::Start(request.offset)).await.unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).await.unwrap();
            if self.lies {
                bytes.iter_mut().for_each(|byte| *byte ^= 1);
            }
            let pieces: Vec<_> = bytes.chunks(10_000).map(|piece| Ok(bytes::Bytes::copy_from_slice(piece))).collect();
            Ok(BlobStream { offset: request.offset, bytes: futures::stream::iter(pieces).boxed() })
        }
        .boxed()
    }
}

#[tokio::test]
async fn an_image_comes_from_another_node_when_the_registry_is_down() {
    require!("docker-registry", "skopeo", "busybox");
    let mut registry = RealRegistry::plain();
    let image = Image::busybox();
    registry.push(&image, "busybox:1", &[]);
    let name = registry.reference("busybox:1");
    let (first, second, third) = (Node::new(), Node::new(), Node::new());
    first.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap();
    registry.stop();

    let honest: Arc<dyn BlobSource> = Arc::new(Peer { store: first.images.store().clone(), lies: false });
    let liar: Arc<dyn BlobSource> = Arc::new(Peer { store: first.images.store().clone(), lies: true });
    let wish = Wish {
        digest: Some(image.manifest),
        reference: Some(name.clone()),
        peers: vec![liar.clone(), honest],
        ..Wish::default()
    };
    let held = second.images.ensure(wish).await.unwrap();
    let original = first.images.store().resolve(&image.manifest).unwrap();
    assert_eq!(held.image.config, original.config);
    // Byte for byte the same blobs: the second can serve as the first did.
    assert_eq!(second.entries("blobs/sha256"), first.entries("blobs/sha256"));
    assert_eq!(
        second.images.store().image_closure(&image.manifest),
        first.images.store().image_closure(&image.manifest)
    );
    second.assert_nothing_half_made();

    // With liars and a dead registry only, each place says why.
    let wish =
        Wish { digest: Some(image.manifest), reference: Some(name.clone()), peers: vec![liar], ..Wish::default() };
    let text = third.images.ensure(wish).await.unwrap_err().to_string();
    assert!(text.contains("from node peer: wrong digest") && text.contains("is unreachable"), "{text}");
    let nobody = Wish { digest: Some(image.manifest), ..Wish::default() };
    assert!(third.images.ensure(nobody).await.unwrap_err().to_string().contains("no other node or registry"));
    third.assert_nothing_half_made();
}

#[tokio::test]
async fn only_blobs_of_held_images_are_served() {
    require!();
    let image = Image::of_size(1, 100);
    let fake = Fake::registry(&image, |_| None);
    let node = Node::new();
    node.images.pull(&fake.reference(), &RegistryAuth::Anonymous, Progress::none()).await.unwrap();
    let store = node.images.store();
    for blob in image.blobs.keys() {
        let (size, _) = store.open_blob(blob).await.unwrap();
        assert_eq!(size, image.blobs[blob].len() as u64);
    }
    let stray = Digest::of(b"stray");
    std::fs::write(node.dir.path().join("blobs/sha256").join(stray.hex()), b"stray").unwrap();
    assert!(store.open_blob(&stray).await.is_err());
    assert!(store.open_blob(&Digest::of(b"none")).await.is_err());
    assert_eq!(
        store.image_closure(&image.manifest).unwrap().into_iter().collect::<HashSet<_>>(),
        image.blobs.keys().copied().collect()
    );
    assert_eq!(store.image_closure(&stray), None);
}

#[tokio::test]
async fn removal_and_pruning_keep_what_is_used_or_shared() {
    require!();
    let shared = Layer::gzip(&tar(&[("shared", b"s")]));
    let one = Image::new(&[shared.clone(), Layer::plain(&tar(&[("one", b"1")]))], &skep_image::Platform::host());
    let two = Image::new(&[shared, Layer::plain(&tar(&[("two", b"22")]))], &skep_image::Platform::host());
    let (first, second) = (Fake::registry(&one, |_| None), Fake::registry(&two, |_| None));
    let node = Node::new();
    let store = node.images.store();
    let pull = |fake: &Fake| {
        let (images, name) = (node.images.clone(), fake.reference());
        async move { images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap() }
    };
    pull(&first).await;
    pull(&second).await;
    let extra = Reference::parse("mine:1").unwrap();
    store.tag(&one.manifest, &extra).await.unwrap();
    assert_eq!(store.find("mine:1").unwrap().tags().count(), 2);
    let none = HashSet::new();

    // A name goes first.
    let gone = store.remove("mine:1", &none, false).await.unwrap();
    assert_eq!((gone.untagged, gone.deleted, gone.freed_bytes), (vec![extra], vec![], 0));
    // In use: by a digest the caller names, or by a lease.
    let used: HashSet<_> = [one.manifest].into();
    let name = first.reference().to_string();
    assert!(matches!(store.remove(&name, &used, true).await, Err(RemoveError::InUse(_))));
    let held = node.images.ensure(Wish { digest: Some(one.manifest), ..Wish::default() }).await.unwrap();
    assert!(matches!(store.remove(&name, &none, true).await, Err(RemoveError::InUse(_))));
    let all = Policy { named: true, ..Policy::default() };
    let pruned = store.prune(&all, &[two.manifest].into(), 1 << 40).await.unwrap();
    assert_eq!(pruned.deleted, []);
    drop(held);

    let gone = store.remove(&name, &none, false).await.unwrap();
    assert_eq!(gone.deleted, [one.manifest]);
    assert!(gone.freed_bytes > 0);
    // The shared layer stays for the other image.
    let left = store.resolve(&two.manifest).unwrap();
    assert!(left.layer_paths.iter().all(|path| path.is_dir()));
    assert_eq!(node.entries("layers").len(), 2);
    assert_eq!(node.entries("blobs/sha256").len(), two.blobs.len());
    assert_eq!(store.prune(&Policy::default(), &none, 1 << 40).await.unwrap().deleted, [], "a name protects");
    assert_eq!(store.prune(&all, &none, 1 << 40).await.unwrap().deleted, [two.manifest]);
    assert!(node.entries("layers").is_empty() && node.entries("blobs/sha256").is_empty());
    assert!(matches!(store.remove("nothing", &none, false).await, Err(RemoveError::Find(_))));
}
