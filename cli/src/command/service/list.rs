//! `skep service ls`.

use clap::Args;
use serde_json::{Map, Value};
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{ListServicesRequest, ServiceSummary};

use crate::command::context::{Context, ReadFlags};
use crate::command::listing::{self, ListFlags, TruncFlag};
use crate::command::task_table::without_digest;
use crate::failure::Failure;
use crate::output::format::Listing;
use crate::output::natural;
use crate::parse::filter::Filters;
use crate::view::{self, ports, template};

#[derive(Args, Clone, Debug)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    flags: ListFlags,
    #[command(flatten)]
    trunc: TruncFlag,
    #[command(flatten)]
    read: ReadFlags,
}

/// Docker's table of services.
const SERVICES: Listing = Listing {
    template: "{{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}",
    fields: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
        ("Labels", "LABELS"),
    ],
    quiet: "ID",
};

pub(crate) async fn run(context: &Context, args: &LsArgs) -> Result<(), Failure> {
    let format = args.flags.format()?;
    let filters = Filters::parse(&args.flags.filter, &["id", "label", "mode", "name"], &[])?;
    filters.only("mode", &["replicated", "global", "replicated-job", "global-job"])?;
    let client = context.connect_to_read(args.read).await?;
    let list = async |read| {
        let pages = client.services().list(ListServicesRequest { read }).await?.into_inner();
        listing::collect(pages, |page| page.services).await
    };
    let mut services = client.read(list).await?;
    services.retain(|summary| matches(summary, &filters));
    services.sort_by(|a, b| natural::compare(name(a), name(b)));
    let shorten = format.is_table() && !args.trunc.no_trunc;
    let rows: Vec<_> = services.iter().map(|summary| row(summary, shorten, args.trunc.no_trunc)).collect();
    listing::print(&SERVICES, &rows, &format)
}

fn name(summary: &ServiceSummary) -> &str {
    let spec = summary.service.as_ref().and_then(|service| service.spec.as_ref());
    spec.map_or("", |spec| &spec.name)
}

fn mode(summary: &ServiceSummary) -> &'static str {
    let spec = summary.service.as_ref().and_then(|service| service.spec.as_ref());
    match spec.and_then(|spec| spec.mode.as_ref()) {
        Some(Mode::Global(_)) => "global",
        Some(Mode::Replicated(_)) | None => "replicated",
    }
}

fn matches(summary: &ServiceSummary, filters: &Filters) -> bool {
    let service = summary.service.clone().unwrap_or_default();
    let labels = service.spec.unwrap_or_default().labels;
    filters.passes("id", |prefix| view::id(&service.id).starts_with(prefix))
        && filters.passes("name", |prefix| name(summary).starts_with(prefix))
        && filters.passes("mode", |wanted| wanted == mode(summary))
        && filters.labels("label", &labels)
}

fn row(summary: &ServiceSummary, shorten: bool, no_trunc: bool) -> Map<String, Value> {
    let service = summary.service.clone().unwrap_or_default();
    let spec = service.spec.unwrap_or_default();
    let template = summary.revision.clone().and_then(|revision| revision.template).unwrap_or_default();
    let image = template.containers.first().map(template::image).unwrap_or_default();
    let image = if no_trunc { image } else { without_digest(&image) };
    let most = template.placement.map_or(0, |placement| placement.max_replicas_per_node);
    let mut replicas = format!("{}/{}", summary.running, summary.desired);
    if most > 0 {
        replicas.push_str(&format!(" (max {most} per node)"));
    }
    let id = if shorten { view::short_id(&service.id) } else { view::id(&service.id) };
    let labels: Vec<String> = spec.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    listing::row([
        ("ID", id.into()),
        ("Name", spec.name.into()),
        ("Mode", mode(summary).into()),
        ("Replicas", replicas.into()),
        ("Image", image.into()),
        ("Ports", ports::of_the_mesh(&service.ports).into()),
        ("Labels", labels.join(",").into()),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{ContainerSpec, Placement, ReplicatedMode, Revision, Service, ServiceSpec, TaskTemplate};

    use super::*;
    use crate::output::format::Format;

    fn web() -> ServiceSummary {
        ServiceSummary {
            service: Some(Service {
                id: vec![1; 16],
                spec: Some(ServiceSpec {
                    name: "web".to_owned(),
                    mode: Some(Mode::Replicated(ReplicatedMode { replicas: 3 })),
                    ..ServiceSpec::default()
                }),
                ..Service::default()
            }),
            revision: Some(Revision {
                template: Some(TaskTemplate {
                    containers: vec![ContainerSpec {
                        image: "nginx:1".to_owned(),
                        image_digest: "sha256:ab".to_owned(),
                        ..ContainerSpec::default()
                    }],
                    placement: Some(Placement { max_replicas_per_node: 2, ..Placement::default() }),
                    ..TaskTemplate::default()
                }),
                ..Revision::default()
            }),
            running: 2,
            desired: 3,
        }
    }

    #[test]
    fn the_table_is_dockers() {
        let table = SERVICES.render(&[row(&web(), true, false)], &Format::Table(None)).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "ID             NAME      MODE         REPLICAS               IMAGE     PORTS");
        assert!(lines[1].contains("web       replicated   2/3 (max 2 per node)   nginx:1   "), "{}", lines[1]);
    }

    #[test]
    fn no_trunc_shows_the_digest() {
        assert_eq!(row(&web(), false, true)["Image"], "nginx:1@sha256:ab");
        assert_eq!(row(&web(), false, true)["ID"].as_str().unwrap().len(), 25);
    }
}
