//! From a stored spec and the flags of `service update` to the new spec. Pure: nothing is read but the caller's
//! environment, by [`Caller`].
//!
//! In every list what is to be removed goes first, then what is added; an added item takes the place of the one with the
//! same key. Removing what is not there is a warning, as an update that is run twice should not fail.

use std::collections::BTreeMap;

use skep_proto::v1::{FileTarget, NetworkAttachment, NetworkMode, PortSpec, ServiceSpec, ServiceSummary, TaskTemplate};
use skep_proto::validate::files;

use super::settings::{main_container, within};
use super::spec::{Caller, each, spread};
use super::update::{Change, ContainerLists, NetworkLists, ServiceLists};
use crate::failure::Failure;
use crate::parse::network::Networks;
use crate::parse::{env, file, mount, network, pair, publish, shell, ulimit};
use crate::view;

/// What an edit makes.
#[derive(Debug)]
pub(super) struct Edited {
    pub(super) spec: ServiceSpec,
    /// For a person: what was to be removed and was not there.
    pub(super) warnings: Vec<String>,
}

/// Everything that is stored of a service's wishes, in one spec; without what only managers set.
pub(super) fn whole_spec(summary: &ServiceSummary) -> ServiceSpec {
    let mut spec = summary.service.clone().and_then(|service| service.spec).unwrap_or_default();
    let revision = summary.revision.clone().unwrap_or_default();
    spec.template = revision.template.or(spec.template);
    if let Some(template) = &mut spec.template {
        template.credential_id.clear();
    }
    spec
}

/// Finds mistakes in the flags themselves, before the daemon is asked. What depends on the service is left out.
pub(super) fn check(change: &Change, caller: &Caller<'_>) -> Result<(), Failure> {
    let mut blank = change.clone();
    // Whether it has replicas is the service's matter.
    blank.settings.service.replicas = None;
    edit(ServiceSpec::default(), &blank, caller).map(drop)
}

/// Changes the spec.
pub(super) fn edit(mut spec: ServiceSpec, change: &Change, caller: &Caller<'_>) -> Result<Edited, Failure> {
    let mut lists = Lists::default();
    change.settings.apply(&mut spec, caller)?;
    change.service.apply(&mut spec, &mut lists)?;
    change.network.apply(&mut spec, &mut lists)?;
    let template = spec.template.get_or_insert_default();
    change.container.apply(template, caller, &mut lists)?;
    if change.force {
        template.force_update += 1;
    }
    let container = main_container(template);
    if let Some(args) = &change.args {
        container.args = shell::words(args).map_err(|error| error.of("--args"))?;
    }
    if let Some(image) = &change.image {
        container.image.clone_from(image);
        // Resolved anew, also if the name is the same: that is how one asks for what it stands for now.
        container.image_digest.clear();
        container.image_platforms.clear();
    }
    Ok(Edited { spec, warnings: lists.warnings })
}

/// Edits lists, and remembers what was not there.
#[derive(Default)]
struct Lists {
    warnings: Vec<String>,
}

impl Lists {
    fn missing(&mut self, flag: &str, name: &str) {
        self.warnings.push(format!("{flag} {name}: the service does not have it"));
    }

    /// Takes out the items that a text names, then adds; `key` says which items take each other's place.
    fn change<T, K: PartialEq>(
        &mut self,
        list: &mut Vec<T>,
        (flag, remove): (&str, &[String]),
        add: Vec<T>,
        is_named: impl Fn(&T, &str) -> bool,
        key: impl Fn(&T) -> K,
    ) {
        for name in remove {
            let before = list.len();
            list.retain(|item| !is_named(item, name));
            if list.len() == before {
                self.missing(flag, name);
            }
        }
        for item in add {
            match list.iter_mut().find(|known| key(known) == key(&item)) {
                Some(known) => *known = item,
                None => list.push(item),
            }
        }
    }

    /// A list of texts that are their own keys.
    fn texts(&mut self, list: &mut Vec<String>, remove: (&str, &[String]), add: Vec<String>) {
        self.change(list, remove, add, |item, name| item == name, Clone::clone);
    }

    fn map(
        &mut self,
        map: &mut BTreeMap<String, String>,
        (flag, remove): (&str, &[String]),
        add: BTreeMap<String, String>,
    ) {
        for name in remove {
            if map.remove(name).is_none() {
                self.missing(flag, name);
            }
        }
        map.extend(add);
    }
}

