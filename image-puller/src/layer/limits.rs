use nacre_protocols::fetcher_indexer::LAYERS_AT_ONCE;
use nacre_protocols::names::INDEXER_MEMORY;

/// Bytes of the tree of one layer: [`ENTRIES_MAX`] with short names, some 300,000 with long ones.
pub const METADATA_BYTES_MAX: u64 = 48 << 20;
/// Entries of one layer.
pub const ENTRIES_MAX: u32 = 500_000;
/// What `zstd` makes at its levels up to 19 asks for 8 MiB.
pub const ZSTD_WINDOW_BYTES_MAX: u64 = 32 << 20;
/// Everything else of the process: its text, stacks, buffers of each layer, and page cache that is being written.
const REST_BYTES: u64 = 64 << 20;
const _: () = assert!(
    LAYERS_AT_ONCE as u64 * (METADATA_BYTES_MAX + ZSTD_WINDOW_BYTES_MAX) + REST_BYTES <= INDEXER_MEMORY,
    "layers within their limits must not reach the memory limit of their process: that kills all of them"
);

/// Bounds on one layer. Everything an archive can make large is counted against one of these, and the error that
/// refuses it names the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed tar.
    pub tar_bytes: u64,
    /// Uncompressed bytes for each compressed byte, looked at once [`Limits::ratio_floor_bytes`] are through.
    pub ratio: u64,
    /// Uncompressed bytes below which the ratio does not matter.
    pub ratio_floor_bytes: u64,
    /// Bytes of window a zstd frame may ask for.
    pub zstd_window_bytes: u64,
    /// Entries of the tar, duplicates and missing parents included.
    pub entries: u32,
    /// Bytes held in memory for the tree: names, targets, attributes and the fixed cost of each entry.
    pub metadata_bytes: u64,
    /// Bytes of a path, as `PATH_MAX` counts them but without the NUL.
    pub path_bytes: usize,
    /// Bytes of one component of a path (`NAME_MAX`).
    pub component_bytes: usize,
    /// Bytes of a symbolic link's target, without the NUL.
    pub link_bytes: usize,
    /// Directories between the root and an entry, after symbolic links were followed.
    pub depth: u16,
    /// Path components walked because a symbolic link pointed there, in the whole layer.
    pub symlink_steps: u64,
    /// Bytes of one pax header or one GNU long name.
    pub pax_header_bytes: u64,
    /// Extension headers in a row before an entry must come.
    pub extension_headers: u32,
    /// Extended attributes of one entry.
    pub xattrs: usize,
    /// Bytes of one attribute's value.
    pub xattr_value_bytes: usize,
    /// Bytes of all attributes of one entry, names included.
    pub xattr_entry_bytes: usize,
    /// Segments of all sparse files together.
    pub sparse_segments: u32,
    /// Bytes copied into the index because a sparse file's segments are not aligned to blocks.
    pub realigned_bytes: u64,
    /// Bytes of the finished index.
    pub index_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            tar_bytes: 64 << 30,
            ratio: 400,
            ratio_floor_bytes: 256 << 20,
            zstd_window_bytes: ZSTD_WINDOW_BYTES_MAX,
            entries: ENTRIES_MAX,
            metadata_bytes: METADATA_BYTES_MAX,
            path_bytes: 4095,
            component_bytes: 255,
            link_bytes: 4095,
            depth: 1024,
            symlink_steps: 10_000_000,
            pax_header_bytes: 1 << 20,
            extension_headers: 8,
            xattrs: 255,
            xattr_value_bytes: 65_535,
            xattr_entry_bytes: 128 << 10,
            sparse_segments: 1 << 20,
            realigned_bytes: 1 << 30,
            index_bytes: 4 << 30,
        }
    }
}
