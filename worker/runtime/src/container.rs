//! One container as the agent sees it: its state, its end, signals to it. The truth is with the monitor; this is the
//! connection to it, kept by a task of its own, and the last word that came over it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use skep_shim::protocol::{self, Kind, SCOPE_ALL, SCOPE_INIT};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

use crate::cgroup::{Cgroups, Usage};
use crate::error::RuntimeError;
use crate::files::{self, Files};

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitStatus {
    /// Exit code of its first process; 128 + signal if a signal ended it; 125 to 127 if it never started.
    pub code: i32,
    /// The signal that ended it. 0: it exited by itself.
    pub signal: i32,
    /// The kernel killed a process of it for lack of memory.
    pub oom_killed: bool,
    /// Milliseconds since 1970. 0: it never started, or nobody knows.
    pub started_at_ms: i64,
    /// Milliseconds since 1970. 0: nobody knows.
    pub finished_at_ms: i64,
    /// Why it never started. Empty: it did.
    pub error: String,
    /// Its monitor died: the container was killed, and nobody knows how it ended.
    pub lost: bool,
}

/// Where a container stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its monitor is at work.
    Creating,
    Running {
        pid: u32,
        /// Clock ticks from boot to its start: with the pid it names the process for good.
        start_ticks: u64,
        started_at_ms: i64,
    },
    Exited(ExitStatus),
}

/// Use of resources.
pub type Stats = Usage;

/// A request on its way to the monitor.
struct Request {
    kind: Kind,
    payload: Vec<u8>,
    /// Goes along.
    file: Option<OwnedFd>,
    answer: oneshot::Sender<Result<(), nix::Error>>,
}

/// How long a monitor may take to end after its last word.
const MONITOR_GOES: Duration = Duration::from_secs(2);

/// A handle to one container. Cheap to clone.
#[derive(Clone)]
pub struct Container {
    inner: Arc<Inner>,
}

struct Inner {
    id: String,
    dir: PathBuf,
    cgroup: PathBuf,
    cgroups: Arc<Cgroups>,
    state: watch::Receiver<State>,
    requests: mpsc::Sender<Request>,
}

/// The monitor's record (`exit.json`), as JSON.
#[derive(Deserialize)]
struct Record {
    exit_code: i32,
    signal: i32,
    oom_killed: bool,
    started_at_unix_ns: u64,
    finished_at_unix_ns: u64,
    error: String,
}

impl ExitStatus {
    pub(crate) fn parse(json: &[u8]) -> Option<Self> {
        let record: Record = serde_json::from_slice(json).ok()?;
        let ms = |ns: u64| i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX);
        Some(Self {
            code: record.exit_code,
            signal: record.signal,
            oom_killed: record.oom_killed,
            started_at_ms: ms(record.started_at_unix_ns),
            finished_at_ms: ms(record.finished_at_unix_ns),
            error: record.error,
            lost: false,
        })
    }

    /// The record in a container's directory, if it is over.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        Self::parse(&std::fs::read(dir.join("exit.json")).ok()?)
    }

    pub(crate) fn lost() -> Self {
        Self { code: 137, signal: 9, lost: true, ..Self::default() }
    }
}

/// What a connection belongs to.
pub(crate) struct Place {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) cgroups: Arc<Cgroups>,
}

impl Container {
    /// Follows a monitor over its connection; `child` where this process started it. Must run within a tokio runtime.
    pub(crate) fn follow(
        place: Place,
        stream: std::os::unix::net::UnixStream,
        child: Option<Child>,
    ) -> Result<Self, RuntimeError> {
        let unreachable = |source| RuntimeError::Monitor { id: place.id.clone(), source };
        let stream = UnixStream::from_std(stream).map_err(unreachable)?;
        let (told, state) = watch::channel(State::Creating);
        let (requests, received) = mpsc::channel(16);
        let link = Link {
            dir: place.dir.clone(),
            cgroup: place.cgroup.clone(),
            cgroups: Arc::clone(&place.cgroups),
            told,
            pending: Vec::new(),
            next: 1,
        };
        tokio::spawn(link.run(stream, received, child));
        let Place { id, dir, cgroup, cgroups } = place;
        Ok(Self { inner: Arc::new(Inner { id, dir, cgroup, cgroups, state, requests }) })
    }

