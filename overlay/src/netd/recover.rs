//! What a netd that starts could not restore at once: tables that could not be read, and sandboxes that are not attached as
//! they were. Until it is whole, the host's rules stay as they were found, so that no port closes meanwhile; then, or when
//! [`WHOLE_WITHIN`] has passed, they are what is known.
//!
//! A table that could not be read is not in netd's State, so the agent asks the managers for it as soon as it sees that.
//! A sandbox is tried again by itself: when one of its networks has a table again, and now and then, less and less often.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use skep_proto::id::{NetworkId, TaskId};
use skep_proto::v1;

use super::{Netd, lock, text};
use crate::check;

/// How long the host's rules wait for what is missing.
const WHOLE_WITHIN: Duration = Duration::from_secs(10);
/// Until a sandbox is tried again for the first time; later twice as long each time.
const FIRST: Duration = Duration::from_secs(2);
/// At most, between two tries.
const LONGEST: Duration = Duration::from_secs(60);
/// After this it is given up until somebody asks for it, or the next netd starts.
const GIVEN_UP: Duration = Duration::from_secs(3600);

/// A sandbox that is not attached as it was.
#[derive(Debug)]
struct Lost {
    /// `None`: what was kept of it cannot be read; the agent says it again.
    request: Option<v1::AttachRequest>,
    since: Instant,
    tries: u32,
    next: Instant,
    error: String,
}

/// What is missing.
#[derive(Debug, Default)]
pub(super) struct Missing {
    tables: BTreeSet<NetworkId>,
    sandboxes: BTreeMap<TaskId, Lost>,
    /// While the host's rules are as they were found: until then at most.
    held_until: Option<Instant>,
}

/// When a sandbox is tried again that was tried so many times.
fn pause(tries: u32) -> Duration {
    FIRST.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(LONGEST)
}

impl Lost {
    fn is_given_up(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= GIVEN_UP
    }

    fn problem(&self, task: TaskId, now: Instant) -> String {
        let then = match (&self.request, self.is_given_up(now)) {
            (Some(_), false) => "it is tried again",
            (Some(_), true) => "it is not tried again before netd is started again",
            (None, _) => "the host's agent has to say again how it was",
        };
        let error = &self.error;
        format!("task {} runs, and is not attached to its networks as it was: {error}; {then}", task.short())
    }
}

impl Missing {
    /// A sandbox could not be attached again.
    fn lose(&mut self, task: TaskId, request: Option<v1::AttachRequest>, error: String, now: Instant) {
        let lost = self.sandboxes.entry(task).or_insert_with(|| Lost {
            request: None,
            since: now,
            tries: 0,
            next: now,
            error: String::new(),
        });
        lost.tries += 1;
        (lost.error, lost.next) = (error, now + pause(lost.tries));
        lost.request = request.or(lost.request.take());
    }

    /// Sandboxes whose time has come.
    fn due(&self, now: Instant) -> Vec<v1::AttachRequest> {
        let due = self.sandboxes.values().filter(|lost| lost.next <= now && !lost.is_given_up(now));
        due.filter_map(|lost| lost.request.clone()).collect()
    }

    /// Sandboxes on a network.
    fn on(&self, network: NetworkId) -> Vec<v1::AttachRequest> {
        let is_on = |request: &&v1::AttachRequest| {
            request.endpoints.iter().any(|endpoint| endpoint.network_id == network.to_vec())
        };
        self.sandboxes.values().filter_map(|lost| lost.request.as_ref()).filter(is_on).cloned().collect()
    }

    /// Whether the rules are to be what is known from now on. True once.
    fn ends_hold(&mut self, now: Instant) -> bool {
        let whole = self.tables.is_empty() && self.sandboxes.is_empty();
        let ends = self.held_until.is_some_and(|until| whole || now >= until);
        if ends {
            self.held_until = None;
        }
        ends
    }
}

impl Netd {
    /// The host's rules wait for what is missing from now on.
    pub(super) fn hold(&self) {
        lock(&self.missing).held_until = Some(Instant::now() + WHOLE_WITHIN);
        self.restoring.store(true, Ordering::SeqCst);
        self.host.hold();
    }

    /// A network's table could not be read.
    pub(super) fn lose_table(&self, network: NetworkId) {
        lock(&self.missing).tables.insert(network);
    }

    /// A network has a table, or none any more.
    pub(super) fn find_table(&self, network: NetworkId) {
        let was_lost = lock(&self.missing).tables.remove(&network);
        let on_it = lock(&self.missing).on(network);
        for request in on_it {
            self.attach_lost(request);
        }
        if was_lost {
            self.end_hold();
        }
    }

    /// A sandbox could not be attached again.
    pub(super) fn lose_sandbox(&self, task: TaskId, request: Option<v1::AttachRequest>, error: String) {
        lock(&self.missing).lose(task, request, error, Instant::now());
    }

    /// A sandbox is attached, or nobody wants it any more.
    pub(super) fn find_sandbox(&self, task: TaskId) {
        if lock(&self.missing).sandboxes.remove(&task).is_some() {
            self.end_hold();
        }
    }

