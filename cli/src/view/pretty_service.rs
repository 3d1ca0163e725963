//! A service as `service inspect --pretty` prints it: Docker's headings and order. Pure.

use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    ContainerSpec, FileTarget, HealthCheck, Network, NetworkAttachment, NetworkMode, Resources, RestartCondition,
    RestartPolicy, ServiceSpec, ServiceSummary, TaskTemplate, UpdatePolicy, UpdateState, UpdateStatus,
    UserNamespaceMode,
};

use skep_proto::validate::files;

use super::page::Page;
use super::service::MONITOR_MS;
use super::template::{RESTART_DELAY_MS, STOP_GRACE_MS};
use super::{ports, state, template};
use crate::output::human;

/// The whole text, several lines, with an end.
pub(crate) fn text(summary: &ServiceSummary, networks: &[Network], now_ms: i64) -> String {
    let service = summary.service.clone().unwrap_or_default();
    let virtual_addresses = super::service::virtual_addresses(&service, networks);
    let spec = service.spec.unwrap_or_default();
    let template = summary.revision.clone().and_then(|revision| revision.template).unwrap_or_default();
    let mut page = Page::new(20);
    page.line("ID", &super::id(&service.id));
    page.line("Name", &spec.name);
    page.pairs("Labels", spec.labels.iter().map(|(name, value)| format!("{name}={value}")));
    mode(&mut page, &spec, summary);
    page.line("Revision", &service.revision.to_string());
    if let Some(update) = service.update.filter(|update| update.state() != UpdateState::None) {
        update_status(&mut page, &update, now_ms);
    }
    placement(&mut page, &template);
    policy(&mut page, "UpdateConfig", &spec.update.unwrap_or_default());
    policy(&mut page, "RollbackConfig", &spec.rollback.unwrap_or_default());
    restart(&mut page, &template.restart.unwrap_or_default());
    for container in &template.containers {
        container_lines(&mut page, container, template.containers.len() > 1);
    }
    page.some("Networks", &attached(&template));
    page.line("Endpoint Mode", state::endpoint_mode(spec.endpoint.unwrap_or_default().mode()));
    page.pairs("Virtual Addresses", virtual_addresses.into_iter());
    if !service.ports.is_empty() {
        page.line("Ports", &ports::each(&service.ports));
    }
    page.into_text()
}

fn policy(page: &mut Page, name: &str, policy: &UpdatePolicy) {
    page.line(name, "");
    let parallelism = if policy.all { "all".to_owned() } else { policy.parallelism.max(1).to_string() };
    page.line(" Parallelism", &parallelism);
    page.line(" Delay", &human::exact_ms(policy.delay_ms));
    page.line(" On failure", state::failure_action(policy.failure_action()));
    let monitor_ms = if policy.monitor_ms == 0 { MONITOR_MS } else { policy.monitor_ms };
    page.line(" Monitoring Period", &human::exact_ms(monitor_ms));
    page.line(" Max failure ratio", &policy.max_failure_ratio.to_string());
    page.line(" Update order", state::update_order(policy.order()));
}

fn mode(page: &mut Page, spec: &ServiceSpec, summary: &ServiceSummary) {
    match &spec.mode {
        Some(Mode::Replicated(mode)) => {
            page.line("Service Mode", "Replicated");
            page.line(" Replicas", &mode.replicas.to_string());
        }
        Some(Mode::Global(_)) => page.line("Service Mode", "Global"),
        None => {}
    }
    page.line(" Running", &format!("{} of {}", summary.running, summary.desired));
    if spec.failover_delay_ms > 0 {
        page.line("Failover Delay", &human::exact_ms(spec.failover_delay_ms));
    }
}

fn update_status(page: &mut Page, update: &UpdateStatus, now_ms: i64) {
    page.line("UpdateStatus", "");
    page.line(" State", state::update(update.state()));
    page.line(" Started", &human::ago(now_ms, update.started_at_ms));
    if update.ended_at_ms != 0 {
        let word = match update.state() {
            UpdateState::Paused | UpdateState::RollbackPaused => " Paused",
            _ => " Completed",
        };
        page.line(word, &human::ago(now_ms, update.ended_at_ms));
    }
    page.some(" Message", &update.message);
}

fn placement(page: &mut Page, template: &TaskTemplate) {
    let placement = template.placement.clone().unwrap_or_default();
    if placement == skep_proto::v1::Placement::default() {
        return;
    }
    page.line("Placement", "");
    page.some(" Constraints", &placement.constraints.join(", "));
    page.some(
        " Preferences",
        &placement.spread.iter().map(|label| format!("spread={label}")).collect::<Vec<_>>().join(", "),
    );
    if placement.max_replicas_per_node > 0 {
        page.line(" Max Replicas Per Node", &format!(" {}", placement.max_replicas_per_node));
    }
}

