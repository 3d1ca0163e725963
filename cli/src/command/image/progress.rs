//! Progress of pulls, loads and imports: a bar for each blob on a terminal, else a line for each change of its state.

use skep_proto::v1::{ImageProgress, LocalImage};
use tonic::Streaming;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, human, terminal};

/// Digits of a blob's digest in a line.
const SHORT_DIGEST: usize = 12;
/// Width of a bar.
const BAR: u64 = 40;

/// Shows a stream until its end and returns the images that are held then. Ctrl-C ends the call, and with it the
/// transfer.
pub(super) async fn follow(mut stream: Streaming<ImageProgress>, quiet: bool) -> Result<Vec<LocalImage>, Failure> {
    let mut images = Vec::new();
    let mut screen = Screen::new(quiet);
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            _ = tokio::signal::ctrl_c() => {
                output::note("");
                return Err(Failure::Reported(Exit::Interrupted));
            }
        };
        let Some(message) = message else {
            return Ok(images);
        };
        if !message.warning.is_empty() {
            output::warnings(&[&message.warning]);
            screen.restart();
        }
        screen.show(&message);
        images.extend(message.image);
    }
}

/// One blob's latest state.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Blob {
    id: String,
    status: String,
    current: u64,
    total: u64,
}

enum Screen {
    Quiet,
    Live { view: terminal::LiveView, blobs: Vec<Blob> },
    Lines { blobs: Vec<Blob> },
}

impl Screen {
    fn new(quiet: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if terminal::is_live() {
            Self::Live { view: terminal::LiveView::default(), blobs: Vec::new() }
        } else {
            Self::Lines { blobs: Vec::new() }
        }
    }

    /// Something else was printed: draw anew below it.
    fn restart(&mut self) {
        if let Self::Live { view, .. } = self {
            *view = terminal::LiveView::default();
        }
    }

    fn show(&mut self, message: &ImageProgress) {
        if message.status.is_empty() {
            return;
        }
        match self {
            Self::Quiet => {}
            Self::Live { view, blobs } => {
                update(blobs, message);
                // The newest bars move; where the screen is too small for all, show these.
                let (_, rows) = terminal::size();
                let skipped = blobs.len().saturating_sub(rows.saturating_sub(1));
                let lines: Vec<String> = blobs.iter().skip(skipped).map(bar).collect();
                view.show(&lines);
            }
            Self::Lines { blobs } => {
                if update(blobs, message) {
                    output::note(line(message));
                }
            }
        }
    }
}

/// Takes the message; tells whether the blob's status is another one.
fn update(blobs: &mut Vec<Blob>, message: &ImageProgress) -> bool {
    let new = Blob {
        id: message.id.clone(),
        status: message.status.clone(),
        current: message.current_bytes,
        total: message.total_bytes,
    };
    match blobs.iter_mut().find(|blob| blob.id == message.id) {
        Some(blob) => {
            let changed = blob.status != new.status;
            *blob = new;
            changed
        }
        None => {
            blobs.push(new);
            true
        }
    }
}

fn short(id: &str) -> &str {
    let hex = id.split_once(':').map_or(id, |(_, hex)| hex);
    hex.get(..SHORT_DIGEST).unwrap_or(hex)
}

fn line(message: &ImageProgress) -> String {
    if message.id.is_empty() { message.status.clone() } else { format!("{}: {}", short(&message.id), message.status) }
}

fn bar(blob: &Blob) -> String {
    let name = if blob.id.is_empty() { String::new() } else { format!("{}: ", short(&blob.id)) };
    let size = |bytes: u64| human::size(i64::try_from(bytes).unwrap_or(i64::MAX));
    let counts = match (blob.current, blob.total) {
        (0, 0) => String::new(),
        (current, 0) => format!("  {}", size(current)),
        (current, total) if current >= total => String::new(),
        (current, total) => {
            let filled = usize::try_from(u128::from(current) * u128::from(BAR) / u128::from(total)).unwrap_or(0);
            let empty = usize::try_from(BAR).unwrap_or(0).saturating_sub(filled);
            format!("  [{}>{}]  {}/{}", "=".repeat(filled), " ".repeat(empty), size(current), size(total))
        }
    };
    format!("{name}{}{counts}", blob.status)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(id: &str, status: &str, current: u64, total: u64) -> ImageProgress {
        ImageProgress {
            id: id.to_owned(),
            status: status.to_owned(),
            current_bytes: current,
            total_bytes: total,
            ..ImageProgress::default()
        }
    }

    #[test]
    fn only_changes_make_lines() {
        let mut blobs = Vec::new();
        assert!(update(&mut blobs, &message("sha256:aa", "downloading", 1, 10)));
        assert!(!update(&mut blobs, &message("sha256:aa", "downloading", 5, 10)));
        assert!(update(&mut blobs, &message("sha256:aa", "done", 10, 10)));
        assert!(update(&mut blobs, &message("", "done", 0, 0)));
        assert_eq!(blobs.len(), 2);
    }

    #[test]
    fn bars() {
        let text = |current, total| {
            let mut blobs = Vec::new();
            update(&mut blobs, &message("sha256:0123456789abcdef", "downloading", current, total));
            bar(&blobs[0])
        };
        assert_eq!(text(0, 0), "0123456789ab: downloading");
        assert_eq!(text(1_000_000, 0), "0123456789ab: downloading  1MB");
        assert_eq!(
            text(500, 1000),
            format!("0123456789ab: downloading  [{}>{}]  500B/1kB", "=".repeat(20), " ".repeat(20))
        );
        assert_eq!(text(1000, 1000), "0123456789ab: downloading");
    }

    proptest! {
        #[test]
        fn never_panics(id: String, status: String, current: u64, total: u64) {
            let message = message(&id, &status, current, total);
            let mut blobs = Vec::new();
            update(&mut blobs, &message);
            let _ = (bar(&blobs[0]), line(&message));
        }
    }
}
