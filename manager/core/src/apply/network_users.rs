//! Who is on a network, in words: said when it cannot be removed. Asked by `apply`, and by the control API, which also
//! wants to know whether waiting helps.

use std::collections::BTreeMap;
use std::fmt;

use skep_proto::v1::NodeState;

use super::networks::list;
use crate::object::{Network, Task};
use crate::store::{Holder, State};

/// Groups of tasks that are named.
const NAMED: usize = 5;

/// Who is on a network: services, else tasks of services that are gone or were changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkUsers {
    /// Their names.
    Services(Vec<String>),
    /// Tasks that no service wants there any more, counted.
    Tasks(BTreeMap<Leftover, usize>),
}

/// Tasks of one service that are still on a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leftover {
    /// The service's name; empty: it is not known.
    service: String,
    service_is_gone: bool,
    stay: Stay,
}

/// Why they are still there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stay {
    /// They were told to stop.
    Stopping,
    /// Their service's update has not come to them yet.
    ToBeReplaced,
    /// They have addresses from when their service published ports, and no update replaces them.
    Kept,
    /// Nobody knows whether they still run: their node, by its hostname, is silent.
    OnLostNode(String),
}

/// Who is on a network. `None`: nobody.
pub fn users(state: &State, network: &Network) -> Option<NetworkUsers> {
    let services = services(state, network).map(|service| service.spec.name.clone());
    let mut services: Vec<String> = services.collect();
    if !services.is_empty() {
        services.sort_unstable();
        services.dedup();
        return Some(NetworkUsers::Services(services));
    }
    let mut tasks = BTreeMap::new();
    for task in state.tasks_on_network(network.id) {
        *tasks.entry(leftover(state, task)).or_insert(0) += 1;
    }
    (!tasks.is_empty()).then_some(NetworkUsers::Tasks(tasks))
}

/// Whether anybody is on a network. Stops at the first who is.
pub fn has_users(state: &State, network: &Network) -> bool {
    state.tasks_on_network(network.id).next().is_some() || services(state, network).next().is_some()
}

/// Services that attach to it, publish ports there, or hold addresses of it.
fn services<'a>(
    state: &'a State,
    network: &'a Network,
) -> impl Iterator<Item = &'a std::sync::Arc<crate::object::Service>> {
    let publishing = network.spec.ingress.then(|| state.ingress_services()).into_iter().flatten();
    let holding = state.addresses_of(network.id).filter_map(|(_, holder)| match holder {
        Holder::Service(id) => state.service(id),
        _ => None,
    });
    state.services_attached_to(network.id).chain(publishing).chain(holding)
}

fn leftover(state: &State, task: &Task) -> Leftover {
    let service = state.revision(task.revision).map(|revision| revision.service_name.to_string()).unwrap_or_default();
    let node = task.node.and_then(|node| state.node(node));
    let present = state.service(task.service());
    let service_is_gone = present.is_none();
    let stay = match node.filter(|node| node.status.state == NodeState::Down) {
        Some(node) => Stay::OnLostNode(node.hostname().to_owned()),
        // A removed service's tasks are told in the next moment.
        None if task.wanted.wants_to_run() && !service_is_gone => {
            let is_current = present.is_some_and(|service| service.current() == task.revision);
            if is_current { Stay::Kept } else { Stay::ToBeReplaced }
        }
        None => Stay::Stopping,
    };
    Leftover { service, service_is_gone, stay }
}

impl NetworkUsers {
    /// Whether it will be free by itself soon: all that is left is stopping.
    pub fn are_leaving(&self) -> bool {
        match self {
            Self::Services(_) => false,
            Self::Tasks(tasks) => tasks.keys().all(|left| left.stay == Stay::Stopping),
        }
    }

    /// What a person can do about it.
    pub fn advice(&self) -> &'static str {
        let any = |is: fn(&Stay) -> bool| matches!(self, Self::Tasks(tasks) if tasks.keys().any(|left| is(&left.stay)));
        if matches!(self, Self::Services(_)) {
            "remove it there, and wait until the tasks have stopped"
        } else if any(|stay| matches!(stay, Stay::OnLostNode(_))) {
            "bring the host back, or remove its node with `skep node rm --force`"
        } else if any(|stay| *stay == Stay::Kept) {
            "have them replaced by `skep service update --force`"
        } else if any(|stay| *stay == Stay::ToBeReplaced) {
            "see `skep service ps`, and try again when the update is done"
        } else {
            "it can be removed when they have stopped"
        }
    }
}

impl fmt::Display for NetworkUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Services(names) => f.write_str(&list(if names.len() == 1 { "service" } else { "services" }, names)),
            Self::Tasks(tasks) => {
                for (index, (left, count)) in tasks.iter().take(NAMED).enumerate() {
                    write!(f, "{}{}", if index == 0 { "" } else { ", " }, Group { left, count: *count })?;
                }
                match tasks.len().saturating_sub(NAMED) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
        }
    }
}

/// `2 tasks of the removed service web, which are stopping`
struct Group<'a> {
    left: &'a Leftover,
    count: usize,
}

impl fmt::Display for Group<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Leftover { service, service_is_gone, stay } = self.left;
        let one = self.count == 1;
        write!(f, "{} task{} of ", self.count, if one { "" } else { "s" })?;
        match (service.as_str(), service_is_gone) {
            ("", _) => write!(f, "a removed service")?,
            (name, true) => write!(f, "the removed service {name}")?,
            (name, false) => write!(f, "service {name}")?,
        }
        match stay {
            Stay::Stopping => write!(f, ", which {} stopping", if one { "is" } else { "are" }),
            Stay::ToBeReplaced => write!(f, ", which its update has not replaced yet"),
            Stay::Kept => write!(f, " with an address from when it published a port"),
            Stay::OnLostNode(hostname) => write!(f, " on {hostname}, which is down"),
        }
    }
}
