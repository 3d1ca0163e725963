//! `skep swarm unlock-key|unlock|data-key`, and what other commands say about keys.

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde_json::Value;
use skep_identity::UnlockKey;
use skep_proto::v1::{DataKeyRequest, InfoRequest, ManagerKeys, SwarmState, UnlockKeyRequest, UnlockRequest};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::client::write;
use crate::command::context::Context;
use crate::command::listing;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;
use crate::output::format::{Format, Listing};
use crate::view;

#[derive(Args, Clone, Debug)]
pub(crate) struct UnlockKeyArgs {
    /// Make a new key; the old one stops working. A manager that is down is unlocked with the old one once more.
    #[arg(long)]
    rotate: bool,
    /// Print the key only.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DataKeyArgs {
    /// Replace the data key of every manager: log and snapshots are sealed anew, and the old files are deleted.
    #[arg(long)]
    rotate: bool,
    /// How to print the managers: `table`, `table TEMPLATE`, `json`, or a Go template.
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// What an operator has to keep.
pub(super) fn unlock_instructions(key: &str) -> String {
    format!(
        "To unlock a swarm manager after it restarts, run the `skep swarm unlock`\ncommand and provide the following \
         key:\n\n    {key}\n\nRemember to store this key in a password manager, since without it you\nwill not be able \
         to restart the manager.\n"
    )
}

/// Names the managers that have not done what was asked for. Says whether all have.
pub(super) fn tell(managers: &[ManagerKeys]) -> bool {
    let mut late = managers.iter().filter(|manager| !manager.done).peekable();
    let all = late.peek().is_none();
    for manager in late {
        let (id, hostname) = (view::id(&manager.node_id), &manager.hostname);
        output::note(format!("manager {id} ({hostname}): {}", manager.message));
    }
    all
}

pub(super) async fn unlock_key(context: &Context, args: &UnlockKeyArgs) -> Result<(), Failure> {
    let client = context.connect().await?;
    let answer = write(|options| {
        let mut clusters = client.clusters();
        async move { clusters.unlock_key(UnlockKeyRequest { rotate: args.rotate, write: Some(options) }).await }
    })
    .await?;
    tell(&answer.managers);
    if args.quiet {
        return output::data(format!("{}\n", answer.unlock_key));
    }
    let rotated = if args.rotate { "Successfully rotated manager unlock key.\n\n" } else { "" };
    output::data(format!("{rotated}{}", unlock_instructions(&answer.unlock_key)))
}

pub(super) async fn unlock(context: &Context) -> Result<(), Failure> {
    context.only_here("swarm unlock")?;
    let client = context.connect().await?;
    match client.daemon().info(InfoRequest {}).await?.into_inner().state() {
        SwarmState::Locked => {}
        SwarmState::Inactive => return Err(Failure::Failed("this node is not part of a swarm".to_owned())),
        SwarmState::Pending | SwarmState::Active | SwarmState::Error => {
            return Err(Failure::Failed("swarm is not locked".to_owned()));
        }
    }
    let key = ask().await?;
    key.parse::<UnlockKey>().map_err(|error| Failure::Failed(error.to_string()))?;
    let request = UnlockRequest { unlock_key: key.trim().to_owned() };
    client.daemon().unlock(request).await?;
    Ok(())
}

/// Reads the key: on a terminal it is asked for, and not shown.
async fn ask() -> Result<Zeroizing<String>, Failure> {
    if !std::io::stdin().is_terminal() {
        return read_line().map_err(unreadable);
    }
    let mut terminal = std::io::stderr();
    // A prompt that cannot be shown is no reason not to read.
    let _ = terminal.write_all(b"Please enter unlock key: ").and_then(|()| terminal.flush());
    // Before anything is hidden.
    let mut interrupted = signal(SignalKind::interrupt()).map_err(unreadable)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(unreadable)?;
    let hidden = Hidden::new();
    // In a thread that nobody waits for: whoever interrupts the command has his terminal back at once, as it was.
    let (answer, read) = oneshot::channel();
    std::thread::spawn(move || answer.send(read_line()));
    let key = tokio::select! {
        biased;
        _ = interrupted.recv() => Err(Failure::Reported(Exit::Interrupted)),
        _ = terminated.recv() => Err(Failure::Reported(Exit::Interrupted)),
        key = read => key.unwrap_or_else(|gone| Err(std::io::Error::other(gone))).map_err(unreadable),
    };
    drop(hidden);
    key
}

fn read_line() -> std::io::Result<Zeroizing<String>> {
    let mut key = Zeroizing::new(String::new());
    std::io::stdin().lock().read_line(&mut key)?;
    Ok(key)
}

#[allow(clippy::needless_pass_by_value)]
fn unreadable(error: std::io::Error) -> Failure {
    Failure::Failed(format!("cannot read the unlock key: {error}"))
}

/// A terminal that does not show what is typed, until this is dropped. A stop (Ctrl-Z) is left to the shell, which keeps a
/// terminal's state for each of its jobs.
struct Hidden(Termios);

impl Hidden {
    fn new() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &silent).ok()?;
        Some(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &self.0);
        output::note("");
    }
}

