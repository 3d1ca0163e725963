//! Follows a service by the Watch stream until it has converged, and shows how it gets there. No polling.

use std::collections::BTreeSet;
use std::time::Duration;

use skep_proto::v1::{WatchRequest, WatchResponse};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::progress::{Goal, Picture, Progress, Row, Stand};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, terminal};
use crate::retry::Patience;
use crate::view;

/// More slots than this are summed up, as in Docker.
const MAX_ROWS: usize = 20;

/// A task's end is only final if nothing follows it for this long: the loops need a moment to replace it.
const ENDED_GRACE: Duration = Duration::from_secs(5);

/// Waits until the service runs as it was written at `version`, or its roll-out is over.
pub(super) async fn wait(
    client: &Client,
    service_id: &[u8],
    version: u64,
    goal: Goal,
    quiet: bool,
) -> Result<(), Failure> {
    let mut progress = Progress::new(goal);
    let mut screen = Screen::new(quiet);
    tokio::select! {
        result = follow(client, service_id, &mut progress, &mut screen, version) => result?,
        _ = tokio::signal::ctrl_c() => {
            let name = match progress.name() {
                "" => view::id(service_id),
                name => name.to_owned(),
            };
            return Err(Failure::Interrupted(format!(
                "operation continues in the background: `skep service ps {name}` shows its progress"
            )));
        }
    }
    Ok(())
}

/// The Watch stream, opened anew when it breaks off: the leader may have gone, or the daemon be restarted.
struct Changes<'a> {
    client: &'a Client,
    service_id: &'a [u8],
    stream: Option<Streaming<WatchResponse>>,
    patience: Patience,
}

