//! A removed node is out within two seconds: what it fetches ends, and nobody answers its certificate any more.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use skep_tests::{IDLE, Lab, Output, big, until, until_some};

const SOON: Duration = Duration::from_secs(60);
/// Everywhere, says the design.
const OUT: Duration = Duration::from_secs(2);
/// The host that holds the image, and the one that fetches it.
const HOLDER: u32 = 1;
const REMOVED: u32 = 4;
const IMAGE_PORT: u16 = 2378;
const MANAGERS_PORT: u16 = 2377;
/// Size of the image, and how fast it may come: half a minute.
const MIB: usize = 96;
const MBIT: u32 = 24;

/// The certificate of a host, kept aside: the host deletes its own when it is removed.
struct Certificate<'a> {
    lab: &'a Lab,
    host: u32,
    dir: tempfile::TempDir,
}

impl<'a> Certificate<'a> {
    fn of(lab: &'a Lab, host: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in ["node.crt", "node.key", "root.crt"] {
            std::fs::copy(lab.data(host).join("identity").join(file), dir.path().join(file)).unwrap();
        }
        // An empty message, framed as gRPC has it: not compressed, no bytes.
        std::fs::write(dir.path().join("empty"), [0; 5]).unwrap();
        Self { lab, host, dir }
    }

    /// A gRPC call from the host by its certificate; what curl printed, headers included.
    fn call(&self, to: u32, port: u16, method: &str) -> Output {
        let path = |file: &str| self.dir.path().join(file).display().to_string();
        let url = format!("https://10.90.0.{to}:{port}/{method}");
        let mut curl =
            vec!["curl", "--silent", "--show-error", "--include", "--insecure", "--http2", "--max-time", "2"];
        let (cert, key, body) = (path("node.crt"), path("node.key"), format!("@{}", path("empty")));
        curl.extend(["--cert", &cert, "--key", &key, "--data-binary", &body]);
        curl.extend(["-H", "content-type: application/grpc", "-H", "te: trailers", &url]);
        self.lab.exec(self.host, &curl)
    }

    /// Whether a manager takes a call: it says then that the (empty) request is not valid.
    fn is_answered_by(&self, manager: u32) -> bool {
        self.call(manager, MANAGERS_PORT, "skep.v1.Dispatch/ImageSources").stdout.contains("grpc-status: 3")
    }

    /// Whether the images' port of a node takes one.
    fn is_served_by(&self, node: u32) -> bool {
        self.call(node, IMAGE_PORT, "skep.v1.Peer/FetchBlob").stdout.contains("grpc-status")
    }
}

#[test]
fn a_removed_nodes_fetch_and_calls_end_within_two_seconds() {
    let lab = Lab::with_managers("fetch", 4, 3);
    lab.ask(HOLDER);
    lab.skep_with_input(HOLDER, &["image", "load"], &big("big:1", MIB).archive()).ok();
    lab.throttle(REMOVED, MBIT);
    let before = lab.received(REMOVED);
    let constraint = format!("node.hostname==host{REMOVED}");
    let create = ["service", "create", "--detach", "--name", "big", "--constraint", &constraint, "big:1"];
    lab.run(&[&create[..], &IDLE].concat()).ok();
    until("the fetch to be under way", SOON, || lab.received(REMOVED) > before + (8 << 20));
    assert!(!lab.connections(HOLDER, IMAGE_PORT, REMOVED).is_empty());
    let certificate = Certificate::of(&lab, REMOVED);
    assert!((1..=3).all(|manager| certificate.is_answered_by(manager)));
    assert!(certificate.is_served_by(HOLDER));
    let sessions = || (1..=3).map(|manager| lab.connections(manager, MANAGERS_PORT, REMOVED).len()).sum::<usize>();
    assert!(sessions() > 0);

    lab.ask(2);
    let started = Instant::now();
    lab.run(&["node", "rm", "--force", &format!("host{REMOVED}")]).ok();
    let removed = started.elapsed();
    let ended = since(started, "the fetch to end", || lab.connections(HOLDER, IMAGE_PORT, REMOVED).is_empty());
    let refused = since(started, "its calls to be refused", || {
        (1..=3).all(|manager| !certificate.is_answered_by(manager)) && !certificate.is_served_by(HOLDER)
    });
    let gone = since(started, "its connections to managers to end", || sessions() == 0);
    let bytes = lab.received(REMOVED);
    eprintln!(
        "from the start of `node rm`: answered after {removed:?}; the fetch ended after {ended:?}, calls were refused \
         after {refused:?}, connections to managers were gone after {gone:?}"
    );
    // What the fetch would have brought by now, had it gone on: the wire is quiet.
    until_some("the wire to be quiet", OUT, || {
        let last = lab.received(REMOVED);
        std::thread::sleep(Duration::from_millis(200));
        let more = lab.received(REMOVED) - last;
        if more < 64 << 10 { Ok(()) } else { Err(format!("{more} bytes in 200 ms, {bytes} at the end")) }
    });
    for late in [ended, refused, gone] {
        assert!(late < OUT, "not out within {OUT:?}");
    }
    assert!(lab.received(REMOVED) - before < (MIB << 20) as u64, "the fetch was complete before the node was removed");
}

/// How long after `started` it holds.
#[track_caller]
fn since(started: Instant, what: &str, holds: impl FnMut() -> bool) -> Duration {
    until(what, SOON, holds);
    started.elapsed()
}
