//! A terminal with a program in it, as a terminal emulator would start it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// The master's side, and the program whose controlling terminal the other side is.
pub struct Terminal {
    master: File,
    child: Child,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts `command` in a new session on a terminal of this size.
    ///
    /// # Panics
    /// Without ptys.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("no pty");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("no pty");
        let name = ptsname(&master, Vec::new()).expect("a pty without name");
        let master = File::from(master);
        resize(&master, rows, columns);
        let slave = || {
            let path = std::path::Path::new(name.to_str().expect("an odd name"));
            Stdio::from(File::options().read(true).write(true).open(path).expect("cannot open the pty"))
        };
        // setsid(1) gives the program a session whose controlling terminal is its stdin; env(1) undoes what a job in the background
        // inherits: a shell never again hears a signal that it was started to ignore.
        let mut session = Command::new("env");
        session
            .args(["--default-signal", "setsid", "--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear();
        session.envs(command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        session.env("TERM", "xterm").stdin(slave()).stdout(slave()).stderr(slave());
        if let Some(folder) = command.get_current_dir() {
            session.current_dir(folder);
        }
        let child = session.spawn().expect("cannot start setsid");
        // The command holds the slave ends that were meant for the child; the terminal ends when the child's close.
        drop(session);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, shared) = (master.try_clone().expect("no descriptor"), screen.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                shared.lock().expect("poisoned").extend_from_slice(&buffer[..count]);
            }
        });
        Self { master, child, screen }
    }

    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal takes no input");
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        resize(&self.master, rows, columns);
    }

    /// All that was ever shown.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("poisoned")).into_owned()
    }

    /// Waits until `text` was shown.
    ///
    /// # Panics
    /// When it is not within `limit`.
    pub fn wait_for(&self, text: &str, limit: Duration) {
        let until = Instant::now() + limit;
        while !self.shown().contains(text) {
            assert!(Instant::now() < until, "no {text:?} on the terminal:\n{}", self.shown());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the program's end.
    ///
    /// # Panics
    /// When it does not end within `limit`.
    pub fn finish(mut self, limit: Duration) -> (ExitStatus, String) {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("cannot wait") {
                thread::sleep(Duration::from_millis(50));
                return (status, self.shown());
            }
            assert!(Instant::now() < until, "the program in the terminal does not end:\n{}", self.shown());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(master: &File, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).expect("cannot set the window size");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_sees_the_size_and_the_keys() {
        let mut command = Command::new("sh");
        // A trap is run for sure; a shell without one may wait for the command that the signal met.
        let script =
            "trap 'exit 7' INT; stty size; read line; echo got $line; stty size; while :; do sleep 0.1; done";
        command.args(["-c", script]);
        let mut terminal = Terminal::start(&command, 31, 97);
        terminal.wait_for("31 97", Duration::from_secs(10));
        terminal.resize(20, 50);
        terminal.type_in("hello\n");
        terminal.wait_for("got hello", Duration::from_secs(10));
        terminal.wait_for("20 50", Duration::from_secs(10));
        terminal.type_in("\x03");
        let (status, _) = terminal.finish(Duration::from_secs(10));
        assert_eq!(status.code(), Some(7));
    }
}
