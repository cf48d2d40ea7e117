//! What this host can do, and the fix for what it cannot. [`examine`] looks; the command line prints.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::devices::notes::Notes;
use crate::net::{NetConfig, NetError, Network, UserNet};
use crate::vmm::{KvmVerdict, MICROVM, QEMU, find_program, probe_kvm};

/// Free bytes below which images of ordinary size do not fit.
const WANTED_SCRATCH_BYTES: u64 = 4 << 30;
/// Memory below which a VM of ordinary size makes the host swap.
const WANTED_MEMORY_BYTES: u64 = 1 << 30;
/// How long a helper program may take to say what it is.
const PROGRAM_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of its answer.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// What to look at besides the host itself.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The kernel that would be booted, if one was found.
    pub kernel: Option<PathBuf>,
    /// The guest image, if one was found.
    pub image: Option<PathBuf>,
    /// Where scratch disks would be made.
    pub scratch_dir: PathBuf,
}

/// One thing that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub what: &'static str,
    pub state: State,
    /// What was seen.
    pub seen: String,
    /// What to do about it; empty when nothing has to be done.
    pub fix: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Good,
    /// Works, less well than it could.
    Weak,
    /// Sandboxes cannot run, or not with what they need.
    Bad,
}

/// Looks at everything; takes a few seconds at most.
#[must_use]
pub fn examine(subject: &Subject) -> Vec<Finding> {
    vec![
        kvm(),
        qemu(),
        microvm(),
        network(),
        landlock(),
        kernel(subject.kernel.as_deref()),
        image(subject.image.as_deref()),
        scratch(&subject.scratch_dir),
        memory(),
    ]
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Good => "good",
            State::Weak => "weak",
            State::Bad => "bad",
        })
    }
}

fn finding(what: &'static str, state: State, seen: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { what, state, seen: seen.into(), fix: fix.into() }
}

fn kvm() -> Finding {
    let verdict = probe_kvm();
    let seen = verdict.to_string();
    let (state, fix) = match verdict {
        KvmVerdict::Usable { .. } => (State::Good, String::new()),
        KvmVerdict::Missing { fix, .. } => (State::Weak, fix),
        KvmVerdict::Broken { .. } | KvmVerdict::Slow { .. } => (
            State::Weak,
            "use a host with hardware virtualization; until then VMs run in QEMU's translator".into(),
        ),
    };
    finding("kvm", state, seen, fix)
}

fn qemu() -> Finding {
    const FIX: &str = "sudo apt install qemu-system-x86";
    let Some(path) = find_program(QEMU) else {
        return finding("qemu", State::Bad, format!("{QEMU} is not in PATH"), FIX);
    };
    match ask(&path, &["--version"]) {
        Some(text) => {
            let line = text.lines().next().unwrap_or_default().to_owned();
            // Version 7.2 brought the stream netdev.
            let old = version(&line).is_some_and(|found| found < (7, 2));
            let (state, fix) =
                if old { (State::Bad, "QEMU 7.2 or newer is needed") } else { (State::Good, "") };
            finding("qemu", state, line, fix)
        }
        None => finding("qemu", State::Bad, format!("{} does not run", path.display()), FIX),
    }
}

fn microvm() -> Finding {
    const FIX: &str = "install Debian's qemu-system-x86, whose build has them";
    let Some(path) = find_program(QEMU) else {
        return finding("machine", State::Bad, "no QEMU to ask", "");
    };
    let machines = ask(&path, &["-machine", "help"]).unwrap_or_default();
    let devices = ask(&path, &["-machine", "none", "-device", "help"]).unwrap_or_default();
    let wanted =
        ["vhost-user-fs-device", "vhost-user-vsock-device", "virtio-blk-device", "virtio-net-device"];
    let mut missing: Vec<&str> =
        wanted.into_iter().filter(|name| !devices.contains(&format!("\"{name}\""))).collect();
    if !machines.lines().any(|line| line.split_whitespace().next() == Some(MICROVM)) {
        missing.push(MICROVM);
    }
    if missing.is_empty() {
        finding("machine", State::Good, "microvm with vhost-user devices", "")
    } else {
        finding("machine", State::Bad, format!("QEMU lacks {}", missing.join(", ")), FIX)
    }
}

