//! Docker's Engine API over its unix socket, as far as the benchmarks ask it: GET, and JSON back. By hand, because a
//! request costs the daemon less than a start of its command line costs the machine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A daemon that does not answer for this long hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Asks for `path`, such as `/services?status=true`. HTTP/1.0: the answer ends with the connection (RFC 1945).
pub(crate) fn get(socket: &Path, path: &str) -> Result<Value> {
    let answer = ask(socket, path).with_context(|| format!("GET {path}"))?;
    parse(&answer).with_context(|| format!("GET {path}"))
}

fn ask(socket: &Path, path: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn parse(answer: &str) -> Result<Value> {
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "status {status}: {}", body.trim());
    serde_json::from_str(body).context("the answer is not JSON")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers() {
        let good = parse("HTTP/1.0 200 OK\r\nServer: Docker\r\n\r\n[{\"ID\":\"x\"}]\n").unwrap();
        assert_eq!(good[0]["ID"], "x");
        let bad = parse("HTTP/1.0 503 Service Unavailable\r\n\r\n{\"message\":\"not a manager\"}\n");
        assert!(bad.unwrap_err().to_string().contains("503: {\"message\":\"not a manager\"}"));
        assert!(parse("").is_err());
    }
}
