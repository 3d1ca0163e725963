//! Tests of the plan of a container: Docker's rules, one by one.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use skep_image::{Digest, ImageConfig, Platform, RunConfig};
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::v1::{
    LogSpec, Platform as WirePlatform, ResourceSpec, Resources, Revision, SecretRef, Ulimit as WireUlimit,
};

use super::*;

fn image(run: RunConfig) -> ResolvedImage {
    ResolvedImage {
        digest: Digest::of(b"image"),
        config: ImageConfig {
            created: None,
            author: None,
            platform: Platform::host(),
            config: run,
            rootfs: skep_image::config::RootFs { kind: "layers".to_owned(), diff_ids: vec![] },
            history: vec![],
        },
        layer_paths: vec!["/layers/top".into(), "/layers/base".into()],
    }
}

fn job(template: TaskTemplate) -> TaskJob {
    TaskJob {
        id: TaskId::new(42),
        service_id: ServiceId::new(7),
        slot: 3,
        revision: Arc::new(Revision {
            template: Some(template),
            service_name: "web".to_owned(),
            ..Revision::default()
        }),
        networks: Vec::new(),
        ports: Vec::new(),
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        id: Some(NodeId::new(5)),
        hostname: "host1".to_owned(),
        platform: WirePlatform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: String::new() },
    }
}

fn plan_of(template: TaskTemplate, container: &ContainerSpec, run: RunConfig) -> Result<Plan, SpecError> {
    let job = job(template);
    let layout = Layout::new(Path::new("/data"));
    let shared = Shared::of(&job, &node(), None, &layout)?;
    let files = Files::in_dir(&layout.sandbox(job.id));
    plan(&job, container, &image(run), &shared, &files, &layout)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn shell() -> RunConfig {
    RunConfig { cmd: words("sh"), ..RunConfig::default() }
}

#[test]
fn defaults() {
    let container = ContainerSpec { name: "main".to_owned(), ..ContainerSpec::default() };
    let spec = plan_of(TaskTemplate::default(), &container, shell()).unwrap().spec;
    let task = TaskId::new(42);
    assert_eq!(spec.id, format!("{task}.main"));
    assert_eq!(spec.layers, [Path::new("/layers/top"), Path::new("/layers/base")]);
    assert_eq!((spec.args.as_slice(), spec.cwd.as_str(), spec.user.as_str()), (&words("sh")[..], "/", ""));
    assert_eq!(spec.hostname, task.short());
    assert_eq!(spec.env, [DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", task.short())]);
    assert_eq!(spec.network, NetworkNamespace::Path(format!("/data/sandboxes/{task}/net").into()));
    assert_eq!(spec.capabilities.len(), DEFAULT_CAPABILITIES.len());
    assert_eq!(spec.log_dir, Path::new(&format!("/data/tasks/{task}/main")));
    assert_eq!((&spec.seccomp, &spec.apparmor, &spec.users), (&Default::default(), &Default::default(), &None));
    assert!(!spec.allow_new_privileges && !spec.read_only_root);
    let targets: Vec<_> = spec.mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]);
}

#[test]
fn environment_goes_over_and_removes() {
    let container = ContainerSpec { env: words("A=mine GONE NEW=n{{.Task.Slot}} EMPTY="), ..ContainerSpec::default() };
    let run = RunConfig { env: words("PATH=/bin A=image GONE=1 KEPT=x"), ..shell() };
    let template = TaskTemplate { hostname: "{{.Service.Name}}-{{.Task.Slot}}".to_owned(), ..TaskTemplate::default() };
    let spec = plan_of(template, &container, run).unwrap().spec;
    assert_eq!(spec.env, words("PATH=/bin HOSTNAME=web-3 A=mine KEPT=x NEW=n3 EMPTY="));
    assert_eq!(spec.hostname, "web-3");
}

#[test]
fn the_service_goes_over_the_image() {
    let run = RunConfig {
        entrypoint: words("/entry"),
        cmd: words("a b"),
        working_dir: "/srv".to_owned(),
        user: "www".to_owned(),
        stop_signal: Some("SIGQUIT".to_owned()),
        ..RunConfig::default()
    };
    let plain = ContainerSpec::default();
    let spec = plan_of(TaskTemplate::default(), &plain, run.clone()).unwrap().spec;
    assert_eq!((&spec.args, &*spec.cwd, &*spec.user), (&words("/entry a b"), "/srv", "www"));
    assert_eq!(stop_signal(&plain, &image(run.clone())), Ok(libc::SIGQUIT));
    let own = ContainerSpec {
        args: words("c"),
        dir: "/x".to_owned(),
        user: "1000:100".to_owned(),
        stop_signal: "INT".to_owned(),
        ..ContainerSpec::default()
    };
    let spec = plan_of(TaskTemplate::default(), &own, run.clone()).unwrap().spec;
    assert_eq!((&spec.args, &*spec.cwd, &*spec.user), (&words("/entry c"), "/x", "1000:100"));
    assert_eq!(stop_signal(&own, &image(run)), Ok(libc::SIGINT));
    assert_eq!(grace(&own), Some(std::time::Duration::from_secs(10)));
    assert_eq!(grace(&ContainerSpec { stop_grace_period_ms: -1, ..ContainerSpec::default() }), None);
}

#[test]
fn mounts_limits_and_logs() {
    let mount = |kind: MountType, source: &str, target: &str| {
        let mut mount = MountSpec { source: source.to_owned(), target: target.to_owned(), ..MountSpec::default() };
        mount.set_type(kind);
        mount
    };
    let container = ContainerSpec {
        mounts: vec![
            MountSpec {
                read_only: true,
                propagation: "rslave".to_owned(),
                ..mount(MountType::Bind, "/data/{{.Service.Name}}", "/a/b")
            },
            mount(MountType::Bind, "/etc", "/etc"),
            MountSpec { tmpfs_size_bytes: 1 << 20, ..mount(MountType::Tmpfs, "", "/tmp") },
        ],
        resources: Some(ResourceSpec {
            limits: Some(Resources { nano_cpus: 500_000_000, memory_bytes: 64 << 20 }),
            reservations: Some(Resources { nano_cpus: 1, memory_bytes: 32 << 20 }),
            pids_limit: 100,
        }),
        ulimits: vec![WireUlimit { name: "nofile".to_owned(), soft: 10, hard: -1 }],
        ..ContainerSpec::default()
    };
    let template =
        TaskTemplate { log: Some(LogSpec { max_file_bytes: 1000, max_files: 0 }), ..TaskTemplate::default() };
    let plan = plan_of(template, &container, shell()).unwrap();
    assert_eq!(plan.binds, [Path::new("/data/web"), Path::new("/etc")]);
    let spec = plan.spec;
    let targets: Vec<_> = spec.mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/etc", "/tmp", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/a/b"]);
    assert_eq!(spec.mounts[1].kind, MountKind::Tmpfs { size_bytes: 1 << 20, mode: 0o1777 });
    assert!(spec.mounts[5].read_only);
    assert_eq!(
        spec.resources,
        ResourceLimits {
            memory_bytes: 64 << 20,
            memory_reservation_bytes: 32 << 20,
            nano_cpus: 500_000_000,
            pids: 100
        }
    );
    assert_eq!(spec.ulimits, [Ulimit { name: "nofile".to_owned(), soft: 10, hard: u64::MAX }]);
    assert_eq!(spec.log, LogLimits { max_bytes: 1000, max_files: 3 });
}

