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

/// The fragments, in the order in which they are applied. No two may speak about the same option.
pub const FRAGMENTS: &[Fragment] = &[
    Fragment { name: "boot.config", text: include_str!("../fragments/boot.config") },
    Fragment { name: "virtio.config", text: include_str!("../fragments/virtio.config") },
    Fragment { name: "filesystems.config", text: include_str!("../fragments/filesystems.config") },
    Fragment { name: "net.config", text: include_str!("../fragments/net.config") },
    Fragment { name: "containers.config", text: include_str!("../fragments/containers.config") },
    Fragment { name: "security.config", text: include_str!("../fragments/security.config") },
];

/// For figures beside those of other VMMs, which were taken with a lean kernel and an initrd: the same kernel, but for that it
/// does not patch itself for the faults of its processor (28,000 places, a third of its boot), and knows initrds. Not for
/// guests.
pub fn fragments_for_figures() -> Vec<Fragment> {
    const DIFFERENCE: Fragment = Fragment {
        name: "figures.config",
        text: "# What the others had.\nCONFIG_BLK_DEV_INITRD=y\n# CONFIG_CPU_MITIGATIONS is not set\n",
    };
    let without = |fragment: &Fragment| {
        let other = |line: &&str| !line.contains("MITIGATION") && !line.contains("CONFIG_BLK_DEV_INITRD");
        let lines = fragment.text.lines().filter(other);
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        Fragment { name: fragment.name, text: text.leak() }
    };
    FRAGMENTS.iter().map(without).chain([DIFFERENCE]).collect()
}
