//! What this host is, for `info` and for the control API: one board that the membership and the manager's seat write.

use std::sync::{Arc, Mutex, PoisonError};

use skep_identity::{PeerIdentity, Role};
use skep_manager::Figures;
use skep_proto::id::{ClusterId, NodeId};
use skep_proto::v1::SwarmState;

use crate::switch::{Control, ManagerRoutes};

/// Why the local control API does not answer.
const NOT_IN_SWARM: &str = "this node is not a swarm manager: use `skep swarm init` or `skep swarm join` to connect \
                            this node to a swarm and try again";
const ONLY_WORKER: &str = "this node is a worker: worker nodes can't be used to view or modify the swarm's state; run \
                           this command on a manager, or promote this node";
const STARTING: &str = "this daemon is starting: try again in a moment";

/// What `info` tells.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) state: SwarmState,
    pub(crate) error: String,
    pub(crate) node: Option<NodeId>,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) role: Option<Role>,
    pub(crate) node_addr: String,
    /// A manager serves here.
    pub(crate) control: bool,
}

impl Standing {
    pub(crate) fn outside(state: SwarmState, error: String) -> Self {
        Self { state, error, node: None, cluster: None, role: None, node_addr: String::new(), control: false }
    }
}

/// The board. Clones share it.
#[derive(Clone)]
pub(crate) struct Board {
    place: Arc<Mutex<Standing>>,
    /// What troubles a manager that serves. Empty: nothing.
    trouble: Arc<Mutex<String>>,
    routes: ManagerRoutes,
}

impl Board {
    /// A daemon that has not looked yet.
    pub(crate) fn starting(routes: ManagerRoutes) -> Self {
        routes.set(Control::Starting(STARTING.to_owned()));
        let place = Standing::outside(SwarmState::Pending, String::new());
        Self { place: Arc::new(Mutex::new(place)), trouble: Arc::default(), routes }
    }

    /// What this host's manager counts. `None`: none serves here.
    pub(crate) fn figures(&self) -> Option<Figures> {
        match self.routes.get() {
            Control::Served(_, counts) => Some(counts.read()),
            Control::Starting(_) | Control::Halted(_) | Control::Locked | Control::Absent(_) => None,
        }
    }

    /// The host's place, and what its manager adds to it.
    pub(crate) fn standing(&self) -> Standing {
        let mut standing = self.place.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let control = self.routes.get();
        standing.control = matches!(control, Control::Served(..));
        if standing.state == SwarmState::Active && standing.role == Some(Role::Manager) {
            match control {
                Control::Served(..) => {
                    standing.error.clone_from(&self.trouble.lock().unwrap_or_else(PoisonError::into_inner));
                }
                Control::Starting(_) => standing.state = SwarmState::Pending,
                Control::Locked => standing.state = SwarmState::Locked,
                Control::Halted(reason) | Control::Absent(reason) => {
                    (standing.state, standing.error) = (SwarmState::Error, reason);
                }
            }
        }
        standing
    }

    fn place(&self, standing: Standing) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    /// In no swarm.
    pub(crate) fn outside(&self) {
        self.routes.set(Control::Absent(NOT_IN_SWARM.to_owned()));
        self.place(Standing::outside(SwarmState::Inactive, String::new()));
    }

    /// Coming in, or coming back.
    pub(crate) fn pending(&self) {
        self.routes.set(Control::Starting(STARTING.to_owned()));
        self.place(Standing::outside(SwarmState::Pending, String::new()));
    }

    /// The membership cannot be used, for a reason that may pass or not.
    pub(crate) fn failed(&self, reason: String, passing: bool) {
        self.routes.set(match passing {
            true => Control::Halted(reason.clone()),
            false => Control::Absent(reason.clone()),
        });
        self.place(Standing::outside(SwarmState::Error, reason));
    }

    /// A manager that waits for its unlock key.
    pub(crate) fn locked(&self, identity: &PeerIdentity, node_addr: String) {
        self.routes.set(Control::Locked);
        let outside = Standing::outside(SwarmState::Locked, String::new());
        let (node, cluster) = (Some(identity.node_id), Some(identity.cluster_id));
        self.place(Standing { node, cluster, role: Some(identity.role), node_addr, ..outside });
    }

    /// A member. What the control API is, the seat says.
    pub(crate) fn member(&self, node: NodeId, cluster: ClusterId, role: Role, node_addr: String) {
        let outside = Standing::outside(SwarmState::Active, String::new());
        self.place(Standing { node: Some(node), cluster: Some(cluster), role: Some(role), node_addr, ..outside });
    }

    /// The member's certificate has another role now.
    pub(crate) fn role(&self, role: Role) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if place.node.is_some() {
            place.role = Some(role);
        }
    }

    /// No manager's seat here.
    pub(crate) fn only_worker(&self) {
        self.routes.set(Control::Absent(ONLY_WORKER.to_owned()));
    }

    /// What troubles this host's manager though it serves; empty: nothing any more.
    pub(crate) fn trouble(&self, trouble: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// What the seat says of the control API.
    pub(crate) fn control(&self, control: Control) {
        self.routes.set(control);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::Counts;

    #[test]
    fn a_managers_trouble_shows_and_a_workers_has_none() {
        let board = Board::starting(ManagerRoutes::new(Control::Starting(String::new())));
        assert_eq!(board.standing().state, SwarmState::Pending);
        board.member(NodeId::new(1), ClusterId::new(2), Role::Manager, String::new());
        board.control(Control::Halted("this manager's disk is full".to_owned()));
        let standing = board.standing();
        assert_eq!((standing.state, standing.error.as_str()), (SwarmState::Error, "this manager's disk is full"));
        board.control(Control::Served(tonic::service::Routes::default(), Counts::of(Default::default)));
        let standing = board.standing();
        assert_eq!((standing.state, standing.control, standing.error.as_str()), (SwarmState::Active, true, ""));
        board.trouble("this manager's disk is full".to_owned());
        assert_eq!((board.standing().state, board.standing().error.is_empty()), (SwarmState::Active, false));
        board.role(Role::Worker);
        board.only_worker();
        assert_eq!((board.standing().state, board.standing().control), (SwarmState::Active, false));
        board.outside();
        assert_eq!(board.standing().state, SwarmState::Inactive);
    }
}
