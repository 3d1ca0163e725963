//! A reader that stays: lines go out as they arrive. It compares what should be read with what is being read, again and
//! again: new tasks join, broken streams are asked for again from where they were, and what cannot be reached is said
//! once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use futures::future::{BoxFuture, select_all};
use futures::stream::{SelectAll, once};
use futures::{FutureExt as _, Stream, StreamExt as _};
use skep_core::store::State;
use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::{LogLine, LogOptions};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;

use super::once::{name, unreadable};
use super::select::{self, Selection, Source};
use super::streams::{OpenRequest, Piece};
use super::{Left, Reader, SILENCE};
use crate::topic::{Topic, TopicWatch};

/// A stream that ended though its tasks go on is asked for again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Changes of the state gather for this long.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How far the reading of one task is.
struct Progress {
    name: String,
    node: NodeId,
    phase: Phase,
    /// Last lines of what was there at first; a task that joins later is read from its beginning.
    tail: Option<u64>,
    /// Time of the last line, by container.
    seen: HashMap<String, i64>,
    /// What was seen when its stream was asked for again: lines up to there were sent on before.
    resumed: HashMap<String, i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be asked for, not before then.
    Wanted(Instant),
    /// Its node has no session; that was said.
    Unreachable,
    /// In this stream.
    Streaming(u64),
    /// All there is was read.
    Done,
}

/// What tells tasks apart that could go into one request to their node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ask {
    node: NodeId,
    /// Lines from this moment on; the reader's own bound for a task that was not read before.
    since_ns: i64,
    tail: Option<u64>,
}

/// A request under way.
struct Open {
    request: OpenRequest,
    asked: Instant,
    tasks: Vec<TaskId>,
}

/// A piece of a stream; `None`: the stream broke off.
type Tagged = (u64, Option<Piece>);

struct Follower {
    reader: Reader,
    tasks: HashMap<TaskId, Progress>,
    open: HashMap<u64, Open>,
    pieces: SelectAll<BoxedPieces>,
    /// The first look is over: whatever joins now is new, and read from its beginning.
    begun: bool,
}

type BoxedPieces = futures::stream::BoxStream<'static, Tagged>;

pub(super) async fn run(reader: Reader) -> Result<(), Left> {
    let mut watches = watches(&reader);
    let mut sessions = reader.reach.watch();
    let mut follower =
        Follower { reader, tasks: HashMap::new(), open: HashMap::new(), pieces: SelectAll::new(), begun: false };
    loop {
        let looked = Instant::now();
        if follower.look().await? {
            return Ok(());
        }
        let again = follower.next_look();
        // Pieces go on while changes gather.
        let mut changed = false;
        loop {
            let wake = if changed { Some(looked + LOOK_EVERY) } else { again };
            tokio::select! {
                Some(tagged) = follower.pieces.next() => {
                    if follower.take(tagged).await? {
                        changed = true;
                    }
                }
                () = any(&mut watches), if !changed => changed = true,
                gone = sessions.changed(), if !changed => {
                    if gone.is_err() {
                        return Ok(());
                    }
                    changed = true;
                }
                () = sleep_until(wake.unwrap_or(looked)), if wake.is_some() => break,
            }
        }
    }
}

/// Waits for whatever changes the selected tasks.
fn watches(reader: &Reader) -> Vec<TopicWatch> {
    let topics = match &reader.selection {
        Selection::Service(id) => vec![Topic::Service(*id)],
        Selection::Tasks(ids) => {
            let state = reader.store.state();
            let mut services: Vec<_> = ids.iter().filter_map(|id| Some(state.task(*id)?.service())).collect();
            services.sort_unstable();
            services.dedup();
            services.into_iter().map(Topic::Service).collect()
        }
    };
    topics.into_iter().map(|topic| reader.store.watch(topic)).collect()
}

async fn any(watches: &mut [TopicWatch]) {
    if watches.is_empty() {
        return std::future::pending().await;
    }
    let changes: Vec<BoxFuture<'_, ()>> = watches.iter_mut().map(|watch| watch.changed().boxed()).collect();
    select_all(changes).await;
}

