//! Command lines against the specs they make.

#![allow(clippy::unwrap_used)]
use clap::Parser;
use skep_proto::v1::{
    EndpointMode, FailureAction, NetworkMode, PublishMode, Resources, RestartCondition, Ulimit, UpdateOrder,
};

use super::*;
use crate::exit::Exit;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: CreateArgs,
}

fn caller() -> Caller<'static> {
    Caller {
        variable: &|name| (name == "HOME").then(|| "/root".to_owned()),
        read: &|path| match path.to_str() {
            Some("vars") => Ok("A=file\nB=file\n".to_owned()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        },
        random: 7,
    }
}

fn create(line: &[&str]) -> Result<ServiceSpec, Failure> {
    let line = Line::try_parse_from(["create"].iter().chain(line)).unwrap();
    build(&line.args, &caller())
}

fn main_container(spec: &ServiceSpec) -> ContainerSpec {
    spec.template.as_ref().unwrap().containers[0].clone()
}

#[test]
fn the_shortest_line() {
    let spec = create(&["nginx"]).unwrap();
    assert!(!spec.name.is_empty());
    assert_eq!(spec.mode, Some(Mode::Replicated(ReplicatedMode { replicas: 1 })));
    let container = main_container(&spec);
    assert_eq!((container.name.as_str(), container.image.as_str()), ("main", "nginx"));
    assert!(container.command.is_empty() && container.args.is_empty());
    assert_eq!(spec.template.as_ref().unwrap().network_mode(), NetworkMode::Default);
    assert_eq!(skep_proto::validate::service_spec(&spec), Ok(()));
}

#[test]
fn everything_after_the_image_is_the_containers() {
    let spec = create(&["--name", "web", "busybox", "sh", "-c", "echo hi", "--name", "x", "-d"]).unwrap();
    assert_eq!(spec.name, "web");
    assert_eq!(main_container(&spec).args, ["sh", "-c", "echo hi", "--name", "x", "-d"]);
    assert_eq!(main_container(&create(&["nginx", "-g", "daemon off;"]).unwrap()).args, ["-g", "daemon off;"]);
}

/// A line of flags as one would type it; words with blanks are in single quotes.
fn line(text: &str) -> ServiceSpec {
    let words = crate::parse::shell::words(text).unwrap();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let spec = create(&words).unwrap();
    assert_eq!(skep_proto::validate::service_spec(&spec), Ok(()), "{text}");
    spec
}

#[test]
fn the_service_and_its_place() {
    let spec = line(
        "--name db --replicas 3 -l tier=back --constraint node.role==worker --placement-pref spread=node.labels.zone \
         --replicas-max-per-node 2 --failover-delay 30s redis:7",
    );
    assert_eq!((spec.name.as_str(), spec.labels["tier"].as_str()), ("db", "back"));
    assert_eq!(spec.mode, Some(Mode::Replicated(ReplicatedMode { replicas: 3 })));
    assert_eq!(spec.failover_delay_ms, 30_000);
    let placement = spec.template.unwrap().placement.unwrap();
    assert_eq!(
        (placement.constraints.as_slice(), placement.max_replicas_per_node),
        (&["node.role==worker".to_owned()][..], 2)
    );
    assert_eq!(placement.spread, ["node.labels.zone"]);
}

#[test]
fn the_container() {
    let spec = line(
        "-e A=flag --env HOME --env-file vars --container-label c=1 --stop-signal SIGINT --stop-grace-period 0s \
         -u 1000:1000 --group video -w /srv --hostname h-{{.Task.Slot}} --entrypoint 'sh -c' --init --read-only \
         --mount type=tmpfs,target=/tmp --cap-add NET_ADMIN --cap-drop ALL --sysctl net.core.somaxconn=10 \
         --log-opt max-size=1m --log-driver json-file --allow-new-privileges redis:7 serve",
    );
    let container = main_container(&spec);
    assert_eq!(container.env, ["A=flag", "B=file", "HOME=/root"]);
    assert_eq!(
        (container.command.as_slice(), container.args.as_slice()),
        (&["sh".to_owned(), "-c".to_owned()][..], &["serve".to_owned()][..])
    );
    assert_eq!((container.stop_signal.as_str(), container.stop_grace_period_ms), ("SIGINT", -1));
    assert_eq!((container.user.as_str(), container.dir.as_str()), ("1000:1000", "/srv"));
    assert!(container.init && container.read_only && container.allow_new_privileges);
    assert_eq!((container.groups.as_slice(), container.labels["c"].as_str()), (&["video".to_owned()][..], "1"));
    assert_eq!(
        (container.cap_add.as_slice(), container.cap_drop.as_slice()),
        (&["NET_ADMIN".to_owned()][..], &["ALL".to_owned()][..])
    );
    assert_eq!((container.mounts.len(), container.sysctls["net.core.somaxconn"].as_str()), (1, "10"));
    let template = spec.template.unwrap();
    assert_eq!((template.hostname.as_str(), template.log.unwrap().max_file_bytes), ("h-{{.Task.Slot}}", 1 << 20));
}

