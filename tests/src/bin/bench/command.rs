//! Running the orchestrators' commands, and waiting for what they bring about.

use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Whatever is waited for is there by then.
const DEADLINE: Duration = Duration::from_secs(180);

/// Runs a command of an orchestrator to its end.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = quiet(command).output().with_context(|| format!("cannot run {command:?}"))?;
    finished(command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Asks until the answer is yes.
pub(crate) fn wait_for(what: &str, ask_again: Duration, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !ask()? {
        if started.elapsed() > DEADLINE {
            bail!("after {DEADLINE:?} still waiting for {what}");
        }
        thread::sleep(ask_again);
    }
    Ok(())
}

/// No input, and output for [`finished`] only.
pub(crate) fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// Fails with what the command has said, unless it succeeded.
pub(crate) fn finished(command: &Command, output: &Output) -> Result<()> {
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_says_what_it_said() {
        let error = run(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).map_err(|e| e.to_string());
        assert!(error.is_err_and(|text| text.contains("no such thing") && text.contains('3')));
    }
}
