//! The leader's single writer. It checks each transaction against the head (applied state plus what is in flight), packs
//! many into one Raft entry (group commit) and keeps a few entries in flight. When an entry fails, the head is thrown
//! away and rebuilt from the applied state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use skep_core::head::{Head, Submitted};
use skep_raft::{Consensus, ProposeError};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::store::{Applied, Submission, WRITE_DEADLINE, WriteError, Written};

/// Entries in flight: enough to keep the disk busy while the next one is packed.
const IN_FLIGHT: usize = 4;
/// How long one wait for a confirmed leader lasts while the head is rebuilt.
const BARRIER: Duration = Duration::from_secs(2);

type Raft = Arc<dyn Consensus<Response = Vec<u64>>>;
/// An entry on its way.
type Proposal = BoxFuture<'static, Landed>;

/// What became of an entry.
struct Landed {
    /// Store version that the head expects after it.
    version: u64,
    /// The version that there is. `None`: an entry without transactions, which is never proposed.
    result: Result<Option<u64>, ProposeError>,
}

impl Landed {
    /// Whether the entry, and all before it, did to the state what their callers are told.
    fn as_expected(&self) -> bool {
        matches!(self.result, Ok(Some(version)) if version == self.version)
    }
}

/// A caller who is answered when its version is committed.
struct Waiting {
    answer: oneshot::Sender<Result<Written, WriteError>>,
    written: Written,
}

struct Sequencer {
    raft: Raft,
    applied: Applied,
    head: Head,
    flight: FuturesOrdered<Proposal>,
    /// In the order of their versions.
    waiting: VecDeque<Waiting>,
}

/// Runs until every `Store` handle is gone.
pub(crate) async fn run(raft: Raft, applied: Applied, mut submissions: mpsc::Receiver<Submission>) {
    let head = Head::new(applied.state());
    let mut sequencer = Sequencer { raft, applied, head, flight: FuturesOrdered::new(), waiting: VecDeque::new() };
    loop {
        tokio::select! {
            biased;
            Some(landed) = sequencer.flight.next(), if !sequencer.flight.is_empty() => sequencer.landed(landed).await,
            submission = submissions.recv(), if sequencer.flight.len() < IN_FLIGHT => match submission {
                Some(submission) => sequencer.take(submission, &mut submissions),
                None => return,
            },
        }
        sequencer.launch();
    }
}

impl Sequencer {
    /// Takes what has gathered: together it makes few entries.
    fn take(&mut self, first: Submission, submissions: &mut mpsc::Receiver<Submission>) {
        if self.flight.is_empty() {
            // Without a leader's own writes in between, the applied state may be newer (another leader's).
            self.head.reset(self.applied.state());
        }
        let mut next = Some(first);
        while let Some(Submission { transaction, answer }) = next {
            let object_id = transaction.object_id.clone();
            let written = match self.head.submit(transaction) {
                Submitted::Queued { version, refused } | Submitted::Nothing { version, refused } => {
                    Written { version, object_id, refused }
                }
                // The first try may still be in flight: the answer waits for it.
                Submitted::Repeated(record) => {
                    Written { version: record.version, object_id: record.object_id, refused: Vec::new() }
                }
            };
            self.waiting.push_back(Waiting { answer, written });
            next = submissions.try_recv().ok();
        }
        self.answer_up_to(self.applied.version());
    }

    /// Proposes what waits for an entry.
    fn launch(&mut self) {
        while self.flight.len() < IN_FLIGHT
            && let Some(packed) = self.head.pack()
        {
            let proposal = self.raft.propose(Bytes::from(packed.bytes), WRITE_DEADLINE);
            self.flight.push_back(Box::pin(async move {
                let result = proposal.await.map(|committed| committed.response.last().copied());
                Landed { version: packed.version, result }
            }));
        }
    }

    async fn landed(&mut self, landed: Landed) {
        if landed.as_expected() {
            self.answer_up_to(landed.version);
        } else {
            self.fail(landed).await;
        }
    }

    /// Answers those whose version is committed. A repeated request may stand behind newer ones: all are looked at.
    fn answer_up_to(&mut self, version: u64) {
        for Waiting { answer, written } in self.take_up_to(version) {
            // The caller may have gone.
            let _ = answer.send(Ok(written));
        }
    }

    /// Everything in flight and behind it was checked against changes that may never come. An entry that landed
    /// nevertheless is believed only if the state is then what the head expected: without effect of an earlier one it
    /// is another.
    async fn fail(&mut self, first: Landed) {
        let mut next = Some(first);
        // Of those behind the last entry: nothing was proposed.
        let mut answer = WriteError::NoLeader;
        while let Some(landed) = next {
            match &landed.result {
                Ok(_) if landed.as_expected() => self.answer_up_to(landed.version),
                Ok(found) => {
                    warn!(?found, expected = landed.version, "an entry met another state than it was checked against");
                    self.refuse_up_to(landed.version, &WriteError::Unknown);
                }
                // It may yet be committed, and a later entry tells.
                Err(ProposeError::ResultUnknown { .. }) => {
                    warn!("it is not known whether a write happened; starting again from the applied state");
                    answer = WriteError::Unknown;
                }
                Err(trouble) => {
                    warn!(%trouble, "a write failed; starting again from the applied state");
                    answer = if matches!(answer, WriteError::Unknown) { answer } else { explain(trouble) };
                    self.refuse_up_to(landed.version, &answer);
                }
            }
            next = self.flight.next().await;
        }
        self.refuse_up_to(u64::MAX, &answer);
        if let Err(error) = self.raft.read_barrier(BARRIER).await {
            warn!(%error, "there is no confirmed leader: writes are refused until there is");
        }
        self.head.reset(self.applied.state());
    }

    /// Tells those who wait for a version up to this one that it will not come.
    fn refuse_up_to(&mut self, version: u64, error: &WriteError) {
        for Waiting { answer, .. } in self.take_up_to(version) {
            // The caller may have gone.
            let _ = answer.send(Err(error.clone()));
        }
    }

    fn take_up_to(&mut self, version: u64) -> VecDeque<Waiting> {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (taken, rest): (VecDeque<_>, VecDeque<_>) = waiting.partition(|it| it.written.version <= version);
        self.waiting = rest;
        taken
    }
}

fn explain(trouble: &ProposeError) -> WriteError {
    match trouble {
        ProposeError::NotLeader { .. } | ProposeError::NoQuorum { .. } | ProposeError::HandingOver => {
            WriteError::NoLeader
        }
        ProposeError::ResultUnknown { .. } => WriteError::Unknown,
        ProposeError::TooLarge { .. }
        | ProposeError::DiskFull { .. }
        | ProposeError::Stopped { .. }
        | ProposeError::Storage(_) => WriteError::Stopped(trouble.to_string()),
    }
}

#[cfg(test)]
mod sequencer_test;
