//! Logs of tasks on several nodes, read by an operator.

use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::v1::logs_client::LogsClient;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::{LogBatch, LogChunk, LogLine, LogOptions, LogRequest, NodeState, ReadLogsRequest, TaskState};
use tonic::{Code, Status, Streaming};

use crate::agent::{Agent, observed};
use crate::swarm::{Member, Swarm, soon};

const DIGEST: &str = "sha256:00";

/// Two nodes with one running task each.
struct Pair {
    swarm: Swarm,
    web: ServiceId,
    hosts: [Member; 2],
    agents: [Agent; 2],
}

impl Pair {
    async fn start() -> Self {
        let swarm = Swarm::start().await;
        let hosts = [swarm.join("host2").await, swarm.join("host3").await];
        let mut agents = [Agent::connect(&hosts[0], "host2").await, Agent::connect(&hosts[1], "host3").await];
        let web = swarm.create_service("web", DIGEST, 2).await;
        for agent in &mut agents {
            agent.until("a task", |tasks| tasks.len() == 1).await;
            run_all(agent).await;
        }
        Self { swarm, web, hosts, agents }
    }

    /// What people call the task of an agent.
    fn name(&self, agent: usize) -> String {
        format!("web.{}", self.agents[agent].tasks.values().next().unwrap().slot)
    }

    async fn read(&self, options: LogOptions) -> Streaming<LogBatch> {
        let request =
            ReadLogsRequest { service_id: self.web.to_vec(), options: Some(options), ..ReadLogsRequest::default() };
        let mut client = LogsClient::new(self.swarm.operator());
        soon("read", client.read(request)).await.unwrap().into_inner()
    }
}

async fn run_all(agent: &mut Agent) {
    let reports = agent.tasks.keys().map(|task| observed(*task, TaskState::Running)).collect();
    agent.report(reports).await;
}

fn line(task: TaskId, time_ns: i64, text: &str) -> LogLine {
    LogLine { task_id: task.to_vec(), container: "main".into(), time_ns, data: text.into(), ..LogLine::default() }
}

fn only_task(request: &LogRequest) -> TaskId {
    assert_eq!(request.task_ids.len(), 1);
    TaskId::from_wire(&request.task_ids[0]).unwrap()
}

/// Answers the next log request with lines at these times, and ends.
async fn answer(agent: &mut Agent, times: &[i64]) {
    let request = agent.log_request().await;
    let task = only_task(&request);
    let (chunks, answered) = agent.publish();
    for (number, time) in times.iter().enumerate() {
        // Only the first chunk says which stream it is.
        let stream_id = if number == 0 { request.stream_id } else { 0 };
        let lines = vec![line(task, *time, &format!("{time}\n"))];
        chunks.send(LogChunk { stream_id, lines, warnings: Vec::new() }).await.unwrap();
    }
    drop(chunks);
    soon("the stream's end", answered).await.unwrap().unwrap();
}

/// Everything until the end.
async fn all(mut stream: Streaming<LogBatch>) -> (Vec<LogLine>, Vec<String>) {
    let (mut lines, mut warnings) = (Vec::new(), Vec::new());
    soon("the logs' end", async {
        while let Some(batch) = stream.message().await.unwrap() {
            lines.extend(batch.lines);
            warnings.extend(batch.warnings);
        }
    })
    .await;
    (lines, warnings)
}

/// Lines and warnings until there are so many of them.
async fn some(stream: &mut Streaming<LogBatch>, count: usize) -> (Vec<LogLine>, Vec<String>) {
    let (mut lines, mut warnings) = (Vec::new(), Vec::new());
    soon("log lines", async {
        while lines.len() + warnings.len() < count {
            let batch = stream.message().await.unwrap().expect("the logs ended");
            lines.extend(batch.lines);
            warnings.extend(batch.warnings);
        }
    })
    .await;
    (lines, warnings)
}

