//! A `skep` for labs under test: a daemon that keeps the contract (socket, SIGTERM, flags) and a swarm that is only a
//! list of names, but is joined over the lab's real network.
//!
//! Its environment makes it misbehave: `STAND_IN_FAIL=host2` ends that host's daemon at once, `STAND_IN_HANG=host2` lets
//! it never listen.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// Every daemon says its host's name to whoever connects here.
pub(crate) const NAME_PORT: u16 = 7000;
const TOKEN: &str = "SWMTKN-1-stand-in";
const PATIENCE: Duration = Duration::from_millis(700);

pub(crate) fn main(args: &[String]) -> ExitCode {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["daemon", flags @ ..] => daemon(flags),
        ["probe", address] => probe(address),
        ["hold", address] => hold(address),
        ["swarm", "init", "--advertise-addr", address] => ask(&format!("init {address}")),
        ["swarm", "join-token", "-q", role] => ask(&format!("token {role}")),
        ["swarm", "join", "--token", TOKEN, manager] => ask(&format!("join {manager}")),
        ["node", "ls", "--format", "json"] => ask("nodes"),
        ["node", "inspect", _] => Ok(r#"[{"Status":{"State":"ready","Message":""}}]"#.to_owned()),
        other => Err(format!("the stand-in does not know {other:?}")),
    };
    match outcome {
        Ok(text) => {
            std::io::stdout().write_all(text.as_bytes()).expect("stdout is open");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn text<T>(outcome: std::io::Result<T>) -> Result<T, String> {
    outcome.map_err(|error| error.to_string())
}

fn hostname() -> String {
    nix::unistd::gethostname().expect("a host has a name").to_string_lossy().into_owned()
}

fn flag<'a>(flags: &[&'a str], name: &str) -> Result<&'a str, String> {
    let at = flags.iter().position(|flag| *flag == name).ok_or_else(|| format!("no {name}"))?;
    flags.get(at + 1).copied().ok_or_else(|| format!("{name} without a value"))
}

fn daemon(flags: &[&str]) -> Result<String, String> {
    eprintln!("daemon {}", flags.join(" "));
    let is_me = |variable: &str| std::env::var(variable).is_ok_and(|host| host == hostname());
    if is_me("STAND_IN_FAIL") {
        return Err("this daemon was told to fail".to_owned());
    }
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.thread_block().map_err(|error| error.to_string())?;
    for name in ["--data-dir", "--cgroup-parent", "--boot-id"] {
        flag(flags, name)?;
    }
    let address: std::net::IpAddr = flag(flags, "--advertise-addr")?.parse().map_err(|_| "bad address".to_owned())?;
    let names = text(TcpListener::bind((address, NAME_PORT)))?;
    thread::spawn(move || {
        for stream in names.incoming().flatten() {
            // Held open until the other side closes, as `hold` wants it.
            thread::spawn(move || {
                let _ = (&stream).write_all(format!("{}\n", hostname()).as_bytes());
                let _ = (&stream).read(&mut [0]);
            });
        }
    });
    if !is_me("STAND_IN_HANG") {
        serve(flag(flags, "--socket")?)?;
    }
    eprintln!("ready");
    stop.wait().map_err(|error| error.to_string())?;
    eprintln!("stopped gracefully");
    Ok(String::new())
}

fn serve(socket: &str) -> Result<(), String> {
    let _ = std::fs::remove_file(socket);
    let listener = text(UnixListener::bind(socket))?;
    let members = Arc::new(Mutex::new(Vec::new()));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let answer = match BufReader::new(&stream).read_line(&mut line) {
                Ok(_) => answer(line.trim(), &members),
                Err(error) => Err(error.to_string()),
            };
            let line = answer.map_or_else(|error| format!("error {error}"), |text| format!("ok {text}"));
            // A client that only asks whether somebody listens is gone by now.
            let _ = (&stream).write_all(line.as_bytes());
        }
    });
    Ok(())
}

fn answer(request: &str, members: &Arc<Mutex<Vec<String>>>) -> Result<String, String> {
    match request.split_once(' ').unwrap_or((request, "")) {
        ("init", address) => {
            let listener = text(TcpListener::bind(format!("{address}:2377")))?;
            members.lock().expect("no holder panics").push(hostname());
            let members = Arc::clone(members);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let mut name = String::new();
                    if BufReader::new(stream).read_line(&mut name).is_ok() {
                        members.lock().expect("no holder panics").push(name.trim().to_owned());
                    }
                }
            });
            Ok(String::new())
        }
        ("token", _) => Ok(TOKEN.to_owned()),
        ("join", manager) => {
            let mut stream = connect(manager)?;
            text(stream.write_all(format!("{}\n", hostname()).as_bytes()))?;
            Ok(String::new())
        }
        ("nodes", _) => {
            let members = members.lock().expect("no holder panics");
            let role = |name: &String| if *name == hostname() { "Leader" } else { "" };
            let line = |name: &String| {
                serde_json::json!({"Hostname": name, "Status": "Ready", "ManagerStatus": role(name)}).to_string() + "\n"
            };
            Ok(members.iter().map(line).collect())
        }
        ("", "") => Ok(String::new()),
        other => Err(format!("cannot answer {other:?}")),
    }
}

fn ask(request: &str) -> Result<String, String> {
    let host = std::env::var("SKEP_HOST").map_err(|_| "SKEP_HOST is not set".to_owned())?;
    let path = host.strip_prefix("unix://").ok_or("SKEP_HOST is no unix socket")?;
    let mut stream = text(UnixStream::connect(path))?;
    text(stream.write_all(format!("{request}\n").as_bytes()))?;
    let mut answer = String::new();
    text(stream.read_to_string(&mut answer))?;
    match answer.split_once(' ') {
        Some(("ok", text)) => Ok(text.to_owned()),
        _ => Err(answer),
    }
}

fn connect(address: &str) -> Result<TcpStream, String> {
    let address: SocketAddr = address.parse().map_err(|_| format!("{address} is no address"))?;
    text(TcpStream::connect_timeout(&address, PATIENCE))
}

/// Prints the name of the host that answers.
fn probe(address: &str) -> Result<String, String> {
    let mut name = String::new();
    let stream = connect(address)?;
    text(stream.set_read_timeout(Some(PATIENCE)))?;
    text(BufReader::new(stream).read_line(&mut name))?;
    Ok(name)
}

/// Connects, says so, and ends when the connection does.
fn hold(address: &str) -> Result<String, String> {
    let mut stream = BufReader::new(connect(address)?);
    let mut name = String::new();
    text(stream.read_line(&mut name))?;
    text(writeln!(std::io::stdout(), "connected"))?;
    text(stream.read(&mut [0]))?;
    Ok("closed\n".to_owned())
}
