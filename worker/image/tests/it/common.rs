//! Images made by hand, a real registry, and a small HTTP server that can be told to misbehave.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_image::registry::RegistryConfig;
use skep_image::{Digest, Images, Platform, Reference, Registry, Store, StoreOptions, Timeouts};

/// Skips a test, aloud, where something is missing.
#[macro_export]
macro_rules! require {
    ($($program:literal),*) => {
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        $(if $crate::common::program($program).is_none() {
            eprintln!("skipped: needs the program {}", $program);
            return;
        })*
    };
}

pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let dirs = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"];
    dirs.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A tar with files, directories (path ends with `/`) and symbolic links (content starts with `->`).
pub(crate) fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_mtime(1);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        if let Some(target) = content.strip_prefix(b"->") {
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, path, std::str::from_utf8(target).unwrap()).unwrap();
        } else if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, path, &[][..]).unwrap();
        } else {
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, *content).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 3).unwrap()
}

/// Bytes that do not compress, different for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

/// One layer: as sent, its media type, and its diff id.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    media_type: &'static str,
    diff_id: Digest,
}

impl Layer {
    pub(crate) fn plain(tar: &[u8]) -> Self {
        Self { blob: tar.to_vec(), media_type: "application/vnd.oci.image.layer.v1.tar", diff_id: Digest::of(tar) }
    }

    pub(crate) fn gzip(tar: &[u8]) -> Self {
        Self { blob: gzip(tar), media_type: "application/vnd.oci.image.layer.v1.tar+gzip", diff_id: Digest::of(tar) }
    }

    pub(crate) fn zstd(tar: &[u8]) -> Self {
        Self { blob: zstd(tar), media_type: "application/vnd.oci.image.layer.v1.tar+zstd", diff_id: Digest::of(tar) }
    }
}

/// An image as blobs by digest.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Digest,
    pub(crate) layers: Vec<Digest>,
    pub(crate) blobs: HashMap<Digest, Vec<u8>>,
}

impl Image {
    pub(crate) fn new(layers: &[Layer], platform: &Platform) -> Self {
        let mut blobs = HashMap::new();
        let mut put = |bytes: Vec<u8>| {
            let digest = Digest::of(&bytes);
            let size = bytes.len();
            blobs.insert(digest, bytes);
            (digest, size)
        };
        let config = json!({
            "architecture": platform.architecture, "os": platform.os, "variant": platform.variant,
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| l.diff_id).collect::<Vec<_>>()},
        });
        let (config, config_size) = put(config.to_string().into_bytes());
        let described: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let (digest, size) = put(layer.blob.clone());
                json!({"mediaType": layer.media_type, "digest": digest, "size": size})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
            "layers": described,
        });
        let (manifest, _) = put(manifest.to_string().into_bytes());
        Self { manifest, layers: layers.iter().map(|layer| Digest::of(&layer.blob)).collect(), blobs }
    }

    /// busybox as a base layer in gzip, and two small layers above it with a whiteout and an opaque directory.
    pub(crate) fn busybox() -> Self {
        let busybox = std::fs::read(program("busybox").expect("busybox is a build dependency of the tests")).unwrap();
        let base = tar(&[
            ("bin/", b""),
            ("bin/busybox", &busybox),
            ("bin/sh", b"->busybox"),
            ("etc/", b""),
            ("etc/old", b"old"),
            ("opt/", b""),
            ("opt/hidden", b"x"),
        ]);
        let middle = tar(&[("etc/.wh.old", b""), ("etc/new", b"new"), ("opt/", b""), ("opt/.wh..wh..opq", b"")]);
        let top = tar(&[("top", b"top")]);
        Self::new(&[Layer::gzip(&base), Layer::zstd(&middle), Layer::plain(&top)], &Platform::host())
    }

    /// One layer of `size` random bytes.
    pub(crate) fn of_size(seed: u64, size: usize) -> Self {
        Self::new(&[Layer::plain(&tar(&[("data", &noise(seed, size))]))], &Platform::host())
    }

    /// Writes an OCI layout directory with this image under `tag`.
    pub(crate) fn write_layout(&self, dir: &Path, tag: &str) {
        let entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.manifest,
            "size": self.blobs[&self.manifest].len(), "annotations": {"org.opencontainers.image.ref.name": tag},
        });
        write_layout(dir, &[self], vec![entry]);
    }
}

