//! The control socket: one thread that answers whoever may connect. What is said there is [`nacre_protocols::host_vmm`].

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nacre_protocols::host_vmm::{
    CONNECTIONS_MAX, DeviceMetrics, FromVmm, LINE_BYTES_MAX, Metrics, PAUSE_SECONDS_MAX, Reply, Request,
    State, Status, ToVmm, VERSION,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, recv, send,
    socket_with,
};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::life::Life;
use super::memory::Grower;
use super::{End, KvmError};
use crate::devices::meter::Meter;
use crate::devices::notes::Notes;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 8;
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Makes the socket at `path`, for this user alone.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    // Before it has a name, so that nobody else can connect at any moment.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Makes processors leave the guest: a signal whose handler does nothing.
pub struct Kick(pub Vec<JoinHandle<()>>);

impl Kick {
    /// Before the first processor runs.
    pub fn prepare() -> io::Result<()> {
        extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), nothing).map_err(io::Error::from)
    }

    fn all(&self) {
        // One that has ended rests anyway.
        for thread in &self.0 {
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

/// What there is to tell.
pub struct About {
    pub processors_max: u8,
    /// From the start.
    pub memory_mib: u32,
    pub memory_wanted_mib: u32,
    pub memory_max_mib: u32,
    pub made: Instant,
    pub devices: Vec<(&'static str, Meter)>,
    /// Bytes that the balloon gave back.
    pub returned: Meter,
    pub notes: Notes,
}

/// The thread's work.
pub struct Control {
    pub life: Arc<Life>,
    pub kick: Kick,
    pub about: About,
    /// Where memory may grow.
    pub grower: Option<Grower>,
    pub ends: Sender<Result<End, KvmError>>,
}

struct Client {
    stream: OwnedFd,
    /// The beginning of a line.
    heard: Vec<u8>,
}

impl Control {
    /// Until the process ends.
    pub fn serve(&mut self, listener: &OwnedFd) {
        let mut clients: Vec<Client> = Vec::new();
        loop {
            let ready = match wait(listener, &clients) {
                Ok(ready) => ready,
                Err(error) => return self.about.notes.add(format_args!("control: {error}")),
            };
            let mut ready = ready.into_iter();
            let new = ready.next().unwrap_or(false);
            clients.retain_mut(|client| !ready.next().unwrap_or(false) || self.hear(client));
            if new && let Ok(stream) = accept_with(listener, FLAGS) {
                // One too many is closed: it reads the end of the connection.
                if clients.len() < CONNECTIONS_MAX {
                    clients.push(Client { stream, heard: Vec::new() });
                }
            }
        }
    }

    /// Whether the client stays.
    fn hear(&mut self, client: &mut Client) -> bool {
        let mut bytes = [0; 4096];
        let count = match recv(&client.stream, &mut bytes[..], RecvFlags::empty()) {
            Ok((0, _)) => return false,
            Ok((count, _)) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return true,
            Err(_) => return false,
        };
        client.heard.extend_from_slice(bytes.get(..count).unwrap_or_default());
        while let Some(end) = client.heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = client.heard.drain(..=end).collect();
            let reply = FromVmm { version: VERSION, reply: self.answer(&line) };
            let mut text = serde_json::to_vec(&reply).unwrap_or_default();
            text.push(b'\n');
            // A socket takes far more than one reply; who lets them pile up is cut off.
            if send(&client.stream, &text, SendFlags::NOSIGNAL) != Ok(text.len()) {
                return false;
            }
        }
        client.heard.len() < LINE_BYTES_MAX
    }

    fn answer(&mut self, line: &[u8]) -> Reply {
        match serde_json::from_slice::<ToVmm>(line) {
            Ok(asked) if asked.version == VERSION => self.carry_out(asked.request),
            Ok(asked) => other_version(asked.version),
            // Another version may have other requests: that is then what is wrong.
            Err(error) => match serde_json::from_slice::<AnyVersion>(line) {
                Ok(asked) if asked.version != VERSION => other_version(asked.version),
                _ => Reply::Error(error.to_string()),
            },
        }
    }

    fn carry_out(&mut self, request: Request) -> Reply {
        match request {
            Request::Pause => {
                match self.life.pause(Duration::from_secs(PAUSE_SECONDS_MAX), || self.kick.all()) {
                    Ok(()) => Reply::Done,
                    Err(restless) => Reply::Error(restless.to_string()),
                }
            }
            Request::Resume => {
                self.life.resume();
                Reply::Done
            }
            Request::Stop => {
                let _ = self.ends.send(Ok(End::Stopped));
                Reply::Done
            }
            Request::Resize { memory_mib, processors } => match self.resize(memory_mib, processors) {
                Ok(()) => Reply::Done,
                Err(problem) => Reply::Error(problem),
            },
            Request::Status => Reply::Status(self.status()),
            Request::Metrics => Reply::Metrics(self.metrics()),
        }
    }

    fn resize(&mut self, memory_mib: Option<u32>, processors: Option<u8>) -> Result<(), String> {
        let about = &mut self.about;
        let running = self.life.may_run();
        if let Some(asked) = processors
            && !(running..=about.processors_max.into()).contains(&asked.into())
        {
            return Err(format!("processors: {asked} is outside {running} to {}", about.processors_max));
        }
        if let Some(asked) = memory_mib {
            if !(about.memory_mib..=about.memory_max_mib).contains(&asked) {
                let (least, most) = (about.memory_mib, about.memory_max_mib);
                return Err(format!("memory_mib: {asked} is outside {least} to {most}"));
            }
            if let Some(grower) = &mut self.grower {
                let more = u64::from(asked - about.memory_mib) << 20;
                grower.want(more).map_err(|error| format!("memory_mib: {error}"))?;
            }
            about.memory_wanted_mib = asked;
        }
        if let Some(asked) = processors {
            self.life.let_run(asked.into());
        }
        Ok(())
    }

    fn status(&self) -> Status {
        let about = &self.about;
        let taken_mib = self.grower.as_ref().map_or(0, |grower| grower.taken_bytes() >> 20);
        Status {
            state: if self.life.is_paused() { State::Paused } else { State::Running },
            pid: std::process::id(),
            processors: u8::try_from(self.life.may_run()).unwrap_or(u8::MAX),
            processors_max: about.processors_max,
            memory_mib: about.memory_mib.saturating_add(u32::try_from(taken_mib).unwrap_or(u32::MAX)),
            memory_wanted_mib: about.memory_wanted_mib,
            memory_max_mib: about.memory_max_mib,
            uptime_ms: u64::try_from(about.made.elapsed().as_millis()).unwrap_or(u64::MAX),
            devices: about.devices.iter().map(|(name, _)| (*name).to_owned()).collect(),
            notes: about.notes.list(),
        }
    }

    fn metrics(&self) -> Metrics {
        let device = |(name, meter): &(&str, Meter)| {
            let reading = meter.read();
            DeviceMetrics {
                name: (*name).to_owned(),
                wakeups: reading.wakeups,
                requests: reading.requests,
                from_guest_bytes: reading.from_guest_bytes,
                to_guest_bytes: reading.to_guest_bytes,
            }
        };
        Metrics {
            processors: self.life.all_exits(),
            devices: self.about.devices.iter().map(device).collect(),
            memory_returned_bytes: self.about.returned.read().from_guest_bytes,
        }
    }
}

/// The one field that every version has.
#[derive(serde::Deserialize)]
struct AnyVersion {
    version: u32,
}

fn other_version(version: u32) -> Reply {
    Reply::Error(format!("version {version}, this program knows {VERSION}"))
}

/// Waits; which of the listener and the clients have something to say.
fn wait(listener: &OwnedFd, clients: &[Client]) -> io::Result<Vec<bool>> {
    let all = std::iter::once(listener).chain(clients.iter().map(|client| &client.stream));
    let mut fds: Vec<PollFd<'_>> =
        all.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
    match poll(&mut fds, None) {
        Ok(_) => Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(rustix::io::Errno::INTR) => Ok(vec![false; fds.len()]),
        Err(error) => Err(error.into()),
    }
}

/// A client: asks the VMM whose control socket is at `path`, and waits for its reply.
///
/// # Errors
/// Nobody listens there, the VMM ends before it has answered, or it says what is no reply.
pub fn ask(path: &Path, request: Request) -> io::Result<Reply> {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(PAUSE_SECONDS_MAX * 2)))?;
    let mut line = serde_json::to_vec(&ToVmm { version: VERSION, request })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = Vec::new();
    BufReader::new(stream.take(LINE_BYTES_MAX as u64)).read_until(b'\n', &mut reply)?;
    if reply.last() != Some(&b'\n') {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "the VMM ended without a reply"));
    }
    let reply: FromVmm = serde_json::from_slice(&reply)?;
    Ok(reply.reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc::Receiver;

    fn served() -> (tempfile::TempDir, std::path::PathBuf, Receiver<Result<End, KvmError>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = listen(&path).unwrap();
        let (ends, ended) = std::sync::mpsc::channel();
        let meter = Meter::default();
        meter.woken(3);
        meter.from_guest(512);
        let about = About {
            processors_max: 2,
            memory_mib: 128,
            memory_wanted_mib: 128,
            memory_max_mib: 128,
            made: Instant::now(),
            devices: vec![("disk", meter)],
            returned: Meter::default(),
            notes: Notes::default(),
        };
        // Without processors there is nobody to be waited for.
        let life = Arc::new(Life::new(0, 1));
        let mut control = Control { life, kick: Kick(Vec::new()), about, grower: None, ends };
        std::thread::spawn(move || control.serve(&listener));
        (folder, path, ended)
    }

    #[test]
    fn a_machine_is_paused_resumed_asked_and_stopped() {
        let (_folder, path, ended) = served();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let state = || match ask(&path, Request::Status).unwrap() {
            Reply::Status(status) => (status.state, status.memory_mib, status.devices),
            other => panic!("{other:?}"),
        };
        assert_eq!(state(), (State::Running, 128, vec!["disk".to_owned()]));
        for _ in 0..2 {
            assert_eq!(ask(&path, Request::Pause).unwrap(), Reply::Done);
            assert_eq!(state().0, State::Paused);
        }
        assert_eq!(ask(&path, Request::Resume).unwrap(), Reply::Done);
        assert_eq!(state().0, State::Running);
        let Reply::Metrics(metrics) = ask(&path, Request::Metrics).unwrap() else { panic!() };
        assert_eq!((metrics.devices[0].requests, metrics.devices[0].from_guest_bytes), (3, 512));
        assert_eq!(ask(&path, Request::Stop).unwrap(), Reply::Done);
        assert_eq!(ended.recv().unwrap().unwrap(), End::Stopped);
    }

    #[test]
    fn a_machine_is_resized_within_its_configuration() {
        let (_folder, path, _ended) = served();
        let resize = |memory_mib, processors| ask(&path, Request::Resize { memory_mib, processors }).unwrap();
        let Reply::Error(error) = resize(Some(256), None) else { panic!() };
        assert_eq!(error, "memory_mib: 256 is outside 128 to 128");
        for (processors, range) in [(0, "0 is outside 1 to 2"), (3, "3 is outside 1 to 2")] {
            let Reply::Error(error) = resize(None, Some(processors)) else { panic!() };
            assert_eq!(error, format!("processors: {range}"));
        }
        assert_eq!(resize(Some(128), Some(2)), Reply::Done);
        let Reply::Status(status) = ask(&path, Request::Status).unwrap() else { panic!() };
        assert_eq!((status.processors, status.processors_max, status.memory_mib), (2, 2, 128));
    }

    #[test]
    fn what_is_no_request_is_said_so_and_the_connection_goes_on() {
        let (_folder, path, _ended) = served();
        let mut stream = UnixStream::connect(&path).unwrap();
        let mut replies = BufReader::new(stream.try_clone().unwrap()).lines();
        for (line, words) in [
            ("{\"version\":2,\"request\":\"jump\"}", "version 2, this program knows 1"),
            ("{\"version\":1,\"request\":\"jump\"}", "jump"),
            ("{\"version\":1,\"request\":\"pause\",\"much\":true}", "much"),
            ("", "EOF"),
            ("[[[[", "expected"),
            ("{\"version\":1,\"request\":\"resume\"}", "{\"version\":1,\"reply\":\"done\"}"),
        ] {
            // In two pieces.
            let (first, second) = line.split_at(line.len() / 2);
            stream.write_all(first.as_bytes()).unwrap();
            stream.write_all(format!("{second}\n").as_bytes()).unwrap();
            let reply = replies.next().unwrap().unwrap();
            assert!(reply.contains(words), "{line}: {reply}");
        }
    }

    #[test]
    fn who_says_or_connects_too_much_is_cut_off() {
        let (_folder, path, _ended) = served();
        let mut stream = UnixStream::connect(&path).unwrap();
        let _ = stream.write_all(&vec![b'x'; LINE_BYTES_MAX + 4096]);
        assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
        let clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
        // All of them are there when the last one has an answer.
        let mut last = clients.last().unwrap();
        last.write_all(b"{\"version\":1,\"request\":\"resume\"}\n").unwrap();
        assert_eq!(last.read(&mut [0; 1]).unwrap(), 1);
        let mut extra = UnixStream::connect(&path).unwrap();
        extra.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(matches!(extra.read(&mut [0; 1]), Ok(0)));
        drop(clients);
    }
}
