//! What the caller decides about a VM, and the checks that need no VM.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::accel::{Accel, Vmm};
use crate::devices::fs::Share;
use crate::net::NetConfig;

/// MiB of memory below which the kernel does not start.
pub const MIN_MEMORY_MIB: u32 = 64;
/// MiB of memory of one VM.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;
/// Virtual processors of a VM: as many as the kernel is built for (`NR_CPUS`).
pub const MAX_VCPUS: u8 = 64;
/// Bytes of the kernel's command line (`COMMAND_LINE_SIZE` of x86, less what QEMU adds for each device and we for a translated guest).
pub const MAX_CMDLINE_BYTES: usize = 1536;
/// Smallest scratch disk.
pub const MIN_SCRATCH_BYTES: u64 = 16 << 20;
/// Bytes of the runtime directory's path: sockets in it must fit `sockaddr_un`.
pub const MAX_RUNTIME_PATH_BYTES: usize = 80;

/// A virtual machine to start.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Kernel, an ELF file with a PVH note.
    pub kernel: PathBuf,
    /// The guest image, an EROFS file: the read-only root on /dev/vda.
    pub image: Option<PathBuf>,
    /// Where the guest keeps what does not fit into memory: /dev/vdb.
    pub scratch: Scratch,
    /// Guest memory.
    pub memory_mib: u32,
    /// Virtual processors, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Guest memory may grow up to this, on our own VMM.
    pub memory_max_mib: Option<u32>,
    /// So may the number of virtual processors.
    pub vcpus_max: Option<u8>,
    /// Words added to the kernel's command line.
    pub cmdline: Vec<String>,
    /// The guest's vsock address, 3 or more.
    pub guest_cid: u32,
    /// Directories of the host that the guest sees.
    pub shares: Vec<Share>,
    pub network: NetConfig,
    pub vmm: Vmm,
    pub accel: Accel,
    /// What runs as `PROGRAM vmm --config FILE`: this program, unless a test says otherwise.
    pub program: PathBuf,
    /// A directory of this VM alone, made by the caller with mode 0700: sockets live in it, and are removed.
    pub runtime_dir: PathBuf,
    /// Also write the console here.
    pub console_log: Option<PathBuf>,
}

/// Space for image layers and writable files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scratch {
    /// A sparse file without a name in `dir`, which takes no more than is written to it and is gone with the VM.
    Disk { size_bytes: u64, dir: PathBuf },
    /// A file that stays when the VM is gone, and that no other VM has meanwhile.
    Kept { file: PathBuf },
    /// The guest uses its memory (tmpfs).
    None,
}

impl VmConfig {
    /// A VM without image, shares and network, one processor, 256 MiB.
    #[must_use]
    pub fn new(kernel: PathBuf, runtime_dir: PathBuf) -> VmConfig {
        VmConfig {
            kernel,
            image: None,
            scratch: Scratch::None,
            memory_mib: 256,
            vcpus: 1,
            memory_max_mib: None,
            vcpus_max: None,
            cmdline: Vec::new(),
            guest_cid: 3,
            shares: Vec::new(),
            network: NetConfig::None,
            vmm: Vmm::Auto,
            accel: Accel::Auto,
            program: own_program(),
            runtime_dir,
            console_log: None,
        }
    }

    /// The kernel's command line.
    ///
    /// # Errors
    /// A word with a space or control character, or too long in all.
    pub fn kernel_cmdline(&self) -> Result<String, ConfigError> {
        let mut words: Vec<&str> = vec!["console=ttyS0", "quiet", "panic=-1"];
        if self.image.is_some() {
            words.extend(["root=/dev/vda", "rootfstype=erofs", "ro"]);
        }
        for word in &self.cmdline {
            if word.is_empty() || !word.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(ConfigError::CmdlineWord(word.clone()));
            }
            words.push(word);
        }
        let line = words.join(" ");
        if line.len() > MAX_CMDLINE_BYTES {
            return Err(ConfigError::CmdlineLength(line.len()));
        }
        Ok(line)
    }

    /// Checks what can be checked before anything is started.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        let most = self.memory_max_mib.unwrap_or(self.memory_mib);
        if !(self.memory_mib..=MAX_MEMORY_MIB).contains(&most) {
            return Err(ConfigError::MemoryMax(most, self.memory_mib));
        }
        let most = self.vcpus_max.unwrap_or(self.vcpus);
        if !(self.vcpus..=MAX_VCPUS).contains(&most) {
            return Err(ConfigError::VcpusMax(most, self.vcpus));
        }
        if let Scratch::Disk { size_bytes, .. } = &self.scratch
            && *size_bytes < MIN_SCRATCH_BYTES
        {
            return Err(ConfigError::ScratchSize(*size_bytes));
        }
        self.kernel_cmdline()?;
        check_runtime_dir(&self.runtime_dir)
    }
}

