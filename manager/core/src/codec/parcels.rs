//! Secrets, configs and payloads, there and back. A secret's payload goes into the log, into snapshots, and to nodes with a
//! task that was given it: nowhere else.

use std::sync::Arc;

use skep_proto::id::{ConfigId, SecretId};
use skep_proto::time::UnixMs;
use skep_proto::v1;
use skep_proto::v1::payload_key::Owner;

use super::error::DecodeError;
use super::objects::{bad_id, meta_from_wire, meta_to_wire};
use crate::object::{Data, Parcel, ParcelId, ParcelSpec, Payload, PayloadKey, PayloadVersion};

pub fn secret_to_wire(id: SecretId, parcel: &Parcel) -> v1::Secret {
    let ParcelSpec { name, labels, templated } = ParcelSpec::clone(&parcel.spec);
    v1::Secret {
        id: id.to_vec(),
        meta: meta_to_wire(parcel.meta),
        spec: Some(v1::SecretSpec { name, labels, templated }),
        versions: parcel.versions.iter().map(payload_version_to_wire).collect(),
    }
}

pub(super) fn secret_from_wire(wire: v1::Secret) -> Result<Parcel, DecodeError> {
    let v1::SecretSpec { name, labels, templated } = wire.spec.unwrap_or_default();
    Ok(Parcel {
        id: ParcelId::Secret(SecretId::from_wire(&wire.id).map_err(bad_id("secret", "id"))?),
        meta: meta_from_wire(wire.meta),
        spec: Arc::new(ParcelSpec { name, labels, templated }),
        versions: wire.versions.iter().map(payload_version_from_wire).collect(),
    })
}

pub fn config_to_wire(id: ConfigId, parcel: &Parcel) -> v1::Config {
    let ParcelSpec { name, labels, templated } = ParcelSpec::clone(&parcel.spec);
    v1::Config {
        id: id.to_vec(),
        meta: meta_to_wire(parcel.meta),
        spec: Some(v1::ConfigSpec { name, labels, templated }),
        versions: parcel.versions.iter().map(payload_version_to_wire).collect(),
    }
}

pub(super) fn config_from_wire(wire: v1::Config) -> Result<Parcel, DecodeError> {
    let v1::ConfigSpec { name, labels, templated } = wire.spec.unwrap_or_default();
    Ok(Parcel {
        id: ParcelId::Config(ConfigId::from_wire(&wire.id).map_err(bad_id("config", "id"))?),
        meta: meta_from_wire(wire.meta),
        spec: Arc::new(ParcelSpec { name, labels, templated }),
        versions: wire.versions.iter().map(payload_version_from_wire).collect(),
    })
}

fn payload_version_to_wire(version: &PayloadVersion) -> v1::PayloadVersion {
    v1::PayloadVersion {
        number: version.number,
        created_at_ms: version.created_at.0,
        size: version.size,
        copied_from: version.copied_from.unwrap_or(0),
    }
}

fn payload_version_from_wire(wire: &v1::PayloadVersion) -> PayloadVersion {
    PayloadVersion {
        number: wire.number,
        created_at: UnixMs(wire.created_at_ms),
        size: wire.size,
        copied_from: (wire.copied_from != 0).then_some(wire.copied_from),
    }
}

pub fn payload_key_to_wire(key: PayloadKey) -> v1::PayloadKey {
    let owner = match key.owner {
        ParcelId::Secret(id) => Owner::SecretId(id.to_vec()),
        ParcelId::Config(id) => Owner::ConfigId(id.to_vec()),
    };
    v1::PayloadKey { owner: Some(owner), version: key.version }
}

pub(super) fn payload_key_from_wire(wire: Option<&v1::PayloadKey>) -> Result<PayloadKey, DecodeError> {
    const WHAT: &str = "payload";
    let wire = wire.ok_or(DecodeError::Missing { what: WHAT, field: "key" })?;
    let owner = match wire.owner.as_ref().ok_or(DecodeError::UnknownKind { what: WHAT })? {
        Owner::SecretId(bytes) => ParcelId::Secret(SecretId::from_wire(bytes).map_err(bad_id(WHAT, "secret_id"))?),
        Owner::ConfigId(bytes) => ParcelId::Config(ConfigId::from_wire(bytes).map_err(bad_id(WHAT, "config_id"))?),
    };
    Ok(PayloadKey { owner, version: wire.version })
}

/// With its data, which are shared, not copied.
pub fn payload_to_wire(payload: &Payload) -> v1::Payload {
    v1::Payload { key: Some(payload_key_to_wire(payload.key)), data: payload.data.to_bytes() }
}

pub(super) fn payload_from_wire(wire: v1::Payload) -> Result<Payload, DecodeError> {
    let key = payload_key_from_wire(wire.key.as_ref())?;
    // Read from a slice the bytes are their own, and are taken over.
    Ok(Payload { key, data: Data::new(wire.data.into()) })
}