#[tokio::test]
async fn lines_of_all_nodes_come_in_order_of_time() {
    let mut pair = Pair::start().await;
    let stream = pair.read(LogOptions { tail: Some(3), ..LogOptions::default() }).await;
    let (names, [first, second]) = ([pair.name(0), pair.name(1)], &mut pair.agents);
    let ((), (), (lines, warnings)) = tokio::join!(answer(first, &[1, 4, 5]), answer(second, &[2, 3, 6]), all(stream));
    assert_eq!(lines.iter().map(|line| line.time_ns).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    let of: Vec<&str> = lines.iter().map(|line| line.task_name.as_str()).collect();
    let (a, b) = (names[0].as_str(), names[1].as_str());
    assert_eq!(of, [a, b, b, a, a, b]);
    assert_eq!(NodeId::from_wire(&lines[0].node_id).unwrap(), pair.hosts[0].id, "the manager says whose line it is");
    assert!(warnings.is_empty(), "{warnings:?}");
    pair.swarm.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_said_and_the_rest_is_read() {
    let mut pair = Pair::start().await;
    let name = pair.name(1);
    pair.agents[1].hang_up();
    let down = pair.hosts[1].id;
    pair.swarm.until("down", |state| state.node(down).unwrap().status.state == NodeState::Down).await;
    let stream = pair.read(LogOptions::default()).await;
    let ((), (lines, warnings)) = tokio::join!(answer(&mut pair.agents[0], &[1, 2]), all(stream));
    assert_eq!(lines.len(), 2);
    assert_eq!(warnings, [format!("cannot read logs of {name} on host3: node is down")]);
    pair.swarm.stop().await;
}

#[tokio::test]
async fn a_node_that_breaks_off_is_said() {
    let mut pair = Pair::start().await;
    let stream = pair.read(LogOptions::default()).await;
    let name = pair.name(1);
    let [first, second] = &mut pair.agents;
    let breaks_off = async {
        let request = second.log_request().await;
        let (chunks, answered) = second.publish();
        let lines = vec![line(only_task(&request), 1, "1\n")];
        chunks.send(LogChunk { stream_id: request.stream_id, lines, warnings: vec!["a word".into()] }).await.unwrap();
        // Too large a chunk ends the stream.
        let lines = vec![line(only_task(&request), 2, &"x".repeat(2 << 20))];
        chunks.send(LogChunk { stream_id: 0, lines, warnings: Vec::new() }).await.unwrap();
        let status = soon("the stream's end", answered).await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    };
    let ((), (), (lines, warnings)) = tokio::join!(answer(first, &[5]), breaks_off, all(stream));
    assert_eq!(lines.iter().map(|line| line.time_ns).collect::<Vec<_>>(), [1, 5]);
    assert_eq!(warnings, ["a word".to_owned(), format!("cannot read logs of {name} on host3: the node broke off")]);
    pair.swarm.stop().await;
}

#[tokio::test]
async fn following_takes_in_new_tasks_and_ends_with_the_reader() {
    let mut pair = Pair::start().await;
    let mut stream = pair.read(LogOptions { follow: true, tail: Some(1), ..LogOptions::default() }).await;
    let mut open = Vec::new();
    for agent in &mut pair.agents {
        let request = agent.log_request().await;
        assert_eq!(request.options.as_ref().unwrap().tail, Some(1));
        let (chunks, answered) = agent.publish();
        let lines = vec![line(only_task(&request), 1, "old\n")];
        chunks.send(LogChunk { stream_id: request.stream_id, lines, warnings: Vec::new() }).await.unwrap();
        open.push((request.stream_id, chunks, answered));
    }
    assert_eq!(some(&mut stream, 2).await.0.len(), 2);

    // A new task joins, from its beginning.
    pair.swarm.scale(pair.web, 3).await;
    let web = pair.web;
    pair.swarm
        .until("a third task on a node", |state| {
            state.tasks_of_service(web).filter(|task| task.node.is_some()).count() == 3
        })
        .await;
    let third = pair.swarm.tasks(web).into_iter().find(|task| task.state < TaskState::Running).unwrap();
    let at = pair.hosts.iter().position(|host| Some(host.id) == third.node).unwrap();
    let agent = &mut pair.agents[at];
    agent.until("its second task", |tasks| tasks.len() == 2).await;
    agent.report(vec![observed(third.id, TaskState::Starting)]).await;
    let request = agent.log_request().await;
    assert_eq!(only_task(&request), third.id);
    assert_eq!(request.options.as_ref().unwrap().tail, None);
    let (chunks, answered) = agent.publish();
    let lines = vec![line(third.id, 2, "new\n")];
    chunks.send(LogChunk { stream_id: request.stream_id, lines, warnings: Vec::new() }).await.unwrap();
    let (lines, _) = some(&mut stream, 1).await;
    assert_eq!((lines[0].data.as_slice(), lines[0].task_name.as_str()), (b"new\n".as_slice(), "web.3"));
    open.push((request.stream_id, chunks, answered));

    drop(stream);
    for (_, _chunks, answered) in open {
        let status = soon("the stream's end", answered).await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Cancelled);
    }
    let cancelled = pair.agents[at].wait_for("a cancellation", |message| match message {
        Down::LogCancel(cancel) => Some(cancel.stream_id),
        _ => None,
    });
    cancelled.await;
    pair.swarm.stop().await;
}

#[tokio::test]
async fn following_goes_on_where_a_stream_ended() {
    let mut pair = Pair::start().await;
    let mut stream = pair.read(LogOptions { follow: true, ..LogOptions::default() }).await;
    // The second node has nothing to say, all the time.
    let quiet = pair.agents[1].log_request().await;
    let (quiet_chunks, _answered) = pair.agents[1].publish();
    quiet_chunks.send(LogChunk { stream_id: quiet.stream_id, ..LogChunk::default() }).await.unwrap();

    let agent = &mut pair.agents[0];
    let request = agent.log_request().await;
    let task = only_task(&request);
    let (chunks, answered) = agent.publish();
    let lines = vec![line(task, 10, "ten\n"), line(task, 20, "twenty\n")];
    chunks.send(LogChunk { stream_id: request.stream_id, lines, warnings: Vec::new() }).await.unwrap();
    assert_eq!(some(&mut stream, 2).await.0.len(), 2);
    // Too large a chunk breaks the stream.
    let lines = vec![line(task, 25, &"x".repeat(2 << 20))];
    chunks.send(LogChunk { stream_id: 0, lines, warnings: Vec::new() }).await.unwrap();
    assert!(soon("the stream's end", answered).await.unwrap().is_err());
    let (_, warnings) = some(&mut stream, 1).await;
    assert!(warnings[0].contains("the node broke off"), "{warnings:?}");

    for (since, end) in [(21, 30), (31, 40)] {
        let again = agent.log_request().await;
        assert_eq!(again.options.as_ref().unwrap().since_ns, since);
        let (chunks, answered) = agent.publish();
        // A node that repeats itself is not repeated.
        let lines = vec![line(task, since - 1, "old\n"), line(task, end, "new\n")];
        chunks.send(LogChunk { stream_id: again.stream_id, lines, warnings: Vec::new() }).await.unwrap();
        let (lines, warnings) = some(&mut stream, 1).await;
        assert_eq!(lines.iter().map(|line| line.time_ns).collect::<Vec<_>>(), [end], "{warnings:?}");
        // A stream that ends before its task is taken up again; an aborted one looks the same.
        answered.abort();
    }
    pair.swarm.stop().await;
}

#[tokio::test]
async fn following_tasks_ends_when_they_have_ended() {
    let mut pair = Pair::start().await;
    let task = *pair.agents[0].tasks.keys().next().unwrap();
    let options = Some(LogOptions { follow: true, ..LogOptions::default() });
    let request = ReadLogsRequest { task_ids: vec![task.to_vec()], options, ..ReadLogsRequest::default() };
    let mut client = LogsClient::new(pair.swarm.operator());
    let stream = soon("read", client.read(request)).await.unwrap().into_inner();
    let agent = &mut pair.agents[0];
    let request = agent.log_request().await;
    let (chunks, _answered) = agent.publish();
    let lines = vec![line(task, 1, "last\n")];
    chunks.send(LogChunk { stream_id: request.stream_id, lines, warnings: Vec::new() }).await.unwrap();
    agent.report(vec![observed(task, TaskState::Failed)]).await;
    drop(chunks);
    let (lines, warnings) = all(stream).await;
    assert_eq!((lines.len(), warnings.len()), (1, 0), "{warnings:?}");
    pair.swarm.stop().await;
}

#[tokio::test]
async fn only_operators_read_and_only_what_is_there() {
    let pair = Pair::start().await;
    let by = |request: ReadLogsRequest, channel| async move {
        let mut client = LogsClient::new(channel);
        let result: Result<_, Status> = soon("read", client.read(request)).await;
        result.map(|_| ()).unwrap_err().code()
    };
    let service = ReadLogsRequest { service_id: pair.web.to_vec(), ..ReadLogsRequest::default() };
    assert_eq!(by(service.clone(), pair.hosts[0].channel.clone()).await, Code::PermissionDenied);
    let nothing = ReadLogsRequest::default();
    assert_eq!(by(nothing, pair.swarm.operator()).await, Code::InvalidArgument);
    let unknown = ReadLogsRequest { service_id: ServiceId::new(5).to_vec(), ..ReadLogsRequest::default() };
    assert_eq!(by(unknown, pair.swarm.operator()).await, Code::NotFound);
    let unknown = ReadLogsRequest { task_ids: vec![TaskId::new(5).to_vec()], ..ReadLogsRequest::default() };
    assert_eq!(by(unknown, pair.swarm.operator()).await, Code::NotFound);
    let both = ReadLogsRequest { task_ids: vec![TaskId::new(5).to_vec()], ..service };
    assert_eq!(by(both, pair.swarm.operator()).await, Code::InvalidArgument);
    pair.swarm.stop().await;
}
