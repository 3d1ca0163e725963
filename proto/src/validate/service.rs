//! Services and nodes.

use std::collections::HashSet;

use super::{Invalid, container, duplicate, labels, name, network, not_negative, placeholders};
use crate::constraint::{Constraint, parse_spread};
use crate::v1::service_spec::Mode;
use crate::v1::{FailureAction, NodeSpec, Placement, RestartPolicy, ServiceSpec, TaskTemplate, UpdatePolicy};

/// Replicas that one service may have.
pub const MAX_REPLICAS: u64 = 100_000;
/// Containers that one task may have.
const MAX_CONTAINERS: usize = 16;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Checks a whole service spec. `Ok` means that it can be stored, given that names resolve.
pub fn service_spec(spec: &ServiceSpec) -> Result<(), Invalid> {
    name("name", &spec.name)?;
    labels("labels", &spec.labels)?;
    match &spec.mode {
        None => return Err(Invalid::new("mode", "must be replicated or global")),
        Some(Mode::Replicated(mode)) => replicas(mode.replicas)?,
        Some(Mode::Global(_)) => {}
    }
    for (field, policy) in [("update", &spec.update), ("rollback", &spec.rollback)] {
        if let Some(policy) = policy {
            update_policy(policy).map_err(|invalid| invalid.under(field))?;
        }
    }
    if spec.rollback.is_some_and(|policy| policy.failure_action() == FailureAction::Rollback) {
        return Err(Invalid::new("rollback.failure_action", "a rollback cannot be rolled back: use pause or continue"));
    }
    not_negative("failover_delay_ms", spec.failover_delay_ms)?;
    let template = spec.template.as_ref().ok_or_else(|| Invalid::new("template", "is missing"))?;
    task_template(template)?;
    if let (Some(placement), Some(Mode::Global(_))) = (&template.placement, &spec.mode)
        && placement.max_replicas_per_node > 0
    {
        return Err(Invalid::new("placement.max_replicas_per_node", "cannot be used with mode global"));
    }
    network::attachments(spec, template)?;
    network::endpoint(spec.endpoint.as_ref(), template.network_mode())
}

/// Checks a number of replicas.
pub fn replicas(replicas: u64) -> Result<(), Invalid> {
    if replicas > MAX_REPLICAS {
        return Err(Invalid::new("replicas", format!("at most {MAX_REPLICAS} are allowed, not {replicas}")));
    }
    Ok(())
}

/// Checks what an operator wants of a node.
pub fn node_spec(spec: &NodeSpec) -> Result<(), Invalid> {
    labels("labels", &spec.labels)
}

fn update_policy(policy: &UpdatePolicy) -> Result<(), Invalid> {
    not_negative("delay_ms", policy.delay_ms)?;
    not_negative("monitor_ms", policy.monitor_ms)?;
    if !(0.0..=1.0).contains(&policy.max_failure_ratio) {
        let message = format!("must be between 0 and 1, but is {}", policy.max_failure_ratio);
        return Err(Invalid::new("max_failure_ratio", message));
    }
    Ok(())
}

fn task_template(template: &TaskTemplate) -> Result<(), Invalid> {
    if template.containers.is_empty() {
        return Err(Invalid::new("containers", "a task needs at least one container"));
    }
    if template.containers.len() > MAX_CONTAINERS {
        let count = template.containers.len();
        return Err(Invalid::new("containers", format!("at most {MAX_CONTAINERS} are allowed, not {count}")));
    }
    if let Some(twice) = duplicate(template.containers.iter().map(|container| container.name.as_str())) {
        return Err(Invalid::new("containers", format!("two containers are named {twice:?}")));
    }
    for spec in &template.containers {
        container::container(spec).map_err(|invalid| invalid.under(&format!("containers[{}]", spec.name)))?;
    }
    if template.containers.iter().all(|container| container.optional) {
        return Err(Invalid::new("containers", "at least one container must be essential"));
    }
    depends_on(template)?;
    placeholders("hostname", &template.hostname)?;
    hostname(&template.hostname)?;
    if let Some(restart) = &template.restart {
        restart_policy(restart)?;
    }
    if let Some(placement) = &template.placement {
        placement_rules(placement)?;
    }
    dns(template)?;
    hosts(&template.hosts)
}

