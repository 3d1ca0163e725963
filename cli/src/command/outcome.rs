//! Commands with several targets: each is tried, each failure is said, the first one decides the exit code.

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

/// What has failed so far.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    first: Option<Exit>,
}

impl Outcome {
    /// Takes one target's result; says what failed and goes on, unless nobody reads any more or the daemon is gone.
    pub(crate) fn take<T>(&mut self, result: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(failure @ (Failure::OutputClosed | Failure::Unreachable { .. } | Failure::Interrupted(_))) => {
                Err(failure)
            }
            Err(failure) => {
                self.first.get_or_insert(failure.exit());
                if !failure.is_silent() {
                    output::note(format_args!("error: {failure}"));
                }
                Ok(None)
            }
        }
    }

    /// The result of the whole command.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        self.first.map_or(Ok(()), |exit| Err(Failure::Reported(exit)))
    }
}

/// Removes each and prints what was named, as Docker does.
pub(crate) async fn remove_each(
    references: &[String],
    remove: impl AsyncFn(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut outcome = Outcome::default();
    for reference in references {
        if outcome.take(remove(reference).await)?.is_some() {
            output::data(format!("{reference}\n"))?;
        }
    }
    outcome.finish()
}
