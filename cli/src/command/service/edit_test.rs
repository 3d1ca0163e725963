//! Stored specs and command lines against the specs that come of them.

#![allow(clippy::unwrap_used)]
use clap::Parser;
use proptest::prelude::*;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{ContainerSpec, EndpointMode, GlobalMode, HealthCheck, ReplicatedMode, Service};

use super::super::update::UpdateArgs;
use super::*;
use crate::exit::Exit;
use crate::parse::shell::words;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: UpdateArgs,
}

fn caller() -> Caller<'static> {
    Caller {
        variable: &|name| (name == "HOME").then(|| "/root".to_owned()),
        read: &|_| Err(std::io::ErrorKind::NotFound.into()),
        random: 0,
    }
}

fn change(line: &str) -> Change {
    let mut arguments = vec!["update".to_owned()];
    arguments.extend(words(line).unwrap());
    arguments.push("web".to_owned());
    Line::try_parse_from(arguments).unwrap().args.change
}

/// A service of two replicas that has something of everything.
fn stored() -> ServiceSpec {
    let mut template = TaskTemplate {
        containers: vec![ContainerSpec {
            name: "main".to_owned(),
            image: "web:1".to_owned(),
            image_digest: "sha256:ab".to_owned(),
            env: vec!["A=1".to_owned(), "B=2".to_owned()],
            cap_drop: vec!["NET_RAW".to_owned()],
            mounts: vec![mount::parse("type=tmpfs,target=/tmp").unwrap()],
            ulimits: vec![ulimit::parse("nofile=10").unwrap()],
            ..ContainerSpec::default()
        }],
        hosts: vec!["db:10.0.0.1".to_owned(), "db:10.0.0.2".to_owned(), "mq:10.0.0.3".to_owned()],
        ..TaskTemplate::default()
    };
    template.set_network_mode(NetworkMode::Host);
    ServiceSpec {
        name: "web".to_owned(),
        labels: [("tier".to_owned(), "front".to_owned())].into(),
        mode: Some(Mode::Replicated(ReplicatedMode { replicas: 2 })),
        template: Some(template),
        ..ServiceSpec::default()
    }
}

fn edited(line: &str) -> Edited {
    let edited = edit(stored(), &change(line), &caller()).unwrap();
    assert_eq!(skep_proto::validate::service_spec(&edited.spec), Ok(()), "{line}");
    check(&change(line), &caller()).unwrap();
    edited
}

fn container(line: &str) -> ContainerSpec {
    edited(line).spec.template.unwrap().containers[0].clone()
}

#[test]
fn no_flags_change_nothing() {
    let edited = edited("");
    assert_eq!(edited.spec, stored());
    assert!(edited.warnings.is_empty());
}

#[test]
fn the_image_is_resolved_anew_only_when_named() {
    assert_eq!(container("--env-add C=3").image_digest, "sha256:ab");
    let container = container("--image web:1 --args 'serve --port \"80 81\"'");
    assert_eq!((container.image.as_str(), container.image_digest.as_str()), ("web:1", ""));
    assert_eq!(container.args, ["serve", "--port", "80 81"]);
}

#[test]
fn lists_are_edited_in_place() {
    assert_eq!(container("--env-add A=9 --env-add HOME --env-rm B").env, ["A=9", "HOME=/root"]);
    let mounts =
        container("--mount-add type=tmpfs,target=/tmp/,tmpfs-size=1m --mount-add type=tmpfs,target=/run").mounts;
    assert_eq!((mounts.len(), mounts[0].tmpfs_size_bytes, mounts[1].target.as_str()), (2, 1 << 20, "/run"));
    assert!(container("--mount-rm /tmp/ --ulimit-rm nofile").mounts.is_empty());
    assert_eq!(container("--ulimit-add nofile=20:30").ulimits, [ulimit::parse("nofile=20:30").unwrap()]);
    let template = edited("--host-rm db --host-add db:10.0.0.9").spec.template.unwrap();
    assert_eq!(template.hosts, ["mq:10.0.0.3", "db:10.0.0.9"]);
    let template = edited("--host-rm db:10.0.0.1 --dns-add 10.0.0.53").spec.template.unwrap();
    assert_eq!((template.hosts.len(), template.dns.unwrap().nameservers.len()), (2, 1));
    let spec = edited("--label-rm tier --label-add a=b --constraint-add node.role==worker").spec;
    assert_eq!(spec.labels, [("a".to_owned(), "b".to_owned())].into());
    assert_eq!(spec.template.unwrap().placement.unwrap().constraints, ["node.role==worker"]);
}

#[test]
fn ports_go_by_their_target() {
    let first = edited("--publish-add published=80,target=80,mode=host").spec;
    assert_eq!(first.endpoint.as_ref().unwrap().ports.len(), 1);
    let again = edit(first.clone(), &change("--publish-add target=80,mode=host"), &caller()).unwrap().spec;
    assert_eq!(again, first);
    let udp = edit(first.clone(), &change("--publish-rm 80/udp"), &caller()).unwrap();
    assert_eq!((udp.spec.clone(), udp.warnings.len()), (first.clone(), 1));
    let none = edit(first, &change("--publish-rm 80"), &caller()).unwrap().spec;
    assert!(none.endpoint.unwrap().ports.is_empty());
}

