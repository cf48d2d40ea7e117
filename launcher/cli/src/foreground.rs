//! Standing in for a process of the container: its signals, its terminal, its exit code.

use crate::error::{Context, Result, refused};
use nacre_sys::process::Child;
use nacre_sys::{process, signals, usage};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes moved at once.
const BUFFER: usize = 16 * 1024;
const SIGWINCH: i32 = 28;
/// Signals that are not passed on: they cannot be, or they are about this process.
const OWN: [i32; 6] = [9, 13, 17, 18, 19, 23];
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=31;

/// Waits for the end of `child`; its exit code, or 128 plus the signal that killed it. With the master of its terminal,
/// carries what is typed and what is printed.
pub fn wait(child: &Child, master: Option<OwnedFd>) -> Result<u8> {
    let wanted: Vec<i32> = SIGNALS.filter(|signal| !OWN.contains(signal)).collect();
    let signals = signals::descriptor(&wanted).doing(|| "listening to signals".to_owned())?;
    let terminal = master.map(Terminal::new).transpose()?;
    relay(child, &signals, terminal.as_ref())?;
    drop(terminal);
    let ended = usage::wait(Some(child.pid)).doing(|| "waiting for the container's process".to_owned())?;
    ended
        .map(|ended| ended.code)
        .ok_or_else(|| refused("the container's process was reaped by somebody else"))
}

fn relay(child: &Child, signals: &OwnedFd, terminal: Option<&Terminal>) -> Result<()> {
    let stdin = std::io::stdin();
    let (mut typing, mut printing) = (terminal.is_some(), terminal.is_some());
    loop {
        let ended = {
            let nobody = signals.as_fd();
            let (input, output): (BorrowedFd<'_>, BorrowedFd<'_>) =
                terminal.map_or((nobody, nobody), |terminal| (stdin.as_fd(), terminal.master.as_fd()));
            let read = |wanted: bool| if wanted { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = [
                PollFd::from_borrowed_fd(child.pidfd.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(output, read(printing)),
                PollFd::from_borrowed_fd(input, read(typing)),
            ];
            // One that is not wanted still tells of its end; it is not to be asked at all.
            let count = match (printing, typing) {
                (_, true) => 4,
                (true, false) => 3,
                _ => 2,
            };
            match poll(fds.get_mut(..count).unwrap_or_default(), None) {
                Err(Errno::INTR) => continue,
                result => result.doing(|| "waiting for the container's process".to_owned())?,
            };
            fds.map(|fd| !fd.revents().is_empty())
        };
        let [ended, signalled, printed, typed] = ended;
        if signalled {
            while let Some(signal) = signals::next(signals.as_fd()).doing(|| "reading a signal".to_owned())? {
                match terminal {
                    Some(terminal) if signal == SIGWINCH => terminal.copy_size(),
                    // It may just have ended.
                    _ => drop(process::signal(child.pidfd.as_fd(), signal)),
                }
            }
        }
        if let Some(terminal) = terminal {
            if printed && printing {
                printing = copy(&terminal.master, std::io::stdout());
            }
            if typed && typing {
                typing = copy(&stdin, &terminal.master);
            }
        }
        if ended {
            // What was printed before the end is still in the terminal.
            while let (true, Some(terminal)) = (printing, terminal) {
                let mut fds = [PollFd::new(&terminal.master, PollFlags::IN)];
                let zero = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
                printing =
                    matches!(poll(&mut fds, Some(&zero)), Ok(1)) && copy(&terminal.master, std::io::stdout());
            }
            return Ok(());
        }
    }
}

/// False at the end of either side.
fn copy(from: impl AsFd, to: impl AsFd) -> bool {
    let mut buffer = [0; BUFFER];
    let Ok(length @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(from.as_fd(), &mut buffer)) else {
        return false;
    };
    let mut rest = buffer.get(..length).unwrap_or_default();
    while !rest.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::write(to.as_fd(), rest)) {
            Ok(written @ 1..) => rest = rest.get(written..).unwrap_or_default(),
            _ => return false,
        }
    }
    true
}

/// The master of the container's terminal, and this process's own terminal in raw mode until the end.
struct Terminal {
    master: OwnedFd,
    before: Option<Termios>,
}

impl Terminal {
    fn new(master: OwnedFd) -> Result<Self> {
        let stdin = std::io::stdin();
        let before = isatty(&stdin).then(|| tcgetattr(&stdin)).transpose();
        let before = before.doing(|| "reading the mode of the terminal".to_owned())?;
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(&stdin, OptionalActions::Now, &raw)
                .doing(|| "setting the terminal to raw".to_owned())?;
        }
        let terminal = Self { master, before };
        terminal.copy_size();
        Ok(terminal)
    }

    fn copy_size(&self) {
        if let Ok(size) = tcgetwinsize(std::io::stdin()) {
            let _ = tcsetwinsize(&self.master, size);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