impl ServiceLists {
    fn apply(&self, spec: &mut ServiceSpec, lists: &mut Lists) -> Result<(), Failure> {
        let labels = pair::labels(&self.label_add).map_err(|error| error.of("--label-add"))?;
        lists.map(&mut spec.labels, ("--label-rm", &self.label_rm), labels);
        let add = each(&self.placement_pref_add, "--placement-pref-add", spread)?;
        let remove = each(&self.placement_pref_rm, "--placement-pref-rm", spread)?;
        within(&mut spec.template.get_or_insert_default().placement, |placement| {
            let constraints = self.constraint_add.clone();
            lists.texts(&mut placement.constraints, ("--constraint-rm", &self.constraint_rm), constraints);
            lists.texts(&mut placement.spread, ("--placement-pref-rm", &remove), add);
        });
        Ok(())
    }
}

impl ContainerLists {
    fn apply(&self, template: &mut TaskTemplate, caller: &Caller<'_>, lists: &mut Lists) -> Result<(), Failure> {
        let container = main_container(template);
        let variable_name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
        let add = each(&self.env_add, "--env-add", |text| env::variable(text, caller.variable))?;
        let is_named = |variable: &String, name: &str| variable_name(variable) == name;
        lists.change(&mut container.env, ("--env-rm", &self.env_rm), add, is_named, variable_name);
        let add = pair::labels(&self.container_label_add).map_err(|error| error.of("--container-label-add"))?;
        lists.map(&mut container.labels, ("--container-label-rm", &self.container_label_rm), add);
        lists.texts(&mut container.groups, ("--group-rm", &self.group_rm), self.group_add.clone());
        let add = each(&self.mount_add, "--mount-add", mount::parse)?;
        let target = |path: &str| path.trim_end_matches('/').to_owned();
        lists.change(
            &mut container.mounts,
            ("--mount-rm", &self.mount_rm),
            add,
            |mount, path| target(&mount.target) == target(path),
            |mount| target(&mount.target),
        );
        let add = pair::sysctls(&self.sysctl_add).map_err(|error| error.of("--sysctl-add"))?;
        lists.map(&mut container.sysctls, ("--sysctl-rm", &self.sysctl_rm), add);
        let add = each(&self.ulimit_add, "--ulimit-add", ulimit::parse)?;
        lists.change(
            &mut container.ulimits,
            ("--ulimit-rm", &self.ulimit_rm),
            add,
            |limit, name| limit.name == name,
            |limit| limit.name.clone(),
        );
        let add = each(&self.secret_add, "--secret-add", file::secret)?;
        lists.change(
            &mut container.secrets,
            ("--secret-rm", &self.secret_rm),
            add,
            |one, named| one.name == named || is_id(&one.secret_id, named),
            |one| files::secret_path(path(one.target.as_ref(), &one.name)),
        );
        let add = each(&self.config_add, "--config-add", file::config)?;
        lists.change(
            &mut container.configs,
            ("--config-rm", &self.config_rm),
            add,
            |one, named| one.name == named || is_id(&one.config_id, named),
            |one| files::config_path(path(one.target.as_ref(), &one.name)),
        );
        self.capabilities(&mut container.cap_add, &mut container.cap_drop)
    }

    /// As in Docker: adding takes back an earlier drop, and the other way round; only a second time it goes further. An
    /// addition wins over a drop on the same command line, ALL swallows the others, RESET forgets what was.
    fn capabilities(&self, added: &mut Vec<String>, dropped: &mut Vec<String>) -> Result<(), Failure> {
        let add = capabilities("--cap-add", &self.cap_add)?;
        let mut drop = capabilities("--cap-drop", &self.cap_drop)?;
        if add.is_empty() && drop.is_empty() {
            return Ok(());
        }
        drop.retain(|name| name == RESET || !add.contains(name));
        let normal = |list: &[String]| -> Vec<String> {
            list.iter().map(|name| skep_proto::validate::capability(name).unwrap_or(name).to_owned()).collect()
        };
        let (mut now_added, mut now_dropped) = (normal(added), normal(dropped));
        if add.iter().chain(&drop).any(|name| name == RESET) {
            now_added.clear();
            now_dropped.clear();
        }
        toggle(&add, &mut now_added, &mut now_dropped);
        toggle(&drop, &mut now_dropped, &mut now_added);
        (*added, *dropped) = (now_added, now_dropped);
        Ok(())
    }
}

/// Forgets all that was added and dropped before.
const RESET: &str = "RESET";

/// Names in their one form.
fn capabilities(flag: &str, names: &[String]) -> Result<Vec<String>, Failure> {
    each(names, flag, |name| {
        if name.eq_ignore_ascii_case(RESET) {
            return Ok(RESET.to_owned());
        }
        skep_proto::validate::capability(name)
            .map(str::to_owned)
            .ok_or_else(|| crate::parse::ParseError::invalid(format!("there is no capability {name:?}")))
    })
}