#[test]
fn networks_go_by_their_name_or_id() {
    let names = |spec: &ServiceSpec| -> Vec<String> {
        let template = spec.template.as_ref().unwrap();
        template.networks.iter().map(|attached| format!("{}:{}", attached.name, attached.aliases.join(","))).collect()
    };
    let first = edited("--network-rm host --network-add front --network-add name=back,alias=db").spec;
    assert_eq!(names(&first), ["front:", "back:db"]);
    assert_eq!(first.template.as_ref().unwrap().network_mode(), NetworkMode::default());
    let again = |line: &str| edit(first.clone(), &change(line), &caller()).unwrap();
    assert_eq!(again("--network-add front --network-add name=back,alias=db").spec, first);
    assert_eq!(names(&again("--network-add name=front,alias=www").spec), ["front:www", "back:db"]);
    assert_eq!(names(&again("--network-rm front --network-add name=front,alias=x").spec), ["back:db", "front:x"]);
    let gone = again("--network-rm gone --network-rm host");
    assert_eq!((gone.spec, gone.warnings.len()), (first.clone(), 2));
    // As the managers store it: by id, too, which tables show.
    let mut known = first.clone();
    known.template.as_mut().unwrap().networks[0].network_id = vec![3; 16];
    for id in [view::id(&[3; 16]), view::short_id(&[3; 16])] {
        let left = edit(known.clone(), &change(&format!("--network-rm {id}")), &caller()).unwrap();
        assert_eq!((names(&left.spec), left.warnings.len()), (vec!["back:db".to_owned()], 0));
        let same = edit(known.clone(), &change(&format!("--network-add {id}")), &caller()).unwrap();
        assert_eq!(same.spec, known);
    }
    for line in ["--network-add host", "--network-add none"] {
        assert_eq!(edit(first.clone(), &change(line), &caller()).unwrap_err().exit(), Exit::Usage);
    }
    // The host's network has to be left first.
    let both = edit(stored(), &change("--network-add front"), &caller()).unwrap().spec;
    assert!(skep_proto::validate::service_spec(&both).is_err());
}

#[test]
fn the_endpoint_mode_is_kept() {
    let spec = edited("--endpoint-mode dnsrr").spec;
    assert_eq!(spec.endpoint.as_ref().unwrap().mode(), EndpointMode::Dnsrr);
    assert_eq!(edit(spec.clone(), &change("--endpoint-mode dnsrr"), &caller()).unwrap().spec, spec);
    assert_eq!(edit(spec.clone(), &change("--replicas 3"), &caller()).unwrap().spec.endpoint, spec.endpoint);
    assert_eq!(
        edit(spec, &change("--endpoint-mode vip"), &caller()).unwrap().spec.endpoint.unwrap().mode(),
        EndpointMode::Vip
    );
    assert_eq!(edited("--endpoint-mode vip").spec, stored());
}

#[test]
fn what_is_not_there_is_a_warning() {
    let edited = edited("--env-rm GONE --label-rm gone --network-rm none");
    assert_eq!(edited.spec, stored());
    assert_eq!(edited.warnings[0], "--label-rm gone: the service does not have it");
    assert_eq!(edited.warnings.len(), 3);
}

#[test]
fn capabilities_have_three_states() {
    let lists = |line: &str| {
        let container = container(line);
        (container.cap_add.join(","), container.cap_drop.join(","))
    };
    let pair = |add: &str, drop: &str| (add.to_owned(), drop.to_owned());
    assert_eq!(lists("--cap-add cap_net_raw"), pair("", ""));
    assert_eq!(lists("--cap-add NET_ADMIN --cap-add sys_time"), pair("NET_ADMIN,SYS_TIME", "NET_RAW"));
    assert_eq!(lists("--cap-drop CHOWN --cap-drop ALL"), pair("", "ALL"));
    assert_eq!(lists("--cap-add CHOWN --cap-drop CHOWN"), pair("CHOWN", "NET_RAW"));
    assert_eq!(lists("--cap-drop RESET --cap-drop KILL"), pair("", "KILL"));
}

#[test]
fn confinement_is_set_kept_and_set_back() {
    let reads = Caller { read: &|_| Ok("{ \"defaultAction\": \"SCMP_ACT_ALLOW\" }".to_owned()), ..caller() };
    let of = |spec: &ServiceSpec| spec.template.as_ref().unwrap().containers[0].clone();
    let line = "--security-opt no-new-privileges=false --security-opt seccomp=p.json --security-opt apparmor=web --userns host";
    let first = edit(stored(), &change(line), &reads).unwrap().spec;
    let held = of(&first).confinement.unwrap();
    assert!(of(&first).allow_new_privileges);
    assert_eq!((held.seccomp.as_str(), held.apparmor.as_str()), ("{\"defaultAction\":\"SCMP_ACT_ALLOW\"}", "web"));
    assert_eq!(held.user_namespace(), skep_proto::v1::UserNamespaceMode::Host);
    let second = edit(first, &change("--security-opt seccomp=unconfined"), &reads).unwrap().spec;
    assert_eq!(of(&second).confinement.unwrap().apparmor, "web", "what is not given stays");
    let line = "--security-opt no-new-privileges --security-opt seccomp=builtin --security-opt apparmor=default --userns default";
    assert_eq!(edit(second, &change(line), &reads).unwrap().spec, stored());
    let error = edit(stored(), &change("--security-opt seccomp=gone.json"), &caller()).unwrap_err();
    assert!(error.to_string().contains("gone.json"), "{error}");
}

