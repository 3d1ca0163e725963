//! `skep client …`: people who may call the managers from anywhere. The key is made here and never leaves: the managers sign a
//! request for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value};
use skep_identity::ClientKey;
use skep_proto::v1::{
    Client as Person, ClientRole, CreateClientRequest, GetClientRequest, ListClientsRequest, RemoveClientRequest,
};
use skep_proto::validate;

use super::context::{Context, ReadFlags};
use super::inspect::{self, InspectFlags};
use super::listing::{self, ListFlags};
use super::outcome::Outcome;
use crate::client::{Client, write};
use crate::failure::Failure;
use crate::output::format::Listing;
use crate::output::{self, natural, time};
use crate::parse::duration;
use crate::parse::filter::Filters;
use crate::remote::bundle::{Bundle, role_name};
use crate::remote::store::write_new;
use crate::view::{self, MetaView};

#[derive(Subcommand, Debug)]
pub(crate) enum ClientCommand {
    /// Make a client: a file with a key, a certificate and the managers' addresses, for `skep context create`.
    Create(CreateArgs),
    /// List the clients.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about clients.
    Inspect(InspectArgs),
    /// Remove clients: their certificates are worth nothing from then on, and their calls end.
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

/// What a client may do.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoleName {
    /// Everything.
    Admin,
    /// Services, secrets, configs, networks and image names; not nodes, clients, and the swarm itself.
    Operator,
    /// Look, and change nothing; no tokens, no keys.
    Viewer,
}

impl From<RoleName> for ClientRole {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Admin => Self::Admin,
            RoleName::Operator => Self::Operator,
            RoleName::Viewer => Self::Viewer,
        }
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArgs {
    /// What the client may do.
    #[arg(long, value_enum)]
    role: RoleName,
    /// Life of the certificate, at least 1h [default: 2160h].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    expiry: Option<Duration>,
    /// File to write, or directory for NAME.skep; `-` is standard output.
    #[arg(short, long, value_name = "FILE", default_value = ".")]
    output: String,
    /// Name.
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    flags: ListFlags,
    #[command(flatten)]
    read: ReadFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    flags: InspectFlags,
    #[command(flatten)]
    read: ReadFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

const CLIENTS: Listing = Listing {
    template: "{{.ID}}\t{{.Name}}\t{{.Role}}\t{{.CreatedAt}}\t{{.Expires}}",
    fields: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Role", "ROLE"),
        ("CreatedAt", "CREATED"),
        ("Expires", "CERTIFICATE EXPIRES"),
    ],
    quiet: "ID",
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ClientView {
    #[serde(rename = "ID")]
    id: String,
    #[serde(flatten)]
    meta: MetaView,
    name: String,
    role: &'static str,
    certificate_expires_at: String,
}

impl From<Person> for ClientView {
    fn from(person: Person) -> Self {
        Self {
            id: view::id(&person.id),
            meta: person.meta.as_ref().into(),
            role: role_name(person.role()),
            certificate_expires_at: time::rfc3339_ms(person.cert_not_after_ms),
            name: person.name,
        }
    }
}

impl ClientCommand {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create(context, args).await,
            Self::Ls(args) => list(context, args).await,
            Self::Inspect(args) => {
                inspect::run(context, args.read, &args.names, &args.flags, async |client, reference| {
                    Ok(ClientView::from(get(client, reference).await?))
                })
                .await
            }
            Self::Rm(args) => remove(context, args).await,
        }
    }
}

async fn get(client: &Client, reference: &str) -> Result<Person, Failure> {
    let call = async |read| client.people().get(GetClientRequest { reference: reference.to_owned(), read }).await;
    let answer = client.read(call).await.map_err(|status| Failure::from_lookup("client", reference, status))?;
    Ok(answer.into_inner().client.unwrap_or_default())
}

