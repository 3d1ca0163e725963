//! `Secrets`: see `parcels`. No answer here has data.

use skep_core::codec;
use skep_core::object::{Parcel, ParcelId, ParcelKind, ParcelSpec};
use skep_proto::v1::secrets_server::Secrets;
use skep_proto::v1::{
    CreateSecretRequest, CreateSecretResponse, GetSecretRequest, GetSecretResponse, ListSecretsRequest,
    ListSecretsResponse, RemovePayloadsRequest, RemovePayloadsResponse, RollbackPayloadRequest, RotateRequest,
    RotateResponse, Secret, SecretSpec, UpdateSecretRequest, UpdateSecretResponse,
};
use skep_proto::validate;
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::{Control, parcels};

const KIND: ParcelKind = ParcelKind::Secret;

#[tonic::async_trait]
impl Secrets for Control {
    async fn list(&self, request: Request<ListSecretsRequest>) -> Result<Response<ListSecretsResponse>, Status> {
        let (all, version) = self.list_parcels(KIND, request.into_inner().read).await?;
        let secrets = all.iter().filter_map(|secret| told(secret)).collect();
        Ok(Response::new(ListSecretsResponse { secrets, version }))
    }

    async fn get(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let GetSecretRequest { reference, read } = request.into_inner();
        let (secret, state) = self.get_parcel(KIND, &reference, read).await?;
        let uses = parcels::uses(&state, &secret);
        Ok(Response::new(GetSecretResponse { secret: told(&secret), version: state.version(), uses }))
    }

    async fn create(&self, request: Request<CreateSecretRequest>) -> Result<Response<CreateSecretResponse>, Status> {
        let CreateSecretRequest { spec, data, write } = request.into_inner();
        let written = self.create_parcel(KIND, spec_of(spec)?, data, write).await?;
        Ok(Response::new(CreateSecretResponse { id: written.object_id, version: written.version }))
    }

    async fn update(&self, request: Request<UpdateSecretRequest>) -> Result<Response<UpdateSecretResponse>, Status> {
        let UpdateSecretRequest { reference, spec, expect_version, write } = request.into_inner();
        let written = self.relabel_parcel(KIND, &reference, spec_of(spec)?, expect_version, write).await?;
        Ok(Response::new(UpdateSecretResponse { id: written.object_id, version: written.version }))
    }

    async fn rotate(&self, request: Request<RotateRequest>) -> Result<Response<RotateResponse>, Status> {
        self.rotate_parcel(KIND, request.into_inner()).await.map(Response::new)
    }

    async fn rollback(&self, request: Request<RollbackPayloadRequest>) -> Result<Response<RotateResponse>, Status> {
        self.roll_back_parcel(KIND, request.into_inner()).await.map(Response::new)
    }

    async fn remove(
        &self,
        request: Request<RemovePayloadsRequest>,
    ) -> Result<Response<RemovePayloadsResponse>, Status> {
        self.remove_parcel(KIND, request.into_inner()).await.map(Response::new)
    }
}

#[allow(clippy::result_large_err)]
fn spec_of(spec: Option<SecretSpec>) -> Result<ParcelSpec, Status> {
    let spec = spec.ok_or_else(|| Status::invalid_argument("a secret spec is needed"))?;
    validate::secret_spec(&spec).map_err(IntoStatus::into_status)?;
    let SecretSpec { name, labels, templated } = spec;
    Ok(ParcelSpec { name, labels, templated })
}

fn told(parcel: &Parcel) -> Option<Secret> {
    match parcel.id {
        ParcelId::Secret(id) => Some(codec::secret_to_wire(id, parcel)),
        ParcelId::Config(_) => None,
    }
}
