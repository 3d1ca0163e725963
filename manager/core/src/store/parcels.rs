//! Secrets, configs and their payloads: by id, by name, and which revisions use which payload. The index of uses is kept by
//! `put` and `remove` of revisions; nothing else writes it.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use skep_proto::id::{ConfigId, SecretId, ServiceId};
use skep_proto::v1::{FileTarget, TaskTemplate};

use super::{Object, State};
use crate::object::{Parcel, ParcelId, ParcelKind, Payload, PayloadKey, Revision, RevisionKey};

/// Parcels, payloads and their indexes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ParcelTable {
    by_id: OrdMap<ParcelId, Arc<Parcel>>,
    by_name: OrdMap<(ParcelKind, String), ParcelId>,
    payloads: OrdMap<PayloadKey, Arc<Payload>>,
    /// Kept revisions whose templates name a payload, also one that is not there.
    used_by: OrdSet<(PayloadKey, RevisionKey)>,
}

/// One use of a secret or config by a container of a template.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PayloadRef<'a> {
    /// Position of the container in the template.
    pub container: usize,
    pub key: PayloadKey,
    /// Rotations leave it alone.
    pub pinned: bool,
    /// Name of the secret or config.
    pub name: &'a str,
    pub target: Option<&'a FileTarget>,
}

/// The secrets and configs that containers of a template use, in its order. An id that does not parse, which `apply`
/// refuses, is left out.
pub fn payload_refs(template: &TaskTemplate) -> impl Iterator<Item = PayloadRef<'_>> {
    template.containers.iter().enumerate().flat_map(|(position, container)| {
        let secrets = container.secrets.iter().filter_map(move |one| {
            let owner = ParcelId::Secret(SecretId::from_wire(&one.secret_id).ok()?);
            let key = PayloadKey { owner, version: one.version };
            Some(PayloadRef {
                container: position,
                key,
                pinned: one.pinned,
                name: &one.name,
                target: one.target.as_ref(),
            })
        });
        let configs = container.configs.iter().filter_map(move |one| {
            let owner = ParcelId::Config(ConfigId::from_wire(&one.config_id).ok()?);
            let key = PayloadKey { owner, version: one.version };
            Some(PayloadRef {
                container: position,
                key,
                pinned: one.pinned,
                name: &one.name,
                target: one.target.as_ref(),
            })
        });
        secrets.chain(configs)
    })
}

/// How many uses there are, those with a bad id too.
pub(crate) fn payload_ref_count(template: &TaskTemplate) -> usize {
    template.containers.iter().map(|container| container.secrets.len() + container.configs.len()).sum()
}

impl ParcelTable {
    pub(super) fn put(&mut self, parcel: Arc<Parcel>) -> Option<Arc<Parcel>> {
        let (kind, id) = (parcel.id.kind(), parcel.id);
        let old = self.by_id.insert(id, Arc::clone(&parcel));
        if let Some(old) = &old {
            if old.spec.name == parcel.spec.name {
                return Some(Arc::clone(old));
            }
            self.by_name.remove(&(kind, old.spec.name.clone()));
        }
        self.by_name.insert((kind, parcel.spec.name.clone()), id);
        old
    }

    pub(super) fn remove(&mut self, id: ParcelId) -> Option<Arc<Parcel>> {
        let old = self.by_id.remove(&id)?;
        self.by_name.remove(&(id.kind(), old.spec.name.clone()));
        Some(old)
    }

    pub(super) fn put_payload(&mut self, payload: Arc<Payload>) -> Option<Arc<Payload>> {
        self.payloads.insert(payload.key, payload)
    }

    pub(super) fn remove_payload(&mut self, key: PayloadKey) -> Option<Arc<Payload>> {
        self.payloads.remove(&key)
    }

