//! Read, edit, write: again from the start where somebody else's write came between. `update` of every noun uses it.

use std::time::Duration;

use tokio::time::sleep;
use tonic::{Code, Status};

use crate::failure::Failure;

/// Writers that get in between, one after the other, before it is told.
const TRIES: u32 = 6;
/// Before the first new try: this manager may not have seen the other write yet.
const PAUSE: Duration = Duration::from_millis(50);

/// How a try ended.
#[derive(Debug)]
pub(crate) enum Attempt<T> {
    Done(T),
    /// ABORTED: what was edited is not the newest version.
    Conflict(Status),
}

impl<T> Attempt<T> {
    /// Takes a conflict out of a write's result.
    pub(crate) fn of(result: Result<T, Status>) -> Result<Self, Status> {
        match result {
            Ok(answer) => Ok(Self::Done(answer)),
            Err(status) if status.code() == Code::Aborted => Ok(Self::Conflict(status)),
            Err(status) => Err(status),
        }
    }
}

/// Tries until there is no conflict. Each try reads and edits anew, so an edit that no longer applies is refused.
pub(crate) async fn until_done<T>(attempt: impl AsyncFn() -> Result<Attempt<T>, Failure>) -> Result<T, Failure> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        match attempt().await? {
            Attempt::Done(answer) => return Ok(answer),
            Attempt::Conflict(_) => sleep(pause).await,
        }
        pause *= 2;
    }
    match attempt().await? {
        Attempt::Done(answer) => Ok(answer),
        Attempt::Conflict(status) => Err(status.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;

    use super::*;

    async fn tried(conflicts: u32) -> (Result<u32, Failure>, u32) {
        let tries = Cell::new(0);
        let result = until_done(async || {
            tries.set(tries.get() + 1);
            let answer =
                if tries.get() <= conflicts { Err(Status::aborted("web changed meanwhile")) } else { Ok(tries.get()) };
            Ok(Attempt::of(answer)?)
        })
        .await;
        (result, tries.get())
    }

    #[tokio::test(start_paused = true)]
    async fn conflicts_are_tried_again_for_a_while() {
        assert_eq!(tried(0).await.0.unwrap(), 1);
        assert_eq!(tried(3).await.0.unwrap(), 4);
        let (result, tries) = tried(u32::MAX).await;
        assert_eq!((result.unwrap_err().to_string().as_str(), tries), ("web changed meanwhile", TRIES));
    }
}
