//! What a service asks of networks: names become ids; virtual addresses and ports are chosen.

use skep_core::network::{Endpoint, EndpointError, endpoint};
use skep_core::object::Service;
use skep_core::store::State;
use skep_proto::id::NetworkId;
use skep_proto::v1::{PublishMode, ServiceSpec, TaskTemplate};
use tonic::Status;

use crate::control::error::IntoStatus;

/// Fills in the ids of the networks that a template names. A name that is not there is the caller's mistake.
#[allow(clippy::result_large_err)]
pub(super) fn resolve_names(state: &State, template: &mut TaskTemplate) -> Result<(), Status> {
    let mut seen: Vec<NetworkId> = Vec::new();
    for attachment in &mut template.networks {
        let by_id = NetworkId::from_wire(&attachment.network_id).ok().map(|id| id.to_string()).unwrap_or_default();
        let reference = if attachment.name.is_empty() { &by_id } else { &attachment.name };
        let missing = || Status::not_found(format!("network {reference} not found: see `skep network ls`"));
        let network = match state.find_network(reference) {
            Ok(network) => network,
            Err(ambiguous @ skep_core::store::FindError::Ambiguous { .. }) => return Err(ambiguous.into_status()),
            Err(skep_core::store::FindError::NotFound { .. }) => return Err(missing()),
        };
        if seen.contains(&network.id) {
            let name = &network.spec.name;
            return Err(Status::invalid_argument(format!("invalid networks: network {name} is named twice")));
        }
        seen.push(network.id);
        attachment.network_id = network.id.to_vec();
        attachment.name.clone_from(&network.spec.name);
    }
    Ok(())
}

/// What the service will have: see [`endpoint::resolve`].
#[allow(clippy::result_large_err)]
pub(super) fn resolve_endpoint(
    state: &State,
    spec: &ServiceSpec,
    template: &TaskTemplate,
    present: Option<&Service>,
) -> Result<Endpoint, Status> {
    endpoint::resolve(state, spec, template, present, rand::random()).map_err(IntoStatus::into_status)
}

/// Whether tasks must be replaced for the service to have other ports: they claim ports of their hosts, or have no address
/// in the routing mesh yet. What else changes about an endpoint takes effect at once.
pub(super) fn ports_roll_out(service: &Service, new: &Endpoint) -> bool {
    let host = |port: &&skep_proto::v1::PortSpec| port.mode() == PublishMode::Host;
    let same = service.ports.iter().filter(host).eq(new.ports.iter().filter(host));
    !same || endpoint::joins_mesh(service, &new.ports)
}

impl IntoStatus for EndpointError {
    fn into_status(self) -> Status {
        let message = self.to_string();
        match self {
            Self::NetworkGone(_) => Status::not_found(message),
            Self::AttachesToIngress(_) | Self::Outside { .. } | Self::NeverFree { .. } => {
                Status::invalid_argument(message)
            }
            Self::NoIngress | Self::PortTaken { .. } | Self::PortOfSwarm { .. } => Status::failed_precondition(message),
            Self::NoAddress(_) | Self::NoPort => Status::resource_exhausted(message),
        }
    }
}
