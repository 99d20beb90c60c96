//! The terminal in raw mode, which is given back however the program ends.

use std::io::{Stdout, stdout};
use std::sync::{Mutex, MutexGuard, Once, TryLockError};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};

/// Whether the dashboard has the terminal. Who draws holds the lock.
static HELD: Mutex<bool> = Mutex::new(false);

/// The terminal as a dashboard draws on it.
pub type Screen = Terminal<CrosstermBackend<Stdout>>;

/// Takes the terminal. Panics and the second Ctrl-C give it back, as [`close`] does.
pub fn open() -> std::io::Result<Screen> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            close();
            earlier(panic);
        }));
        unif2ace_train::interrupt::before_exit(close);
    });
    if let Some(mut held) = lock() {
        enable_raw_mode()?;
        *held = true;
        execute!(stdout(), EnterAlternateScreen)?;
    }
    Terminal::new(CrosstermBackend::new(stdout()))
}

/// Draws with `draw` while the terminal is held; `false` when it no longer is.
pub fn with_screen(draw: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<bool> {
    match lock() {
        Some(held) if *held => draw().map(|()| true),
        _ => Ok(false),
    }
}

/// Gives the terminal back. A second call does nothing.
pub fn close() {
    let held = lock();
    if held.as_deref() != Some(&false) {
        if let Some(mut held) = held {
            *held = false;
        }
        // There is nothing better to do with a terminal that can't be reached.
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

/// The lock; nothing where a thread that panics while it draws holds it itself.
fn lock() -> Option<MutexGuard<'static, bool>> {
    for _ in 0..50 {
        match HELD.try_lock() {
            Ok(held) => return Some(held),
            Err(TryLockError::Poisoned(held)) => return Some(held.into_inner()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    None
}