#[test]
fn mistakes_are_named() {
    let refuse =
        |container: ContainerSpec| plan_of(TaskTemplate::default(), &container, shell()).unwrap_err().to_string();
    let default = ContainerSpec::default;
    let mut volume = MountSpec { target: "/v".to_owned(), ..MountSpec::default() };
    volume.set_type(MountType::Volume);
    let bind = |source: &str, target: &str, propagation: &str| MountSpec {
        source: source.to_owned(),
        target: target.to_owned(),
        propagation: propagation.to_owned(),
        ..MountSpec::default()
    };
    for (container, sentence) in [
        (ContainerSpec { dir: "srv".to_owned(), ..default() }, "the working directory \"srv\" is not an absolute path"),
        (ContainerSpec { stop_signal: "SIGNOPE".to_owned(), ..default() }, "\"SIGNOPE\" is not a signal"),
        (ContainerSpec { cap_add: words("NOPE"), ..default() }, "\"NOPE\" is not a capability"),
        (ContainerSpec { mounts: vec![volume], ..default() }, "not supported yet: volumes"),
        (
            ContainerSpec { secrets: vec![SecretRef { name: "db".to_owned(), ..SecretRef::default() }], ..default() },
            "secret db is not known to the managers",
        ),
        (
            ContainerSpec { mounts: vec![bind("/x", "y", "")], ..default() },
            "the mount target \"y\" is not an absolute path",
        ),
        (
            ContainerSpec { mounts: vec![bind("x", "/y", "")], ..default() },
            "the source of the bind mount at /y is not an absolute path: \"x\"",
        ),
        (
            ContainerSpec { mounts: vec![bind("/x", "/y", "odd")], ..default() },
            "\"odd\" is not a propagation: use rprivate, private, rshared, shared, rslave or slave",
        ),
        (
            ContainerSpec { sysctls: [("vm.swappiness".to_owned(), "1".to_owned())].into(), ..default() },
            "kernel parameter \"vm.swappiness\" cannot be set: it is not the container's own but the whole host's",
        ),
    ] {
        assert_eq!(refuse(container), sentence);
    }
    let odd = ContainerSpec { env: words("A={{.Nope}}"), ..default() };
    assert!(refuse(odd).starts_with("cannot fill in environment variable A: \".Nope\" is not a placeholder"));
    let nothing = plan_of(TaskTemplate::default(), &default(), RunConfig::default());
    assert_eq!(nothing, Err(SpecError::NoCommand));
    let mut shared_network = TaskTemplate::default();
    shared_network.set_network_mode(NetworkMode::Host);
    let container = ContainerSpec { sysctls: [("net.core.somaxconn".to_owned(), "1".to_owned())].into(), ..default() };
    assert!(plan_of(TaskTemplate::default(), &container, shell()).is_ok());
    assert_eq!(plan_of(shared_network, &container, shell()), Err(SpecError::Sysctl("net.core.somaxconn".to_owned())));
}

#[test]
fn on_the_hosts_network_it_is_called_as_the_host_is() {
    let host = || TaskTemplate { network_mode: NetworkMode::Host.into(), ..TaskTemplate::default() };
    let hostname = |template: TaskTemplate| {
        Shared::of(&job(template), &node(), None, &Layout::new(Path::new("/data"))).unwrap().hostname
    };
    assert_eq!(hostname(host()), node().hostname);
    assert_eq!(hostname(TaskTemplate { hostname: "own".to_owned(), ..host() }), "own");
    assert_ne!(hostname(TaskTemplate { network_mode: NetworkMode::None.into(), ..host() }), node().hostname);
}
