//! A running VM: QEMU, the devices that this process serves to it, and how it all ends.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::accel::{AccelChoice, choose_accel};
use super::builtin;
use super::clock::HostClock;
use super::config::{ConfigError, Scratch, VmConfig};
use super::console::Console;
use super::process::{Process, ProcessEnd};
use super::qemu::{FsSetup, NetSetup, QEMU, QemuSetup, find_program};
use crate::devices::fs::{FsError, TAG, serve_fs};
use crate::devices::notes::Notes;
use crate::devices::vhost_user::{ServeError, Served};
use crate::devices::vsock::backend::serve_vsock;
use crate::devices::vsock::{VsockConfig, client};
use crate::kvm::{EXIT_STOPPED, EXIT_TRIPLE_FAULT};
use crate::net::{Counters, Engine, GuestNet, NetConfig, NetError, Network};

/// The hybrid vsock socket inside the runtime directory.
const VSOCK_NAME: &str = "vsock";
/// The control socket of our own VMM, beside it.
pub const CONTROL_NAME: &str = "vmm";
/// Lines of console that an error shows.
const ERROR_LINES: usize = 20;
/// How long one attempt to reach the guest may take before the state of QEMU is looked at again.
const ATTEMPT: Duration = Duration::from_millis(250);

/// A VM. Dropping it kills the VMM and removes every socket.
pub struct Vm {
    // Order matters: QEMU goes first, then the devices see their connections close.
    vmm: Process,
    _sockets: Sockets,
    readers: Mutex<Vec<JoinHandle<()>>>,
    _devices: Vec<Served>,
    network: Network,
    console: Console,
    errors: Console,
    notes: Notes,
    vsock: PathBuf,
    accel: AccelChoice,
    started: Instant,
}

/// Of our own VMM, which may remove nothing itself.
struct Sockets(Vec<PathBuf>);

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEnd {
    /// The guest reset itself, which is how it powers off.
    Finished,
    /// Its kernel panicked; the line in which it said so.
    Panicked { line: String },
    /// It crashed so that its kernel could not say anything: a triple fault. (QEMU cannot tell this from `Finished`.)
    Crashed,
    /// Somebody asked the VMM at its control socket to end it.
    Stopped,
    /// The VMM was killed by a signal (ours or another's).
    Killed { signal: i32 },
    /// The VMM gave up; what it said.
    Failed { code: i32, message: String },
}

impl Vm {
    /// Starts a VM. Returns once QEMU runs; the guest is then about to boot.
    ///
    /// # Errors
    /// Something that the VM needs is not there or cannot be made; nothing is left behind.
    pub fn start(config: VmConfig) -> Result<Vm, VmError> {
        let started = Instant::now();
        config.check()?;
        let mut cmdline = config.kernel_cmdline()?;
        let files = Files::open(&config)?;
        let qemu_only = matches!(&config.network, NetConfig::User(user) if user.engine == Engine::Slirp);
        let accel = choose_accel(config.vmm, config.accel, qemu_only);
        if accel.builtin {
            return Vm::start_builtin(config, &cmdline, files, accel, started);
        }
        if config.memory_max_mib.is_some() || config.vcpus_max.is_some() {
            return Err(ConfigError::QemuGrows.into());
        }
        let qemu_path = find_program(QEMU).ok_or(VmError::NoQemu)?;
        // Without ACPI the guest cannot power off: it ends by a triple fault, and QEMU is told not to reboot.
        cmdline.push_str(" reboot=t");
        let clock = (!accel.kvm).then(HostClock::start);
        let notes = Notes::default();
        let vsock = config.runtime_dir.join(VSOCK_NAME);
        let devices = serve_devices(&config, &vsock, &notes)?;
        let mut network = Network::start(&config.network, &notes)?;

        for word in clock.iter().flat_map(HostClock::words) {
            cmdline = format!("{cmdline} {word}");
        }
        let mut inherited = Inherited::default();
        let mut devices = devices;
        let sockets: Vec<RawFd> =
            devices.iter_mut().filter_map(Served::take_qemu_end).map(|fd| inherited.add(fd)).collect();
        let root = files.root.map(|file| inherited.add(file.into()));
        let scratch = files.scratch.map(|file| inherited.add(file.into()));
        let netdev = network.take_netdev(|fd| inherited.add(fd));
        let mac = network.guest().map(GuestNet::mac_string);
        let net = match (&netdev, &mac, network.guest()) {
            (Some(netdev), Some(mac), Some(guest)) => Some(NetSetup { netdev, mac, mtu: guest.mtu }),
            _ => None,
        };
        let setup = QemuSetup {
            kvm: accel.kvm,
            memory_mib: config.memory_mib,
            vcpus: config.vcpus,
            kernel: &config.kernel,
            cmdline: &cmdline,
            root,
            scratch,
            scratch_is_kept: matches!(config.scratch, Scratch::Kept { .. }),
            vsock: sockets.first().copied().unwrap_or(-1),
            fs: sockets.get(1).map(|socket| FsSetup { socket: *socket, tag: TAG }),
            net,
        };
        let mut command = Command::new(&qemu_path);
        command.args(setup.arguments()).env_clear().current_dir("/").stdin(Stdio::null());
        let (console, errors, readers) = attach(&mut command, files.log)?;
        let vmm = Process::spawn(command, inherited.0)
            .map_err(|source| VmError::Spawn { path: qemu_path, source })?;
        let readers = Mutex::new(readers);
        let _sockets = Sockets(Vec::new());
        Ok(Vm {
            vmm,
            _sockets,
            readers,
            _devices: devices,
            network,
            console,
            errors,
            notes,
            vsock,
            accel,
            started,
        })
    }

