//! `skep info`.

use clap::Args;
use skep_proto::v1::{GetClusterRequest, InfoRequest, ReadOptions};

use super::context::Context;
use super::inspect::InspectFlags;
use crate::failure::Failure;
use crate::output::{self, human};
use crate::view::info::{InfoView, SwarmView};

#[derive(Args, Clone, Debug)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    flags: InspectFlags,
}

impl InfoArgs {
    /// Asks the daemon and, on a manager, the swarm; a swarm without a leader is a warning here.
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        self.flags.check()?;
        context.only_here("info")?;
        let client = context.connect().await?;
        let info = client.daemon().info(InfoRequest {}).await?.into_inner();
        let cluster = if info.control_available {
            let read = Some(ReadOptions { min_version: 0, allow_stale: true });
            match client.clusters().get(GetClusterRequest { read }).await {
                Ok(answer) => Some(answer.into_inner()),
                Err(status) => {
                    output::warnings(&[Failure::from(status)]);
                    None
                }
            }
        } else {
            None
        };
        let view = InfoView::new(info, cluster);
        self.flags.print_one(&view, text)
    }
}

fn text(view: &InfoView) -> String {
    let mut lines = vec![
        ("Name", view.name.clone()),
        ("Server Version", view.server_version.clone()),
        ("Containers running", view.containers_running.to_string()),
        ("Images", view.images.to_string()),
        ("Swarm", view.swarm.local_node_state.to_owned()),
    ];
    lines.extend(swarm_lines(&view.swarm));
    lines.extend([
        ("Runtime", view.default_runtime.clone()),
        ("Security Options", view.security_options.join(", ")),
        ("Cgroup Version", view.cgroup_version.clone()),
        ("Kernel Version", view.kernel_version.clone()),
        ("OSType", view.operating_system.clone()),
        ("Architecture", view.architecture.clone()),
        ("CPUs", view.ncpu.to_string()),
        ("Total Memory", human::binary_size(view.mem_total)),
        ("Data Dir", view.data_dir.clone()),
    ]);
    let labels: Vec<String> = view.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if !labels.is_empty() {
        lines.push(("Labels", labels.join(" ")));
    }
    lines.into_iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
}

/// This host's place in a swarm, indented below "Swarm".
fn swarm_lines(swarm: &SwarmView) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if !swarm.error.is_empty() {
        lines.push((" Error", swarm.error.clone()));
    }
    if swarm.node_id.is_empty() {
        return lines;
    }
    lines.push((" NodeID", swarm.node_id.clone()));
    lines.push((" Role", swarm.role.to_owned()));
    if !swarm.is_locked() {
        lines.push((" Is Manager", swarm.control_available.to_string()));
    }
    if let Some(cluster) = &swarm.cluster {
        lines.push((" ClusterID", cluster.id.clone()));
        if let Some(rotation) = &cluster.root_rotation {
            lines.push((" Root Rotation", format!("{}/{} nodes", rotation.nodes_done, rotation.nodes)));
        }
    }
    if let (Some(managers), Some(nodes)) = (swarm.managers, swarm.nodes) {
        lines.push((" Managers", managers.to_string()));
        lines.push((" Nodes", nodes.to_string()));
    }
    lines.push((" Node Address", swarm.node_addr.clone()));
    if swarm.is_locked() {
        // The rest it cannot read.
        return lines;
    }
    lines.push((" Certificate Expires", swarm.certificate_expires_at.clone()));
    let managers: Vec<&str> = swarm.remote_managers.iter().map(|manager| manager.addr.as_str()).collect();
    lines.push((" Manager Addresses", managers.join(" ")));
    lines
}
