//! Doors for `tests/fuzz`, and for nobody else: no part of the interface. What a manager serves to people and nodes, without
//! TLS, without Raft's log, and without the leader's loops.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::FutureExt as _;
use prost::Message as _;
use skep_core::store::State;
use skep_identity::{DenyList, LiveCredentials};
use skep_proto::v1;
use skep_raft::{Committed, Consensus, Member, Membership, ProposeError, Role, StateMachine as _, Status};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::service::Routes;

use crate::ca::CertificateAuthority;
use crate::callers;
use crate::clock::Clock;
use crate::control::Control;
use crate::dispatch::{Dispatcher, DispatcherLead};
use crate::images::Registries;
use crate::logs::LogBroker;
use crate::machine::{FeedSlot, Machine};
use crate::manager::{FIRST_RAFT_ID, SUBMISSIONS, services};
use crate::peers::{Leader, Peers, wire};
use crate::scripted::Scripted;
use crate::sequencer;
use crate::store::{Applied, Store};

/// A manager that leads, alone: an entry is committed when it is proposed. Ends when it is dropped.
pub struct Alone {
    applied: Applied,
    routes: Routes,
    _lead: DispatcherLead,
    _tasks: JoinSet<()>,
}

impl Alone {
    /// Starts one with this state. Call it within a tokio runtime. Fails if no thread can be started.
    pub fn start(
        state: State,
        credentials: &LiveCredentials,
        registries: Arc<dyn Registries>,
    ) -> std::io::Result<Self> {
        let (applied, clock) = (Applied::new(state), Clock::start());
        let machine = Mutex::new(Machine::new(applied.clone(), FeedSlot::default(), clock.clone()));
        let raft = Scripted::new(leading()).proposing(move |entry| {
            let applied = machine.lock().unwrap_or_else(PoisonError::into_inner).apply(1, &entry);
            let committed = applied.map(|response| Committed { index: 1, term: 1, response });
            let landed = committed.map_err(|_| ProposeError::NotLeader { leader: None });
            async move { landed }.boxed()
        });
        let raft: Arc<dyn Consensus<Response = Vec<u64>>> = Arc::new(raft);
        let (node, deny) = (credentials.current().identity().node_id, DenyList::new());
        let peers = Peers::new(credentials, &deny, &applied, &clock);
        peers.publish(Some(Leader { raft_id: FIRST_RAFT_ID, node: Some(node), addr: String::new(), is_self: true }));
        peers.know_raft(&raft);
        let (submit, submissions) = mpsc::channel(SUBMISSIONS);
        let mut tasks = JoinSet::new();
        tasks.spawn(sequencer::run(Arc::clone(&raft), applied.clone(), clock.clone(), submissions));
        let store = Store::new(applied.clone(), submit, clock, peers);
        let dispatcher = Dispatcher::new(store.clone(), credentials.clone(), Arc::new(crate::dispatch::Alone));
        tasks.spawn(dispatcher.clone().run());
        let lead = dispatcher.lead()?;
        let control = Control::new(store.clone(), registries, node, raft.status()).with_nodes(dispatcher.clone());
        let authority = CertificateAuthority::new(store.clone(), deny);
        let control = control.with_authority(authority.clone());
        let routes = services(control, &dispatcher, &LogBroker::new(&dispatcher), &authority);
        let routes = callers::guard(routes, &store);
        Ok(Self { applied, routes, _lead: lead, _tasks: tasks })
    }

    /// What it serves, behind the gate that checks callers.
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// The present state.
    pub fn state(&self) -> State {
        self.applied.state()
    }
}

/// The only voter.
fn leading() -> Status {
    let member = Member { id: FIRST_RAFT_ID, address: "192.0.2.1:2377".to_owned() };
    let membership = Membership { voters: [(member.id, member.clone())].into(), ..Membership::default() };
    Status {
        role: Role::Leader,
        term: 1,
        leader: Some(member),
        quorum_acked_at: Some(Instant::now()),
        has_quorum: true,
        hears_leader: true,
        membership: Arc::new(membership),
        ..Status::initial(FIRST_RAFT_ID)
    }
}

/// A refusal as another manager tells it; `None` if it is none. Gives it as this one would tell it on.
pub fn refusal(message: &[u8]) -> Option<Vec<u8>> {
    let told = v1::RefusedGroup::decode(message).ok()?;
    Some(wire::refused_to_wire(&wire::refused_from_wire(told)).encode_to_vec())
}