#[test]
fn resources() {
    let container = main_container(&line(
        "--limit-cpu 1.5 --limit-memory 512m --limit-pids 100 --reserve-cpu .5 --reserve-memory 64m \
         --ulimit nofile=10:20 --oom-score-adj -5 redis:7",
    ));
    let resources = container.resources.unwrap();
    assert_eq!(resources.limits.unwrap(), Resources { nano_cpus: 1_500_000_000, memory_bytes: 512 << 20 });
    assert_eq!(resources.reservations.unwrap(), Resources { nano_cpus: 500_000_000, memory_bytes: 64 << 20 });
    assert_eq!((resources.pids_limit, container.oom_score_adj), (100, -5));
    assert_eq!(container.ulimits[0], Ulimit { name: "nofile".to_owned(), soft: 10, hard: 20 });
}

#[test]
fn the_network() {
    let spec = line(
        "--dns 10.0.0.53 --dns-search a.b --dns-option ndots:1 --host db:10.0.0.1 --network host \
         -p published=80,target=80,mode=host redis:7",
    );
    let port = spec.endpoint.as_ref().unwrap().ports[0];
    assert_eq!((port.published_port, port.mode()), (80, PublishMode::Host));
    let template = spec.template.unwrap();
    assert_eq!(
        (template.network_mode(), template.hosts.as_slice()),
        (NetworkMode::Host, &["db:10.0.0.1".to_owned()][..])
    );
    let dns = template.dns.unwrap();
    assert_eq!(
        (dns.nameservers[0].as_str(), dns.search[0].as_str(), dns.options[0].as_str()),
        ("10.0.0.53", "a.b", "ndots:1")
    );
}

#[test]
fn networks_of_the_swarm() {
    let spec = line(
        "--network front --network name=back,alias=db,ip=10.9.0.9 -p 8080:80 --publish published=53,target=53,protocol=udp \
         redis:7",
    );
    let endpoint = spec.endpoint.as_ref().unwrap();
    assert_eq!(endpoint.mode(), EndpointMode::Vip);
    let ports: Vec<_> =
        endpoint.ports.iter().map(|port| (port.published_port, port.target_port, port.mode())).collect();
    assert_eq!(ports, [(8080, 80, PublishMode::Ingress), (53, 53, PublishMode::Ingress)]);
    let template = spec.template.unwrap();
    assert_eq!(template.network_mode(), NetworkMode::default());
    let names: Vec<&str> = template.networks.iter().map(|attached| attached.name.as_str()).collect();
    assert_eq!(names, ["front", "back"]);
    assert_eq!(
        (template.networks[1].aliases[0].as_str(), template.networks[1].addresses[0].as_str()),
        ("db", "10.9.0.9")
    );
    let spec = line("--network front --endpoint-mode dnsrr --publish target=80,mode=host redis:7");
    assert_eq!(spec.endpoint.as_ref().unwrap().mode(), EndpointMode::Dnsrr);
    // What contradicts itself is found before the daemon is asked.
    for wrong in [
        &["--endpoint-mode", "dnsrr", "-p", "80:80", "x"][..],
        &["--network", "host", "-p", "80:80", "x"],
        &["--network", "front", "--network", "front", "x"],
        &["--network", "name=front,ip=10.9.0.9", "--replicas", "2", "x"],
        &["--network", "name=front,alias=a b", "x"],
    ] {
        let spec = create(wrong).unwrap();
        assert!(skep_proto::validate::service_spec(&spec).is_err(), "{wrong:?}");
    }
    for wrong in [&["--network", "host", "--network", "front", "x"][..], &["--network", "name=front,ip=x", "x"]] {
        assert_eq!(create(wrong).unwrap_err().exit(), Exit::Usage, "{wrong:?}");
    }
}