    /// A container that is over.
    pub(crate) fn over(place: Place, status: ExitStatus) -> Self {
        let state = watch::channel(State::Exited(status)).1;
        let requests = mpsc::channel(1).0;
        let Place { id, dir, cgroup, cgroups } = place;
        Self { inner: Arc::new(Inner { id, dir, cgroup, cgroups, state, requests }) }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// Where it stands now.
    pub fn state(&self) -> State {
        self.inner.state.borrow().clone()
    }

    /// Returns when it runs, or could not be started, or has ended.
    pub async fn started(&self) -> State {
        let mut state = self.inner.state.clone();
        match state.wait_for(|state| *state != State::Creating).await {
            Ok(state) => state.clone(),
            // The task that follows the monitor always has a last word; without one the monitor is lost.
            Err(_) => State::Exited(ExitStatus::lost()),
        }
    }

    /// Waits for its end. Any number may wait, before or after.
    pub async fn wait(&self) -> ExitStatus {
        let mut state = self.inner.state.clone();
        let ended = state.wait_for(|state| matches!(state, State::Exited(_))).await;
        match ended.as_deref() {
            Ok(State::Exited(status)) => status.clone(),
            Ok(State::Creating | State::Running { .. }) | Err(_) => ExitStatus::lost(),
        }
    }

    /// Sends a signal to its first process. No error if it has ended.
    pub async fn kill(&self, signal: i32) -> Result<(), RuntimeError> {
        self.send(signal, SCOPE_INIT).await
    }

    /// Kills every process of it.
    pub async fn kill_all(&self) -> Result<(), RuntimeError> {
        self.send(libc::SIGKILL, SCOPE_ALL).await
    }

    async fn send(&self, signal: i32, scope: u32) -> Result<(), RuntimeError> {
        let payload = [signal.to_le_bytes(), scope.to_le_bytes()].concat();
        match self.ask(Kind::Signal, payload, None).await {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(errno) => Err(RuntimeError::Monitor { id: self.inner.id.clone(), source: errno.into() }),
        }
    }

    /// Asks the monitor. ESRCH: the container is over.
    async fn ask(&self, kind: Kind, payload: Vec<u8>, file: Option<OwnedFd>) -> Result<(), nix::Error> {
        let (answer, answered) = oneshot::channel();
        if self.inner.requests.send(Request { kind, payload, file, answer }).await.is_err() {
            return Err(nix::Error::ESRCH);
        }
        answered.await.unwrap_or(Err(nix::Error::ESRCH))
    }

    /// Replaces the secrets and configs that can be replaced while it runs, all at once, and then sends `signal` to its
    /// first process. Nothing happens if it has that version already, or is over.
    pub async fn replace_files(&self, files: &Files, signal: Option<i32>) -> Result<(), RuntimeError> {
        let swappable = files.swappable();
        if swappable.files.is_empty() {
            return Ok(());
        }
        let in_memory = RuntimeError::io("hold secrets and configs in memory for", &self.inner.dir);
        let made = tokio::task::spawn_blocking(move || swappable.sealed()).await;
        let file = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())).map_err(in_memory)?;
        let payload = signal.unwrap_or(0).to_le_bytes().to_vec();
        match self.ask(Kind::Files, payload, Some(file)).await {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(nix::Error::ENOSYS | nix::Error::EOPNOTSUPP) => Err(RuntimeError::Fixed(self.inner.id.clone())),
            Err(errno) => Err(RuntimeError::Monitor { id: self.inner.id.clone(), source: errno.into() }),
        }
    }

    /// Asks it to end, and kills it when it has not within `grace`. Returns its end.
    pub async fn stop(&self, signal: i32, grace: Duration) -> Result<ExitStatus, RuntimeError> {
        if let State::Exited(status) = self.started().await {
            return Ok(status);
        }
        if !grace.is_zero() {
            self.kill(signal).await?;
            if let Ok(status) = tokio::time::timeout(grace, self.wait()).await {
                return Ok(status);
            }
        }
        self.kill_all().await?;
        Ok(self.wait().await)
    }

    /// Its groups, relative to each hierarchy.
    pub(crate) fn group(&self) -> &Path {
        &self.inner.cgroup
    }

    /// What it uses now.
    pub fn stats(&self) -> Stats {
        self.inner.cgroups.usage(&self.inner.cgroup)
    }

    /// Kills it if it still runs, and waits for its end. Idempotent.
    pub async fn end(&self) -> Result<(), RuntimeError> {
        if !matches!(self.state(), State::Exited(_)) {
            self.kill_all().await?;
            self.wait().await;
        }
        Ok(())
    }

    /// Removes what is left of an ended container (not its logs). Idempotent. A container that still runs is killed.
    pub async fn remove(&self) -> Result<(), RuntimeError> {
        self.end().await?;
        // The monitor removes the groups too, after its last word: another container of this name must not lose its own.
        let mut state = self.inner.state.clone();
        let gone = async { while state.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(MONITOR_GOES, gone).await;
        self.inner.cgroups.remove(&self.inner.cgroup);
        match tokio::fs::remove_dir_all(&self.inner.dir).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(RuntimeError::io("remove", &self.inner.dir)(error)),
        }
    }
}

