//! Registries that are silent, slow, broken, or lie, played by a small server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use skep_image::{Digest, FetchError, Progress, PullError, RegistryAuth, ResolvedImage, Wish, chain};

use crate::common::{Answer, Fake, Image, Node, ranged};
use crate::require;

async fn pull(node: &Node, fake: &Fake) -> Result<(), skep_image::EnsureError> {
    node.images.pull(&fake.reference(), &RegistryAuth::Anonymous, Progress::none()).await.map(drop)
}

#[tokio::test]
async fn a_silent_registry_times_out_and_delays_nothing_that_is_here() {
    require!();
    // Accepts, and never says a word.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = skep_image::Reference::parse(&format!("{}/app:1", listener.local_addr().unwrap())).unwrap();
    let node = Node::impatient(Duration::from_millis(700));
    let started = Instant::now();
    let error = node.images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.unwrap_err();
    assert!(matches!(error, skep_image::EnsureError::Pull(PullError::Fetch(FetchError::Timeout { .. }))), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(10));

    let image = Image::of_size(1, 100);
    let fake = Fake::registry(&image, |_| None);
    pull(&node, &fake).await.unwrap();
    listener.set_nonblocking(true).unwrap();
    while listener.accept().is_ok() {}
    let wish = Wish { digest: Some(image.manifest), reference: Some(name), ..Wish::default() };
    node.images.ensure(wish).await.unwrap();
    assert!(listener.accept().is_err(), "the network was asked for an image that is here");
}

#[tokio::test]
async fn a_layer_that_stops_in_the_middle_times_out() {
    require!();
    let image = Image::of_size(2, 400_000);
    let layer = image.layers[0].to_string();
    let blobs = image.blobs.clone();
    let fake = Fake::registry(&image, move |request| {
        let resumed = request.headers.contains_key("range");
        request.path.ends_with(&layer).then(|| Answer {
            cut: Some(if resumed { 0 } else { 1000 }),
            hang: true,
            ..Answer::ok(blobs[&layer.parse::<Digest>().unwrap()].clone())
        })
    });
    let node = Node::impatient(Duration::from_millis(500));
    let error = pull(&node, &fake).await.unwrap_err();
    assert!(chain(&error).contains("did not answer within"), "{}", chain(&error));
    let ranges: Vec<_> = fake.requests_for(&image.layers[0].hex());
    assert_eq!(ranges.len(), 2, "one new connection, and no more");
    node.assert_nothing_half_made();
}

#[tokio::test]
async fn a_broken_download_is_resumed_where_it_broke() {
    require!();
    let image = Image::of_size(3, 900_000);
    let layer = image.layers[0];
    let bytes = image.blobs[&layer].clone();
    let fake = Fake::registry(&image, move |request| {
        // Every answer but the last ends after 300,000 bytes.
        request.path.ends_with(&layer.hex()).then(|| {
            let answer = ranged(request, &bytes);
            let cut = (answer.body.len() > 300_000).then_some(300_000);
            Answer { cut, ..answer }
        })
    });
    let node = Node::new();
    pull(&node, &fake).await.unwrap();
    let asked = fake.requests_for(&layer.hex());
    let ranges: Vec<_> = asked.iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(asked.len(), ranges.len() + 1, "only the first request asks for everything");
    assert!(ranges.len() >= 2, "{ranges:?}");
    node.assert_nothing_half_made();
}