    /// The same with our own VMM, which serves the devices itself.
    fn start_builtin(
        config: VmConfig,
        cmdline: &str,
        files: Files,
        accel: AccelChoice,
        started: Instant,
    ) -> Result<Vm, VmError> {
        let notes = Notes::default();
        let vsock = config.runtime_dir.join(VSOCK_NAME);
        let mut network = Network::start(&config.network, &notes)?;
        let mut inherited = Inherited::default();
        let root = files.root.map(|file| inherited.add(file.into()));
        let scratch = files.scratch.map(|file| inherited.add(file.into()));
        let stream = network.take_stream().map(|stream| inherited.add(stream));
        let control = config.runtime_dir.join(CONTROL_NAME);
        let machine = builtin::machine(
            &config,
            cmdline,
            (&vsock, &control),
            root,
            scratch,
            stream.zip(network.guest()),
        );
        let file = builtin::as_file(&machine).map_err(VmError::Pipe)?;
        let mut command = Command::new(&config.program);
        command.args(["vmm", "--config", &format!("/proc/self/fd/{}", inherited.add(file))]);
        command.env_clear().current_dir("/").stdin(Stdio::null());
        let (console, errors, readers) = attach(&mut command, files.log)?;
        let vmm = Process::spawn(command, inherited.0)
            .map_err(|source| VmError::Spawn { path: config.program, source })?;
        let readers = Mutex::new(readers);
        let _sockets = Sockets(vec![vsock.clone(), control]);
        let _devices = Vec::new();
        Ok(Vm { vmm, _sockets, readers, _devices, network, console, errors, notes, vsock, accel, started })
    }

    /// The hybrid vsock socket of the host side.
    #[must_use]
    pub fn vsock_path(&self) -> &Path {
        &self.vsock
    }

    /// What the guest has to configure, if it has a network.
    #[must_use]
    pub fn guest_net(&self) -> Option<&GuestNet> {
        self.network.guest()
    }

    /// Frames of its network so far.
    #[must_use]
    pub fn net_counters(&self) -> Option<Counters> {
        self.network.counters()
    }

