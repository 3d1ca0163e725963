//! A task template in Docker's shape: the part that services and tasks share.

use std::collections::BTreeMap;

use serde::Serialize;
use skep_proto::v1;

use super::nanos;

/// Docker's defaults, which the wire leaves out.
pub(super) const STOP_GRACE_MS: i64 = 10_000;
pub(super) const RESTART_DELAY_MS: i64 = 5_000;
const LOG_MAX_BYTES: i64 = 10 << 20;
const LOG_MAX_FILES: u32 = 3;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TemplateView {
    /// The first container; the only one in what Docker can express.
    container_spec: ContainerView,
    /// All containers, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<ContainerView>,
    resources: Resources,
    restart_policy: Restart,
    placement: Placement,
    networks: Vec<Target>,
    log_driver: LogDriver,
    force_update: u64,
    runtime: &'static str,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerView {
    name: String,
    /// As written, with `@digest` where it is resolved.
    image: String,
    labels: BTreeMap<String, String>,
    command: Vec<String>,
    args: Vec<String>,
    hostname: String,
    env: Vec<String>,
    dir: String,
    user: String,
    groups: Vec<String>,
    privileges: Privileges,
    init: bool,
    stop_signal: String,
    stop_grace_period: i64,
    read_only: bool,
    mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<Secret>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    configs: Vec<Config>,
    hosts: Vec<String>,
    #[serde(rename = "DNSConfig")]
    dns_config: Dns,
    sysctls: BTreeMap<String, String>,
    capability_add: Vec<String>,
    capability_drop: Vec<String>,
    ulimits: Vec<Ulimit>,
    oom_score_adj: i32,
    /// Absent: the image's check, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck: Option<Health>,
    /// Whether the task ends with it.
    essential: bool,
    depends_on: Vec<String>,
}

/// Durations in nanoseconds; 0: the image's, else the default.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    test: Vec<String>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: u32,
}

