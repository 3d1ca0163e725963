//! `skep client …`: people who may call the managers from anywhere. `certify.rs` has the verbs that make a key.

mod certify;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value};
use skep_proto::v1::{Client as Person, ClientRole, GetClientRequest, ListClientsRequest, RemoveClientRequest};

use super::context::Context;
use super::inspect::{self, NamedArgs};
use super::listing::{self, LsArgs};
use super::outcome::remove_each;
use crate::client::{Client, write};
use crate::failure::Failure;
use crate::output::format::Listing;
use crate::output::{natural, time};
use crate::parse::filter::Filters;
use crate::remote::bundle::role_name;
use crate::view::{self, MetaView};

#[derive(Subcommand, Debug)]
pub(crate) enum ClientCommand {
    /// Make a client: a file with a key, a certificate and the managers' addresses, for `skep context create`.
    Create(certify::CreateArgs),
    /// Make another key and certificate for a client, in a new file: the old ones end, or the root certificate has changed.
    /// Id and role stay; the old certificate is good until it ends.
    Renew(certify::RenewArgs),
    /// List the clients.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about clients.
    Inspect(NamedArgs),
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
            Self::Create(args) => certify::create(context, args).await,
            Self::Renew(args) => certify::renew(context, args).await,
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

/// Finds a client.
async fn get(client: &Client, reference: &str) -> Result<Person, Failure> {
    let call = async |read| client.people().get(GetClientRequest { reference: reference.to_owned(), read }).await;
    let answer = client.read(call).await.map_err(|status| Failure::from_lookup("client", reference, status))?;
    Ok(answer.into_inner().client.unwrap_or_default())
}

/// All clients.
pub(super) async fn all(client: &Client) -> Result<Vec<Person>, Failure> {
    let call = async |read| client.people().list(ListClientsRequest { read }).await;
    Ok(client.read(call).await?.into_inner().clients)
}

async fn list(context: &Context, args: &LsArgs) -> Result<(), Failure> {
    let format = args.flags.format()?;
    let filters = Filters::parse(&args.flags.filter, &["id", "name", "role"], &[])?;
    filters.only("role", &["admin", "operator", "viewer"])?;
    let client = context.connect_to_read(args.read).await?;
    let mut people = all(&client).await?;
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
    remove_each(&args.names, async |reference| {
        let removed = write(|options| {
            let request = RemoveClientRequest { reference: reference.to_owned(), write: Some(options) };
            let mut people = client.people();
            async move { people.remove(request).await }
        });
        removed.await.map(drop).map_err(|status| Failure::from_lookup("client", reference, status))
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
}
