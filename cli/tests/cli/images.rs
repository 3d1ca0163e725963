//! `image load|import|pull|rm|prune`.

use std::io::Write as _;
use std::process::Stdio;

use skep_proto::v1::{ImageProgress, LocalImage};

use crate::fake::{Fake, Script};
use crate::run::{command, finish, skep};

fn loaded() -> Vec<ImageProgress> {
    let step = |id: &str, status: &str| ImageProgress {
        id: id.to_owned(),
        status: status.to_owned(),
        ..ImageProgress::default()
    };
    let image = LocalImage {
        digest: "sha256:0123".to_owned(),
        names: vec!["whoami:latest".to_owned()],
        ..LocalImage::default()
    };
    vec![
        step("sha256:aabbccddeeff0011", "extracting"),
        step("sha256:aabbccddeeff0011", "extracting"),
        ImageProgress { warning: "one name was left out".to_owned(), ..ImageProgress::default() },
        ImageProgress { image: Some(image), ..step("", "done") },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_on_standard_input_arrives_whole() {
    let fake = Fake::manager(Script { progress: loaded(), ..Script::default() });
    let bytes: Vec<u8> = (0..1_000_000u32).map(|index| (index % 253) as u8).collect();
    let mut child = command(fake.socket(), &["image", "load"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writing = tokio::task::spawn_blocking(move || stdin.write_all(&sent).unwrap());
    let run = finish(child).await;
    writing.await.unwrap();
    assert_eq!((run.code, run.out.as_str()), (Some(0), "Loaded image: whoami:latest\n"), "{run:?}");
    assert_eq!(run.err, "aabbccddeeff: extracting\nwarning: one name was left out\ndone\n");
    assert_eq!(fake.script.lock().unwrap().received, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_carries_its_options() {
    let fake = Fake::manager(Script { progress: loaded(), ..Script::default() });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("root.tar");
    std::fs::write(&file, b"tar").unwrap();
    let file = file.to_str().unwrap();
    let args = ["image", "import", "-c", "CMD [\"/x\"]", "-m", "made here", "--platform", "linux/arm64", file, "x:1"];
    let run = skep(fake.socket(), &args).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "sha256:0123\n"), "{run:?}");
    let script = fake.script.lock().unwrap();
    let options = script.import.clone().unwrap();
    assert_eq!((options.reference.as_str(), options.message.as_str()), ("x:1", "made here"));
    assert_eq!(options.changes, ["CMD [\"/x\"]"]);
    assert_eq!(options.platform.unwrap().architecture, "arm64");
    assert_eq!(script.received, b"tar");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_prints_the_name() {
    let fake = Fake::manager(Script { progress: loaded(), ..Script::default() });
    let run = skep(fake.socket(), &["image", "pull", "-q", "whoami"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "whoami\n"), "{run:?}");
    assert!(run.err.contains("Digest: sha256:0123"), "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_fail_one_by_one() {
    let fake = Fake::manager(Script::default());
    let run = skep(fake.socket(), &["image", "rm", "gone", "used", "old:1"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(1), "Untagged: old:1\nDeleted: sha256:00\n"));
    assert_eq!(run.err, "error: no such image: gone\nerror: image used is in use by task web.1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_asks_first() {
    let fake = Fake::manager(Script::default());
    let run = skep(fake.socket(), &["image", "prune"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""));
    assert!(run.err.contains("Are you sure"), "{}", run.err);
    let run = skep(fake.socket(), &["image", "prune", "-f"]).await;
    assert_eq!(run.out, "Deleted Images:\ndeleted: sha256:00\n\nTotal reclaimed space: 2.5MB\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_listed() {
    let image = |names: &[&str]| LocalImage {
        digest: "sha256:00112233445566778899".to_owned(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        size_bytes: 1_500_000,
        ..LocalImage::default()
    };
    let fake = Fake::manager(Script { images: vec![image(&["nginx:1", "nginx:2"])], ..Script::default() });
    for noun in [&["images"][..], &["image", "ls"]] {
        let args = [noun, &["--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}"]].concat();
        let run = skep(fake.socket(), &args).await;
        assert_eq!(run.out, "nginx:1 001122334455 1.5MB\nnginx:2 001122334455 1.5MB\n");
    }
    let run = skep(fake.socket(), &["image", "ls", "-q"]).await;
    assert_eq!(run.out, "001122334455\n");
}
