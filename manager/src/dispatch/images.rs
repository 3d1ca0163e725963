//! Which nodes hold which images, as they say themselves: a hint about where to ask, never a word about what a name
//! means. In memory only; each session begins with the complete list. Used by sessions and by `ImageSources`. The leader
//! knows all nodes, as the other managers relay theirs.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_proto::id::NodeId;
use skep_proto::v1::HeldImages;

use super::limits::HELD_IMAGES;

/// Held images, by digest and by node. Cheap to clone; all clones are one index.
#[derive(Clone, Default)]
pub(crate) struct ImageIndex(Arc<Mutex<Tables>>);

#[derive(Default)]
struct Tables {
    by_digest: HashMap<Arc<str>, BTreeSet<NodeId>>,
    by_node: HashMap<NodeId, BTreeSet<Arc<str>>>,
    /// Nodes whose images changed since the leader was told.
    untold: BTreeSet<NodeId>,
}

impl ImageIndex {
    /// Notes what came and went on a node. Says how many entries were passed over: not digests, or too many.
    pub(crate) fn update(&self, node: NodeId, held: &HeldImages) -> usize {
        let mut tables = self.lock();
        tables.untold.insert(node);
        if held.complete {
            tables.forget(node);
        }
        for digest in &held.removed {
            tables.remove(node, digest);
        }
        let added = held.added.iter();
        added.filter(|digest| !tables.add(node, digest)).count()
    }

    /// Nodes that hold the image, by id.
    pub(crate) fn holders(&self, digest: &str) -> Vec<NodeId> {
        let tables = self.lock();
        let holders = tables.by_digest.get(digest);
        holders.into_iter().flatten().copied().collect()
    }

    /// The leader knows nothing of these nodes.
    pub(crate) fn untell(&self, nodes: impl IntoIterator<Item = NodeId>) {
        self.lock().untold = nodes.into_iter().collect();
    }

    /// A node whose images the leader is to be told, with all of them.
    pub(crate) fn next_untold(&self) -> Option<(NodeId, Vec<String>)> {
        let mut tables = self.lock();
        let node = tables.untold.pop_first()?;
        let held = tables.by_node.get(&node).into_iter().flatten();
        Some((node, held.map(|digest| digest.to_string()).collect()))
    }

