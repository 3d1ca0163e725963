//! The protocol on `shim.sock`: frames between a monitor and its agents.
//!
//! Used by both sides. A monitor outlives many agents, so this is a contract with older and newer builds: numbers are
//! never used again for something else, payloads only grow at the end, and a receiver skips what it does not know (a
//! monitor answers [`Kind::Reply`] with `ENOSYS`).
//!
//! A frame is `length: u32` (of the payload), `kind: u16`, `request: u16` (0 where none), then the payload; all little
//! endian. The monitor speaks first: [`Kind::Hello`], then the messages of the state it is in.
//!
//! | kinds | direction | use |
//! |---|---|---|
//! | 1–31 | monitor → agent | state and events |
//! | 32–63 | monitor → agent | answers |
//! | 64–79 | agent → monitor | signals |
//! | 80–95 | agent → monitor | reserved: attach to stdio or the terminal, window size |
//! | 96–111 | agent → monitor | reserved: exec (descriptors by `SCM_RIGHTS`) |
//! | 112–127 | agent → monitor | secrets and configs; each brings a file in memory by `SCM_RIGHTS`, with its first byte |
//! | 128–143 | agent → monitor | reserved: changed limits, pause, log settings |

/// Version of the protocol, sent in `Hello`. It rises only if an older agent could misunderstand.
pub const PROTOCOL_VERSION: u16 = 1;

/// Length of a frame's head.
pub const HEAD_LEN: usize = 8;

/// Longest payload either side accepts; a longer one ends the connection.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// What a frame is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// `version: u16`, `reserved: u16`, `monitor pid: u32`.
    Hello = 1,
    /// The container runs. `pid: u32`, `start ticks: u64` (field 22 of `/proc/<pid>/stat`), `started: u64` (Unix ns).
    Started = 2,
    /// It could not be started, or it ended. Payload: the exit record as JSON.
    Exited = 3,
    /// Log lines are being dropped. Payload: the reason as text.
    LogLoss = 4,
    /// Answer to a request. `errno: i32`, 0 for success.
    Reply = 32,
    /// `signal: i32`, `scope: u32`: 0 init alone, 1 every process of the container.
    Signal = 64,
    /// The secrets and configs that the container can have replaced while it runs; its file is as [`files`](crate::files)
    /// says. `signal: u32`, sent to init if they are others than before; 0: none.
    Files = 112,
}

impl Kind {
    /// The kind of a number, or None for one this build does not know.
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Started,
            3 => Self::Exited,
            4 => Self::LogLoss,
            32 => Self::Reply,
            64 => Self::Signal,
            112 => Self::Files,
            _ => return None,
        })
    }
}

/// [`Kind::Signal`] goes to init.
pub const SCOPE_INIT: u32 = 0;
/// [`Kind::Signal`] goes to every process of the container (only SIGKILL makes sense there).
pub const SCOPE_ALL: u32 = 1;

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Number of the kind; see [`Kind::from_number`].
    pub kind: u16,
    /// Request number, 0 for none.
    pub request: u16,
    /// Contents.
    pub payload: Vec<u8>,
}

/// Builds a frame.
pub fn encode(kind: Kind, request: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN + payload.len());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&(kind as u16).to_le_bytes());
    out.extend_from_slice(&request.to_le_bytes());
    out.extend_from_slice(payload);
    out
}

/// The peer sent a frame longer than [`MAX_PAYLOAD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oversized;

/// Takes the first whole frame off `buffer`; None: more bytes are needed.
pub fn decode(buffer: &mut Vec<u8>) -> Result<Option<Frame>, Oversized> {
    let Some(head) = buffer.get(..HEAD_LEN) else { return Ok(None) };
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if length > MAX_PAYLOAD {
        return Err(Oversized);
    }
    if buffer.len() < HEAD_LEN + length {
        return Ok(None);
    }
    let frame = Frame {
        kind: u16::from_le_bytes([head[4], head[5]]),
        request: u16::from_le_bytes([head[6], head[7]]),
        payload: buffer[HEAD_LEN..HEAD_LEN + length].to_vec(),
    };
    buffer.drain(..HEAD_LEN + length);
    Ok(Some(frame))
}

/// Reads a little-endian u32 at `at`; None past the end.
pub fn u32_at(payload: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(payload.get(at..at + 4)?.try_into().ok()?))
}

/// Reads a little-endian u64 at `at`; None past the end.
pub fn u64_at(payload: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(payload.get(at..at + 8)?.try_into().ok()?))
}

/// Field 22 of `/proc/<pid>/stat`: clock ticks from boot to the start of the process. With the pid it names a process
/// for good. The name in field 2 may hold blanks and brackets, so counting begins behind the last `)`.
pub fn start_ticks(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|b| *b == b')')? + 1;
    std::str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let bytes = [encode(Kind::Hello, 0, b"abc"), encode(Kind::Reply, 7, b"")].concat();
        for cut in 0..bytes.len() {
            let (mut buffer, mut frames) = (Vec::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                buffer.extend_from_slice(part);
                while let Ok(Some(frame)) = decode(&mut buffer) {
                    frames.push(frame);
                }
            }
            assert_eq!(frames.len(), 2, "cut at {cut}");
            assert_eq!(frames[0], Frame { kind: 1, request: 0, payload: b"abc".to_vec() });
            assert_eq!(frames[1], Frame { kind: 32, request: 7, payload: Vec::new() });
        }
    }

    #[test]
    fn oversized_frames_are_refused_before_their_payload_comes() {
        let mut buffer = (MAX_PAYLOAD as u32 + 1).to_le_bytes().to_vec();
        buffer.extend_from_slice(&[64, 0, 0, 0]);
        assert_eq!(decode(&mut buffer), Err(Oversized));
    }

    #[test]
    fn start_ticks_with_a_hostile_name() {
        let stat = b"42 (a) b) (c) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 987654 1000 20";
        assert_eq!(start_ticks(stat), Some(987_654));
        assert_eq!(start_ticks(b"42 (x"), None);
    }
}
