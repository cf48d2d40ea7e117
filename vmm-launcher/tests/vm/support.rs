//! A guest for tests: an EROFS image of busybox and socat, and a shell on vsock port 1.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use nacre::vmm::{Accel, Vm, VmConfig, Vmm, find_program};

/// How long a guest may take to boot: TCG on a loaded machine.
pub const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// The vsock port on which a shell reads a script.
const SHELL_PORT: u32 = 1;

/// Ends the output of a script.
const END: u8 = 1;

const APPLETS: &[&str] = &[
    "awk",
    "blkdiscard",
    "cat",
    "chmod",
    "chown",
    "cut",
    "date",
    "dd",
    "df",
    "echo",
    "find",
    "grep",
    "head",
    "ip",
    "kill",
    "killall",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mount",
    "mv",
    "nc",
    "nslookup",
    "ping",
    "printf",
    "ps",
    "readlink",
    "reboot",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "setuidgid",
    "sh",
    "sleep",
    "sort",
    "stat",
    "su",
    "sync",
    "tail",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "truncate",
    "udhcpc",
    "umount",
    "wc",
    "wget",
    "which",
];

const INIT: &str = "#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
ip link set lo up
echo guest-ready
socat -t 600 VSOCK-LISTEN:1,fork,backlog=64 EXEC:/bin/sh
";

/// A VM that runs the test guest, and the directory that it lives in.
pub struct Guest {
    pub vm: Vm,
    _dir: tempfile::TempDir,
}

/// The kernel and the programs of the guest, or why the test cannot run.
pub struct Parts {
    pub kernel: PathBuf,
    pub image: PathBuf,
}

/// Finds what a VM test needs; `None` after printing the reason.
pub fn parts() -> Option<&'static Parts> {
    static PARTS: OnceLock<Result<Parts, String>> = OnceLock::new();
    match PARTS.get_or_init(find_parts) {
        Ok(parts) => Some(parts),
        Err(reason) => {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{reason}");
            eprintln!("skipped: {reason}");
            None
        }
    }
}

/// Says why a test is skipped; fails instead where nothing may be missing.
pub fn skip(reason: &str) {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{reason}");
    eprintln!("skipped: {reason}");
}

/// The program of our own VMM, if that is what guests are to run on: in the lab, see `builtin.rs`.
pub fn own_vmm() -> Option<PathBuf> {
    std::env::var_os("NACRE_TEST_OWN_VMM").map(PathBuf::from)
}

/// A directory as `Vm` wants it, and a configuration that boots the test guest.
pub fn config(parts: &Parts) -> (tempfile::TempDir, VmConfig) {
    let dir = tempfile::Builder::new()
        .prefix("nacre-vm")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .unwrap();
    let mut config = VmConfig::new(parts.kernel.clone(), dir.path().to_owned());
    config.image = Some(parts.image.clone());
    config.cmdline = vec!["init=/init".into()];
    match own_vmm() {
        Some(program) => (config.vmm, config.program) = (Vmm::Kvm, program),
        None => config.accel = Accel::Tcg,
    }
    config.console_log = Some(dir.path().join("console.log"));
    (dir, config)
}