#[tokio::test]
async fn a_registry_without_ranges_is_resumed_by_skipping() {
    require!();
    let image = Image::of_size(4, 500_000);
    let layer = image.layers[0];
    let bytes = image.blobs[&layer].clone();
    let tries = Arc::new(AtomicUsize::new(0));
    let fake = Fake::registry(&image, move |request| {
        request.path.ends_with(&layer.hex()).then(|| {
            let first = tries.fetch_add(1, Ordering::SeqCst) == 0;
            Answer { cut: first.then_some(200_000), ..Answer::ok(bytes.clone()) }
        })
    });
    pull(&Node::new(), &fake).await.unwrap();
    assert_eq!(fake.requests_for(&layer.hex()).len(), 2);
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    require!();
    let image = Image::of_size(5, 100);
    let refusals = Arc::new(AtomicUsize::new(0));
    let fake = Fake::registry(&image, move |_| {
        let turn = refusals.fetch_add(1, Ordering::SeqCst);
        turn.is_multiple_of(2).then(|| Answer::status(if turn.is_multiple_of(4) { 503 } else { 429 }))
    });
    pull(&Node::new(), &fake).await.unwrap();

    let always =
        Fake::start(|_| Answer { body: br#"{"errors":[{"message":"on fire"}]}"#.to_vec(), ..Answer::status(500) });
    let error = pull(&Node::new(), &always).await.unwrap_err();
    assert_eq!(error.to_string(), format!("registry {} refused: HTTP 500: on fire", always.address));
}

#[tokio::test]
async fn lies_and_nonsense_are_told_apart() {
    require!();
    let image = Image::of_size(6, 1000);
    let node = Node::new();

    let other = image.blobs.clone();
    let layer = image.layers[0];
    let fake = Fake::registry(&image, move |request| {
        request.path.ends_with(&layer.hex()).then(|| Answer::ok(vec![b'x'; other[&layer].len()]))
    });
    assert!(chain(&pull(&node, &fake).await.unwrap_err()).contains("wrong digest"));

    let manifest = image.blobs[&image.manifest].clone();
    let fake = Fake::registry(&image, move |request| {
        let wrong = Digest::of(b"wrong").to_string();
        request.path.ends_with("/1").then(|| Answer::ok(manifest.clone()).header("Docker-Content-Digest", wrong))
    });
    assert!(chain(&pull(&node, &fake).await.unwrap_err()).contains("wrong digest"));

    for (body, part) in [
        (b"<html>welcome</html>".to_vec(), "malformed manifest"),
        (br#"{"schemaVersion": 1}"#.to_vec(), "version 1"),
        (vec![b' '; 5 << 20], "more than 4 MiB"),
    ] {
        let fake = Fake::start(move |_| Answer::ok(body.clone()));
        let text = chain(&pull(&node, &fake).await.unwrap_err());
        assert!(text.contains(part), "{text}");
    }
    let fake = Fake::start(|_| Answer::status(307).header("Location", "/v2/app/manifests/1"));
    assert!(chain(&pull(&node, &fake).await.unwrap_err()).contains("redirects too often"));
    let fake = Fake::start(|_| Answer::status(418));
    assert!(chain(&pull(&node, &fake).await.unwrap_err()).contains("HTTP 418"));
    node.assert_nothing_half_made();
    assert!(node.images.store().held().is_empty());
}

#[tokio::test]
async fn bearer_tokens_are_fetched_with_the_right_scope_and_renewed() {
    require!();
    let image = Image::of_size(7, 1000);
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let realm = address.clone();
    let tokens = Arc::new(AtomicUsize::new(0));
    let fake = Fake::registry(&image, move |request| {
        if request.path.starts_with("/token") {
            // Each token serves once: the second request must renew it.
            let count = tokens.fetch_add(1, Ordering::SeqCst);
            return Some(Answer::ok(format!(r#"{{"token":"t{count}"}}"#).into_bytes()));
        }
        let newest = format!("Bearer t{}", tokens.load(Ordering::SeqCst).wrapping_sub(1));
        let manifest = request.path.contains("/manifests/");
        let good = request.headers.get("authorization") == Some(&newest);
        if good && (manifest || tokens.load(Ordering::SeqCst) > 1) {
            return None;
        }
        let challenge =
            format!(r#"Bearer realm="http://{}/token",service="s",scope="repository:app:pull""#, realm.get().unwrap());
        Some(Answer::status(401).header("WWW-Authenticate", challenge))
    });
    address.set(fake.address.clone()).unwrap();
    let node = Node::new();
    let auth = RegistryAuth::Password { username: "u".into(), password: "p w".into() };
    node.images.pull(&fake.reference(), &auth, Progress::none()).await.unwrap();
    let asked = fake.requests_for("/token");
    assert!(asked.len() >= 2 && asked.iter().all(|request| request.method == "GET"));
    assert_eq!(asked[0].path, "/token?service=s&scope=repository%3Aapp%3Apull&account=u");
    assert_eq!(asked[0].headers["authorization"], "Basic dTpwIHc=");
}

#[tokio::test]
async fn equal_wishes_are_fetched_once() {
    require!();
    let image = Image::of_size(8, 2_000_000);
    let fake = Fake::registry(&image, |_| None);
    let node = Node::new();
    let wishes = (0..16).map(|_| {
        let (images, reference) = (node.images.clone(), fake.reference().with_digest(image.manifest));
        tokio::spawn(async move {
            let wish = Wish { reference: Some(reference), ..Wish::default() };
            images.ensure(wish).await.unwrap().image
        })
    });
    let wishes: Vec<_> = wishes.collect();
    let mut got: Vec<Arc<ResolvedImage>> = Vec::new();
    for wish in wishes {
        got.push(wish.await.unwrap());
    }
    assert!(got.iter().all(|image| *image == got[0]));
    for blob in image.blobs.keys() {
        assert_eq!(fake.requests_for(&blob.hex()).len(), 1, "{blob}");
    }
    // It came by its digest: it is known by that, not by the tag.
    let record = node.images.store().image(&image.manifest).unwrap();
    assert_eq!(record.names.into_iter().collect::<Vec<_>>(), [fake.reference().pinned(image.manifest)]);
}

#[tokio::test]
async fn a_cancelled_pull_leaves_nothing() {
    require!();
    let image = Image::of_size(9, 3_000_000);
    let layer = image.layers[0];
    let bytes = image.blobs[&layer].clone();
    let fake = Fake::registry(&image, move |request| {
        let stuck = Answer { cut: Some(1_000_000), hang: true, ..Answer::ok(bytes.clone()) };
        request.path.ends_with(&layer.hex()).then_some(stuck)
    });
    let node = Node::new();
    let (images, name) = (node.images.clone(), fake.reference());
    let task =
        tokio::spawn(async move { images.pull(&name, &RegistryAuth::Anonymous, Progress::none()).await.map(drop) });
    let deadline = Instant::now() + Duration::from_secs(20);
    while fake.requests_for(&layer.hex()).is_empty() {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    task.abort();
    let _ = task.await;
    tokio::task::spawn_blocking(move || node.assert_nothing_half_made()).await.unwrap();
}
