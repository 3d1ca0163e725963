//! `skep version`.

use clap::Args;
use serde::Serialize;
use skep_proto::v1::{GetNodeRequest, InfoRequest};

use super::context::Context;
use super::inspect::InspectFlags;
use crate::failure::Failure;

#[derive(Args, Clone, Debug)]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    flags: InspectFlags,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct VersionView {
    client: Client,
    /// Null where no daemon answers.
    server: Option<Server>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Client {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Server {
    version: String,
    os: String,
    arch: String,
    kernel_version: String,
}

impl VersionArgs {
    /// Prints the client's version even where no daemon answers; the exit code then says so.
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        self.flags.check()?;
        let server = server(context).await;
        let (server, failure) = match server {
            Ok(server) => (Some(server), None),
            Err(failure) => (None, Some(failure)),
        };
        let view = VersionView {
            client: Client { version: env!("CARGO_PKG_VERSION"), os: std::env::consts::OS, arch: architecture() },
            server,
        };
        self.flags.print_one(&view, text)?;
        failure.map_or(Ok(()), Err)
    }
}

async fn server(context: &Context) -> Result<Server, Failure> {
    let client = context.connect().await?;
    let (version, description) = if client.is_remote() {
        // The manager that answers, by what it says of its own host.
        let call = async |read| client.nodes().get(GetNodeRequest { reference: "self".to_owned(), read }).await;
        let node = client.read(call).await?.into_inner().node.unwrap_or_default();
        let description = node.description.unwrap_or_default();
        (description.engine_version.clone(), description)
    } else {
        let info = client.daemon().info(InfoRequest {}).await?.into_inner();
        (info.version, info.description.unwrap_or_default())
    };
    let platform = description.platform.unwrap_or_default();
    Ok(Server { version, os: platform.os, arch: platform.architecture, kernel_version: description.kernel })
}

fn text(view: &VersionView) -> String {
    let client = &view.client;
    let mut text =
        format!("Client: skep\n Version:        {}\n OS/Arch:        {}/{}\n", client.version, client.os, client.arch);
    if let Some(server) = &view.server {
        text.push_str(&format!(
            "\nServer: skep\n Version:        {}\n OS/Arch:        {}/{}\n Kernel Version: {}\n",
            server.version, server.os, server.arch, server.kernel_version
        ));
    }
    text
}

/// This program's processor in OCI's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