    /// One line each that the user should see: no KVM, a weaker network.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        self.accel.notice.iter().cloned().chain(self.network.notice()).collect()
    }

    /// Whether the guest runs under KVM.
    #[must_use]
    pub fn uses_kvm(&self) -> bool {
        self.accel.kvm
    }

    /// What the devices noticed about the guest.
    #[must_use]
    pub fn device_notes(&self) -> Vec<String> {
        self.notes.list()
    }

    /// The console of the guest.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// When [`Vm::start`] was called.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The VMM's process id.
    #[must_use]
    pub fn vmm_pid(&self) -> u32 {
        self.vmm.id()
    }

    /// Waits for the end.
    pub fn wait(&self) -> VmEnd {
        let end = self.vmm.wait();
        self.explain(end)
    }

    /// Waits for the end, at most `limit`; zero asks only.
    pub fn wait_for(&self, limit: Duration) -> Option<VmEnd> {
        self.vmm.wait_for(limit).map(|end| self.explain(end))
    }

    /// Ends the VM at once.
    pub fn kill(&self) {
        self.vmm.kill();
    }

    /// Connects to a vsock port of the guest, waiting until it listens, the VM ends or `limit` passes.
    ///
    /// # Errors
    /// Why the guest did not come up; `stage` says what was being waited for.
    pub fn connect(
        &self,
        stage: &'static str,
        port: u32,
        limit: Duration,
    ) -> Result<UnixStream, Box<BootFailure>> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match client::connect(&self.vsock, port, left.min(ATTEMPT)) {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    if let Some(end) = self.wait_for(Duration::ZERO) {
                        return Err(Box::new(self.failure(stage, BootCause::Ended(end))));
                    }
                    if left.is_zero() {
                        return Err(Box::new(
                            self.failure(stage, BootCause::TimedOut { limit, last: error }),
                        ));
                    }
                    // Refused at once: the kernel is there and the program is not yet, or not even the socket is.
                    if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
        }
    }

    /// A failure report for a stage that the caller watches by itself.
    #[must_use]
    pub fn failure(&self, stage: &'static str, cause: BootCause) -> BootFailure {
        BootFailure { stage, cause, console: self.console.last_lines(ERROR_LINES), notes: self.notes.list() }
    }

    fn explain(&self, end: ProcessEnd) -> VmEnd {
        // Both pipes are closed now, so the readers end; wait for the last lines.
        let readers: Vec<_> =
            self.readers.lock().map(|mut readers| std::mem::take(&mut *readers)).unwrap_or_default();
        for reader in readers {
            let _ = reader.join();
        }
        match end {
            ProcessEnd::Killed { signal } => VmEnd::Killed { signal },
            ProcessEnd::Exited(code) if self.accel.builtin && code == i32::from(EXIT_TRIPLE_FAULT) => {
                VmEnd::Crashed
            }
            ProcessEnd::Exited(code) if self.accel.builtin && code == i32::from(EXIT_STOPPED) => {
                VmEnd::Stopped
            }
            ProcessEnd::Exited(0) => match self.console.panic_line() {
                Some(line) => VmEnd::Panicked { line },
                None => VmEnd::Finished,
            },
            ProcessEnd::Exited(code) => VmEnd::Failed { code, message: self.errors.last_lines(5).join("; ") },
        }
    }
}

struct Files {
    root: Option<File>,
    scratch: Option<File>,
    log: Option<File>,
}

impl Files {
    fn open(config: &VmConfig) -> Result<Files, VmError> {
        let readable = |what, path: &Path| {
            File::open(path).map_err(|source| VmError::Open { what, path: path.to_owned(), source })
        };
        // QEMU opens it by name; a clear error is better than its.
        readable("kernel", &config.kernel)?;
        let root = config.image.as_deref().map(|path| readable("guest image", path)).transpose()?;
        let scratch = match &config.scratch {
            Scratch::Disk { size_bytes, dir } => Some(Scratch::create(*size_bytes, dir)?),
            Scratch::Kept { file } => Some(Scratch::open_kept(file)?),
            Scratch::None => None,
        };
        let create = |path: &PathBuf| {
            use std::os::unix::fs::OpenOptionsExt;
            OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(path)
                .map_err(|source| VmError::Open { what: "console log", path: path.clone(), source })
        };
        let log = config.console_log.as_ref().map(create).transpose()?;
        Ok(Files { root, scratch, log })
    }
}

/// Descriptors that QEMU gets.
#[derive(Default)]
struct Inherited(Vec<OwnedFd>);

impl Inherited {
    fn add(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_fd().as_raw_fd();
        self.0.push(fd);
        number
    }
}

/// vsock always, then virtio-fs when there is something to share.
fn serve_devices(config: &VmConfig, vsock: &Path, notes: &Notes) -> Result<Vec<Served>, VmError> {
    let settings = VsockConfig { guest_cid: config.guest_cid, path: vsock.to_owned() };
    let mut devices = vec![serve_vsock(settings, &config.runtime_dir, notes.clone())?];
    if !config.shares.is_empty() {
        devices.push(serve_fs(config.shares.clone(), &config.runtime_dir, notes.clone())?);
    }
    Ok(devices)
}

