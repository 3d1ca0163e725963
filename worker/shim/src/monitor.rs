//! The life of a monitor: set up, create the container, watch it, record its end.
//!
//! Called by `main` with the container's directory, which becomes the current one; every path below is relative to it.
//! Everything happens in one thread around one `poll`.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use skep_shim::config::{External, ShimConfig};
use skep_shim::exit::ExitRecord;
use skep_shim::plan::Plan;
use skep_shim::protocol::{self, Frame, Kind};

use crate::clients::Clients;
use crate::create::{self, Creation, Verdict};
use crate::log::Log;
use crate::store::Store;
use crate::{cgroup, sys};

/// How long output is still read after the container's end: another process may hold the pipes open for ever.
const DRAIN_MS: u64 = 1_000;
/// Without output for so long, buffers of a burst are given back.
const IDLE_MS: u64 = 1_000;

/// Exit codes that Docker uses for containers that never ran.
const CODE_NOT_STARTED: i32 = 125;

/// Where the container stands.
enum State {
    /// It is being made.
    Creating(Creation),
    /// Init runs.
    Running { pid: i32, start_ticks: u64 },
    /// It is over; only the farewell is left.
    Over,
}

struct Monitor {
    config: ShimConfig,
    state: State,
    clients: Clients,
    log: Log,
    /// Its secrets and configs.
    store: Option<Store>,
    /// Read ends of stdout and stderr, until they end.
    output: [Option<File>; 2],
    children: OwnedFd,
    /// Children that ended before it was known which is the container's first process, oldest first.
    early: Vec<sys::Ended>,
    record: ExitRecord,
    /// Whether buffers may hold memory of a burst.
    warm: bool,
}

/// Runs a monitor to its end; the exit code only tells whether it did its own work.
pub(crate) fn run(dir: &CStr) -> i32 {
    // SAFETY: `dir` is a C string; descriptor 0 is the connection that the agent gave us, owned by nobody else.
    let mut agent = unsafe {
        if libc::chdir(dir.as_ptr()) != 0 {
            let error = io::Error::last_os_error();
            sys::complain(&format!("cannot enter {}: {error}", dir.to_string_lossy()));
            return 1;
        }
        libc::setsid();
        // It was started by a descriptor's number.
        libc::prctl(libc::PR_SET_NAME, c"skep-shim".as_ptr());
        // No core file and no other user's debugger: secrets pass through here. The limit's hard half stays, for containers.
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        sys::no_core_files();
        UnixStream::from_raw_fd(0)
    };
    let config = ShimConfig::receive(&mut agent).and_then(|config| Ok((receive_files(&config, &agent)?, config)));
    if config.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
        // The agent was killed before it said what to start: there is nothing to tell the next one.
        return 1;
    }
    let clients = match Clients::listen() {
        Ok(mut clients) => {
            clients.adopt(agent);
            clients
        }
        Err(error) => {
            sys::complain(&format!("cannot listen on shim.sock: {error}"));
            return 1;
        }
    };
    match Monitor::set_up(clients, config) {
        Ok(mut monitor) => {
            monitor.watch();
            monitor.farewell();
            0
        }
        Err((mut clients, sentence)) => {
            let record = not_started(CODE_NOT_STARTED, sentence);
            save(&record);
            clients.broadcast(&protocol::encode(Kind::Exited, 0, &record.to_json()));
            let _ = fs::remove_file("shim.sock");
            1
        }
    }
}

