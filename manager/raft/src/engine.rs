//! What the engine runs on: tokio, with the crate's own time and random numbers.
//!
//! Everything in this crate that asks for the time or for a random number asks here. With the feature `sim` the random
//! numbers of a thread can be seeded ([`crate::sim::seed`]); the time is always tokio's, which a simulation moves by
//! hand. Blocking work goes through [`blocking`] and [`in_place`], which a simulation does inline.

use std::future::Future;
use std::time::{Duration, Instant};

use openraft::{AsyncRuntime, OptionalSend, TokioInstant};
use rand::{Rng, RngCore};
use tokio::runtime::{Handle, RuntimeFlavor};

/// The time now, on tokio's clock: monotonic, and moved by whoever simulates.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A random time within bounds.
pub(crate) fn between(min: Duration, max: Duration) -> Duration {
    if min >= max { min } else { Dice.gen_range(min..max) }
}

/// Runs blocking work without holding up the runtime's other tasks. None if it panicked or the runtime ends.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if is_simulated() {
        return Some(work());
    }
    tokio::task::spawn_blocking(work).await.ok()
}

/// Runs blocking work in this task; where there are several threads the others take over what this one had to do.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    let several = Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if several { tokio::task::block_in_place(work) } else { work() }
}

/// Whether this thread runs a simulation: no threads, no waiting for disks.
pub(crate) fn is_simulated() -> bool {
    #[cfg(feature = "sim")]
    return crate::sim::is_seeded();
    #[cfg(not(feature = "sim"))]
    false
}

/// The source of random numbers.
#[derive(Debug, Default)]
pub(crate) struct Dice;

impl RngCore for Dice {
    fn next_u32(&mut self) -> u32 {
        #[cfg(feature = "sim")]
        if let Some(number) = crate::sim::with_rng(RngCore::next_u32) {
            return number;
        }
        rand::thread_rng().next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        #[cfg(feature = "sim")]
        if let Some(number) = crate::sim::with_rng(RngCore::next_u64) {
            return number;
        }
        rand::thread_rng().next_u64()
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        #[cfg(feature = "sim")]
        if crate::sim::with_rng(|rng| rng.fill_bytes(out)).is_some() {
            return;
        }
        rand::thread_rng().fill_bytes(out);
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(out);
        Ok(())
    }
}

/// tokio for the engine, with random numbers of our own.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct EngineRuntime;

type Tokio = openraft::TokioRuntime;

impl AsyncRuntime for EngineRuntime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Dice;
    type OneshotSender<T: OptionalSend> = <Tokio as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = <Tokio as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <Tokio as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        Tokio::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Tokio::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Dice
    }

    fn oneshot<T: OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        Tokio::oneshot()
    }
}
