//! The user's terminal while a box has it: raw, and put back whatever happens.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::wire::Size;

/// The terminal in raw mode. Dropping it restores the mode it had.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts the terminal on standard input into raw mode.
    ///
    /// # Errors
    /// When there is none.
    pub fn enter() -> io::Result<RawTerminal> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone; there is nobody to tell.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The size of the terminal on standard output.
pub fn size() -> Size {
    match tcgetwinsize(io::stdout()) {
        Ok(size) => Size { rows: size.ws_row, columns: size.ws_col },
        Err(_) => Size { rows: 24, columns: 80 },
    }
}
