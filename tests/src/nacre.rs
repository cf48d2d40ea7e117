//! `nacre` as a person would start it, with a hard limit on its time.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::artefacts::{self, Artefacts};
use crate::guard::Guard;

/// Longest run of one command, unless a test says otherwise. An emulated machine boots in some seconds.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Bytes of each stream that are kept.
const KEPT_BYTES: usize = 64 << 20;
const POLL: Duration = Duration::from_millis(5);

/// A user of `nacre` with a home, runtime directory and processes of their own. Dropping it checks that nothing is left.
pub struct Nacre {
    artefacts: Artefacts,
    guard: Guard,
    environment: Vec<(OsString, OsString)>,
    before: Vec<OsString>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Output {
    /// As the shell has it: 128 + N when a signal ended it.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub duration: Duration,
    pub timed_out: bool,
}

impl Nacre {
    /// # Panics
    /// When there is nothing to test; ask with `require!(vm)` before.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let artefacts = artefacts::find().unwrap_or_else(|error| panic!("{error}"));
        Self { artefacts, guard: Guard::new(), environment: Vec::new(), before: Vec::new() }
    }

    /// With another guest image.
    #[must_use]
    pub fn image(mut self, image: PathBuf) -> Self {
        self.artefacts.image = image;
        self
    }

    /// With copies of kernel and guest image in a directory, for a user who may not enter the originals'.
    #[must_use]
    pub fn copied_to(mut self, folder: &std::path::Path) -> Self {
        for file in [&mut self.artefacts.nacre, &mut self.artefacts.kernel, &mut self.artefacts.image] {
            let copy = folder.join(file.file_name().expect("no name"));
            std::fs::copy(&file, &copy).expect("cannot copy");
            *file = copy;
        }
        self
    }

    #[must_use]
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Words before `nacre`, such as `setpriv --reuid=1000`.
    #[must_use]
    pub fn wrapped(mut self, words: &[&str]) -> Self {
        self.before = words.iter().map(Into::into).collect();
        self
    }

    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Checks now that nothing is left, and that the check does not come again at the end.
    pub fn check_nothing_left(&mut self) {
        self.guard.check();
    }

    /// The command line, ready to be given streams and started.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut words = self.before.clone();
        words.push(self.artefacts.nacre.clone().into());
        words.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        // The shell enters the cgroup and becomes the program, with no signal ignored: as a job in the background the suite
        // ignores Ctrl-C, which a person at a terminal does not.
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo 0 > \"$1\"/cgroup.procs && shift && exec env --default-signal \"$@\"",
            "sh",
        ]);
        command.arg(self.guard.cgroup()).args(words).current_dir(self.guard.folder());
        command.env_clear();
        for name in ["PATH", "RUST_BACKTRACE"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command
            .env("HOME", self.guard.home())
            .env("XDG_RUNTIME_DIR", self.guard.runtime())
            .env("TMPDIR", self.guard.temporary())
            .env("NACRE_KERNEL", &self.artefacts.kernel)
            .env("NACRE_IMAGE", &self.artefacts.image)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `nacre` to its end with nothing on stdin.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        self.run_within(LIMIT, arguments)
    }

    pub fn run_within<A: AsRef<OsStr>>(
        &self,
        limit: Duration,
        arguments: impl IntoIterator<Item = A>,
    ) -> Output {
        let mut running = self.start(arguments);
        running.close_stdin();
        running.finish(limit)
    }

    /// Runs with these bytes on stdin.
    pub fn run_with_input<A: AsRef<OsStr>>(
        &self,
        input: &[u8],
        arguments: impl IntoIterator<Item = A>,
    ) -> Output {
        let mut running = self.start(arguments);
        running.write(input);
        running.close_stdin();
        running.finish(LIMIT)
    }

    /// Starts `nacre` with pipes for all three streams.
    pub fn start<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("cannot start sh");
        let stdin = child.stdin.take();
        let stdout = Stream::collect(child.stdout.take().expect("no stdout"));
        let stderr = Stream::collect(child.stderr.take().expect("no stderr"));
        Running { child, stdin, stdout, stderr, started: Instant::now() }
    }

    /// Starts a container in the background and returns when it runs.
    ///
    /// # Panics
    /// When it does not.
    pub fn detach<A: AsRef<OsStr>>(&self, name: &str, arguments: impl IntoIterator<Item = A>) {
        let start: Vec<OsString> = ["run", "-d", "--name", name].map(Into::into).into();
        let rest = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        self.run(start.into_iter().chain(rest)).succeeded();
    }

    /// The record that the monitor of a sandbox keeps.
    ///
    /// # Panics
    /// When there is no such sandbox.
    pub fn record(&self, sandbox: &str) -> serde_json::Value {
        let path = self.guard.runtime().join("nacre").join(sandbox).join("sandbox.json");
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&bytes).expect("not JSON")
    }

    /// Removes a container that a test started in the background.
    pub fn remove(&self, name: &str) {
        self.run(["rm", "-f", name]).succeeded();
    }
}

