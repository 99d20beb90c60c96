//! How a command ends: text on standard output, or one error and an exit code.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// Exit code after Ctrl-C, as shells count it (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// With the error that is shown.
    Error(Box<dyn Error>),
    /// Ctrl-C; nothing more to say.
    Interrupted(&'static str),
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(Box::new(error))
    }
}

/// A message of the command line itself, in the form of all errors: what, what was expected and found, and a hint.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Message(pub String);

/// Result of a command.
pub type Outcome = Result<(), Failure>;

/// A failure from a text.
pub fn fail(text: impl Into<String>) -> Failure {
    Failure::Error(Box::new(Message(text.into())))
}

/// Prints a line of results. A reader that went away (`| head`) is no error.
pub fn say(text: &str) -> Outcome {
    ignore_broken_pipe(writeln!(std::io::stdout(), "{text}"))
}

/// Prints a piece of a line at once.
pub fn say_piece(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{text}").and_then(|()| stdout.flush())
}

/// A remark beside the results, on standard error.
pub fn remark(text: &str) {
    // There is nowhere to report to when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A reader that went away is no error.
pub fn ignore_broken_pipe(result: std::io::Result<()>) -> Outcome {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Shows how a command ended and gives the exit code.
pub fn report(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Interrupted(text)) => {
            remark(text);
            ExitCode::from(INTERRUPTED)
        }
        Err(Failure::Error(error)) => {
            let mark = if std::io::stderr().is_terminal() { "\x1b[1;31merror\x1b[0m" } else { "error" };
            remark(&format!("{mark}: {error}"));
            ExitCode::FAILURE
        }
    }
}
