//! The ways in which our own VMM enters a kernel, but for the one that every sandbox goes (tests/kvm.rs). In the lab.

use nacre_tests::{artefacts, lab, require};

const GUEST: &str =
    "busybox cat /proc/cmdline; busybox grep -c ^processor /proc/cpuinfo; busybox reboot -f\n";

/// A kernel that does not say that it is Linux, so that only its PVH note tells how to enter it.
fn without_its_name(kernel: &[u8]) -> Vec<u8> {
    const LINUX: &[u8] = b"Linux\0";
    let mut kernel = kernel.to_vec();
    let notes: Vec<usize> = (12..kernel.len())
        .filter(|at| kernel[*at..].starts_with(LINUX) && kernel[at - 12..at - 8] == [6, 0, 0, 0])
        .collect();
    assert!(!notes.is_empty(), "the kernel has no notes by Linux");
    notes.iter().for_each(|at| kernel[*at] = b'X');
    kernel
}

/// A bzImage (Documentation/arch/x86/boot.rst) that is no kernel: at its 64-bit entry it writes its command line and its
/// initrd, as the zero page tells of them, to the serial port and resets the machine.
fn teller() -> Vec<u8> {
    const ENTRY: [u8; 54] = [
        0x8b, 0x9e, 0x28, 0x02, 0, 0, // mov ebx, [rsi + cmd_line_ptr]
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0x8a, 0x03, 0x84, 0xc0, 0x74, 0x06, // next: mov al, [rbx]; test al, al; jz initrd
        0xee, 0x48, 0xff, 0xc3, 0xeb, 0xf4, // out dx, al; inc rbx; jmp next
        0x8b, 0x9e, 0x18, 0x02, 0, 0, // initrd: mov ebx, [rsi + ramdisk_image]
        0x8b, 0x8e, 0x1c, 0x02, 0, 0, // mov ecx, [rsi + ramdisk_size]
        0x85, 0xc9, 0x74, 0x0a, // next: test ecx, ecx; jz end
        0x8a, 0x03, 0xee, 0x48, 0xff, 0xc3, 0xff, 0xc9, 0xeb,
        0xf2, // mov al, [rbx]; out dx, al; ...; jmp next
        0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xf4, // end: mov al, 0xfe; out 0x64, al; hlt
    ];
    let mut file = vec![0; 1024 + 0x200];
    file.extend(ENTRY);
    let mut set = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x1f1, &[1]); // setup_sects
    set(0x1fe, &[0x55, 0xaa]); // boot_flag
    set(0x202, b"HdrS");
    set(0x206, &[0x0f, 0x02]); // version
    set(0x211, &[1]); // loadflags: LOADED_HIGH
    set(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
    set(0x22c, &0x7ff_ffff_u32.to_le_bytes()); // initrd_addr_max: below 128 MiB
    set(0x236, &[1]); // xloadflags: XLF_KERNEL_64
    file
}

#[test]
fn a_pvh_kernel_and_a_bzimage_with_an_initrd_boot() {
    require!(vm, tool "mkfs.erofs");
    let folder = tempfile::tempdir().expect("no temporary directory");
    let image = lab::busybox_guest(folder.path(), GUEST);
    let found = artefacts::find().unwrap_or_else(|error| panic!("{error}"));
    let kernel = std::fs::read(found.kernel).expect("cannot read the kernel");
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("cannot write a file");
        path.to_string_lossy().into_owned()
    };
    let mut old = teller();
    old[0x236] = 0;
    let said = lab::run(
        r#"
        cd /tmp
        boot() {
            echo "{\"version\": 1, \"memory_mib\": 256, \"memory_pages\": \"latency\", $2}" > $1.json
            $NACRE_BIN vmm --config $1.json; code=$?; echo; echo "$1: code $code"
        }
        line="console=ttyS0 quiet reboot=k panic=-1"
        boot pvh "\"kernel\": \"$NACRE_PVH\", \"processors\": 2,
            \"command_line\": \"$line root=/dev/vda rootfstype=erofs ro init=/init which=pvh\",
            \"disks\": [{\"file\": {\"path\": \"$NACRE_GUEST\"}, \"read_only\": true}]"
        for kernel in $NACRE_TELLER $NACRE_OLD; do
            boot bzimage "\"kernel\": \"$kernel\", \"processors\": 1, \"initrd\": \"$NACRE_INITRD\",
                \"command_line\": \"$line which=bzimage\""
        done
        "#,
        &[
            ("NACRE_GUEST", &image.to_string_lossy()),
            ("NACRE_PVH", &file("pvh", &without_its_name(&kernel))),
            ("NACRE_TELLER", &file("teller", &teller())),
            ("NACRE_OLD", &file("old", &old)),
            ("NACRE_INITRD", &file("initrd", b" and its initrd")),
        ],
    );
    for line in [
        "which=pvh",
        "pvh: code 0\n",
        "quiet reboot=k panic=-1 which=bzimage",
        " and its initrd\nbzimage: code 0\n",
        "the bzImage has no 64-bit entry",
    ] {
        assert!(said.contains(line), "no {line:?} in\n{said}");
    }
    assert!(said.lines().any(|line| line.trim() == "2"), "two processors in\n{said}");
}
