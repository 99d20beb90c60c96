//! `train --dashboard`: a live view of a run. It has a thread of its own; the run sends it messages and never waits for it.

mod screen;
mod state;
mod view;

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use unif2ace_train::interrupt;
use unif2ace_train::metrics::{Line, LineKind};
use unif2ace_train::plot::Curves;
use unif2ace_train::report::{Reporter, Work};

use self::state::{Message, State};
use crate::logging;
use crate::outcome::remark;

/// Between two drawings.
const INTERVAL: Duration = Duration::from_millis(200);

/// Whether there is a terminal to draw on, whose keys can be read.
pub fn is_possible() -> bool {
    std::io::stdout().is_terminal() && std::io::stderr().is_terminal() && std::io::stdin().is_terminal()
}

/// The dashboard of a run, for as long as this is alive.
pub struct Dashboard {
    sender: Sender<Message>,
    thread: Option<JoinHandle<State>>,
}

/// What a run talks to.
struct Teller(Sender<Message>);

impl Dashboard {
    /// Takes the terminal for the run that `title` names, whose folder is `output`.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn open(title: String, output: &Path) -> std::io::Result<Self> {
        let mut screen = screen::open().inspect_err(|_| screen::close())?;
        let (sender, messages) = channel();
        let (line_sender, lines) = channel();
        logging::redirect(Some(line_sender));
        let output = output.to_path_buf();
        let state = State { title, ..State::default() };
        let thread = std::thread::Builder::new().name("dashboard".into()).spawn(move || {
            let (state, result) = show(&mut screen, state, &output, &messages, &lines);
            screen::close();
            logging::redirect(None);
            if let Err(error) = result {
                tracing::warn!("the dashboard is gone: {error}");
            }
            state
        });
        Ok(Self { sender, thread: Some(thread.inspect_err(|_| screen::close())?) })
    }

    /// What the run tells of itself goes to the dashboard.
    pub fn reporter(&self) -> Arc<dyn Reporter> {
        Arc::new(Teller(self.sender.clone()))
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        // A thread that is gone takes no messages.
        let _ = self.sender.send(Message::Close);
        let state = self.thread.take().map(JoinHandle::join);
        logging::redirect(None);
        screen::close();
        // What was logged beside the dashboard would be lost with it.
        if let Some(Ok(state)) = state {
            state.last_words().for_each(|line| remark(line));
        }
    }
}

impl Teller {
    fn tell(&self, message: Message) {
        // A dashboard that is gone has said so.
        let _ = self.0.send(message);
    }
}

impl Reporter for Teller {
    fn begin(&self, work: Work, done: u64, total: u64) {
        self.tell(Message::Begin(work, done, total));
    }

    fn advance(&self, done: u64) {
        self.tell(Message::Advance(done));
    }

    fn line(&self, kind: LineKind, line: &Line) {
        self.tell(Message::Line(kind, line.clone()));
    }

    fn end(&self, _stopped: bool) {}
}

/// Draws until a message says to close.
fn show(
    screen: &mut screen::Screen,
    mut state: State,
    output: &Path,
    messages: &Receiver<Message>,
    lines: &Receiver<String>,
) -> (State, std::io::Result<()>) {
    let mut begun = Instant::now();
    loop {
        let mut closed = false;
        for message in messages.try_iter() {
            match message {
                Message::Close => closed = true,
                Message::Begin(work, done, _) => {
                    begun = Instant::now();
                    if work == Work::Steps
                        && done > 0
                        && let Ok(earlier) = Curves::read(output)
                    {
                        state.remember(earlier, done);
                    }
                }
                _ => {}
            }
            state.take(message);
        }
        lines.try_iter().for_each(|line| state.log(&line));
        if closed {
            return (state, Ok(()));
        }
        if let Some(progress) = &mut state.progress {
            progress.seconds = begun.elapsed().as_secs_f64();
        }
        state.stopping = interrupt::asked();
        match screen::with_screen(|| screen.draw(|frame| view::draw(frame, &state)).map(drop)) {
            Ok(true) => {}
            // A panic or a second Ctrl-C has closed it.
            Ok(false) => return (state, Err(std::io::Error::other("the terminal was given back"))),
            Err(error) => return (state, Err(error)),
        }
        if let Err(error) = keys(&mut state) {
            return (state, Err(error));
        }
    }
}

/// Waits for keys until the next drawing is due.
fn keys(state: &mut State) -> std::io::Result<()> {
    if !event::poll(INTERVAL)? {
        return Ok(());
    }
    let Event::Key(key) = event::read()? else { return Ok(()) };
    if key.kind == KeyEventKind::Release {
        return Ok(());
    }
    match key.code {
        KeyCode::Char('q') => interrupt::ask(),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => interrupt::ask(),
        KeyCode::Down | KeyCode::Tab | KeyCode::Char('j') => state.select(true),
        KeyCode::Up | KeyCode::BackTab | KeyCode::Char('k') => state.select(false),
        _ => {}
    }
    Ok(())
}
