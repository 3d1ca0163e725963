//! `skep context …`: which managers commands talk to, and as whom. Nothing here connects.

use std::fs;
use std::io::Read as _;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value};

use super::inspect::InspectFlags;
use super::outcome::Outcome;
use crate::client::DEFAULT_HOST;
use crate::command::listing;
use crate::failure::Failure;
use crate::output::format::{self, Format, Listing};
use crate::output::{self, json, time};
use crate::remote::bundle::{self, Bundle, MAX_BYTES};
use crate::remote::choice::{Choice, DEFAULT, Said, choose};
use crate::remote::hosts;
use crate::remote::store::{Store, check_name};
use crate::view;

#[derive(Subcommand, Debug)]
pub(crate) enum ContextCommand {
    /// Make a context, from a file of `skep client create` or from a key, a certificate and a root certificate.
    Create(CreateArgs),
    /// Give a context another key and certificate, as from `skep client renew`, or other managers.
    Update(UpdateArgs),
    /// Let commands use this context from now on; `default` is this host's daemon.
    Use(UseArgs),
    /// List the contexts.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show contexts; the one in use if none is named. Keys are not shown.
    Inspect(InspectArgs),
    /// Print the name of the context in use.
    Show,
    /// Remove contexts with their keys.
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

/// What a context is made of.
#[derive(Args, Clone, Debug)]
struct Parts {
    /// File that `skep client create` or `renew` wrote; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ca", "cert", "key"])]
    bundle: Option<String>,
    /// Managers, as tcp://HOST[:PORT],…; the next one is asked where one is down [default: those of the bundle].
    #[arg(id = "managers", long = "host", value_name = "ADDRESSES")]
    hosts: Option<String>,
    /// The swarm's root certificate, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["cert", "key"])]
    ca: Option<String>,
    /// The client's certificate, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["ca", "key"])]
    cert: Option<String>,
    /// The client's private key, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["ca", "cert"])]
    key: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    parts: Parts,
    /// Name.
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    parts: Parts,
    /// Name.
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct UseArgs {
    /// Name.
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct LsArgs {
    /// How to print: `table`, `table TEMPLATE`, `json`, or a Go template.
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print names only.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// Name.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    flags: InspectFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// Remove it also where it is in use.
    #[arg(short, long)]
    force: bool,
    /// Name.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

const CONTEXTS: Listing = Listing {
    template: "{{.Name}}{{if .Current}} *{{end}}\t{{.Client}}\t{{.Role}}\t{{.Host}}\t{{.Error}}",
    fields: &[
        ("Name", "NAME"),
        ("Client", "CLIENT"),
        ("Role", "ROLE"),
        ("Host", "HOST"),
        ("Error", "ERROR"),
        ("Current", ""),
    ],
    quiet: "Name",
};

#[derive(Serialize, Default)]
#[serde(rename_all = "PascalCase")]
struct ContextView {
    name: String,
    hosts: Vec<String>,
    client: String,
    #[serde(rename = "ClientID")]
    client_id: String,
    role: String,
    #[serde(rename = "ClusterID")]
    cluster_id: String,
    certificate_expires_at: String,
    current: bool,
}

impl ContextCommand {
    pub(crate) fn run(&self, said: &Said) -> Result<(), Failure> {
        let store = Store::of_user()?;
        match self {
            Self::Create(args) => create(&store, args),
            Self::Update(args) => update(&store, args),
            Self::Use(args) => choose_one(&store, args, said),
            Self::Ls(args) => list(&store, args, said),
            Self::Inspect(args) => inspect(&store, args, said),
            Self::Show => output::data(format!("{}\n", in_use(&store, said)?)),
            Self::Rm(args) => remove(&store, args, said),
        }
    }
}

/// The name of the context that commands use here and now; empty where an address is said instead.
fn in_use(store: &Store, said: &Said) -> Result<String, Failure> {
    Ok(match choose(said, || store.current())? {
        Choice::Context(name) => name,
        Choice::Socket(host) if host.to_string() == DEFAULT_HOST => DEFAULT.to_owned(),
        Choice::Socket(_) => String::new(),
    })
}

impl Parts {
    fn hosts(&self) -> Result<Option<Vec<String>>, Failure> {
        let told = self.hosts.as_deref().map(hosts::parse).transpose();
        told.map_err(|error| Failure::Usage(format!("invalid value for --host: {error}")))
    }

    /// The bundle that they make; `before` are the managers of loose files where none are said. `None`: no key and no
    /// certificate is among them.
    fn bundle(&self, before: &[String]) -> Result<Option<Bundle>, Failure> {
        let told = self.hosts()?;
        Ok(Some(match (&self.bundle, &self.ca, &self.cert, &self.key) {
            (Some(file), ..) => {
                let text = read(file)?;
                let (bundle, _) =
                    bundle::parse(&text).map_err(|error| Failure::Usage(format!("{file} cannot be used: {error}")))?;
                Bundle { hosts: told.unwrap_or(bundle.hosts), ..bundle }
            }
            (None, Some(ca), Some(cert), Some(key)) => {
                let hosts = told.unwrap_or_else(|| before.to_vec());
                let bundle = Bundle::new(hosts, read(ca)?, read(cert)?, read(key)?);
                bundle.check().map_err(|error| Failure::Usage(error.to_string()))?.0
            }
            _ => return Ok(None),
        }))
    }
}

fn create(store: &Store, args: &CreateArgs) -> Result<(), Failure> {
    check_name(&args.name)?;
    let bundle = args.parts.bundle(&[])?;
    let bundle =
        bundle.ok_or_else(|| Failure::Usage("give --bundle, or --host with --ca, --cert and --key".to_owned()))?;
    store.create(&args.name, &bundle)?;
    output::note(format_args!("context {0} is there; `skep context use {0}` chooses it", args.name));
    output::data(format!("{}\n", args.name))
}

fn update(store: &Store, args: &UpdateArgs) -> Result<(), Failure> {
    let (before, _) = store.read(&args.name)?;
    let bundle = match (args.parts.bundle(&before.hosts)?, args.parts.hosts()?) {
        (Some(bundle), _) => bundle,
        (None, Some(hosts)) => Bundle { hosts, ..before },
        (None, None) => {
            return Err(Failure::Usage(
                "nothing to change: give --bundle, or --ca, --cert and --key, or --host".to_owned(),
            ));
        }
    };
    store.update(&args.name, &bundle)?;
    output::data(format!("{}\n", args.name))
}

/// A file's text; `-` is standard input.
fn read(file: &str) -> Result<String, Failure> {
    let unreadable = |error: std::io::Error| Failure::Usage(format!("cannot read {file}: {error}"));
    let mut text = String::new();
    let limit = MAX_BYTES as u64 + 1;
    if file == "-" {
        std::io::stdin().lock().take(limit).read_to_string(&mut text).map_err(unreadable)?;
    } else {
        fs::File::open(file).map_err(unreadable)?.take(limit).read_to_string(&mut text).map_err(unreadable)?;
    }
    Ok(text)
}

fn choose_one(store: &Store, args: &UseArgs, said: &Said) -> Result<(), Failure> {
    store.set_current(&args.name)?;
    if [&said.host_variable, &said.context_variable].iter().any(|set| set.as_ref().is_some_and(|set| !set.is_empty())) {
        output::note("SKEP_HOST or SKEP_CONTEXT is set, and goes before this choice");
    }
    output::data(format!("{}\n", args.name))
}

fn list(store: &Store, args: &LsArgs, said: &Said) -> Result<(), Failure> {
    let format = Format::from_flags(args.format.as_deref(), args.quiet)?;
    let current = in_use(store, said)?;
    let mut rows = vec![row(DEFAULT, "", "", DEFAULT_HOST, "", current == DEFAULT)];
    for name in store.names()? {
        rows.push(match store.read(&name) {
            Ok((bundle, _)) => {
                row(&name, &bundle.client, &bundle.role, &hosts::show(&bundle.hosts), "", current == name)
            }
            Err(failure) => row(&name, "", "", "", &failure.to_string(), current == name),
        });
    }
    listing::print(&CONTEXTS, &rows, &format)
}

fn row(name: &str, client: &str, role: &str, host: &str, error: &str, current: bool) -> Map<String, Value> {
    listing::row([
        ("Name", name.into()),
        ("Client", client.into()),
        ("Role", role.into()),
        ("Host", host.into()),
        ("Error", error.into()),
        ("Current", current.into()),
    ])
}

fn inspect(store: &Store, args: &InspectArgs, said: &Said) -> Result<(), Failure> {
    args.flags.check()?;
    let current = in_use(store, said)?;
    let names = if args.names.is_empty() { std::slice::from_ref(&current) } else { &args.names };
    let mut outcome = Outcome::default();
    let mut found = Vec::new();
    for name in names {
        found.extend(outcome.take(one(store, name, *name == current))?);
    }
    let values: Vec<_> = found.iter().map(json::value).collect();
    output::data(format::inspect(&values, &json::pretty(&found), args.flags.format.as_deref())?)?;
    outcome.finish()
}

fn one(store: &Store, name: &str, current: bool) -> Result<ContextView, Failure> {
    if name == DEFAULT {
        let hosts = vec![DEFAULT_HOST.to_owned()];
        return Ok(ContextView { name: name.to_owned(), hosts, current, ..ContextView::default() });
    }
    let (bundle, credentials) = store.read(name)?;
    let identity = credentials.identity();
    let ends = identity.not_after.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(ContextView {
        name: name.to_owned(),
        hosts: bundle.hosts.iter().map(|host| format!("tcp://{host}")).collect(),
        client: bundle.client,
        client_id: view::id(&identity.client_id.to_vec()),
        role: bundle.role,
        cluster_id: view::id(&identity.cluster_id.to_vec()),
        certificate_expires_at: time::rfc3339_ms(i64::try_from(ends.as_millis()).unwrap_or(i64::MAX)),
        current,
    })
}

/// Removes each and prints its name.
fn remove(store: &Store, args: &RmArgs, said: &Said) -> Result<(), Failure> {
    let current = in_use(store, said)?;
    let mut outcome = Outcome::default();
    for name in &args.names {
        let removed = match *name == current && !args.force {
            true => Err(Failure::Failed(format!("context {name} is in use: choose another one, or give --force"))),
            false => store.remove(name),
        };
        if outcome.take(removed)?.is_some() {
            output::data(format!("{name}\n"))?;
        }
    }
    outcome.finish()
}
