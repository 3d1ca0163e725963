//! A host of a test's own, and what tests of containers need besides.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod calls;
pub mod users;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use skep_runtime::logs::{self, LogQuery};
use skep_runtime::{
    Container, ContainerSpec, DEFAULT_CAPABILITIES, ExitStatus, OciRuntime, Runtime, RuntimeConfig, State,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

pub static NUMBER: AtomicU32 = AtomicU32::new(0);
pub const SOON: Duration = Duration::from_secs(20);

/// A host of its own: directories, a cgroup, a busybox image. All of it goes with the test.
pub struct World {
    pub dir: TempDir,
    pub cgroup: PathBuf,
    pub runtime: Runtime,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = PathBuf::from(format!("skep/runtime-test-{}-{number}", std::process::id()));
        busybox(&dir.path().join("layer"));
        let runtime = Self::runtime(dir.path(), &cgroup);
        Self { dir, cgroup, runtime }
    }

    pub fn runtime(dir: &Path, cgroup: &Path) -> Runtime {
        Runtime::new(RuntimeConfig {
            dir: dir.join("containers"),
            cgroup_parent: cgroup.to_owned(),
            ulimits: Vec::new(),
            runtime: OciRuntime::BuiltIn,
        })
        .unwrap()
    }

    pub fn spec(&self, id: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: id.to_owned(),
            layers: vec![self.dir.path().join("layer")],
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
            log_dir: self.dir.path().join("logs").join(id),
            ..ContainerSpec::default()
        }
    }

    /// Runs to the end; the end and what it said on stdout and stderr.
    pub async fn run(&self, spec: ContainerSpec) -> (ExitStatus, String, String) {
        let log_dir = spec.log_dir.clone();
        let container = self.runtime.create(spec).await.unwrap();
        let status = tokio::time::timeout(SOON, container.wait()).await.unwrap();
        let (out, err) = said(&log_dir).await;
        container.remove().await.unwrap();
        (status, out, err)
    }

    pub async fn out(&self, script: &str) -> String {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.run(self.spec(&format!("c{number}"), script)).await.1
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let cgroups = skep_runtime::cgroup::Cgroups::detect().unwrap().unwrap();
        for id in cgroups.children(&self.cgroup.join("containers")) {
            cgroups.kill_all(&self.cgroup.join("containers").join(id));
        }
        let deadline = Instant::now() + SOON;
        // Monitors leave their group a moment after their last word.
        while cgroups.folders(&self.cgroup).iter().any(|folder| folder.exists()) && Instant::now() < deadline {
            cgroups.remove(&self.cgroup);
            std::thread::sleep(Duration::from_millis(10));
        }
        if !std::thread::panicking() {
            assert!(cgroups.folders(&self.cgroup).iter().all(|folder| !folder.exists()), "cgroups are left");
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            assert!(!mounts.contains(&*self.dir.path().to_string_lossy()), "mounts are left");
        }
    }
}

fn busybox(root: &Path) {
    for folder in ["bin", "etc", "tmp", "srv"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "sleep", "id", "mount", "unshare", "touch", "ls", "grep", "env", "pwd", "dd", "ps",
        "kill", "chmod", "rmdir", "test", "[", "head", "tail", "setsid", "true", "hostname", "chown", "seq", "wc",
        "stat", "tr", "mknod", "cp", "mkdir", "nc", "timeout", "sort",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:34:\nextra:x:77:web\n").unwrap();
    fs::write(root.join("bin/noexec"), "").unwrap();
    for (name, text) in [("garbage", "\x7fnot a program"), ("script", "#!/no/such/interpreter\n")] {
        fs::write(root.join("bin").join(name), text).unwrap();
        fs::set_permissions(root.join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

pub async fn said(dir: &Path) -> (String, String) {
    let (sink, mut lines) = mpsc::channel(100_000);
    logs::read(dir, LogQuery::default(), None, sink).await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    while let Some(line) = lines.recv().await {
        (if line.stderr { &mut err } else { &mut out }).push_str(&String::from_utf8_lossy(&line.data));
    }
    (out, err)
}

pub fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

pub fn pid(container: &Container) -> u32 {
    match container.state() {
        State::Running { pid, .. } => pid,
        other => panic!("it does not run: {other:?}"),
    }
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
