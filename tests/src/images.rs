//! Images made of this machine's own Debian programs, with the libraries that `ldd` names: real programs, in seconds,
//! without a registry. Written as `docker save` archives.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// An image archive.
pub struct Image {
    /// `busybox:1`
    pub name: String,
    dir: TempDir,
}

impl Image {
    /// The `docker save` archive.
    pub fn archive(&self) -> PathBuf {
        self.dir.path().join("image.tar")
    }

    /// Packs a root file system.
    fn pack(name: &str, root: &Path, config: &serde_json::Value) -> Self {
        Self::pack_for(if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, name, root, config)
    }

    fn pack_for(architecture: &str, name: &str, root: &Path, config: &serde_json::Value) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let layer = dir.path().join("layer.tar");
        let mut builder = tar::Builder::new(File::create(&layer).expect("a layer file"));
        builder.follow_symlinks(false);
        builder.append_dir_all(".", root).expect("the root file system is packed");
        builder.into_inner().and_then(|mut file| file.flush()).expect("the layer is written");
        let diff_id = hex_digest(&fs::read(&layer).expect("the layer is read"));
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
            "history": [{ "created": "2026-01-01T00:00:00Z", "created_by": "skep tests" }],
        })
        .to_string();
        let config_name = format!("{}.json", hex_digest(config.as_bytes()));
        let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }]).to_string();
        let mut archive = tar::Builder::new(File::create(dir.path().join("image.tar")).expect("an archive file"));
        archive.append_path_with_name(&layer, "layer.tar").expect("the layer is added");
        for (path, data) in [(config_name.as_str(), &config), ("manifest.json", &manifest)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, data.as_bytes()).expect("a file is added");
        }
        archive.into_inner().and_then(|mut file| file.flush()).expect("the archive is written");
        Self { name: name.to_owned(), dir }
    }
}

/// Debian's static busybox with links for its applets.
pub fn busybox(name: &str) -> Image {
    let root = RootFs::new();
    root.busybox();
    Image::pack(name, root.dir.path(), &json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] }))
}

/// The same, and `mib` of random bytes.
pub fn big(name: &str, mib: usize) -> Image {
    let root = RootFs::new();
    root.busybox();
    let mut bytes = File::open("/dev/urandom").expect("there is randomness").take((mib as u64) << 20);
    let mut file = File::create(root.path("/bytes")).expect("a file is made");
    std::io::copy(&mut bytes, &mut file).expect("a file is written");
    Image::pack(name, root.dir.path(), &json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] }))
}

/// An image for a processor that nobody has here.
pub fn foreign(name: &str) -> Image {
    Image::pack_for("s390x", name, RootFs::new().dir.path(), &json!({ "Cmd": ["sh"] }))
}

/// Debian's nginx, on the port in its configuration: 8080.
pub fn nginx(name: &str) -> Image {
    let root = RootFs::new();
    root.program("/usr/sbin/nginx");
    root.folders(&["/etc/nginx", "/var/log/nginx", "/var/lib/nginx", "/usr/share/nginx", "/srv", "/run"]);
    let config = "worker_processes 1;\nerror_log stderr;\npid /run/nginx.pid;\nevents {}\nhttp {\n\
                  access_log /dev/stdout;\nserver { listen 8080 reuseport; root /srv; }\n}\n";
    root.write("/etc/nginx/nginx.conf", config);
    root.write("/srv/index.html", "hello from nginx\n");
    let command = json!(["/usr/sbin/nginx", "-g", "daemon off;"]);
    Image::pack(name, root.dir.path(), &json!({ "Entrypoint": command, "StopSignal": "SIGQUIT" }))
}

/// Debian's redis, on port 6379.
pub fn redis(name: &str) -> Image {
    let root = RootFs::new();
    root.program("/usr/bin/redis-check-rdb");
    root.folders(&["/data"]);
    let config = json!({ "Cmd": ["/usr/bin/redis-check-rdb"], "WorkingDir": "/data", "User": "redis" });
    // redis-server is a link to the same program.
    symlink("redis-check-rdb", root.path("/usr/bin/redis-server")).expect("redis-server is linked");
    let mut config = config;
    config["Cmd"] = json!(["/usr/bin/redis-server", "--protected-mode", "no", "--save", ""]);
    Image::pack(name, root.dir.path(), &config)
}

/// Debian's socat; what it joins is the command.
pub fn socat(name: &str) -> Image {
    let root = RootFs::new();
    root.program("/usr/bin/socat");
    Image::pack(name, root.dir.path(), &json!({ "Entrypoint": ["/usr/bin/socat"] }))
}

struct RootFs {
    dir: TempDir,
}

impl RootFs {
    fn new() -> Self {
        let root = Self { dir: tempfile::tempdir().expect("a temporary folder") };
        root.folders(&["/bin", "/etc", "/tmp", "/dev", "/proc", "/sys"]);
        root.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/false\nredis:x:101:102::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n");
        root.write("/etc/group", "root:x:0:\ntty:x:5:\nwww-data:x:33:\nredis:x:102:\nnogroup:x:65534:\n");
        root
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside.trim_start_matches('/'))
    }

    fn folders(&self, paths: &[&str]) {
        for path in paths {
            fs::create_dir_all(self.path(path)).expect("a folder is made");
        }
    }

    fn write(&self, inside: &str, text: &str) {
        fs::write(self.path(inside), text).expect("a file is written");
    }

    /// Debian's static busybox with links for its applets.
    fn busybox(&self) {
        self.copy("/bin/busybox", "/bin/busybox");
        let applets = Command::new("/bin/busybox").arg("--list").output().expect("busybox-static is installed");
        for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
            symlink("/bin/busybox", self.path(&format!("/bin/{applet}"))).expect("an applet is linked");
        }
    }

    fn copy(&self, from: &str, inside: &str) {
        let to = self.path(inside);
        fs::create_dir_all(to.parent().expect("a path inside has a folder")).expect("a folder is made");
        // Follows links: the file itself is wanted under this name.
        fs::copy(from, &to).unwrap_or_else(|error| panic!("cannot copy {from}: {error}"));
    }

    /// A program with the libraries that the loader gives it.
    fn program(&self, path: &str) {
        self.copy(path, path);
        let listed = Command::new("ldd").arg(path).output().expect("ldd runs");
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.copy(library, library);
            }
        }
    }
}

fn hex_digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}