async fn create(context: &Context, args: &CreateArgs) -> Result<(), Failure> {
    validate::name("name", &args.name)?;
    let key = ClientKey::generate().map_err(|error| Failure::Internal(error.to_string()))?;
    let csr_pem = key.signing_request_pem().map_err(|error| Failure::Internal(error.to_string()))?;
    // Made first: without a file the key would be lost, and the client of no use.
    let target = Target::make(&args.output, &args.name)?;
    let request = CreateClientRequest {
        name: args.name.clone(),
        role: ClientRole::from(args.role).into(),
        csr_pem,
        cert_expiry_ms: args.expiry.map_or(0, duration::millis).max(i64::from(args.expiry.is_some())),
        write: None,
    };
    let made = async {
        let client = context.connect().await?;
        let call = |options| {
            let request = CreateClientRequest { write: Some(options), ..request.clone() };
            let mut people = client.people();
            async move { people.create(request).await }
        };
        Ok::<_, Failure>(write(call).await?)
    };
    let made = match made.await {
        Ok(made) => made,
        Err(failure) => {
            target.forget();
            return Err(failure);
        }
    };
    let bundle = Bundle::new(made.managers, made.root_cert_pem, made.cert_chain_pem, key.to_pem().to_string());
    // It must be good where it is used, so it is tried here.
    let bundle = bundle.of(&args.name, args.role.into()).check();
    let (bundle, _) =
        bundle.map_err(|error| Failure::Internal(format!("the managers' answer is of no use: {error}")))?;
    match &target {
        Target::Output => output::data(bundle.to_text()),
        Target::File(path) => {
            write_new(path, bundle.to_text().as_bytes(), true)?;
            output::note(format_args!(
                "wrote {0}: whoever has it is {1}; take it where it is used, and run `skep context create NAME --bundle {0}`",
                path.display(),
                args.name
            ));
            output::data(format!("{}\n", view::id(&made.id)))
        }
    }
}

/// Where the bundle goes.
enum Target {
    Output,
    File(PathBuf),
}

impl Target {
    /// Makes the file, empty; one that is there is not touched.
    fn make(output: &str, name: &str) -> Result<Self, Failure> {
        if output == "-" {
            return Ok(Self::Output);
        }
        let path = Path::new(output);
        let path = if path.is_dir() { path.join(format!("{name}.skep")) } else { path.to_owned() };
        if path.symlink_metadata().is_ok() {
            return Err(Failure::Usage(format!("{} exists already: name another file with --output", path.display())));
        }
        write_new(&path, &[], false)?;
        Ok(Self::File(path))
    }

    fn forget(&self) {
        if let Self::File(path) = self {
            // It is empty: at worst it is in the way.
            let _ = fs::remove_file(path);
        }
    }
}

async fn list(context: &Context, args: &LsArgs) -> Result<(), Failure> {
    let format = args.flags.format()?;
    let filters = Filters::parse(&args.flags.filter, &["id", "name", "role"], &[])?;
    filters.only("role", &["admin", "operator", "viewer"])?;
    let client = context.connect_to_read(args.read).await?;
    let call = async |read| client.people().list(ListClientsRequest { read }).await;
    let mut people = client.read(call).await?.into_inner().clients;
    people.retain(|person| matches(person, &filters));
    people.sort_by(|a, b| natural::compare(&a.name, &b.name));
    let rows: Vec<_> = people.iter().map(row).collect();
    listing::print(&CLIENTS, &rows, &format)
}

fn matches(person: &Person, filters: &Filters) -> bool {
    filters.passes("id", |prefix| view::id(&person.id).starts_with(prefix))
        && filters.passes("name", |part| person.name.contains(part))
        && filters.passes("role", |role| role == role_name(person.role()))
}

fn row(person: &Person) -> Map<String, Value> {
    listing::row([
        ("ID", view::id(&person.id).into()),
        ("Name", person.name.clone().into()),
        ("Role", role_name(person.role()).into()),
        ("CreatedAt", time::plain_ms(person.meta.unwrap_or_default().created_at_ms).into()),
        ("Expires", time::plain_ms(person.cert_not_after_ms).into()),
    ])
}

/// Removes each and prints what was named.
async fn remove(context: &Context, args: &RmArgs) -> Result<(), Failure> {
    let client = context.connect().await?;
    let mut outcome = Outcome::default();
    for reference in &args.names {
        let call = |options| {
            let request = RemoveClientRequest { reference: reference.clone(), write: Some(options) };
            let mut people = client.people();
            async move { people.remove(request).await }
        };
        let removed = write(call).await.map_err(|status| Failure::from_lookup("client", reference, status));
        if outcome.take(removed)?.is_some() {
            output::data(format!("{reference}\n"))?;
        }
    }
    outcome.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::output::format::Format;

    #[test]
    fn the_table() {
        let mut person =
            Person { id: vec![1; 16], name: "alice".into(), cert_not_after_ms: 60_000, ..Person::default() };
        person.set_role(ClientRole::Operator);
        let table = CLIENTS.render(&[row(&person)], &Format::Table(None)).unwrap();
        assert!(table.lines().nth(1).unwrap().contains("alice     operator"), "{table}");
        let filters = |text: &str| Filters::parse(&[text.to_owned()], &["name", "role"], &[]).unwrap();
        assert!(matches(&person, &filters("role=operator")) && !matches(&person, &filters("role=admin")));
    }

    #[test]
    fn the_file_is_private_and_none_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::make(dir.path().to_str().unwrap(), "alice").unwrap();
        let path = dir.path().join("alice.skep");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(Target::make(path.to_str().unwrap(), "alice").is_err());
        target.forget();
        assert!(!path.exists());
    }
}