/// `front back`, `host` or `none`; empty with the host's own bridge, the default.
fn attached(template: &TaskTemplate) -> String {
    match template.network_mode() {
        NetworkMode::Default => {}
        NetworkMode::Host => return "host".to_owned(),
        NetworkMode::None => return "none".to_owned(),
    }
    let name = |attached: &NetworkAttachment| match attached.name.as_str() {
        "" => super::id(&attached.network_id),
        name => name.to_owned(),
    };
    template.networks.iter().map(name).collect::<Vec<_>>().join(" ")
}

fn restart(page: &mut Page, policy: &RestartPolicy) {
    page.line("RestartPolicy", "");
    page.line(
        " Condition",
        match policy.condition() {
            RestartCondition::Any => "any",
            RestartCondition::OnFailure => "on-failure",
            RestartCondition::None => "none",
        },
    );
    let delay_ms = if policy.delay_ms == 0 { RESTART_DELAY_MS } else { policy.delay_ms };
    page.line(" Delay", &human::exact_ms(delay_ms));
    page.line(" Max attempts", &policy.max_attempts.to_string());
    if policy.window_ms > 0 {
        page.line(" Window", &human::exact_ms(policy.window_ms));
    }
}

fn container_lines(page: &mut Page, container: &ContainerSpec, is_one_of_several: bool) {
    page.line("ContainerSpec", if is_one_of_several { &container.name } else { "" });
    page.line(" Image", &template::image(container));
    page.some(" Entrypoint", &container.command.join(" "));
    page.some(" Args", &container.args.join(" "));
    page.some(" Env", &container.env.join(" "));
    page.some(" Dir", &container.dir);
    page.some(" User", &container.user);
    page.some(" Stop Signal", &container.stop_signal);
    if container.stop_grace_period_ms != 0 {
        let grace_ms = if container.stop_grace_period_ms < 0 { 0 } else { container.stop_grace_period_ms };
        page.line(" Stop Grace Period", &human::exact_ms(grace_ms));
    } else {
        page.line(" Stop Grace Period", &human::exact_ms(STOP_GRACE_MS));
    }
    if let Some(check) = &container.health_check {
        page.line(" Healthcheck", &health(check));
    }
    page.some(" Capabilities", &capabilities(container));
    page.some(" Security Options", &security(container));
    for mount in &container.mounts {
        let source = if mount.source.is_empty() { "tmpfs" } else { &mount.source };
        let access = if mount.read_only { " (read-only)" } else { "" };
        page.line(" Mount", &format!("{} from {source}{access}", mount.target));
    }
    for one in &container.secrets {
        let path = files::secret_path(file_path(one.target.as_ref(), &one.name));
        page.line(" Secret", &format!("{path} from {}", versioned(&one.name, one.version, one.pinned)));
    }
    for one in &container.configs {
        let path = files::config_path(file_path(one.target.as_ref(), &one.name));
        page.line(" Config", &format!("{path} from {}", versioned(&one.name, one.version, one.pinned)));
    }
    let resources = container.resources.unwrap_or_default();
    let (limits, reservations) = (resources.limits.unwrap_or_default(), resources.reservations.unwrap_or_default());
    page.some(" Reservations", &amounts(&reservations, 0));
    page.some(" Limits", &amounts(&limits, resources.pids_limit));
}

fn file_path<'a>(target: Option<&'a FileTarget>, name: &'a str) -> &'a str {
    target.map(|target| target.path.as_str()).filter(|path| !path.is_empty()).unwrap_or(name)
}

/// `db@3 (pinned)`
fn versioned(name: &str, version: u64, pinned: bool) -> String {
    format!("{name}@{version}{}", if pinned { " (pinned)" } else { "" })
}

/// `redis-cli ping, interval 10s, retries 3`: what is not said comes from the image.
fn health(check: &HealthCheck) -> String {
    let test = match check.test.split_first() {
        None => "the image's".to_owned(),
        Some((form, _)) if form == "NONE" => return "none".to_owned(),
        Some((_, rest)) => rest.join(" "),
    };
    let spans = [
        ("interval", check.interval_ms),
        ("timeout", check.timeout_ms),
        ("start period", check.start_period_ms),
        ("start interval", check.start_interval_ms),
    ];
    let spans = spans.iter().filter(|(_, ms)| *ms > 0).map(|(name, ms)| format!(", {name} {}", human::exact_ms(*ms)));
    let retries = if check.retries > 0 { format!(", retries {}", check.retries) } else { String::new() };
    test + &spans.collect::<String>() + &retries
}