impl Follower {
    /// Compares what is to be read with what is, and asks for the difference. Says whether all is over.
    async fn look(&mut self) -> Result<bool, Left> {
        let state = self.reader.store.state();
        let sources = select::sources(&state, &self.reader.selection);
        let mut warnings = self.give_up_lost(&state);
        self.join(&sources);
        let mut asks: BTreeMap<Ask, Vec<TaskId>> = BTreeMap::new();
        let mut away: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
        let now = Instant::now();
        for source in &sources {
            let Some(progress) = self.tasks.get_mut(&source.task) else { continue };
            let connected = self.reader.reach.route(source.node).is_some();
            match progress.phase {
                Phase::Wanted(at) if at > now => {}
                Phase::Wanted(_) | Phase::Unreachable if connected => {
                    let ask = ask(&self.reader.options, progress);
                    asks.entry(ask).or_default().push(source.task);
                }
                Phase::Wanted(_) => {
                    progress.phase = Phase::Unreachable;
                    away.entry(source.node).or_default().push(source.name.clone());
                }
                Phase::Unreachable | Phase::Streaming(_) | Phase::Done => {}
            }
        }
        self.begun = true;
        for (node, tasks) in away {
            warnings.push(unreadable(&tasks, &select::node_name(&state, node), select::absence(&state, node)));
        }
        for (ask, tasks) in asks {
            self.ask(ask, tasks);
        }
        self.reader.send(Vec::new(), warnings).await?;
        let settled = self.tasks.values().all(|task| matches!(task.phase, Phase::Done | Phase::Unreachable));
        Ok(settled && select::is_over(&state, &self.reader.selection))
    }

    /// Takes in new tasks, and lets go of those that left the state and are read to their end.
    fn join(&mut self, sources: &[Source]) {
        let now = Instant::now();
        let tail = self.reader.options.tail.filter(|_| !self.begun);
        for source in sources {
            self.tasks.entry(source.task).or_insert_with(|| Progress {
                name: source.name.clone(),
                node: source.node,
                phase: Phase::Wanted(now),
                tail,
                seen: HashMap::new(),
                resumed: HashMap::new(),
            });
        }
        let known: HashSet<TaskId> = sources.iter().map(|source| source.task).collect();
        self.tasks.retain(|task, progress| known.contains(task) || matches!(progress.phase, Phase::Streaming(_)));
    }

    /// Requests that will not be answered any more: their session ended, or the node was silent for too long.
    fn give_up_lost(&mut self, state: &State) -> Vec<String> {
        let is_lost = |open: &&Open| {
            let request = &open.request;
            let gone = self.reader.reach.route(request.node) != Some(request.route);
            (gone || open.asked.elapsed() >= SILENCE) && !self.reader.streams.is_answered(request.id)
        };
        let lost: Vec<u64> = self.open.values().filter(is_lost).map(|open| open.request.id).collect();
        lost.into_iter().filter_map(|id| self.broken(id, state)).collect()
    }

    fn ask(&mut self, ask: Ask, tasks: Vec<TaskId>) {
        let options = LogOptions { tail: ask.tail, since_ns: ask.since_ns, ..self.reader.options.clone() };
        let Ok((request, pieces)) = self.reader.streams.open(ask.node, &tasks, options) else {
            // Its session has just ended: the next look says so.
            return;
        };
        let id = request.id;
        for task in &tasks {
            if let Some(progress) = self.tasks.get_mut(task) {
                progress.phase = Phase::Streaming(id);
                progress.resumed.clone_from(&progress.seen);
            }
        }
        self.open.insert(id, Open { request, asked: Instant::now(), tasks });
        self.pieces.push(tagged(id, pieces).boxed());
    }