/// Each of them becomes a word of `resolv.conf` (resolv.conf(5)).
fn dns(template: &TaskTemplate) -> Result<(), Invalid> {
    let Some(dns) = &template.dns else { return Ok(()) };
    if let Some((index, server)) =
        dns.nameservers.iter().enumerate().find(|(_, server)| server.parse::<std::net::IpAddr>().is_err())
    {
        return Err(Invalid::new(format!("dns.nameservers[{index}]"), format!("{server:?} is not an IP address")));
    }
    for (field, what, words) in [("search", "a domain", &dns.search), ("options", "an option", &dns.options)] {
        let is_word = |word: &str| !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control());
        if let Some((index, word)) = words.iter().enumerate().find(|(_, word)| !is_word(word)) {
            let message = format!("{word:?} is not {what}: give the flag once for each");
            return Err(Invalid::new(format!("dns.{field}[{index}]"), message));
        }
    }
    Ok(())
}

/// Every named container exists, and the order has no cycle.
fn depends_on(template: &TaskTemplate) -> Result<(), Invalid> {
    let mut started: HashSet<&str> = HashSet::new();
    let mut waiting: Vec<_> = template.containers.iter().collect();
    for spec in &template.containers {
        if let Some(unknown) =
            spec.depends_on.iter().find(|needed| !template.containers.iter().any(|other| other.name == **needed))
        {
            let field = format!("containers[{}].depends_on", spec.name);
            return Err(Invalid::new(field, format!("there is no container {unknown:?}")));
        }
    }
    loop {
        let before = waiting.len();
        waiting.retain(|spec| {
            let ready = spec.depends_on.iter().all(|needed| started.contains(needed.as_str()));
            if ready {
                started.insert(&spec.name);
            }
            !ready
        });
        match waiting.first() {
            None => return Ok(()),
            Some(spec) if waiting.len() == before => {
                let field = format!("containers[{}].depends_on", spec.name);
                return Err(Invalid::new(field, "the containers wait for each other in a circle"));
            }
            Some(_) => {}
        }
    }
}

fn restart_policy(policy: &RestartPolicy) -> Result<(), Invalid> {
    if policy.delay_ms < -1 || policy.delay_ms > DAY_MS {
        return Err(Invalid::new("restart.delay_ms", "must be between 0 and 24 hours"));
    }
    not_negative("restart.window_ms", policy.window_ms)
}

fn placement_rules(placement: &Placement) -> Result<(), Invalid> {
    for (index, text) in placement.constraints.iter().enumerate() {
        Constraint::parse(text)
            .map_err(|error| Invalid::new(format!("placement.constraints[{index}]"), error.to_string()))?;
    }
    for (index, text) in placement.spread.iter().enumerate() {
        parse_spread(text).map_err(|_| {
            let message = format!("cannot spread over {text:?}: use node.labels.<name> or engine.labels.<name>");
            Invalid::new(format!("placement.spread[{index}]"), message)
        })?;
    }
    Ok(())
}

fn hosts(hosts: &[String]) -> Result<(), Invalid> {
    for (index, line) in hosts.iter().enumerate() {
        let valid = line
            .split_once(':')
            .is_some_and(|(name, address)| is_hostname(name) && address.parse::<std::net::IpAddr>().is_ok());
        if !valid {
            return Err(Invalid::new(format!("hosts[{index}]"), format!("{line:?} is not name:address")));
        }
    }
    Ok(())
}

/// What stands around the placeholders of a hostname becomes a word of `/etc/hosts`, and a name that is looked up.
fn hostname(text: &str) -> Result<(), Invalid> {
    // A placeholder is a letter here: what it stands for is a name.
    let mut name = String::new();
    let mut rest = text;
    while let Some((before, (_, after))) = rest.split_once("{{").and_then(|(b, a)| Some((b, a.split_once("}}")?))) {
        name.push_str(before);
        name.push('x');
        rest = after;
    }
    name.push_str(rest);
    if name.is_empty() || is_hostname(&name) {
        return Ok(());
    }
    let message =
        format!("{text:?} is not a host's name: letters, digits, '-', '_' and '.', the first a letter or digit");
    Err(Invalid::new("hostname", message))
}