impl From<v1::HealthCheck> for Health {
    fn from(check: v1::HealthCheck) -> Self {
        Self {
            test: check.test,
            interval: nanos(check.interval_ms, 0),
            timeout: nanos(check.timeout_ms, 0),
            start_period: nanos(check.start_period_ms, 0),
            start_interval: nanos(check.start_interval_ms, 0),
            retries: check.retries,
        }
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Secret {
    file: File,
    #[serde(rename = "SecretID")]
    secret_id: String,
    secret_name: String,
    /// Of the data.
    version: u64,
    pinned: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    file: File,
    #[serde(rename = "ConfigID")]
    config_id: String,
    config_name: String,
    /// Of the data.
    version: u64,
    pinned: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    name: String,
    #[serde(rename = "UID")]
    uid: String,
    #[serde(rename = "GID")]
    gid: String,
    mode: u32,
}

impl From<v1::SecretRef> for Secret {
    fn from(one: v1::SecretRef) -> Self {
        Self {
            file: file(one.target, &one.name),
            secret_id: super::id(&one.secret_id),
            secret_name: one.name,
            version: one.version,
            pinned: one.pinned,
        }
    }
}

impl From<v1::ConfigRef> for Config {
    fn from(one: v1::ConfigRef) -> Self {
        Self {
            file: file(one.target, &one.name),
            config_id: super::id(&one.config_id),
            config_name: one.name,
            version: one.version,
            pinned: one.pinned,
        }
    }
}

/// With the defaults that the wire leaves out.
fn file(target: Option<v1::FileTarget>, name: &str) -> File {
    let v1::FileTarget { path, uid, gid, mode } = target.unwrap_or_default();
    let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
    let mode = if mode == 0 { skep_proto::validate::files::DEFAULT_MODE } else { mode };
    File { name: or(path, name), uid: or(uid, "0"), gid: or(gid, "0"), mode }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Privileges {
    no_new_privileges: bool,
    seccomp: Seccomp,
    app_armor: Mode,
    /// "default", "host" or "private".
    user_namespace: &'static str,
}

/// Docker's modes: "default", "unconfined", "custom".
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Seccomp {
    mode: &'static str,
    /// The profile, where it is the user's.
    #[serde(skip_serializing_if = "String::is_empty")]
    profile: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Mode {
    /// "default", "unconfined" or the profile's name.
    mode: String,
}

fn privileges(container: &v1::ContainerSpec) -> Privileges {
    let held = container.confinement.clone().unwrap_or_default();
    let user_namespace = match held.user_namespace() {
        v1::UserNamespaceMode::Default => "default",
        v1::UserNamespaceMode::Host => "host",
        v1::UserNamespaceMode::Private => "private",
    };
    let (mode, profile) = match held.seccomp.as_str() {
        "" => ("default", String::new()),
        "unconfined" => ("unconfined", String::new()),
        _ => ("custom", held.seccomp),
    };
    let app_armor = if held.apparmor.is_empty() { "default".to_owned() } else { held.apparmor };
    Privileges {
        no_new_privileges: !container.allow_new_privileges,
        seccomp: Seccomp { mode, profile },
        app_armor: Mode { mode: app_armor },
        user_namespace,
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Mount {
    r#type: &'static str,
    source: String,
    target: String,
    read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    bind_options: Option<BindOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tmpfs_options: Option<TmpfsOptions>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct BindOptions {
    propagation: String,
    non_recursive: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct TmpfsOptions {
    size_bytes: i64,
    mode: u32,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Dns {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ulimit {
    name: String,
    soft: i64,
    hard: i64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Resources {
    limits: Limits,
    reservations: super::node::ResourcesView,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Limits {
    #[serde(flatten)]
    amounts: super::node::ResourcesView,
    pids: i64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Restart {
    condition: &'static str,
    delay: i64,
    max_attempts: u64,
    window: i64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Placement {
    constraints: Vec<String>,
    preferences: Vec<Preference>,
    max_replicas: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Preference {
    spread: Spread,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spread {
    spread_descriptor: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Target {
    /// The network's id; `host` or `none`.
    target: String,
    name: String,
    aliases: Vec<String>,
    /// Fixed ones.
    addresses: Vec<String>,
}

/// What the tasks are attached to: networks, or the host's or none.
fn networks(template: &v1::TaskTemplate) -> Vec<Target> {
    if template.networks.is_empty() {
        let name = match template.network_mode() {
            v1::NetworkMode::Default => "bridge",
            v1::NetworkMode::None => "none",
            v1::NetworkMode::Host => "host",
        };
        let (target, name) = (name.to_owned(), name.to_owned());
        return vec![Target { target, name, aliases: Vec::new(), addresses: Vec::new() }];
    }
    let target = |attached: &v1::NetworkAttachment| Target {
        target: if attached.network_id.is_empty() { attached.name.clone() } else { super::id(&attached.network_id) },
        name: attached.name.clone(),
        aliases: attached.aliases.clone(),
        addresses: attached.addresses.clone(),
    };
    template.networks.iter().map(target).collect()
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct LogDriver {
    name: &'static str,
    options: BTreeMap<&'static str, String>,
}

/// `image@digest`, or the image alone while it is not resolved.
pub(crate) fn image(container: &v1::ContainerSpec) -> String {
    if container.image_digest.is_empty() || container.image.contains('@') {
        container.image.clone()
    } else {
        format!("{}@{}", container.image, container.image_digest)
    }
}

impl From<v1::TaskTemplate> for TemplateView {
    fn from(template: v1::TaskTemplate) -> Self {
        let networks = networks(&template);
        let restart = template.restart.unwrap_or_default();
        let placement = template.placement.clone().unwrap_or_default();
        let resources = template.containers.first().and_then(|container| container.resources).unwrap_or_default();
        let views: Vec<ContainerView> =
            template.containers.iter().map(|container| container_view(&template, container)).collect();
        let container_spec =
            views.first().cloned().unwrap_or_else(|| container_view(&template, &v1::ContainerSpec::default()));
        Self {
            container_spec,
            containers: if views.len() > 1 { views } else { Vec::new() },
            resources: Resources {
                limits: Limits { amounts: resources.limits.as_ref().into(), pids: resources.pids_limit },
                reservations: resources.reservations.as_ref().into(),
            },
            restart_policy: Restart {
                condition: match restart.condition() {
                    v1::RestartCondition::Any => "any",
                    v1::RestartCondition::OnFailure => "on-failure",
                    v1::RestartCondition::None => "none",
                },
                delay: nanos(restart.delay_ms, RESTART_DELAY_MS),
                max_attempts: restart.max_attempts,
                window: nanos(restart.window_ms, 0),
            },
            placement: Placement {
                constraints: placement.constraints,
                preferences: placement
                    .spread
                    .into_iter()
                    .map(|spread_descriptor| Preference { spread: Spread { spread_descriptor } })
                    .collect(),
                max_replicas: placement.max_replicas_per_node,
            },
            networks,
            log_driver: log_driver(template.log.unwrap_or_default()),
            force_update: template.force_update,
            runtime: "container",
        }
    }
}

fn container_view(template: &v1::TaskTemplate, container: &v1::ContainerSpec) -> ContainerView {
    let dns = template.dns.clone().unwrap_or_default();
    let container = container.clone();
    ContainerView {
        privileges: privileges(&container),
        image: image(&container),
        name: container.name,
        labels: container.labels,
        command: container.command,
        args: container.args,
        hostname: template.hostname.clone(),
        env: container.env,
        dir: container.dir,
        user: container.user,
        groups: container.groups,
        init: container.init,
        stop_signal: container.stop_signal,
        stop_grace_period: nanos(container.stop_grace_period_ms, STOP_GRACE_MS),
        read_only: container.read_only,
        mounts: container.mounts.into_iter().map(mount_view).collect(),
        secrets: container.secrets.into_iter().map(Into::into).collect(),
        configs: container.configs.into_iter().map(Into::into).collect(),
        hosts: template.hosts.clone(),
        dns_config: Dns { nameservers: dns.nameservers, search: dns.search, options: dns.options },
        sysctls: container.sysctls,
        capability_add: container.cap_add,
        capability_drop: container.cap_drop,
        ulimits: container
            .ulimits
            .into_iter()
            .map(|limit| Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard })
            .collect(),
        oom_score_adj: container.oom_score_adj,
        healthcheck: container.health_check.map(Into::into),
        essential: !container.optional,
        depends_on: container.depends_on,
    }
}

fn mount_view(mount: v1::MountSpec) -> Mount {
    let kind = mount.r#type();
    Mount {
        r#type: match kind {
            v1::MountType::Bind => "bind",
            v1::MountType::Tmpfs => "tmpfs",
            v1::MountType::Volume => "volume",
        },
        source: mount.source,
        target: mount.target,
        read_only: mount.read_only,
        bind_options: (kind == v1::MountType::Bind).then(|| BindOptions {
            propagation: if mount.propagation.is_empty() { "rprivate".to_owned() } else { mount.propagation },
            non_recursive: mount.non_recursive,
        }),
        tmpfs_options: (kind == v1::MountType::Tmpfs).then_some(TmpfsOptions {
            size_bytes: mount.tmpfs_size_bytes,
            mode: if mount.tmpfs_mode == 0 { 0o1777 } else { mount.tmpfs_mode },
        }),
    }
}

fn log_driver(log: v1::LogSpec) -> LogDriver {
    let bytes = if log.max_file_bytes == 0 { LOG_MAX_BYTES } else { log.max_file_bytes };
    let files = if log.max_files == 0 { LOG_MAX_FILES } else { log.max_files };
    LogDriver {
        name: "json-file",
        options: BTreeMap::from([("max-file", files.to_string()), ("max-size", bytes.to_string())]),
    }
}
