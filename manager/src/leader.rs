//! Leadership is one value: everything that runs on the leader only, started in one order, dropped in reverse when the
//! lead is lost.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use skep_raft::Consensus;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::dispatch::{Dispatcher, DispatcherLead};
use crate::loops;
use crate::machine::FeedSlot;
use crate::store::Store;

/// How long one try to confirm a new lead may take; it is tried again while the lead lasts.
const CONFIRM: Duration = Duration::from_secs(2);
/// Pause before the next try: a refusal may come at once.
const RETRY: Duration = Duration::from_millis(200);

/// What runs while this manager leads. Fields drop in this order: first nobody is let in, then the loops end.
struct Leadership {
    _dispatcher: DispatcherLead,
    _loops: LoopsThread,
}

/// The loops' thread; its feed is taken away when this is dropped, and with it the thread ends.
struct LoopsThread {
    slot: FeedSlot,
}

impl LoopsThread {
    fn start(store: Store, slot: FeedSlot) -> anyhow::Result<Self> {
        let (feed, fed) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        // Before the thread takes its first snapshot: what is applied after that must reach it.
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(feed);
        let this = Self { slot };
        std::thread::Builder::new()
            .name("skep-loops".to_owned())
            .spawn(move || runtime.block_on(loops::run(store, fed)))
            .context("cannot start the loops' thread")?;
        Ok(this)
    }
}

impl Drop for LoopsThread {
    fn drop(&mut self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Follows Raft's opinion of who leads, and starts and stops what depends on it. The task ends when Raft does.
pub(crate) fn follow<C: Consensus>(
    raft: Arc<C>,
    store: Store,
    dispatcher: Dispatcher,
    slot: FeedSlot,
) -> (JoinHandle<()>, watch::Receiver<bool>) {
    let (leads, leading) = watch::channel(false);
    let task = tokio::spawn(async move {
        let mut status = raft.status();
        let mut held: Option<Leadership> = None;
        loop {
            let is_leader = status.borrow_and_update().is_leader();
            if !is_leader && held.take().is_some() {
                info!("this manager no longer leads");
                leads.send_replace(false);
            }
            if is_leader && held.is_none() {
                // Its own state must hold everything that was ever confirmed before it decides anything.
                match raft.read_barrier(CONFIRM).await {
                    Ok(_) => match lead(&store, &dispatcher, &slot) {
                        Ok(leadership) => {
                            held = Some(leadership);
                            leads.send_replace(true);
                            info!("this manager leads");
                        }
                        Err(error) => {
                            warn!(error = %format!("{error:#}"), "cannot take the lead");
                            tokio::time::sleep(RETRY).await;
                            continue;
                        }
                    },
                    Err(error) => {
                        warn!(%error, "the lead is not confirmed");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    });
    (task, leading)
}

fn lead(store: &Store, dispatcher: &Dispatcher, slot: &FeedSlot) -> anyhow::Result<Leadership> {
    let loops = LoopsThread::start(store.clone(), Arc::clone(slot))?;
    let dispatcher = dispatcher.lead().context("cannot start the dispatcher")?;
    Ok(Leadership { _dispatcher: dispatcher, _loops: loops })
}
