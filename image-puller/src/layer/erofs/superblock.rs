use std::fmt::Write;

/// Byte of the index where the superblock begins: `EROFS_SUPER_OFFSET`.
pub const SUPERBLOCK_AT: u64 = 1024;
/// The first byte after superblock and device slot, at the end of their block.
pub const FIRST_FREE_BYTE: u64 = 1536;

const MAGIC: u32 = 0xe0f5_e1e2;
const BLOCK_BITS: u8 = 9;

const COMPAT_CHECKSUM: u32 = 0x1;
const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

/// The device slot follows the superblock; slots are counted in their own size from the image's beginning.
const DEVICE_SLOT: u16 = 9;
const DEVICE_SLOT_BYTES: usize = 128;

/// The parts of the superblock that differ from one index to the next.
pub struct Superblock {
    pub root_nid: u32,
    pub inodes: u64,
    pub index_blocks: u32,
    pub tar_blocks: u32,
    pub metadata_block: u32,
    pub shared_xattr_block: u32,
    /// Of the tar: its first half is the image's UUID, and all of it the device's tag.
    pub diff_id: [u8; 32],
}

impl Superblock {
    /// One block: `erofs_super_block`, one `erofs_deviceslot`, and zeros.
    pub fn to_bytes(&self) -> [u8; 512] {
        let mut block = Fields { bytes: [0; 512] };
        block.put(0, &MAGIC.to_le_bytes());
        block.put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        block.put(12, &[BLOCK_BITS]);
        // The root comes first, so its number is small.
        block.put(14, &(self.root_nid as u16).to_le_bytes());
        block.put(16, &self.inodes.to_le_bytes());
        block.put(36, &self.index_blocks.to_le_bytes());
        block.put(40, &self.metadata_block.to_le_bytes());
        block.put(44, &self.shared_xattr_block.to_le_bytes());
        block.put(48, self.diff_id.get(..16).unwrap_or_default());
        block.put(80, &(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE).to_le_bytes());
        block.put(86, &1u16.to_le_bytes());
        block.put(88, &DEVICE_SLOT.to_le_bytes());

        let slot = usize::from(DEVICE_SLOT) * DEVICE_SLOT_BYTES - SUPERBLOCK_AT as usize;
        block.put(slot, hex(&self.diff_id).as_bytes());
        block.put(slot + 64, &self.tar_blocks.to_le_bytes());
        // Where the tar's blocks continue the index's.
        block.put(slot + 68, &self.index_blocks.to_le_bytes());

        let checksum = crc32c(&block.bytes);
        block.put(4, &checksum.to_le_bytes());
        block.bytes
    }
}

struct Fields {
    bytes: [u8; 512],
}

impl Fields {
    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// CRC-32C as EROFS wants it: begun with all ones and not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (REVERSED_POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        // RFC 3720, appendix B.4: 32 bytes of zeros. The RFC inverts the result.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