/// What differs from the defaults, as `--security-opt` and `--userns` take it.
fn security(container: &ContainerSpec) -> String {
    let held = container.confinement.clone().unwrap_or_default();
    let mut words = Vec::new();
    if container.allow_new_privileges {
        words.push("no-new-privileges=false".to_owned());
    }
    match held.seccomp.as_str() {
        "" => {}
        "unconfined" => words.push("seccomp=unconfined".to_owned()),
        _ => words.push("seccomp=custom profile".to_owned()),
    }
    if !held.apparmor.is_empty() {
        words.push(format!("apparmor={}", held.apparmor));
    }
    match held.user_namespace() {
        UserNamespaceMode::Default => {}
        UserNamespaceMode::Host => words.push("userns=host".to_owned()),
        UserNamespaceMode::Private => words.push("userns=private".to_owned()),
    }
    words.join(", ")
}

/// `+NET_ADMIN -CHOWN`
fn capabilities(container: &ContainerSpec) -> String {
    let added = container.cap_add.iter().map(|name| format!("+{name}"));
    let dropped = container.cap_drop.iter().map(|name| format!("-{name}"));
    added.chain(dropped).collect::<Vec<_>>().join(" ")
}

fn amounts(amounts: &Resources, pids: i64) -> String {
    let mut parts = Vec::new();
    if amounts.nano_cpus > 0 {
        parts.push(format!("{} CPUs", amounts.nano_cpus as f64 / 1e9));
    }
    if amounts.memory_bytes > 0 {
        parts.push(format!("{} memory", human::binary_size(amounts.memory_bytes)));
    }
    if pids > 0 {
        parts.push(format!("{pids} processes"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use skep_proto::v1::{NetworkAddresses, NetworkSpec, ReplicatedMode, Revision, Service, Subnet};

    use super::*;

    fn front() -> Network {
        Network {
            id: vec![3; 16],
            spec: Some(NetworkSpec { name: "front".to_owned(), ..NetworkSpec::default() }),
            subnets: vec![Subnet { subnet: "10.0.1.0/24".to_owned(), ..Subnet::default() }],
            ..Network::default()
        }
    }

    #[test]
    fn the_page() {
        let mut update = UpdateStatus {
            started_at_ms: 1_000,
            ended_at_ms: 31_000,
            message: "task failed".to_owned(),
            from_revision: 1,
            state: 0,
        };
        update.set_state(UpdateState::Paused);
        let health_check = HealthCheck {
            test: vec!["CMD-SHELL".to_owned(), "ping".to_owned()],
            interval_ms: 10_000,
            ..HealthCheck::default()
        };
        let container = ContainerSpec {
            image: "web:1".to_owned(),
            args: vec!["serve".to_owned()],
            health_check: Some(health_check),
            ..ContainerSpec::default()
        };
        let summary = ServiceSummary {
            service: Some(Service {
                spec: Some(ServiceSpec {
                    name: "web".to_owned(),
                    labels: [("a".to_owned(), "b".to_owned())].into(),
                    mode: Some(Mode::Replicated(ReplicatedMode { replicas: 3 })),
                    ..ServiceSpec::default()
                }),
                revision: 2,
                update: Some(update),
                virtual_addresses: vec![NetworkAddresses {
                    network_id: vec![3; 16],
                    addresses: vec![vec![10, 0, 1, 2]],
                }],
                ..Service::default()
            }),
            revision: Some(Revision {
                template: Some(TaskTemplate {
                    containers: vec![container],
                    networks: vec![NetworkAttachment { name: "front".to_owned(), ..NetworkAttachment::default() }],
                    ..TaskTemplate::default()
                }),
                ..Revision::default()
            }),
            running: 1,
            desired: 3,
        };
        let text = text(&summary, &[front()], 61_000);
        for line in [
            "Name:               web\nLabels:\n a=b\nService Mode:       Replicated\n Replicas:          3\n",
            "UpdateStatus:\n State:             paused\n Started:           About a minute ago\n Paused:            30 seconds ago\n",
            "UpdateConfig:\n Parallelism:       1\n Delay:             0s\n On failure:        pause\n Monitoring Period: 5s\n",
            " Args:              serve\n",
            " Healthcheck:       ping, interval 10s\n",
            "Networks:           front\nEndpoint Mode:      vip\nVirtual Addresses:\n front 10.0.1.2/24\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.lines().all(|line| line.trim_end() == line), "{text}");
    }
}