#[test]
fn policies() {
    let spec = line(
        "--restart-condition on-failure --restart-delay 0s --restart-max-attempts 4 --restart-window 1m \
         --update-parallelism 0 --update-order start-first --update-failure-action rollback --update-monitor 0s \
         --rollback-max-failure-ratio 0.5 --rollback-parallelism 2 redis:7",
    );
    let restart = spec.template.unwrap().restart.unwrap();
    assert_eq!((restart.delay_ms, restart.max_attempts, restart.window_ms), (-1, 4, 60_000));
    assert_eq!(restart.condition(), RestartCondition::OnFailure);
    let update = spec.update.unwrap();
    assert!(update.all && update.monitor_ms == 1);
    assert_eq!((update.failure_action(), update.order()), (FailureAction::Rollback, UpdateOrder::StartFirst));
    let rollback = spec.rollback.unwrap();
    assert_eq!((rollback.max_failure_ratio, rollback.parallelism, rollback.all), (0.5, 2, false));
}

#[test]
fn health_checks() {
    assert_eq!(main_container(&line("redis:7")).health_check, None);
    let check = main_container(&line(
        "--health-cmd 'redis-cli ping' --health-interval 10s --health-timeout 1s --health-retries 2 \
         --health-start-period 1m --health-start-interval 500ms redis:7",
    ));
    let check = check.health_check.unwrap();
    assert_eq!(check.test, ["CMD-SHELL", "redis-cli ping"]);
    assert_eq!((check.interval_ms, check.timeout_ms, check.retries), (10_000, 1_000, 2));
    assert_eq!((check.start_period_ms, check.start_interval_ms), (60_000, 500));
    assert_eq!(main_container(&line("--no-healthcheck redis:7")).health_check.unwrap().test, ["NONE"]);
    let both = create(&["--no-healthcheck", "--health-cmd", "true", "redis:7"]).unwrap_err();
    assert_eq!(
        (both.to_string().as_str(), both.exit()),
        ("--no-healthcheck conflicts with --health-* options", Exit::Usage)
    );
}

#[test]
fn modes() {
    assert_eq!(create(&["--mode", "global", "nginx"]).unwrap().mode, Some(Mode::Global(GlobalMode {})));
    assert!(matches!(create(&["--mode", "global", "--replicas", "2", "nginx"]), Err(Failure::Usage(_))));
    let later = create(&["--mode", "replicated-job", "nginx"]).unwrap_err();
    assert_eq!(
        (later.to_string().as_str(), later.exit()),
        ("not supported yet: --mode replicated-job", Exit::Unsupported)
    );
    assert!(matches!(create(&["--mode", "bogus", "nginx"]), Err(Failure::Usage(_))));
}

#[test]
fn refusals_name_the_flag() {
    for (line, flag) in [
        (vec!["--mount", "type=bind", "x"], "--mount"),
        (vec!["--ulimit", "x", "x"], "--ulimit"),
        (vec!["--label", "=x", "x"], "--label"),
        (vec!["--env-file", "gone", "x"], "--env-file"),
        (vec!["--placement-pref", "binpack=x", "x"], "--placement-pref"),
        (vec!["--log-opt", "bogus=1", "x"], "--log-opt"),
        (vec!["--entrypoint", "'open", "x"], "--entrypoint"),
        (vec!["--publish", "target=x,mode=host", "--network", "host", "x"], "--publish"),
    ] {
        let failure = create(&line).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage, "{line:?}");
        assert!(failure.to_string().contains(flag), "{failure}");
    }
    for line in [
        vec!["--publish", "80-81:80", "x"],
        vec!["--network", "name=front,driver-opt=a=b", "x"],
        vec!["--log-driver", "syslog", "x"],
    ] {
        assert_eq!(create(&line).unwrap_err().exit(), Exit::Unsupported, "{line:?}");
    }
}

#[test]
fn numbers_are_checked_by_clap() {
    for line in [
        vec!["--replicas", "-1", "x"],
        vec!["--replicas", "99999999999999999999999", "x"],
        vec!["--limit-cpu", "-1", "x"],
        vec!["--limit-pids", "-1", "x"],
        vec!["--stop-grace-period", "-1s", "x"],
        vec!["--stop-grace-period", "10", "x"],
        vec!["--health-interval", "1us", "x"],
        vec!["--health-retries", "-1", "x"],
        vec!["--init=maybe", "x"],
        vec!["--update-max-failure-ratio", "1.5", "x"],
        vec!["--restart-condition", "sometimes", "x"],
        vec!["--endpoint-mode", "sometimes", "x"],
        vec![],
    ] {
        assert!(Line::try_parse_from(["create"].iter().chain(&line)).is_err(), "{line:?}");
    }
}

#[test]
fn switches_take_a_value_as_in_docker() {
    let detach = |line: &[&str]| Line::try_parse_from(["create"].iter().chain(line)).unwrap().args.wait.detach;
    assert!(detach(&["-d", "x"]));
    assert!(detach(&["--detach=true", "x"]));
    assert!(!detach(&["--detach=false", "x"]));
    assert!(!detach(&["x"]));
}
