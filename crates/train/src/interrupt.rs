//! Ctrl-C: the first asks the run to save and stop, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Installs the handler; a second call is harmless.
pub fn install() {
    let handler = || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    };
    // Another handler may be there already (an embedding program's); then that one decides.
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::debug!("no Ctrl-C handler: {error}");
    }
}

/// Whether a stop was asked for.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