/// Each name leaves the other list, or else goes into its own.
fn toggle(names: &[String], own: &mut Vec<String>, other: &mut Vec<String>) {
    for name in names.iter().filter(|name| *name != RESET) {
        if other.contains(name) {
            other.retain(|known| known != name);
        } else if !own.contains(name) {
            own.push(name.clone());
        }
    }
    if own.iter().any(|name| name == "ALL") {
        *own = vec!["ALL".to_owned()];
    }
    own.sort();
}

impl NetworkLists {
    fn apply(&self, spec: &mut ServiceSpec, lists: &mut Lists) -> Result<(), Failure> {
        let template = spec.template.get_or_insert_default();
        self.networks(template, lists)?;
        let mode = template.network_mode();
        let add = each(&self.host_add, "--host-add", pair::host)?;
        lists.change(
            &mut template.hosts,
            ("--host-rm", &self.host_rm),
            add,
            |line, named| line == named || line.split(':').next() == Some(named),
            Clone::clone,
        );
        within(&mut template.dns, |dns| {
            lists.texts(&mut dns.nameservers, ("--dns-rm", &self.dns_rm), self.dns_add.clone());
            lists.texts(&mut dns.search, ("--dns-search-rm", &self.dns_search_rm), self.dns_search_add.clone());
            lists.texts(&mut dns.options, ("--dns-option-rm", &self.dns_option_rm), self.dns_option_add.clone());
        });
        self.ports(spec, mode, lists)
    }

    /// Which networks the tasks are on.
    fn networks(&self, template: &mut TaskTemplate, lists: &mut Lists) -> Result<(), Failure> {
        for name in &self.network_rm {
            let named = network::attachment(name).map_err(|error| error.of("--network-rm"))?.name;
            match network::predefined(&named).map_err(|error| error.of("--network-rm"))? {
                Some(mode) if mode == template.network_mode() && mode != NetworkMode::default() => {
                    template.set_network_mode(NetworkMode::default());
                }
                Some(_) => lists.missing("--network-rm", name),
                None => {
                    let before = template.networks.len();
                    template.networks.retain(|attached| !is_network(attached, &named));
                    if template.networks.len() == before {
                        lists.missing("--network-rm", name);
                    }
                }
            }
        }
        let added = Networks::parse(&self.network_add).map_err(|error| error.of("--network-add"))?;
        if let Some(mode) = added.mode {
            if !template.networks.is_empty() {
                let message =
                    "host, none and bridge do not go together with other networks: remove those with --network-rm";
                return Err(Failure::Usage(message.to_owned()));
            }
            template.set_network_mode(mode);
        }
        for mut attachment in added.attachments {
            match template.networks.iter_mut().find(|attached| is_network(attached, &attachment.name)) {
                Some(attached) => {
                    attachment.name.clone_from(&attached.name);
                    attachment.network_id.clone_from(&attached.network_id);
                    *attached = attachment;
                }
                None => template.networks.push(attachment),
            }
        }
        Ok(())
    }

    fn ports(&self, spec: &mut ServiceSpec, mode: NetworkMode, lists: &mut Lists) -> Result<(), Failure> {
        let add = each(&self.publish_add, "--publish-add", |text| publish::parse(text, mode))?;
        let remove = each(&self.publish_rm, "--publish-rm", publish::target)?;
        within(&mut spec.endpoint, |endpoint| {
            let ports = &mut endpoint.ports;
            for (text, (target_port, protocol)) in self.publish_rm.iter().zip(remove) {
                let before = ports.len();
                ports.retain(|port| (port.target_port, port.protocol()) != (target_port, protocol));
                if ports.len() == before {
                    lists.missing("--publish-rm", text);
                }
            }
            let key = |port: &PortSpec| (port.target_port, port.protocol);
            lists.change(ports, ("", &[]), add, |_, _| false, key);
        });
        Ok(())
    }
}

/// Where a secret or config lies, as it was asked for.
fn path<'a>(target: Option<&'a FileTarget>, name: &'a str) -> &'a str {
    target.map(|target| target.path.as_str()).filter(|path| !path.is_empty()).unwrap_or(name)
}

/// Whether the text is the id, or the short form of it that tables show.
fn is_id(id: &[u8], text: &str) -> bool {
    !id.is_empty() && (view::id(id) == text || view::short_id(id) == text)
}

/// Whether the text is the network's name, its id, or the short form of it that tables show.
fn is_network(attached: &NetworkAttachment, text: &str) -> bool {
    attached.name == text || is_id(&attached.network_id, text)
}

#[cfg(test)]
#[path = "edit_test.rs"]
mod edit_test;
