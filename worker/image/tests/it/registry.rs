//! Pulls from the real registry.

use std::os::unix::fs::FileTypeExt;

use serde_json::json;
use skep_image::{FetchError, Platform, Progress, PullError, Reference, RegistryAuth, Wish, chain};

use crate::common::{Image, Layer, Node, RealRegistry, authority, tar, write_layout};
use crate::require;

fn password(password: &str) -> RegistryAuth {
    RegistryAuth::Password { username: "bee".into(), password: password.into() }
}

#[tokio::test]
async fn pulls_all_forms_of_layers_and_keeps_them() {
    require!("docker-registry", "skopeo", "busybox");
    let mut registry = RealRegistry::plain();
    let image = Image::busybox();
    registry.push(&image, "team/busybox:1", &[]);
    let node = Node::new();
    let name = registry.reference("team/busybox:1");

    let resolved = node.images.registry().resolve(&name, &RegistryAuth::Anonymous).await.unwrap();
    assert_eq!((resolved.digest, &resolved.platforms[..]), (image.manifest, &[Platform::host()][..]));

    let events = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = events.clone();
    let progress = Progress::new(move |event| seen.lock().unwrap().push(event));
    let record = node.images.pull(&name, &RegistryAuth::Anonymous, progress).await.unwrap();
    assert_eq!(record.digest, image.manifest);
    assert_eq!(record.tags().collect::<Vec<_>>(), [&name]);
    for layer in &image.layers {
        let last = events.lock().unwrap().iter().rfind(|event| event.layer == *layer).copied().unwrap();
        assert_eq!((last.status, last.current), (skep_image::LayerStatus::Done, last.total));
    }

    // The registry is not needed any more.
    registry.stop();
    let wish = Wish { digest: Some(image.manifest), reference: Some(name.clone()), ..Wish::default() };
    let held = node.images.ensure(wish).await.unwrap();
    assert_eq!(held.image.config.config.cmd, ["/bin/sh"]);
    let [top, middle, base] = &held.image.layer_paths[..] else { panic!("three layers, top first") };
    assert_eq!(std::fs::read(top.join("top")).unwrap(), b"top");
    assert!(std::fs::symlink_metadata(middle.join("etc/old")).unwrap().file_type().is_char_device());
    assert_eq!(std::fs::read_link(base.join("bin/sh")).unwrap().to_str(), Some("busybox"));
    let output = std::process::Command::new(base.join("bin/busybox")).args(["echo", "runs"]).output().unwrap();
    assert_eq!(output.stdout, b"runs\n");
    node.assert_nothing_half_made();

    // The kernel reads our whiteouts: `old` and `hidden` are gone.
    let merged = tempfile::tempdir().unwrap();
    let at = merged.path().display();
    let lower = held.image.layer_paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":");
    let script = format!("mount -t overlay none -o lowerdir={lower} {at} && cd {at} && echo etc/* opt/* top");
    let arguments = ["--mount", "--propagation", "private", "sh", "-c", &script];
    let output = std::process::Command::new("unshare").args(arguments).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "etc/new opt/* top\n", "{output:?}");

    // Nor after a restart.
    let dir = node.dir;
    drop((held, node.images));
    let store = skep_image::Store::open(dir.path(), skep_image::StoreOptions::default()).unwrap();
    assert_eq!(store.held(), [image.manifest]);
    assert_eq!(store.find("busybox").unwrap_err().to_string(), "no such image on this node: busybox");
    assert_eq!(store.find(&name.to_string()).unwrap().digest, image.manifest);
    assert_eq!(store.find(&image.manifest.hex()[..8]).unwrap().digest, image.manifest);
    assert_eq!(store.resolve(&image.manifest).unwrap().layer_paths.len(), 3);
}

