//! The user's terminal in raw mode, given back on every way out.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::sandbox::spec::TerminalSize;

/// What the terminal was, while it is raw; for the panic hook, which has no guard at hand.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw while it lives.
pub struct RawMode(());

impl RawMode {
    /// Standard input becomes raw: keys go to the container as they are, Ctrl-C too.
    pub fn enter() -> io::Result<Self> {
        let saved = tcgetattr(rustix::stdio::stdin())?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        let guard = Self(());
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // The terminal may be gone; then there is nothing to give back.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &saved);
    }
}

/// The size of the terminal behind standard input or output, if there is one.
pub fn size() -> Option<TerminalSize> {
    let size =
        tcgetwinsize(rustix::stdio::stdin()).or_else(|_| tcgetwinsize(rustix::stdio::stdout())).ok()?;
    Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

pub fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}
