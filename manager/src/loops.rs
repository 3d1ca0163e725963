//! Drives the leader's loops: wake, snapshot, plan, write. Every loop is a plan function of `skep-core`, keyed by what
//! changed since it last looked, with a full pass on a timer, so that nothing depends on having seen an event.
//!
//! All loops share one thread of their own: plans neither wait for nor hold up the rest of the manager. While a write
//! is under way, events gather; one round then handles them together.

mod drainer;
mod orchestrator;
mod reaper;
mod restarter;
mod scheduler;
mod services;
mod updater;

use std::sync::Arc;
use std::time::Duration;

use skep_core::change::{Group, Plan};
use skep_core::event::Event;
use skep_core::store::State;
use skep_proto::time::UnixMs;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::dispatch::Dispatcher;
use crate::store::{Store, WriteError};

/// Every loop looks at everything this often, though no event asks for it.
const FULL_PASS: Duration = Duration::from_secs(30);
/// Groups in one write; a round with more goes on in the next.
const MAX_GROUPS: usize = 2_000;
/// Pause after a write that could not be done (no leader, storage trouble).
const RETRY: Duration = Duration::from_millis(200);
/// Pause after refused writes: from here, doubling, to there. One refusal is a race; many are a plan that the state
/// will not take, and must not cost a processor.
const REFUSED_MIN: Duration = Duration::from_millis(2);
const REFUSED_MAX: Duration = Duration::from_secs(5);
/// How long nodes' applied versions gather before those who wait for them look.
const APPLIED_GATHER: Duration = Duration::from_millis(5);

/// One loop: notes what changed, and plans for that.
trait Loop: Send {
    /// For logs.
    fn name(&self) -> &'static str;
    /// Takes note of a change. `state` is the state after it, or a later one.
    fn note(&mut self, event: &Event, state: &State);
    /// Forgets what it knew and looks at everything next time.
    fn look_at_all(&mut self, state: &State);
    /// What to do for what was noted. Clears the notes.
    fn plan(&mut self, state: &State, now: UnixMs) -> Plan;
    /// Whether it is to be asked again when nodes have applied more of their network tables.
    fn waits_for_nodes(&self) -> bool {
        false
    }
}

type Loops = [Box<dyn Loop>; 6];

/// What the state machine tells the loops of an applied entry.
pub(crate) struct Feed {
    pub(crate) events: Arc<[Event]>,
}

/// Runs the loops until `feed` ends, which is when leadership is lost.
pub(crate) async fn run(store: Store, dispatcher: Dispatcher, mut feed: mpsc::UnboundedReceiver<Feed>) {
    let mut applied = dispatcher.applied_tables().watch();
    let mut loops: Loops = [
        Box::new(orchestrator::Orchestrator::default()),
        Box::new(updater::Updater::default()),
        Box::new(restarter::Restarter::default()),
        Box::new(scheduler::Scheduler::default()),
        Box::new(reaper::Reaper::default()),
        Box::new(drainer::Drainer::new(dispatcher)),
    ];
    let mut full_pass = tokio::time::interval(FULL_PASS);
    let mut wake_at: Option<UnixMs> = None;
    let mut refused_in_a_row = 0;
    loop {
        let due = async {
            match wake_at {
                Some(at) => tokio::time::sleep(at.since(store.now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            fed = feed.recv() => match fed {
                Some(fed) => take_note(&mut loops, fed, &mut feed, &store.state()),
                None => return,
            },
            _ = full_pass.tick() => {
                let state = store.state();
                loops.iter_mut().for_each(|each| each.look_at_all(&state));
            }
            // Of many nodes at once.
            Ok(()) = applied.changed(), if loops.iter().any(|each| each.waits_for_nodes()) => {
                tokio::time::sleep(APPLIED_GATHER).await;
                applied.mark_unchanged();
            }
            () = due => {}
        }
        wake_at = round(&mut loops, &store, &mut refused_in_a_row).await;
    }
}

/// Hands on everything that has gathered.
fn take_note(loops: &mut Loops, first: Feed, feed: &mut mpsc::UnboundedReceiver<Feed>, state: &State) {
    let mut next = Some(first);
    while let Some(fed) = next {
        for event in &*fed.events {
            loops.iter_mut().for_each(|each| each.note(event, state));
        }
        next = feed.try_recv().ok();
    }
}

/// One plan of each loop, one write. Returns when to look again though nothing changes.
async fn round(loops: &mut Loops, store: &Store, refused_in_a_row: &mut u32) -> Option<UnixMs> {
    let (state, now) = (store.state(), store.now());
    let mut wake_at: Option<UnixMs> = None;
    let mut groups: Vec<Group> = Vec::new();
    for each in loops.iter_mut() {
        let plan = each.plan(&state, now);
        if !plan.groups.is_empty() {
            debug!(name = each.name(), groups = plan.groups.len(), "planned");
        }
        wake_at = [wake_at, plan.wake_at].into_iter().flatten().min();
        groups.extend(plan.groups);
    }
    let mut groups = groups.into_iter();
    loop {
        let piece: Vec<Group> = groups.by_ref().take(MAX_GROUPS).collect();
        if piece.is_empty() {
            *refused_in_a_row = 0;
            return wake_at;
        }
        if let Err(trouble) = write(store, piece).await {
            // What was planned is planned again from what is then there.
            loops.iter_mut().for_each(|each| each.look_at_all(&store.state()));
            match trouble {
                Trouble::Refused => {
                    let pause = refusal_pause(*refused_in_a_row);
                    *refused_in_a_row = refused_in_a_row.saturating_add(1);
                    if pause == REFUSED_MAX {
                        warn!("the state keeps refusing what the loops plan: see the log at level debug");
                    }
                    tokio::time::sleep(pause).await;
                    return Some(store.now());
                }
                Trouble::Failed => {
                    tokio::time::sleep(RETRY).await;
                    return Some(store.now());
                }
            }
        }
    }
}

/// How long to wait after a refusal that `before` others preceded.
fn refusal_pause(before: u32) -> Duration {
    REFUSED_MIN.saturating_mul(2_u32.saturating_pow(before)).min(REFUSED_MAX)
}

enum Trouble {
    /// Someone else changed an object in between.
    Refused,
    Failed,
}

async fn write(store: &Store, groups: Vec<Group>) -> Result<(), Trouble> {
    match store.write_groups(groups).await {
        Ok(written) => {
            // The next plan must see this one's results.
            store.applied(written.version).await;
            for (_, reason) in &written.refused {
                debug!(%reason, "a planned change was overtaken");
            }
            if written.refused.is_empty() { Ok(()) } else { Err(Trouble::Refused) }
        }
        Err(WriteError::NoLeader) => Err(Trouble::Failed),
        Err(error) => {
            warn!(%error, "the loops could not write");
            Err(Trouble::Failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_pause_longer_and_longer() {
        assert_eq!(refusal_pause(0), REFUSED_MIN);
        assert_eq!(refusal_pause(3), REFUSED_MIN * 8);
        assert_eq!(refusal_pause(u32::MAX), REFUSED_MAX);
    }
}
