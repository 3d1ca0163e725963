//! Keeps this node's certificate alive: renews it at a random point between half and four fifths of its life, at once
//! when a manager asks or when it is already late, and tries again with growing pauses. Also takes over whom the managers say
//! is to be trusted. A certificate that ran out is renewed by this host's own manager if that is the only one; otherwise the
//! user has to let the node in again (`Membership::join`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use skep_identity::{Credentials, LiveCredentials, NodeKey, Role, RootBundle, Validity};
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::v1::{IssueResponse, RenewRequest};
use skep_worker::Connector;
use skep_worker::executor::{chain, status_words};
use tokio::sync::{Mutex, watch};
use tracing::{error, info, warn};

use crate::contacts::Contacts;
use crate::links::Links;
use crate::sealing::Sealing;
use crate::seat::OwnAuthority;

/// Between two tries: from here, doubling, to there. A change of role waits for it, so it begins short.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// The longest pause where the certificate has ended: this host's manager may become the only one.
const RETRY_ENDED: Duration = Duration::from_secs(60);
/// The timer is monotonic, a certificate's life is wall time: look again at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// Between two tries to take over the swarm's roots.
const TRUST_AGAIN: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(15);

/// Puts credentials on disk and in use, one change at a time. Clones share them.
#[derive(Clone)]
pub(crate) struct Keeper {
    live: LiveCredentials,
    sealing: Sealing,
    changing: Arc<Mutex<()>>,
    /// What a manager said last, PEM. Empty: nothing yet.
    trusted: watch::Receiver<String>,
}

impl Keeper {
    /// `trusted` follows what managers say of the roots.
    pub(crate) fn new(live: LiveCredentials, sealing: Sealing, trusted: watch::Receiver<String>) -> Self {
        Self { live, sealing, changing: Arc::default(), trusted }
    }

    /// New credentials of this node. Returns their end.
    pub(crate) async fn install(&self, fresh: Credentials) -> anyhow::Result<SystemTime> {
        ensure!(fresh.node_id() == self.live.current().node_id(), "the certificate is for another node");
        let _changing = self.changing.lock().await;
        self.put(fresh).await
    }

    /// A renewed certificate of this node. Returns its end. Which roots are trusted, sessions say, in order: the answer that
    /// this came with may be older or newer than what they said last, so it changes nothing there.
    async fn renewed(&self, fresh: Credentials) -> anyhow::Result<SystemTime> {
        ensure!(fresh.node_id() == self.live.current().node_id(), "the certificate is for another node");
        let _changing = self.changing.lock().await;
        let trusted = self.live.current().roots().clone();
        self.put(fresh.with_roots(trusted).context("the new certificate is of no root that this node trusts")?).await
    }

    /// Trusts what a manager said last, and nothing else.
    async fn trust(&self) -> anyhow::Result<()> {
        let pem = self.trusted.borrow().clone();
        if pem.is_empty() {
            return Ok(());
        }
        let roots = RootBundle::from_pem(&pem)?;
        let _changing = self.changing.lock().await;
        let current = self.live.current();
        if current.roots().certs() == roots.certs() {
            return Ok(());
        }
        let count = roots.certs().len();
        let fresh = current.with_roots(roots).context("this node's own certificate is of none of the swarm's roots")?;
        self.put(fresh).await?;
        info!(roots = count, "the swarm's trusted roots have changed");
        Ok(())
    }

    async fn put(&self, fresh: Credentials) -> anyhow::Result<SystemTime> {
        let sealing = self.sealing.clone();
        let saved = tokio::task::spawn_blocking(move || sealing.save(&fresh).map(|()| fresh)).await?;
        let fresh = saved.context("cannot store the new certificate")?;
        let end = fresh.not_after();
        self.live.replace(fresh);
        Ok(end)
    }
}

/// Follows what managers say of the roots. Runs as long as this host is a member.
pub(crate) async fn trust(mut keeper: Keeper) {
    loop {
        keeper.trusted.borrow_and_update();
        let failed = keeper.trust().await.inspect_err(|error| {
            warn!(error = %crate::backoff::words(error), "the swarm's roots are not taken over: those of before stay");
        });
        // A disk that was full, mostly. What was taken over is not taken over again: a way back may have brought newer ones.
        let again = async {
            match failed {
                Ok(()) => std::future::pending().await,
                Err(_) => tokio::time::sleep(TRUST_AGAIN).await,
            }
        };
        tokio::select! {
            changed = keeper.trusted.changed() => if changed.is_err() {
                return;
            },
            () = again => {}
        }
    }
}

/// What renews this node's certificate.
pub(crate) struct Renewal {
    pub(crate) keeper: Keeper,
    pub(crate) links: Arc<Links>,
    pub(crate) contacts: Contacts,
    pub(crate) own: OwnAuthority,
}

