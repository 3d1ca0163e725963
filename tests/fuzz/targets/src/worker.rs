//! What an agent reads: from monitors, from its own disk, from managers.

use prost::Message as _;
use skep_proto::v1::{Assignments, SessionDown};
use skep_shim::config::ShimConfig;
use skep_shim::entry::Entry;
use skep_shim::files::Manifest;
use skep_shim::logline::{MAX_PART, Splitter, Stream};
use skep_shim::protocol;
use skep_worker::assignments::AssignmentSet;
use skep_worker::record::Recorded;

use crate::{choose, halves, text};

/// The stream between monitor and agent, in pieces; the files that a monitor and a command in a container start with.
pub fn shim_protocol(data: &[u8]) {
    let (piece, rest) = choose(data);
    let mut buffer = Vec::new();
    'stream: for part in rest.chunks(usize::from(piece).max(1)) {
        buffer.extend_from_slice(part);
        loop {
            match protocol::decode(&mut buffer) {
                Ok(Some(frame)) => {
                    let _ = (protocol::u32_at(&frame.payload, 0), protocol::u64_at(&frame.payload, 12));
                    let _ = skep_runtime::fuzzing::exit_record(&frame.payload);
                }
                Ok(None) => break,
                Err(protocol::Oversized) => break 'stream,
            }
        }
    }
    // As a length in front of them says how much is read.
    let _ = (ShimConfig::receive(rest), Entry::receive(rest), protocol::start_ticks(rest));
}

/// What a monitor is told of its container, the plan in it, and what a command in a container is told: text, and behind it
/// the programs. What can be read is sent as it was.
pub fn shim_config(data: &[u8]) {
    let (text, rest) = halves(data);
    let (filter, devices) = halves(rest);
    if let Ok(config) = ShimConfig::receive(&*message(&[text, filter, devices])) {
        assert!(config.plan.command().len() <= config.plan.args.len());
        let sent = |config: &ShimConfig| {
            let mut sent = Vec::new();
            config.send(&mut sent).map(|()| sent).ok()
        };
        let once = sent(&config);
        let again = once.as_deref().and_then(|sent| ShimConfig::receive(sent).ok());
        assert!(again.is_some() && again.as_ref().and_then(sent) == once, "{config:?}");
    }
    if let Ok(entry) = Entry::receive(&*message(&[text, filter])) {
        let mut sent = Vec::new();
        assert!(entry.send(&mut sent).is_ok());
        assert_eq!(Entry::receive(&*sent).ok(), Some(entry));
    }
}

/// The text in front of the secrets and configs that a monitor is handed.
pub fn secret_files(data: &[u8]) {
    let Ok(manifest) = Manifest::decode(data) else { return };
    for file in &manifest.files {
        let parts = || file.path.split('/');
        assert!(parts().all(|part| !part.is_empty() && part != "." && !part.starts_with("..")), "{file:?}");
    }
    // No longer than what a monitor reads.
    let Ok(sent) = manifest.encode() else { return };
    let (head, text) = sent.split_at(4);
    assert_eq!(Manifest::text_length([head[0], head[1], head[2], head[3]]).ok(), Some(text.len()));
    assert_eq!(Manifest::decode(text).ok(), Some(manifest));
}