#[test]
fn settings_keep_what_is_not_given() {
    let spec = edited("--replicas 5 --limit-cpu 2 --update-parallelism 3 --update-delay 10s").spec;
    let again = edit(spec, &change("--limit-memory 64m --update-order start-first"), &caller()).unwrap().spec;
    assert_eq!(again.mode, Some(Mode::Replicated(ReplicatedMode { replicas: 5 })));
    let update = again.update.unwrap();
    assert_eq!((update.parallelism, update.delay_ms, update.order), (3, 10_000, 1));
    let limits = again.template.unwrap().containers[0].resources.unwrap().limits.unwrap();
    assert_eq!((limits.nano_cpus, limits.memory_bytes), (2_000_000_000, 64 << 20));
}

#[test]
fn health_checks_are_edited() {
    let none = edited("--no-healthcheck").spec;
    let check = |spec: &ServiceSpec| spec.template.as_ref().unwrap().containers[0].health_check.clone();
    assert_eq!(check(&none).unwrap().test, ["NONE"]);
    let timed = edit(none.clone(), &change("--health-retries 2"), &caller()).unwrap().spec;
    assert_eq!(check(&timed), Some(HealthCheck { retries: 2, ..HealthCheck::default() }));
    let image = edit(none, &change("--no-healthcheck=false"), &caller()).unwrap().spec;
    assert_eq!(check(&image).unwrap_or_default(), HealthCheck::default());
}

#[test]
fn force_makes_a_new_template() {
    assert_eq!(edited("--force").spec.template.unwrap().force_update, 1);
}

#[test]
fn refusals() {
    let global = ServiceSpec { mode: Some(Mode::Global(GlobalMode {})), ..stored() };
    let failure = edit(global, &change("--replicas 2"), &caller()).unwrap_err();
    assert_eq!(failure.to_string(), "replicas can only be used with replicated mode");
    for (line, flag, exit) in [
        ("--env-add =x", "--env-add", Exit::Usage),
        ("--mount-add type=bind", "--mount-add", Exit::Usage),
        ("--publish-add 80-81:80", "--publish-add", Exit::Unsupported),
        ("--publish-rm x", "--publish-rm", Exit::Usage),
        ("--cap-add NOPE", "--cap-add", Exit::Usage),
        ("--network-add bridge --network-add host", "--network-add", Exit::Usage),
        ("--network-add name=front,ip=x", "--network-add", Exit::Usage),
        ("--network-rm alias=x", "--network-rm", Exit::Usage),
        ("--placement-pref-rm binpack", "--placement-pref-rm", Exit::Usage),
        ("--args \"'open\"", "--args", Exit::Usage),
    ] {
        let failure = check(&change(line), &caller()).unwrap_err();
        assert!(failure.to_string().contains(flag) && failure.exit() == exit, "{line}: {failure}");
    }
}

#[test]
fn the_whole_spec_has_the_revisions_template() {
    let mut spec = stored();
    let template = spec.template.take().map(|template| TaskTemplate { credential_id: vec![1; 16], ..template });
    let summary = ServiceSummary {
        service: Some(Service { spec: Some(spec), ..Service::default() }),
        revision: Some(skep_proto::v1::Revision { template, ..Default::default() }),
        ..ServiceSummary::default()
    };
    assert_eq!(whole_spec(&summary), stored());
}

proptest! {
    /// What is added is there once, what is only removed is not; twice is once.
    #[test]
    fn edits_are_idempotent(
        names in proptest::collection::vec("[A-E]", 0..6),
        removed in proptest::collection::vec("[A-E]", 0..6),
    ) {
        let change = Change {
            container: ContainerLists {
                env_add: names.iter().map(|name| format!("{name}=x")).collect(),
                env_rm: removed.clone(),
                ..ContainerLists::default()
            },
            ..Change::default()
        };
        let once = edit(stored(), &change, &caller()).unwrap().spec;
        let variables = &once.template.as_ref().unwrap().containers[0].env;
        for name in &removed {
            prop_assert_eq!(variables.contains(&format!("{name}=x")), names.contains(name));
        }
        let mut unique: Vec<&str> = variables.iter().map(|variable| &variable[..1]).collect();
        unique.sort_unstable();
        unique.dedup();
        prop_assert_eq!(unique.len(), variables.len());
        let sorted = |spec: &ServiceSpec| {
            let mut variables = spec.template.as_ref().unwrap().containers[0].env.clone();
            variables.sort();
            variables
        };
        prop_assert_eq!(sorted(&edit(once.clone(), &change, &caller()).unwrap().spec), sorted(&once));
    }
}
