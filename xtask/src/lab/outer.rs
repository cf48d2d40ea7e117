//! The outer machine itself: QEMU, the server of this machine's files, and what comes back.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};

use super::initramfs::{Archive, Kernel};

/// Where Debian 12 and 13 put the server of virtio-fs.
const VIRTIOFSD: &[&str] = &["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
/// How long the server may take to make its socket.
const SERVER_PATIENCE: Duration = Duration::from_secs(10);
/// Of the console, shown when the machine ends without a word of the command.
const CONSOLE_LINES: usize = 20;
/// Variables that a command in there is given.
const VARIABLES: &[&str] = &["HOME", "PATH", "CI", "CARGO_TARGET_DIR", "LANG"];
const PREFIXES: &[&str] = &["NACRE_", "RUST_"];

pub struct Outer<'a> {
    pub kernel: &'a Kernel,
    pub icount: bool,
    pub memory_mib: u32,
    pub cpus: u8,
    pub limit: Duration,
}

impl Outer<'_> {
    /// Boots, runs and ends; the command's exit code.
    pub fn run(&self, command: &[OsString]) -> anyhow::Result<u8> {
        let folder = tempfile::tempdir().context("cannot make a temporary directory")?;
        let initrd = folder.path().join("initrd");
        self.write_initrd(&initrd, command)?;
        let socket = folder.path().join("files");
        let _server = serve_files(&socket, folder.path())?;
        let (console, complaints) = (folder.path().join("console"), folder.path().join("qemu"));
        let out = Way::open("out", io::stdout())?;
        let err = Way::open("err", io::stderr())?;
        let code = Way::open("code", Vec::new())?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(self.arguments(&initrd, &socket, &console, [out.device(), err.device(), code.device()]));
        qemu.stdin(Stdio::null()).stdout(Stdio::null());
        qemu.stderr(fs::File::create(&complaints).context("cannot make a file for QEMU's errors")?);
        let mut qemu = Guard(qemu.spawn().context("cannot start qemu-system-x86_64")?);
        let until = Instant::now() + self.limit;
        let status = loop {
            if let Some(status) = qemu.0.try_wait().context("cannot wait for QEMU")? {
                break status;
            }
            ensure!(
                Instant::now() < until,
                "the command did not end within {} s; --timeout gives it more.{}",
                self.limit.as_secs(),
                end_of(&console)
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        out.close()?;
        err.close()?;
        match String::from_utf8_lossy(&code.close()?).trim().parse() {
            Ok(code) => Ok(code),
            Err(_) => bail!(
                "the outer machine ended ({status}) without an exit code.{}{}",
                end_of(&complaints),
                end_of(&console)
            ),
        }
    }

    fn arguments(
        &self,
        initrd: &Path,
        socket: &Path,
        console: &Path,
        ways: [(&str, String); 3],
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut pair = |option: &str, value: String| arguments.extend([option.into(), value.into()]);
        // Files of ours have no commas in their names: they lie in a directory that mkdtemp named.
        let (socket, console) = (socket.display(), console.display());
        pair("-machine", "q35,accel=tcg,memory-backend=memory".into());
        pair("-cpu", "EPYC,+svm,+npt".into());
        pair("-smp", self.cpus.to_string());
        pair("-m", self.memory_mib.to_string());
        pair("-object", format!("memory-backend-memfd,id=memory,size={}M,share=on", self.memory_mib));
        if self.icount {
            pair("-icount", "shift=0,sleep=off".into());
        }
        pair("-display", "none".into());
        pair("-kernel", self.kernel.image.display().to_string());
        pair("-initrd", initrd.display().to_string());
        // What protects against other tenants only costs time here.
        pair("-append", "console=ttyS0 quiet panic=-1 mitigations=off".into());
        pair("-serial", format!("file:{console}"));
        pair("-chardev", format!("socket,id=files,path={socket}"));
        pair("-device", "vhost-user-fs-pci,chardev=files,tag=host".into());
        pair("-device", "virtio-serial-pci".into());
        for (name, path) in ways {
            pair("-chardev", format!("file,id={name},path={path}"));
            pair("-device", format!("virtserialport,chardev={name},name={name}"));
        }
        arguments.extend(["-nodefaults".into(), "-no-reboot".into()]);
        arguments
    }

    /// The initramfs of the kernel with one more archive behind it: the command.
    fn write_initrd(&self, path: &Path, command: &[OsString]) -> anyhow::Result<()> {
        let mut bytes = fs::read(&self.kernel.initramfs).context("cannot read the initramfs")?;
        let mut archive = Archive::new(&mut bytes);
        archive.file("command", &script(command)?).context("cannot write the command")?;
        archive.finish().context("cannot write the command")?;
        fs::write(path, bytes).context("cannot write the initrd")
    }
}

/// A pipe out of the outer machine.
struct Way<W> {
    name: &'static str,
    /// QEMU opens it anew by way of this one, which is open until QEMU has ended.
    end: io::PipeWriter,
    copier: JoinHandle<io::Result<W>>,
}

impl<W: Write + Send + 'static> Way<W> {
    fn open(name: &'static str, mut to: W) -> anyhow::Result<Self> {
        let (mut reader, end) = io::pipe().context("cannot make a pipe")?;
        let copier = thread::spawn(move || {
            io::copy(&mut reader, &mut to)?;
            to.flush()?;
            Ok(to)
        });
        Ok(Self { name, end, copier })
    }

    /// Its name, and the path that QEMU opens.
    fn device(&self) -> (&'static str, String) {
        (self.name, format!("/proc/{}/fd/{}", std::process::id(), self.end.as_raw_fd()))
    }

    /// Waits until all that came is written.
    fn close(self) -> anyhow::Result<W> {
        drop(self.end);
        let copied = self.copier.join().map_err(|_| anyhow!("a thread failed"))?;
        copied.with_context(|| format!("cannot pass on {}", self.name))
    }
}

