//! Ctrl-C: the first asks the run to save and stop, the second ends the process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);
static BEFORE_EXIT: OnceLock<fn()> = OnceLock::new();

/// Installs the handler; a second call is harmless.
pub fn install() {
    // Another handler may be there already (an embedding program's); then that one decides.
    if let Err(error) = ctrlc::set_handler(ask) {
        tracing::debug!("no Ctrl-C handler: {error}");
    }
}

/// Asks for a stop, as Ctrl-C does.
pub fn ask() {
    if ASKED.swap(true, Ordering::SeqCst) {
        if let Some(hook) = BEFORE_EXIT.get() {
            hook();
        }
        std::process::exit(130);
    }
}

/// Has `hook` called before a second request ends the process; the first hook stays.
pub fn before_exit(hook: fn()) {
    let _ = BEFORE_EXIT.set(hook);
}

/// Whether a stop was asked for.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
