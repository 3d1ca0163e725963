//! `skep info`.

use std::fmt::Write as _;

use clap::Args;
use skep_proto::v1::{GetClusterRequest, InfoRequest, ReadOptions};

use super::context::Context;
use super::inspect::InspectFlags;
use crate::failure::Failure;
use crate::output::template::Template;
use crate::output::{self, human, json};
use crate::view::info::InfoView;

#[derive(Args, Clone, Debug)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    flags: InspectFlags,
}

impl InfoArgs {
    /// Asks the daemon and, on a manager, the swarm; a swarm without a leader is a warning here.
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
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
        output::data(match self.flags.format.as_deref() {
            None | Some("") => text(&view),
            Some("json") => json::line(&view) + "\n",
            Some(template) => Template::parse(template)
                .and_then(|template| template.render(&json::value(&view)))
                .map(|text| text + "\n")
                .map_err(|error| Failure::Usage(format!("--format: {error}")))?,
        })
    }
}

fn text(view: &InfoView) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name}: {value}");
    };
    line("Name", view.name.clone());
    line("Server Version", view.server_version.clone());
    line("Containers running", view.containers_running.to_string());
    line("Images", view.images.to_string());
    let swarm = &view.swarm;
    line("Swarm", swarm.local_node_state.to_owned());
    if !swarm.node_id.is_empty() {
        line(" NodeID", swarm.node_id.clone());
        line(" Role", swarm.role.to_owned());
        line(" Is Manager", swarm.control_available.to_string());
        if let Some(cluster) = &swarm.cluster {
            line(" ClusterID", cluster.id.clone());
        }
        if let (Some(managers), Some(nodes)) = (swarm.managers, swarm.nodes) {
            line(" Managers", managers.to_string());
            line(" Nodes", nodes.to_string());
        }
        line(" Node Address", swarm.node_addr.clone());
        line(" Certificate Expires", swarm.certificate_expires_at.clone());
        if !swarm.remote_managers.is_empty() {
            line(" Manager Addresses", String::new());
            for manager in &swarm.remote_managers {
                line("  ", manager.addr.clone());
            }
        }
    }
    if !swarm.error.is_empty() {
        line(" Error", swarm.error.clone());
    }
    line("Runtime", view.default_runtime.clone());
    line("Cgroup Version", view.cgroup_version.clone());
    line("Kernel Version", view.kernel_version.clone());
    line("OSType", view.operating_system.clone());
    line("Architecture", view.architecture.clone());
    line("CPUs", view.ncpu.to_string());
    line("Total Memory", human::binary_size(view.mem_total));
    line("Data Dir", view.data_dir.clone());
    if !view.labels.is_empty() {
        line("Labels", String::new());
        for (key, value) in &view.labels {
            let _ = writeln!(text, " {key}={value}");
        }
    }
    text.replace(":  \n", ":\n").replace(": \n", ":\n").replace("  : ", "  ")
}
