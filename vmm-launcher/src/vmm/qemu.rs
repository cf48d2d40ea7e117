//! QEMU's command line. A pure function over what is already open: QEMU itself opens only the kernel by name.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

/// The program, looked up in `PATH`.
pub const QEMU: &str = "qemu-system-x86_64";
/// The machine type: virtio-mmio only, no PCI. With ACPI off QEMU names the devices on the kernel command line.
pub const MICROVM: &str = "microvm";
/// Queue entries of virtio-fs: one request of 256 pages fits a chain.
const FS_QUEUE_SIZE: u32 = 1024;
/// Bytes of QEMU's cache of translated code: a guest of ours has little code, and the default is 1 GiB.
const TCG_CACHE_MIB: u32 = 128;

/// What the command line is made from; descriptors are those that QEMU inherits, under their numbers.
#[derive(Clone, Debug)]
pub struct QemuSetup<'a> {
    pub kvm: bool,
    pub memory_mib: u32,
    pub vcpus: u8,
    pub kernel: &'a Path,
    pub cmdline: &'a str,
    pub root: Option<RawFd>,
    pub scratch: Option<RawFd>,
    /// It outlives the VM: what the guest flushes reaches the medium.
    pub scratch_is_kept: bool,
    pub vsock: RawFd,
    pub fs: Option<FsSetup<'a>>,
    pub net: Option<NetSetup<'a>>,
}

/// A virtio-fs device served by vhost-user on `socket`.
#[derive(Clone, Copy, Debug)]
pub struct FsSetup<'a> {
    pub socket: RawFd,
    pub tag: &'a str,
}

/// A network device.
#[derive(Clone, Debug)]
pub struct NetSetup<'a> {
    /// QEMU's `-netdev`, without its id.
    pub netdev: &'a str,
    pub mac: &'a str,
    pub mtu: u16,
}

/// Finds `name` in `PATH`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH")?;
    // sbin is not in an ordinary user's PATH everywhere.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|candidate| {
        candidate.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

