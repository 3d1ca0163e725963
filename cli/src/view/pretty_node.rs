//! A node as `node inspect --pretty` prints it: Docker's headings and order, and what certificates add. Pure.

use std::collections::BTreeMap;

use skep_proto::v1::Node;

use super::node::CertificateView;
use super::page::Page;
use super::state;
use crate::output::{human, time};

/// The whole text, several lines, with an end.
pub(crate) fn text(node: &Node, now_ms: i64) -> String {
    let spec = node.spec.clone().unwrap_or_default();
    let description = node.description.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let mut page = Page::new(24);
    page.line("ID", &super::id(&node.id));
    page.pairs("Labels", labels(&spec.labels));
    page.line("Hostname", &description.hostname);
    page.line("Joined at", &time::plain_ms(node.meta.unwrap_or_default().created_at_ms));
    page.line("Status", "");
    page.line(" State", &state::capital(state::node(status.state())));
    page.some(" Message", &status.message);
    page.line(" Availability", &state::capital(state::availability(spec.availability())));
    page.some(" Address", &status.addr);
    page.line("Role", &state::capital(state::role(node.role())));
    if spec.role() != node.role() {
        page.line(" Wanted", &state::capital(state::role(spec.role())));
    }
    if let Some(manager) = &node.manager {
        page.line("Manager Status", "");
        page.line(" Address", &manager.addr);
        let is_heard = manager.reachable || manager.leader;
        page.line(" Raft Status", if is_heard { "Reachable" } else { "Unreachable" });
        page.line(" Leader", if manager.leader { "Yes" } else { "No" });
    }
    let platform = description.platform.unwrap_or_default();
    page.line("Platform", "");
    page.line(" Operating System", &platform.os);
    page.line(" Architecture", &platform.architecture);
    page.some(" Kernel", &description.kernel);
    let resources = description.resources.unwrap_or_default();
    page.line("Resources", "");
    page.line(" CPUs", &(resources.nano_cpus as f64 / 1e9).to_string());
    page.line(" Memory", &human::binary_size(resources.memory_bytes));
    page.line("Engine Version", &description.engine_version);
    page.pairs("Engine Labels", labels(&description.engine_labels));
    if let Some(known) = &description.certificate {
        let certificate = CertificateView::new(known, now_ms);
        page.line("Certificate", "");
        page.some(" Issuer Digest", &certificate.issuer_digest);
        page.line(" Expires", &format!("{} ({})", time::plain_ms(known.not_after_ms), certificate.remaining));
    }
    page.into_text()
}

/// ` - name=value`, as in Docker.
fn labels(labels: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    labels.iter().map(|(name, value)| match value.as_str() {
        "" => format!("- {name}"),
        value => format!("- {name}={value}"),
    })
}

#[cfg(test)]
mod tests {
    use skep_proto::v1::{
        Availability, ManagerStatus, Meta, NodeCertificate, NodeDescription, NodeRole, NodeSpec, NodeState, NodeStatus,
        Platform, Resources,
    };

    use super::*;

    fn host() -> Node {
        let mut spec = NodeSpec {
            labels: [("zone".to_owned(), "a".to_owned()), ("ssd".to_owned(), String::new())].into(),
            ..NodeSpec::default()
        };
        spec.set_availability(Availability::Drain);
        spec.set_role(NodeRole::Worker);
        let mut status =
            NodeStatus { message: "silent".to_owned(), addr: "10.0.0.1".to_owned(), ..NodeStatus::default() };
        status.set_state(NodeState::Down);
        let mut node = Node {
            meta: Some(Meta { created_at_ms: 60_000, ..Meta::default() }),
            spec: Some(spec),
            status: Some(status),
            manager: Some(ManagerStatus { addr: "10.0.0.1:2377".to_owned(), leader: true, ..ManagerStatus::default() }),
            description: Some(NodeDescription {
                hostname: "host1".to_owned(),
                platform: Some(Platform {
                    architecture: "x86_64".to_owned(),
                    os: "linux".to_owned(),
                    ..Platform::default()
                }),
                resources: Some(Resources { nano_cpus: 1_500_000_000, memory_bytes: 3 << 30 }),
                engine_version: "0.1.0".to_owned(),
                certificate: Some(NodeCertificate { not_after_ms: 7_260_000, ..NodeCertificate::default() }),
                ..NodeDescription::default()
            }),
            ..Node::default()
        };
        node.set_role(NodeRole::Manager);
        node
    }

    #[test]
    fn the_page() {
        let text = text(&host(), 60_000);
        for part in [
            "Labels:\n - ssd\n - zone=a\nHostname:               host1\nJoined at:              1970-01-01 00:01:00",
            "Status:\n State:                 Down\n Message:               silent\n Availability:          Drain\n",
            "Role:                   Manager\n Wanted:                Worker\nManager Status:\n",
            " Raft Status:           Reachable\n Leader:                Yes\nPlatform:\n",
            " CPUs:                  1.5\n Memory:                3GiB\nEngine Version:         0.1.0\n",
            "Certificate:\n Expires:               1970-01-01 02:01:00",
            "(2 hours)\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("Engine Labels") && text.lines().all(|line| line.trim_end() == line), "{text}");
    }

    #[test]
    fn a_worker_has_no_part_in_raft() {
        let worker = Node { manager: None, description: None, ..host() };
        let text = text(&worker, 0);
        assert!(!text.contains("Manager Status") && !text.contains("Certificate"), "{text}");
    }
}