impl Scratch {
    /// Makes the file. The size is a promise only: a full host disk shows as an I/O error in the guest.
    ///
    /// # Errors
    /// The directory cannot hold such a file.
    pub fn create(size_bytes: u64, dir: &Path) -> Result<File, ConfigError> {
        let failed = |source| ConfigError::Scratch { dir: dir.to_owned(), source };
        let unnamed = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE | libc::O_EXCL)
            .open(dir);
        let file = match unnamed {
            Ok(file) => file,
            // Some network and stacked file systems have no O_TMPFILE.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                create_and_unlink(dir).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        file.set_len(size_bytes / 512 * 512).map_err(failed)?;
        Ok(file)
    }
}

impl Scratch {
    /// Opens a kept disk and locks it. The lock belongs to the open file, which QEMU inherits: it is held as long as any
    /// process of this VM lives, whoever is killed first.
    ///
    /// # Errors
    /// It is not there, no plain file, another user's, or another VM has it.
    pub fn open_kept(path: &Path) -> Result<File, ConfigError> {
        let failed = |source| ConfigError::Kept { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(failed(io::Error::other("it is no plain file of this user")));
        }
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ConfigError::KeptInUse { path: path.to_owned() }),
            Err(error) => Err(failed(error.into())),
        }
    }
}

/// This program by its path, so that processes show its name; where it is not there any more, by the kernel's link.
fn own_program() -> PathBuf {
    std::env::current_exe().ok().filter(|path| path.is_file()).unwrap_or_else(|| "/proc/self/exe".into())
}

fn create_and_unlink(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!(".nacre-scratch-{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn check_runtime_dir(dir: &Path) -> Result<(), ConfigError> {
    let wrong = |reason: String| ConfigError::RuntimeDir { path: dir.to_owned(), reason };
    if dir.as_os_str().len() > MAX_RUNTIME_PATH_BYTES {
        return Err(wrong(format!(
            "the path is longer than {MAX_RUNTIME_PATH_BYTES} bytes, sockets would not fit"
        )));
    }
    let meta = std::fs::symlink_metadata(dir).map_err(|e| wrong(e.to_string()))?;
    if !meta.is_dir() {
        return Err(wrong("it is not a directory".to_owned()));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(wrong(format!("it belongs to uid {}", meta.uid())));
    }
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(wrong("others may enter it; its mode must be 0700".to_owned()));
    }
    Ok(())
}

/// A VM that cannot be as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("memory of {0} MiB is outside {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")]
    Memory(u32),
    #[error("{0} virtual processors are outside 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    #[error("memory that may grow to {0} MiB is outside {1} to {MAX_MEMORY_MIB}")]
    MemoryMax(u32, u32),
    #[error("{0} virtual processors at most are outside {1} to {MAX_VCPUS}")]
    VcpusMax(u8, u8),
    #[error("QEMU's machine does not grow: it has all memory and processors from the start")]
    QemuGrows,
    #[error("a scratch disk of {0} bytes is below {MIN_SCRATCH_BYTES}")]
    ScratchSize(u64),
    #[error("kernel command line: `{0}` has a character that is not printable ASCII, or none")]
    CmdlineWord(String),
    #[error("kernel command line: {0} bytes exceed {MAX_CMDLINE_BYTES}")]
    CmdlineLength(usize),
    #[error("runtime directory {path}: {reason}")]
    RuntimeDir { path: PathBuf, reason: String },
    #[error("cannot open the kept disk {path}")]
    Kept { path: PathBuf, source: io::Error },
    #[error("the kept disk {path} is in use by another sandbox")]
    KeptInUse { path: PathBuf },
    #[error("cannot make a scratch disk in {dir}")]
    Scratch { dir: PathBuf, source: io::Error },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_configuration_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let good = VmConfig::new("/k".into(), dir.path().to_owned());
        good.check().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        type Case = (fn(&mut VmConfig), &'static str);
        let cases: &[Case] = &[
            (|c| c.memory_mib = 1, "memory of 1 MiB"),
            (|c| c.vcpus = 0, "0 virtual processors"),
            (|c| c.memory_max_mib = Some(64), "grow to 64 MiB"),
            (|c| c.vcpus_max = Some(0), "0 virtual processors at most"),
            (|c| c.vcpus = 65, "65 virtual processors"),
            (|c| c.cmdline = vec!["a b".into()], "command line: `a b`"),
            (|c| c.cmdline = vec![String::new()], "command line: ``"),
            (|c| c.cmdline = vec!["a".repeat(2000)], "exceed"),
            (|c| c.scratch = Scratch::Disk { size_bytes: 5, dir: "/tmp".into() }, "scratch disk of 5"),
            (|c| c.runtime_dir = "/nonexistent".into(), "No such file"),
            (|c| c.runtime_dir = c.runtime_dir.join("open"), "0700"),
            (|c| c.runtime_dir = "/".repeat(200).into(), "longer than"),
        ];
        for (break_it, text) in cases {
            let mut config = good.clone();
            break_it(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_scratch_disk_is_sparse_and_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = Scratch::create(1 << 30, dir.path()).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.nlink()), (1 << 30, 0));
        assert!(meta.blocks() < 16);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(matches!(Scratch::create(1 << 20, &dir.path().join("no")), Err(ConfigError::Scratch { .. })));
    }
}