/// RFC 1123 section 2.1, and the underscores that names of services have. At most what DNS takes.
fn is_hostname(text: &str) -> bool {
    text.len() <= 253
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::v1::{ContainerSpec, GlobalMode, ReplicatedMode};

    fn valid() -> ServiceSpec {
        let container = ContainerSpec { name: "main".into(), image: "busybox".into(), ..ContainerSpec::default() };
        ServiceSpec {
            name: "web".into(),
            mode: Some(Mode::Replicated(ReplicatedMode { replicas: 3 })),
            template: Some(TaskTemplate { containers: vec![container], ..TaskTemplate::default() }),
            ..ServiceSpec::default()
        }
    }

    fn refused(change: impl FnOnce(&mut ServiceSpec)) -> String {
        let mut spec = valid();
        change(&mut spec);
        service_spec(&spec).unwrap_err().to_string()
    }

    fn template(spec: &mut ServiceSpec) -> &mut TaskTemplate {
        spec.template.as_mut().unwrap()
    }

    #[test]
    fn a_plain_service_is_valid() {
        assert_eq!(service_spec(&valid()), Ok(()));
    }

    #[test]
    fn words_of_resolv_conf_are_words() {
        let dns = |search: &str, option: &str| {
            let (search, options) = (vec!["example.com".into(), search.to_owned()], vec![option.to_owned()]);
            Some(crate::v1::DnsSpec { search, options, ..Default::default() })
        };
        for bad in ["", "two words", "a\nnameserver 192.0.2.1"] {
            let message = refused(|spec| template(spec).dns = dns(bad, "ndots:2"));
            assert!(message.contains("dns.search[1]: ") && message.contains("is not a domain"), "{message}");
            let message = refused(|spec| template(spec).dns = dns(".", bad));
            assert!(message.contains("dns.options[0]: ") && message.contains("is not an option"), "{message}");
        }
        let mut spec = valid();
        template(&mut spec).dns = dns(".", "ndots:2");
        assert_eq!(service_spec(&spec), Ok(()));
    }

    #[test]
    fn mistakes_name_the_field() {
        assert!(refused(|spec| spec.name.clear()).starts_with("name: "));
        assert!(refused(|spec| spec.mode = None).starts_with("mode: "));
        let huge = ReplicatedMode { replicas: MAX_REPLICAS + 1 };
        assert!(refused(|spec| spec.mode = Some(Mode::Replicated(huge))).starts_with("replicas: at most 100000"));
        assert!(refused(|spec| template(spec).containers.clear()).starts_with("containers: "));
        assert!(refused(|spec| template(spec).containers[0].image.clear()).starts_with("containers[main].image: "));
        let placement = Placement { constraints: vec!["node.colour==red".into()], ..Placement::default() };
        assert!(refused(|spec| template(spec).placement = Some(placement)).starts_with("placement.constraints[0]: "));
        let placement = Placement { max_replicas_per_node: 1, ..Placement::default() };
        assert!(
            refused(|spec| {
                spec.mode = Some(Mode::Global(GlobalMode {}));
                template(spec).placement = Some(placement);
            })
            .contains("global")
        );
    }

    #[test]
    fn placeholders_must_exist() {
        let mut spec = valid();
        template(&mut spec).hostname = "{{.Service.Name}}-{{.Task.Slot}}".into();
        assert_eq!(service_spec(&spec), Ok(()));
        let message = refused(|spec| template(spec).hostname = "{{.Bogus}}".into());
        assert!(message.starts_with("hostname: \".Bogus\" is not a placeholder"), "{message}");
        let later = refused(|spec| template(spec).hostname = "{{.Service.Labels.zone}}".into());
        assert!(later.starts_with("hostname: not supported yet: "), "{later}");
        for good in ["", "box", "b_1.example", "{{.Node.Hostname}}-{{.Service.Name}}"] {
            template(&mut spec).hostname = good.into();
            assert_eq!(service_spec(&spec), Ok(()), "{good}");
        }
        for bad in ["-box", "a b", "box\n10.0.0.1 evil", "{{.Service.Name}} x", &"x".repeat(254)] {
            let message = refused(|spec| template(spec).hostname = bad.into());
            assert!(message.starts_with("hostname: ") && message.contains("is not a host's name"), "{message}");
        }
        for bad in ["db", ":10.0.0.1", "db:", "a b:10.0.0.1", "db\n1.2.3.4 x:10.0.0.1", "db:here"] {
            let message = refused(|spec| template(spec).hosts = vec![bad.into()]);
            assert!(message.starts_with("hosts[0]: ") && message.contains("is not name:address"), "{message}");
        }
    }

    #[test]
    fn circles_and_unknown_dependencies_are_refused() {
        let message = refused(|spec| {
            let mut second = template(spec).containers[0].clone();
            second.name = "side".into();
            second.depends_on = vec!["main".into()];
            template(spec).containers[0].depends_on = vec!["side".into()];
            template(spec).containers.push(second);
        });
        assert!(message.contains("circle"), "{message}");
        assert!(refused(|spec| template(spec).containers[0].depends_on = vec!["no".into()]).contains("no container"));
    }
}
