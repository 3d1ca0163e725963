//! A reader that ends: all nodes are asked at once, and their lines go out by time. A node that says nothing for ten
//! seconds is passed over with a warning.

use std::collections::{BTreeMap, HashMap};

use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::LogLine;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::merge::Merge;
use super::select::{self, Source};
use super::streams::{OpenRequest, Piece};
use super::{Left, Reader, SILENCE};

/// Streams of one reader: each may hold some pieces.
const STREAMS: usize = 256;
/// Streams of one reader at one node, well below HTTP/2's bound of a connection.
const STREAMS_OF_NODE: usize = 32;
/// Lines in one batch.
const BATCH_LINES: usize = 256;
/// Bytes of lines after which a batch goes out.
const BATCH_BYTES: usize = 256 << 10;

/// A node's answer, and what to say if it fails.
struct Lane {
    request: OpenRequest,
    pieces: mpsc::Receiver<Piece>,
    tasks: Vec<String>,
    node: String,
}

/// Lines that go out together.
#[derive(Default)]
struct Batch {
    lines: Vec<LogLine>,
    bytes: usize,
}

pub(super) async fn run(reader: Reader) -> Result<(), Left> {
    let state = reader.store.state();
    let sources = select::sources(&state, &reader.selection);
    let names: HashMap<TaskId, String> = sources.iter().map(|source| (source.task, source.name.clone())).collect();
    let mut warnings = Vec::new();
    let mut lanes = Vec::new();
    for (node, tasks) in requests(&sources) {
        let ids: Vec<TaskId> = tasks.iter().map(|source| source.task).collect();
        let tasks: Vec<String> = tasks.iter().map(|source| source.name.clone()).collect();
        let name = select::node_name(&state, node);
        match reader.streams.open(node, &ids, reader.options.clone()) {
            Ok((request, pieces)) => lanes.push(Lane { request, pieces, tasks, node: name }),
            Err(_) => warnings.push(unreadable(&tasks, &name, select::absence(&state, node))),
        }
    }
    drop(state);
    reader.send(Vec::new(), warnings).await?;
    merge(&reader, lanes, &names).await
}

/// The tasks of each request: as far as the bounds allow a stream for each task, since within a stream lines keep the
/// order in which the node sends them.
fn requests(sources: &[Source]) -> Vec<(NodeId, Vec<&Source>)> {
    let mut of_node: BTreeMap<NodeId, Vec<&Source>> = BTreeMap::new();
    for source in sources {
        of_node.entry(source.node).or_default().push(source);
    }
    let most = (STREAMS / of_node.len().max(1)).clamp(1, STREAMS_OF_NODE);
    of_node
        .into_iter()
        .flat_map(|(node, sources)| {
            let each = sources.len().div_ceil(most);
            let pieces: Vec<_> = sources.chunks(each.max(1)).map(<[&Source]>::to_vec).collect();
            pieces.into_iter().map(move |piece| (node, piece))
        })
        .collect()
}

async fn merge(reader: &Reader, mut lanes: Vec<Lane>, names: &HashMap<TaskId, String>) -> Result<(), Left> {
    let mut merge = Merge::new(lanes.len());
    let mut batch = Batch::default();
    loop {
        fill(reader, &mut lanes, &mut merge, &mut batch).await?;
        let Some(line) = merge.pop() else { return batch.send(reader).await };
        batch.push(line, names);
        if batch.is_full() {
            batch.send(reader).await?;
        }
    }
}