    /// Forgets all nodes but those that `keep` names.
    pub(crate) fn retain(&self, keep: impl Fn(NodeId) -> bool) {
        let mut tables = self.lock();
        let gone: Vec<NodeId> = tables.by_node.keys().copied().filter(|node| !keep(*node)).collect();
        for node in gone {
            tables.forget(node);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn add(&mut self, node: NodeId, digest: &str) -> bool {
        let held = self.by_node.entry(node).or_default();
        if held.contains(digest) {
            return true;
        }
        if !is_digest(digest) || held.len() >= HELD_IMAGES {
            return false;
        }
        let known = self.by_digest.get_key_value(digest);
        let digest = known.map_or_else(|| Arc::from(digest), |(shared, _)| Arc::clone(shared));
        held.insert(Arc::clone(&digest));
        self.by_digest.entry(digest).or_default().insert(node);
        true
    }

    fn remove(&mut self, node: NodeId, digest: &str) {
        let held = self.by_node.get_mut(&node);
        if held.is_some_and(|held| held.remove(digest)) {
            self.remove_holder(node, digest);
        }
    }

    fn remove_holder(&mut self, node: NodeId, digest: &str) {
        if let Some(holders) = self.by_digest.get_mut(digest) {
            holders.remove(&node);
            if holders.is_empty() {
                self.by_digest.remove(digest);
            }
        }
    }

    fn forget(&mut self, node: NodeId) {
        for digest in self.by_node.remove(&node).unwrap_or_default() {
            self.remove_holder(node, &digest);
        }
    }
}

/// `sha256:` and 64 hex digits, or `sha512:` and 128 (OCI image-spec, descriptor.md).
pub(crate) fn is_digest(text: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match text.split_once(':') {
        Some(("sha256", hex)) => hex.len() == 64 && is_hex(hex),
        Some(("sha512", hex)) => hex.len() == 128 && is_hex(hex),
        _ => false,
    }
}

/// Where other nodes reach a node's images: what the node says, with the address that its session comes from in place
/// of a missing or unspecified host (`:2378`, `0.0.0.0:2378`, `[::]:2378`). `None`: it serves none, or it cannot be
/// told where.
pub(crate) fn peer_address(said: &str, observed: &str) -> Option<String> {
    let (host, port) = said.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let unspecified = bare.is_empty() || bare.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
    if unspecified {
        let ip: IpAddr = observed.parse().ok()?;
        return Some(SocketAddr::new(ip, port).to_string());
    }
    Some(said.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn digest(number: u64) -> String {
        format!("sha256:{number:064x}")
    }

    fn held(complete: bool, added: &[u64], removed: &[u64]) -> HeldImages {
        let digests = |numbers: &[u64]| numbers.iter().map(|number| digest(*number)).collect();
        HeldImages { complete, added: digests(added), removed: digests(removed) }
    }

    #[test]
    fn nodes_come_and_go_by_digest() {
        let (index, one, two) = (ImageIndex::default(), NodeId::new(1), NodeId::new(2));
        assert_eq!(index.update(one, &held(true, &[1, 2], &[])), 0);
        index.update(two, &held(true, &[2], &[]));
        assert_eq!(index.holders(&digest(2)), [one, two]);
        index.update(one, &held(false, &[3], &[2]));
        assert_eq!(index.holders(&digest(2)), [two]);
        assert_eq!(index.holders(&digest(3)), [one]);
        // A new session says all there is.
        index.update(one, &held(true, &[4], &[]));
        assert!(index.holders(&digest(1)).is_empty() && index.holders(&digest(3)).is_empty());
        assert_eq!(index.holders(&digest(4)), [one]);
        assert_eq!(index.next_untold(), Some((one, vec![digest(4)])));
        assert_eq!(index.next_untold(), Some((two, vec![digest(2)])));
        assert_eq!(index.next_untold(), None);
        index.untell([two]);
        assert_eq!(index.next_untold().unwrap().0, two);
        index.retain(|node| node == one);
        assert!(index.holders(&digest(2)).is_empty());
        let tables = index.lock();
        assert_eq!(tables.by_digest.len(), 1, "nothing is left behind");
        assert_eq!(tables.by_node.len(), 1);
    }

    #[test]
    fn what_is_no_digest_and_what_is_too_much_is_passed_over() {
        let (index, node) = (ImageIndex::default(), NodeId::new(1));
        let bad = HeldImages {
            complete: false,
            added: vec!["busybox".into(), "sha256:12".into(), digest(1).to_uppercase()],
            removed: vec!["x".into()],
        };
        assert_eq!(index.update(node, &bad), 3);
        let most = HELD_IMAGES as u64;
        let many: Vec<u64> = (0..most + 5).collect();
        assert_eq!(index.update(node, &held(true, &many, &[])), 5);
        assert_eq!(index.holders(&digest(most - 1)), [node]);
        assert!(index.holders(&digest(most)).is_empty());
    }

    #[test]
    fn an_unspecified_host_is_where_the_session_comes_from() {
        let at = |said| peer_address(said, "10.0.0.7");
        assert_eq!(at(":2378").unwrap(), "10.0.0.7:2378");
        assert_eq!(at("0.0.0.0:2378").unwrap(), "10.0.0.7:2378");
        assert_eq!(at("[::]:2378").unwrap(), "10.0.0.7:2378");
        assert_eq!(at("10.1.1.1:2378").unwrap(), "10.1.1.1:2378");
        assert_eq!(at("host2:2378").unwrap(), "host2:2378");
        assert_eq!(peer_address(":2378", "fd00::7").unwrap(), "[fd00::7]:2378");
        assert_eq!(at(""), None);
        assert_eq!(at("host2"), None);
        assert_eq!(at("host2:0"), None);
        assert_eq!(at(":99999"), None);
        assert_eq!(peer_address(":2378", ""), None);
    }
}
