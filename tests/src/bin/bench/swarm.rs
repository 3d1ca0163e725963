//! The peer: Docker Swarm of Debian's `docker.io`, one node, at its best: no registry is asked and no firewall rules are
//! made. It runs in network and mount namespaces of its own, with
//! all its folders in the run's, and all its processes in the run's cgroup, so that it leaves nothing behind and sees no
//! other Docker on the machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::cgroup::Hierarchies;
use crate::command::{run, wait_for};
use crate::contest::{LOG_LINES, Network, Orchestrator, service_args};
use crate::engine_api::{Connection, get};
use crate::run::Run;

/// Docker's configuration, which is hidden from this daemon. Made if it is not there, to be mounted over.
pub(crate) const DOCKER_CONFIG_DIR: &str = "/etc/docker";

/// A daemon that does not listen after this long will not.
const START_TIME: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// `$1` is the cgroup to join, `$2` Docker's configuration folder; the daemon's command line follows. What the daemon
/// and containerd write to fixed places goes to memory that vanishes with the namespace.
const SET_UP: &str = r#"
set -e
echo $$ > "$1/cgroup.procs"
mkdir -p "$2"
for dir in /run /opt "$2"; do mount -t tmpfs tmpfs "$dir"; done
ip link set lo up
shift 2
exec "$@"
"#;

/// A running `dockerd` with an initialised swarm.
pub(crate) struct Swarm {
    version: String,
    cgroup: PathBuf,
    dir: PathBuf,
    socket: PathBuf,
}

impl Swarm {
    /// Starts the daemon and the swarm; `None` if it is not installed, which is said on stderr.
    pub(crate) fn start(bench: &Run, cgroups: &Hierarchies) -> Result<Option<Self>> {
        for program in ["dockerd", "docker", "containerd", "runc"] {
            if !is_installed(program) {
                eprintln!("Docker Swarm is not measured: {program} is not installed (Debian: docker.io)");
                return Ok(None);
            }
        }
        let dir = bench.dir().join("swarm");
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let cgroup = bench.peer_cgroup();
        let mut swarm = Self { version: String::new(), socket: dir.join("docker.sock"), cgroup, dir };
        swarm.start_daemon(bench, cgroups)?;
        let version = get(&swarm.socket, "/version")?;
        swarm.version = version["Version"].as_str().unwrap_or("of unknown version").to_owned();
        run(&mut swarm.docker(&["swarm", "init", "--advertise-addr", "127.0.0.1"]))?;
        wait_for("the node to be ready", LOOK_AGAIN, || {
            Ok(get(&swarm.socket, "/nodes")?[0]["Status"]["State"] == "ready")
        })?;
        Ok(Some(swarm))
    }

    fn start_daemon(&self, bench: &Run, cgroups: &Hierarchies) -> Result<()> {
        let own = cgroups.create(&bench.daemon_cgroup())?;
        let log = File::create(self.dir.join("log")).context("cannot create the daemon's log")?;
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "slave", "sh", "-c", SET_UP, "sh"]).arg(own);
        command.args([DOCKER_CONFIG_DIR, "dockerd", "--iptables=false", "--ip6tables=false"]);
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.arg("--cgroup-parent").arg(Path::new("/").join(&self.cgroup).join("containers"));
        command.arg("--data-root").arg(self.dir.join("data")).arg("--exec-root").arg(self.dir.join("exec"));
        command.arg("--pidfile").arg(self.dir.join("pid")).arg("--host").arg(self.host());
        // Else it asks the registry before every start, though the image is here.
        command.env("DOCKER_SERVICE_PREFER_OFFLINE_IMAGE", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone().context("cannot share the log")?).stderr(log);
        let mut daemon = command.spawn().context("cannot run unshare")?;
        let started = Instant::now();
        while get(&self.socket, "/version").is_err() {
            if daemon.try_wait()?.is_some() || started.elapsed() > START_TIME {
                bail!("dockerd does not listen; the end of its log:\n{}", self.log());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    fn docker(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        // Neither the user's contexts nor credentials.
        command.arg("--host").arg(self.host()).args(args).env("DOCKER_CONFIG", self.dir.join("config"));
        command.env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        command
    }
}

impl Orchestrator for Swarm {
    fn name(&self) -> String {
        format!("Docker Swarm {}", self.version)
    }

    fn load(&self, archive: &Path) -> Command {
        let mut command = self.docker(&["image", "load", "--input"]);
        command.arg(archive);
        command
    }

    fn create(&self, service: &str, replicas: u64, network: Network) -> Command {
        let mut command = self.docker(&["service", "create", "--detach", "--no-resolve-image"]);
        command.args(service_args(service, replicas, network));
        command
    }

    fn remove(&self, service: &str) -> Command {
        self.docker(&["service", "rm", service])
    }

    fn running(&self, service: &str) -> Result<u64> {
        let services = get(&self.socket, "/services?status=true")?;
        let mut services = services.as_array().into_iter().flatten();
        let found = services.find(|found| found["Spec"]["Name"] == service);
        Ok(found.and_then(|service| service["ServiceStatus"]["RunningTasks"].as_u64()).unwrap_or(0))
    }

    fn is_clean(&self) -> Result<bool> {
        let is_empty = |list: Value| list.as_array().is_none_or(Vec::is_empty);
        Ok(is_empty(get(&self.socket, "/tasks")?) && is_empty(get(&self.socket, "/containers/json?all=1")?))
    }

    fn create_secrets(&self, names: &[Vec<String>], data: &[u8]) -> Result<()> {
        let data = BASE64_STANDARD.encode(data);
        thread::scope(|scope| {
            let writer = |names: &Vec<String>| -> Result<()> {
                let mut connection = Connection::open(&self.socket)?;
                for name in names {
                    connection.post("/secrets/create", &json!({ "Name": name, "Data": data }))?;
                }
                Ok(())
            };
            let writers: Vec<_> = names.iter().map(|names| scope.spawn(move || writer(names))).collect();
            writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| anyhow!("a writer panicked"))?)
        })
    }

    fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    fn surroundings(&self) -> Option<&Path> {
        None
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
