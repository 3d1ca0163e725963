//! Lines of several streams in one order: by time across streams, unchanged within each. Pure.
//!
//! A line may go out only when no stream that is still open could bring an earlier one: each open stream must have a
//! line waiting. So at most one piece of each stream is held.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use skep_proto::v1::LogLine;

/// Streams by number, from 0.
#[derive(Debug)]
pub(super) struct Merge {
    /// Lines that wait, by stream.
    lanes: Vec<VecDeque<LogLine>>,
    /// Open streams without a waiting line.
    needed: BTreeSet<usize>,
    /// The first line of each lane that has one: its time, its lane.
    heads: BinaryHeap<Reverse<(i64, usize)>>,
}

impl Merge {
    /// `lanes` streams, all open.
    pub(super) fn new(lanes: usize) -> Self {
        Self { lanes: vec![VecDeque::new(); lanes], needed: (0..lanes).collect(), heads: BinaryHeap::new() }
    }

    /// The next lines of an open stream.
    pub(super) fn push(&mut self, lane: usize, lines: Vec<LogLine>) {
        let Some(first) = lines.first() else { return };
        if self.needed.remove(&lane) {
            self.heads.push(Reverse((first.time_ns, lane)));
        }
        self.lanes[lane].extend(lines);
    }

    /// A needed stream brings no more.
    pub(super) fn close(&mut self, lane: usize) {
        self.needed.remove(&lane);
    }

    /// A stream that must bring lines, or be closed, before the next line can go out.
    pub(super) fn needed(&self) -> Option<usize> {
        self.needed.first().copied()
    }

    /// The next line in order. `None`: all is out. Only while no stream is needed.
    pub(super) fn pop(&mut self) -> Option<LogLine> {
        let Reverse((_, lane)) = self.heads.pop()?;
        let waiting = &mut self.lanes[lane];
        let line = waiting.pop_front();
        match waiting.front() {
            Some(next) => self.heads.push(Reverse((next.time_ns, lane))),
            // Closed streams were needed when they were closed, so this one is open.
            None => {
                self.needed.insert(lane);
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(lane: usize, time_ns: i64) -> LogLine {
        LogLine { time_ns, container: lane.to_string(), ..LogLine::default() }
    }

    /// Feeds streams in pieces of drawn sizes, and takes lines out whenever no stream is needed.
    fn merged(streams: &[Vec<i64>], mut draw: impl FnMut(usize) -> usize) -> Vec<LogLine> {
        let mut merge = Merge::new(streams.len());
        let mut given = vec![0; streams.len()];
        let mut out = Vec::new();
        loop {
            let Some(lane) = merge.needed() else {
                match merge.pop() {
                    Some(line) => out.push(line),
                    None => return out,
                }
                continue;
            };
            let rest = &streams[lane][given[lane]..];
            if rest.is_empty() {
                merge.close(lane);
                continue;
            }
            let piece = &rest[..1 + draw(rest.len())];
            given[lane] += piece.len();
            merge.push(lane, piece.iter().map(|time| line(lane, *time)).collect());
        }
    }

    #[test]
    fn sorted_streams_come_out_sorted_and_whole() {
        let mut seed = 7_u64;
        let mut draw = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(seed >> 33).unwrap() % below
        };
        for _ in 0..500 {
            let streams: Vec<Vec<i64>> = (0..draw(5))
                .map(|_| {
                    let mut times: Vec<i64> = (0..draw(20)).map(|_| i64::try_from(draw(50)).unwrap()).collect();
                    times.sort_unstable();
                    times
                })
                .collect();
            let out = merged(&streams, &mut draw);
            assert!(out.iter().is_sorted_by_key(|line| line.time_ns));
            for (number, stream) in streams.iter().enumerate() {
                let own = out.iter().filter(|line| line.container == number.to_string());
                assert_eq!(own.map(|line| line.time_ns).collect::<Vec<_>>(), *stream);
            }
        }
    }

    #[test]
    fn a_stream_keeps_its_own_order_whatever_its_times() {
        let out = merged(&[vec![5, 1, 9], vec![2, 3]], |_| 0);
        let own: Vec<i64> = out.iter().filter(|line| line.container == "0").map(|line| line.time_ns).collect();
        assert_eq!(own, [5, 1, 9]);
        assert_eq!(out.len(), 5);
    }
}