/// What the outer machine's first process does: this command, here, with this environment.
fn script(command: &[OsString]) -> anyhow::Result<Vec<u8>> {
    let here = std::env::current_dir().context("this directory is gone")?;
    let mut script = b"for port in /sys/class/virtio-ports/*; do\n\
        read name < $port/name && eval \"$name=/dev/${port##*/}\"\n\
        done\n\
        ip link set lo up\n"
        .to_vec();
    let mut variables: Vec<_> = std::env::vars_os().collect();
    variables.sort();
    for (name, value) in variables {
        let text = name.to_string_lossy();
        if VARIABLES.contains(&&*text) || PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            script.extend([b"export ", name.as_bytes(), b"=", &quoted(&value), b"\n"].concat());
        }
    }
    script.extend([b"cd ", &quoted(here.as_os_str())[..], b" || exit 125\n"].concat());
    let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
    script.extend([b"(", &words.join(&b' ')[..], b") < /dev/null > $out 2> $err\n"].concat());
    script.extend(b"echo $? > $code\nsync\nreboot -f\n");
    Ok(script)
}

/// As one word of a shell.
fn quoted(text: &OsStr) -> Vec<u8> {
    let mut quoted = b"'".to_vec();
    for &byte in text.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            byte => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// Serves this machine's files until it is dropped.
fn serve_files(socket: &Path, folder: &Path) -> anyhow::Result<Guard> {
    let program = VIRTIOFSD
        .iter()
        .find(|path| Path::new(path).exists())
        .with_context(|| format!("none of {VIRTIOFSD:?} is there"))?;
    let log = folder.join("virtiofsd");
    let output = fs::File::create(&log).context("cannot make a log file")?;
    let mut command = Command::new(program);
    command.arg(format!("--socket-path={}", socket.display()));
    // The server of QEMU 7 and the one that followed it differ in their words.
    match *program == VIRTIOFSD[0] {
        true => command.args(["-o", "source=/,cache=always,sandbox=chroot", "--thread-pool-size=1"]),
        false => {
            command.args(["--shared-dir=/", "--cache=always", "--sandbox=chroot", "--thread-pool-size=1"])
        }
    };
    command.stdin(Stdio::null()).stdout(output.try_clone().context("no descriptor")?).stderr(output);
    let mut server = Guard(command.spawn().with_context(|| format!("cannot start {program}"))?);
    let until = Instant::now() + SERVER_PATIENCE;
    while !socket.exists() {
        let ended = server.0.try_wait().context("cannot wait for virtiofsd")?;
        ensure!(ended.is_none() && Instant::now() < until, "virtiofsd does not serve.{}", end_of(&log));
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(server)
}

/// The last lines of a file, for an error.
fn end_of(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let lines = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    lines.iter().map(|line| format!("\n    {line}")).collect()
}

/// A process that does not outlive its owner.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reaches_a_shell_as_it_is() {
        let words = ["plain", "two words", "it's", "$HOME `id` \\", "", "a\nb"];
        for word in words {
            let script = [b"printf %s ", &quoted(OsStr::new(word))[..]].concat();
            let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
            assert_eq!(output.stdout, word.as_bytes());
        }
    }
}
