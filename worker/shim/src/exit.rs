//! The exit record: how a container ended, as `exit.json` and as the payload of the `Exited` message.
//!
//! Written by the monitor, read by skep-runtime (with a real JSON parser). Fields are only ever added.

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExitRecord {
    /// Exit code of init; 128 + signal if a signal ended it; 125 to 127 if it never started.
    pub exit_code: i32,
    /// The signal that ended init; 0: it exited by itself.
    pub signal: i32,
    /// Whether the kernel killed a process of the container for lack of memory.
    pub oom_killed: bool,
    /// Start, nanoseconds since 1970; 0: it never started.
    pub started_at_unix_ns: u64,
    /// End, nanoseconds since 1970.
    pub finished_at_unix_ns: u64,
    /// Why it never started; empty: it did.
    pub error: String,
}

impl ExitRecord {
    /// The record as one JSON object, ended by a newline.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let number = |out: &mut Vec<u8>, key: &str, value: &str| {
            out.extend_from_slice(b"\"");
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b",");
        };
        out.push(b'{');
        number(&mut out, "exit_code", &self.exit_code.to_string());
        number(&mut out, "signal", &self.signal.to_string());
        number(&mut out, "oom_killed", if self.oom_killed { "true" } else { "false" });
        number(&mut out, "started_at_unix_ns", &self.started_at_unix_ns.to_string());
        number(&mut out, "finished_at_unix_ns", &self.finished_at_unix_ns.to_string());
        out.extend_from_slice(b"\"error\":\"");
        crate::logline::escape(&mut out, self.error.as_bytes());
        out.extend_from_slice(b"\"}\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_form() {
        let record = ExitRecord {
            exit_code: 127,
            error: "exec: \"nosuch\": not found".into(),
            finished_at_unix_ns: 5,
            ..ExitRecord::default()
        };
        assert_eq!(
            String::from_utf8_lossy(&record.to_json()),
            "{\"exit_code\":127,\"signal\":0,\"oom_killed\":false,\"started_at_unix_ns\":0,\
             \"finished_at_unix_ns\":5,\"error\":\"exec: \\\"nosuch\\\": not found\"}\n"
        );
    }
}
