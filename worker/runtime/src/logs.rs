//! Reads a container's log: JSON lines, rotated by size (`container.log`, `.1`, `.2`, … older), written by the monitor.
//! Following waits for the kernel's word (inotify(7)) that the directory changed, and stays right over rotations: the
//! open file is known by its inode, wherever it was renamed to.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Deserialize;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use crate::runtime::LOG_FILE;

/// Rotated files looked for at most.
const MAX_FILES: u32 = 1_000;

/// One line, or a part of a very long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// By this host's clock, nanoseconds since 1970.
    pub time_ns: i64,
    /// Whether it went to stderr.
    pub stderr: bool,
    /// With its line feed, where it had one.
    pub data: Vec<u8>,
}

/// What to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Not before; nanoseconds since 1970.
    pub since_ns: i64,
    /// Only the last lines. `None`: all.
    pub tail: Option<u64>,
}

#[derive(Deserialize)]
struct Record {
    log: String,
    stream: String,
    time: String,
}

/// Sends the lines of the log in `dir`, oldest first. With `over`, goes on with new ones until that turns true and
/// everything is read. Ends early when nobody reads from `sink`.
pub async fn read(
    dir: &Path,
    query: LogQuery,
    over: Option<watch::Receiver<bool>>,
    sink: mpsc::Sender<LogLine>,
) -> io::Result<()> {
    let path = dir.join(LOG_FILE);
    // The watch comes first: what is written between the first read and the watch would be missed.
    let follow = match over {
        Some(over) => Some((watch_dir(dir)?, over)),
        None => None,
    };
    let (backlog, mut reader) = read_backlog(path.clone(), query).await?;
    for line in backlog {
        if sink.send(line).await.is_err() {
            return Ok(());
        }
    }
    let Some((changes, mut over)) = follow else { return Ok(()) };
    loop {
        let ended = *over.borrow_and_update();
        let (lines, next) = read_on(path.clone(), reader, query.since_ns).await?;
        reader = next;
        for line in lines {
            if sink.send(line).await.is_err() {
                return Ok(());
            }
        }
        if ended {
            return Ok(());
        }
        tokio::select! {
            ready = changes.readable() => {
                let mut ready = ready?;
                // What exactly changed does not matter: all new lines are read.
                while nix::unistd::read(ready.get_inner(), &mut [0; 4096]).is_ok_and(|read| read > 0) {}
                ready.clear_ready();
            }
            changed = over.changed() => if changed.is_err() { return Ok(()) },
            () = sink.closed() => return Ok(()),
        }
    }
}

fn watch_dir(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(dir, flags)?;
    // SAFETY: an owned descriptor stays open, and stays the same, until the AsyncFd lets go of it.
    unsafe { AsyncFd::register(OwnedFd::from(inotify)) }.map_err(io::Error::from)
}

/// Where reading goes on: the file that was last read, and what of its last line had come.
struct Reader {
    file: BufReader<File>,
    inode: u64,
    partial: Vec<u8>,
}

impl Reader {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self { file: BufReader::new(file), inode, partial: Vec::new() })
    }

    /// Reads the whole lines that are there.
    fn lines(&mut self, since_ns: i64, mut each: impl FnMut(LogLine)) -> io::Result<()> {
        loop {
            if self.file.read_until(b'\n', &mut self.partial)? == 0 {
                return Ok(());
            }
            if self.partial.last() != Some(&b'\n') {
                return Ok(());
            }
            if let Some(line) = parse(&self.partial).filter(|line| line.time_ns >= since_ns) {
                each(line);
            }
            self.partial.clear();
        }
    }
}

/// Everything that is there now; off the runtime's threads, for logs may be large.
async fn read_backlog(path: PathBuf, query: LogQuery) -> io::Result<(VecDeque<LogLine>, Option<Reader>)> {
    off_thread(move || {
        let keep = query.tail.map(|tail| usize::try_from(tail).unwrap_or(usize::MAX));
        let mut lines = VecDeque::new();
        let mut last = None;
        for file in files(&path).into_iter().rev() {
            // Rotated away just now: its lines are in the next older name, which was read or is gone.
            let Ok(mut reader) = Reader::open(&file) else { continue };
            reader.lines(query.since_ns, |line| {
                lines.push_back(line);
                if keep.is_some_and(|keep| lines.len() > keep) {
                    lines.pop_front();
                }
            })?;
            last = Some(reader);
        }
        Ok((lines, last))
    })
    .await
}

/// What came since, through any number of rotations.
async fn read_on(path: PathBuf, reader: Option<Reader>, since_ns: i64) -> io::Result<(Vec<LogLine>, Option<Reader>)> {
    off_thread(move || {
        let mut lines = Vec::new();
        // Newest first; those before ours are newer than ours.
        let names = files(&path);
        let newer = match &reader {
            Some(reader) => names
                .iter()
                .take_while(|name| fs::metadata(name).map_or(true, |meta| meta.ino() != reader.inode))
                .count(),
            None => names.len(),
        };
        let mut current = reader;
        if let Some(reader) = &mut current {
            reader.lines(since_ns, |line| lines.push(line))?;
        }
        for name in names[..newer].iter().rev() {
            let Ok(mut next) = Reader::open(name) else { continue };
            next.lines(since_ns, |line| lines.push(line))?;
            current = Some(next);
        }
        Ok((lines, current))
    })
    .await
}

