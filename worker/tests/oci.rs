//! The agent with real containers: a busybox image, network namespaces, cgroups, monitors. Needs root and a static
//! /bin/busybox; says so and passes where they are missing.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_image::{Digest, Images, ImportOptions, Progress, Registry, RegistryConfig, RunConfig, Store, StoreOptions};
use skep_proto::v1::assignment_item::Item;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::*;
use skep_worker::{AgentHandle, GcPolicy, Networks, OciConfig, OciExecutor};
use support::*;

/// One node with real containers; removes everything it made.
struct Host {
    node: TestNode,
    images: Images,
    image: Digest,
    config: OciConfig,
}

impl Host {
    /// `None`: this machine cannot run containers.
    async fn new(test: &str) -> Option<Self> {
        // SAFETY: geteuid(2) has no preconditions.
        if unsafe { libc::geteuid() } != 0 || !Path::new("/bin/busybox").exists() {
            println!("skipped: needs root and a static /bin/busybox");
            return None;
        }
        let node = TestNode::new();
        let config = OciConfig {
            node: Some(NODE),
            hostname: "host1".to_owned(),
            data_dir: node.data.path().to_owned(),
            cgroup_parent: PathBuf::from(format!("skep-worker-test-{}-{test}", std::process::id())),
            core_limit: (0, 0),
            runtime: std::env::var("SKEP_TEST_RUNTIME").unwrap_or_default(),
            users: None,
        };
        let store = Store::open(&node.data.path().join("images"), StoreOptions::default()).unwrap();
        let images = Images::new(store, Registry::new(RegistryConfig::default()));
        let image = import_busybox(&images).await;
        Some(Self { node, images, image, config })
    }

    fn executor(&self) -> Arc<OciExecutor> {
        let (config, images) = (self.config.clone(), self.images.clone());
        let (connector, policy) = (Arc::new(Plain::default()), GcPolicy::default());
        Arc::new(OciExecutor::with_policy(config, images, connector, Networks::none(), policy))
    }

    async fn start(&self, server: &Server) -> AgentHandle {
        self.node.start_with(&[server.addr], self.executor()).await.0
    }

    /// A container that runs a shell script.
    fn shell(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: name.to_owned(),
            image: "registry.invalid/busybox:1".to_owned(),
            image_digest: self.image.to_string(),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            ..ContainerSpec::default()
        }
    }

    fn mounts_left(&self) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = self.node.data.path().to_str().unwrap().to_owned();
        table.lines().filter(|line| line.contains(&own)).map(str::to_owned).collect()
    }

    fn cgroups_left(&self) -> Vec<String> {
        let groups = skep_runtime::cgroup::Cgroups::detect().unwrap().unwrap();
        container_groups(&groups, &self.config.cgroup_parent)
    }

    /// Leaves as a node does that leaves its swarm, and checks that nothing is left.
    async fn end(self, agent: AgentHandle) {
        agent.stop_all().await;
        assert_eq!(self.cgroups_left(), Vec::<String>::new());
        OciExecutor::clear(&self.config).await.unwrap();
        assert_eq!(self.mounts_left(), Vec::<String>::new());
        for gone in ["tasks", "sandboxes", "runtime", "agent"] {
            assert!(!self.node.data.path().join(gone).exists(), "{gone} is left");
        }
    }
}

impl Drop for Host {
    /// For a test that fails; one that passes has left nothing.
    fn drop(&mut self) {
        let sandboxes = self.node.data.path().join("sandboxes");
        if sandboxes.exists() {
            let _ = skep_overlay::Sandboxes::open(&sandboxes).and_then(skep_overlay::Sandboxes::close);
        }
        if let Ok(Some(groups)) = skep_runtime::cgroup::Cgroups::detect() {
            groups.kill_all(&self.config.cgroup_parent.join("shims"));
            for group in container_groups(&groups, &self.config.cgroup_parent) {
                groups.kill_all(&self.config.cgroup_parent.join(group));
            }
            std::thread::sleep(Duration::from_millis(if std::thread::panicking() { 200 } else { 0 }));
            groups.remove(&self.config.cgroup_parent);
        }
    }
}