    /// Whether a sandbox is not attached as it was.
    pub(super) fn is_missing(&self, task: TaskId) -> bool {
        lock(&self.missing).sandboxes.contains_key(&task)
    }

    /// Tries what is missing again where its time has come.
    pub(super) fn try_missing(&self) {
        let due = lock(&self.missing).due(Instant::now());
        for request in due {
            self.attach_lost(request);
        }
        self.end_hold();
    }

    fn attach_lost(&self, request: v1::AttachRequest) {
        let task = TaskId::from_wire(&request.task_id);
        match (self.attach_missing(request), task) {
            (Ok(None), _) => {}
            (Ok(Some(_)), Ok(task)) => tracing::info!(%task, "its sandbox is attached again"),
            // Noted where it failed.
            (Err(error), Ok(task)) => tracing::warn!(%task, "its sandbox is not attached again: {}", text(&error)),
            (_, Err(_)) => {}
        }
    }

    /// Puts what is known in place of what was found, where nothing is missing any more, or for too long.
    pub(super) fn end_hold(&self) {
        if !lock(&self.missing).ends_hold(Instant::now()) {
            return;
        }
        self.restoring.store(false, Ordering::SeqCst);
        for network in self.all_networks() {
            lock(&network).try_again(self);
        }
        self.tidy_networks();
        if let Err(error) = self.host.release() {
            tracing::warn!("published ports are not as they should be: {}", text(&error));
        }
    }

    /// Sentences for a person: about sandboxes, and about tables.
    fn missing_problems(&self) -> (Vec<String>, Vec<String>) {
        let (missing, now) = (lock(&self.missing), Instant::now());
        let sandboxes = missing.sandboxes.iter().map(|(task, lost)| lost.problem(*task, now)).collect();
        let table = |id: &NetworkId| {
            format!("the table of network {id} that was kept here is damaged: the managers have to send it again")
        };
        (sandboxes, missing.tables.iter().map(table).collect())
    }

    pub(super) fn missing_notes(&self) -> Vec<String> {
        let (sandboxes, tables) = self.missing_problems();
        [sandboxes, tables].concat()
    }

    /// The same with what to do.
    pub(super) fn missing_findings(&self) -> Vec<v1::NetworkFinding> {
        let (sandboxes, tables) = self.missing_problems();
        let replace = "if it stays so, let the task be replaced (`skep service update --force`)";
        let wait = "if it stays so, look whether that host reaches the managers";
        let sandboxes = sandboxes.into_iter().map(|text| check::error(v1::CheckArea::Devices, text, replace));
        let tables = tables.into_iter().map(|text| check::error(v1::CheckArea::Tables, text, wait));
        sandboxes.chain(tables).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: TaskId = TaskId::new(7);

    fn request(network: u128) -> v1::AttachRequest {
        let end =
            v1::SandboxEndpoint { network_id: NetworkId::new(network).to_vec(), ..v1::SandboxEndpoint::default() };
        v1::AttachRequest { task_id: TASK.to_vec(), endpoints: vec![end], ..v1::AttachRequest::default() }
    }

    #[test]
    fn a_sandbox_is_tried_less_and_less_often_and_given_up() {
        let (start, mut missing, mut tried) = (Instant::now(), Missing::default(), Vec::new());
        missing.lose(TASK, Some(request(1)), "no".to_owned(), start);
        for second in 0..5000 {
            let now = start + Duration::from_secs(second);
            for request in missing.due(now) {
                tried.push(second);
                missing.lose(TASK, Some(request), "no".to_owned(), now);
            }
        }
        assert_eq!(tried[..7], [2, 6, 14, 30, 62, 122, 182]);
        assert!((60..70).contains(&tried.len()), "{tried:?}");
        let said = missing.sandboxes[&TASK].problem(TASK, start + GIVEN_UP);
        assert!(said.contains("attached to its networks as it was: no; it is not tried again before"), "{said}");
        // Asked for again, it is tried at once by whoever asks; what it was is not forgotten.
        missing.lose(TASK, None, "no".to_owned(), start);
        assert_eq!((missing.on(NetworkId::new(1)).len(), missing.on(NetworkId::new(2)).len()), (1, 0));
    }

    #[test]
    fn rules_wait_for_what_is_missing_and_not_for_long() {
        let (start, until) = (Instant::now(), Instant::now() + WHOLE_WITHIN);
        let held = || Missing { held_until: Some(until), ..Missing::default() };
        let mut missing = held();
        assert!(missing.ends_hold(start) && !missing.ends_hold(start), "once");
        let mut missing = held();
        missing.tables.insert(NetworkId::new(1));
        assert!(!missing.ends_hold(start));
        missing.tables.clear();
        missing.lose(TASK, None, "no".to_owned(), start);
        assert!(!missing.ends_hold(start) && missing.ends_hold(until) && !missing.ends_hold(until));
    }
}
