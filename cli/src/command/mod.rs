//! The commands: one file (or folder) per noun, one function per verb. `main.rs` calls [`main`], nothing else.

mod client;
mod completion;
mod confirm;
mod conflict;
mod context;
mod contexts;
pub(crate) mod daemon;
mod image;
mod info;
mod inspect;
mod listing;
mod netd;
mod network;
mod node;
mod outcome;
mod parcel;
mod service;
mod swarm;
mod task;
mod task_table;
mod unsupported;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use self::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;
use crate::remote::choice::Said;

/// skep runs services as containers on many Linux hosts, with one binary.
#[derive(Parser, Debug)]
#[command(
    name = "skep",
    version,
    disable_help_subcommand = false,
    arg_required_else_help = true,
    max_term_width = 120,
    after_help = "`skep help exit-codes` lists the exit codes. `skep COMMAND --help` says more about a command."
)]
struct Cli {
    /// Socket of the daemon to talk to [env: SKEP_HOST] [default: unix:///run/skep/skep.sock].
    #[arg(short = 'H', long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Context to use: managers that are reached over the network [env: SKEP_CONTEXT] [default: what `skep context use`
    /// chose].
    #[arg(short, long, value_name = "NAME")]
    context: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make, join and leave a swarm.
    #[command(subcommand)]
    Swarm(swarm::SwarmCommand),
    /// Show and change the hosts of the swarm.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Run and watch services.
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Show the tasks of services.
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Make, show and remove networks.
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Make, rotate, show and remove secrets: data that only the containers which were given them can read.
    #[command(subcommand)]
    Secret(parcel::ParcelCommand),
    /// Make, rotate, show and remove configs: files of services that need not be kept secret.
    #[command(subcommand)]
    Config(parcel::ParcelCommand),
    /// Let people call the managers from anywhere.
    #[command(subcommand)]
    Client(client::ClientCommand),
    /// Choose the managers that commands talk to.
    #[command(subcommand)]
    Context(contexts::ContextCommand),
    /// Manage this host's images.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// List this host's images: the same as `skep image ls`.
    #[command(hide = true)]
    Images(image::list::ListArgs),
    /// Show this host's daemon and its place in a swarm.
    Info(info::InfoArgs),
    /// Show the versions of the command line and the daemon.
    Version(version::VersionArgs),
    /// Run the daemon of this host.
    Daemon(Box<daemon::DaemonArgs>),
    /// Keep the networks of this host; the daemon starts it.
    #[command(hide = true)]
    Netd(netd::NetdArgs),
    /// Make, use and remove a cluster of several hosts on this machine (needs root).
    Lab(skep_lab::LabCommand),
    /// Print a completion script for a shell.
    Completion(completion::CompletionArgs),
    /// What the exit codes mean.
    #[command(name = "exit-codes", hide = true, after_help = crate::exit::table())]
    ExitCodes,
}

/// The whole run: parse, act, print what went wrong, end with the right code.
pub(crate) fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let result = match Cli::try_parse_from(&arguments) {
        Ok(cli) => run(cli),
        Err(error) => explain(&error, &arguments),
    };
    let exit = match result {
        Ok(exit) => return exit,
        Err(failure) => {
            if !failure.is_silent() {
                output::note(format_args!("error: {failure}"));
            }
            failure.exit()
        }
    };
    ExitCode::from(exit.code())
}

/// Help and version are answers; everything else that clap stops at is a usage error, or something of Docker's that skep
/// does not have yet.
fn explain(error: &clap::Error, arguments: &[OsString]) -> Result<ExitCode, Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::data(error.render().to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            if let Some(failure) = unsupported::explain(error, arguments, &Cli::command()) {
                return Err(failure);
            }
            output::note(error.render().to_string().trim_end());
            Err(Failure::Reported(Exit::Usage))
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Daemon(args) => return daemon::run(*args),
        Command::Netd(args) => return netd::run(args),
        Command::Lab(command) => return skep_lab::run(command).map_err(|error| Failure::Failed(format!("{error:#}"))),
        Command::Completion(args) => completion::run(&args, Cli::command())?,
        Command::ExitCodes => output::data(crate::exit::table())?,
        Command::Context(command) => command.run(&said(cli.host, cli.context))?,
        command => talk(&Context::resolve(&said(cli.host, cli.context))?, command)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What flags and environment say of where to go.
fn said(host_flag: Option<String>, context_flag: Option<String>) -> Said {
    let variable = |name| std::env::var(name).ok();
    Said { host_flag, context_flag, host_variable: variable("SKEP_HOST"), context_variable: variable("SKEP_CONTEXT") }
}

/// Runs a command that talks to the daemon or to managers.
fn talk(context: &Context, command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Internal(format!("cannot start: {error}")))?;
    let result = runtime.block_on(async {
        match command {
            Command::Swarm(command) => command.run(context).await,
            Command::Node(command) => command.run(context).await,
            Command::Service(command) => command.run(context).await,
            Command::Task(command) => command.run(context).await,
            Command::Network(command) => command.run(context).await,
            Command::Secret(command) => command.secret(context).await,
            Command::Config(command) => command.config(context).await,
            Command::Image(command) => command.run(context).await,
            Command::Images(args) => args.run(context).await,
            Command::Info(args) => args.run(context).await,
            Command::Version(args) => args.run(context).await,
            Command::Client(command) => command.run(context).await,
            Command::Daemon(_)
            | Command::Netd(_)
            | Command::Lab(_)
            | Command::Completion(_)
            | Command::Context(_)
            | Command::ExitCodes => {
                unreachable!("handled by run")
            }
        }
    });
    // A thread may still wait for standard input, which nobody needs any more.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
