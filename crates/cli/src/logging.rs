//! Where log lines go: to standard error, or into the dashboard while there is one.

use std::io::{IsTerminal as _, Write};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Whoever shows the lines in place of standard error.
static TAKER: Mutex<Option<Sender<String>>> = Mutex::new(None);

fn taker() -> MutexGuard<'static, Option<Sender<String>>> {
    TAKER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on log lines go to `lines`, with `None` to standard error.
pub fn redirect(lines: Option<Sender<String>>) {
    *taker() = lines;
}

/// Whether log lines may be coloured: standard error is a terminal, and `NO_COLOR` isn't set.
pub fn coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes one log line.
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(lines) = &*taker()
            && lines.send(String::from_utf8_lossy(bytes).trim_end().to_owned()).is_ok()
        {
            return Ok(bytes.len());
        }
        std::io::stderr().write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Makes [`LogWriter`]s.
pub struct Lines;

impl MakeWriter<'_> for Lines {
    type Writer = LogWriter;

    fn make_writer(&self) -> LogWriter {
        LogWriter
    }
}
