//! This host joins a swarm, or comes back into its own when nobody there believes its certificate any more.

use std::sync::PoisonError;

use anyhow::bail;
use skep_identity::{JoinToken, Role};
use skep_proto::id::NodeId;
use skep_proto::v1::{Availability, SwarmJoinRequest};
use tokio::sync::watch;
use tracing::info;

use super::attempt::{self, JoinAttempt};
use super::member::Member;
use super::{FIRST_SESSION, MemberGuard, Membership};
use crate::address;
use crate::agent::MemberAgent;
use crate::config::MANAGER_PORT;
use crate::sealing::Sealing;
use crate::seat::{First, SeatState};

impl Membership {
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
        let mut attempt = attempt::attempt(before, token, managers)?;
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

    pub(super) fn unfinished_join<T>(&self, with: impl FnOnce(&mut Option<JoinAttempt>) -> T) -> T {
        with(&mut self.joining.lock().unwrap_or_else(PoisonError::into_inner))
    }
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
