//! Tasks whose address or port managers gave to another one on this host since: they have ended, and are not taken down yet,
//! or are not even whole yet. They lose their networks to whoever was asked for later, for good. Part of an attachment.

use std::collections::BTreeMap;

use skep_proto::id::TaskId;

use super::state::Then;
use super::{Attached, Netd, NetdError, keep, lock, request};

/// The tasks that have something of this one's, and were asked for before it.
fn over(attached: &BTreeMap<TaskId, Attached>, task: TaskId) -> Vec<TaskId> {
    let Some(own) = attached.get(&task) else { return Vec::new() };
    let is_over = |had: &Attached| had.number < own.number && request::clash(&had.request, &own.request);
    attached.iter().filter(|(_, had)| is_over(had)).map(|(other, _)| *other).collect()
}

/// What its agent is told.
pub(super) fn displaced() -> NetdError {
    NetdError::Refused("its addresses or ports were given to another task since".to_owned())
}

impl Netd {
    /// Takes sandboxes off their networks that are in the way of this one.
    pub(super) fn displace(&self, task: TaskId) -> Result<(), NetdError> {
        let over = over(&lock(&self.attached), task);
        for other in over {
            tracing::info!(task = %other, by = %task, "what it had on its networks is another task's by now");
            let Some(had) = self.mark_displaced(other) else { continue };
            for id in had.networks {
                self.leave(other, id, Then::Ends)?;
            }
            self.cut_off(other)?;
            // The next netd must not restore it, nor this one try it again.
            self.find_sandbox(other);
            if let Err(error) = keep::write(&self.request_file(other), &had.request) {
                // Its folder may be gone by now.
                tracing::debug!(task = %other, "cannot keep what its sandbox is: {error}");
            }
        }
        Ok(())
    }

    /// It is to keep nothing. Returns what it was on; `None`: it is detached meanwhile.
    fn mark_displaced(&self, task: TaskId) -> Option<Attached> {
        let mut attached = lock(&self.attached);
        let had = attached.get_mut(&task)?;
        let request = &mut had.request;
        (request.endpoints, request.host_ports, request.local_bridge) = (Vec::new(), Vec::new(), false);
        had.displaced = true;
        Some(had.clone())
    }

    /// Whether it was displaced, maybe while it was being attached.
    pub(super) fn refuse_displaced(&self, task: TaskId) -> Result<(), NetdError> {
        match lock(&self.attached).get(&task).is_some_and(|known| known.displaced) {
            true => Err(displaced()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::id::NetworkId;
    use skep_proto::v1;

    use super::*;

    fn attached(number: u64, address: u8) -> Attached {
        let addresses = vec![vec![10, 1, 0, address]];
        let end = v1::SandboxEndpoint { network_id: NetworkId::new(7).to_vec(), addresses };
        let request = v1::AttachRequest { endpoints: vec![end], ..v1::AttachRequest::default() };
        Attached { request, response: None, networks: Vec::new(), number, displaced: false }
    }

    #[test]
    fn who_was_asked_for_later_displaces_and_never_the_other_way() {
        let [a, b, c] = [3, 1, 2].map(TaskId::new);
        let attached = BTreeMap::from([(a, attached(0, 7)), (b, attached(1, 7)), (c, attached(2, 8))]);
        assert_eq!(over(&attached, b), [a]);
        assert_eq!(over(&attached, a), []);
        assert_eq!(over(&attached, c), []);
        assert_eq!(over(&attached, TaskId::new(9)), []);
    }
}
