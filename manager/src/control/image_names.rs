//! Names that operators give to image digests: list, put, remove.

use skep_core::change::{Change, Op};
use skep_core::codec;
use skep_core::object::{ImageName, Meta};
use skep_proto::v1::image_names_server::ImageNames;
use skep_proto::v1::{
    ListImageNamesRequest, ListImageNamesResponse, PutImageNameRequest, PutImageNameResponse, RemoveImageNameRequest,
    RemoveImageNameResponse,
};
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::services::request_id;
use super::{Control, read};

#[tonic::async_trait]
impl ImageNames for Control {
    async fn list(&self, request: Request<ListImageNamesRequest>) -> Result<Response<ListImageNamesResponse>, Status> {
        let state = read::state(&self.store, request.into_inner().read).await?;
        let names = state.image_names().map(|name| codec::image_name_to_wire(name)).collect();
        Ok(Response::new(ListImageNamesResponse { names, version: state.version() }))
    }

    async fn put(&self, request: Request<PutImageNameRequest>) -> Result<Response<PutImageNameResponse>, Status> {
        let request = request.into_inner();
        let name = self.registries.parse(&request.name).map_err(IntoStatus::into_status)?;
        let digest = self.registries.parse(&format!("name@{}", request.digest)).map_err(IntoStatus::into_status)?;
        if name.digest.is_some() || digest.digest.is_none() {
            return Err(Status::invalid_argument("an image name needs a tag, not a digest, and a digest to point to"));
        }
        let image = ImageName {
            name: name.canonical.clone(),
            meta: Meta::default(),
            digest: request.digest,
            platforms: request.platforms,
        };
        let state = read::fresh(&self.store).await?;
        let change = match state.image_name(&name.canonical) {
            Some(old) if old.digest == image.digest && old.platforms == image.platforms => {
                return Ok(Response::new(PutImageNameResponse { name: Some(codec::image_name_to_wire(old)) }));
            }
            Some(old) => Change::update(old.meta.version, Op::PutImageName(image)),
            None => Change::create(Op::PutImageName(image)),
        };
        let id = request_id(request.write)?;
        let written = self.store.write(id, Vec::new(), vec![change]).await.map_err(IntoStatus::into_status)?;
        self.store.applied(written.version).await;
        let stored = self.store.state().image_name(&name.canonical).map(|name| codec::image_name_to_wire(name));
        Ok(Response::new(PutImageNameResponse { name: stored }))
    }

    async fn remove(
        &self,
        request: Request<RemoveImageNameRequest>,
    ) -> Result<Response<RemoveImageNameResponse>, Status> {
        let request = request.into_inner();
        let name = self.registries.parse(&request.name).map_err(IntoStatus::into_status)?;
        let state = read::fresh(&self.store).await?;
        let id = request_id(request.write)?;
        if id.is_some_and(|id| state.request(id).is_some()) {
            // The first try removed it.
            return Ok(Response::new(RemoveImageNameResponse {}));
        }
        let Some(stored) = state.image_name(&name.canonical) else {
            return Err(Status::not_found(format!("no such image name: {}", request.name)));
        };
        let change = Change::update(stored.meta.version, Op::RemoveImageName(name.canonical));
        self.store.write(id, Vec::new(), vec![change]).await.map_err(IntoStatus::into_status)?;
        Ok(Response::new(RemoveImageNameResponse {}))
    }
}
