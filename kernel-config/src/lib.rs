//! The guest kernel: what is switched on and why (`fragments/`), how it is built, and the proof that what was
//! asked for is what came out.
//!
//! A kernel is `tinyconfig` plus the fragments, built from Debian's `linux-source-6.12`. The configuration that
//! Kconfig resolves is compared with every line of the fragments, because an option whose dependency is missing
//! falls off without a word.

mod build;
pub mod elf;
mod fragment;

pub use build::{Build, Error, Kernel, SOURCE_PACKAGE, SOURCE_TARBALL, build, toolchain};
pub use fragment::{Fragment, Mismatch, ParseError, Setting, Value, check, parse, settings};

/// Largest stripped kernel, in bytes. The first thing a host reads for every sandbox.
pub const SIZE_BUDGET_BYTES: u64 = 14 << 20;

/// Changes whenever the build itself does, so that a kernel made by an older builder is not taken from the cache.
pub const BUILDER_VERSION: u32 = 1;

/// What building needs besides the source, as names of Debian packages.
pub const PACKAGES: &[&str] = &[
    SOURCE_PACKAGE,
    "bc",
    "binutils",
    "bison",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "make",
    "xz-utils",
];

/// Largest kernel with the buses of other VMMs' machines, in bytes.
pub const SIZE_BUDGET_WITH_BUSES_BYTES: u64 = 16 << 20;

/// The fragments, in the order in which they are applied. No two may speak about the same option.
pub const FRAGMENTS: &[Fragment] = &[
    Fragment { name: "boot.config", text: include_str!("../fragments/boot.config") },
    Fragment { name: "virtio.config", text: include_str!("../fragments/virtio.config") },
    Fragment { name: "filesystems.config", text: include_str!("../fragments/filesystems.config") },
    Fragment { name: "net.config", text: include_str!("../fragments/net.config") },
    Fragment { name: "containers.config", text: include_str!("../fragments/containers.config") },
    Fragment { name: "security.config", text: include_str!("../fragments/security.config") },
];

/// What machines of other VMMs have besides: PCI, ACPI, SCSI, and swap.
pub const BUSES: Fragment =
    Fragment { name: "buses.config", text: include_str!("../fragments/buses.config") };

/// Of the kernel for guests whose machine QEMU (q35) or Cloud Hypervisor makes, as shims for Kata have them do.
pub fn fragments_with_buses() -> Vec<Fragment> {
    changed_by(BUSES)
}

/// For figures beside those of other VMMs, which were taken with a lean kernel and an initrd: the same kernel, but for that it
/// does not patch itself for the faults of its processor (28,000 places, a third of its boot), and knows initrds. Not for
/// guests.
pub fn fragments_for_figures() -> Vec<Fragment> {
    const DIFFERENCE: Fragment = Fragment {
        name: "figures.config",
        text: "# What the others had.\nCONFIG_BLK_DEV_INITRD=y\n# CONFIG_CPU_MITIGATIONS is not set\n",
    };
    let mut fragments = changed_by(DIFFERENCE);
    // They depend on that one.
    for fragment in fragments.iter_mut().filter(|fragment| fragment.name != DIFFERENCE.name) {
        *fragment = fragment.without(|option| option.contains("MITIGATION"));
    }
    fragments
}

/// The fragments without what `difference` says otherwise, and that.
fn changed_by(difference: Fragment) -> Vec<Fragment> {
    let told = |option: &str| difference.text.lines().any(|line| fragment::option(line) == Some(option));
    FRAGMENTS.iter().map(|fragment| fragment.without(told)).chain([difference]).collect()
}
