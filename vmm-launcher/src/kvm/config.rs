//! What `nacre vmm --config FILE.json` reads: a machine, for the run command and for any other launcher.

use std::fs::File;
use std::io::Read;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::KvmError;
use super::devices::TAG_BYTES;
use crate::devices::fs::TAG;

/// Bytes of such a file.
const CONFIG_MAX: u64 = 64 << 10;
/// Of this form; another one is refused.
pub const VERSION: u32 = 1;

/// A machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of this form: 1.
    pub version: u32,
    /// An ELF file or a bzImage.
    pub kernel: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The words of the devices are added to it.
    #[serde(default)]
    pub command_line: String,
    /// 1 to 64.
    pub processors: u8,
    pub memory_mib: u32,
    /// Up to so much memory may come later (`resize` at the control socket), by virtio-mem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u32>,
    /// Up to so many processors may come later; they are in the MP table from the start, and are not let run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processors_max: Option<u8>,
    #[serde(default)]
    pub memory_pages: Pages,
    /// In the order of their names in the guest: vda, vdb, …
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockDevice>,
    /// Directories of the host, seen in the guest below one virtio-fs mount for each tag.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfig>,
    /// A balloon by which the guest gives memory back that it does not use any more.
    #[serde(default)]
    pub balloon: bool,
    /// A virtio console besides the serial port: hvc0. What is written to either comes out at the standard output.
    #[serde(default)]
    pub virtio_console: bool,
    /// Where the VMM makes its control socket (`nacre_protocols::host_vmm`); it must not be there yet. Without it there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
}

/// What memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pages {
    /// Huge ones where they fit: faster, and takes more memory.
    #[default]
    Latency,
    /// Small ones: as much memory as the guest uses.
    Density,
}

/// A file by its path, or an inherited descriptor by its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Path(PathBuf),
    Fd(RawFd),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    pub file: Source,
    #[serde(default)]
    pub read_only: bool,
    /// Whether what the guest flushes must reach the medium.
    #[serde(default)]
    pub durable: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockDevice {
    /// 3 or more.
    pub guest_cid: u32,
    /// The hybrid socket on the host's side, made by the VMM.
    pub socket: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// What the guest mounts; 1 to 36 bytes.
    #[serde(default = "usual_tag")]
    pub tag: String,
    /// The directory below it.
    pub name: String,
    pub path: PathBuf,
    #[serde(default)]
    pub read_only: bool,
}

fn usual_tag() -> String {
    TAG.to_owned()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// An inherited stream socket that carries frames, each behind its length (four bytes, big-endian), as passt does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<RawFd>,
    /// Or a tap: by its name, whose owner this user must be, or inherited (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<Tap>,
    pub mac: [u8; 6],
    pub mtu: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tap {
    Name(String),
    Fd(RawFd),
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path}: longer than {CONFIG_MAX} bytes")]
    TooLong { path: PathBuf },
    #[error("the configuration {path}: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("the configuration {path}: version {version}, this program knows {VERSION}")]
    Version { path: PathBuf, version: u32 },
    #[error("the configuration {path}: {what}")]
    Value { path: PathBuf, what: String },
}

