//! Everything that runs while this host is in a swarm: started in one order, stopped in reverse.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use skep_identity::{Credentials, DenyList, LiveCredentials, Role, RootBundle, Validity};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::info;

use super::{Board, Record, RecordFile};
use crate::agent::MemberAgent;
use crate::contacts::Contacts;
use crate::describe::{Describer, with_certificate};
use crate::host::Host;
use crate::links::{Links, serve_peers};
use crate::netd::{Netd, Place};
use crate::renewal::{self, Keeper, Renewal};
use crate::sealing::Sealing;
use crate::seat::{First, Seat, SeatParts};

/// How long the agent waits for this node's own manager, which it would otherwise find closed and ask later again.
const MANAGER_FIRST: Duration = Duration::from_secs(2);
/// Longer than a handshake may take: one that began before the roots changed has ended after it.
const HANDSHAKES: Duration = Duration::from_secs(10);
/// Connections that are closed at a time when a root goes, and the pause before the next ones: their nodes come back at once.
const CLOSED_AT_ONCE: usize = 50;
const CLOSE_PAUSE: Duration = Duration::from_millis(100);

/// A running member.
pub(crate) struct Member {
    pub(super) seat: Seat,
    pub(super) agent: MemberAgent,
    pub(super) record: RecordFile,
    pub(super) contacts: Contacts,
    pub(super) live: LiveCredentials,
    pub(super) keeper: Keeper,
    deny: DenyList,
    /// The image port.
    listeners: JoinSet<()>,
    background: JoinSet<()>,
    /// Keeps this host's netd running, which outlives it.
    networks: JoinSet<()>,
    netd: Netd,
}

impl Member {
    /// Starts everything. What was started when a later part fails is stopped again: ports and files are free when this
    /// returns an error. A manager that cannot start is no error, unless it is to found the swarm.
    pub(super) async fn start(
        host: &Arc<Host>,
        board: &Board,
        credentials: Credentials,
        record: Record,
        first: First,
        sealing: Sealing,
    ) -> anyhow::Result<Self> {
        let identity = credentials.identity().clone();
        let (live, deny) = (LiveCredentials::new(credentials), DenyList::new());
        let links = Links::new(&live, &deny);
        let own = record.advertise_addr.to_string();
        let mut known = record.managers.clone();
        if identity.role == Role::Manager {
            known.retain(|addr| *addr != own);
            known.insert(0, own.clone());
        }
        let contacts = Contacts::new(&own, known);
        let address = record.advertise_addr.ip();
        let record = RecordFile::new(host.swarm_file(), record);
        let mut listeners = JoinSet::new();
        serve_peers(host, &live, &deny, &mut listeners).await?;
        let parts = SeatParts {
            host: Arc::clone(host),
            identity: identity.clone(),
            live: live.clone(),
            deny: deny.clone(),
            links: Arc::clone(&links),
            contacts: contacts.clone(),
            record: record.clone(),
            board: board.clone(),
            sealing: sealing.clone(),
        };
        let description = with_certificate(host.description_config(Some(address)), &live.current());
        let founding = matches!(first, First::Found(_));
        let (seat, outcome) = Seat::start(parts, first);
        let begun = async {
            if founding {
                outcome.await??;
            }
            // Late is no error: the agent asks again, and other managers too.
            let _ = tokio::time::timeout(MANAGER_FIRST, seat.settled()).await;
            let links = Arc::clone(&links);
            MemberAgent::start(host, &identity, links, contacts.clone(), record.clone(), description.clone()).await
        };
        let agent = match begun.await {
            Ok(agent) => agent,
            Err(error) => {
                seat.close().await;
                listeners.shutdown().await;
                return Err(error);
            }
        };
        // Not before its containers are in hand: until then it is pending.
        board.member(identity.node_id, identity.cluster_id, live.current().role(), address.to_string());
        let mut background = JoinSet::new();
        let keeper = Keeper::new(live.clone(), sealing.clone(), links.trusted());
        background.spawn(renewal::trust(keeper.clone()));
        let (own, asked) = (seat.authority(), contacts.clone());
        background.spawn(Renewal { keeper: keeper.clone(), links, contacts: asked, own }.run());
        background.spawn(close_expired(deny.clone()));
        background.spawn(close_untrusted(deny.clone(), live.clone()));
        // After the agent, which has opened the sandboxes: netd finds them there.
        let mut networks = JoinSet::new();
        let place = Place { node: identity.node_id, address, sealing };
        let describer = Describer::new(agent.handle.clone(), description);
        background.spawn(describer.clone().follow(live.clone()));
        networks.spawn(host.netd.clone().keep(place, move |fabric| {
            describer.change(|config| config.fabric = Some(fabric));
        }));
        let netd = host.netd.clone();
        Ok(Self { seat, agent, record, contacts, live, keeper, deny, listeners, background, networks, netd })
    }

    /// No manager lets this node in, and none will: its certificate has ended, or is of a root that they trust no more, or
    /// they have one that this node does not trust.
    pub(super) fn is_cut_off(&self) -> bool {
        let ended = self.live.current().validity(SystemTime::now()) == Validity::Expired;
        ended || self.agent.is_refused()
    }

    /// The daemon stops: containers go on.
    pub(super) async fn shutdown(mut self) {
        self.networks.shutdown().await;
        self.agent.handle.shutdown().await;
        self.stop().await;
    }

    /// The node is no longer in the swarm: containers stop, networks go.
    pub(super) async fn end(mut self) {
        self.networks.shutdown().await;
        self.agent.handle.stop_all().await;
        self.netd.shutdown().await;
        self.stop().await;
    }

    /// In reverse order; the agent has ended.
    async fn stop(mut self) {
        self.background.shutdown().await;
        self.seat.close().await;
        self.listeners.shutdown().await;
        // Connections outlive their listener.
        let closed = self.deny.close_all();
        info!(connections = closed, "this node's ports are closed");
    }
}

/// Connections whose certificate ran out are closed within a minute.
async fn close_expired(deny: DenyList) {
    let mut minute = tokio::time::interval(Duration::from_secs(60));
    loop {
        minute.tick().await;
        deny.close_expired(SystemTime::now());
    }
}

/// Connections with certificates of a root that is trusted no more are closed when it goes: whoever has a newer certificate
/// comes back with that, and nobody else does. Handshakes go by the new roots from then on.
async fn close_untrusted(deny: DenyList, live: LiveCredentials) {
    let mut changes = live.subscribe();
    let mut trusted = changes.borrow_and_update().roots().clone();
    let mut again: Option<Instant> = None;
    loop {
        let due = async {
            match again {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let is_due = tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = due => true,
        };
        let roots = changes.borrow_and_update().roots().clone();
        let before = std::mem::replace(&mut trusted, roots.clone());
        if !before.certs().iter().all(|root| roots.certs().contains(root)) {
            again = Some(Instant::now() + HANDSHAKES);
        } else if is_due {
            again = None;
        } else {
            continue;
        }
        close(&deny, &roots).await;
    }
}

async fn close(deny: &DenyList, roots: &RootBundle) {
    let (list, roots) = (deny.clone(), roots.clone());
    // A signature is checked for each.
    let Ok(untrusted) = tokio::task::spawn_blocking(move || list.untrusted(&roots)).await else { return };
    let mut closed = 0;
    for some in untrusted.chunks(CLOSED_AT_ONCE) {
        closed += deny.close_each(some);
        tokio::time::sleep(CLOSE_PAUSE).await;
    }
    if closed > 0 {
        info!(connections = closed, "connections with certificates of a root that is trusted no more are closed");
    }
}
