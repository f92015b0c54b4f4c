//! What the user sees while something takes its time.
//!
//! A step says what is being done. On a terminal one line is redrawn with the seconds so far, by a
//! thread of the step's own; elsewhere a line is printed at the start and one at the end.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A step under way. Dropping it ends its line.
pub struct Step {
    label: String,
    start: Instant,
    /// Closed to end the drawing thread; carries details to draw before that.
    details: Option<Sender<String>>,
    drawer: Option<JoinHandle<()>>,
    fleeting: bool,
}

impl Step {
    /// Starts a step that leaves a line behind.
    pub fn start(label: impl Into<String>) -> Step {
        Step::new(label.into(), false)
    }

    /// Starts a step that is shown on a terminal while it lasts and leaves nothing behind.
    pub fn fleeting(label: impl Into<String>) -> Step {
        Step::new(label.into(), true)
    }

    fn new(label: String, fleeting: bool) -> Step {
        let start = Instant::now();
        if !std::io::stderr().is_terminal() {
            if !fleeting {
                eprintln!("… {label}");
            }
            return Step { label, start, details: None, drawer: None, fleeting };
        }
        let (sender, receiver) = channel();
        let shown = label.clone();
        let drawer =
            std::thread::Builder::new().name("progress".into()).spawn(move || draw(&shown, start, &receiver));
        Step { label, start, details: Some(sender), drawer: drawer.ok(), fleeting }
    }

    /// Shows how far the step has come, beside its label.
    pub fn detail(&self, text: String) {
        if let Some(details) = &self.details {
            // The drawing thread ends with the step only, so a lost detail means there is nobody to see it.
            let _ = details.send(text);
        }
    }

    /// Ends the step well: its line stays, with the time it took.
    pub fn done(mut self) -> Duration {
        let took = self.start.elapsed();
        self.clear();
        if !self.fleeting {
            eprintln!("✓ {} ({:.1} s)", self.label, took.as_secs_f64());
        }
        took
    }

    fn clear(&mut self) {
        self.details = None;
        if let Some(drawer) = self.drawer.take() {
            let _ = drawer.join();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Draws until the other end of `details` is gone. Nothing is drawn in the first moments, so that
/// quick steps do not flicker.
fn draw(label: &str, start: Instant, details: &Receiver<String>) {
    let mut detail = String::new();
    let mut wait = Duration::from_millis(300);
    loop {
        match details.recv_timeout(wait) {
            Ok(text) => {
                detail = text;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => wait = Duration::from_millis(200),
        }
        let gap = if detail.is_empty() { "" } else { " " };
        eprint!("\r\x1b[K… {label}{gap}{detail} ({} s)", start.elapsed().as_secs());
        let _ = std::io::stderr().flush();
    }
    eprint!("\r\x1b[K");
    let _ = std::io::stderr().flush();
}