/// Parts with their lengths in front, as both messages have them.
fn message(parts: &[&[u8]]) -> Vec<u8> {
    let lengths = parts.iter().flat_map(|part| u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
    lengths.chain(parts.iter().flat_map(|part| part.iter().copied())).collect()
}

/// The agent's local record: a key and its value, and another.
pub fn worker_record(data: &[u8]) {
    let mut recorded = Recorded::default();
    let mut rest = data;
    while !rest.is_empty() {
        let (key, behind) = halves(rest);
        let (value, behind) = halves(behind);
        let _ = skep_worker::fuzzing::record_entry(&mut recorded, key, value);
        if behind.len() == rest.len() {
            return;
        }
        rest = behind;
    }
}

/// Files of a container and its image: lines of the log, the exit record, `/etc/passwd` and `/etc/group`.
pub fn container_files(data: &[u8]) {
    let (kind, rest) = choose(data);
    match kind % 3 {
        0 => drop(skep_runtime::fuzzing::log_line(rest)),
        1 => drop(skep_runtime::fuzzing::exit_record(rest)),
        _ => {
            let (passwd, rest) = halves(rest);
            let (group, user) = halves(rest);
            let _ = skep_shim::user::resolve(text(passwd), text(group), text(user), &[text(user).to_owned()]);
        }
    }
}

/// What a manager sends down a session: messages of assignments one after the other.
pub fn assignments(data: &[u8]) {
    let mut set = AssignmentSet::default();
    let mut rest = data;
    while !rest.is_empty() {
        let (message, behind) = halves(rest);
        let _ = SessionDown::decode(message);
        if let Ok(message) = Assignments::decode(message) {
            let (before, wanted) = (set.sequence(), message.sequence);
            let sequence = if set.apply(message).is_ok() { wanted } else { before };
            assert_eq!(set.sequence(), sequence, "wholly or not at all");
        }
        if behind.len() == rest.len() {
            return;
        }
        rest = behind;
    }
}

/// A container's output, in pieces: what its monitor writes down, the agent reads again.
pub fn container_log(data: &[u8]) {
    let (piece, output) = choose(data);
    let (mut splitter, mut file, mut lines) = (Splitter::new(Stream::Stdout), Vec::new(), 0);
    let mut now = || 1_700_000_000_123_456_789;
    for part in output.chunks(usize::from(piece).max(1)) {
        lines += splitter.push(part, &mut file, &mut now);
    }
    lines += splitter.finish(&mut file, &mut now);
    let mut read = Vec::new();
    let mut count = 0;
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        match skep_runtime::fuzzing::log_line(line) {
            Some((at, text)) => {
                assert_eq!(u64::try_from(at), Ok(now()));
                read.extend(text);
            }
            None => panic!("a line that was written is not read: {}", line.escape_ascii()),
        }
        count += 1;
    }
    assert_eq!(count, lines);
    // Longer lines are cut, and what is no text in them may be replaced otherwise.
    if output.len() < MAX_PART {
        assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(output));
    }
}

/// Files of the host, which name things that anybody on it may have named.
pub fn host_files(data: &[u8]) {
    let (kind, rest) = choose(data);
    match kind % 3 {
        0 => assert!(skep_dns::fuzzing::name_servers(text(rest)).len() <= 3),
        1 => drop(skep_runtime::fuzzing::mountinfo(text(rest))),
        _ => {
            let ranges = skep_worker::fuzzing::subids(text(rest), "skep").unwrap_or_default();
            let mut next = 0;
            for range in ranges {
                assert!(range.inside == next && range.outside > 0, "one after the other, none the host's root");
                assert!(range.count > 0 && range.outside.checked_add(range.count).is_some());
                next += range.count;
            }
        }
    }
}

/// What a member keeps in `swarm.json`; and addresses for `--listen-addr`.
pub fn swarm_record(data: &[u8]) {
    let manager = "192.0.2.1:2377";
    if let Some((text, managers)) = skep_node::fuzzing::record(data, manager) {
        assert!(managers.len() <= 16 && managers.first().is_some_and(|first| first == manager));
        let again = skep_node::fuzzing::record(text.as_bytes(), manager);
        assert_eq!(again, Some((text, managers)), "who was heard of already changes nothing");
    }
    if let Some(address) = skep_node::fuzzing::address(text(data)) {
        assert_eq!(skep_node::fuzzing::address(&address.to_string()), Some(address));
    }
}

/// `--security-opt seccomp=FILE`, for a container with a capability: rules, and the kernel's program.
pub fn seccomp_profile(data: &[u8]) {
    let size = skep_runtime::fuzzing::seccomp_profile(text(data), &["SYS_ADMIN".to_owned()], (5, 10));
    // As much as the kernel takes, in whole instructions.
    assert!(size.is_none_or(|size| size > 0 && size.is_multiple_of(8) && size <= 4096 * 8));
}