    /// Brings the uses up to date after a revision changed.
    pub(super) fn reindex(&mut self, old: Option<&Object>, new: Option<&Object>) {
        if let Some(Object::Revision(old)) = old {
            for one in payload_refs(&old.template) {
                self.used_by.remove(&(one.key, old.key));
            }
        }
        if let Some(Object::Revision(new)) = new {
            self.used_by.extend(payload_refs(&new.template).map(|one| (one.key, new.key)));
        }
    }
}

const FIRST: RevisionKey = RevisionKey { service: ServiceId::new(0), number: 0 };
const LAST: RevisionKey = RevisionKey { service: ServiceId::new(u128::MAX), number: u64::MAX };

impl State {
    /// The secret or config of that id.
    pub fn parcel(&self, id: ParcelId) -> Option<&Arc<Parcel>> {
        self.parcels.by_id.get(&id)
    }

    /// All secrets by id, then all configs.
    pub fn parcels(&self) -> impl DoubleEndedIterator<Item = &Arc<Parcel>> {
        self.parcels.by_id.values()
    }

    /// Those of one kind, by id.
    pub fn parcels_of(&self, kind: ParcelKind) -> impl DoubleEndedIterator<Item = &Arc<Parcel>> {
        let (low, high) = match kind {
            ParcelKind::Secret => (ParcelId::Secret(SecretId::new(0)), ParcelId::Secret(SecretId::new(u128::MAX))),
            ParcelKind::Config => (ParcelId::Config(ConfigId::new(0)), ParcelId::Config(ConfigId::new(u128::MAX))),
        };
        self.parcels_between(low, high)
    }

    /// How many secrets and configs there are.
    pub fn parcel_count(&self) -> usize {
        self.parcels.by_id.len()
    }

    /// The secret or config of that exact name.
    pub fn parcel_by_name(&self, kind: ParcelKind, name: &str) -> Option<&Arc<Parcel>> {
        self.parcel(*self.parcels.by_name.get(&(kind, name.to_owned()))?)
    }

    /// Secrets or configs whose ids lie in the range, by id.
    pub(super) fn parcels_between(
        &self,
        low: ParcelId,
        high: ParcelId,
    ) -> impl DoubleEndedIterator<Item = &Arc<Parcel>> {
        self.parcels.by_id.range(low..=high).map(|(_, parcel)| parcel)
    }

    /// One version's data.
    pub fn payload(&self, key: PayloadKey) -> Option<&Arc<Payload>> {
        self.parcels.payloads.get(&key)
    }

    /// All payloads, by owner and version.
    pub fn payloads(&self) -> impl DoubleEndedIterator<Item = &Arc<Payload>> {
        self.parcels.payloads.values()
    }

    /// How many payloads there are.
    pub fn payload_count(&self) -> usize {
        self.parcels.payloads.len()
    }

    /// Payloads of one secret or config, oldest first.
    pub fn payloads_of(&self, owner: ParcelId) -> impl DoubleEndedIterator<Item = &Arc<Payload>> {
        let key = |version| PayloadKey { owner, version };
        self.parcels.payloads.range(key(0)..=key(u64::MAX)).map(|(_, payload)| payload)
    }

    /// Kept revisions that use one version of a secret or config, by service and number.
    pub fn revisions_with(&self, key: PayloadKey) -> impl Iterator<Item = &Arc<Revision>> {
        self.revisions_with_any((key, FIRST), (key, LAST))
    }

    /// Kept revisions that use any version of a secret or config, by version, service and number.
    pub fn revisions_with_parcel(&self, owner: ParcelId) -> impl Iterator<Item = &Arc<Revision>> {
        let key = |version| PayloadKey { owner, version };
        self.revisions_with_any((key(0), FIRST), (key(u64::MAX), LAST))
    }

    fn revisions_with_any(
        &self,
        low: (PayloadKey, RevisionKey),
        high: (PayloadKey, RevisionKey),
    ) -> impl Iterator<Item = &Arc<Revision>> {
        self.parcels.used_by.range(low..=high).filter_map(|(_, revision)| self.revision(*revision))
    }
}
