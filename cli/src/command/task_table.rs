//! Tables of tasks: `service ps`, `node ps`, `task ls` print the same, with the history of a slot indented below it.

use clap::Args;
use serde_json::{Map, Value};
use skep_proto::v1::{HealthState, ListTasksRequest, Refusal, TaskStatus, TaskSummary};

use super::listing::{self, ListFlags, TruncFlag};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::format::{Format, Listing};
use crate::output::{human, natural, time};
use crate::parse::filter::Filters;
use crate::view::{self, ports, state, task};

/// Docker's table of tasks.
const TASKS: Listing = Listing {
    template: "{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t{{.Ports}}",
    fields: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
        ("State", "STATE"),
        ("Service", "SERVICE"),
        ("Slot", "SLOT"),
        ("Health", "HEALTH"),
        ("NodeID", "NODE ID"),
        ("ServiceID", "SERVICE ID"),
    ],
    quiet: "ID",
};

/// Longest error in a shortened table, as in Docker.
const MAX_ERROR: usize = 30;

/// Flags of task tables.
#[derive(Args, Clone, Debug)]
pub(crate) struct TaskFlags {
    #[command(flatten)]
    list: ListFlags,
    #[command(flatten)]
    trunc: TruncFlag,
    /// Show ids in place of the names of services and nodes.
    #[arg(long)]
    no_resolve: bool,
}

/// Flags that were checked before the daemon is asked.
#[derive(Debug)]
pub(crate) struct Prepared {
    format: Format,
    filters: Filters,
    no_resolve: bool,
    no_trunc: bool,
}

impl TaskFlags {
    /// Checks the flags; `keys` are the filters that this table has.
    pub(crate) fn prepare(&self, keys: &[&str]) -> Result<Prepared, Failure> {
        let keys: Vec<&str> = keys.iter().copied().filter(|key| *key != "label").collect();
        let filters = Filters::parse(&self.list.filter, &keys, &["label"])?;
        let mut desired = state::WANTED.to_vec();
        // Docker's word for "wanted to run" in old clients.
        desired.push("accepted");
        filters.only("desired-state", &desired)?;
        Ok(Prepared {
            format: self.list.format()?,
            filters,
            no_resolve: self.no_resolve,
            no_trunc: self.trunc.no_trunc,
        })
    }
}

impl Prepared {
    /// Asks for tasks and prints those that pass the filters.
    pub(crate) async fn print(&self, client: &Client, request: ListTasksRequest) -> Result<(), Failure> {
        let list = async |read| {
            let request = ListTasksRequest { read, only_wanted: self.is_only_wanted(), ..request.clone() };
            let pages = client.tasks().list(request).await?.into_inner();
            listing::collect(pages, |page| page.tasks).await
        };
        let tasks = client.read(list).await?;
        let rows = self.rows(tasks, time::now_ms());
        listing::print(&TASKS, &rows, &self.format)
    }

    /// Whether no task that is to stop passes the filters, so that the managers need not send the history.
    fn is_only_wanted(&self) -> bool {
        let desired = self.filters.values("desired-state");
        !desired.is_empty()
            && desired.iter().all(|state| matches!(state.as_str(), "ready" | "running" | "draining" | "accepted"))
    }

    fn rows(&self, tasks: Vec<TaskSummary>, now_ms: i64) -> Vec<Map<String, Value>> {
        let mut tasks: Vec<(String, TaskSummary)> = tasks
            .into_iter()
            .map(|summary| (self.name(&summary), summary))
            .filter(|(name, summary)| self.passes(name, summary))
            .collect();
        tasks.sort_by(|(a_name, a), (b_name, b)| {
            natural::compare(a_name, b_name)
                .then_with(|| created_ms(b).cmp(&created_ms(a)))
                .then_with(|| live(b).cmp(&live(a)))
        });
        let mut previous = String::new();
        tasks
            .into_iter()
            .map(|(name, summary)| {
                let shown =
                    if self.format.is_table() && name == previous { format!(" \\_ {name}") } else { name.clone() };
                previous = name;
                self.row(shown, &summary, now_ms)
            })
            .collect()
    }

    fn name(&self, summary: &TaskSummary) -> String {
        let task = summary.task.clone().unwrap_or_default();
        let service_id = view::id(&task.service_id);
        let service = if self.no_resolve { &service_id } else { &summary.service_name };
        task::name(service, task.slot, &view::id(&task.node_id))
    }

