//! The names that more than one edge carries: container ids, users of the guest's own processes, and
//! the few paths that two processes must agree on.

use core::fmt;

/// Longest container or exec id, in bytes (containerd allows 76 characters, a Kata exec id is a UUID).
pub const ID_MAX: usize = 128;

/// User and group ids of the guest's own unprivileged processes. They lie far from what images use, and no
/// plan may name a user of this range.
pub const AGENT_UID: u32 = 0x7ffe_0001;
pub const FETCHER_UID: u32 = 0x7ffe_0002;
pub const INDEXER_UID: u32 = 0x7ffe_0003;
pub const RESERVED_UIDS: core::ops::RangeInclusive<u32> = 0x7ffe_0000..=0x7ffe_ffff;

/// What the puller's processes may have in memory, in bytes: page cache of what they write included, which the kernel
/// can drop. What the indexer keeps of a layer has limits of its own, which fit in here for all layers at once.
pub const FETCHER_MEMORY: u64 = 128 << 20;
pub const INDEXER_MEMORY: u64 = 384 << 20;
/// Most processes and threads of each of the guest's own unprivileged processes.
pub const OWN_PROCESSES: u64 = 64;

/// vsock port of the agent's ttrpc server.
pub const AGENT_VSOCK_PORT: u32 = 1024;

/// Everything the Kata conventions place in the guest lives beneath this directory.
pub const KATA_RUN_DIR: &str = "/run/kata-containers";
/// Where the virtio-fs share `kataShared` is mounted.
pub const SHARED_DIR: &str = "/run/kata-containers/shared/containers";
/// Files made by CreateSandbox: `resolv.conf`, `hosts`, `hostname`.
pub const SANDBOX_DIR: &str = "/run/kata-containers/sandbox";
/// The puller's own `resolv.conf`: a container that may write to the sandbox's cannot lead pulls astray.
pub const RESOLVER_DIR: &str = "/run/kata-containers/resolver";
/// Where the helper container of the fetcher has it: a directory, so that it sees the file replaced.
pub const RESOLVER_MOUNT: &str = "/etc/resolver";
/// Where the layers' EROFS mounts stand: one directory per layer, named by its diff_id in hex.
pub const LAYERS_DIR: &str = "/run/nacre/layers";
/// The scratch disk (or tmpfs): `store/` belongs to the puller, `containers/` holds writable layers.
pub const SCRATCH_DIR: &str = "/run/nacre/scratch";
/// The puller's layer store.
pub const STORE_DIR: &str = "/run/nacre/scratch/store";
/// Beneath it, where a sandbox was booted for some images: a file for each manifest that was taken, of the diff_ids of its layers,
/// lowest first, 32 bytes each.
pub const ROOTS: &str = "roots";
/// Where the helper container of the fetcher has the layer store.
pub const STORE_MOUNT: &str = "/store";
/// Writable upper and work directories of the containers' overlays.
pub const UPPER_DIR: &str = "/run/nacre/scratch/containers";

/// True for an id that may become one path component: 1 to [`ID_MAX`] bytes of `[A-Za-z0-9_.-]`, beginning with a
/// letter or a digit.
pub fn is_valid_id(id: &str) -> bool {
    let bytes = id.as_bytes();
    bytes.len() <= ID_MAX
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// A sha256 digest: 32 bytes, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// Reads 64 lower-case hex digits, with or without `sha256:` in front.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        if hex.len() != 64 {
            return None;
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
        }
        Some(Self(bytes))
    }
}

/// 64 hex digits, without the algorithm.
impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_plain_path_component() {
        for (id, valid) in [
            ("web", true),
            ("0a.b_c-d", true),
            ("", false),
            (".", false),
            ("..", false),
            (".hidden", false),
            ("a/b", false),
            ("a\0b", false),
            ("é", false),
            (&"x".repeat(ID_MAX), true),
            (&"x".repeat(ID_MAX + 1), false),
        ] {
            assert_eq!(is_valid_id(id), valid, "{id:?}");
        }
    }

    #[test]
    fn digests_survive_the_way_to_text_and_back() {
        let digest = Sha256([0xa5; 32]);
        assert_eq!(Sha256::parse(&digest.to_string()), Some(digest));
        assert_eq!(Sha256::parse(&format!("sha256:{digest}")), Some(digest));
        for bad in ["", "sha256:", "sha512:00", &"A5".repeat(32), &"a5".repeat(31), &"g5".repeat(32)] {
            assert_eq!(Sha256::parse(bad), None, "{bad:?}");
        }
    }
}
