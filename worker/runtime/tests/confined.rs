//! What confines a container besides capabilities, on the real kernel, as root: user and group ids that are nobody's on the
//! host, seccomp profiles of the user's, AppArmor where the kernel has it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::sync::Arc;

use common::users::{COUNT, FIRST, Users};
use common::*;
use skep_runtime::{
    AppArmor, Container, ContainerSpec, ExecEnd, Files, MemoryFile, MemoryPlace, Mount, MountKind, NetworkNamespace,
    Propagation, RuntimeError, Seccomp,
};

async fn refusal(world: &World, spec: ContainerSpec) -> String {
    match world.runtime.create(spec).await {
        Err(RuntimeError::NotStarted { code: 125, sentence }) => sentence,
        Err(other) => panic!("{other:?}"),
        Ok(container) => {
            container.remove().await.unwrap();
            panic!("it runs")
        }
    }
}

fn with_users(world: &World, users: &Users, id: &str, script: &str) -> ContainerSpec {
    let mut spec = world.spec(id, script);
    (spec.users, spec.network) = (Some(users.namespace()), users.network());
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_is_nobody_outside() {
    let (world, users) = (World::new(), Users::new());
    let layer = world.dir.path().join("layer");
    fs::create_dir(layer.join("webs")).unwrap();
    chown(layer.join("webs"), Some(33), Some(34)).unwrap();
    fs::write(layer.join("srv/stranger"), "").unwrap();
    chown(layer.join("srv/stranger"), Some(COUNT + 7), None).unwrap();
    let script = "id -u; stat -c %u:%g / /bin/busybox /webs /srv/stranger /dev/null /dev/shm /proc/1/exe; \
                  echo x > /etc/new && chown 33:34 /etc/new && stat -c %u:%g /etc/new; echo x >> /etc/passwd && stat -c %u /etc/passwd; \
                  echo x > /dev/null && echo device; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr '\t' ' '; \
                  cat /proc/self/uid_map | tr -s ' '; sleep 1000";
    let spec = with_users(&world, &users, "a", script);
    let (log_dir, spec) = (spec.log_dir.clone(), Arc::new(spec));
    let container = world.runtime.create(ContainerSpec::clone(&spec)).await.unwrap();
    let pid = pid(&container);
    until("it has said all", || {
        fs::read_to_string(log_dir.join("container.log")).is_ok_and(|log| log.contains("65536"))
    })
    .await;
    let (out, err) = said(&log_dir).await;
    let map = format!(" 0 {FIRST} {COUNT}");
    let rights = ["CapEff: 00000000a80425fb", "CapBnd: 00000000a80425fb", "NoNewPrivs: 1", "Seccomp: 2"];
    let owners = ["0", "0:0", "0:0", "33:34", "65534:0", "0:0", "0:0", "0:0", "33:34", "0", "device"];
    let lines = [&owners[..], &rights, &[map.as_str()]].concat();
    assert_eq!(out.lines().collect::<Vec<_>>(), lines, "{err}");
    // The host's view: of the process, of what it wrote, of the image that others share.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains(&format!("Uid:\t{FIRST}\t{FIRST}\t{FIRST}\t{FIRST}")), "{status}");
    let upper = world.dir.path().join("containers/run/a/upper/etc");
    assert_eq!(fs::metadata(upper.join("new")).unwrap().uid(), FIRST + 33);
    assert_eq!(fs::metadata(upper.join("passwd")).unwrap().uid(), FIRST);
    assert_eq!(fs::metadata(layer.join("etc/passwd")).unwrap().uid(), 0);
    commands_are_in_it_too(&world, &container, &spec).await;
    container.remove().await.unwrap();
}

async fn commands_are_in_it_too(world: &World, container: &Container, spec: &Arc<ContainerSpec>) {
    let script = "id -u; cat /proc/self/uid_map /proc/1/uid_map | tr -s ' ' | sort -u | wc -l; echo x > /etc/by-exec && stat -c %u /etc/by-exec";
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let running = world.runtime.exec(container, Arc::clone(spec), command).await.unwrap();
    let (end, out) = running.finish(SOON, 4096).await.unwrap();
    assert_eq!((end, String::from_utf8_lossy(&out).as_ref()), (ExecEnd::Exited(0), "0\n1\n0\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_ids_of_its_own_it_is_a_container_as_any() {
    let (world, users) = (World::new(), Users::new());
    let source = world.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for (name, mode) in [("open", 0o644), ("closed", 0o600)] {
        fs::write(source.join(name), "read\n").unwrap();
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut spec = with_users(
        &world,
        &users,
        "a",
        "id; hostname; cat /source/open; cat /source/closed || echo closed; echo x > /source/new || echo not written; \
         stat -c %u /source/open; cat /run/secrets/s; stat -L -c %u:%g:%a /run/secrets/s; \
         cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range; echo err >&2; echo again > /dev/stdout; pwd; touch /srv/x && echo made",
    );
    spec.user = "web".into();
    spec.hostname = "victim".into();
    spec.cwd = "/made/for/it".into();
    spec.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "99".into());
    spec.sysctls.insert("net.ipv4.ping_group_range".into(), "0 2000".into());
    fs::set_permissions(world.dir.path().join("layer/srv"), fs::Permissions::from_mode(0o777)).unwrap();
    let kind = MountKind::Bind { source, propagation: Propagation::Private, recursive: true };
    let place = MemoryPlace::Swappable("s".into());
    let memory = MountKind::Memory { path: place.mounted() };
    spec.mounts = vec![
        Mount { target: "/source".into(), read_only: false, kind },
        Mount { target: "/run/secrets".into(), read_only: true, kind: memory },
    ];
    let (uid, gid) = users.namespace().outside(33, 34).unwrap();
    let data = Arc::new(zeroize::Zeroizing::new(b"secret\n".to_vec()));
    let files = Files { version: 1, files: vec![MemoryFile { place, uid, gid, mode: 0o400, data }] };
    let log_dir = spec.log_dir.clone();
    let container = world.runtime.create_with(spec, Some(files)).await.unwrap();
    let status = container.wait().await;
    let (out, err) = said(&log_dir).await;
    container.remove().await.unwrap();
    assert_eq!(
        out,
        "uid=33(web) gid=34(web) groups=77(extra)\nvictim\nread\nclosed\nnot written\n65534\nsecret\n33:34:400\n99\n0\t2000\nagain\n\
         /made/for/it\nmade\n",
        "{status:?} {err}"
    );
    assert!(err.contains("err\n"));
}

/// A name in another encoding must not make a user the group of root, nor one who is in no groups.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_hide_nobody_in_an_images_users() {
    let world = World::new();
    for name in ["passwd", "group"] {
        let path = world.dir.path().join("layer/etc").join(name);
        let users = [&b"caf\xe9:x:50:\n"[..], &fs::read(&path).unwrap()].concat();
        fs::write(&path, users).unwrap();
    }
    let mut spec = world.spec("a", "id");
    spec.user = "33".into();
    assert_eq!(world.run(spec).await.1, "uid=33(web) gid=34(web) groups=77(extra)\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_count_in_its_own_network() {
    let (world, users) = (World::new(), Users::new());
    // A port below 1024 takes CAP_NET_BIND_SERVICE of the network's owner.
    let script = "timeout 1 nc -l -p 80; echo $?";
    assert_eq!(world.run(with_users(&world, &users, "root", script)).await.1, "143\n");
    let mut spec = with_users(&world, &users, "few", script);
    spec.capabilities.retain(|name| name != "NET_BIND_SERVICE");
    assert_eq!(world.run(spec).await.1, "1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_with_ids_of_its_own_is_refused() {
    let (world, users) = (World::new(), Users::new());
    let mut spec = with_users(&world, &users, "a", "true");
    spec.network = NetworkNamespace::Host;
    assert!(refusal(&world, spec).await.contains("host's network"));
    for (user, part) in [("70000", "user 70000"), ("0:99999", "group 99999")] {
        let mut spec = with_users(&world, &users, "b", "true");
        spec.user = user.into();
        let sentence = refusal(&world, spec).await;
        assert!(sentence.contains(part) && sentence.contains("remaps"), "{sentence}");
    }
    let mut spec = with_users(&world, &users, "c", "true");
    spec.users.as_mut().unwrap().path = "/no/such/namespace".into();
    assert!(refusal(&world, spec).await.contains("cannot open the user namespace"));
}

/// A file system without idmapped mounts: an overlay.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_shown_with_other_owners_is_refused_in_words() {
    let (world, users) = (World::new(), Users::new());
    let dir = world.dir.path();
    for name in ["over", "up", "work"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let options = format!("lowerdir={},upperdir={},workdir={}", path("layer"), path("up"), path("work"));
    let run = |program: &str, args: &[&str]| {
        assert!(std::process::Command::new(program).args(args).status().unwrap().success())
    };
    run("mount", &["-t", "overlay", "-o", &options, "overlay", &path("over")]);
    let mut spec = with_users(&world, &users, "a", "true");
    spec.layers = vec![dir.join("over")];
    let sentence = refusal(&world, spec).await;
    run("umount", &[&path("over")]);
    assert!(sentence.contains("no idmapped mounts"), "{sentence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seccomp_profile_of_the_users_is_in_force() {
    let world = World::new();
    let run = async |id: &str, profile: &str, capabilities: &[&str]| {
        let mut spec = world.spec(id, "chmod 600 /tmp 2>/dev/null; echo $?; mkdir /tmp/x && echo made");
        spec.seccomp = Seccomp::Profile(profile.into());
        spec.capabilities.extend(capabilities.iter().map(|name| (*name).to_owned()));
        world.run(spec).await.1
    };
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [{"names": ["chmod", "fchmodat", "fchmodat2", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
        "excludes": {"caps": ["CAP_SYS_NICE"]}}]}"#;
    assert_eq!(run("a", profile, &[]).await, "1\nmade\n");
    assert_eq!(run("b", profile, &["SYS_NICE"]).await, "0\nmade\n", "the rule depends on a capability");
    // A command in it is under the same.
    let mut spec = world.spec("c", "sleep 1000");
    spec.seccomp = Seccomp::Profile(profile.into());
    let container = world.runtime.create(spec.clone()).await.unwrap();
    let command = ["chmod", "600", "/tmp"].map(str::to_owned).to_vec();
    let running = world.runtime.exec(&container, Arc::new(spec), command).await.unwrap();
    assert_eq!(running.finish(SOON, 4096).await.unwrap().0, ExecEnd::Exited(1));
    container.remove().await.unwrap();
    for (profile, part) in [
        ("{", "Docker's form"),
        (r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#, "compiled"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["PDP11"]}"#, "compiled"),
    ] {
        let mut spec = world.spec("d", "true");
        spec.seccomp = Seccomp::Profile(profile.into());
        let sentence = refusal(&world, spec).await;
        assert!(sentence.contains(part), "{sentence}");
    }
}

/// Where the kernel has none: naming a profile is an error, and nothing else changes.
#[tokio::test(flavor = "multi_thread")]
async fn apparmor_is_in_force_where_the_kernel_has_it() {
    let world = World::new();
    let script = "cat /proc/self/attr/apparmor/current 2>/dev/null || echo none; mkdir /tmp/m; mount -t tmpfs x /tmp/m 2>/dev/null && echo mounted; echo end";
    let spec = |id: &str, apparmor: AppArmor| {
        let mut spec = world.spec(id, script);
        // What the profile refuses, all else allows.
        (spec.apparmor, spec.seccomp) = (apparmor, Seccomp::Unconfined);
        spec.capabilities.push("SYS_ADMIN".into());
        spec
    };
    let here = skep_runtime::confinement().join(" ");
    let missing = refusal(&world, spec("a", AppArmor::Profile("no-such-profile".into()))).await;
    if !here.contains("apparmor: skep-default") {
        eprintln!("only what is there without AppArmor is tested: {here}");
        assert!(missing.contains("AppArmor"), "{missing}");
        assert_eq!(world.run(spec("b", AppArmor::Default)).await.1, "none\nmounted\nend\n");
        return;
    }
    assert!(missing.contains("not loaded"), "{missing}");
    assert_eq!(world.run(spec("b", AppArmor::Default)).await.1, "skep-default (enforce)\nend\n");
    assert_eq!(world.run(spec("c", AppArmor::Unconfined)).await.1, "unconfined\nmounted\nend\n");
    let idle = ContainerSpec { args: ["sleep", "1000"].map(str::to_owned).to_vec(), ..spec("d", AppArmor::Default) };
    let container = world.runtime.create(idle.clone()).await.unwrap();
    let command = ["cat", "/proc/self/attr/apparmor/current"].map(str::to_owned).to_vec();
    let running = world.runtime.exec(&container, Arc::new(idle), command).await.unwrap();
    let (_, out) = running.finish(SOON, 4096).await.unwrap();
    container.remove().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&out), "skep-default (enforce)\n");
}
