//! Docker's Engine API over its unix socket, as far as the benchmarks ask it: GET and POST, and JSON back. By hand, because
//! a request costs the daemon less than a start of its command line costs the machine.

use std::io::{BufRead as _, BufReader, Read, Write};
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

/// A connection that stays open from request to request.
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("cannot connect to the daemon")?;
        stream.set_read_timeout(Some(TIMEOUT)).context("cannot set a timeout")?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends `body`, and waits for the answer that it was done (RFC 9112; Docker says how long its answers are).
    pub(crate) fn post(&mut self, path: &str, body: &Value) -> Result<()> {
        let body = body.to_string();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.stream.get_mut().write_all(request.as_bytes()).with_context(|| format!("POST {path}"))?;
        let (status, answer) = self.answer().with_context(|| format!("POST {path}"))?;
        ensure!(status.starts_with('2'), "POST {path}: status {status}: {}", answer.trim());
        Ok(())
    }

    /// Status and body.
    fn answer(&mut self) -> Result<(String, String)> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).context("the answer has no status")?.to_owned();
        let mut length = 0;
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "the answer has no end of headers");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().context("the answer's length is no number")?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
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
