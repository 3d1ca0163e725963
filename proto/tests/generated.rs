//! The committed code in `src/gen` is what the `.proto` files say. `SKEP_REGENERATE=1 cargo test -p skep-proto` writes
//! it anew; without it a difference fails.
#![allow(clippy::unwrap_used)]

use std::path::Path;

const FILES: [&str; 14] = [
    "types.proto",
    "specs.proto",
    "objects.proto",
    "store.proto",
    "control.proto",
    "logs.proto",
    "dispatch.proto",
    "ca.proto",
    "peer.proto",
    "relay.proto",
    "managers.proto",
    "daemon.proto",
    "netd.proto",
    "checks.proto",
];

/// Messages with passwords, tokens or keys: `src/redact.rs` has their `Debug`.
const SECRET: [&str; 17] = [
    ".skep.v1.RegistryAuth",
    ".skep.v1.IssueRequest",
    ".skep.v1.SwarmJoinRequest",
    ".skep.v1.SwarmInitResponse",
    ".skep.v1.JoinTokenResponse",
    ".skep.v1.Cluster",
    ".skep.v1.RootRotation",
    ".skep.v1.RotateRootRequest",
    ".skep.v1.ConfigureRequest",
    ".skep.v1.Payload",
    ".skep.v1.CreateSecretRequest",
    ".skep.v1.CreateConfigRequest",
    ".skep.v1.GetConfigResponse",
    ".skep.v1.RotateRequest",
    ".skep.v1.UnlockKeyResponse",
    ".skep.v1.UnlockRequest",
    ".skep.v1.EnterResponse",
];

#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let descriptors = protox::compile(FILES, [root.join("v1")]).unwrap();
    tonic_prost_build::configure()
        .build_transport(false)
        // Sorted maps: the same object always has the same bytes (state digests, revisions compared by encoding).
        .btree_map(".")
        // Shared between the sessions that it is sent to.
        .bytes(".skep.v1.SessionDown.network")
        .bytes(".skep.v1.Payload.data")
        .skip_debug(SECRET)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    let fresh = std::fs::read_to_string(out.path().join("skep.v1.rs")).unwrap();
    let committed = root.join("src/gen/skep.v1.rs");
    if std::env::var_os("SKEP_REGENERATE").is_some() {
        std::fs::write(&committed, &fresh).unwrap();
        return;
    }
    let stored = std::fs::read_to_string(&committed).unwrap_or_default();
    assert!(stored == fresh, "src/gen is out of date: run `SKEP_REGENERATE=1 cargo test -p skep-proto`");
}
