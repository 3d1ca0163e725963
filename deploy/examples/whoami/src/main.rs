//! Answers every HTTP request with where it runs: task, host, process. Takes the port from `PORT` (8000) and shares it
//! (SO_REUSEPORT), so that several replicas can run on one host's network; the kernel spreads connections over them.
//! Stops gracefully on SIGTERM.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

/// A request's head is at most this long; the rest is not read.
const MAX_HEAD: usize = 8 * 1024;
const IDLE: Duration = Duration::from_secs(10);

fn main() -> io::Result<()> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8000);
    let listener = listen(port)?;
    exit_on_sigterm();
    log(&format!("listening on port {port}"));
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                std::thread::spawn(move || {
                    // A client that goes away is no one's concern.
                    let _ = serve(stream);
                });
            }
            Err(error) => log(&format!("accept: {error}")),
        }
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < MAX_HEAD {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => head.extend_from_slice(&buffer[..read]),
        }
    }
    let request = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let client = stream.peer_addr()?;
    log(&format!("{client} {request}"));
    let body = describe(&request, &client.to_string());
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn describe(request: &str, client: &str) -> String {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| "-".to_owned());
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!(
        "task: {}\nhost: {}\nhostname: {}\npid: {}\nrequest: {request}\nfrom: {client}\n",
        variable("TASK"),
        variable("NODE"),
        hostname.trim(),
        std::process::id(),
    )
}

fn log(line: &str) {
    // Without a reader of the log there is nobody to tell.
    let _ = writeln!(io::stdout(), "{line}");
}

/// `TcpListener::bind` with SO_REUSEPORT, which the standard library does not offer. socket(7), ip(7).
fn listen(port: u16) -> io::Result<TcpListener> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: a plain system call without pointers.
    let raw = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `raw` was just opened and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let on: libc::c_int = 1;
    for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
        let size = libc::socklen_t::try_from(size_of_val(&on)).expect("an int's size fits");
        // SAFETY: the pointer and length describe `on`, which lives until after the call.
        check(unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, option, (&raw const on).cast(), size) })?;
    }
    let family = libc::sa_family_t::try_from(libc::AF_INET).expect("AF_INET fits");
    let address = libc::sockaddr_in {
        sin_family: family,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    };
    let size = libc::socklen_t::try_from(size_of_val(&address)).expect("an address' size fits");
    // SAFETY: the pointer and length describe `address`, which lives until after the call.
    check(unsafe { libc::bind(raw, (&raw const address).cast(), size) })?;
    // SAFETY: a plain system call without pointers.
    check(unsafe { libc::listen(raw, 128) })?;
    Ok(TcpListener::from(socket))
}

/// Process 1 of a container ignores SIGTERM unless it asks for it.
fn exit_on_sigterm() {
    extern "C" fn exit(_: libc::c_int) {
        // SAFETY: _exit is async-signal-safe (signal-safety(7)).
        unsafe { libc::_exit(0) }
    }
    let handler = exit as extern "C" fn(libc::c_int) as usize;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler only calls an async-signal-safe function.
        unsafe { libc::signal(signal, handler) };
    }
}
