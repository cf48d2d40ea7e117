//! A machine as shims for Kata have QEMU make it (q35, devices on PCI, disks that are plugged in), with the guest's own image and
//! the kernel that has buses, and its monitor (QEMU docs/interop/qmp-spec).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nacre::devices::fs::{Access, Share, TAG, serve_fs};
use nacre::devices::notes::Notes;
use nacre::devices::vhost_user::Served;
use nacre::devices::vsock::VsockConfig;
use nacre::devices::vsock::backend::serve_vsock;
use nacre::vmm::{Console, Process, QEMU, find_program};
use nacre_protocols::names::AGENT_VSOCK_PORT;
use nacre_tests::agentctl::{Client, trace};
use nacre_tests::{artefacts, root};
use serde_json::{Value, json};

const MEMORY_MIB: u32 = 256;
/// How long QEMU may take to offer its monitor, and to answer there.
const MONITOR: Duration = Duration::from_secs(30);

pub struct Machine {
    // QEMU goes first.
    _qemu: Process,
    _devices: Vec<Served>,
    console: Console,
    monitor: Mutex<BufReader<UnixStream>>,
    vsock: PathBuf,
    pub folder: tempfile::TempDir,
}

impl Machine {
    /// As most have it: firmware tells of what is plugged in.
    pub fn boot(kernel: &Path, containers: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        Self::boot_with(&[], kernel, containers, prepare)
    }

    /// Room for one more piece of memory; a slot for a disk behind a bridge of PCI (7) and one behind a root port of PCI Express
    /// (4), both empty; a controller of SCSI (3); a disk (6), `volume` in the folder. `prepare` makes the files of disks.
    pub fn boot_with(more: &[&str], kernel: &Path, containers: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let image = artefacts::find().expect("no guest").image;
        let folder = tempfile::Builder::new().prefix("nacre-q35").tempdir().expect("no folder");
        prepare(folder.path());
        let shares = containers.iter().map(|name| {
            let host = folder.path().join("shared").join(name);
            root::of_busybox(&host.join("rootfs"));
            Share { name: (*name).to_owned(), host, access: Access::ReadWrite }
        });
        let (vsock, notes) = (folder.path().join("vsock"), Notes::default());
        let settings = VsockConfig { guest_cid: 3, path: vsock.clone() };
        let mut devices = vec![
            serve_vsock(settings, folder.path(), notes.clone()).expect("no vsock"),
            serve_fs(shares.collect(), folder.path(), notes).expect("no share"),
        ];
        let ends: Vec<OwnedFd> = devices.iter_mut().filter_map(Served::take_qemu_end).collect();
        let mut command = Command::new(find_program(QEMU).expect("no QEMU"));
        let [vsock_end, fs_end] = [ends[0].as_raw_fd(), ends[1].as_raw_fd()];
        let disk = |name: &str, file: &Path| {
            format!("driver=raw,node-name={name},file.driver=file,file.filename={}", file.display())
        };
        let monitor = folder.path().join("monitor");
        for (option, value) in [
            ("-machine", "q35,usb=off,memory-backend=ram".to_owned()),
            ("-accel", "tcg,tb-size=128".to_owned()),
            ("-cpu", "max".to_owned()),
            ("-smp", "2".to_owned()),
            ("-m", format!("{MEMORY_MIB}M,slots=1,maxmem=1G")),
            ("-object", format!("memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on")),
            ("-display", "none".to_owned()),
            ("-chardev", "stdio,id=console,signal=off,mux=off".to_owned()),
            ("-serial", "chardev:console".to_owned()),
            ("-qmp", format!("unix:{},server=on,wait=off", monitor.display())),
            ("-kernel", kernel.display().to_string()),
            (
                "-append",
                "console=ttyS0 quiet panic=-1 root=/dev/vda rootfstype=erofs ro reboot=t no_timer_check \
                 nacre.allow=swap"
                    .to_owned(),
            ),
            (
                "-blockdev",
                format!("{},read-only=on,file.read-only=on,file.locking=off", disk("image", &image)),
            ),
            ("-device", "virtio-blk-pci,drive=image,addr=02.0".to_owned()),
            ("-device", "virtio-scsi-pci,id=scsi,addr=03.0".to_owned()),
            ("-device", "pcie-root-port,id=express,addr=04.0,chassis=1".to_owned()),
            ("-blockdev", disk("volume", &folder.path().join("volume"))),
            ("-device", "virtio-blk-pci,drive=volume,addr=06.0".to_owned()),
            // As Kata's Go shim has it: firmware keeps no room behind a bridge without a controller of slots unless it is told.
            (
                "-device",
                "pci-bridge,id=bridge,addr=07.0,chassis_nr=2,shpc=off,io-reserve=4k,mem-reserve=1m,pref64-reserve=1m"
                    .to_owned(),
            ),
            ("-object", "rng-builtin,id=rng".to_owned()),
            ("-device", "virtio-rng-pci,rng=rng".to_owned()),
            ("-chardev", format!("socket,id=vsock,fd={vsock_end}")),
            ("-device", "vhost-user-vsock-pci,chardev=vsock".to_owned()),
            ("-chardev", format!("socket,id=fs,fd={fs_end}")),
            ("-device", format!("vhost-user-fs-pci,chardev=fs,tag={TAG}")),
        ] {
            command.arg(option).arg(value);
        }
        command
            .args(more)
            .args(["-no-reboot", "-nodefaults", "-no-user-config"])
            .env_clear()
            .stdin(Stdio::null());
        let (output, to_output) = io::pipe().expect("no pipe");
        let errors = File::create(folder.path().join("errors")).expect("no file");
        command.stdout(to_output).stderr(errors);
        let (console, _) = Console::collect("console", output, None).expect("no thread");
        let qemu = Process::spawn(command, ends).expect("QEMU does not start");
        let monitor = Mutex::new(connect(&monitor, folder.path()));
        let machine = Self { _qemu: qemu, _devices: devices, console, monitor, vsock, folder };
        machine.ask("qmp_capabilities", json!({}));
        machine
    }

