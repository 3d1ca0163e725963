//! One pass of the scheduler: all pending tasks, grouped by revision. The filters run once for each revision and node,
//! then a heap hands out nodes: O(m + n log m) for n tasks and m nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::constraint::{Key, parse_spread};
use skep_proto::id::{NetworkId, NodeId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{Protocol, TaskState, TaskStatus};

use super::filter::{Candidate, Needs, Refusals};
use super::ledger::Ledger;
use super::matching::value_of;
use super::spread::{Offer, Rank, Spread, Try};
use crate::change::{Change, Op, Plan};
use crate::ids::mix;
use crate::network::{Addresses, Cursors, NoAddress};
use crate::object::{NetworkAddresses, Revision, RevisionKey, Task};
use crate::store::State;

/// A node where this many tasks of a revision failed within [`FAILURE_WINDOW`] is asked last. Swarm's numbers.
const FAILURES: u64 = 5;
const FAILURE_WINDOW: Duration = Duration::from_secs(300);

/// Places what can be placed, and tells the rest why not. Stable: without a change of the state the second plan is
/// empty. `seed` decides ties.
///
/// A task gets its addresses with its node: `cursors` say which were given last, and move on.
pub fn plan(state: &State, ledger: &Ledger, cursors: &mut Cursors, now: UnixMs, seed: u64) -> Plan {
    let mut plan = Plan::default();
    let mut groups: BTreeMap<RevisionKey, Vec<&Arc<Task>>> = BTreeMap::new();
    for task in state.pending_tasks().filter(|task| task.state == TaskState::Pending) {
        groups.entry(task.revision).or_default().push(task);
    }
    if groups.is_empty() {
        return plan;
    }
    let mut pass = Pass::new(state, ledger, cursors, now, seed);
    for (key, tasks) in groups {
        // A task whose revision is gone is going itself.
        if let Some(revision) = state.revision(key) {
            pass.place_group(revision, &tasks, &mut plan);
        }
    }
    plan
}

struct Pass<'a> {
    state: &'a State,
    now: UnixMs,
    seed: u64,
    candidates: Vec<Candidate<'a>>,
    by_node: BTreeMap<NodeId, usize>,
    addresses: Addresses<'a>,
}

impl<'a> Pass<'a> {
    fn new(state: &'a State, ledger: &Ledger, cursors: &'a mut Cursors, now: UnixMs, seed: u64) -> Self {
        let candidates: Vec<Candidate<'a>> =
            state.nodes().map(|node| Candidate::new(node, ledger.load(node.id), taken_ports(state, node.id))).collect();
        let by_node = candidates.iter().enumerate().map(|(index, candidate)| (candidate.node.id, index)).collect();
        Self { state, now, seed, candidates, by_node, addresses: Addresses::new(state, cursors) }
    }

    fn place_group(&mut self, revision: &Revision, tasks: &[&Arc<Task>], plan: &mut Plan) {
        let needs = Needs::new(revision, tasks.first().map_or(&[], |task| &task.ports));
        let mut of_service = self.service_counts(revision.key);
        let (bound, free): (Vec<_>, Vec<_>) = tasks.iter().copied().partition(|task| task.node.is_some());
        let wanted = Wanted::of(self.state, revision);
        for task in bound {
            self.place_bound(task, &needs, &wanted, &mut of_service, plan);
        }
        if !free.is_empty() {
            self.place_free(&free, &needs, &wanted, &mut of_service, revision, plan);
        }
    }

    /// Tasks of the service on each candidate, counted from the service's tasks only.
    fn service_counts(&self, key: RevisionKey) -> Vec<u64> {
        let mut counts = vec![0; self.candidates.len()];
        for task in self.state.tasks_of_service(key.service).filter(|task| task.occupies_node()) {
            if let Some(index) = task.node.and_then(|node| self.by_node.get(&node)) {
                counts[*index] += 1;
            }
        }
        counts
    }

    /// Candidates where the revision failed too often of late.
    fn failing(&self, key: RevisionKey) -> Vec<bool> {
        let mut failures = vec![0; self.candidates.len()];
        let recent = self.now.minus(FAILURE_WINDOW);
        for task in self.state.tasks_of_service(key.service).filter(|task| {
            task.revision == key
                && matches!(task.state, TaskState::Failed | TaskState::Rejected)
                && task.since() >= recent
        }) {
            if let Some(index) = task.node.and_then(|node| self.by_node.get(&node)) {
                failures[*index] += 1;
            }
        }
        failures.into_iter().map(|count| count >= FAILURES).collect()
    }

    /// A global service's task: its node is given, only the fit is checked.
    fn place_bound(
        &mut self,
        task: &Arc<Task>,
        needs: &Needs<'_>,
        wanted: &Wanted,
        of_service: &mut [u64],
        plan: &mut Plan,
    ) {
        let Some(index) = task.node.and_then(|node| self.by_node.get(&node).copied()) else {
            return;
        };
        let candidate = &mut self.candidates[index];
        if let Err(reason) =
            needs.check_node(candidate.node).and_then(|()| needs.check_room(candidate, of_service[index]))
        {
            let mut refusals = Refusals::default();
            refusals.count(reason);
            plan.push(explain(task, &refusals, self.now).into_iter().collect());
            return;
        }
        match wanted.find(&mut self.addresses) {
            Ok(networks) => {
                needs.occupy(candidate);
                of_service[index] += 1;
                let node = candidate.node.id;
                networks.iter().for_each(|one| self.addresses.take(one));
                plan.push(vec![assign(task, node, networks, self.now)]);
            }
            Err(reason) => {
                let refusals = Refusals::everywhere(reason, 1);
                plan.push(explain(task, &refusals, self.now).into_iter().collect());
            }
        }
    }