/// Writes an OCI layout directory with the blobs of `images` and the given index entries.
pub(crate) fn write_layout(dir: &Path, images: &[&Image], entries: Vec<Value>) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for (digest, bytes) in images.iter().flat_map(|image| &image.blobs) {
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// `name:hive` for htpasswd.
pub(crate) const HTPASSWD: &str = "bee:$2y$04$abcdefghijklmnopqrstuuG2FJJEPIPZvrR7RTR3ROLSTsRhV6q8W\n";

/// Debian's docker-registry on a free loopback port.
pub(crate) struct RealRegistry {
    child: Child,
    pub(crate) address: String,
    pub(crate) dir: tempfile::TempDir,
}

impl RealRegistry {
    /// `http` is YAML for the `http` section, `auth` a section of its own; `{dir}` in them is the registry's directory.
    pub(crate) fn start(http: &str, auth: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {{dir}}/store\nhttp:\n  addr: 127.0.0.1:0\n{http}{auth}"
        );
        let config = config.replace("{dir}", dir.path().to_str().unwrap());
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve", file.to_str().unwrap()])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry ended");
            if let Some((_, behind)) = line.split_once("listening on ") {
                let end = behind.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ':'))).unwrap();
                break behind[..end].to_owned();
            }
        };
        // Keep reading, or the registry stops on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address, dir }
    }

    pub(crate) fn plain() -> Self {
        Self::start("", "")
    }

    pub(crate) fn with_password() -> Self {
        Self::start("", "auth:\n  htpasswd:\n    realm: test\n    path: {dir}/htpasswd\n")
    }

    /// With TLS for `host` by an authority of its own, whose certificate is given too.
    pub(crate) fn with_tls(host: &str) -> (Self, String) {
        let (ca, issuer) = authority();
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cert.pem"), leaf.pem()).unwrap();
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        let path = dir.path().display();
        let tls = format!("  tls:\n    certificate: {path}/cert.pem\n    key: {path}/key.pem\n");
        // It has read both files when it listens.
        (Self::start(&tls, ""), ca)
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        Reference::parse(&format!("{}/{name}", self.address)).unwrap()
    }

    /// Pushes with skopeo, digests unchanged.
    pub(crate) fn push(&self, image: &Image, name: &str, more: &[&str]) {
        let layout = tempfile::tempdir().unwrap();
        image.write_layout(layout.path(), "it");
        self.push_layout(layout.path(), "it", name, more);
    }

    pub(crate) fn push_layout(&self, layout: &Path, tag: &str, name: &str, more: &[&str]) {
        let source = format!("oci:{}:{tag}", layout.display());
        let target = format!("docker://{}/{name}", self.address);
        let fixed = ["--insecure-policy", "copy", "--all", "--preserve-digests", "--dest-tls-verify=false"];
        run("skopeo", &[&fixed, more, &[&source, &target]].concat());
    }

    /// The file in which the registry keeps a blob.
    pub(crate) fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join(format!("store/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    pub(crate) fn stop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A certificate authority: its certificate in PEM, and what signs.
pub(crate) fn authority() -> (String, rcgen::Issuer<'static, rcgen::KeyPair>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), rcgen::Issuer::new(params, key))
}

/// A store in a temporary directory, and all that belongs to it.
pub(crate) struct Node {
    pub(crate) images: Images,
    pub(crate) dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(RegistryConfig::default())
    }

    /// Waits at most `idle` for a silent registry.
    pub(crate) fn impatient(idle: Duration) -> Self {
        Self::with(RegistryConfig { timeouts: Timeouts { connect: idle, idle }, ..RegistryConfig::default() })
    }

    pub(crate) fn with(config: RegistryConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        Self { images: Images::new(store, Registry::new(config)), dir }
    }

    /// Files and directories of the store by relative name, without `lock`: blobs, layers, `tmp`.
    pub(crate) fn entries(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path().join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn assert_nothing_half_made(&self) {
        wait_for("the temporary directory to empty", || self.entries("tmp").is_empty());
        for name in self.entries("blobs/sha256") {
            let bytes = std::fs::read(self.dir.path().join("blobs/sha256").join(&name)).unwrap();
            assert_eq!(Digest::of(&bytes).hex(), name, "a blob with wrong content");
        }
        let layers: Vec<String> = self.entries("layers");
        for layer in layers {
            assert!(self.dir.path().join("layers").join(&layer).join("layer.json").exists());
        }
    }
}

/// Waits for a condition, at most 20 seconds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One request to the [`Fake`]: method, path with query, and headers with lower-case names.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
}

/// What the [`Fake`] answers.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Send only so many bytes of the body, then close.
    pub(crate) cut: Option<usize>,
    /// Send nothing more after the cut, and do not close either.
    pub(crate) hang: bool,
}