#[tokio::test]
async fn an_index_gives_this_machines_image_under_its_own_digest() {
    require!("docker-registry", "skopeo");
    let registry = RealRegistry::plain();
    let ours = Platform::host();
    let foreign = Platform { os: "linux".into(), architecture: "s390x".into(), variant: None };
    let layout = tempfile::tempdir().unwrap();
    let images: Vec<Image> = [&foreign, &ours]
        .iter()
        .map(|platform| Image::new(&[Layer::gzip(&tar(&[("arch", platform.architecture.as_bytes())]))], platform))
        .collect();
    let entries = |images: &[Image], platforms: &[&Platform]| -> Vec<serde_json::Value> {
        images
            .iter()
            .zip(platforms)
            .map(|(image, platform)| {
                json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.manifest,
                    "size": image.blobs[&image.manifest].len(), "platform": platform,
                })
            })
            .collect()
    };
    let publish = |images: &[Image], platforms: &[&Platform], name: &str| {
        let dir = layout.path().join(name.replace(':', "-"));
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries(images, platforms)}).to_string();
        let digest = skep_image::Digest::of(index.as_bytes());
        write_layout(
            &dir,
            &images.iter().collect::<Vec<_>>(),
            vec![json!({
                "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": index.len(),
                "annotations": {"org.opencontainers.image.ref.name": "it"},
            })],
        );
        std::fs::write(dir.join("blobs/sha256").join(digest.hex()), index).unwrap();
        registry.push_layout(&dir, "it", name, &[]);
        digest
    };
    let both = publish(&images, &[&foreign, &ours], "multi:1");
    publish(&images[..1], &[&foreign], "foreign:1");

    let node = Node::new();
    let name = registry.reference("multi:1");
    let resolved = node.images.registry().resolve(&name, &RegistryAuth::Anonymous).await.unwrap();
    assert_eq!((resolved.digest, resolved.platforms), (both, vec![foreign.clone(), ours.clone()]));
    let record = node.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap();
    assert_eq!((record.digest, record.manifest, &record.platform), (both, images[1].manifest, &ours));
    let closure = node.images.store().image_closure(&both).unwrap();
    assert_eq!(closure.len(), 4, "index, manifest, config, layer");
    assert!(closure.contains(&both) && closure.contains(&images[1].manifest));

    let name = registry.reference("foreign:1");
    let error = node.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("image {name} has no manifest for {ours}; it offers linux/s390x"));
    // A single manifest for another platform is told by its config.
    registry.push(&images[0], "single:1", &[]);
    let name = registry.reference("single:1");
    let error = node.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap_err();
    assert!(error.to_string().contains("it offers linux/s390x"), "{error}");
    assert_eq!(node.images.store().held(), [both]);
}

#[tokio::test]
async fn unknown_images_and_digests_are_not_found() {
    require!("docker-registry", "skopeo");
    let mut registry = RealRegistry::plain();
    registry.push(&Image::of_size(1, 10), "known:1", &[]);
    let node = Node::new();
    for name in ["nosuch:1", "known:2"] {
        let name = registry.reference(name);
        let error = node.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("image \"{name}\" not found in its registry"));
    }
    let pinned = registry.reference("known:1").with_digest(skep_image::Digest::of(b"other"));
    let wish = Wish { reference: Some(pinned), ..Wish::default() };
    let error = node.images.ensure(wish).await.unwrap_err();
    assert!(error.to_string().contains("not found in its registry"), "{error}");

    registry.stop();
    let name = registry.reference("known:1");
    let error = node.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap_err();
    let expected = format!("registry {} is unreachable: ", registry.address);
    assert!(error.to_string().starts_with(&expected) && error.to_string().contains("refused"), "{error}");
    node.assert_nothing_half_made();
}