    /// Hands a piece on. Says whether something ended, so that it is time to look.
    async fn take(&mut self, (id, piece): Tagged) -> Result<bool, Left> {
        match piece {
            Some(Piece::Lines { lines, warnings }) => {
                let names = self.names(id);
                let mut fresh: Vec<LogLine> = lines.into_iter().filter(|line| self.is_new(line)).collect();
                fresh.iter_mut().for_each(|line| name(line, &names));
                self.reader.send(fresh, warnings).await?;
                Ok(false)
            }
            Some(Piece::Done) => {
                if let Some(mut open) = self.open.remove(&id) {
                    open.request.done = true;
                    self.finished(&open.tasks);
                }
                Ok(true)
            }
            None => {
                let state = self.reader.store.state();
                if let Some(warning) = self.broken(id, &state) {
                    self.reader.warn(warning).await?;
                }
                Ok(true)
            }
        }
    }

    /// The node said all there is: a task that goes on is asked for again, from where it was.
    fn finished(&mut self, tasks: &[TaskId]) {
        let state = self.reader.store.state();
        for task in tasks {
            let ended = state.task(*task).is_none_or(|task| task.state.is_terminal());
            let phase = if ended { Phase::Done } else { Phase::Wanted(Instant::now() + AGAIN_AFTER) };
            if let Some(progress) = self.tasks.get_mut(task) {
                progress.phase = phase;
            }
        }
    }

    /// The stream broke off: its tasks are asked for again. `None`: it was known to be at its end.
    fn broken(&mut self, id: u64, state: &State) -> Option<String> {
        let open = self.open.remove(&id)?;
        let again = Instant::now() + AGAIN_AFTER;
        let mut names = Vec::new();
        for task in &open.tasks {
            if let Some(progress) = self.tasks.get_mut(task) {
                progress.phase = Phase::Wanted(again);
                names.push(progress.name.clone());
            }
        }
        names.sort();
        let node = select::node_name(state, open.request.node);
        Some(unreadable(&names, &node, "the node broke off; its lines go on when it is back"))
    }

    /// Whether a line was not sent on before, by a stream that then broke off.
    fn is_new(&mut self, line: &LogLine) -> bool {
        let progress = TaskId::from_wire(&line.task_id).ok().and_then(|task| self.tasks.get_mut(&task));
        let Some(progress) = progress else { return false };
        if progress.resumed.get(&line.container).is_some_and(|last| line.time_ns <= *last) {
            return false;
        }
        match progress.seen.get_mut(&line.container) {
            Some(last) => *last = line.time_ns.max(*last),
            None => drop(progress.seen.insert(line.container.clone(), line.time_ns)),
        }
        true
    }

    fn names(&self, id: u64) -> HashMap<TaskId, String> {
        let tasks = self.open.get(&id).map(|open| open.tasks.as_slice()).unwrap_or_default();
        tasks.iter().filter_map(|task| Some((*task, self.tasks.get(task)?.name.clone()))).collect()
    }

    /// When to look again though nothing changes: a task is to be asked for again, or an answer is overdue.
    fn next_look(&self) -> Option<Instant> {
        let wanted = self.tasks.values().filter_map(|task| match task.phase {
            Phase::Wanted(at) => Some(at),
            Phase::Unreachable | Phase::Streaming(_) | Phase::Done => None,
        });
        let unanswered = self.open.values().filter(|open| !self.reader.streams.is_answered(open.request.id));
        let overdue = unanswered.map(|open| open.asked + SILENCE);
        // At the earliest after a short while: a node whose session ends just now is looked at again.
        wanted.chain(overdue).min().map(|at| at.max(Instant::now() + LOOK_EVERY))
    }
}

/// From where a task is read: as the reader asked, or from its last line on if it was read before.
fn ask(options: &LogOptions, progress: &Progress) -> Ask {
    // A container that said less has its lines repeated, and they are left out again.
    let resumed = progress.seen.values().min().map(|last| last + 1);
    Ask {
        node: progress.node,
        since_ns: resumed.map_or(options.since_ns, |from| from.max(options.since_ns)),
        tail: progress.tail.filter(|_| resumed.is_none()),
    }
}

/// The pieces of a stream with its number, and at their end a `None`.
fn tagged(id: u64, pieces: mpsc::Receiver<Piece>) -> impl Stream<Item = Tagged> + Send {
    ReceiverStream::new(pieces).map(move |piece| (id, Some(piece))).chain(once(async move { (id, None) }))
}
