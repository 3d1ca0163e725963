//! What this host has, in a swarm or not: its directories, its images, its container runtime, its description.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use skep_image::registry::InsecureEntry;
use skep_image::{Images, Registry, RegistryConfig, Store, StoreOptions, Timeouts};
use skep_manager::images::Registries;
use skep_proto::id::NodeId;
use skep_proto::v1::NodeDescription;
use skep_worker::description::{DescriptionConfig, describe};
use skep_worker::{Executor, Networks, OciConfig, OciExecutor};
use tracing::warn;

use crate::config::Config;
use crate::hardening;
use crate::links::Links;
use crate::netd::Netd;
use crate::registries::DaemonRegistries;

/// The kernel's name of this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This host.
pub(crate) struct Host {
    pub(crate) config: Config,
    pub(crate) hostname: String,
    pub(crate) boot_id: String,
    pub(crate) images: Images,
    pub(crate) netd: Netd,
    registry: Registry,
}

impl Host {
    /// Opens what the data directory holds.
    pub(crate) async fn open(config: Config) -> anyhow::Result<Self> {
        let insecure: Result<Vec<InsecureEntry>, _> =
            config.insecure_registries.iter().map(|text| text.parse::<InsecureEntry>()).collect();
        let insecure = insecure.context("--insecure-registry")?;
        let timeouts = Timeouts::default();
        let registry = Registry::new(RegistryConfig { insecure, extra_roots_pem: Vec::new(), timeouts });
        let dir = config.data_dir.join("images");
        let opened = tokio::task::spawn_blocking(move || Store::open(&dir, StoreOptions::default())).await?;
        let store = opened.context("cannot open the image store")?;
        let hostname = match &config.hostname {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        let boot_id = match &config.boot_id {
            Some(id) => id.clone(),
            None => std::fs::read_to_string(BOOT_ID).context(BOOT_ID)?.trim().to_owned(),
        };
        let (images, netd) = (Images::new(store, registry.clone()), Netd::new(&config));
        Ok(Self { images, netd, registry, hostname, boot_id, config })
    }

    /// Credentials of this node.
    pub(crate) fn identity_dir(&self) -> PathBuf {
        self.config.data_dir.join("identity")
    }

    /// Raft's files.
    pub(crate) fn raft_dir(&self) -> PathBuf {
        self.config.data_dir.join("raft")
    }

    /// The agent's record.
    pub(crate) fn agent_dir(&self) -> PathBuf {
        self.config.data_dir.join("agent")
    }

    /// What a member keeps besides its credentials.
    pub(crate) fn swarm_file(&self) -> PathBuf {
        self.config.data_dir.join("swarm.json")
    }

    /// For the manager.
    pub(crate) fn registries(&self) -> Arc<dyn Registries> {
        Arc::new(DaemonRegistries(self.registry.clone()))
    }

    /// What the agent tells the managers of this host; `address` is where others reach it.
    pub(crate) fn description_config(&self, address: Option<IpAddr>) -> DescriptionConfig {
        let peer_addr = address.map(|ip| std::net::SocketAddr::new(ip, self.config.peer_port).to_string());
        DescriptionConfig {
            hostname: self.hostname.clone(),
            engine_labels: self.config.labels.clone(),
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.boot_id.clone(),
            peer_addr: peer_addr.unwrap_or_default(),
            // Told when netd runs, and by who has the credentials.
            fabric: None,
            certificate: None,
        }
    }

    /// What this host is, for `skep info`.
    pub(crate) fn description(&self) -> NodeDescription {
        describe(&self.description_config(None))
    }

    /// Runs this host's containers.
    pub(crate) fn executor(&self, node: NodeId, links: Arc<Links>, networks: Networks) -> Arc<dyn Executor> {
        Arc::new(OciExecutor::new(self.oci_config(Some(node)), self.images.clone(), links, networks))
    }

    fn oci_config(&self, node: Option<NodeId>) -> OciConfig {
        OciConfig {
            node,
            hostname: self.hostname.clone(),
            data_dir: self.config.data_dir.clone(),
            cgroup_parent: self.config.cgroup_parent.clone(),
            core_limit: hardening::core_limit(),
            runtime: self.config.runtime.clone(),
            users: self.config.userns_remap.clone(),
        }
    }

    /// Outside of a swarm nothing runs here: removes what an earlier membership left.
    pub(crate) async fn clear_leftovers(&self) {
        self.netd.shutdown().await;
        if let Err(error) = OciExecutor::clear(&self.oci_config(None)).await {
            warn!(error = %error.sentence(), "what earlier tasks left could not be removed");
        }
    }

    /// What confines containers, in words.
    pub(crate) fn confinement(&self) -> Vec<String> {
        skep_worker::confinement(self.config.userns_remap.as_ref())
    }

    /// "v1", "v2", "hybrid".
    pub(crate) fn cgroup_layout(&self) -> String {
        skep_worker::cgroup_layout()
    }
}