impl Changes<'_> {
    /// The next message. Everything is told again after a break; `progress` is then told to forget.
    async fn next(&mut self, progress: &mut Progress) -> Result<WatchResponse, Failure> {
        loop {
            let result = match &mut self.stream {
                Some(stream) => stream.message().await,
                None => {
                    let request = WatchRequest { service_id: self.service_id.to_vec(), ..WatchRequest::default() };
                    match self.client.watch().watch(request).await {
                        Ok(answer) => {
                            self.stream = Some(answer.into_inner());
                            continue;
                        }
                        Err(status) => Err(status),
                    }
                }
            };
            let status = match result {
                Ok(Some(message)) => {
                    self.patience = Patience::new();
                    return Ok(message);
                }
                Ok(None) => Status::unavailable("the managers ended the watch"),
                Err(status) => status,
            };
            self.stream = None;
            progress.restart();
            self.patience.after(status).await.map_err(|status| {
                Failure::Temporary(format!(
                    "{}: the service goes on by itself, look with `skep service ps`",
                    Failure::from(status)
                ))
            })?;
        }
    }

    /// Applies the next message and all that have arrived with it, so that a burst is looked at once.
    async fn take(&mut self, progress: &mut Progress) -> Result<(), Failure> {
        let message = self.next(progress).await?;
        progress.apply(message);
        while let Some(stream) = &mut self.stream {
            match timeout(Duration::ZERO, stream.message()).await {
                Ok(Ok(Some(message))) => progress.apply(message),
                Ok(_) => {
                    self.stream = None;
                    progress.restart();
                }
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// A deadline and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    None,
    /// If the same tasks still run then, they are stable: converged.
    Stable(Instant),
    /// Not replaced until then: ended.
    Final(Instant),
}

impl Timer {
    /// How long tasks are still to be watched. `None`: they are not.
    fn rest(self) -> Option<Duration> {
        match self {
            Self::Stable(at) => Some(at.saturating_duration_since(Instant::now())),
            Self::None | Self::Final(_) => None,
        }
    }
}

async fn follow(
    client: &Client,
    service_id: &[u8],
    progress: &mut Progress,
    screen: &mut Screen,
    version: u64,
) -> Result<(), Failure> {
    let mut changes = Changes { client, service_id, stream: None, patience: Patience::new() };
    let mut timer = Timer::None;
    let mut noted = None;
    let mut watched = BTreeSet::new();
    loop {
        let picture = progress.picture(version);
        if picture.note.is_some() && picture.note != noted {
            noted.clone_from(&picture.note);
            screen.say(picture.note.clone().unwrap_or_default());
        }
        let is_same = picture.new_running == watched;
        watched.clone_from(&picture.new_running);
        // The managers have watched a roll-out's tasks themselves; tasks that ran before need no watch.
        let is_proven = matches!(progress.goal(), Goal::Rollout { .. }) || watched.is_empty();
        screen.show(&picture, timer.rest().filter(|_| picture.stand == Stand::Converged));
        timer = match (&picture.stand, timer) {
            (Stand::Removed, _) => return Err(Failure::Failed(format!("service {} was removed", progress.name()))),
            (Stand::Failed(why), _) => return Err(Failure::Failed(why.clone())),
            (Stand::Converged, Timer::Stable(at)) if is_same && at > Instant::now() => Timer::Stable(at),
            (Stand::Converged, Timer::Stable(_)) if is_same => return screen.converged(progress.name(), &picture),
            (Stand::Converged, _) if is_proven => return screen.converged(progress.name(), &picture),
            (Stand::Converged, _) => {
                let monitor = Duration::from_millis(progress.monitor_ms());
                screen.begin_watch(&picture, monitor);
                Timer::Stable(Instant::now() + monitor)
            }
            (Stand::Ended, _) if picture.is_final => {
                screen.say(ended(progress.name(), &picture)?);
                return Ok(());
            }
            (Stand::Ended, Timer::Final(at)) if at <= Instant::now() => {
                screen.say(ended(progress.name(), &picture)?);
                return Ok(());
            }
            (Stand::Ended, Timer::Final(at)) => Timer::Final(at),
            (Stand::Ended, _) => Timer::Final(Instant::now() + ENDED_GRACE),
            (Stand::Unknown | Stand::Moving, _) => Timer::None,
        };
        match timer {
            Timer::None => changes.take(progress).await?,
            Timer::Stable(at) => tokio::select! {
                result = changes.take(progress) => result?,
                () = sleep_until(screen.next_count(at)) => {}
            },
            Timer::Final(at) => tokio::select! {
                result = changes.take(progress) => result?,
                () = sleep_until(at) => {}
            },
        }
    }
}

/// Some tasks ended and are not replaced: fine if they did what they should. The text is for a person.
fn ended(name: &str, picture: &Picture) -> Result<String, Failure> {
    let is_failed = |row: &&Row| row.state != "running" && row.state != "complete";
    let failed: Vec<&Row> = picture.rows.iter().filter(is_failed).collect();
    match failed.first() {
        None => Ok(format!("verify: the tasks of service {name} have completed and are not restarted")),
        Some(row) => Err(Failure::Failed(format!(
            "service {name} does not run: {} of {} tasks ended and are not restarted ({}: {})",
            failed.len(),
            picture.desired,
            row.name,
            if row.detail.is_empty() { row.state } else { &row.detail }
        ))),
    }
}

/// Where progress is shown: lines that replace themselves on a terminal, else a line for each change.
enum Screen {
    Quiet,
    Live(terminal::LiveView),
    Lines { last: Option<Step>, said: BTreeSet<String> },
}

impl Screen {
    fn new(quiet: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if terminal::is_live() {
            Self::Live(terminal::LiveView::default())
        } else {
            Self::Lines { last: None, said: BTreeSet::new() }
        }
    }

    /// Shows how things stand, and on a terminal how long the tasks are still to be watched.
    fn show(&mut self, picture: &Picture, rest: Option<Duration>) {
        if picture.stand == Stand::Unknown {
            return;
        }
        match self {
            Self::Quiet => {}
            Self::Live(view) => {
                let mut lines = live_lines(picture);
                // Above the tasks, which may be more than the terminal has room for.
                if let Some(rest) = rest {
                    lines.insert(1, waiting(rest));
                }
                view.show(&lines);
            }
            Self::Lines { last, said } => {
                let new: Vec<String> =
                    stuck_lines(picture).into_iter().filter(|line| said.insert(line.clone())).collect();
                let step = step(picture);
                if *last != Some(step) || !new.is_empty() {
                    output::note(overall(picture));
                    *last = Some(step);
                }
                for line in new {
                    output::note(line);
                }
            }
        }
    }

    fn say(&mut self, line: String) {
        match self {
            Self::Quiet => {}
            Self::Live(_) | Self::Lines { .. } => output::note(line),
        }
        if let Self::Live(view) = self {
            // The line stays; the next picture is drawn below it.
            *view = terminal::LiveView::default();
        }
    }

    /// All tasks run; from now on they are watched for this long.
    fn begin_watch(&mut self, picture: &Picture, monitor: Duration) {
        match self {
            Self::Live(_) => self.show(picture, Some(monitor)),
            Self::Quiet | Self::Lines { .. } => self.say(waiting(monitor)),
        }
    }

    /// When to look again while tasks are watched until `end`: a terminal counts the seconds down.
    fn next_count(&self, end: Instant) -> Instant {
        match self {
            Self::Live(_) => end.min(Instant::now() + Duration::from_secs(1)),
            Self::Quiet | Self::Lines { .. } => end,
        }
    }

    fn converged(&mut self, name: &str, picture: &Picture) -> Result<(), Failure> {
        if let Self::Live(_) = self {
            // Without the count-down.
            self.show(picture, None);
        }
        self.say(format!("verify: service {name} converged"));
        Ok(())
    }
}

/// "verify: waiting 5 seconds to verify that tasks are stable..."
fn waiting(rest: Duration) -> String {
    let seconds = rest.as_secs_f64();
    let seconds = if seconds < 1.0 { format!("{seconds:.1}") } else { format!("{}", seconds.round()) };
    let unit = if seconds == "1" { "second" } else { "seconds" };
    format!("verify: waiting {seconds} {unit} to verify that tasks are stable...")
}

/// Tasks wanted, and how many tenths of them run: a line for each task would be too many for large services.
type Step = (u64, u64, bool);

fn step(picture: &Picture) -> Step {
    let Picture { running, desired, .. } = *picture;
    let tenths = if desired <= 10 { running } else { running.saturating_mul(10) / desired };
    (desired, tenths, running == desired)
}

fn overall(picture: &Picture) -> String {
    let Picture { running, desired, is_rolling_back, .. } = *picture;
    let what = if is_rolling_back { "rolling back update: " } else { "" };
    match running.checked_sub(desired) {
        None | Some(0) => format!("overall progress: {what}{running} out of {desired} tasks"),
        Some(excess) => format!("overall progress: {what}{desired} out of {desired} tasks, {excess} to stop"),
    }
}

fn live_lines(picture: &Picture) -> Vec<String> {
    let mut lines = vec![overall(picture)];
    if picture.rows.len() <= MAX_ROWS {
        let width = picture.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        lines.extend(picture.rows.iter().map(|row| {
            let place = if row.node.is_empty() { String::new() } else { format!(" on {}", row.node) };
            let detail = if row.detail.is_empty() { String::new() } else { format!(": {}", row.detail) };
            format!("  {:width$}  {}{place}{detail}", row.name, row.state)
        }));
    } else {
        lines.push(format!("  {}", by_state(&picture.rows)));
        lines.extend(stuck_lines(picture));
    }
    lines
}

/// "3 pending, 17 running"
fn by_state(rows: &[Row]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for row in rows {
        match counts.iter_mut().find(|(state, _)| *state == row.state) {
            Some((_, count)) => *count += 1,
            None => counts.push((row.state, 1)),
        }
    }
    let counts: Vec<String> = counts.into_iter().map(|(state, count)| format!("{count} {state}")).collect();
    counts.join(", ")
}

/// Every reason once, with the number of tasks that it holds up.
fn stuck_lines(picture: &Picture) -> Vec<String> {
    let mut reasons: Vec<(&str, &str, usize)> = Vec::new();
    for row in picture.rows.iter().filter(|row| row.is_stuck) {
        match reasons.iter_mut().find(|(detail, _, _)| *detail == row.detail) {
            Some((_, _, count)) => *count += 1,
            None => reasons.push((&row.detail, &row.name, 1)),
        }
    }
    reasons
        .into_iter()
        .map(|(detail, name, count)| match count {
            1 => format!("  {name}: {detail}"),
            _ => format!("  {name} and {} more: {detail}", count - 1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, state: &'static str, detail: &str) -> Row {
        Row {
            name: name.to_owned(),
            state,
            node: if state == "pending" { String::new() } else { "host1".to_owned() },
            detail: detail.to_owned(),
            is_stuck: !detail.is_empty(),
        }
    }

    fn picture(rows: Vec<Row>) -> Picture {
        Picture {
            stand: Stand::Moving,
            running: 1,
            desired: 3,
            rows,
            is_rolling_back: false,
            note: None,
            new_running: BTreeSet::new(),
            is_final: false,
        }
    }

    #[test]
    fn a_few_tasks_have_a_line_each() {
        let lines =
            live_lines(&picture(vec![row("web.1", "running", ""), row("web.10", "pending", "no suitable node")]));
        assert_eq!(
            lines,
            ["overall progress: 1 out of 3 tasks", "  web.1   running on host1", "  web.10  pending: no suitable node"]
        );
    }

    #[test]
    fn many_tasks_are_summed_up() {
        let mut rows: Vec<Row> = (0..30).map(|slot| row(&format!("web.{slot}"), "pending", "no memory")).collect();
        rows.push(row("web.30", "running", ""));
        let lines = live_lines(&picture(rows));
        assert_eq!(lines[1], "  30 pending, 1 running");
        assert_eq!(lines[2], "  web.0 and 29 more: no memory");
    }

    #[test]
    fn large_services_make_few_lines() {
        let at = |running, desired| step(&Picture { running, desired, ..picture(Vec::new()) });
        let mut steps: Vec<Step> = (0..=1000).map(|running| at(running, 1000)).collect();
        steps.dedup();
        assert_eq!(steps.len(), 11);
        assert_ne!(at(1, 3), at(2, 3));
        assert_ne!(at(999, 1000), at(1000, 1000));
    }

    #[test]
    fn completed_tasks_are_no_failure() {
        assert!(ended("web", &picture(vec![row("web.1", "complete", "")])).is_ok());
        assert!(matches!(ended("web", &picture(vec![row("web.1", "failed", "exit code 1")])), Err(Failure::Failed(_))));
    }
}
