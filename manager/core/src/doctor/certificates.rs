//! Certificates: whose life is nearly over, the root's too, and what a change of the root waits for.

use std::time::Duration;

use skep_proto::time::UnixMs;
use skep_proto::v1::NodeCertificate;

use super::Finding;
use super::rules::Report;
use crate::ca::{self, RootLife, Why};
use crate::store::{ObjectKey, State};

/// A node renews its certificate before so much of its life is left, in percent; less of it means that it cannot.
const LEFT: i64 = 20;
/// Names in one message.
const NAMES: usize = 5;

/// The root, with which every certificate ends.
pub(super) fn root(life: Option<RootLife>, now: UnixMs, findings: &mut Vec<Finding>) {
    let Some(life) = life else { return };
    let mut report = Report::on(findings, "the root certificate");
    if now > life.not_after {
        report.warning(true, || {
            format!(
                "it ended {} ago, and every certificate of the swarm with it: give the swarm another with `skep swarm ca \
                 --rotate`, then bring its other nodes back with `skep swarm join --token TOKEN MANAGER`",
                words(now.since(life.not_after))
            )
        });
        return;
    }
    report.warning(life.is_late(now), || {
        format!(
            "it ends in {}, and every certificate of the swarm with it: give the swarm another with `skep swarm ca --rotate`",
            words(life.not_after.since(now))
        )
    });
}

/// Certificates that have ended, or are about to.
pub(super) fn certificates(state: &State, now: UnixMs, findings: &mut Vec<Finding>) {
    for node in state.nodes() {
        let Some(certificate) = ca::certificate(node) else { continue };
        let mut report = Report::on(findings, ObjectKey::Node(node.id));
        let end = UnixMs(certificate.not_after_ms);
        match (ca::has_ended(certificate, now), is_late(certificate, now)) {
            (true, _) => report.warning(true, || {
                format!(
                    "its certificate ended {} ago: on it, run `skep swarm join --token TOKEN MANAGER` with a token of its \
                     role, and it is back as the node that it was; or remove it with `skep node rm`",
                    words(now.since(end))
                )
            }),
            (false, true) => report.warning(true, || {
                format!(
                    "its certificate ends in {} and was not renewed: see its log, and compare its clock with the managers'",
                    words(end.since(now))
                )
            }),
            (false, false) => {}
        }
    }
}

fn is_late(certificate: &NodeCertificate, now: UnixMs) -> bool {
    let life = certificate.not_after_ms.saturating_sub(certificate.not_before_ms);
    let left = certificate.not_after_ms.saturating_sub(now.0);
    left.saturating_mul(100) < life.saturating_mul(LEFT)
}

/// Nodes that are away keep a change of the root open.
pub(super) fn rotation(state: &State, now: UnixMs, findings: &mut Vec<Finding>) {
    let Some(progress) = ca::progress(state, now) else { return };
    let away = progress.waiting.iter().filter(|(_, why)| matches!(why, Why::Away(_) | Why::Ended));
    let away: Vec<&str> = away.filter_map(|(id, _)| state.node(*id)).map(|node| node.hostname()).collect();
    let mut report = Report::on(findings, "the change of the root certificate");
    report.warning(!away.is_empty(), || {
        let names = away.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
        let more = if away.len() > NAMES { ", …" } else { "" };
        format!(
            "it waits for {} of the nodes, which are away ({names}{more}): bring them back, or remove them with `skep node rm`",
            away.len()
        )
    });
}

/// In the largest unit that is not 0.
fn words(span: Duration) -> String {
    let minutes = span.as_secs() / 60;
    match (minutes / 1440, minutes / 60) {
        (0, 0) => format!("{minutes} min"),
        (0, hours) => format!("{hours} h"),
        (days, _) => format!("{days} d"),
    }
}
