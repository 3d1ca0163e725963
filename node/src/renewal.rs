//! Keeps this node's certificate alive: renews it at a random point between half and four fifths of its life, at once
//! when a manager asks or when it is already late, and tries again with growing pauses.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use skep_identity::{Credentials, LiveCredentials, NodeKey, RootBundle};
use skep_proto::v1::RenewRequest;
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use skep_worker::Connector;
use tracing::{info, warn};

use crate::contacts::Contacts;
use crate::links::Links;
use crate::sealing::Sealing;

/// Between two tries: from here, doubling, to there. A change of role waits for it, so it begins short.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// The timer is monotonic, a certificate's life is wall time: look again at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_secs(15);

/// Runs as long as this host is a member.
pub(crate) async fn run(live: LiveCredentials, links: Arc<Links>, contacts: Contacts, sealing: Sealing) {
    let mut random: f64 = rand::random();
    let mut retry = RETRY_MIN;
    loop {
        let due = live.current().renewal_at(random);
        let wait = due.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        if !wait.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(wait.min(LOOK_AGAIN)) => continue,
                () = contacts.renew.notified() => {}
            }
        }
        let failed = match renew(&live, &links, &contacts, &sealing).await {
            Ok(end) => {
                info!(?end, role = %live.current().role(), "this node's certificate was renewed");
                random = rand::random();
                // A new one that is due already would lead to one renewal after the other.
                let due_again = live.current().renewal_at(random) <= SystemTime::now();
                due_again.then(|| {
                    "the new one is due for renewal already: compare this host's clock with the managers'".to_owned()
                })
            }
            Err(error) => {
                // What was asked for is still to be done.
                contacts.renew.notify_one();
                Some(crate::backoff::words(&error))
            }
        };
        match failed {
            None => retry = RETRY_MIN,
            Some(error) => {
                warn!(%error, "this node's certificate could not be renewed");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Asks the managers in turn.
async fn renew(
    live: &LiveCredentials,
    links: &Links,
    contacts: &Contacts,
    sealing: &Sealing,
) -> anyhow::Result<SystemTime> {
    let mut last = None;
    for addr in contacts.to_ask() {
        match renew_at(live, links, &addr, sealing).await {
            Ok(end) => return Ok(end),
            Err(error) => last = Some(error.context(format!("manager {addr}"))),
        }
    }
    match last {
        Some(error) => Err(error),
        None => bail!("no manager is known"),
    }
}

async fn renew_at(live: &LiveCredentials, links: &Links, addr: &str, sealing: &Sealing) -> anyhow::Result<SystemTime> {
    let key = NodeKey::generate()?;
    let request = RenewRequest { csr_pem: key.signing_request_pem()? };
    let asked = async {
        let channel = links.manager(addr).await.map_err(|error| anyhow::anyhow!("{error}"))?;
        let answer = CertificateAuthorityClient::new(channel).renew(request).await;
        answer.map_err(|status| anyhow::anyhow!("{}", status.message()))
    };
    let issued = tokio::time::timeout(DEADLINE, asked).await.context("no answer in time")??.into_inner();
    let renewed = Credentials::new(key, &issued.cert_chain_pem, RootBundle::from_pem(&issued.root_cert_pem)?)?;
    if renewed.node_id() != live.current().node_id() {
        bail!("the certificate is for another node");
    }
    let sealing = sealing.clone();
    let saved = tokio::task::spawn_blocking(move || sealing.save(&renewed).map(|()| renewed)).await?;
    let renewed = saved.context("cannot store the new certificate")?;
    let end = renewed.not_after();
    live.replace(renewed);
    Ok(end)
}
