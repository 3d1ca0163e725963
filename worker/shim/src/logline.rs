//! From a container's output to JSON lines in the form of Docker's `json-file` driver.
//!
//! Used by the monitor. Pure: the clock is an argument. Never holds more than [`MAX_PART`] bytes of a line.

use crate::clock;

/// A line longer than this is written in parts; only the last part's `log` ends in a newline. Docker's figure.
pub const MAX_PART: usize = 16 * 1024;

/// Which of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// Appends one JSON line for `text` (with its newline, if it has one).
pub fn encode(out: &mut Vec<u8>, stream: Stream, text: &[u8], unix_ns: u64) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(out, text);
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(&clock::rfc3339(unix_ns));
    out.extend_from_slice(b"\"}\n");
}

/// Appends `text` escaped for the inside of a JSON string. Bytes that are not UTF-8 become U+FFFD, as Docker does.
pub fn escape(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for chunk in text.utf8_chunks() {
        for &byte in chunk.valid().as_bytes() {
            match byte {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                0..=0x1f | 0x7f => {
                    out.extend_from_slice(b"\\u00");
                    out.push(HEX[usize::from(byte >> 4)]);
                    out.push(HEX[usize::from(byte & 15)]);
                }
                _ => out.push(byte),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

/// Cuts one output into lines; keeps the unfinished one.
#[derive(Debug)]
pub struct Splitter {
    stream: Stream,
    pending: Vec<u8>,
}

impl Splitter {
    /// A splitter for one output.
    pub const fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes output, appends finished lines to `out`, returns how many.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>, now: &mut dyn FnMut() -> u64) -> u64 {
        let mut lines = 0;
        while let Some(end) = input.iter().position(|b| *b == b'\n') {
            let (line, rest) = input.split_at(end + 1);
            lines += self.take(line, out, now);
            if !self.pending.is_empty() {
                encode(out, self.stream, &self.pending, now());
                self.pending.clear();
                lines += 1;
            }
            input = rest;
        }
        lines += self.take(input, out, now);
        if self.pending.is_empty() && self.pending.capacity() > 512 {
            self.pending = Vec::new();
        }
        lines
    }

    /// Writes what is left at the end of the output; returns how many lines (0 or 1).
    pub fn finish(&mut self, out: &mut Vec<u8>, now: &mut dyn FnMut() -> u64) -> u64 {
        if self.pending.is_empty() {
            return 0;
        }
        encode(out, self.stream, &self.pending, now());
        self.pending = Vec::new();
        1
    }

    /// Adds to the pending line, writing full parts as it grows.
    fn take(&mut self, mut input: &[u8], out: &mut Vec<u8>, now: &mut dyn FnMut() -> u64) -> u64 {
        let mut parts = 0;
        while self.pending.len() + input.len() > MAX_PART {
            let (head, rest) = input.split_at(MAX_PART - self.pending.len());
            self.pending.extend_from_slice(head);
            input = rest;
            // Cut between characters, or the two halves would both be damaged.
            let keep = unfinished_char(&self.pending);
            let cut = self.pending.len() - keep;
            encode(out, self.stream, &self.pending[..cut], now());
            self.pending.drain(..cut);
            parts += 1;
        }
        self.pending.extend_from_slice(input);
        parts
    }
}

/// How many bytes at the end are the beginning of a character whose rest has not come (0 to 3).
fn unfinished_char(bytes: &[u8]) -> usize {
    for back in 1..=3.min(bytes.len()) {
        let byte = bytes[bytes.len() - back];
        let need = match byte {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            _ => 1,
        };
        return if need > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(inputs: &[&[u8]]) -> (String, u64) {
        let (mut splitter, mut out, mut lines) = (Splitter::new(Stream::Stdout), Vec::new(), 0);
        let mut now = || 0;
        for input in inputs {
            lines += splitter.push(input, &mut out, &mut now);
        }
        lines += splitter.finish(&mut out, &mut now);
        (String::from_utf8_lossy(&out).into_owned(), lines)
    }

    fn line(text: &str) -> String {
        format!("{{\"log\":\"{text}\",\"stream\":\"stdout\",\"time\":\"1970-01-01T00:00:00.000000000Z\"}}\n")
    }

    #[test]
    fn lines_arrive_whole_however_they_are_read() {
        let expected = (line("one\\n") + &line("\\n") + &line("two"), 3);
        assert_eq!(split(&[b"one\n\ntwo"]), expected);
        assert_eq!(split(&[b"o", b"ne", b"\n", b"\nt", b"wo"]), expected);
    }

    #[test]
    fn quotes_controls_and_broken_utf8() {
        assert_eq!(split(&[b"a\"\\\t\x1b\xff\xc3\xa9\n"]).0, line("a\\\"\\\\\\t\\u001b\u{fffd}é\\n"));
    }

    #[test]
    fn long_lines_come_in_parts_and_only_the_last_has_the_newline() {
        let mut input = vec![b'x'; MAX_PART + 5];
        input.push(b'\n');
        let (text, lines) = split(&[&input]);
        assert_eq!(lines, 2);
        assert_eq!(text, line(&"x".repeat(MAX_PART)) + &line("xxxxx\\n"));
    }

    #[test]
    fn a_part_never_cuts_a_character() {
        let mut input = vec![b'x'; MAX_PART - 1];
        input.extend_from_slice("é\n".as_bytes());
        let (text, _) = split(&[&input]);
        assert_eq!(text, line(&"x".repeat(MAX_PART - 1)) + &line("é\\n"));
    }

    #[test]
    fn endless_garbage_still_flows() {
        let input = vec![0x80; MAX_PART * 2];
        assert_eq!(split(&[&input]).1, 2);
    }

    #[test]
    fn a_line_of_exactly_one_part() {
        let mut input = vec![b'y'; MAX_PART - 1];
        input.push(b'\n');
        assert_eq!(split(&[&input]).1, 1);
    }
}
