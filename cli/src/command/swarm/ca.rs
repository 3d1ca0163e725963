//! `skep swarm ca`: shows the root certificate, or has it changed and follows that to its end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use skep_proto::v1::{GetClusterRequest, GetClusterResponse, RootRotationStatus, RotateRootRequest};
use zeroize::Zeroizing;

use super::given;
use crate::client::{Client, write};
use crate::command::client;
use crate::command::context::Context;
use crate::failure::Failure;
use crate::output;
use crate::parse::duration;
use crate::view;

/// Between two looks: the swarm's own object can be asked for, not watched.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Largest file taken.
const FILE_BYTES: usize = 64 << 10;
/// Nodes that are named one by one.
const NAMED: usize = 10;

#[derive(Args, Clone, Debug)]
pub(crate) struct CaArgs {
    /// Change the root certificate: every node gets a new certificate, then the old root is not trusted any more, and join
    /// tokens change. A change that is under way is replaced.
    #[arg(long)]
    rotate: bool,
    /// PEM file with the new root certificate (needs --ca-key); its organisation (O) must be the swarm's id [default: one is
    /// made].
    #[arg(long, value_name = "PEM-FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// PEM file with the new root's key: ECDSA P-256, PKCS#8.
    #[arg(long, value_name = "PEM-FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// Life of node certificates from now on, at least 1h.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    cert_expiry: Option<Duration>,
    /// Do not wait until every node has its new certificate.
    #[arg(short, long)]
    detach: bool,
    /// Do not show the progress.
    #[arg(short, long)]
    quiet: bool,
}

pub(super) async fn run(context: &Context, args: &CaArgs) -> Result<(), Failure> {
    if !args.rotate {
        return show(context, args).await;
    }
    let read = |path: &Option<PathBuf>| path.as_deref().map(read_file).transpose();
    let (cert, key) = (read(&args.ca_cert)?, read(&args.ca_key)?);
    let expiry = args.cert_expiry.map_or(Ok(0), |span| given("--cert-expiry", span))?;
    let client = context.connect().await?;
    let answer = write(|options| {
        let text =
            |file: &Option<Zeroizing<String>>| file.as_ref().map(|text| text.as_str().to_owned()).unwrap_or_default();
        let request = RotateRootRequest {
            root_cert_pem: text(&cert),
            root_key_pem: text(&key),
            node_cert_expiry_ms: expiry,
            write: Some(options),
        };
        let mut clusters = client.clusters();
        async move { clusters.rotate_root(request).await }
    })
    .await?;
    if !args.quiet
        && let Some(warning) = people(&client).await
    {
        output::note(warning);
    }
    if args.detach {
        return Ok(());
    }
    follow(&client, &answer.digest, args.quiet).await
}

/// What is said of people's certificates, which nobody renews but an admin. `None`: there are none.
async fn people(client: &Client) -> Option<String> {
    // The change has begun whatever is known of them.
    let people = client::all(client).await.ok()?;
    let names: Vec<&str> = people.iter().take(NAMED).map(|person| person.name.as_str()).collect();
    let more = people.len().saturating_sub(names.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| {
        format!(
            "clients are refused once the old root is not trusted any more, until each has a file of `skep client renew NAME`: \
             {}{more}",
            names.join(", ")
        )
    })
}

/// The root in force.
async fn show(context: &Context, args: &CaArgs) -> Result<(), Failure> {
    let needs_rotate = [
        ("--ca-cert", args.ca_cert.is_some()),
        ("--ca-key", args.ca_key.is_some()),
        ("--cert-expiry", args.cert_expiry.is_some()),
    ];
    if let Some((flag, _)) = needs_rotate.iter().find(|(_, given)| *given) {
        return Err(Failure::Usage(format!("`{flag}` requires the `--rotate` flag to update the CA")));
    }
    let client = context.connect().await?;
    let answer = get(&client).await?;
    if let Some(status) = answer.root_rotation.as_ref().filter(|_| !args.quiet) {
        output::note("the root certificate is being changed; this is the one of before");
        lines(status).iter().for_each(output::note);
    }
    output::data(root_pem(&answer))
}

async fn get(client: &Client) -> Result<GetClusterResponse, Failure> {
    let get = async |read| client.clusters().get(GetClusterRequest { read }).await;
    Ok(client.read(get).await?.into_inner())
}

fn root_pem(answer: &GetClusterResponse) -> Vec<u8> {
    answer.cluster.as_ref().map(|cluster| cluster.root_cert_pem.clone()).unwrap_or_default()
}

/// Until the root is in force, or another change took this one's place. Ctrl-C leaves the change to the managers.
async fn follow(client: &Client, digest: &[u8], quiet: bool) -> Result<(), Failure> {
    let mut shown: Vec<String> = Vec::new();
    if !quiet {
        output::note(format!("desired root digest: sha256:{}", view::hex(digest)));
    }
    loop {
        let answer = get(client).await?;
        let Some(status) = &answer.root_rotation else {
            // The certificate itself says whether it is ours: its digest is over it.
            return output::data(root_pem(&answer));
        };
        if status.digest != digest {
            return Err(Failure::Failed("another change of the root certificate has replaced this one".to_owned()));
        }
        let now = lines(status);
        if !quiet && now != shown {
            now.iter().filter(|line| !shown.contains(line)).for_each(output::note);
            shown = now;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How far it is, and for whom it waits that does not come by itself.
fn lines(status: &RootRotationStatus) -> Vec<String> {
    let mut lines = vec![format!("rotated TLS certificates: {}/{} nodes", status.done, status.total)];
    // Nodes that are renewing right now are no news.
    let away: Vec<_> = status.waiting.iter().filter(|wait| !wait.reason.starts_with("is renewing")).collect();
    let named = away.iter().take(NAMED);
    lines.extend(named.map(|wait| format!("node {} ({}) {}", view::id(&wait.node_id), wait.hostname, wait.reason)));
    if away.len() > NAMED {
        lines.push(format!("and {} more nodes", away.len() - NAMED));
    }
    lines
}

/// A file with a key is overwritten in memory after use.
fn read_file(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let failed = |why: String| Failure::Usage(format!("cannot read {}: {why}", path.display()));
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?);
    if text.is_empty() || text.len() > FILE_BYTES {
        return Err(failed("it is empty, or no PEM file".to_owned()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use skep_proto::v1::RootRotationWait;

    use super::*;

    #[test]
    fn only_nodes_that_do_not_come_by_themselves_are_named() {
        let wait = |hostname: &str, reason: &str| RootRotationWait {
            node_id: vec![0; 16],
            hostname: hostname.to_owned(),
            reason: reason.to_owned(),
        };
        let mut waiting = vec![wait("a", "is renewing its certificate")];
        waiting.extend((0..12).map(|number| wait(&format!("b{number}"), "is down, and …")));
        let status = RootRotationStatus { done: 3, total: 16, waiting, ..RootRotationStatus::default() };
        let lines = lines(&status);
        assert_eq!(lines[0], "rotated TLS certificates: 3/16 nodes");
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (12, Some("and 2 more nodes")));
        assert!(lines[1].ends_with("(b0) is down, and …"), "{lines:?}");
    }
}