    /// A command of the monitor's, and what it gives.
    #[track_caller]
    pub fn ask(&self, command: &str, arguments: Value) -> Value {
        let mut monitor = self.monitor.lock().expect("another thread failed");
        let line = json!({"execute": command, "arguments": arguments});
        monitor.get_mut().write_all(format!("{line}\n").as_bytes()).expect("the monitor is gone");
        loop {
            let mut answer = String::new();
            if let Err(error) = monitor.read_line(&mut answer) {
                panic!("the monitor does not answer: {error}\n{}", errors(self.folder.path()));
            }
            let answer: Value = serde_json::from_str(&answer).expect("no JSON");
            // Greetings and events come in between.
            if let Some(given) = answer.get("return") {
                return given.clone();
            }
            assert!(answer.get("error").is_none(), "{line}: {answer}");
        }
    }

    /// A file as a disk that is plugged in, with the properties of its device.
    #[track_caller]
    pub fn plug(&self, name: &str, mut device: Value) {
        let file = self.folder.path().join(name);
        self.ask(
            "blockdev-add",
            json!({"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": file}}),
        );
        device["drive"] = name.into();
        device["id"] = format!("device-{name}").into();
        self.ask("device_add", device);
    }

    /// More memory.
    #[track_caller]
    pub fn plug_memory(&self, bytes: u64) {
        let backend = json!({"qom-type": "memory-backend-memfd", "id": "more", "size": bytes, "share": true});
        self.ask("object-add", backend);
        self.ask("device_add", json!({"driver": "pc-dimm", "id": "dimm", "memdev": "more"}));
    }

    /// Calls of the agent, in the language of traces.
    #[track_caller]
    pub fn play(&self, text: &str) {
        let client = Client::connect_when_booted(&self.vsock, AGENT_VSOCK_PORT).expect("no agent");
        if let Err(error) = trace::play(&client, text) {
            let (console, errors) = (self.console.last_lines(40).join("\n"), errors(self.folder.path()));
            panic!("{error}\nthe console:\n{console}\n{errors}");
        }
    }
}

fn connect(monitor: &Path, folder: &Path) -> BufReader<UnixStream> {
    let until = Instant::now() + MONITOR;
    loop {
        match UnixStream::connect(monitor) {
            Ok(stream) => {
                stream.set_read_timeout(Some(MONITOR)).expect("no timeout");
                return BufReader::new(stream);
            }
            Err(error) if Instant::now() > until => {
                panic!("no monitor: {error}\n{}", errors(folder));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// What QEMU said.
fn errors(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("errors")).unwrap_or_default()
}
