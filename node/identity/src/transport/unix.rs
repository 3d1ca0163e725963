//! The local API on a socket file: mode 0600 (0660 for a group), the caller known by the kernel's credentials, paths of any length.
//!
//! `sun_path` holds 108 bytes (unix(7)); longer paths go through `/proc/self/fd/<directory>/<name>`. Used by the daemon
//! (listen) and the CLI (connect).

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};
use tracing::{debug, warn};

use crate::transport::incoming::ACCEPT_PAUSE;
use crate::transport::outgoing::begin_with;
use crate::transport::{Caller, ConnectError, ConnectionInfo};

/// The longest path that fits `sun_path` with its final NUL.
const MAX_SUN_PATH: usize = 107;
/// The longest file name that fits behind `/proc/self/fd/<number>/`.
const MAX_NAME: usize = 80;
/// How long the CLI waits for a daemon that listens but does not accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Listens on a socket file that its owner alone can open, mode 0600: see [`bind_unix_for`].
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    bind_unix_for(path, None)
}

/// Listens on a socket file of mode 0600, or 0660 for the members of a group (by its number). A socket that nobody listens on any more is replaced; one in use is
/// `AddrInUse`; a file of another kind is never removed. The directory must exist. Call it within a tokio runtime.
pub fn bind_unix_for(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let place = Place::open(path)?;
    let target = place.path(&place.name);
    match std::fs::symlink_metadata(&target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            let text = format!("{} exists and is not a socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Ok(_) => {
            if std::os::unix::net::UnixStream::connect(&target).is_ok() {
                let text = format!("another daemon listens on {}", path.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
        }
    }
    // Made under another name, restricted, then put in place: at no moment may others connect.
    let hidden = place.path(OsStr::new(&format!(".skep-{}.sock", std::process::id())));
    match std::fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&hidden)?;
    let finish = || -> io::Result<UnixListener> {
        let mode = match group {
            None => 0o600,
            Some(_) => 0o660,
        };
        if group.is_some() {
            std::os::unix::fs::chown(&hidden, None, group)?;
        }
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(mode))?;
        listener.set_nonblocking(true)?;
        std::fs::rename(&hidden, &target)?;
        UnixListener::from_std(listener)
    };
    finish().inspect_err(|_| {
        let _ = std::fs::remove_file(&hidden);
    })
}

/// A channel to a daemon's socket that connects at its first call, and again whenever it is cut.
pub fn unix_channel(path: impl Into<PathBuf>) -> Channel {
    let path = path.into();
    endpoint().connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { open(&path).await.map(TokioIo::new) }
    }))
}

/// Like [`unix_channel`], but connects at once: for the CLI, which wants to say that no daemon runs. The error's source
/// is `NotFound` or `ConnectionRefused` then, `PermissionDenied` for another user than the daemon's.
pub async fn connect_unix(path: &Path) -> Result<Channel, ConnectError> {
    let first = open(path).await?;
    let path = path.to_owned();
    let reconnect = move || {
        let path = path.clone();
        async move { open(&path).await }
    };
    begin_with(first, reconnect, endpoint()).await
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
}

async fn open(path: &Path) -> Result<UnixStream, ConnectError> {
    let failed = |source| ConnectError::Io { addr: path.display().to_string(), source };
    let connect = async {
        let place = Place::open(path)?;
        UnixStream::connect(place.path(&place.name)).await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}

/// A socket's directory, held open if the path is too long to be used directly, and its name.
struct Place {
    directory: PathBuf,
    held: Option<File>,
    name: OsString,
}

impl Place {
    fn open(path: &Path) -> io::Result<Self> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let name = path.file_name().ok_or_else(|| invalid(format!("{} has no file name", path.display())))?.to_owned();
        if name.len() > MAX_NAME {
            return Err(invalid(format!("a socket's file name may have {MAX_NAME} bytes, not {}", name.len())));
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        // The temporary name of `bind_unix` may be longer than the name itself.
        let short = directory.as_os_str().len() + 1 + name.len().max(32) <= MAX_SUN_PATH;
        let held = if short {
            None
        } else {
            Some(OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&directory)?)
        };
        Ok(Self { directory, held, name })
    }

    fn path(&self, name: &OsStr) -> PathBuf {
        match &self.held {
            Some(held) => Path::new("/proc/self/fd").join(held.as_raw_fd().to_string()).join(name),
            None => self.directory.join(name),
        }
    }
}

/// Local connections, each with its caller's user. Never ends and never yields an error.
#[derive(Debug)]
pub struct UnixIncoming {
    listener: UnixListener,
    pause: Option<Pin<Box<Sleep>>>,
}

/// Accepts local connections.
pub fn unix_incoming(listener: UnixListener) -> UnixIncoming {
    UnixIncoming { listener, pause: None }
}

impl Stream for UnixIncoming {
    type Item = io::Result<UnixConnection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(cred) => {
                        return Poll::Ready(Some(Ok(UnixConnection { stream, uid: cred.uid() })));
                    }
                    Err(error) => {
                        debug!(%error, "a local caller's user is unknown: connection dropped")
                    }
                },
                Err(error) => {
                    warn!(%error, "cannot accept a local connection");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// A local connection.
#[derive(Debug)]
pub struct UnixConnection {
    stream: UnixStream,
    uid: u32,
}

impl Connected for UnixConnection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        ConnectionInfo { caller: Caller::Local { uid: self.uid }, remote: None }
    }
}

impl AsyncRead for UnixConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for UnixConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