/// Not only installed: passt needs user namespaces, which some hosts forbid.
fn network() -> Finding {
    match Network::start(&NetConfig::User(UserNet::default()), &Notes::default()) {
        Ok(_) => finding("network", State::Good, "passt answers", ""),
        Err(error @ NetError::NoPasst) => {
            finding("network", State::Bad, error.to_string(), "sudo apt install passt")
        }
        Err(error) => finding(
            "network",
            State::Bad,
            error.to_string(),
            "passt needs user namespaces: sudo sysctl user.max_user_namespaces=10000; with AppArmor see dmesg",
        ),
    }
}

fn landlock() -> Finding {
    use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
    let supported = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create);
    match supported {
        Ok(_) => finding("landlock", State::Good, "shared directories are confined", ""),
        Err(_) => finding(
            "landlock",
            State::Weak,
            "the kernel does not offer landlock: the virtio-fs threads are not confined",
            "boot with landlock in the lsm= list",
        ),
    }
}

fn kernel(path: Option<&Path>) -> Finding {
    const FIX: &str = "cargo xtask guest";
    let Some(path) = path else {
        return finding("kernel", State::Bad, "no guest kernel was found", FIX);
    };
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(elf::HEAD_BYTES).read_to_end(&mut head));
    let notes = |file: &File, at, len| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let file = File::open(path);
    let verdict = match (read, file) {
        (Ok(_), Ok(file)) => elf::has_pvh_entry(&head, |at, len| notes(&file, at, len)),
        (Err(error), _) | (_, Err(error)) => {
            return finding("kernel", State::Bad, format!("{}: {error}", path.display()), FIX);
        }
    };
    if verdict {
        finding("kernel", State::Good, path.display().to_string(), "")
    } else {
        finding(
            "kernel",
            State::Bad,
            format!("{} is no x86-64 ELF file with a PVH entry", path.display()),
            FIX,
        )
    }
}

fn image(path: Option<&Path>) -> Finding {
    const FIX: &str = "cargo xtask guest";
    /// Of EROFS (Linux, fs/erofs/erofs_fs.h), little-endian at byte 1024.
    const MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
    let Some(path) = path else {
        return finding("image", State::Bad, "no guest image was found", FIX);
    };
    let mut magic = [0; 4];
    match File::open(path).and_then(|file| file.read_exact_at(&mut magic, 1024)) {
        Ok(()) if magic == MAGIC => finding("image", State::Good, path.display().to_string(), ""),
        Ok(()) => finding("image", State::Bad, format!("{} is no EROFS image", path.display()), FIX),
        Err(error) => finding("image", State::Bad, format!("{}: {error}", path.display()), FIX),
    }
}

fn scratch(dir: &Path) -> Finding {
    const FIX: &str = "choose another directory for scratch disks, or use --scratch tmpfs";
    match rustix::fs::statvfs(dir) {
        Err(error) => finding("scratch", State::Bad, format!("{}: {error}", dir.display()), FIX),
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let seen = format!("{} MiB free in {}", free >> 20, dir.display());
            let enough = free >= WANTED_SCRATCH_BYTES;
            finding(
                "scratch",
                if enough { State::Good } else { State::Weak },
                seen,
                if enough { "" } else { FIX },
            )
        }
    }
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = available_bytes(&text) else {
        return finding("memory", State::Weak, "/proc/meminfo does not say what is available", "");
    };
    let seen = format!("{} MiB available", available >> 20);
    if available >= WANTED_MEMORY_BYTES {
        finding("memory", State::Good, seen, "")
    } else {
        finding("memory", State::Weak, seen, "close something, or give sandboxes less memory (-m)")
    }
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The first `x.y` of a line.
fn version(line: &str) -> Option<(u32, u32)> {
    line.split_whitespace().find_map(|word| {
        let mut parts = word.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

/// Runs a program and returns what it prints; `None` when it fails or takes too long.
fn ask(program: &Path, args: &[&str]) -> Option<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let out = child.stdout.take()?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.take(MAX_ANSWER_BYTES).read_to_string(&mut text).map(|_| text)
    });
    let until = Instant::now() + PROGRAM_LIMIT;
    while !reader.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let finished = reader.is_finished();
    let _ = child.kill();
    let _ = child.wait();
    if finished { reader.join().ok()?.ok() } else { None }
}

/// As much of ELF as tells whether QEMU can start a kernel.
mod elf {
    /// Bytes read from the start: the header and its program headers.
    pub const HEAD_BYTES: u64 = 64 * 1024;
    const PROGRAM_HEADER_BYTES: usize = 56;
    const PT_NOTE: u32 = 4;
    const MAX_NOTE_BYTES: u64 = 64 * 1024;
    /// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen, public/elfnote.h): where a PVH loader enters in 32-bit mode.
    const PHYS32_ENTRY: u32 = 18;