    fn passes(&self, name: &str, summary: &TaskSummary) -> bool {
        let Some(task) = &summary.task else {
            return false;
        };
        let wanted = state::wanted(task.wanted());
        self.filters.passes("id", |prefix| view::id(&task.id).starts_with(prefix))
            && self.filters.passes("name", |prefix| name.starts_with(prefix))
            && self.filters.passes("service", |service| {
                summary.service_name == service || view::id(&task.service_id).starts_with(service)
            })
            && self.filters.passes("node", |node| {
                summary.node_hostname == node || (!task.node_id.is_empty() && view::id(&task.node_id).starts_with(node))
            })
            && self.filters.passes("desired-state", |state| {
                state == wanted || (state == "accepted" && task.wanted().wants_to_run())
            })
    }

    fn row(&self, name: String, summary: &TaskSummary, now_ms: i64) -> Map<String, Value> {
        let task = summary.task.clone().unwrap_or_default();
        let status = task.status.clone().unwrap_or_default();
        let shorten = !self.no_trunc && self.format.is_table();
        let node_id = view::id(&task.node_id);
        let current = state::task(status.state());
        let health = if status.state().is_terminal() { HealthState::None } else { health(&status) };
        let since = if status.since_ms == 0 { created_ms(summary) } else { status.since_ms };
        let id = if shorten { view::short_id(&task.id) } else { view::id(&task.id) };
        let error = reason(&status);
        let error = match (error.is_empty(), shorten) {
            (true, _) => error,
            (false, true) => format!("\"{}\"", human::ellipsis(&error, MAX_ERROR)),
            (false, false) => format!("\"{error}\""),
        };
        listing::row([
            ("ID", id.into()),
            ("Name", name.into()),
            ("Image", if self.no_trunc { summary.image.clone() } else { without_digest(&summary.image) }.into()),
            ("Node", if self.no_resolve { node_id.clone() } else { summary.node_hostname.clone() }.into()),
            ("DesiredState", state::capital(state::wanted(task.wanted())).into()),
            (
                "CurrentState",
                format!("{} {}{}", state::capital(current), human::ago(now_ms, since).to_lowercase(), in_words(health))
                    .into(),
            ),
            ("Health", state::health(health).into()),
            ("Error", error.into()),
            ("Ports", ports::each(&task.ports).into()),
            ("State", current.into()),
            ("Service", summary.service_name.clone().into()),
            ("Slot", task.slot.into()),
            ("NodeID", node_id.into()),
            ("ServiceID", view::id(&task.service_id).into()),
        ])
    }
}

fn created_ms(summary: &TaskSummary) -> i64 {
    let meta = summary.task.as_ref().and_then(|task| task.meta);
    meta.map_or(0, |meta| meta.created_at_ms)
}

fn live(summary: &TaskSummary) -> bool {
    summary.task.as_ref().is_some_and(|task| task.wanted().wants_to_run())
}

/// The worst of what the containers' checks say.
fn health(status: &TaskStatus) -> HealthState {
    let worst = [HealthState::Unhealthy, HealthState::Starting, HealthState::Healthy];
    let says = |health: &HealthState| status.containers.iter().any(|container| container.health() == *health);
    worst.into_iter().find(says).unwrap_or(HealthState::None)
}

/// Behind a state, as `docker ps` has it.
fn in_words(health: HealthState) -> &'static str {
    match health {
        HealthState::None => "",
        HealthState::Starting => " (health: starting)",
        HealthState::Healthy => " (healthy)",
        HealthState::Unhealthy => " (unhealthy)",
    }
}

/// What a failing check said last: why a task that starts does not come to run. Empty: none fails.
pub(crate) fn failing_check(status: &TaskStatus) -> String {
    let Some(container) = status.containers.iter().find(|container| container.failing_streak > 0) else {
        return String::new();
    };
    let output = container.health_output.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    let times =
        if container.failing_streak == 1 { "once".to_owned() } else { format!("{} times", container.failing_streak) };
    let said = if output.is_empty() { String::new() } else { format!(": {output}") };
    format!("its health check failed {times}{said}")
}

/// Why a task does not run: its error, else what keeps the scheduler from placing it.
pub(crate) fn reason(status: &TaskStatus) -> String {
    if status.refusals.is_empty() || status.state().is_terminal() {
        return status.error.clone();
    }
    let reasons: Vec<String> = status.refusals.iter().map(refusal).collect();
    format!("no suitable node ({})", reasons.join("; "))
}

fn refusal(refusal: &Refusal) -> String {
    let nodes = if refusal.nodes == 1 { "node" } else { "nodes" };
    format!("{} on {} {nodes}", refusal.reason, refusal.nodes)
}

/// An image as the user knows it: without the digest, if a tag says enough.
pub(crate) fn without_digest(image: &str) -> String {
    match image.split_once('@') {
        Some((name, _)) if view::image::split_name(name).1.is_empty() => image.to_owned(),
        Some((name, _)) => name.to_owned(),
        None => image.to_owned(),
    }
}

#[cfg(test)]
#[path = "task_table_test.rs"]
mod task_table_test;
