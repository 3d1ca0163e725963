//! Debian's `docker-registry` on a lab host, filled with skopeo.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::images::Image;
use crate::lab::Lab;
use crate::wait::until;

/// A running registry; ends with the test.
pub struct Registry {
    child: Child,
    host: u32,
    dir: PathBuf,
    /// `10.90.0.1:5000`
    pub address: String,
}

impl Registry {
    /// The address that hosts must be told is plain http, before the lab is up.
    pub fn address_on(host: u32) -> String {
        format!("10.90.0.{host}:5000")
    }

    /// Starts one on a host of the lab.
    pub fn start(lab: &Lab, host: u32) -> Self {
        let address = Self::address_on(host);
        let dir = lab.dir().join("registry");
        fs::create_dir_all(dir.join("data")).expect("a folder for the registry");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
            dir.join("data").display()
        );
        let file = dir.join("config.yml");
        fs::write(&file, config).expect("the registry's configuration");
        let child = Self::serve(lab, host, &file);
        let registry = Self { child, host, dir, address };
        registry.wait(lab);
        registry
    }

    fn serve(lab: &Lab, host: u32, config: &std::path::Path) -> Child {
        let config = config.display().to_string();
        lab.on(host, &["docker-registry", "serve", &config])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry starts")
    }

    fn wait(&self, lab: &Lab) {
        let url = format!("http://{}/v2/", self.address);
        until("the registry to answer", Duration::from_secs(10), || {
            lab.exec(self.host, &["curl", "-sf", "--max-time", "1", &url]).code == 0
        });
    }

    /// Pushes an image; returns its name in this registry.
    pub fn push(&self, lab: &Lab, image: &Image) -> String {
        let name = format!("{}/{}", self.address, image.name);
        let source = format!("docker-archive:{}", image.archive().display());
        let target = format!("docker://{name}");
        let policy = self.dir.join("policy.json");
        fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("a policy file");
        let policy = policy.display().to_string();
        let args = ["skopeo", "--policy", &policy, "copy", "--quiet", "--dest-tls-verify=false", &source, &target];
        lab.exec(self.host, &args).ok();
        name
    }

    /// Ends it, as a crash would.
    pub fn stop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}
