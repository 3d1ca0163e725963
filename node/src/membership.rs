//! This host's place in a swarm: none, member, manager. The transitions (init, join, leave, start of a member) run one
//! at a time; each either completes or leaves what was before. What a member runs is `member.rs`'s; whether a manager is
//! part of it, `seat.rs`'s.
//!
//! `resuming.rs`, `founding.rs`, `joining.rs` and `leaving.rs` have the transitions, this file what they share.

mod attempt;
mod founding;
mod joining;
mod leaving;
mod member;
mod record;
mod resuming;
mod standing;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use skep_identity::{Credentials, LiveCredentials};
use skep_manager::Figures;
use skep_proto::v1::SwarmState;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use crate::address;
use crate::agent::MemberAgent;
use crate::config::MANAGER_PORT;
use crate::contacts::Contacts;
use crate::host::Host;
use crate::renewal;
use crate::sealing::Sealing;
use crate::seat::First;
use crate::switch::ManagerRoutes;
use attempt::JoinAttempt;
pub(crate) use joining::Joined;
use member::Member;
pub(crate) use record::{Record, RecordFile, SeatPhase, SeatRecord};
pub(crate) use standing::{Board, Standing};

/// How long a joining node waits for its first session, and a joining manager until it hears a leader.
const FIRST_SESSION: Duration = Duration::from_secs(20);
/// What every call but `unlock` hears while this manager waits for its key.
pub(crate) const LOCKED: &str =
    "Swarm is encrypted and needs to be unlocked before it can be used. Use `skep swarm unlock` to unlock it.";
const REMOVED: &str = "this node was removed from the swarm, and its tasks are stopped: use `skep swarm leave` to clean \
                       up, then join again";

/// The place, and what runs because of it.
pub(crate) struct Membership {
    host: Arc<Host>,
    board: Board,
    /// Held through a whole transition.
    member: Arc<Mutex<Option<Member>>>,
    /// What is asked of a member at any time, also during a transition.
    view: StdMutex<Option<View>>,
    /// A join that gave no certificate so far: a repeated command goes on with it.
    joining: StdMutex<Option<JoinAttempt>>,
    /// The daemon stops: no transition begins any more.
    stopping: watch::Sender<bool>,
    own: Weak<Self>,
}

/// The parts of a member that answer questions.
#[derive(Clone)]
struct View {
    agent: MemberAgent,
    credentials: LiveCredentials,
    contacts: Contacts,
}

type MemberGuard = OwnedMutexGuard<Option<Member>>;

