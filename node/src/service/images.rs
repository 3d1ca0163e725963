//! This host's images: list, inspect, pull, load, import, tag, remove, prune. On a manager, names given here are also
//! written to the swarm, so that services can use them on every node.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use skep_image::config::RunConfig;
use skep_image::{Digest, ImageRecord, LoadError, Policy, Progress, Reference, RemoveError, StoreError};
use skep_proto::v1::image_names_client::ImageNamesClient;
use skep_proto::v1::images_server::Images;
use skep_proto::v1::{
    ImageProgress, ImportImageRequest, InspectImageRequest, InspectImageResponse, ListImagesRequest,
    ListImagesResponse, LoadImageRequest, LocalImage, PruneImagesRequest, PruneImagesResponse, PullImageRequest,
    PutImageNameRequest, RemoveImageRequest, RemoveImageResponse, SwarmState, TagImageRequest, TagImageResponse,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::progress::{self, ProgressStream};
use crate::host::Host;
use crate::membership::Membership;
use crate::registries::{credential, platform};
use crate::upload::Upload;

/// Serves `skep.v1.Images`.
pub(crate) struct ImagesService {
    pub(crate) host: Arc<Host>,
    pub(crate) membership: Arc<Membership>,
}

#[tonic::async_trait]
impl Images for ImagesService {
    type PullStream = ProgressStream;
    type LoadStream = ProgressStream;
    type ImportStream = ProgressStream;

    async fn list(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let in_use = in_use(&self.host);
        let images = self.host.images.store().images().iter().map(|record| shown(record, &in_use)).collect();
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn inspect(&self, request: Request<InspectImageRequest>) -> Result<Response<InspectImageResponse>, Status> {
        let store = self.host.images.store();
        let record =
            store.find(&request.into_inner().reference).map_err(|error| Status::not_found(error.to_string()))?;
        let resolved = store.resolve(&record.digest).map_err(|error| Status::internal(skep_image::chain(&error)))?;
        let config_json = serde_json::to_vec(&resolved.config)
            .map_err(|error| Status::internal(format!("cannot show the image's configuration: {error}")))?;
        Ok(Response::new(InspectImageResponse {
            image: Some(shown(&record, &in_use(&self.host))),
            config_json,
            layers: record.layers.iter().map(|layer| layer.diff_id.to_string()).collect(),
        }))
    }

    async fn pull(&self, request: Request<PullImageRequest>) -> Result<Response<ProgressStream>, Status> {
        let request = request.into_inner();
        if request.platform.is_some() {
            return Err(Status::unimplemented("not supported yet: pulling for another platform"));
        }
        let reference = parse(&request.reference)?;
        let (images, in_use) = (self.host.images.clone(), in_use(&self.host));
        let auth = credential(request.auth);
        Ok(Response::new(progress::stream(move |progress, _| async move {
            let pulled = images.pull(&reference, &auth, progress).await;
            let record = pulled.map_err(|error| Status::failed_precondition(skep_image::chain(&error)))?;
            Ok(vec![held(&record, &in_use)])
        })))
    }

    async fn load(&self, request: Request<Streaming<LoadImageRequest>>) -> Result<Response<ProgressStream>, Status> {
        let pieces = request.into_inner().map(|piece| piece.map(|piece| piece.data));
        let images = self.host.images.clone();
        self.arriving(move |progress| async move {
            let loaded = images.load(Upload::new(pieces), progress).await;
            loaded.map_err(|error| not_taken(&error))
        })
    }

    async fn import(
        &self,
        request: Request<Streaming<ImportImageRequest>>,
    ) -> Result<Response<ProgressStream>, Status> {
        let mut stream = request.into_inner();
        let first = stream.message().await?.ok_or_else(|| Status::invalid_argument("the import is empty"))?;
        let options = import_options(first.options.unwrap_or_default())?;
        let pieces = tokio_stream::once(Ok(first.data)).chain(stream.map(|piece| piece.map(|piece| piece.data)));
        let images = self.host.images.clone();
        self.arriving(move |progress| async move {
            let imported = images.import(Upload::new(pieces), options, progress).await;
            let record = imported.map_err(|error| not_taken(&error))?;
            Ok(vec![record])
        })
    }

    async fn tag(&self, request: Request<TagImageRequest>) -> Result<Response<TagImageResponse>, Status> {
        let TagImageRequest { source, name } = request.into_inner();
        let store = self.host.images.store();
        let record = store.find(&source).map_err(|error| Status::not_found(error.to_string()))?;
        let name = parse(&name)?;
        store.tag(&record.digest, &name).await.map_err(|error| Status::internal(skep_image::chain(&error)))?;
        if self.is_manager() {
            record_name(&self.host, &name, &record).await?;
        }
        Ok(Response::new(TagImageResponse {}))
    }

    async fn remove(&self, request: Request<RemoveImageRequest>) -> Result<Response<RemoveImageResponse>, Status> {
        let RemoveImageRequest { references, force } = request.into_inner();
        let mut answer = RemoveImageResponse::default();
        for reference in &references {
            let in_use = in_use(&self.host);
            let removed = self.host.images.store().remove(reference, &in_use, force).await;
            let removed = removed.map_err(|error| match error {
                RemoveError::Find(error) => Status::not_found(error.to_string()),
                RemoveError::InUse(_) | RemoveError::Named { .. } => Status::failed_precondition(error.to_string()),
                RemoveError::Store(error) => Status::internal(skep_image::chain(&error)),
            })?;
            answer.untagged.extend(removed.untagged.iter().map(Reference::familiar));
            answer.deleted.extend(removed.deleted.iter().map(ToString::to_string));
            answer.freed_bytes += i64::try_from(removed.freed_bytes).unwrap_or(i64::MAX);
        }
        Ok(Response::new(answer))
    }

    async fn prune(&self, request: Request<PruneImagesRequest>) -> Result<Response<PruneImagesResponse>, Status> {
        let policy =
            Policy { named: request.into_inner().all, unused_for: std::time::Duration::ZERO, until_bytes: None };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let removed = self.host.images.store().prune(&policy, &in_use(&self.host), now).await;
        let removed = removed.map_err(|error| Status::internal(skep_image::chain(&error)))?;
        Ok(Response::new(PruneImagesResponse {
            deleted: removed.deleted.iter().map(ToString::to_string).collect(),
            freed_bytes: i64::try_from(removed.freed_bytes).unwrap_or(i64::MAX),
        }))
    }
}

impl ImagesService {
    /// Load and import: the images that came, and their names in the swarm.
    fn arriving<F>(&self, work: impl FnOnce(Progress) -> F) -> Result<Response<ProgressStream>, Status>
    where
        F: Future<Output = Result<Vec<ImageRecord>, Status>> + Send + 'static,
    {
        let (host, in_use) = (Arc::clone(&self.host), in_use(&self.host));
        let (is_manager, in_swarm) = (self.is_manager(), self.membership.standing().state == SwarmState::Active);
        Ok(Response::new(progress::stream(move |progress, warnings: mpsc::Sender<_>| {
            let work = work(progress);
            async move {
                let records = work.await?;
                for record in &records {
                    for name in record.tags() {
                        let warning = if is_manager {
                            record_name(&host, name, record).await.err().map(|status| status.message().to_owned())
                        } else {
                            in_swarm.then(|| worker_hint(record, name))
                        };
                        if let Some(warning) = warning {
                            // The client is gone: there is nobody to warn.
                            let _ = warnings.send(Ok(ImageProgress { warning, ..ImageProgress::default() })).await;
                        }
                    }
                }
                Ok(records.iter().map(|record| held(record, &in_use)).collect())
            }
        })))
    }

    fn is_manager(&self) -> bool {
        let standing = self.membership.standing();
        standing.state == SwarmState::Active && standing.role == Some(skep_identity::Role::Manager)
    }
}

/// Writes a name to the swarm, through this host's own manager.
async fn record_name(host: &Host, name: &Reference, record: &ImageRecord) -> Result<(), Status> {
    let channel = skep_identity::transport::unix_channel(&host.config.socket);
    let request = PutImageNameRequest {
        name: name.canonical(),
        digest: record.digest.to_string(),
        platforms: vec![platform(record.platform.clone())],
        write: None,
    };
    let put = ImageNamesClient::new(channel).put(request).await;
    put.map(drop).map_err(|status| {
        let name = name.familiar();
        Status::unavailable(format!("the name {name} was not recorded in the swarm: {}", status.message()))
    })
}

fn worker_hint(record: &ImageRecord, name: &Reference) -> String {
    let (name, digest) = (name.familiar(), record.digest);
    format!(
        "{name} is known on this node only, for it is a worker; services can use the image as {}@{digest}",
        name.split(':').next().unwrap_or(&name)
    )
}

/// An archive that was not taken: it is to blame, or this node is.
fn not_taken(error: &LoadError) -> Status {
    let text = skep_image::chain(error);
    match error.store() {
        Some(StoreError::DiskFull(_)) => Status::resource_exhausted(text),
        Some(_) => Status::internal(text),
        None => Status::invalid_argument(text),
    }
}

fn parse(reference: &str) -> Result<Reference, Status> {
    Reference::parse(reference).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn import_options(options: skep_proto::v1::ImportOptions) -> Result<skep_image::ImportOptions, Status> {
    if options.platform.is_some() {
        return Err(Status::unimplemented("not supported yet: importing for another platform"));
    }
    let mut config = RunConfig::default();
    for line in &options.changes {
        skep_image::change::apply(&mut config, line).map_err(|error| Status::invalid_argument(error.to_string()))?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(skep_image::ImportOptions {
        name: if options.reference.is_empty() { None } else { Some(parse(&options.reference)?) },
        config,
        message: (!options.message.is_empty()).then_some(options.message),
        created: Some(now),
        platform: None,
    })
}

/// Images that containers of this host have.
fn in_use(host: &Host) -> HashSet<Digest> {
    let store = host.images.store();
    store.images().iter().map(|record| record.digest).filter(|digest| store.is_pinned(digest)).collect()
}

fn held(record: &ImageRecord, in_use: &HashSet<Digest>) -> ImageProgress {
    ImageProgress { status: "done".to_owned(), image: Some(shown(record, in_use)), ..ImageProgress::default() }
}

fn shown(record: &ImageRecord, in_use: &HashSet<Digest>) -> LocalImage {
    LocalImage {
        digest: record.digest.to_string(),
        names: record.names.iter().map(Reference::familiar).collect(),
        size_bytes: i64::try_from(record.content_bytes()).unwrap_or(i64::MAX),
        created_at_ms: i64::try_from(record.held_since).unwrap_or(i64::MAX).saturating_mul(1000),
        platform: Some(platform(record.platform.clone())),
        in_use: in_use.contains(&record.digest),
    }
}

#[cfg(test)]
mod tests {
    use skep_image::store::LayerError;
    use skep_image::{LoadError, PullError, StoreError};
    use tonic::Code;

    use super::not_taken;

    #[test]
    fn a_full_disk_is_not_the_archives_fault() {
        let full = || StoreError::DiskFull("/data/images".into());
        for error in [
            LoadError::Store(full()),
            LoadError::Image(PullError::Store(full())),
            LoadError::Image(PullError::Layer(LayerError::Store(full()))),
        ] {
            assert_eq!(not_taken(&error).code(), Code::ResourceExhausted, "{error}");
        }
        assert_eq!(not_taken(&LoadError::NoImages).code(), Code::InvalidArgument);
    }
}