impl QemuSetup<'_> {
    /// The arguments after the program's name.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments::default();
        self.machine(&mut args);
        self.boot(&mut args);
        self.disks(&mut args);
        args.pair("-object", "rng-builtin,id=rng");
        args.pair("-device", "virtio-rng-device,rng=rng");
        args.pair("-chardev", format!("socket,id=vsock,fd={}", self.vsock));
        args.pair("-device", "vhost-user-vsock-device,chardev=vsock");
        if let Some(fs) = &self.fs {
            args.pair("-chardev", format!("socket,id=fs,fd={}", fs.socket));
            let device = format!("vhost-user-fs-device,chardev=fs,tag={},queue-size={FS_QUEUE_SIZE}", fs.tag);
            args.pair("-device", device);
        }
        if let Some(net) = &self.net {
            args.pair("-netdev", format!("{},id=net", net.netdev));
            let device = format!("virtio-net-device,netdev=net,mac={},host_mtu={}", net.mac, net.mtu);
            args.pair("-device", device);
        }
        args.0
    }

    fn machine(&self, args: &mut Arguments) {
        args.pair("-name", "nacre");
        args.pair(
            "-machine",
            format!("{MICROVM},acpi=off,pic=on,pit=on,rtc=on,isa-serial=on,usb=off,memory-backend=ram"),
        );
        // QEMU's virtio-mmio speaks the version before virtio 1.0 unless told.
        args.pair("-global", "virtio-mmio.force-legacy=false");
        if self.kvm {
            args.pair("-accel", "kvm").pair("-cpu", "host");
        } else {
            args.pair("-accel", format!("tcg,tb-size={TCG_CACHE_MIB}")).pair("-cpu", "max");
        }
        args.pair("-smp", self.vcpus.to_string()).pair("-m", format!("{}M", self.memory_mib));
        // vhost-user backends map guest memory, so it is a shared memfd.
        args.pair("-object", format!("memory-backend-memfd,id=ram,size={}M,share=on", self.memory_mib));
        // The guest ends by resetting; QEMU then ends too.
        args.word("-no-reboot").word("-nodefaults").word("-no-user-config").pair("-display", "none");
        // No new programs, no set-id, no scheduling games, no obsolete calls for a QEMU that the guest took over.
        args.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        // The console is QEMU's standard output; nothing is ever typed.
        args.pair("-chardev", "stdio,id=console,signal=off,mux=off").pair("-serial", "chardev:console");
    }

    fn boot(&self, args: &mut Arguments) {
        args.pair("-kernel", self.kernel);
        args.pair("-append", self.cmdline);
    }

    fn disks(&self, args: &mut Arguments) {
        if let Some(fd) = self.root {
            args.pair("-add-fd", format!("fd={fd},set=1"));
            args.pair(
                "-blockdev",
                "driver=raw,node-name=root,read-only=on,\
                 file.driver=file,file.filename=/dev/fdset/1,file.read-only=on,file.locking=off",
            );
            args.pair("-device", "virtio-blk-device,drive=root");
        }
        if let Some(fd) = self.scratch {
            args.pair("-add-fd", format!("fd={fd},set=2"));
            // Where nothing on it outlives the VM, flushes need not reach the medium; freed blocks go back to the host.
            let no_flush = if self.scratch_is_kept { "off" } else { "on" };
            args.pair(
                "-blockdev",
                format!(
                    "driver=raw,node-name=scratch,discard=unmap,cache.no-flush={no_flush},\
                     file.driver=file,file.filename=/dev/fdset/2,file.discard=unmap,file.locking=off,\
                     file.cache.no-flush={no_flush}"
                ),
            );
            args.pair("-device", "virtio-blk-device,drive=scratch,discard=on");
        }
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn word(&mut self, word: impl Into<OsString>) -> &mut Arguments {
        self.0.push(word.into());
        self
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) -> &mut Arguments {
        self.word(option).word(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(setup: &QemuSetup<'_>) -> String {
        setup.arguments().iter().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_root_disk_is_read_only_and_qemu_is_sandboxed() {
        let mut setup = QemuSetup {
            kvm: false,
            memory_mib: 128,
            vcpus: 2,
            kernel: Path::new("/k,ernel"),
            cmdline: "a b",
            root: Some(10),
            scratch: Some(11),
            scratch_is_kept: false,
            vsock: 12,
            fs: Some(FsSetup { socket: 13, tag: "kataShared" }),
            net: Some(NetSetup {
                netdev: "stream,addr.type=fd,addr.str=14",
                mac: "02:00:00:00:00:01",
                mtu: 1500,
            }),
        };
        let text = line(&setup);
        for part in [
            "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "node-name=root,read-only=on",
            "file.read-only=on",
            "-no-reboot",
            "-accel tcg",
            "size=128M,share=on",
            "tag=kataShared",
            "-netdev stream,addr.type=fd,addr.str=14,id=net",
            "-kernel /k,ernel -append a b",
        ] {
            assert!(text.contains(part), "`{part}` in {text}");
        }
        // The root disk is the first virtio-blk device, so that it is /dev/vda.
        assert!(text.find("drive=root").unwrap() < text.find("drive=scratch").unwrap());
        assert!(text.contains("cache.no-flush=on") && !text.contains("cache.no-flush=off"), "{text}");
        setup.scratch_is_kept = true;
        let text = line(&setup);
        assert!(text.contains("cache.no-flush=off") && !text.contains("cache.no-flush=on"), "{text}");
        setup.kvm = true;
        setup.net = None;
        let text = line(&setup);
        assert!(text.contains("-accel kvm -cpu host") && !text.contains("netdev"), "{text}");
    }

    #[test]
    fn programs_are_found_in_path() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-at-all").is_none());
    }
}
