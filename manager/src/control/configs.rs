//! `Configs`: see `parcels`. `Get` answers with the data.

use skep_core::codec;
use skep_core::object::{Parcel, ParcelId, ParcelKind, ParcelSpec};
use skep_proto::v1::configs_server::Configs;
use skep_proto::v1::{
    Config, ConfigSpec, CreateConfigRequest, CreateConfigResponse, GetConfigRequest, GetConfigResponse,
    ListConfigsRequest, ListConfigsResponse, RemovePayloadsRequest, RemovePayloadsResponse, RollbackPayloadRequest,
    RotateRequest, RotateResponse, UpdateConfigRequest, UpdateConfigResponse,
};
use skep_proto::validate;
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::{Control, parcels};

const KIND: ParcelKind = ParcelKind::Config;

#[tonic::async_trait]
impl Configs for Control {
    async fn list(&self, request: Request<ListConfigsRequest>) -> Result<Response<ListConfigsResponse>, Status> {
        let (all, version) = self.list_parcels(KIND, request.into_inner().read).await?;
        let configs = all.iter().filter_map(|config| told(config)).collect();
        Ok(Response::new(ListConfigsResponse { configs, version }))
    }

    async fn get(&self, request: Request<GetConfigRequest>) -> Result<Response<GetConfigResponse>, Status> {
        let GetConfigRequest { reference, read, payload_version } = request.into_inner();
        let (config, state) = self.get_parcel(KIND, &reference, read).await?;
        let newest = config.newest().map_or(0, |newest| newest.number);
        let wanted = if payload_version == 0 { newest } else { payload_version };
        let payload = state.payload(config.payload(wanted));
        let data = payload.ok_or_else(|| Status::not_found(parcels::no_version(&config, wanted)))?.data.to_vec();
        let uses = parcels::uses(&state, &config);
        Ok(Response::new(GetConfigResponse { config: told(&config), version: state.version(), uses, data }))
    }

    async fn create(&self, request: Request<CreateConfigRequest>) -> Result<Response<CreateConfigResponse>, Status> {
        let CreateConfigRequest { spec, data, write } = request.into_inner();
        let written = self.create_parcel(KIND, spec_of(spec)?, data, write).await?;
        Ok(Response::new(CreateConfigResponse { id: written.object_id, version: written.version }))
    }

    async fn update(&self, request: Request<UpdateConfigRequest>) -> Result<Response<UpdateConfigResponse>, Status> {
        let UpdateConfigRequest { reference, spec, expect_version, write } = request.into_inner();
        let written = self.relabel_parcel(KIND, &reference, spec_of(spec)?, expect_version, write).await?;
        Ok(Response::new(UpdateConfigResponse { id: written.object_id, version: written.version }))
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
fn spec_of(spec: Option<ConfigSpec>) -> Result<ParcelSpec, Status> {
    let spec = spec.ok_or_else(|| Status::invalid_argument("a config spec is needed"))?;
    validate::config_spec(&spec).map_err(IntoStatus::into_status)?;
    let ConfigSpec { name, labels, templated } = spec;
    Ok(ParcelSpec { name, labels, templated })
}

fn told(parcel: &Parcel) -> Option<Config> {
    match parcel.id {
        ParcelId::Config(id) => Some(codec::config_to_wire(id, parcel)),
        ParcelId::Secret(_) => None,
    }
}
