//! The data of secrets and configs on this node: in memory only, wiped when the last holder lets go.
//!
//! Held by the assignment set for as long as the managers assign it, lent to tasks that are being prepared. Never in the
//! record, never printed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use skep_proto::id::{ConfigId, IdError, SecretId};
use skep_proto::v1::payload_key::Owner;
use skep_proto::v1::{AssignedPayload, ContainerSpec, PayloadKey, TaskTemplate};
use zeroize::{Zeroize, Zeroizing};

/// What a payload is a version of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PayloadOwner {
    /// A secret.
    Secret(SecretId),
    /// A config.
    Config(ConfigId),
}

/// Names a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PayloadId {
    /// Of what.
    pub owner: PayloadOwner,
    /// Which version.
    pub version: u64,
}

/// One version's data.
#[derive(Clone, PartialEq, Eq)]
pub struct HeldPayload {
    /// The bytes.
    pub data: Arc<Zeroizing<Vec<u8>>>,
    /// Placeholders in them are to be filled in.
    pub templated: bool,
}

/// Payloads by name.
pub type Payloads = BTreeMap<PayloadId, HeldPayload>;

impl fmt::Debug for HeldPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldPayload").field("templated", &self.templated).finish_non_exhaustive()
    }
}

impl PayloadId {
    /// Reads the wire form; one without an owner has a bad id.
    pub fn from_wire(key: &PayloadKey) -> Result<Self, IdError> {
        let owner = match &key.owner {
            Some(Owner::SecretId(id)) => PayloadOwner::Secret(SecretId::from_wire(id)?),
            Some(Owner::ConfigId(id)) => PayloadOwner::Config(ConfigId::from_wire(id)?),
            None => PayloadOwner::Secret(SecretId::from_wire(&[])?),
        };
        Ok(Self { owner, version: key.version })
    }
}

impl HeldPayload {
    /// Takes a message's data over. The message's own copy is wiped where nothing else shares its buffer.
    pub fn take(assigned: AssignedPayload) -> Self {
        let data = assigned.payload.map(|payload| payload.data).unwrap_or_default();
        let held = Arc::new(Zeroizing::new(data.to_vec()));
        wipe(data);
        Self { data: held, templated: assigned.templated }
    }
}

fn wipe(data: Bytes) {
    if let Ok(mut data) = data.try_into_mut() {
        data.as_mut().zeroize();
    }
}

/// The payloads that a container uses; references that name none are left out.
pub fn of_container(container: &ContainerSpec) -> impl Iterator<Item = PayloadId> + '_ {
    let secrets = container.secrets.iter().filter_map(|one| {
        let owner = PayloadOwner::Secret(SecretId::from_wire(&one.secret_id).ok()?);
        Some(PayloadId { owner, version: one.version })
    });
    let configs = container.configs.iter().filter_map(|one| {
        let owner = PayloadOwner::Config(ConfigId::from_wire(&one.config_id).ok()?);
        Some(PayloadId { owner, version: one.version })
    });
    secrets.chain(configs)
}

/// The payloads that a task uses.
pub fn of_template(template: &TaskTemplate) -> BTreeSet<PayloadId> {
    template.containers.iter().flat_map(of_container).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::Payload;

    use super::*;

    #[test]
    fn data_are_taken_over_and_not_printed() {
        let payload = Payload { key: None, data: b"hunter2".to_vec().into() };
        let held = HeldPayload::take(AssignedPayload { payload: Some(payload), templated: true });
        assert_eq!(held.data.as_slice(), b"hunter2");
        let printed = format!("{held:?}");
        assert!(printed.contains("templated: true") && !printed.contains("hunter2") && !printed.contains("104"));
    }

    #[test]
    fn an_owner_is_needed() {
        let secret = PayloadKey { owner: Some(Owner::SecretId(SecretId::new(3).to_vec())), version: 2 };
        let id = PayloadId { owner: PayloadOwner::Secret(SecretId::new(3)), version: 2 };
        assert_eq!(PayloadId::from_wire(&secret), Ok(id));
        assert!(PayloadId::from_wire(&PayloadKey::default()).is_err());
    }
}