/// Sends a frame, and a file with its first byte.
async fn send(writer: &mut OwnedWriteHalf, frame: &[u8], file: Option<OwnedFd>) -> io::Result<()> {
    let Some(file) = file else { return writer.write_all(frame).await };
    let stream: &UnixStream = writer.as_ref();
    let sent = stream.async_io(Interest::WRITABLE, || files::send_with(stream, frame, &file)).await?;
    writer.write_all(&frame[sent..]).await
}

/// The task behind a handle: reads the monitor's words, passes requests on.
struct Link {
    dir: PathBuf,
    cgroup: PathBuf,
    cgroups: Arc<Cgroups>,
    told: watch::Sender<State>,
    pending: Vec<(u16, oneshot::Sender<Result<(), nix::Error>>)>,
    next: u16,
}

impl Link {
    async fn run(mut self, stream: UnixStream, mut requests: mpsc::Receiver<Request>, child: Option<Child>) {
        let (mut reader, mut writer) = stream.into_split();
        let mut buffer = Vec::new();
        loop {
            tokio::select! {
                read = reader.read_buf(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(_) => if !self.hear(&mut buffer) { break },
                },
                Some(request) = requests.recv() => {
                    let (frame, file) = self.ask(request);
                    if send(&mut writer, &frame, file).await.is_err() {
                        break;
                    }
                }
            }
        }
        // Closed, so that a monitor that waits for nothing else can go.
        drop((reader, writer));
        if let Some(mut child) = child {
            // It ends within a moment of its last word; off the runtime's threads in case it does not.
            let _ = tokio::task::spawn_blocking(move || child.wait()).await;
        }
        self.last_word();
    }

    fn ask(&mut self, request: Request) -> (Vec<u8>, Option<OwnedFd>) {
        let number = self.next;
        self.next = self.next.checked_add(1).unwrap_or(1);
        self.pending.push((number, request.answer));
        (protocol::encode(request.kind, number, &request.payload), request.file)
    }

    /// Takes whole frames off the buffer; false: the container is over, or the monitor talks nonsense.
    fn hear(&mut self, buffer: &mut Vec<u8>) -> bool {
        loop {
            let frame = match protocol::decode(buffer) {
                Ok(Some(frame)) => frame,
                Ok(None) => return true,
                Err(protocol::Oversized) => return false,
            };
            match Kind::from_number(frame.kind) {
                Some(Kind::Started) => {
                    let pid = protocol::u32_at(&frame.payload, 0).unwrap_or(0);
                    let start_ticks = protocol::u64_at(&frame.payload, 4).unwrap_or(0);
                    let started_ns = protocol::u64_at(&frame.payload, 12).unwrap_or(0);
                    let started_at_ms = i64::try_from(started_ns / 1_000_000).unwrap_or(0);
                    self.told.send_replace(State::Running { pid, start_ticks, started_at_ms });
                }
                Some(Kind::Exited) => {
                    if let Some(status) = ExitStatus::parse(&frame.payload) {
                        self.told.send_replace(State::Exited(status));
                    }
                    return false;
                }
                Some(Kind::LogLoss) => {
                    let reason = String::from_utf8_lossy(&frame.payload).into_owned();
                    warn!(dir = %self.dir.display(), reason, "log lines of a container are being dropped");
                }
                Some(Kind::Reply) => {
                    let errno = protocol::u32_at(&frame.payload, 0).unwrap_or(0).cast_signed();
                    let answer = if errno == 0 { Ok(()) } else { Err(nix::Error::from_raw(errno)) };
                    if let Some(at) = self.pending.iter().position(|(number, _)| *number == frame.request) {
                        // Nobody may wait for it any more.
                        let _ = self.pending.swap_remove(at).1.send(answer);
                    }
                }
                Some(Kind::Hello | Kind::Signal | Kind::Files) | None => {
                    debug!(kind = frame.kind, "a frame without a meaning here")
                }
            }
        }
    }

    /// The connection is over. Without a farewell the record tells; without a record the monitor was killed, and what
    /// it left must not run on unseen.
    fn last_word(&self) {
        if matches!(*self.told.borrow(), State::Exited(_)) {
            return;
        }
        let status = ExitStatus::read(&self.dir).unwrap_or_else(|| {
            warn!(dir = %self.dir.display(), "the monitor of a container was killed: the container is ended too");
            self.cgroups.kill_all(&self.cgroup);
            ExitStatus::lost()
        });
        self.told.send_replace(State::Exited(status));
    }
}