#[tokio::test]
async fn credentials_serve_only_who_brings_them() {
    require!("docker-registry", "skopeo");
    let registry = RealRegistry::with_password();
    let image = Image::of_size(2, 1000);
    registry.push(&image, "private:1", &["--dest-creds=bee:hive"]);
    let name = registry.reference("private:1");
    let node = Node::new();
    let refused = |error: skep_image::EnsureError| match error {
        skep_image::EnsureError::Pull(PullError::Fetch(error @ FetchError::Unauthorized { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let anonymous = node.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap_err();
    assert!(refused(anonymous).contains("--with-registry-auth"));
    let wrong = node.images.pull(&name, &password("wasp"), Progress::none()).await.unwrap_err();
    assert!(refused(wrong).contains("refused the credentials"));
    assert_eq!(node.images.registry().resolve(&name, &password("hive")).await.unwrap().digest, image.manifest);
    // A login that worked is not lent to the next caller.
    let anonymous = node.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap_err();
    refused(anonymous);
    node.images.pull(&name, &password("hive"), Progress::none()).await.unwrap();
    assert_eq!(node.images.store().held(), [image.manifest]);
}

#[tokio::test]
async fn damaged_layers_of_a_registry_are_refused() {
    require!("docker-registry", "skopeo");
    let registry = RealRegistry::plain();
    let node = Node::new();
    let pull = |name: Reference| {
        let images = node.images.clone();
        async move { images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await }
    };

    let image = Image::of_size(3, 300_000);
    registry.push(&image, "truncated:1", &[]);
    let file = registry.blob_file(&image.layers[0]);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..100_000]).unwrap();
    let error = pull(registry.reference("truncated:1")).await.unwrap_err();
    assert!(error.to_string().contains("truncated: 100000 of"), "{}", chain(&error));

    let image = Image::of_size(4, 300_000);
    registry.push(&image, "changed:1", &[]);
    let file = registry.blob_file(&image.layers[0]);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[150_000] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let error = pull(registry.reference("changed:1")).await.unwrap_err();
    assert!(error.to_string().contains("wrong digest"), "{}", chain(&error));

    let image = Image::of_size(5, 300_000);
    registry.push(&image, "longer:1", &[]);
    let file = registry.blob_file(&image.layers[0]);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.extend_from_slice(b"more");
    std::fs::write(&file, &bytes).unwrap();
    let error = pull(registry.reference("longer:1")).await.unwrap_err();
    assert!(error.to_string().contains("longer than"), "{}", chain(&error));

    assert!(node.images.store().held().is_empty());
    node.assert_nothing_half_made();
    assert!(node.entries("layers").is_empty());
}

#[tokio::test]
async fn a_registry_with_tls_on_loopback_needs_no_list() {
    require!("docker-registry", "skopeo");
    let (registry, _) = RealRegistry::with_tls("localhost");
    let image = Image::of_size(6, 1000);
    registry.push(&image, "app:1", &[]);
    let node = Node::new();
    node.images.pull(&registry.reference("app:1"), &RegistryAuth::Anonymous, Progress::none()).await.unwrap();
    assert_eq!(node.images.store().held(), [image.manifest]);
}

#[tokio::test]
async fn tls_is_verified_elsewhere() {
    require!("docker-registry", "skopeo");
    // An IPv4-mapped address is not loopback by the list's rule, so this registry has to prove itself.
    let (registry, ca) = RealRegistry::with_tls("::ffff:127.0.0.1");
    let image = Image::of_size(6, 1000);
    registry.push(&image, "app:1", &[]);
    let port = registry.address.rsplit(':').next().unwrap();
    let name = Reference::parse(&format!("[::ffff:127.0.0.1]:{port}/app:1")).unwrap();

    let trusting = Node::with(skep_image::RegistryConfig {
        extra_roots_pem: vec![ca.into_bytes()],
        ..skep_image::RegistryConfig::default()
    });
    trusting.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap();
    let wary = Node::with(skep_image::RegistryConfig {
        extra_roots_pem: vec![authority().0.into_bytes()],
        ..skep_image::RegistryConfig::default()
    });
    let error = wary.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    // The list lets it through.
    let listed = Node::with(skep_image::RegistryConfig {
        insecure: vec!["[::ffff:127.0.0.1]".parse().unwrap()],
        ..skep_image::RegistryConfig::default()
    });
    listed.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap();
}

#[tokio::test]
async fn hostile_layers_are_refused_and_leave_nothing() {
    require!("docker-registry", "skopeo");
    let registry = RealRegistry::plain();
    let node = Node::new();
    let mut evil = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..10].copy_from_slice(b"../../evil");
    header.set_size(1);
    header.set_cksum();
    evil.append(&header, &b"x"[..]).unwrap();
    let image = Image::new(&[Layer::gzip(&evil.into_inner().unwrap())], &Platform::host());
    registry.push(&image, "evil:1", &[]);
    let name = registry.reference("evil:1");
    let error = node.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap_err();
    assert!(chain(&error).contains("\"../../evil\" of the layer: its path contains \"..\""), "{}", chain(&error));
    node.assert_nothing_half_made();
    assert!(node.entries("layers").is_empty() && node.images.store().held().is_empty());
}
