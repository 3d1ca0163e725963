//! Secrets and configs as the managers keep them: made, listed, shown, rotated, refused and removed, from any manager, and
//! there again after a restart.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::time::Duration;

use serde_json::Value;
use skep_tests::{Lab, until_some};
use tempfile::NamedTempFile;

const SOON: Duration = Duration::from_secs(30);
const FAILED: i32 = 1;
const USAGE: i32 = 64;

/// A file with these bytes, which the lab's hosts see under the same name.
fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

/// `inspect` of one object.
fn inspect(lab: &Lab, host: u32, noun: &str, name: &str) -> Value {
    let printed = lab.skep(host, &[noun, "inspect", name]).ok();
    serde_json::from_str::<Value>(&printed).unwrap()[0].clone()
}

/// The versions of the secret that a service's current revision uses.
fn used(lab: &Lab, service: &str) -> Vec<u64> {
    let service = inspect(lab, 1, "service", service);
    let secrets = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Secrets"].as_array().cloned().unwrap_or_default();
    secrets.iter().map(|secret| secret["Version"].as_u64().unwrap()).collect()
}

#[test]
fn secrets_are_made_listed_rotated_and_removed() {
    const DATA: &str = "correct horse battery staple";
    let lab = Lab::up("secrets", 1, &[]);
    let skep = |args: &[&str]| lab.skep(1, args);
    let data = file(DATA.as_bytes());
    let id = skep(&["secret", "create", "--label", "tier=back", "db", path(&data)]).ok();
    lab.skep_with_input(1, &["secret", "create", "piped", "-"], data.path()).ok();
    lab.skep_with_input(1, &["config", "create", "--template-driver", "golang", "db", "-"], data.path()).ok();

    assert_eq!(lab.list(1, &["secret", "ls"]).len(), 2);
    let named = lab.list(1, &["secret", "ls", "--filter", "label=tier=back"]);
    assert_eq!((named.len(), named[0]["ID"].as_str().unwrap()), (1, id.as_str()));
    assert_eq!(skep(&["secret", "ls", "-q", "--filter", "name=db"]).ok(), id);
    let secret = inspect(&lab, 1, "secret", &id[..8]);
    assert_eq!((&secret["Spec"]["Name"], &secret["Versions"][0]["Size"]), (&"db".into(), &DATA.len().into()));
    let config = inspect(&lab, 1, "config", "db");
    assert_eq!(config["Spec"]["Data"], "Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ==");
    assert_eq!(config["Spec"]["Templating"]["Name"], "golang");
    assert!(skep(&["config", "inspect", "--pretty", "db"]).ok().ends_with(DATA));

    // Made again, and used.
    skep(&["secret", "create", "db", path(&data)]).fails(FAILED, "name db is taken by secret");
    let other = skep(&["service", "create", "--help"]).ok();
    assert!(other.contains("--secret <SECRET>") && other.contains("--config <CONFIG>"));
    lab.load_busybox();
    lab.create("web", &["--replicas", "0", "--secret", "db", "--config", "source=db,target=/etc/db"], &["true"]);
    lab.create("api", &["--replicas", "0", "--secret", "source=db@1,target=key,uid=33,mode=0400"], &["true"]);
    skep(&["secret", "rm", "db"]).fails(FAILED, "secret db is in use by services api, web");
    skep(&["config", "rm", "db"]).fails(FAILED, "config db is in use by service web");
    let pretty = skep(&["service", "inspect", "--pretty", "api"]).ok();
    assert!(pretty.contains("/run/secrets/key from db@1 (pinned)"), "{pretty}");

    // A new version: who has it pinned is told, the other one follows.
    let newer = file(b"tr0ub4dor");
    let rotated = skep(&["secret", "rotate", "db", path(&newer)]);
    assert!(rotated.stderr.contains("service api has version 1 pinned"), "{rotated:?}");
    assert!(rotated.stderr.contains("version 2: one service follows"), "{rotated:?}");
    rotated.ok();
    assert_eq!((used(&lab, "web"), used(&lab, "api")), (vec![2], vec![1]));
    skep(&["secret", "rollback", "--detach", "db"]).ok();
    let versions = lab.list(1, &["secret", "history", "db"]);
    let column = |name: &str| -> Vec<String> {
        versions.iter().map(|version| version[name].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(column("Version"), ["3", "2", "1"]);
    assert_eq!(
        (column("CopiedFrom"), column("UsedBy")),
        (vec!["1".into(), String::new(), String::new()], vec!["web".into(), String::new(), "api (pinned)".into()],)
    );
    // What runs in place must lie where it can be swapped.
    skep(&["service", "update", "--detach", "--secret-add", "source=db,target=/etc/key", "web"]).ok();
    skep(&["secret", "rotate", "--live", "db", path(&newer)]).fails(FAILED, "service web has it at /etc/key");
    // An update of something else leaves versions alone.
    skep(&["service", "rollback", "--detach", "--to", "1", "web"]).ok();
    skep(&["service", "update", "--detach", "--label-add", "a=b", "web"]).ok();
    assert_eq!(used(&lab, "web"), [1]);

    skep(&["service", "update", "--detach", "--secret-rm", "db", "--config-rm", "db", "web"]).ok();
    skep(&["service", "rm", "api"]).ok();
    assert_eq!(skep(&["secret", "rm", "db", "piped"]).ok(), "db\npiped");
    skep(&["config", "rm", "db"]).ok();
    assert_eq!(lab.list(1, &["secret", "ls"]).len(), 0);
    skep(&["service", "rollback", "--detach", "--to", "1", "web"]).fails(FAILED, "which is not there any more");
    skep(&["swarm", "doctor"]).ok();
}

#[test]
fn mistakes_with_secrets_are_told() {
    let lab = Lab::up("nosecrets", 1, &[]);
    lab.load_busybox();
    let skep = |args: &[&str]| lab.skep(1, args);
    let (empty, small) = (file(b""), file(b"x"));
    let (largest, large) = (file(&vec![b'x'; 512_000]), file(&vec![b'x'; 512_001]));
    let (largest_config, large_config) = (file(&vec![b'x'; 1_024_000]), file(&vec![b'x'; 1_024_001]));
    skep(&["secret", "create", "x", path(&empty)]).fails(USAGE, "at least one byte");
    skep(&["secret", "create", "x", path(&large)]).fails(USAGE, "at most 512000 bytes");
    skep(&["config", "create", "x", path(&large_config)]).fails(USAGE, "at most 1024000 bytes");
    skep(&["secret", "create", "a/b", path(&small)]).fails(USAGE, "not a valid name");
    skep(&["secret", "create", "x", "/nowhere"]).fails(USAGE, "cannot read /nowhere");
    skep(&["secret", "create", "--template-driver", "jinja", "x", path(&small)]).fails(USAGE, "golang");
    skep(&["secret", "inspect", "nosuch"]).fails(FAILED, "no such secret: nosuch");
    skep(&["secret", "rm", "nosuch"]).fails(FAILED, "no such secret: nosuch");
    skep(&["secret", "rotate", "nosuch", path(&small)]).fails(FAILED, "no such secret: nosuch");
    skep(&["secret", "create", "large", path(&largest)]).ok();
    skep(&["config", "create", "large", path(&largest_config)]).ok();
    skep(&["config", "create", "empty", path(&empty)]).ok();
    skep(&["secret", "rollback", "large"]).fails(FAILED, "never rotated");
    skep(&["secret", "rollback", "--to", "7", "large"]).fails(FAILED, "secret large has no version 7");
    skep(&["secret", "rotate", "--signal", "HUP", "large", path(&small)]).fails(USAGE, "--live");

    let create = |flags: &[&str]| skep(&[&["service", "create", "--detach"], flags, &["busybox:1"]].concat());
    create(&["--secret", "nosuch"]).fails(FAILED, "secret nosuch not found");
    create(&["--secret", "large@2"]).fails(FAILED, "secret large has no version 2");
    create(&["--secret", "large", "--secret", "large"]).fails(USAGE, "have the same target /run/secrets/large");
    create(&["--config", "source=large,target=../x"]).fails(USAGE, "..");
    create(&["--secret", "source=large,mode=99"]).fails(USAGE, "octal");
    create(&["--secret", "source=large,uid=root"]).fails(USAGE, "not the number of a user");
    assert_eq!(lab.list(1, &["service", "ls"]).len(), 0, "nothing is half-made");

    // Old versions that nobody uses do not pile up.
    for _ in 0..11 {
        skep(&["secret", "rotate", "--quiet", "large", path(&small)]).ok();
    }
    until_some("ten versions to be left", SOON, || {
        let left = skep(&["secret", "history", "-q", "large"]).ok();
        let left: Vec<&str> = left.lines().collect();
        if left.first() == Some(&"12") && left.len() == 10 { Ok(()) } else { Err(format!("{left:?}")) }
    });
    skep(&["swarm", "doctor"]).ok();
}

#[test]
fn any_manager_takes_secrets_and_one_that_was_killed_gets_them() {
    const DATA: &str = "correct horse battery staple";
    let lab = Lab::with_managers("kept", 3, 3);
    let data = file(DATA.as_bytes());
    lab.skep(2, &["secret", "create", "db", path(&data)]).ok();
    lab.skep(3, &["secret", "rotate", "db", path(&data)]).ok();
    assert_eq!(inspect(&lab, 1, "secret", "db")["Versions"].as_array().unwrap().len(), 2);
    let leader = lab.leader();
    lab.command(&["kill", &leader.to_string()]).ok();
    let other = if leader == 1 { 2 } else { 1 };
    lab.ask(other);
    lab.skep(other, &["secret", "create", "second", path(&data)]).ok();
    lab.command(&["start", &leader.to_string()]).ok();
    lab.settled(3, SOON);
    until_some("the one that came back to have both", SOON, || {
        let listed = lab.list(leader, &["secret", "ls"]);
        if listed.len() == 2 { Ok(()) } else { Err(format!("{listed:#?}")) }
    });
    lab.run(&["swarm", "doctor"]).ok();
}
