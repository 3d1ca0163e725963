//! Command lines against the specs they make.

#![allow(clippy::unwrap_used)]
use clap::Parser;
use skep_proto::v1::{NetworkMode, PublishMode};

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
    assert_eq!(spec.template.as_ref().unwrap().network_mode(), NetworkMode::None);
    assert_eq!(skep_proto::validate::service_spec(&spec), Ok(()));
}

#[test]
fn everything_after_the_image_is_the_containers() {
    let spec = create(&["--name", "web", "busybox", "sh", "-c", "echo hi", "--name", "x", "-d"]).unwrap();
    assert_eq!(spec.name, "web");
    assert_eq!(main_container(&spec).args, ["sh", "-c", "echo hi", "--name", "x", "-d"]);
    assert_eq!(main_container(&create(&["nginx", "-g", "daemon off;"]).unwrap()).args, ["-g", "daemon off;"]);
}

#[test]
fn a_line_with_everything() {
    let spec = create(&[
        "--name",
        "db",
        "--replicas",
        "3",
        "-e",
        "A=flag",
        "--env",
        "HOME",
        "--env-file",
        "vars",
        "-l",
        "tier=back",
        "--container-label",
        "c=1",
        "--constraint",
        "node.role==worker",
        "--placement-pref",
        "spread=node.labels.zone",
        "--replicas-max-per-node",
        "2",
        "--limit-cpu",
        "1.5",
        "--limit-memory",
        "512m",
        "--limit-pids",
        "100",
        "--reserve-cpu",
        ".5",
        "--reserve-memory",
        "64m",
        "--restart-condition",
        "on-failure",
        "--restart-delay",
        "0s",
        "--restart-max-attempts",
        "4",
        "--restart-window",
        "1m",
        "--stop-signal",
        "SIGINT",
        "--stop-grace-period",
        "0s",
        "-u",
        "1000:1000",
        "--group",
        "video",
        "-w",
        "/srv",
        "--hostname",
        "h-{{.Task.Slot}}",
        "--entrypoint",
        "sh -c",
        "--init",
        "--read-only",
        "--mount",
        "type=tmpfs,target=/tmp",
        "--ulimit",
        "nofile=10:20",
        "--cap-add",
        "NET_ADMIN",
        "--cap-drop",
        "ALL",
        "--sysctl",
        "net.core.somaxconn=10",
        "--dns",
        "10.0.0.53",
        "--dns-search",
        "a.b",
        "--dns-option",
        "ndots:1",
        "--host",
        "db:10.0.0.1",
        "--network",
        "host",
        "-p",
        "published=80,target=80,mode=host",
        "--log-opt",
        "max-size=1m",
        "--log-driver",
        "json-file",
        "--allow-new-privileges",
        "--update-parallelism",
        "0",
        "--update-order",
        "start-first",
        "--update-failure-action",
        "rollback",
        "--update-monitor",
        "0s",
        "--rollback-max-failure-ratio",
        "0.5",
        "--failover-delay",
        "30s",
        "--oom-score-adj",
        "-5",
        "redis:7",
        "serve",
    ])
    .unwrap();
    assert_eq!(skep_proto::validate::service_spec(&spec), Ok(()));
    let template = spec.template.clone().unwrap();
    let container = main_container(&spec);
    assert_eq!(container.env, ["A=flag", "B=file", "HOME=/root"]);
    assert_eq!(container.command, ["sh", "-c"]);
    assert_eq!(container.args, ["serve"]);
    assert_eq!(container.stop_grace_period_ms, -1);
    assert_eq!(container.oom_score_adj, -5);
    let resources = container.resources.unwrap();
    assert_eq!(resources.limits.unwrap().nano_cpus, 1_500_000_000);
    assert_eq!(resources.reservations.unwrap().memory_bytes, 64 << 20);
    assert_eq!(resources.pids_limit, 100);
    let restart = template.restart.unwrap();
    assert_eq!((restart.delay_ms, restart.max_attempts, restart.window_ms), (-1, 4, 60_000));
    let placement = template.placement.clone().unwrap();
    assert_eq!(placement.spread, ["node.labels.zone"]);
    assert_eq!(placement.max_replicas_per_node, 2);
    assert_eq!(template.network_mode(), NetworkMode::Host);
    let port = spec.endpoint.as_ref().unwrap().ports[0];
    assert_eq!((port.published_port, port.mode()), (80, PublishMode::Host));
    let update = spec.update.unwrap();
    assert!(update.all && update.monitor_ms == 1);
    assert_eq!(update.failure_action(), FailureAction::Rollback);
    assert_eq!(spec.rollback.unwrap().max_failure_ratio, 0.5);
    assert_eq!(spec.failover_delay_ms, 30_000);
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
    for line in [vec!["--publish", "80:80", "x"], vec!["--network", "front", "x"], vec!["--log-driver", "syslog", "x"]]
    {
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
        vec!["--update-max-failure-ratio", "1.5", "x"],
        vec!["--restart-condition", "sometimes", "x"],
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