/// Gets the next lines of every stream that has to bring some. All are waited for together, so that several silent
/// nodes cost the silence once.
async fn fill(reader: &Reader, lanes: &mut [Lane], merge: &mut Merge, batch: &mut Batch) -> Result<(), Left> {
    let mut until = None;
    while let Some(number) = merge.needed() {
        let lane = &mut lanes[number];
        if until.is_none() && lane.pieces.is_empty() {
            // What there is goes out before this waits; a slow reader is not the node's silence.
            batch.send(reader).await?;
        }
        let end = *until.get_or_insert_with(|| Instant::now() + SILENCE);
        let why = match timeout_at(end, lane.pieces.recv()).await {
            Ok(Some(Piece::Lines { lines, warnings })) => {
                if !warnings.is_empty() {
                    reader.send(Vec::new(), warnings).await?;
                    until = None;
                }
                merge.push(number, lines);
                continue;
            }
            // An aborted stream ends like a finished one; a node aborts when its session is gone.
            Ok(Some(Piece::Done)) if lane.request.is_current() => {
                lane.request.done = true;
                merge.close(number);
                continue;
            }
            Ok(None | Some(Piece::Done)) => "the node broke off".to_owned(),
            Err(_) => format!("the node said nothing for {} s", SILENCE.as_secs()),
        };
        lane.pieces.close();
        merge.close(number);
        reader.warn(unreadable(&lane.tasks, &lane.node, &why)).await?;
    }
    Ok(())
}

impl Batch {
    fn push(&mut self, mut line: LogLine, names: &HashMap<TaskId, String>) {
        name(&mut line, names);
        self.bytes += line.data.len();
        self.lines.push(line);
    }

    fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_LINES || self.bytes >= BATCH_BYTES
    }

    async fn send(&mut self, reader: &Reader) -> Result<(), Left> {
        self.bytes = 0;
        reader.send(std::mem::take(&mut self.lines), Vec::new()).await
    }
}

/// Fills in the task's name.
pub(super) fn name(line: &mut LogLine, names: &HashMap<TaskId, String>) {
    let task = TaskId::from_wire(&line.task_id).ok();
    if let Some(name) = task.and_then(|task| names.get(&task)) {
        line.task_name.clone_from(name);
    }
}

/// "cannot read logs of web.2 on host3: node is down"
pub(super) fn unreadable(tasks: &[String], node: &str, why: &str) -> String {
    /// More names than this help nobody.
    const NAMED: usize = 5;
    let mut named = tasks.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if tasks.len() > NAMED {
        named.push_str(&format!(" and {} more", tasks.len() - NAMED));
    }
    format!("cannot read logs of {named} on {node}: {why}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sources(nodes: u128, tasks_of_node: u128) -> Vec<Source> {
        let source = |node, task| Source {
            task: TaskId::new(node * 100_000 + task),
            name: String::new(),
            node: NodeId::new(node),
            ended: false,
        };
        (0..nodes).flat_map(|node| (0..tasks_of_node).map(move |task| source(node, task))).collect()
    }

    #[test]
    fn each_task_has_a_stream_until_there_are_too_many() {
        let few = sources(3, 4);
        assert_eq!(requests(&few).len(), 12);
        for (nodes, tasks) in [(1, 1000), (100, 10), (300, 3)] {
            let many = sources(nodes, tasks);
            let requests = requests(&many);
            let of_node = |node: u128| requests.iter().filter(|(of, _)| of.value() == node).count();
            assert!(of_node(0) <= STREAMS_OF_NODE && of_node(0) >= 1);
            assert!(requests.len() <= STREAMS.max(usize::try_from(nodes).unwrap()));
            let all: usize = requests.iter().map(|(_, tasks)| tasks.len()).sum();
            assert_eq!(all, many.len());
            assert!(requests.iter().all(|(node, tasks)| tasks.iter().all(|task| task.node == *node)));
        }
        assert!(requests(&[]).is_empty());
    }

    #[test]
    fn a_warning_names_a_few_tasks() {
        let tasks: Vec<String> = (1..=7).map(|slot| format!("web.{slot}")).collect();
        assert_eq!(
            unreadable(&tasks[1..2], "host3", "node is down"),
            "cannot read logs of web.2 on host3: node is down"
        );
        assert_eq!(
            unreadable(&tasks, "host3", "node is down"),
            "cannot read logs of web.1, web.2, web.3, web.4, web.5 and 2 more on host3: node is down"
        );
    }
}