fn attach(
    command: &mut Command,
    log: Option<File>,
) -> Result<(Console, Console, Vec<JoinHandle<()>>), VmError> {
    let (output, to_output) = io::pipe().map_err(VmError::Pipe)?;
    let (error, to_error) = io::pipe().map_err(VmError::Pipe)?;
    command.stdout(to_output).stderr(to_error);
    let (console, first) = Console::collect("nacre-console", output, log).map_err(VmError::Pipe)?;
    let (errors, second) = Console::collect("nacre-stderr", error, None).map_err(VmError::Pipe)?;
    Ok((console, errors, vec![first, second]))
}

/// A VM cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{QEMU} is not installed; sudo apt install qemu-system-x86")]
    NoQemu,
    #[error("cannot open the {what} {path}")]
    Open { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Device(#[from] ServeError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("cannot make a pipe or a thread for the console")]
    Pipe(#[source] io::Error),
    #[error("cannot start {path}")]
    Spawn { path: PathBuf, source: io::Error },
}

/// A VM that started and did not come up.
#[derive(Debug)]
pub struct BootFailure {
    /// What was being waited for.
    pub stage: &'static str,
    pub cause: BootCause,
    /// The end of the guest's console.
    pub console: Vec<String>,
    /// What the devices noticed.
    pub notes: Vec<String>,
}

/// Why a VM did not come up.
#[derive(Debug)]
pub enum BootCause {
    Ended(VmEnd),
    TimedOut { limit: Duration, last: io::Error },
}

impl BootFailure {
    /// What the user can try.
    #[must_use]
    pub fn next_step(&self) -> &'static str {
        match &self.cause {
            BootCause::Ended(VmEnd::Panicked { line }) if line.contains("mount root") => {
                "the guest image does not fit the kernel: build both again"
            }
            BootCause::Ended(VmEnd::Panicked { line }) if line.contains("emory") => {
                "give the VM more memory (-m)"
            }
            BootCause::Ended(VmEnd::Panicked { .. }) => {
                "build kernel and guest image again; see the console above"
            }
            BootCause::Ended(VmEnd::Finished) => "the guest ended by itself; see the console above",
            BootCause::Ended(VmEnd::Crashed) => "try --vmm qemu, and report it with kernel and processor",
            BootCause::Ended(VmEnd::Stopped) => "somebody said so: nacre vmm-control",
            BootCause::Ended(VmEnd::Killed { signal: 9 }) => {
                "somebody killed the VMM; if the host ran out of memory, dmesg says so"
            }
            BootCause::Ended(VmEnd::Killed { .. }) => "the VMM crashed; try --accel tcg, and report it",
            BootCause::Ended(VmEnd::Failed { .. }) => "run `nacre doctor`",
            BootCause::TimedOut { .. } => {
                "try --accel tcg if KVM is in use, or a longer timeout on a slow host"
            }
        }
    }
}

impl fmt::Display for BootFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the sandbox failed while {}: {}", self.stage, self.cause)?;
        for note in &self.notes {
            writeln!(f, "  device: {note}")?;
        }
        if self.console.is_empty() {
            writeln!(f, "  the console is empty")?;
        } else {
            writeln!(f, "  last lines of the console:")?;
        }
        for line in &self.console {
            writeln!(f, "    {line}")?;
        }
        write!(f, "  next: {}", self.next_step())
    }
}

impl std::error::Error for BootFailure {}

impl fmt::Display for BootCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BootCause::Ended(end) => end.fmt(f),
            BootCause::TimedOut { limit, last } => {
                write!(f, "no answer within {:.1} s ({last})", limit.as_secs_f64())
            }
        }
    }
}

impl fmt::Display for VmEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VmEnd::Finished => f.write_str("the guest ended"),
            VmEnd::Panicked { line } => write!(f, "the guest kernel panicked: {line}"),
            VmEnd::Crashed => f.write_str("the guest crashed (triple fault)"),
            VmEnd::Stopped => f.write_str("the VM was stopped at its control socket"),
            VmEnd::Killed { signal } => write!(f, "the VMM was killed by signal {signal}"),
            VmEnd::Failed { code, message } if message.is_empty() => {
                write!(f, "the VMM ended with code {code}")
            }
            VmEnd::Failed { code, message } => write!(f, "the VMM ended with code {code}: {message}"),
        }
    }
}