/// The log's files that are there, newest first.
fn files(path: &Path) -> Vec<PathBuf> {
    let rotated = (1..MAX_FILES).map(|number| PathBuf::from(format!("{}.{number}", path.display())));
    let older = rotated.take_while(|name| name.exists());
    std::iter::once(path.to_owned()).filter(|name| name.exists()).chain(older).collect()
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Reads one JSON line; `None` for one that a crash or a full disk cut.
pub(crate) fn parse(line: &[u8]) -> Option<LogLine> {
    let record: Record = serde_json::from_slice(line).ok()?;
    let time_ns = parse_time(&record.time)?;
    Some(LogLine { time_ns, stderr: record.stream == "stderr", data: record.log.into_bytes() })
}

/// `2026-01-02T03:04:05.678901234Z` (RFC 3339, always UTC here) as nanoseconds since 1970.
fn parse_time(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut time = time.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let is_date = (0..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    // The 60th second is a leap second.
    let is_time = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second);
    if !is_date || !is_time || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    // Days from civil (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let seconds = days.checked_mul(86_400)? + hour * 3600 + minute * 60 + second;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    fn line(number: i64) -> String {
        format!("{{\"log\":\"line {number}\\n\",\"stream\":\"stdout\",\"time\":\"1970-01-01T00:00:{number:02}.5Z\"}}\n")
    }

    fn write(dir: &Path, name: &str, numbers: impl IntoIterator<Item = i64>) {
        let mut file = File::options().create(true).append(true).open(dir.join(name)).unwrap();
        for number in numbers {
            file.write_all(line(number).as_bytes()).unwrap();
        }
    }

    fn numbers(lines: &[LogLine]) -> Vec<i64> {
        lines.iter().map(|line| line.time_ns / 1_000_000_000).collect()
    }

    async fn all(dir: &Path, query: LogQuery) -> Vec<LogLine> {
        let (sink, mut lines) = mpsc::channel(100);
        read(dir, query, None, sink).await.unwrap();
        let mut got = Vec::new();
        while let Some(line) = lines.recv().await {
            got.push(line);
        }
        got
    }

    #[test]
    fn times_are_read_exactly() {
        assert_eq!(parse_time("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_time("2026-11-21T04:27:57.000000001Z"), Some(1_795_235_277_000_000_001));
        assert_eq!(parse_time("2000-02-29T12:00:00.5Z"), Some(951_825_600_500_000_000));
        assert_eq!(parse_time("2000-13-01T00:00:00Z"), None);
        assert_eq!(parse_time("nonsense"), None);
    }

    /// Of a damaged file: they were numbers out of range for the arithmetic.
    #[test]
    fn times_that_cannot_be_are_none() {
        for text in [
            "9223372036854775807-12-31T00:00:00Z",
            "-9223372036854775808-01-01T00:00:00Z",
            "2026-01-9223372036854775807T00:00:00Z",
            "2026-01-02T9223372036854775807:00:00Z",
            "2026-01-02T00:00:61Z",
            "2026-01-02T00:00:00.-1Z",
            "9999-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn rotated_files_are_read_oldest_first_with_tail_and_since() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "container.log.2", 1..3);
        write(dir.path(), "container.log.1", 3..5);
        write(dir.path(), "container.log", 5..7);
        assert_eq!(numbers(&all(dir.path(), LogQuery::default()).await), [1, 2, 3, 4, 5, 6]);
        let tail = LogQuery { tail: Some(3), ..LogQuery::default() };
        assert_eq!(numbers(&all(dir.path(), tail).await), [4, 5, 6]);
        let since = LogQuery { since_ns: 4_000_000_000, tail: None };
        assert_eq!(numbers(&all(dir.path(), since).await), [4, 5, 6]);
        assert_eq!(numbers(&all(dir.path(), LogQuery { tail: Some(0), ..LogQuery::default() }).await), [0; 0]);
    }

    #[tokio::test]
    async fn following_stays_right_over_rotations_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "container.log", 1..3);
        let (end, over) = watch::channel(false);
        let (sink, mut lines) = mpsc::channel(100);
        let path = dir.path().to_owned();
        let reading = tokio::spawn(async move { read(&path, LogQuery::default(), Some(over), sink).await });
        let mut got = Vec::new();
        while got.len() < 2 {
            got.push(lines.recv().await.unwrap());
        }
        // Two rotations at once, and a line that comes in two pieces.
        write(dir.path(), "container.log", 3..4);
        fs::rename(dir.path().join("container.log"), dir.path().join("container.log.1")).unwrap();
        write(dir.path(), "container.log", 4..6);
        fs::rename(dir.path().join("container.log.1"), dir.path().join("container.log.2")).unwrap();
        fs::rename(dir.path().join("container.log"), dir.path().join("container.log.1")).unwrap();
        let (head, rest) = (line(6)[..20].to_owned(), line(6)[20..].to_owned());
        let mut file = File::options().create(true).append(true).open(dir.path().join("container.log")).unwrap();
        file.write_all(head.as_bytes()).unwrap();
        file.write_all(rest.as_bytes()).unwrap();
        while got.len() < 6 {
            got.push(lines.recv().await.unwrap());
        }
        assert_eq!(numbers(&got), [1, 2, 3, 4, 5, 6]);
        end.send_replace(true);
        reading.await.unwrap().unwrap();
        assert_eq!(lines.recv().await, None);
    }
}