impl Answer {
    pub(crate) fn ok(body: Vec<u8>) -> Self {
        Self { status: 200, headers: Vec::new(), body, cut: None, hang: false }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::ok(Vec::new()) }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

type Behaviour = dyn Fn(&Request) -> Answer + Send + Sync;

/// A plain HTTP server whose behaviour is a function; keeps what it was asked.
pub(crate) struct Fake {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    pub(crate) fn start(behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        let seen = requests.clone();
        // The threads end with the test process: one accepts for ever, each other serves one connection.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (behaviour, seen) = (behaviour.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, &*behaviour, &seen));
            }
        });
        Self { address, requests }
    }

    /// Serves the blobs of `image` as the repository `app`, tag `1`; `special` may answer instead.
    pub(crate) fn registry(
        image: &Image,
        special: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let image = image.clone();
        Self::start(move |request| {
            if let Some(answer) = special(request) {
                return answer;
            }
            let name = request.path.rsplit('/').next().unwrap_or_default();
            let digest = if name == "1" { Some(image.manifest) } else { name.parse().ok() };
            match digest.and_then(|digest| image.blobs.get(&digest)) {
                Some(bytes) => ranged(request, bytes),
                None => Answer::status(404),
            }
        })
    }

    pub(crate) fn reference(&self) -> Reference {
        Reference::parse(&format!("{}/app:1", self.address)).unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn requests_for(&self, part: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path.contains(part)).collect()
    }
}

/// A 200 or, where asked for, a 206.
pub(crate) fn ranged(request: &Request, bytes: &[u8]) -> Answer {
    let start =
        request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        None => Answer::ok(bytes.to_vec()),
        Some(start) if start < bytes.len() => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Answer { status: 206, ..Answer::ok(bytes[start..].to_vec()) }.header("Content-Range", range)
        }
        Some(_) => Answer::status(416),
    }
}

fn serve(stream: TcpStream, behaviour: &Behaviour, seen: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let Some(request) = read_request(&mut reader) else { return };
        seen.lock().unwrap().push(request.clone());
        let answer = behaviour(&request);
        let mut head = format!("HTTP/1.1 {} x\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let body = &answer.body[..answer.cut.unwrap_or(answer.body.len())];
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).is_err() {
            return;
        }
        if answer.hang {
            // Until the client gives up.
            let _ = stream.read(&mut [0]);
        }
        if answer.cut.is_some() {
            return;
        }
    }
}

/// `None` at the connection's end, and for what is not HTTP: a TLS greeting.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    if *reader.fill_buf().ok()?.first()? == 0x16 {
        return None;
    }
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|text: &String| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers })
}
