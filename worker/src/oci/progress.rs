//! A pull's progress as one line of `TaskStatus.message`: "pulling image web:1: 3/5 layers, 12 of 40 MB". Pure but for the
//! clock that is passed in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use skep_image::{Digest, LayerStatus, ProgressEvent};

/// Between two lines that only differ in bytes.
const QUIET: Duration = Duration::from_secs(1);

/// Gathers events into lines.
#[derive(Debug)]
pub(super) struct PullProgress {
    image: String,
    layers: HashMap<Digest, ProgressEvent>,
    done: usize,
    last: Option<Instant>,
}

impl PullProgress {
    pub(super) fn new(image: String) -> Self {
        Self { image, layers: HashMap::new(), done: 0, last: None }
    }

    /// Takes an event in; the new line, if it is worth one.
    pub(super) fn on(&mut self, event: ProgressEvent, now: Instant) -> Option<String> {
        self.layers.insert(event.layer, event);
        let is_done = |event: &&ProgressEvent| matches!(event.status, LayerStatus::Done | LayerStatus::Held);
        let done = self.layers.values().filter(is_done).count();
        let same = done == self.done;
        if same && self.last.is_some_and(|last| now.duration_since(last) < QUIET) {
            return None;
        }
        (self.done, self.last) = (done, Some(now));
        Some(self.line())
    }

    fn line(&self) -> String {
        let (current, total) = self.layers.values().filter(|event| event.status != LayerStatus::Held).fold(
            (0u64, 0u64),
            |(current, total), event| {
                let whole = !matches!(event.status, LayerStatus::Waiting | LayerStatus::Downloading);
                (current + if whole { event.total } else { event.current }, total + event.total)
            },
        );
        let bytes = if total == 0 {
            String::new()
        } else {
            format!(", {:.1} of {:.1} MB", megabytes(current), megabytes(total))
        };
        format!("pulling image {}: {}/{} layers{bytes}", self.image, self.done, self.layers.len())
    }
}

#[allow(clippy::cast_precision_loss)] // for a person
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_and_bytes_are_not_told_too_often() {
        let start = Instant::now();
        let mut progress = PullProgress::new("web:1".to_owned());
        let event = |layer: &[u8], status, current| ProgressEvent {
            layer: Digest::of(layer),
            status,
            current,
            total: 2_000_000,
        };
        let first = progress.on(event(b"a", LayerStatus::Downloading, 500_000), start);
        assert_eq!(first.as_deref(), Some("pulling image web:1: 0/1 layers, 0.5 of 2.0 MB"));
        assert_eq!(progress.on(event(b"b", LayerStatus::Downloading, 1), start), None);
        let done = progress.on(event(b"a", LayerStatus::Done, 2_000_000), start);
        assert_eq!(done.as_deref(), Some("pulling image web:1: 1/2 layers, 2.0 of 4.0 MB"));
        let later = progress.on(event(b"b", LayerStatus::Downloading, 1_000_000), start + QUIET);
        assert_eq!(later.as_deref(), Some("pulling image web:1: 1/2 layers, 3.0 of 4.0 MB"));
    }
}
