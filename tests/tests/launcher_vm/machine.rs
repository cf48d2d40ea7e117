//! A VM that has this machine's programs: `/usr` and the build directory are shared read-only, `/etc` has what they read of it,
//! everything else is memory.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nacre::devices::fs::{Access, Share};
use nacre::vmm::{Accel, Vm, VmConfig};
use nacre_tests::artefacts;

/// How long the guest may take to boot: under the translator, on a loaded machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const MEMORY_MIB: u32 = 2048;
/// The vsock port on which a shell reads a script.
const SHELL_PORT: u32 = 1;
/// Ends the output of a script.
const END: u8 = 1;

const INIT: &str = r#"#!/busybox sh
b=/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t cgroup2 -o nsdelegate none /sys/fs/cgroup
$b mount -t devtmpfs dev /dev
$b mkdir -p /dev/pts /dev/shm /dev/mqueue
$b mount -t devpts -o newinstance,ptmxmode=0666 pts /dev/pts
$b mount -t mqueue mqueue /dev/mqueue
for place in /dev/shm /tmp /run /var /root; do $b mount -t tmpfs -o mode=1777 tmp $place; done
$b mkdir -p /var/tmp /var/lib /run/lock
$b mount -t virtiofs -o ro kataShared /mnt
$b mount --bind /mnt/vol0 /usr
$b mount --bind /mnt/vol1 @TARGET@
$b mount --bind /mnt/vol2 /given
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CI=true
ip link set lo up
echo 0 > /sys/fs/cgroup/cgroup.procs
socat -t 3600 VSOCK-LISTEN:1,fork,backlog=16 EXEC:/bin/bash
"#;

pub struct Machine {
    vm: Vm,
    _folder: tempfile::TempDir,
}

impl Machine {
    pub fn boot() -> Self {
        Self::with(&tempfile::tempdir().expect("no temporary directory"))
    }

    /// With a directory of this machine at `/given`, read-only.
    pub fn with(work: &tempfile::TempDir) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("nt-launcher")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .expect("no temporary directory");
        let image = make_image(folder.path());
        let run = folder.path().join("run");
        fs::create_dir(&run)
            .and_then(|()| fs::set_permissions(&run, fs::Permissions::from_mode(0o700)))
            .unwrap();
        let kernel = artefacts::find().expect("artefacts").kernel;
        let mut config = VmConfig::new(kernel, run);
        config.image = Some(image);
        config.cmdline = vec!["init=/init".into()];
        config.accel = Accel::Tcg;
        config.memory_mib = MEMORY_MIB;
        config.console_log = Some(folder.path().join("console.log"));
        let share = |name: &str, host: &Path| Share {
            name: name.into(),
            host: host.to_owned(),
            access: Access::ReadOnly,
        };
        config.shares =
            vec![share("vol0", Path::new("/usr")), share("vol1", &target()), share("vol2", work.path())];
        let vm = Vm::start(config)
            .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        if let Err(failure) = vm.connect("waiting for the test shell", SHELL_PORT, BOOT_LIMIT) {
            let console = fs::read_to_string(folder.path().join("console.log")).unwrap_or_default();
            panic!("{failure}\n{console}");
        }
        Self { vm, _folder: folder }
    }

    /// Runs a script of bash as root, and gives what it prints, which is shown as it comes.
    pub fn run(&self, script: &str) -> String {
        let mut stream = self.vm.connect("reaching the test shell", SHELL_PORT, BOOT_LIMIT).unwrap();
        stream.write_all(format!("{script}\nprintf '\\001'\n").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let (mut out, mut buffer) = (Vec::new(), [0; 65_536]);
        while out.last() != Some(&END) {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                length => {
                    print!("{}", String::from_utf8_lossy(&buffer[..length]));
                    out.extend_from_slice(&buffer[..length]);
                }
            }
        }
        out.pop_if(|last| *last == END);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// Where cargo puts what it compiles; tests have the paths of their programs compiled in.
fn target() -> PathBuf {
    let own = std::env::current_exe().expect("no path");
    own.ancestors().nth(3).expect("a test lies in target/PROFILE/deps").to_owned()
}

/// A test program of `launcher/cli`, compiled if it is not there.
pub fn test_program(name: &str) -> PathBuf {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(artefacts::workspace())
        .args([
            "test",
            "--quiet",
            "--locked",
            "--no-run",
            "--message-format=json",
            "--package",
            "nacre-launcher-cli",
        ])
        .args(["--test", name])
        .env("CARGO_TARGET_DIR", target())
        .output()
        .expect("cannot start cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found =
        text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find_map(|it| {
            let is_it = it["target"]["name"] == name && it["profile"]["test"] == true;
            is_it.then(|| it["executable"].as_str().map(PathBuf::from))?
        });
    found.unwrap_or_else(|| panic!("cargo names no program {name}:\n{text}"))
}

/// The launcher itself, beside the test programs.
pub fn launcher() -> PathBuf {
    test_program("conformance");
    target().join("debug/nacre-launcher")
}

/// Directories, a busybox for the first moment, and `/etc`.
fn make_image(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    let target = target();
    let places = [
        "proc",
        "sys",
        "dev",
        "tmp",
        "run",
        "var",
        "root",
        "mnt",
        "usr",
        "given",
        "etc/containers",
        "etc/cni/net.d",
    ];
    for place in
        places.iter().map(|place| tree.join(place)).chain([tree.join(target.strip_prefix("/").unwrap())])
    {
        fs::create_dir_all(place).unwrap();
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), tree.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("busybox")).unwrap();
    fs::write(tree.join("init"), INIT.replace("@TARGET@", &target.display().to_string())).unwrap();
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"),
        ("group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
        ("hosts", "127.0.0.1 localhost\n"),
        ("hostname", "vm\n"),
        ("resolv.conf", ""),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
        ("containers/policy.json", r#"{"default": [{"type": "insecureAcceptAnything"}]}"#),
        (
            "containers/storage.conf",
            "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n",
        ),
    ] {
        fs::write(tree.join("etc").join(name), text).unwrap();
    }
    let image = folder.join("machine.erofs");
    let output = Command::new("mkfs.erofs").arg(&image).arg(&tree).output().expect("cannot start mkfs.erofs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image
}
