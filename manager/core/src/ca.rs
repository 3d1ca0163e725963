//! The change of the swarm's root certificate: who has a certificate of the new root, who is to be asked to renew, and
//! when the old root may go. Called by the driver on the leader (`manager/src/ca/rotation.rs`), by the control API and by the
//! doctor; pure, and knows certificates only by what nodes say of their own.
//!
//! A rotation is a part of the cluster object, so that it survives any leader. While it lasts both roots are trusted, and
//! every certificate is signed by the new one and shown together with the new root as the old one signed it: who trusts
//! either believes it. It ends when every node uses a certificate of the new root. A node that is off keeps it open until no
//! certificate that it may have is accepted any more: then the old root is of no use to it, and it comes back by a join token.

#[cfg(test)]
mod ca_test;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;
use skep_proto::v1::{NodeCertificate, NodeState};

use crate::object::{Cluster, Node, RootRotation};
use crate::store::State;

/// Nodes that are asked to renew at the same time: each makes a key, a connection and a few messages.
pub const AT_ONCE: usize = 50;
/// A node that was asked and has not renewed is asked again after this, and no longer holds up another one.
pub const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How far hosts' clocks may be apart: a certificate is accepted this long after its end (`skep_identity::CLOCK_TOLERANCE`).
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(3600);

/// What is to be left of a root's life for a change to another one; of a short life, a third.
const ROOT_WARNING: Duration = Duration::from_secs(90 * 24 * 3600);

/// Life of node certificates unless the spec says otherwise.
const DEFAULT_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// Why a node has no certificate of the new root yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("is renewing its certificate")]
    Renewing,
    #[error("has not said yet which certificate it uses")]
    Silent,
    #[error("is {}, and renews its certificate when it is back; `skep node rm` stops waiting for it", word(*.0))]
    Away(NodeState),
    #[error("has a certificate that ended: `skep swarm join --token` on it brings it back, `skep node rm` gives it up")]
    Ended,
}

fn word(state: NodeState) -> &'static str {
    match state {
        NodeState::Down => "down",
        NodeState::Disconnected => "disconnected",
        NodeState::Unknown => "not heard of yet",
        NodeState::Ready => "ready",
    }
}

/// From when to when a root certificate is valid: who can read certificates tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootLife {
    pub not_before: UnixMs,
    pub not_after: UnixMs,
}

impl RootLife {
    /// Whether it is time for another one. No certificate outlives its root, so all end with it, at one moment.
    pub fn is_late(self, now: UnixMs) -> bool {
        let life = self.not_after.since(self.not_before);
        self.not_after.minus(ROOT_WARNING.min(life / 3)) < now
    }

    /// Whether it has ended for everybody, whatever their clocks, and every certificate of it.
    pub fn has_ended(self, now: UnixMs) -> bool {
        self.not_after.plus(CLOCK_TOLERANCE) < now
    }
}

/// How far a rotation is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Nodes that use a certificate of the new root.
    pub done: usize,
    /// Who has none yet, by id.
    pub waiting: BTreeMap<NodeId, Why>,
    /// Nodes whose certificates have all ended: nobody waits for them.
    pub ended: usize,
}

impl Progress {
    /// The old root is of no use to anyone.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// What a node says of its certificate.
pub fn certificate(node: &Node) -> Option<&NodeCertificate> {
    node.description.as_ref()?.certificate.as_ref()
}

/// Whether a node's certificate has ended for everybody, whatever their clocks.
pub fn has_ended(certificate: &NodeCertificate, now: UnixMs) -> bool {
    UnixMs(certificate.not_after_ms).plus(CLOCK_TOLERANCE) < now
}

/// Whether a node can have no certificate any more that is accepted. It may have renewed the one that it told of, at the last
/// moment, and gone before it could say so.
fn is_lost(cluster: &Cluster, certificate: &NodeCertificate, now: UnixMs) -> bool {
    let spec = match u64::try_from(cluster.spec.node_cert_expiry_ms) {
        Ok(0) | Err(_) => DEFAULT_LIFE,
        Ok(ms) => Duration::from_millis(ms),
    };
    let own = UnixMs(certificate.not_after_ms).since(UnixMs(certificate.not_before_ms));
    has_ended(certificate, now.minus(spec.max(own)))
}

/// How far the rotation is; `None`: there is none. Looks at every node.
pub fn progress(state: &State, now: UnixMs) -> Option<Progress> {
    let cluster = state.cluster()?;
    let rotation = cluster.root_rotation.as_ref()?;
    let mut progress = Progress::default();
    for node in state.nodes() {
        match certificate(node) {
            Some(certificate) if certificate.issuer == rotation.digest => progress.done += 1,
            Some(certificate) if is_lost(cluster, certificate, now) => progress.ended += 1,
            certificate => {
                let why = match (node.status.state, certificate) {
                    (NodeState::Ready, Some(_)) => Why::Renewing,
                    (_, Some(certificate)) if has_ended(certificate, now) => Why::Ended,
                    (NodeState::Ready, None) => Why::Silent,
                    (away, _) => Why::Away(away),
                };
                progress.waiting.insert(node.id, why);
            }
        }
    }
    Some(progress)
}

/// Whom to ask now: nodes that wait and have a session, no more than [`AT_ONCE`] together with those that were asked a
/// moment ago. `asked` says when; what is in it of others is forgotten.
pub fn to_ask(
    progress: &Progress,
    asked: &mut BTreeMap<NodeId, UnixMs>,
    now: UnixMs,
    is_connected: impl Fn(NodeId) -> bool,
) -> Vec<NodeId> {
    asked.retain(|node, at| progress.waiting.contains_key(node) && at.plus(ASK_AGAIN) > now);
    let room = AT_ONCE.saturating_sub(asked.len());
    let due = progress.waiting.keys().copied().filter(|node| !asked.contains_key(node) && is_connected(*node));
    let due: Vec<NodeId> = due.take(room).collect();
    asked.extend(due.iter().map(|node| (*node, now)));
    due
}

/// The cluster with a rotation, in place of one that is under way.
pub fn begun(cluster: &Cluster, rotation: RootRotation) -> Cluster {
    Cluster { root_rotation: Some(Arc::new(rotation)), ..cluster.clone() }
}

/// The cluster with the new root alone, and with other join tokens: those of before speak of the old root. `None`: there is
/// no rotation.
pub fn finished(cluster: &Cluster, worker_token_secret: [u8; 16], manager_token_secret: [u8; 16]) -> Option<Cluster> {
    let rotation = cluster.root_rotation.as_ref()?;
    Some(Cluster {
        root_cert_pem: rotation.root_cert_pem.clone(),
        root_key_pem: rotation.root_key_pem.clone(),
        worker_token_secret,
        manager_token_secret,
        root_rotation: None,
        ..cluster.clone()
    })
}