/// Groups of containers, relative to the parent: everything in it but the monitors' own.
fn container_groups(groups: &skep_runtime::cgroup::Cgroups, parent: &Path) -> Vec<String> {
    let kinds = groups.children(parent).into_iter().filter(|kind| kind != "shims");
    kinds
        .flat_map(|kind| groups.children(&parent.join(&kind)).into_iter().map(move |id| format!("{kind}/{id}")))
        .collect()
}

async fn import_busybox(images: &Images) -> Digest {
    let root = tempfile::tempdir().unwrap();
    for dir in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        std::fs::create_dir(root.path().join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
    for applet in
        ["sh", "sleep", "echo", "cat", "ls", "readlink", "env", "hostname", "kill", "true", "false", "id", "grep"]
    {
        symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/:/bin/sh\n").unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    tar.append_dir_all(".", root.path()).unwrap();
    let bytes = tar.into_inner().unwrap();
    let config = RunConfig {
        env: vec!["FROM_IMAGE=yes".to_owned(), "PATH=/bin".to_owned()],
        cmd: vec!["sh".to_owned()],
        ..RunConfig::default()
    };
    let options = ImportOptions { config, ..ImportOptions::default() };
    images.import(&bytes[..], options, Progress::none()).await.unwrap().digest
}

fn with_template(number: u64, template: TaskTemplate) -> AssignmentItem {
    let mut item = revision_of(number, vec![], None);
    if let Some(Item::Revision(revision)) = &mut item.item {
        revision.template = Some(template);
    }
    item
}

/// The lines that a task has written so far, by the session's log protocol.
async fn logs(manager: &TestManager, task: u128) -> String {
    let stream_id = {
        let mut state = manager.state();
        state.log_lines.clear();
        state.log_streams_ended as u64 + 1000
    };
    let ended = manager.state().log_streams_ended;
    manager.send(Down::LogRequest(LogRequest {
        stream_id,
        task_ids: vec![task_id(task).to_vec()],
        options: Some(LogOptions::default()),
    }));
    until("the log stream ends", || manager.state().log_streams_ended > ended).await;
    let state = manager.state();
    state.log_lines.iter().map(|line| String::from_utf8_lossy(&line.data).into_owned()).collect()
}

async fn until_state(manager: &TestManager, task: u128, wanted: TaskState) {
    until(&format!("task {task} is {wanted:?}"), || {
        let told = manager.state().statuses.get(&task_id(task)).cloned();
        if let Some(status) = &told
            && status.state().is_terminal()
        {
            assert_eq!(status.state(), wanted, "{status:?}");
        }
        told.is_some_and(|status| status.state() == wanted)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_runs_as_its_spec_says() {
    let Some(host) = Host::new("spec").await else { return };
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let agent = host.start(&server).await;
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("file"), "from the host\n").unwrap();
    let script = "env; hostname; cat /etc/hosts /shared/file; id -u; ls /sys/class/net; echo broken >&2; exit 3";
    let mut main = host.shell("main", script);
    main.env = vec!["MINE={{.Service.Name}}.{{.Task.Slot}}".to_owned()];
    main.user = "www".to_owned();
    main.mounts = vec![MountSpec {
        source: shared.path().to_str().unwrap().to_owned(),
        target: "/shared".to_owned(),
        read_only: true,
        ..MountSpec::default()
    }];
    let template = TaskTemplate {
        containers: vec![main],
        hostname: "web-{{.Task.Slot}}".to_owned(),
        hosts: vec!["db:10.9.8.7".to_owned()],
        network_mode: NetworkMode::None.into(),
        ..TaskTemplate::default()
    };
    manager.assign(vec![task(1, 1, WantedState::Running), with_template(1, template)], vec![]);
    until_state(&manager, 1, TaskState::Failed).await;
    let status = manager.state().statuses[&task_id(1)].clone();
    assert_eq!(status.error, "task: non-zero exit (3)");
    assert_eq!(status.containers[0].exit_code, 3);
    let text = logs(&manager, 1).await;
    for line in [
        "FROM_IMAGE=yes\n",
        "MINE=web.1\n",
        "HOSTNAME=web-1\n",
        "web-1\n",
        "10.9.8.7\tdb\n",
        "from the host\n",
        "33\n",
        "lo\n",
        "broken\n",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    assert!(!text.contains("eth0"));
    // The task is still assigned, so its logs stay; all else is gone.
    until("removed", || host.cgroups_left().is_empty()).await;
    manager.assign(vec![], vec![removed(1)]);
    let folder = host.node.data.path().join("tasks").join(task_id(1).to_string());
    until("forgotten", || !folder.exists()).await;
    host.end(agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_finds_the_same_container() {
    let Some(host) = Host::new("restart").await else { return };
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let agent = host.start(&server).await;
    // Ends by itself when the file appears, with a code of its own.
    let flag = tempfile::tempdir().unwrap();
    let script = "i=0; while [ ! -e /flag/end ]; do echo line $i; i=$((i+1)); sleep 0.05; done; exit 42";
    let mut main = host.shell("main", script);
    main.mounts = vec![MountSpec {
        source: flag.path().to_str().unwrap().to_owned(),
        target: "/flag".to_owned(),
        ..MountSpec::default()
    }];
    let stays = host.shell("main", "trap 'exit 0' TERM; while true; do sleep 0.05; done");
    manager.assign(
        vec![
            task(1, 1, WantedState::Running),
            revision_of(1, vec![main], None),
            task(2, 2, WantedState::Running),
            revision_of(2, vec![stays], None),
        ],
        vec![],
    );
    until_state(&manager, 1, TaskState::Running).await;
    until_state(&manager, 2, TaskState::Running).await;
    let pid = manager.state().statuses[&task_id(2)].containers[0].pid;
    while !logs(&manager, 1).await.contains("line 1\n") {}
    agent.shutdown().await;
    // The log goes on without an agent.
    let log = host.node.data.path().join(format!("tasks/{}/main/container.log", task_id(1)));
    until("more lines", || std::fs::read_to_string(&log).unwrap().contains("line 5")).await;
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "containers go on without an agent");
    std::fs::write(flag.path().join("end"), "").unwrap();
    // It ends while nobody looks.
    let one = manager.state().statuses[&task_id(1)].containers[0].pid;
    until("ended", || !Path::new(&format!("/proc/{one}")).exists()).await;

    let agent = host.start(&server).await;
    until_state(&manager, 1, TaskState::Failed).await;
    assert_eq!(manager.state().statuses[&task_id(1)].containers[0].exit_code, 42);
    assert_eq!(agent.containers_running(), 1);
    assert_eq!(manager.state().statuses[&task_id(2)].containers[0].pid, pid);
    let text = logs(&manager, 1).await;
    assert!(text.starts_with("line 0\nline 1\n") && text.contains("line 5\n"), "{text}");
    // Stopping works on what was taken over: by its own handler, so well before the grace period is over.
    let start = Instant::now();
    manager.assign(vec![task(2, 2, WantedState::Shutdown)], vec![]);
    until_state(&manager, 2, TaskState::Shutdown).await;
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(manager.state().statuses[&task_id(2)].containers[0].exit_code, 0);
    host.end(agent).await;
}

fn check(line: &str, timeout_ms: i64) -> HealthCheck {
    HealthCheck {
        test: vec!["CMD-SHELL".to_owned(), line.to_owned()],
        interval_ms: 50,
        timeout_ms,
        retries: 2,
        ..HealthCheck::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_check_decides_when_it_runs_and_when_it_has_failed() {
    let Some(host) = Host::new("health").await else { return };
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let agent = host.start(&server).await;
    let status = || manager.state().statuses.get(&task_id(1)).cloned().unwrap_or_default();
    let flags = tempfile::tempdir().unwrap();
    let mut main = host.shell("main", "trap 'echo stopped; exit 7' TERM; while true; do sleep 0.05; done");
    main.mounts = vec![MountSpec {
        source: flags.path().to_str().unwrap().to_owned(),
        target: "/flags".to_owned(),
        ..MountSpec::default()
    }];
    // Its environment, its processes, its files.
    main.env = vec!["FLAG=/flags/up".to_owned()];
    // Failures are excused until the first success.
    main.health_check = Some(check("ls $FLAG && [ -d /proc/1 ] && readlink /proc/1/exe | grep -q busybox", 10_000));
    let excused = main.health_check.as_mut().unwrap();
    (excused.start_period_ms, excused.start_interval_ms) = (600_000, 50);
    manager.assign(vec![task(1, 1, WantedState::Running), revision_of(1, vec![main], None)], vec![]);
    until("a check to fail", || status().containers.iter().any(|one| !one.health_output.is_empty())).await;
    assert_eq!(status().state(), TaskState::Starting);
    std::fs::write(flags.path().join("up"), "").unwrap();
    until_state(&manager, 1, TaskState::Running).await;
    assert_eq!(status().containers[0].health(), HealthState::Healthy);
    let pid = status().containers[0].pid;

    // Agents come and go; the container is healthy throughout.
    agent.shutdown().await;
    let agent = host.start(&server).await;
    until("connected", || manager.state().registers.len() == 2).await;
    assert_eq!((status().state(), status().containers[0].pid), (TaskState::Running, pid));
    std::fs::remove_file(flags.path().join("up")).unwrap();
    until_state(&manager, 1, TaskState::Failed).await;
    let error = status().error;
    assert!(
        error.starts_with("unhealthy container: health check failed 2 times: ls: /flags/up: No such file"),
        "{error}"
    );
    let container = status().containers[0].clone();
    assert_eq!((container.health(), container.failing_streak), (HealthState::Unhealthy, 2));
    assert_eq!(container.exit_code, 7, "it was asked to stop by its stop signal");
    let told = manager.state().told[&task_id(1)].clone();
    assert!(told.is_sorted(), "no state is taken back: {told:?}");
    host.end(agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_check_is_killed_and_blocks_nobody() {
    let Some(host) = Host::new("stuck").await else { return };
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let agent = host.start(&server).await;
    let mut stuck = host.shell("main", "trap 'exit 0' TERM; while true; do sleep 0.05; done");
    stuck.health_check = Some(check("echo wait; sleep 1000 & sleep 1000", 200));
    let mut none = stuck.clone();
    none.health_check = Some(HealthCheck { test: vec!["NONE".to_owned()], ..HealthCheck::default() });
    let mut odd = stuck.clone();
    odd.health_check = Some(HealthCheck { test: vec!["PING".to_owned()], ..HealthCheck::default() });
    let mut absent = stuck.clone();
    absent.health_check = Some(HealthCheck { test: vec!["CMD".to_owned(), "nosuch".to_owned()], ..check("", 200) });
    let mut assigned = Vec::new();
    for (number, container) in [(1, stuck), (2, none), (3, odd), (4, absent)] {
        assigned.push(task(number, number as u64, WantedState::Running));
        assigned.push(revision_of(number as u64, vec![container], None));
    }
    manager.assign(assigned, vec![]);
    until_state(&manager, 2, TaskState::Running).await;
    until_state(&manager, 3, TaskState::Rejected).await;
    until_state(&manager, 1, TaskState::Failed).await;
    until_state(&manager, 4, TaskState::Failed).await;
    let status = |number| manager.state().statuses[&task_id(number)].clone();
    let error = status(1).error;
    assert_eq!(
        error,
        "unhealthy container: health check failed 2 times: health check exceeded its timeout of 200ms wait"
    );
    assert_eq!(status(2).containers[0].health(), HealthState::None);
    assert!(status(3).error.contains("\"PING\" is not a kind of health check"), "{}", status(3).error);
    assert!(status(4).error.contains("executable file not found in $PATH"), "{}", status(4).error);
    host.end(agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_a_task_share_a_network_and_end_together() {
    let Some(host) = Host::new("pod").await else { return };
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let agent = host.start(&server).await;
    let mut web = host.shell("web", "readlink /proc/self/ns/net; exec sleep 1000");
    web.depends_on = vec!["db".to_owned()];
    let db = host.shell("db", "readlink /proc/self/ns/net; exec sleep 1000");
    manager.assign(vec![task(1, 1, WantedState::Running), revision_of(1, vec![web, db], None)], vec![]);
    until_state(&manager, 1, TaskState::Running).await;
    let mut text = String::new();
    while text.lines().count() < 2 {
        text = logs(&manager, 1).await;
    }
    let namespaces: Vec<_> = text.lines().collect();
    assert_eq!(namespaces[0], namespaces[1]);
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(namespaces[0], own.to_str().unwrap());
    let stats_of = manager.state().statuses[&task_id(1)].containers.len();
    assert_eq!(stats_of, 2);
    // One is killed from outside: the other one is stopped, the task has failed.
    let db = manager.state().statuses[&task_id(1)].containers[1].pid;
    // SAFETY: kill(2) on the pid of a container of this test.
    unsafe { libc::kill(db.cast_signed(), libc::SIGKILL) };
    until_state(&manager, 1, TaskState::Failed).await;
    assert_eq!(manager.state().statuses[&task_id(1)].error, "container db: non-zero exit (137)");
    host.end(agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_run_says_why() {
    let Some(host) = Host::new("errors").await else { return };
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let agent = host.start(&server).await;
    let no_command = ContainerSpec { command: vec!["/bin/nosuch".to_owned()], ..host.shell("main", "") };
    let no_bind = ContainerSpec {
        mounts: vec![MountSpec { source: "/no/such/path".to_owned(), target: "/x".to_owned(), ..MountSpec::default() }],
        ..host.shell("main", "true")
    };
    let no_image = ContainerSpec {
        image: "127.0.0.1:1/nothing:1".to_owned(),
        image_digest: Digest::of(b"nothing").to_string(),
        ..host.shell("main", "true")
    };
    let hungry = ContainerSpec {
        resources: Some(ResourceSpec {
            limits: Some(Resources { memory_bytes: 16 << 20, ..Resources::default() }),
            ..ResourceSpec::default()
        }),
        ..host.shell("main", "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done")
    };
    let mut put = Vec::new();
    for (number, container) in (1u64..).zip([no_command, no_bind, no_image, hungry]) {
        put.push(task(u128::from(number), number, WantedState::Running));
        put.push(revision_of(number, vec![container], None));
    }
    manager.assign(put, vec![]);
    until_state(&manager, 1, TaskState::Failed).await;
    until_state(&manager, 2, TaskState::Rejected).await;
    until_state(&manager, 3, TaskState::Rejected).await;
    until_state(&manager, 4, TaskState::Failed).await;
    let error = |number| manager.state().statuses[&task_id(number)].error.clone();
    assert!(error(1).contains("/bin/nosuch") && error(1).contains("no such file"), "{}", error(1));
    assert_eq!(error(2), "bind source path does not exist: /no/such/path");
    assert!(error(3).starts_with("cannot get image 127.0.0.1:1/nothing:1"), "{}", error(3));
    assert!(error(4).contains("out of memory"), "{}", error(4));
    assert!(manager.state().statuses[&task_id(4)].containers[0].oom_killed);
    host.end(agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_is_told_and_cleaned_up() {
    let Some(mut host) = Host::new("power").await else { return };
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let agent = host.start(&server).await;
    let main = host.shell("main", "exec sleep 1000");
    manager.assign(vec![task(1, 1, WantedState::Running), revision_of(1, vec![main], None)], vec![]);
    until_state(&manager, 1, TaskState::Running).await;
    agent.shutdown().await;
    // Everything that ran dies at once, monitors first.
    assert_eq!(host.cgroups_left().len(), 1);
    let pid = manager.state().statuses[&task_id(1)].containers[0].pid.cast_signed();
    let monitor = parent_of(pid);
    for pid in [monitor, pid] {
        // SAFETY: kill(2) on processes that this test started.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        until("dead", || !Path::new(&format!("/proc/{pid}/exe")).exists()).await;
    }
    host.node.boot_id = "boot-2".to_owned();
    let agent = host.start(&server).await;
    until_state(&manager, 1, TaskState::Failed).await;
    assert_eq!(manager.state().statuses[&task_id(1)].error, "host rebooted");
    until("cleaned up", || host.cgroups_left().is_empty()).await;
    host.end(agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_tasks_start_fast() {
    const TASKS: u128 = 50;
    let Some(host) = Host::new("fifty").await else { return };
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let agent = host.start(&server).await;
    until("registered", || manager.state().registers.len() == 1).await;
    // A shell or sleep as process 1 has no handler for SIGTERM, and would wait for its grace period.
    let main = ContainerSpec { stop_signal: "SIGKILL".to_owned(), ..host.shell("main", "exec sleep 1000") };
    let mut put = vec![revision_of(1, vec![main], None)];
    put.extend((1..=TASKS).map(|number| task(number, 1, WantedState::Running)));
    let (start, cpu) = (Instant::now(), cpu_time());
    manager.assign(put, vec![]);
    until("all run", || {
        let state = manager.state();
        let running = state.statuses.values().filter(|status| status.state() == TaskState::Running).count();
        running == TASKS as usize
    })
    .await;
    let cpu = (cpu_time() - cpu) / TASKS as u32;
    println!("{TASKS} containers running after {:?}, {cpu:?} CPU of the agent each", start.elapsed());
    assert_eq!(host.cgroups_left().len(), TASKS as usize);
    let start = Instant::now();
    manager.assign(vec![], (1..=TASKS).map(removed).collect());
    until("all gone", || agent.tasks().is_empty()).await;
    println!("{TASKS} containers gone after {:?}", start.elapsed());
    host.end(agent).await;
}

/// A preparation that is cancelled in the middle of making a sandbox goes on making it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_removed_while_they_are_made_leave_no_sandbox() {
    let Some(host) = Host::new("hasty").await else { return };
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let agent = host.start(&server).await;
    until("registered", || manager.state().registers.len() == 1).await;
    let main = ContainerSpec { stop_signal: "SIGKILL".to_owned(), ..host.shell("main", "exec sleep 1000") };
    manager.assign(vec![revision_of(1, vec![main], None)], vec![]);
    for round in 0..8 {
        let numbers = round * 20 + 1..round * 20 + 21;
        manager.assign(numbers.clone().map(|number| task(number, 1, WantedState::Running)).collect(), vec![]);
        until("the first is being made", || agent.tasks().len() > 1).await;
        manager.assign(vec![], numbers.map(removed).collect());
        until("all gone", || agent.tasks().is_empty()).await;
    }
    let sandboxes = host.node.data.path().join("sandboxes");
    let left: Vec<_> = std::fs::read_dir(sandboxes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    host.end(agent).await;
}

/// CPU time of this process.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the duration of the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Field 4 of proc_pid_stat(5).
fn parent_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().nth(1).unwrap().parse().unwrap()
}
