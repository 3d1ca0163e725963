//! This host's place in a swarm: none, member, manager. The transitions (init, join, leave, start of a member) run one
//! at a time; each either completes or leaves what was before. What a member runs is `member.rs`'s; whether a manager is
//! part of it, `seat.rs`'s.

mod joining;
mod member;
mod record;
mod standing;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use skep_identity::ca::{DEFAULT_NODE_VALIDITY, MIN_NODE_VALIDITY};
use skep_identity::{
    Credentials, JoinToken, LiveCredentials, NodeGrant, NodeKey, Role, RootBundle, RootCa, StoreError, UnlockKey,
};
use skep_manager::Bootstrap;
use skep_proto::id::{ClusterId, NodeId};
use skep_proto::v1::{Availability, ClusterSpec, NodeRole, NodeSpec, SwarmInitRequest, SwarmJoinRequest, SwarmState};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tracing::{info, warn};

use crate::address;
use crate::agent::MemberAgent;
use crate::backoff::{Backoff, is_disk_full, may_pass, words};
use crate::config::MANAGER_PORT;
use crate::contacts::Contacts;
use crate::host::Host;
use crate::sealing::Sealing;
use crate::seat::{First, SeatState};
use crate::switch::ManagerRoutes;
use joining::JoinAttempt;
use member::Member;
pub(crate) use record::{Record, RecordFile, SeatPhase, SeatRecord};
pub(crate) use standing::{Board, Standing};

