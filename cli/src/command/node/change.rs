//! `skep node update|promote|demote|rm`.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use skep_proto::v1::{self, NodeRole, NodeSpec, RemoveNodeRequest, UpdateNodeRequest, UpdateNodeResponse};

use super::get;
use crate::client::{Client, write};
use crate::command::conflict::{self, Attempt};
use crate::command::context::Context;
use crate::command::outcome::{Outcome, remove_each};
use crate::failure::Failure;
use crate::output;
use crate::parse::pair;
use crate::view::state;

/// Whether a node takes tasks.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AvailabilityName {
    /// It takes tasks.
    Active,
    /// It keeps its tasks and takes no new ones.
    Pause,
    /// Its tasks move elsewhere.
    Drain,
}

impl From<AvailabilityName> for v1::Availability {
    fn from(name: AvailabilityName) -> Self {
        match name {
            AvailabilityName::Active => Self::Active,
            AvailabilityName::Pause => Self::Pause,
            AvailabilityName::Drain => Self::Drain,
        }
    }
}

/// A node's role.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoleName {
    Worker,
    Manager,
}

impl From<RoleName> for NodeRole {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Worker => Self::Worker,
            RoleName::Manager => Self::Manager,
        }
    }
}

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct UpdateArgs {
    /// Whether it takes tasks.
    #[arg(long, value_enum)]
    availability: Option<AvailabilityName>,
    /// Its role: a manager takes part in Raft, too.
    #[arg(long, value_enum)]
    role: Option<RoleName>,
    /// Add or replace a label for constraints, as NAME=VALUE.
    #[arg(long, value_name = "LABEL")]
    label_add: Vec<String>,
    /// Remove a label.
    #[arg(long, value_name = "NAME")]
    label_rm: Vec<String>,
    /// Id, unique prefix of one, hostname, or `self`.
    #[arg(value_name = "NODE")]
    node: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RoleArgs {
    /// Id, unique prefix of one, hostname, or `self`.
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// Remove a node although it is up, or is a manager.
    #[arg(short, long)]
    force: bool,
    /// Id, unique prefix of one, or hostname.
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

/// Changes one node's spec and prints what was named, as Docker does.
pub(super) async fn update(context: &Context, args: &UpdateArgs) -> Result<(), Failure> {
    let labels = pair::labels(&args.label_add).map_err(|error| error.of("--label-add"))?;
    let client = context.connect().await?;
    edit(&client, &args.node, |spec| edited(spec, args, &labels)).await?;
    output::data(format!("{}\n", args.node))
}

/// The spec with what the flags ask for.
fn edited(mut spec: NodeSpec, args: &UpdateArgs, labels: &BTreeMap<String, String>) -> Result<NodeSpec, Failure> {
    for name in &args.label_rm {
        if spec.labels.remove(name).is_none() {
            return Err(Failure::Failed(format!("node {} has no label {name}", args.node)));
        }
    }
    spec.labels.extend(labels.iter().map(|(name, value)| (name.clone(), value.clone())));
    if let Some(availability) = args.availability {
        spec.set_availability(availability.into());
    }
    if let Some(role) = args.role {
        spec.set_role(role.into());
    }
    skep_proto::validate::node_spec(&spec)?;
    Ok(spec)
}

/// Reads the node, edits its spec, and writes it unless nothing changed. `None`: nothing did.
async fn edit(
    client: &Client,
    reference: &str,
    change: impl Fn(NodeSpec) -> Result<NodeSpec, Failure>,
) -> Result<Option<UpdateNodeResponse>, Failure> {
    conflict::until_done(async || {
        let node = get(client, reference).await?;
        let before = node.spec.unwrap_or_default();
        let spec = change(before.clone())?;
        if spec == before {
            return Ok(Attempt::Done(None));
        }
        let request = UpdateNodeRequest {
            reference: reference.to_owned(),
            spec: Some(spec),
            expect_version: node.meta.map_or(0, |meta| meta.version),
            write: None,
        };
        let result = write(|options| {
            let mut nodes = client.nodes();
            let request = UpdateNodeRequest { write: Some(options), ..request.clone() };
            async move { nodes.update(request).await.map(|answer| answer.map(Some)) }
        })
        .await;
        Attempt::of(result).map_err(|status| Failure::from_lookup("node", reference, status))
    })
    .await
}

/// Gives each node the role; says what each of them was and is.
pub(super) async fn set_role(context: &Context, args: &RoleArgs, role: NodeRole) -> Result<(), Failure> {
    let client = context.connect().await?;
    let mut outcome = Outcome::default();
    for reference in &args.nodes {
        let result = edit(&client, reference, |mut spec| {
            spec.set_role(role);
            Ok(spec)
        });
        let Some(answer) = outcome.take(result.await)? else {
            continue;
        };
        output::data(match (answer, role) {
            (None, role) => format!("Node {reference} is already a {}.\n", state::role(role)),
            (Some(_), NodeRole::Manager) => format!("Node {reference} promoted to a manager in the swarm.\n"),
            (Some(_), NodeRole::Worker) => format!("Manager {reference} demoted in the swarm.\n"),
        })?;
    }
    outcome.finish()
}

/// Removes each and prints what was named.
pub(super) async fn remove(context: &Context, args: &RmArgs) -> Result<(), Failure> {
    let client = context.connect().await?;
    remove_each(&args.nodes, async |reference| {
        let removed = write(|options| {
            let mut nodes = client.nodes();
            let request =
                RemoveNodeRequest { reference: reference.to_owned(), force: args.force, write: Some(options) };
            async move { nodes.remove(request).await }
        });
        removed.await.map(drop).map_err(|status| Failure::from_lookup("node", reference, status))
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn edits() {
        let before = NodeSpec { labels: [("zone".to_owned(), "a".to_owned())].into(), ..NodeSpec::default() };
        let none = BTreeMap::new();
        assert_eq!(edited(before.clone(), &UpdateArgs::default(), &none).unwrap(), before);
        let args = UpdateArgs {
            availability: Some(AvailabilityName::Drain),
            role: Some(RoleName::Manager),
            label_rm: vec!["zone".to_owned()],
            ..UpdateArgs::default()
        };
        let labels = [("disk".to_owned(), "ssd".to_owned())].into();
        let spec = edited(before.clone(), &args, &labels).unwrap();
        assert_eq!((spec.availability(), spec.role()), (v1::Availability::Drain, NodeRole::Manager));
        assert_eq!(spec.labels, labels);
        let args = UpdateArgs { label_rm: vec!["gone".to_owned()], ..UpdateArgs::default() };
        assert!(matches!(edited(before, &args, &none), Err(Failure::Failed(_))));
    }
}