const MANAGERS: Listing = Listing {
    template: "{{.ID}}\t{{.Hostname}}\t{{.Status}}\t{{.DataKey}}\t{{.SealedBy}}\t{{.Pause}}",
    fields: &[
        ("ID", "ID"),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("DataKey", "DATA KEY"),
        ("SealedBy", "SEALED BY"),
        ("Pause", "PAUSE"),
    ],
    quiet: "ID",
};

/// Ends with 1 if a manager has not done what was asked for.
pub(super) async fn data_key(context: &Context, args: &DataKeyArgs) -> Result<(), Failure> {
    let format = Format::from_flags(args.format.as_deref(), false)?;
    let client = context.connect().await?;
    let answer = write(|options| {
        let mut clusters = client.clusters();
        async move { clusters.data_key(DataKeyRequest { rotate: args.rotate, write: Some(options) }).await }
    })
    .await?;
    let rows: Vec<_> = answer.managers.iter().map(row).collect();
    listing::print(&MANAGERS, &rows, &format)?;
    if !tell(&answer.managers) && args.rotate {
        return Err(Failure::Reported(Exit::Failed));
    }
    Ok(())
}

fn row(manager: &ManagerKeys) -> serde_json::Map<String, Value> {
    // One that does not answer has said nothing else.
    let known = manager.done || manager.data_key_epoch > 0 || manager.locked;
    let told = |text: String| if known { text } else { String::new() };
    listing::row([
        ("ID", view::id(&manager.node_id).into()),
        ("Hostname", manager.hostname.clone().into()),
        ("Status", if manager.done { "done" } else { "pending" }.into()),
        ("DataKey", told(manager.data_key_epoch.to_string()).into()),
        ("SealedBy", told(if manager.locked { "unlock key" } else { "file" }.to_owned()).into()),
        ("Pause", told(format!("{:.1}ms", f64::from(manager.pause_us) / 1000.0)).into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_of_a_manager_is_left_out() {
        let away = ManagerKeys { hostname: "host2".to_owned(), message: "away".to_owned(), ..ManagerKeys::default() };
        assert_eq!((&row(&away)["Status"], &row(&away)["DataKey"]), (&"pending".into(), &"".into()));
        let done =
            ManagerKeys { done: true, locked: true, data_key_epoch: 3, pause_us: 1500, ..ManagerKeys::default() };
        let row = row(&done);
        assert_eq!(
            (&row["DataKey"], &row["SealedBy"], &row["Pause"]),
            (&"3".into(), &"unlock key".into(), &"1.5ms".into())
        );
        assert!(!tell(&[done, away]));
    }
}