impl Membership {
    /// A daemon that does not know its place yet: `start` looks.
    pub(crate) fn new(host: Arc<Host>, routes: ManagerRoutes) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            host,
            board: Board::starting(routes),
            member: Arc::default(),
            view: StdMutex::new(None),
            joining: StdMutex::new(None),
            stopping: watch::Sender::new(false),
            own: own.clone(),
        })
    }

    /// What `info` tells.
    pub(crate) fn standing(&self) -> Standing {
        self.board.standing()
    }

    fn view(&self) -> Option<View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_view(&self, view: Option<View>) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// Why there is no session right now, in words. Empty: there is one, or no swarm.
    pub(crate) fn trouble(&self) -> String {
        self.view().map(|view| view.agent.trouble()).unwrap_or_default()
    }

    /// What to do about a certificate that is of no use any more, in words. `None`: nothing.
    pub(crate) fn way_back(&self) -> Option<String> {
        let View { agent, credentials, .. } = self.view()?;
        let credentials = credentials.current();
        let refused = || agent.is_refused().then(|| renewal::way_back_of_refused(&credentials, &agent.trouble()));
        renewal::way_back(&credentials, SystemTime::now()).or_else(refused)
    }

    /// This node's certificate and the roots that it trusts. `None`: it has none.
    pub(crate) fn credentials(&self) -> Option<Arc<Credentials>> {
        self.view().map(|view| view.credentials.current())
    }

    /// What this host's manager counts. `None`: none serves here.
    pub(crate) fn figures(&self) -> Option<Figures> {
        self.board.figures()
    }

    /// Containers that run here.
    pub(crate) fn containers_running(&self) -> usize {
        self.view().map_or(0, |view| view.agent.handle.containers_running())
    }

    /// The managers known here, `host:port`.
    pub(crate) fn managers(&self) -> Vec<String> {
        self.view().map(|view| view.contacts.managers()).unwrap_or_default()
    }

    /// Stops what runs here; containers go on.
    pub(crate) async fn shutdown(&self) {
        self.stopping.send_replace(true);
        if let Some(running) = self.member.lock().await.take() {
            running.shutdown().await;
        }
        self.set_view(None);
    }

    /// Waits until no other transition is under way.
    async fn transition(&self) -> anyhow::Result<MemberGuard> {
        let member = Arc::clone(&self.member).lock_owned().await;
        if *self.stopping.borrow() {
            bail!("this daemon is stopping: try again when it is back");
        }
        Ok(member)
    }

    fn refuse_if_member(&self, member: &Option<Member>) -> anyhow::Result<()> {
        if self.standing().state == SwarmState::Locked {
            bail!("{LOCKED}");
        }
        if member.is_some() || self.standing().state != SwarmState::Inactive {
            bail!(
                "this node is already part of a swarm: use `skep swarm leave` to leave this swarm and join another one"
            );
        }
        Ok(())
    }

    /// What an interrupted leave or a lost identity left is not overwritten, nor deleted unasked.
    fn refuse_leftovers(&self) -> anyhow::Result<()> {
        let left = [(self.host.raft_dir(), "a manager's state"), (self.host.agent_dir(), "an agent's record")];
        match left.iter().find(|(path, _)| path.exists()) {
            Some((path, what)) => bail!(
                "{} holds {what} of an earlier swarm, but this node has no credentials for it: move it away if it is \
                 still of use, or delete it with `skep swarm leave --force`",
                path.display()
            ),
            None => Ok(()),
        }
    }

    fn record(&self, listen: &str, advertise: &str) -> anyhow::Result<Record> {
        let listen_addr = match listen {
            "" => SocketAddr::from(([0, 0, 0, 0], MANAGER_PORT)),
            text => address::parse(text, MANAGER_PORT).context("--listen-addr")?,
        };
        let advertise_addr = match (advertise, self.host.config.advertise_addr) {
            ("", Some(ip)) => SocketAddr::new(ip, listen_addr.port()),
            ("", None) if !listen_addr.ip().is_unspecified() => listen_addr,
            ("", None) => SocketAddr::new(address::only_address()?, listen_addr.port()),
            (text, _) => address::parse(text, listen_addr.port()).context("--advertise-addr")?,
        };
        Ok(Record { listen_addr, advertise_addr, managers: Vec::new(), seat: None, removed: false })
    }

    /// Writes the new membership down and starts it; takes all back when that fails.
    async fn enter(
        &self,
        member: &mut MemberGuard,
        credentials: Credentials,
        record: Record,
        first: First,
        sealing: Sealing,
    ) -> anyhow::Result<()> {
        let (file, sealed, content) = (self.host.swarm_file(), sealing.clone(), record.clone());
        let written = blocking(move || {
            content.save(&file)?;
            sealed.save(&credentials).context("cannot store this node's credentials")?;
            anyhow::Ok(credentials)
        });
        let started = match written.await? {
            Ok(credentials) => self.run(member, credentials, record, first, sealing).await,
            Err(error) => Err(error),
        };
        let Err(error) = started else { return Ok(()) };
        let undone = self.forget().await;
        self.board.outside();
        Err(match undone {
            Ok(()) => error,
            Err(undo) => error.context(format!("{undo:#}, after this failure")),
        })
    }

    /// Starts what a member runs, and shows it.
    async fn run(
        &self,
        member: &mut MemberGuard,
        credentials: Credentials,
        record: Record,
        first: First,
        sealing: Sealing,
    ) -> anyhow::Result<()> {
        self.board.pending();
        let node = credentials.node_id();
        let running = Member::start(&self.host, &self.board, credentials, record, first, sealing).await?;
        self.set_view(Some(View {
            agent: running.agent.clone(),
            credentials: running.live.clone(),
            contacts: running.contacts.clone(),
        }));
        let (own, mut removed) = (self.own.clone(), running.contacts.watch_removed());
        // Not one of the member's own tasks: it stops them. It ends with the member's last part.
        tokio::spawn(async move {
            let was_removed = removed.wait_for(|removed| *removed).await.is_ok();
            if let Some(membership) = own.upgrade()
                && was_removed
            {
                membership.removed(node).await;
            }
        });
        **member = Some(running);
        Ok(())
    }
}

/// File work that may wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the daemon failed at a file")
}

#[cfg(test)]
mod membership_test;