impl Guest {
    /// Boots, after `change`, and waits for the shell.
    pub fn boot(parts: &Parts, change: impl FnOnce(&mut VmConfig)) -> Guest {
        let (dir, mut config) = config(parts);
        change(&mut config);
        let vm = Vm::start(config).unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)));
        match vm.connect("waiting for the test shell", SHELL_PORT, BOOT_LIMIT) {
            Ok(_) => Guest { vm, _dir: dir },
            Err(failure) => panic!("{failure}"),
        }
    }

    /// Runs a shell script in the guest and returns what it prints.
    pub fn run(&self, script: &str) -> String {
        let mut stream = self.vm.connect("reaching the test shell", SHELL_PORT, BOOT_LIMIT).unwrap();
        // socat may go on for its time limit after the shell has ended, so the end is said.
        stream.write_all(format!("{script}\nprintf '\\001'\n").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut out = Vec::new();
        let mut buffer = [0; 65_536];
        while out.last() != Some(&END) {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                n => out.extend_from_slice(&buffer[..n]),
            }
        }
        if out.pop_if(|last| *last == END).is_none() {
            // Asked for by some tests, and told for the others.
            let (end, console) = (self.vm.wait_for(Duration::from_secs(1)), self.vm.console().last_lines(5));
            println!("the script has no end: {end:?}, {console:?}, {:?}", self.vm.device_notes());
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// The process that serves the devices, below /proc: our own VMM does it itself, QEMU's are served here.
    pub fn serving(&self) -> PathBuf {
        let pid = if own_vmm().is_some() { self.vm.vmm_pid().to_string() } else { "self".to_owned() };
        Path::new("/proc").join(pid)
    }

    /// Runs a script that goes on in the background, and waits until `port` answers.
    pub fn serve(&self, script: &str, port: u32) {
        self.run(&format!("({script}) >/dev/null 2>&1 </dev/null &"));
        drop(self.vm.connect("waiting for a server in the guest", port, BOOT_LIMIT).unwrap());
    }
}

fn find_parts() -> Result<Parts, String> {
    find_program("qemu-system-x86_64").ok_or("qemu-system-x86_64 is not installed (qemu-system-x86)")?;
    let busybox = find_program("busybox").ok_or("busybox is not installed (busybox-static)")?;
    let socat = find_program("socat").ok_or("socat is not installed (socat)")?;
    let kernel = find_kernel().ok_or("no kernel: set NACRE_TEST_KERNEL, or run cargo xtask kernel")?;
    let mkfs = find_program("mkfs.erofs").ok_or("mkfs.erofs is not installed (erofs-utils)")?;
    let image = make_image(&mkfs, &busybox, &socat).map_err(|e| format!("no guest image: {e}"))?;
    Ok(Parts { kernel, image })
}

fn find_kernel() -> Option<PathBuf> {
    let named = std::env::var_os("NACRE_TEST_KERNEL").map(PathBuf::from);
    let cache = std::env::var_os("NACRE_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("XDG_CACHE_HOME")?).join("nacre")));
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/nacre")));
    named.or_else(|| Some(cache?.join("current/vmlinux"))).filter(|path| path.is_file())
}

/// Writes the image once per run, into the build directory.
fn make_image(mkfs: &Path, busybox: &Path, socat: &Path) -> std::io::Result<PathBuf> {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let tree = tempfile::tempdir_in(temporary)?;
    for dir in ["bin", "dev", "etc", "mnt", "proc", "sys", "tmp"] {
        std::fs::create_dir_all(tree.path().join(dir))?;
    }
    let users = [("root", 0), ("nobody", 65534), ("tests", 1001)];
    let passwd: String = users.iter().map(|(name, id)| format!("{name}:x:{id}:{id}::/:/bin/sh\n")).collect();
    let group: String = users.iter().map(|(name, id)| format!("{name}:x:{id}:\n")).collect();
    std::fs::write(tree.path().join("etc/passwd"), passwd)?;
    std::fs::write(tree.path().join("etc/group"), group)?;
    std::fs::write(tree.path().join("init"), INIT)?;
    std::fs::set_permissions(tree.path().join("init"), Permissions::from_mode(0o755))?;
    std::fs::copy(busybox, tree.path().join("bin/busybox"))?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", tree.path().join("bin").join(applet))?;
    }
    std::fs::copy(socat, tree.path().join("bin/socat"))?;
    for library in libraries(socat)? {
        let to = tree.path().join(library.strip_prefix("/").unwrap_or(&library));
        std::fs::create_dir_all(to.parent().unwrap_or(tree.path()))?;
        std::fs::copy(&library, to)?;
    }
    let path = temporary.join(format!("guest-{}.erofs", std::process::id()));
    let out = Command::new(mkfs).arg(&path).arg(tree.path()).output()?;
    if !out.status.success() {
        return Err(std::io::Error::other(String::from_utf8_lossy(&out.stderr).into_owned()));
    }
    Ok(path)
}

/// The shared objects that the dynamic linker would load.
fn libraries(program: &Path) -> std::io::Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let words = text.lines().flat_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}