/// A `nacre` that has not ended yet.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
    started: Instant,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("cannot signal nacre");
    }

    /// Writes to its stdin.
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin is closed");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("nacre does not read its stdin");
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until stdout contains `text`.
    ///
    /// # Panics
    /// When it does not within `limit`, or the command ends before.
    pub fn wait_for(&mut self, text: &str, limit: Duration) {
        let until = Instant::now() + limit;
        while !self.stdout.contains(text) {
            let ended = self.child.try_wait().expect("cannot wait").is_some();
            // The end may come before the reader saw the last bytes.
            thread::sleep(POLL);
            if (ended || Instant::now() > until) && !self.stdout.contains(text) {
                panic!(
                    "no {text:?} on stdout ({}); stdout:\n{}\nstderr:\n{}",
                    if ended { "nacre ended" } else { "time is up" },
                    String::from_utf8_lossy(&self.stdout.copy()),
                    String::from_utf8_lossy(&self.stderr.copy()),
                );
            }
        }
    }

    /// True once the command has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("cannot wait").is_some()
    }

    /// Waits for the end; at the limit the command is killed. Its stdin stays as it is.
    pub fn finish(mut self, limit: Duration) -> Output {
        let status = wait(&mut self.child, self.started + limit);
        let timed_out = status.is_none();
        if timed_out {
            let _ = self.child.kill();
        }
        let status = status.unwrap_or_else(|| self.child.wait().expect("cannot wait"));
        Output {
            code: code(status),
            // A background process that keeps the pipes is reported by the guard, and must not hang the test.
            stdout: self.stdout.end(),
            stderr: String::from_utf8_lossy(&self.stderr.end()).into_owned(),
            duration: self.started.elapsed(),
            timed_out,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// # Panics
    /// Unless the exit code is 0.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        self.exited(0)
    }

    /// # Panics
    /// Unless the exit code is this.
    #[track_caller]
    pub fn exited(self, code: i32) -> Self {
        assert!(!self.timed_out, "did not end in time\n{self}");
        assert_eq!(self.code, code, "another exit code\n{self}");
        self
    }

    /// # Panics
    /// Unless stdout is exactly this.
    #[track_caller]
    pub fn printed(self, text: &str) -> Self {
        assert_eq!(self.text(), text, "\n{self}");
        self
    }

    /// # Panics
    /// Unless stderr contains every one of `texts`, in any case.
    #[track_caller]
    pub fn said(self, texts: &[&str]) -> Self {
        let stderr = self.stderr.to_lowercase();
        for text in texts {
            assert!(stderr.contains(&text.to_lowercase()), "stderr does not say {text:?}\n{self}");
        }
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 4000;
        let text = self.text();
        let shown: String = text.chars().take(SHOWN).collect();
        writeln!(f, "--- exit code {} after {:.1} s", self.code, self.duration.as_secs_f64())?;
        writeln!(f, "--- stdout ({} bytes)\n{shown}", self.stdout.len())?;
        write!(f, "--- stderr\n{}", self.stderr)
    }
}

/// A pipe that is read by a thread.
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn collect(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = bytes.clone();
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                let mut bytes = shared.lock().expect("poisoned");
                let room = KEPT_BYTES.saturating_sub(bytes.len());
                bytes.extend_from_slice(&buffer[..count.min(room)]);
            }
        });
        Self { bytes, reader }
    }

    fn contains(&self, text: &str) -> bool {
        let bytes = self.bytes.lock().expect("poisoned");
        bytes.windows(text.len().max(1)).any(|window| window == text.as_bytes())
    }

    fn copy(&self) -> Vec<u8> {
        self.bytes.lock().expect("poisoned").clone()
    }

    fn end(&self) -> Vec<u8> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let until = Instant::now() + PATIENCE;
        while !self.reader.is_finished() && Instant::now() < until {
            thread::sleep(POLL);
        }
        self.copy()
    }
}

fn wait(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait().expect("cannot wait") {
            Some(status) => return Some(status),
            None if Instant::now() >= until => return None,
            None => thread::sleep(POLL),
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}