    fn place_free(
        &mut self,
        tasks: &[&Arc<Task>],
        needs: &Needs<'_>,
        wanted: &Wanted,
        of_service: &mut [u64],
        revision: &Revision,
        plan: &mut Plan,
    ) {
        let mut refusals = Refusals::default();
        let mut spread = Spread::new(self.offers(needs, of_service, revision, &mut refusals));
        let seed = self.seed;
        let mut tasks = tasks.iter();
        for task in tasks.by_ref() {
            let networks = match wanted.find(&mut self.addresses) {
                Ok(networks) => networks,
                Err(reason) => {
                    // The others hear the same: a look costs little.
                    let refusals = Refusals::everywhere(reason, self.candidates.len());
                    plan.push(explain(task, &refusals, self.now).into_iter().collect());
                    continue;
                }
            };
            let candidates = &mut self.candidates;
            let picked = spread.pick(&mut |index| {
                let candidate = &mut candidates[index];
                if let Err(reason) = needs.check_room(candidate, of_service[index]) {
                    refusals.count(reason);
                    return Try::Full;
                }
                needs.occupy(candidate);
                of_service[index] += 1;
                Try::Placed(Rank {
                    failing: false,
                    of_service: of_service[index],
                    tasks: candidate.tasks,
                    tie: tie(seed, index),
                })
            });
            let Some(index) = picked else {
                plan.push(explain(task, &refusals, self.now).into_iter().collect());
                break;
            };
            networks.iter().for_each(|one| self.addresses.take(one));
            plan.push(vec![assign(task, self.candidates[index].node.id, networks, self.now)]);
        }
        // Every node is full: the rest hear the same reasons.
        for task in tasks {
            plan.push(explain(task, &refusals, self.now).into_iter().collect());
        }
    }

    fn offers(
        &self,
        needs: &Needs<'_>,
        of_service: &[u64],
        revision: &Revision,
        refusals: &mut Refusals,
    ) -> Vec<Offer> {
        let failing = self.failing(revision.key);
        let preferred: Vec<Key> = revision
            .template
            .placement
            .iter()
            .flat_map(|placement| &placement.spread)
            .filter_map(|text| parse_spread(text).ok())
            .collect();
        let mut offers = Vec::with_capacity(self.candidates.len());
        for (index, candidate) in self.candidates.iter().enumerate() {
            if let Err(reason) = needs.check_node(candidate.node) {
                refusals.count(reason);
                continue;
            }
            offers.push(Offer {
                candidate: index,
                rank: Rank {
                    failing: failing[index],
                    of_service: of_service[index],
                    tasks: candidate.tasks,
                    tie: tie(self.seed, index),
                },
                path: preferred.iter().map(|key| value_of(candidate.node, key)).collect(),
            });
        }
        offers
    }
}

fn taken_ports(state: &State, node: NodeId) -> BTreeSet<(Protocol, u32)> {
    state.ports_on_node(node).map(|(claim, _)| (claim.protocol, claim.port)).collect()
}

fn tie(seed: u64, index: usize) -> u64 {
    mix(seed ^ mix(index as u64))
}

/// Networks that each task of a revision needs an address of.
struct Wanted(Vec<(NetworkId, Vec<IpAddr>)>);

impl Wanted {
    /// Those that it attaches to, with its fixed addresses there, then the routing mesh's where the service publishes.
    fn of(state: &State, revision: &Revision) -> Self {
        let attachments = revision.template.networks.iter().filter_map(|one| {
            let fixed = one.addresses.iter().filter_map(|address| address.parse().ok()).collect();
            Some((NetworkId::from_wire(&one.network_id).ok()?, fixed))
        });
        let publishes =
            state.service(revision.key.service).is_some_and(|service| service.ingress_ports().next().is_some());
        let mesh = state.ingress_network().filter(|_| publishes).map(|network| (network.id, Vec::new()));
        Self(attachments.chain(mesh).collect())
    }

    fn find(&self, addresses: &mut Addresses<'_>) -> Result<Vec<NetworkAddresses>, NoAddress> {
        self.0.iter().map(|(network, fixed)| addresses.find(*network, fixed)).collect()
    }
}

fn assign(task: &Arc<Task>, node: NodeId, networks: Vec<NetworkAddresses>, now: UnixMs) -> Change {
    let status = TaskStatus { state: TaskState::Assigned.into(), since_ms: now.0, ..TaskStatus::default() };
    let (node, state, status) = (Some(node), TaskState::Assigned, Arc::new(status));
    let assigned = Task { node, state, status, networks, ..Task::clone(task) };
    Change::update(task.meta.version, Op::PutTask(assigned))
}

/// The change that tells a task why it waits; `None` when it has been told so.
fn explain(task: &Arc<Task>, refusals: &Refusals, now: UnixMs) -> Option<Change> {
    let status = TaskStatus {
        state: TaskState::Pending.into(),
        since_ms: task.status.since_ms,
        message: "waiting for a suitable node".to_owned(),
        error: refusals.to_string(),
        refusals: refusals.to_wire(),
        ..TaskStatus::default()
    };
    if *task.status == status {
        return None;
    }
    let status =
        TaskStatus { since_ms: if task.status.since_ms == 0 { now.0 } else { task.status.since_ms }, ..status };
    let told = Task { status: Arc::new(status), ..Task::clone(task) };
    Some(Change::update(task.meta.version, Op::PutTask(told)))
}
