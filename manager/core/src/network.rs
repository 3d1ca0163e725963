//! Decisions about networks: which subnet and VNI a new one gets, the addresses of services, tasks and nodes, published
//! ports, and who is where for the nodes' tables. Pure; called by the control API, the scheduler and the dispatcher.

mod addresses;
pub mod endpoint;
pub mod health;
mod make;
mod nodes;
mod pools;
pub mod table;
mod vni;

pub use addresses::{Addresses, Cursors, NoAddress, given_range};
pub use endpoint::{Endpoint, EndpointError};
pub use make::{INGRESS_NAME, NetworkError, ingress_spec, make, make_ingress};
pub use nodes::{concerns as concerns_nodes, plan as plan_nodes};
pub use pools::{DEFAULT_POOL, DEFAULT_SUBNET_LENGTH, Pools};

/// From which feature level of the swarm on there are networks: managers below it would read them as something else.
pub const FEATURE_LEVEL: u32 = 2;

/// Whether all managers understand networks. A swarm that is being made has only the one.
fn all_managers_know(state: &crate::store::State) -> bool {
    state.cluster().is_none_or(|cluster| cluster.feature_level >= FEATURE_LEVEL)
}

#[cfg(test)]
mod addresses_test;
#[cfg(test)]
mod endpoint_test;
#[cfg(test)]
mod make_test;
#[cfg(test)]
mod nodes_test;
#[cfg(test)]
mod testing;