impl Renewal {
    /// Runs as long as this host is a member.
    pub(crate) async fn run(self) {
        let live = self.keeper.live.clone();
        let mut random: f64 = rand::random();
        let mut retry = RETRY_MIN;
        loop {
            let due = live.current().renewal_at(random);
            let wait = due.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
            if !wait.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(wait.min(LOOK_AGAIN)) => continue,
                    () = self.contacts.renew.notified() => {}
                }
            }
            let failed = match self.renew().await {
                Ok(end) => {
                    info!(?end, role = %live.current().role(), "this node's certificate was renewed");
                    random = rand::random();
                    // A new one that is due already would lead to one renewal after the other.
                    let due_again = live.current().renewal_at(random) <= SystemTime::now();
                    due_again.then(|| {
                        "the new one is due for renewal already: compare this host's clock with the managers'"
                            .to_owned()
                    })
                }
                Err(error) => {
                    // What was asked for is still to be done.
                    self.contacts.renew.notify_one();
                    Some(crate::backoff::words(&error))
                }
            };
            let Some(failed) = failed else {
                retry = RETRY_MIN;
                continue;
            };
            let longest = match way_back(&live.current(), SystemTime::now()) {
                Some(way_back) => {
                    error!(error = %failed, "{way_back}");
                    RETRY_ENDED
                }
                None => {
                    warn!(error = %failed, "this node's certificate could not be renewed");
                    RETRY_MAX
                }
            };
            let mut changed = live.subscribe();
            changed.mark_unchanged();
            tokio::select! {
                () = tokio::time::sleep(retry) => retry = (retry * 2).min(longest),
                // Somebody let the node in again.
                _ = changed.changed() => retry = RETRY_MIN,
            }
        }
    }

    /// Asks the managers in turn; of an ended certificate, at last this host's own one.
    async fn renew(&self) -> anyhow::Result<SystemTime> {
        let mut last = None;
        for addr in self.contacts.to_ask() {
            match self.renew_at(&addr).await {
                Ok(end) => return Ok(end),
                Err(error) => last = Some(error.context(format!("manager {addr}"))),
            }
        }
        let current = self.keeper.live.current();
        let has_ended = current.validity(SystemTime::now()) == Validity::Expired;
        if has_ended && current.role() == Role::Manager {
            match self.renew_alone().await {
                Ok(end) => return Ok(end),
                Err(error) => last = last.map(|last| last.context(format!("this host's manager: {error:#}"))),
            }
        }
        match last {
            Some(error) => Err(error),
            None => bail!("no manager is known"),
        }
    }

    async fn renew_at(&self, addr: &str) -> anyhow::Result<SystemTime> {
        let key = NodeKey::generate()?;
        let request = RenewRequest { csr_pem: key.signing_request_pem()? };
        let asked = async {
            let channel = self.links.manager(addr).await.map_err(|error| anyhow::anyhow!(chain(&*error)))?;
            let answer = CertificateAuthorityClient::new(channel).renew(request).await;
            answer.map_err(|status| anyhow::anyhow!(status_words(&status)))
        };
        let issued = tokio::time::timeout(DEADLINE, asked).await.context("no answer in time")??.into_inner();
        self.take(key, &issued).await
    }

    /// No session tells of roots while the certificate is of no use, so this host's own manager does: its root may have been
    /// replaced after its end.
    async fn renew_alone(&self) -> anyhow::Result<SystemTime> {
        let key = NodeKey::generate()?;
        let issued = self.own.renew(key.signing_request_pem()?).await?;
        let roots = RootBundle::from_pem(&issued.root_cert_pem)?;
        self.keeper.install(Credentials::new(key, &issued.cert_chain_pem, roots)?).await
    }

    async fn take(&self, key: NodeKey, issued: &IssueResponse) -> anyhow::Result<SystemTime> {
        let roots = RootBundle::from_pem(&issued.root_cert_pem)?;
        self.keeper.renewed(Credentials::new(key, &issued.cert_chain_pem, roots)?).await
    }
}

/// What the user has to do for a node whose certificate ran out. `None`: nothing.
pub(crate) fn way_back(credentials: &Credentials, now: SystemTime) -> Option<String> {
    if credentials.validity(now) != Validity::Expired {
        return None;
    }
    Some(format!("this node's certificate has ended, so that no manager lets it in: {}", by_token(credentials)))
}

/// The same for one whose certificate managers do not believe, or who does not believe theirs. `trouble` is how that shows.
pub(crate) fn way_back_of_refused(credentials: &Credentials, trouble: &str) -> String {
    let way_back = by_token(credentials);
    format!("{trouble}. If the swarm's root was changed meanwhile: {way_back}")
}

fn by_token(credentials: &Credentials) -> String {
    format!(
        "run `skep swarm join-token {}` on a manager and the command that it prints on this host; the node comes back as the \
         one that it was, its tasks go on",
        credentials.role()
    )
}