/// The file that a message with secrets or configs is followed by.
fn receive_files(config: &ShimConfig, agent: &UnixStream) -> io::Result<Option<File>> {
    if config.memory.is_empty() {
        return Ok(None);
    }
    let mut files = Vec::new();
    sys::receive(agent, &mut [0], &mut files)?;
    files.pop().map(File::from).map(Some).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

fn not_started(exit_code: i32, error: String) -> ExitRecord {
    ExitRecord { exit_code, error, finished_at_unix_ns: sys::unix_ns(), ..ExitRecord::default() }
}

impl Monitor {
    /// Everything up to the container's first process. An error is a sentence for the user.
    fn set_up(mut clients: Clients, told: io::Result<(Option<File>, ShimConfig)>) -> Result<Self, (Clients, String)> {
        let hello = hello();
        clients.broadcast(&hello);
        let prepared = (|| {
            let (files, mut config) = told.map_err(|e| format!("cannot read the start message: {e}"))?;
            let words = |what: &'static str| move |e: io::Error| format!("{what}: {}", sys::words(&e));
            sys::block_signals().map_err(words("cannot block signals"))?;
            let children = sys::child_signal_fd().map_err(words("cannot watch children"))?;
            // SAFETY: plain numbers.
            unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
            // The monitor is the last that the kernel should kill; without the right to say so, it goes on anyway.
            let _ = fs::write("/proc/self/oom_score_adj", "-999");
            cgroup::join(&config);
            let (out, out_write) = sys::pipe().map_err(words("cannot make a pipe"))?;
            let (err, err_write) = sys::pipe().map_err(words("cannot make a pipe"))?;
            let make = |files: File| Store::make(&config.memory, &config.memory_options, &files);
            let store = files.map(make).transpose().map_err(words("cannot hold secrets and configs in memory"))?;
            let creation = create::begin(&config, store.as_ref().map(Store::mount), [out_write, err_write])
                .map_err(|failure| failure.sentence)?;
            // The first process has it; here it would only be in memory for as long as the container lives.
            (config.plan, config.external) = (Plan::default(), External::default());
            Ok((config, children, [Some(out), Some(err)], creation, store))
        })();
        match prepared {
            Ok((config, children, output, creation, store)) => Ok(Self {
                log: Log::new(&config.log_path, config.log_max_bytes, config.log_max_files),
                config,
                state: State::Creating(creation),
                clients,
                store,
                output,
                children,
                early: Vec::new(),
                record: ExitRecord::default(),
                // What the start took is given back too.
                warm: true,
            }),
            Err(sentence) => Err((clients, sentence)),
        }
    }

    /// The loop; returns when the container is over.
    fn watch(&mut self) {
        while !matches!(self.state, State::Over) {
            let mut fds = self.poll_set();
            let timeout = self.warm.then_some(IDLE_MS);
            if let Err(error) = sys::poll(&mut fds, timeout) {
                sys::complain(&format!("poll: {error}"));
                return;
            }
            let ready: Vec<RawFd> = fds.iter().filter(|p| p.revents != 0).map(|p| p.fd).collect();
            if ready.is_empty() && self.warm {
                self.cool_down();
            }
            for fd in ready {
                self.serve(fd);
            }
        }
    }

    fn poll_set(&self) -> Vec<libc::pollfd> {
        let creation = match &self.state {
            State::Creating(creation) => Some(creation.report.as_raw_fd()),
            State::Running { .. } | State::Over => None,
        };
        std::iter::once(self.children.as_raw_fd())
            .chain(creation)
            .chain(self.output.iter().flatten().map(AsRawFd::as_raw_fd))
            .chain(self.clients.fds())
            .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
            .collect()
    }

    fn serve(&mut self, fd: RawFd) {
        if fd == self.children.as_raw_fd() {
            return self.reap_children();
        }
        if let Some(which) = self.output.iter().position(|o| o.as_ref().is_some_and(|o| o.as_raw_fd() == fd)) {
            return self.read_output(which);
        }
        if let State::Creating(creation) = &mut self.state
            && creation.report.as_raw_fd() == fd
        {
            if let Some(verdict) = creation.read() {
                self.hear(verdict);
            }
            return;
        }
        if self.clients.fds().next() == Some(fd) {
            let greeting = self.greeting();
            return self.clients.accept(&greeting);
        }
        for (frame, file) in self.clients.read(fd) {
            let errno = self.obey(&frame, file);
            let reply = protocol::encode(Kind::Reply, frame.request, &errno.to_le_bytes());
            self.clients.answer(fd, &reply);
        }
    }

    /// What a new client is told: who we are and where the container stands.
    fn greeting(&self) -> Vec<u8> {
        let mut bytes = hello();
        if let State::Running { pid, start_ticks } = self.state {
            bytes.extend_from_slice(&started(pid, start_ticks, self.record.started_at_unix_ns));
        }
        bytes
    }

    /// Carries out a request; returns an errno, 0 for success.
    fn obey(&mut self, frame: &Frame, file: Option<OwnedFd>) -> i32 {
        let done = match Kind::from_number(frame.kind) {
            Some(Kind::Signal) => self.signal(frame),
            Some(Kind::Files) => self.replace_files(frame, file),
            _ => return libc::ENOSYS,
        };
        match done {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }

    /// Sends a signal to init, or kills all.
    fn signal(&mut self, frame: &Frame) -> io::Result<()> {
        let (Some(signal), Some(scope)) = (protocol::u32_at(&frame.payload, 0), protocol::u32_at(&frame.payload, 4))
        else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        if scope == protocol::SCOPE_ALL {
            cgroup::kill_all(&self.config);
        }
        sys::kill(self.init()?, signal as i32)
    }

    /// The container's first process. It is our child and not yet reaped, so the pid cannot mean another process.
    fn init(&self) -> io::Result<i32> {
        match &self.state {
            State::Running { pid, .. } => Ok(*pid),
            State::Creating(_) => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            State::Over => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Replaces the secrets and configs that can be replaced, and tells init.
    fn replace_files(&mut self, frame: &Frame, file: Option<OwnedFd>) -> io::Result<()> {
        let init = self.init()?;
        let (Some(signal), Some(file)) = (protocol::u32_at(&frame.payload, 0), file) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let store = self.store.as_mut().ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
        if store.replace(&file.into())? && signal != 0 {
            sys::kill(init, signal as i32)?;
        }
        Ok(())
    }

    /// The process that makes the container has spoken, or ended without a word.
    fn hear(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Started(pid) => {
                let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
                let start_ticks = protocol::start_ticks(&stat).unwrap_or(0);
                self.record.started_at_unix_ns = sys::unix_ns();
                self.state = State::Running { pid, start_ticks };
                let message = started(pid, start_ticks, self.record.started_at_unix_ns);
                self.clients.broadcast(&message);
                let early = std::mem::take(&mut self.early);
                for ended in early {
                    self.child_ended(ended);
                }
            }
            Verdict::Failed(code, sentence) => self.fail(code, sentence),
            Verdict::Silent => {
                self.fail(CODE_NOT_STARTED, "the container's first process was killed before it was ready".to_owned())
            }
        }
    }

    fn fail(&mut self, code: i32, sentence: String) {
        self.record = not_started(code, sentence);
        self.state = State::Over;
    }

    fn reap_children(&mut self) {
        sys::drain_signals(&self.children);
        while let Some(ended) = sys::reap() {
            self.child_ended(ended);
        }
    }

    fn child_ended(&mut self, ended: sys::Ended) {
        match &self.state {
            State::Creating(_) => self.early.push(ended),
            State::Running { pid, .. } if *pid == ended.pid => {
                self.record.exit_code = ended.code;
                self.record.signal = ended.signal;
                self.record.finished_at_unix_ns = sys::unix_ns();
                self.state = State::Over;
            }
            // An orphan of the container, or the process that ran an external runtime.
            State::Running { .. } | State::Over => {}
        }
    }

    /// Reads one bufferful of one output.
    fn read_output(&mut self, which: usize) {
        let Some(file) = &mut self.output[which] else { return };
        let mut buffer = [0; 16 * 1024];
        match file.read(&mut buffer) {
            Ok(0) => self.output[which] = None,
            Ok(n) => {
                self.warm = true;
                if let Some(reason) = self.log.push(which, &buffer[..n]) {
                    sys::complain(&format!("log lines are being dropped: {reason}"));
                    let message = protocol::encode(Kind::LogLoss, 0, reason.as_bytes());
                    self.clients.broadcast(&message);
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.output[which] = None,
        }
    }

    /// Gives memory of a burst back to the kernel.
    fn cool_down(&mut self) {
        self.warm = false;
        self.log.release_memory();
        // SAFETY: no arguments that matter.
        unsafe { libc::malloc_trim(0) };
    }

    /// After init's end: nothing of the container stays, and its record is durable before anybody hears of it.
    fn farewell(&mut self) {
        cgroup::empty(&self.config);
        if let Some(store) = self.store.take() {
            store.wipe();
        }
        self.record.oom_killed = cgroup::oom_killed(&self.config);
        self.drain();
        self.log.finish();
        save(&self.record);
        self.clients.broadcast(&protocol::encode(Kind::Exited, 0, &self.record.to_json()));
        cgroup::remove(&self.config);
        let _ = fs::remove_file("shim.sock");
    }

    fn drain(&mut self) {
        let deadline = sys::monotonic_ms() + DRAIN_MS;
        loop {
            let mut fds: Vec<libc::pollfd> = self
                .output
                .iter()
                .flatten()
                .map(|o| libc::pollfd { fd: o.as_raw_fd(), events: libc::POLLIN, revents: 0 })
                .collect();
            let left = deadline.saturating_sub(sys::monotonic_ms());
            if fds.is_empty() || left == 0 || sys::poll(&mut fds, Some(left)).is_err() {
                return;
            }
            for which in 0..self.output.len() {
                self.read_output(which);
            }
        }
    }
}

fn hello() -> Vec<u8> {
    let mut payload = [0; 8];
    payload[0..2].copy_from_slice(&protocol::PROTOCOL_VERSION.to_le_bytes());
    payload[4..8].copy_from_slice(&std::process::id().to_le_bytes());
    protocol::encode(Kind::Hello, 0, &payload)
}

fn started(pid: i32, start_ticks: u64, started_at_unix_ns: u64) -> Vec<u8> {
    let mut payload = [0; 20];
    payload[0..4].copy_from_slice(&pid.to_le_bytes());
    payload[4..12].copy_from_slice(&start_ticks.to_le_bytes());
    payload[12..20].copy_from_slice(&started_at_unix_ns.to_le_bytes());
    protocol::encode(Kind::Started, 0, &payload)
}

/// Writes `exit.json` so that it is there, whole, after a power cut.
fn save(record: &ExitRecord) {
    let written = (|| {
        let mut file = File::create("exit.json.tmp")?;
        file.write_all(&record.to_json())?;
        file.sync_data()?;
        fs::rename("exit.json.tmp", "exit.json")?;
        File::open(".")?.sync_all()
    })();
    if let Err(error) = written {
        sys::complain(&format!("cannot write exit.json: {error}"));
    }
}
