//! rtnetlink(7) of one network namespace: a handle, and lists of changes that it applies in one go.
//!
//! The changes themselves are in [`crate::link`], [`crate::address`], [`crate::route`], [`crate::rule`] and
//! [`crate::neighbour`], each with the dump of what there is.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::NetlinkError;
use crate::message::{Batch, Malformed, Message, Writer};
use crate::socket::{Protocol, Socket};

/// Changes to links, addresses, routes, rules and neighbours, in order. Sent together they cost one system call.
///
/// Not a transaction: the kernel goes on past a change that it refuses.
#[derive(Debug, Default)]
pub struct Changes {
    batch: Batch,
    actions: Vec<String>,
    invalid: Option<NetlinkError>,
}

impl Changes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.invalid.is_none()
    }

    /// Appends one. `action` completes "cannot …".
    pub(crate) fn push(&mut self, action: String, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer<'_>)) {
        self.actions.push(action);
        self.batch.message(kind, flags, fill);
    }

    /// Remembers a change that cannot be asked for; nothing is sent then.
    pub(crate) fn reject(&mut self, error: NetlinkError) {
        self.invalid.get_or_insert(error);
    }

    fn action(&self, index: Option<usize>) -> &str {
        index.and_then(|index| self.actions.get(index)).map_or("change the network", String::as_str)
    }
}

/// rtnetlink of the network namespace in which it was opened. One conversation at a time; others wait for it.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: Mutex<Socket>,
}

impl Rtnetlink {
    /// Opens it in the calling thread's network namespace. For another, see [`crate::Namespace::enter`].
    pub fn open_here() -> Result<Self, NetlinkError> {
        Ok(Self { socket: Mutex::new(Socket::open(Protocol::Route)?) })
    }

    /// Takes over the handle of another process, by its descriptor.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetlinkError> {
        Ok(Self { socket: Mutex::new(Socket::from_fd(fd, Protocol::Route)?) })
    }

    /// The descriptor, to be handed to another process that takes over. Both must not use it at the same time.
    pub fn try_clone_fd(&self) -> Result<OwnedFd, NetlinkError> {
        self.socket().try_clone_fd()
    }

    /// Applies all changes.
    ///
    /// # Errors
    /// That of the first change that was refused. The others, before and behind it, are in force.
    pub fn apply(&self, changes: &Changes) -> Result<(), NetlinkError> {
        self.apply_each(changes)?.into_iter().next().map_or(Ok(()), Err)
    }

    /// Applies all changes, and returns an error for each that was refused.
    ///
    /// # Errors
    /// When the conversation fails, or a change cannot be asked for at all; then nothing was sent.
    pub fn apply_each(&self, changes: &Changes) -> Result<Vec<NetlinkError>, NetlinkError> {
        if let Some(NetlinkError::Invalid { action, problem }) = &changes.invalid {
            return Err(NetlinkError::Invalid { action: action.clone(), problem: problem.clone() });
        }
        let refusals = self.socket().send(&changes.batch).map_err(|error| error.into_error(changes.action(Some(0))))?;
        Ok(refusals
            .into_iter()
            .map(|refusal| {
                let action = changes.action(refusal.index).to_owned();
                refusal.into_error(action)
            })
            .collect())
    }

    /// Takes a dump; `fill` writes the request's header.
    pub(crate) fn dump<T>(
        &self,
        action: &str,
        kind: u16,
        fill: impl FnOnce(&mut Writer<'_>),
        parse: impl Fn(Message<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut request = Batch::new();
        request.message(kind, 0, fill);
        self.socket()
            .dump(&request, |found: &mut Vec<T>, message| {
                found.extend(parse(message)?);
                Ok(())
            })
            .map_err(|error| error.into_error(action))
    }

    /// Whatever a conversation that panicked left behind, the next one throws away.
    pub(crate) fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