impl Config {
    /// # Errors
    /// The file is not there, or no configuration that can be.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        let mut text = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(CONFIG_MAX + 1).read_to_end(&mut text));
        if let Err(source) = read {
            return Err(ConfigError::Read { path, source });
        }
        if text.len() as u64 > CONFIG_MAX {
            return Err(ConfigError::TooLong { path });
        }
        let config: Self = match serde_json::from_slice(&text) {
            Ok(config) => config,
            Err(source) => return Err(ConfigError::Json { path, source }),
        };
        if config.version != VERSION {
            return Err(ConfigError::Version { path, version: config.version });
        }
        match config.check() {
            Ok(()) => Ok(config),
            Err(what) => Err(ConfigError::Value { path, what }),
        }
    }

    fn check(&self) -> Result<(), String> {
        use crate::vmm::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
        if !(1..=MAX_VCPUS).contains(&self.processors) {
            return Err(format!("processors: {} is outside 1 to {MAX_VCPUS}", self.processors));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(format!(
                "memory_mib: {} is outside {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}",
                self.memory_mib
            ));
        }
        let (processors, most) = self.processors();
        if !(processors..=MAX_VCPUS).contains(&most) {
            return Err(format!("processors_max: {most} is outside {processors} to {MAX_VCPUS}"));
        }
        let (memory, most) = self.memory();
        if !(memory..=MAX_MEMORY_MIB).contains(&most) {
            return Err(format!("memory_max_mib: {most} is outside {memory} to {MAX_MEMORY_MIB}"));
        }
        let tag = |share: &&ShareConfig| !(1..=TAG_BYTES).contains(&share.tag.len());
        if let Some(share) = self.shares.iter().find(tag) {
            return Err(format!("shares: the tag {:?} has not 1 to {TAG_BYTES} bytes", share.tag));
        }
        if self.vsock.as_ref().is_some_and(|vsock| vsock.guest_cid < 3) {
            return Err("vsock.guest_cid: below 3".to_owned());
        }
        if self.network.as_ref().is_some_and(|network| network.fd.is_some() == network.tap.is_some()) {
            return Err("network: either fd or tap".to_owned());
        }
        Ok(())
    }

    /// MiB at the start, and at most.
    pub fn memory(&self) -> (u32, u32) {
        (self.memory_mib, self.memory_max_mib.unwrap_or(self.memory_mib))
    }

    /// At the start, and at most.
    pub fn processors(&self) -> (u8, u8) {
        (self.processors, self.processors_max.unwrap_or(self.processors))
    }

    /// The numbers of all descriptors that it names.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let disks = self.disks.iter().filter_map(|disk| match disk.file {
            Source::Fd(fd) => Some(fd),
            Source::Path(_) => None,
        });
        let network = self.network.iter().filter_map(|network| match network.tap {
            Some(Tap::Fd(fd)) => Some(fd),
            Some(Tap::Name(_)) => None,
            None => network.fd,
        });
        disks.chain(network).collect()
    }
}

/// Descriptors that were inherited, by the numbers that the configuration gives them.
pub struct Inherited(Vec<(RawFd, Option<OwnedFd>)>);

impl Inherited {
    /// Takes them over and closes all others but the standard streams; before anything else is opened.
    pub fn take(config: &Config) -> std::io::Result<Self> {
        let numbers = config.descriptors();
        let taken = nacre_sys::exec::take_over(&numbers)?;
        Ok(Self(numbers.into_iter().zip(taken).collect()))
    }

    /// One of them, once.
    pub fn get(&mut self, number: RawFd) -> Result<OwnedFd, KvmError> {
        let found = self.0.iter_mut().find(|(known, fd)| *known == number && fd.is_some());
        found.and_then(|(_, fd)| fd.take()).ok_or(KvmError::Descriptor(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read_or_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            Config::read(file.path())
        };
        let good = r#"{"version": 1, "kernel": "/k", "processors": 2, "memory_mib": 128, "memory_pages": "density",
            "disks": [{"file": {"path": "/image"}, "read_only": true}, {"file": {"fd": 7}}],
            "vsock": {"guest_cid": 3, "socket": "/run/x"}, "network": {"fd": 9, "mac": [2, 0, 0, 0, 0, 1], "mtu": 1500}}"#;
        let config = read(good).unwrap();
        assert_eq!((config.memory_pages, config.descriptors()), (Pages::Density, vec![7, 9]));
        assert_eq!(config.disks[0].file, Source::Path("/image".into()));
        for (from, to, words) in [
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("\"processors\": 2", "\"processors\": 65", "processors: 65"),
            ("\"memory_mib\": 128", "\"memory_mib\": 1", "memory_mib: 1"),
            ("\"memory_mib\": 128", "\"memory_mib\": 128, \"memory_max_mib\": 64", "memory_max_mib: 64"),
            ("\"processors\": 2", "\"processors\": 2, \"processors_max\": 1", "processors_max: 1"),
            (
                "\"memory_mib\"",
                "\"shares\": [{\"tag\": \"\", \"name\": \"n\", \"path\": \"/p\"}], \"memory_mib\"",
                "tag",
            ),
            ("\"guest_cid\": 3", "\"guest_cid\": 2", "guest_cid"),
            ("\"fd\": 9, ", "", "either fd or tap"),
            ("\"fd\": 9", "\"fd\": 9, \"tap\": {\"name\": \"t\"}", "either fd or tap"),
            ("\"kernel\"", "\"kernle\"", "kernle"),
            ("1500}}", "1500}", "EOF"),
        ] {
            let error = read(&good.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(matches!(read(&" ".repeat(70_000)), Err(ConfigError::TooLong { .. })));
        assert!(matches!(Config::read(Path::new("/none")), Err(ConfigError::Read { .. })));
    }
}