    /// Whether the file is x86-64 ELF and has the note. `read` gives bytes at an offset.
    pub fn has_pvh_entry(head: &[u8], read: impl Fn(u64, usize) -> Option<Vec<u8>>) -> bool {
        let is_elf64_le = head.get(..6) == Some(b"\x7fELF\x02\x01");
        if !is_elf64_le || half(head, 18) != Some(62) {
            return false;
        }
        let (Some(start), Some(count)) = (long(head, 32), half(head, 56)) else { return false };
        (0..usize::from(count)).any(|index| {
            let at = usize::try_from(start).ok().and_then(|s| s.checked_add(index * PROGRAM_HEADER_BYTES));
            let Some(header) = at.and_then(|at| head.get(at..at.checked_add(PROGRAM_HEADER_BYTES)?)) else {
                return false;
            };
            match (word(header, 0), long(header, 8), long(header, 32)) {
                (Some(PT_NOTE), Some(offset), Some(size)) if size <= MAX_NOTE_BYTES => {
                    read(offset, size as usize).is_some_and(|notes| holds_entry(&notes))
                }
                _ => false,
            }
        })
    }

    fn holds_entry(mut notes: &[u8]) -> bool {
        // Each note takes 12 bytes at least, so this ends.
        while let (Some(name_len), Some(data_len), Some(kind)) =
            (word(notes, 0), word(notes, 4), word(notes, 8))
        {
            let name = notes.get(12..).and_then(|rest| rest.get(..name_len as usize));
            if kind == PHYS32_ENTRY && name == Some(b"Xen\0") {
                return true;
            }
            let padded = |len: u32| (len as usize).next_multiple_of(4);
            let Some(rest) = notes.get(12 + padded(name_len) + padded(data_len)..) else { return false };
            notes = rest;
        }
        false
    }

    fn half(bytes: &[u8], at: usize) -> Option<u16> {
        bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
    }

    fn word(bytes: &[u8], at: usize) -> Option<u32> {
        bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
    }

    fn long(bytes: &[u8], at: usize) -> Option<u64> {
        bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn kernel(note_kind: u32) -> Vec<u8> {
            let mut file = vec![0; 64 + PROGRAM_HEADER_BYTES];
            file[..6].copy_from_slice(b"\x7fELF\x02\x01");
            file[18] = 62;
            file[32] = 64;
            file[56] = 1;
            file[64] = 4;
            file[72] = 120;
            file[96] = 40;
            file.extend([4, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0]);
            file.extend(*b"GNU\0abcd");
            file.extend([4, 0, 0, 0, 4, 0, 0, 0]);
            file.extend(note_kind.to_le_bytes());
            file.extend(*b"Xen\0....");
            file
        }

        #[test]
        fn the_pvh_note_is_found_among_others() {
            let check = |file: &[u8]| {
                has_pvh_entry(file, |at, len| file.get(at as usize..at as usize + len).map(Vec::from))
            };
            assert!(check(&kernel(18)));
            assert!(!check(&kernel(17)));
            let mut other = kernel(18);
            other[18] = 3;
            assert!(!check(&other));
            for len in 0..kernel(18).len() {
                assert!(!check(&kernel(18)[..len]), "{len}");
            }
            let mut huge = kernel(18);
            huge[120..124].copy_from_slice(&u32::MAX.to_le_bytes());
            assert!(!check(&huge));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_examined_whatever_it_lacks() {
        let subject =
            Subject { kernel: None, image: Some("/etc/passwd".into()), scratch_dir: "/nonexistent".into() };
        let start = Instant::now();
        let findings = examine(&subject);
        println!("{:?}", start.elapsed());
        let state = |what| findings.iter().find(|f| f.what == what).map(|f| (f.state, !f.fix.is_empty()));
        assert_eq!(state("kernel"), Some((State::Bad, true)));
        assert_eq!(state("image"), Some((State::Bad, true)));
        assert_eq!(state("scratch"), Some((State::Bad, true)));
        for finding in &findings {
            println!("{:10} {:5} {} {}", finding.what, finding.state, finding.seen, finding.fix);
            assert!(!finding.seen.is_empty());
        }
    }

    #[test]
    fn numbers_are_read_from_what_programs_print() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)"), Some((7, 2)));
        assert_eq!(version("no version"), None);
        assert_eq!(available_bytes("MemTotal: 5 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
    }
}