/// How long a joining node waits for its first session, and a joining manager until it hears a leader.
const FIRST_SESSION: Duration = Duration::from_secs(20);
/// How late a wrong unlock key is answered; nobody else is heard meanwhile. A key has 256 bits: this is not what keeps a
/// guesser out.
const WRONG_KEY: Duration = Duration::from_secs(1);
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

    /// What to do about a certificate that ran out, in words. `None`: nothing.
    pub(crate) fn way_back(&self) -> Option<String> {
        crate::renewal::way_back(&self.view()?.credentials.current(), SystemTime::now())
    }

    /// End of this node's certificate. `None`: it has none.
    pub(crate) fn certificate_end(&self) -> Option<SystemTime> {
        self.view().map(|view| view.credentials.current().not_after())
    }

    /// Containers that run here.
    pub(crate) fn containers_running(&self) -> usize {
        self.view().map_or(0, |view| view.agent.handle.containers_running())
    }

    /// The managers known here, `host:port`.
    pub(crate) fn managers(&self) -> Vec<String> {
        self.view().map(|view| view.contacts.managers()).unwrap_or_default()
    }

    /// Resumes, in a task of its own, the membership that the data directory holds, if any. Transitions wait for it.
    pub(crate) fn start(&self) {
        let this = self.own.upgrade().expect("it is called through an Arc");
        let first = Arc::clone(&self.member).try_lock_owned().expect("nobody has been let in yet");
        tokio::spawn(async move { this.resume(first).await });
    }

    /// Tries until it works, or fails for a reason that stays; an error leaves the daemon up and says why.
    async fn resume(&self, first: MemberGuard) {
        let (mut member, mut backoff) = (first, Backoff::default());
        let mut stopping = self.stopping.subscribe();
        loop {
            if *stopping.borrow() || member.is_some() || self.standing().state == SwarmState::Inactive {
                return;
            }
            let Err(error) = self.resume_once(&mut member).await else { return };
            let passing = may_pass(&error);
            let message = match is_disk_full(&error) {
                true => format!("this node's disk is full: {}; make space, and it goes on by itself", words(&error)),
                false => format!("this node's swarm state cannot be used: {}", words(&error)),
            };
            warn!(error = %message, passing, "this host is not back in its swarm");
            self.board.failed(message, passing);
            if !passing {
                return;
            }
            drop(member);
            tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = tokio::time::sleep(backoff.pause()) => {}
            }
            member = Arc::clone(&self.member).lock_owned().await;
        }
    }

    async fn resume_once(&self, member: &mut MemberGuard) -> anyhow::Result<()> {
        let dir = self.host.identity_dir();
        let credentials = match blocking(move || Credentials::load(&dir)).await? {
            Ok(credentials) => credentials,
            Err(StoreError::Sealed { .. }) => return self.lock().await,
            Err(error) if error.is_absent() => {
                self.host.clear_leftovers().await;
                self.board.outside();
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let path = self.host.swarm_file();
        let record = blocking(move || Record::load(&path)).await??;
        if record.removed {
            self.host.clear_leftovers().await;
            self.board.failed(REMOVED.to_owned(), false);
            return Ok(());
        }
        let sealing = Sealing::new(self.host.identity_dir(), None, Vec::new());
        self.run(member, credentials, record, First::Resume, sealing).await
    }

    /// This host's keys are sealed: containers and netd go on by themselves, and nothing else happens before somebody has
    /// the unlock key.
    async fn lock(&self) -> anyhow::Result<()> {
        let (dir, path) = (self.host.identity_dir(), self.host.swarm_file());
        let (identity, record) = blocking(move || (Credentials::whose(&dir), Record::load(&path))).await?;
        let (identity, record) = (identity?, record?);
        if record.removed {
            self.host.clear_leftovers().await;
            self.board.failed(REMOVED.to_owned(), false);
            return Ok(());
        }
        info!(node = %identity.node_id, "this manager is locked: unlock it with `skep swarm unlock`");
        self.board.locked(&identity, record.advertise_addr.ip().to_string());
        Ok(())
    }

    /// Unlocks this manager and resumes its membership; returns when it takes part, or is late.
    pub(crate) async fn unlock(&self, text: &str) -> anyhow::Result<()> {
        let mut member = self.transition().await?;
        match self.standing().state {
            SwarmState::Locked => {}
            SwarmState::Inactive => bail!("this node is not part of a swarm"),
            _ => bail!("swarm is not locked"),
        }
        let (sealing, credentials, record) = match self.open(text).await {
            Ok(opened) => opened,
            Err(error) => {
                tokio::time::sleep(WRONG_KEY).await;
                warn!(error = %words(&error), "somebody tried to unlock this manager");
                return Err(error);
            }
        };
        if let Err(error) = self.run(&mut member, credentials, record, First::Resume, sealing).await {
            // For the next try.
            self.lock().await?;
            return Err(error);
        }
        info!("this manager is unlocked");
        let seat = member.as_ref().map(|member| member.seat.state());
        // From here on it is a member, which may leave or be stopped while it waits for a leader.
        drop(member);
        if let Some(mut seat) = seat {
            // Late is no error: it goes on trying.
            let _ = tokio::time::timeout(FIRST_SESSION, seat.wait_for(SeatState::is_settled)).await;
        }
        Ok(())
    }

    /// What the unlock key opens.
    async fn open(&self, text: &str) -> anyhow::Result<(Sealing, Credentials, Record)> {
        let key: UnlockKey = text.parse()?;
        let (dir, path) = (self.host.identity_dir(), self.host.swarm_file());
        let opened = blocking(move || -> anyhow::Result<_> {
            // The key of before, or the next one, where a change was cut short.
            let other = skep_identity::other_keys(&dir, &key)?;
            let keys: Vec<UnlockKey> = std::iter::once(&key).chain(&other).cloned().collect();
            let credentials = Credentials::unlock(&dir, &keys)?;
            Ok((Sealing::new(dir, Some(key), other), credentials, Record::load(&path)?))
        });
        opened.await?.map_err(|error| match error.downcast_ref() {
            Some(StoreError::WrongKey { .. }) => anyhow::anyhow!("invalid key: it does not unlock this manager"),
            _ => error,
        })
    }

    /// Makes a swarm with this host as its first manager, or makes this manager the only one of its swarm.
    pub(crate) async fn init(&self, request: SwarmInitRequest) -> anyhow::Result<Founded> {
        let mut member = self.transition().await?;
        if self.standing().state == SwarmState::Locked {
            bail!("{LOCKED}");
        }
        if request.force_new_cluster {
            return self.recover(&mut member, request).await;
        }
        self.refuse_if_member(&member)?;
        self.refuse_leftovers()?;
        let record = self.record(&request.listen_addr, &request.advertise_addr)?;
        let founding = found(&self.host, &request)?;
        let (node, token) = (founding.credentials.node_id(), founding.token);
        let advertise_addr = record.advertise_addr;
        let unlock_key = founding.bootstrap.unlock_key.map(UnlockKey::new);
        let sealing = Sealing::new(self.host.identity_dir(), unlock_key.clone(), Vec::new());
        let first = First::Found(Box::new(founding.bootstrap));
        self.enter(&mut member, founding.credentials, record, first, sealing).await?;
        if let Some(member) = member.as_ref() {
            // Returning earlier would let the next command find it starting. The swarm is made either way.
            let _ = tokio::time::timeout(FIRST_SESSION, member.seat.settled()).await;
        }
        info!(%node, "a swarm was made");
        Ok(Founded { node, token, advertise_addr, unlock_key })
    }

    async fn recover(&self, member: &mut MemberGuard, request: SwarmInitRequest) -> anyhow::Result<Founded> {
        let addressed = SwarmInitRequest {
            listen_addr: request.listen_addr.clone(),
            advertise_addr: request.advertise_addr.clone(),
            force_new_cluster: true,
            ..SwarmInitRequest::default()
        };
        if request != addressed {
            bail!(
                "--force-new-cluster keeps the swarm's settings: it goes with --listen-addr and --advertise-addr only"
            );
        }
        let Some(member) = member.as_ref() else {
            bail!("this node holds no manager's state to go on from: use `skep swarm init` without --force-new-cluster")
        };
        let addrs = match (request.listen_addr.as_str(), request.advertise_addr.as_str()) {
            ("", "") => None,
            (listen, advertise) => {
                let record = self.record(listen, advertise)?;
                Some((record.listen_addr, record.advertise_addr))
            }
        };
        let token = member.seat.recover(addrs).await?;
        let node = member.live.current().node_id();
        warn!(%node, "this manager is the only one of its swarm now; the others have to join again");
        Ok(Founded { node, token, advertise_addr: member.record.get().advertise_addr, unlock_key: None })
    }

    /// Joins a swarm; returns when the agent has its session, and a manager hears the leader.
    pub(crate) async fn join(&self, request: SwarmJoinRequest) -> anyhow::Result<Joined> {
        let mut member = self.transition().await?;
        if member.as_ref().is_some_and(Member::is_cut_off) {
            return self.come_back(member, request).await;
        }
        self.refuse_if_member(&member)?;
        self.refuse_leftovers()?;
        let (token, managers) = target(&request)?;
        let mut record = self.record(&request.listen_addr, &request.advertise_addr)?;
        let before = self.unfinished_join(|known| known.take());
        let mut attempt = joining::attempt(before, token, managers)?;
        record.learn(&attempt.managers);
        let mut stopping = self.stopping.subscribe();
        let asked = tokio::select! {
            biased;
            // Nothing was written yet.
            _ = stopping.wait_for(|stopping| *stopping) => bail!("this daemon is stopping: join again when it is back"),
            asked = attempt.ask(&self.host.hostname, request.availability) => asked,
        };
        // Until it is a member: whatever fails from here on, its node is made already.
        self.unfinished_join(|known| *known = Some(attempt));
        let credentials = asked?;
        let (node, role) = (credentials.node_id(), credentials.role());
        let sealing = Sealing::new(self.host.identity_dir(), None, Vec::new());
        self.enter(&mut member, credentials, record, First::Resume, sealing).await?;
        self.unfinished_join(|known| *known = None);
        let joined = member.as_ref().map(|joined| (joined.agent.clone(), joined.seat.state()));
        // From here on it is a member, which may leave or be stopped while it waits for its session.
        drop(member);
        if let Some((agent, seat)) = joined {
            wait_joined(&agent, seat).await?;
        }
        if self.standing().node != Some(node) {
            bail!("this host left the swarm again before it had a session");
        }
        info!(%node, ?role, "joined the swarm");
        Ok(Joined { node, role, returned: false })
    }

    /// A member whose certificate is of no use any more gets another one, as the node that it is. Nothing is stopped: what
    /// runs goes on, and agent and manager connect again by themselves.
    async fn come_back(&self, member: MemberGuard, request: SwarmJoinRequest) -> anyhow::Result<Joined> {
        let Some(running) = member.as_ref() else { bail!("this node is not part of a swarm") };
        let SwarmJoinRequest { listen_addr, advertise_addr, availability, .. } = &request;
        if !listen_addr.is_empty() || !advertise_addr.is_empty() || *availability != i32::from(Availability::Active) {
            bail!(
                "this node comes back as it was: --listen-addr, --advertise-addr and --availability cannot be changed with it"
            )
        }
        let (token, managers) = target(&request)?;
        let was = running.live.current();
        let mut attempt = JoinAttempt::back(token, managers, was);
        let mut stopping = self.stopping.subscribe();
        let fresh = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => bail!("this daemon is stopping: try again when it is back"),
            fresh = attempt.ask(&self.host.hostname, request.availability) => fresh?,
        };
        let (node, role) = (fresh.node_id(), fresh.role());
        running.keeper.install(fresh).await?;
        running.record.update(|record| record.learn(&attempt.managers)).await?;
        let (agent, seat) = (running.agent.clone(), running.seat.state());
        drop(member);
        wait_joined(&agent, seat).await?;
        info!(%node, %role, "this node is back in its swarm");
        Ok(Joined { node, role, returned: true })
    }

    fn unfinished_join<T>(&self, with: impl FnOnce(&mut Option<JoinAttempt>) -> T) -> T {
        with(&mut self.joining.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Leaves: containers stop, the local state goes.
    pub(crate) async fn leave(&self, force: bool) -> anyhow::Result<()> {
        let mut member = Arc::clone(&self.member).lock_owned().await;
        self.refuse_to_leave(&member, force)?;
        if let Some(running) = member.take() {
            running.end().await;
        }
        self.set_view(None);
        self.unfinished_join(|known| *known = None);
        self.host.clear_leftovers().await;
        self.forget().await?;
        self.board.outside();
        info!("left the swarm");
        Ok(())
    }

    fn refuse_to_leave(&self, member: &Option<Member>, force: bool) -> anyhow::Result<()> {
        if force {
            return Ok(());
        }
        let standing = self.standing();
        if standing.state == SwarmState::Inactive {
            bail!("this node is not part of a swarm");
        }
        if standing.state == SwarmState::Locked {
            bail!("{LOCKED}");
        }
        if standing.role == Some(Role::Manager) && member.is_some() {
            bail!(
                "you are attempting to leave the swarm on a node that is participating as a manager. The other managers \
                 must keep a majority without it: demote it first (`skep node demote`). Removing the last manager \
                 erases all current state of the swarm. Use `--force` to ignore this message"
            );
        }
        // A manager that could not start (damaged files) may hold the swarm's only state.
        if member.is_none() && standing.error != REMOVED && self.host.raft_dir().exists() {
            bail!(
                "this node holds a manager's state, which leaving erases: solve what `skep info` shows and restart the \
                 daemon, or use `--force` to erase it"
            );
        }
        Ok(())
    }

    /// The swarm removed this node: nothing of it runs here any more, and only `leave` is left to do. Its files stay
    /// until then, since nobody here has asked to delete them.
    async fn removed(&self, node: NodeId) {
        let mut member = Arc::clone(&self.member).lock_owned().await;
        if member.as_ref().is_none_or(|running| running.live.current().node_id() != node) {
            return;
        }
        let Some(running) = member.take() else { return };
        warn!(%node, "this node was removed from the swarm: its tasks stop");
        // On disk first: a restart in the middle must not bring the tasks back.
        if let Err(error) = running.record.update(|record| record.removed = true).await {
            warn!(error = %format!("{error:#}"), "the removal is not on disk; the managers will tell it again");
        }
        self.set_view(None);
        self.board.failed(REMOVED.to_owned(), false);
        running.end().await;
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

    /// Deletes the local state of the swarm, credentials first: without them nothing is resumed. Everything here was
    /// made by the membership that ends, since none begins where something lies already.
    async fn forget(&self) -> anyhow::Result<()> {
        let dir = self.host.identity_dir();
        let (raft, paths) = (self.host.raft_dir(), [self.host.swarm_file(), self.host.agent_dir()]);
        blocking(move || {
            Credentials::erase(&dir).context("cannot delete this node's credentials")?;
            skep_manager::erase_files(&raft).context("cannot delete this manager's state")?;
            paths.into_iter().try_for_each(delete)
        })
        .await?
    }
}

fn delete(path: PathBuf) -> anyhow::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// File work that may wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the daemon failed at a file")
}

/// Waits until a new member takes part.
async fn wait_joined(agent: &MemberAgent, mut seat: watch::Receiver<SeatState>) -> anyhow::Result<()> {
    let taking_part = async {
        agent.connected().await;
        // An error: the seat's task has ended, and the standing says why.
        let _ = seat.wait_for(|state| matches!(state, SeatState::None | SeatState::Taken { ready: true })).await;
    };
    if tokio::time::timeout(FIRST_SESSION, taking_part).await.is_ok() {
        return Ok(());
    }
    let within = FIRST_SESSION.as_secs();
    match seat.borrow().clone() {
        SeatState::Empty { reason, .. } => bail!("this host has its certificate, but {reason}"),
        SeatState::Taking | SeatState::Taken { ready: false } => bail!(
            "this host has its certificate, but it was not let in as a manager within {within} s; it goes on trying: \
             see `skep info` and the daemon's log"
        ),
        SeatState::None | SeatState::Taken { ready: true } => bail!(
            "this host has its certificate, but no manager accepted its session within {within} s; it goes on trying: \
             see `skep info` and the daemon's log"
        ),
    }
}

/// Where a joining host wants to go.
fn target(request: &SwarmJoinRequest) -> anyhow::Result<(JoinToken, Vec<String>)> {
    let managers = request.remote_addrs.iter().map(|text| Ok(address::parse(text, MANAGER_PORT)?.to_string()));
    Ok((request.token.parse()?, managers.collect::<anyhow::Result<Vec<_>>>()?))
}

/// What became of a join.
pub(crate) struct Joined {
    pub(crate) node: NodeId,
    pub(crate) role: Role,
    /// It was this node before.
    pub(crate) returned: bool,
}

/// A swarm that was made, or made anew with this manager alone.
#[derive(Debug)]
pub(crate) struct Founded {
    pub(crate) node: NodeId,
    /// The worker's.
    pub(crate) token: JoinToken,
    /// What others are told.
    pub(crate) advertise_addr: SocketAddr,
    /// With autolock.
    pub(crate) unlock_key: Option<UnlockKey>,
}

/// What a new swarm begins with.
struct Founding {
    credentials: Credentials,
    bootstrap: Bootstrap,
    token: JoinToken,
}

fn found(host: &Host, request: &SwarmInitRequest) -> anyhow::Result<Founding> {
    let validity = match u64::try_from(request.node_cert_expiry_ms) {
        Ok(0) => DEFAULT_NODE_VALIDITY,
        Ok(ms) => Duration::from_millis(ms),
        Err(_) => Duration::ZERO,
    };
    if validity < MIN_NODE_VALIDITY {
        bail!("the life of node certificates must be at least one hour");
    }
    let spec = ClusterSpec {
        task_history_limit: request.task_history_limit,
        heartbeat_period_ms: request.heartbeat_period_ms,
        node_cert_expiry_ms: request.node_cert_expiry_ms,
        address_pools: request.address_pools.clone(),
        subnet_length: request.subnet_length,
        data_path_port: request.data_path_port,
        autolock: request.autolock,
        ..ClusterSpec::default()
    };
    skep_proto::validate::cluster_spec(&spec)?;
    let (cluster, node) = (ClusterId::new(rand::random()), NodeId::new(rand::random()));
    let now = SystemTime::now();
    let authority = RootCa::generate(cluster, now)?;
    let key = NodeKey::generate()?;
    let grant = NodeGrant { node_id: node, role: Role::Manager, validity };
    let issued = authority.issue(&key.signing_request()?, &grant, now)?;
    let credentials = Credentials::new(key, &issued.chain_pem, RootBundle::from(authority.cert().clone()))?;
    let bootstrap = Bootstrap {
        cluster,
        spec,
        root_cert_pem: authority.cert().to_pem(),
        root_key_pem: authority.key_pem().to_string(),
        worker_token_secret: rand::random(),
        manager_token_secret: rand::random(),
        unlock_key: request.autolock.then(|| *UnlockKey::generate().expose()),
        node_spec: NodeSpec {
            role: NodeRole::Manager.into(),
            availability: request.availability,
            ..NodeSpec::default()
        },
        hostname: host.hostname.clone(),
    };
    let secret = skep_identity::TokenSecret::new(bootstrap.worker_token_secret);
    let token = JoinToken::new(authority.cert().digest(), secret);
    Ok(Founding { credentials, bootstrap, token })
}

#[cfg(test)]
mod membership_test;
