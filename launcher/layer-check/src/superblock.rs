use super::window::{ReadAt, is_zero, u16_at, u32_at, u64_at};
use super::{BLOCK_BYTES, CheckError};

const SUPERBLOCK_AT: u64 = 1024;
/// The block of superblock and device slot, and the first one after it.
const FIRST_FREE_BLOCK: u32 = 3;
const SLOT_AT: usize = 128;

/// Where things are in an index.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub root_nid: u32,
    pub index_blocks: u32,
    pub tar_blocks: u32,
    pub shared_xattr_block: u32,
    pub metadata_block: u32,
}

impl Geometry {
    pub fn read<R: ReadAt + ?Sized>(index: &R, index_bytes: u64, tar_bytes: u64) -> Result<Self, CheckError> {
        let wrong = CheckError::Superblock;
        let index_blocks =
            u32::try_from(index_bytes / BLOCK_BYTES).map_err(|_| wrong("the index is too long"))?;
        let tar_blocks = tar_bytes.div_ceil(BLOCK_BYTES);
        let tar_blocks = u32::try_from(tar_blocks).map_err(|_| wrong("the tar is too long"))?;
        if !index_bytes.is_multiple_of(BLOCK_BYTES) || index_blocks <= FIRST_FREE_BLOCK {
            return Err(wrong("the index does not consist of blocks"));
        }
        // The highest block number means "hole".
        if index_blocks.checked_add(tar_blocks).is_none_or(|blocks| blocks == u32::MAX) {
            return Err(wrong("index and tar are too long together"));
        }
        let mut block = [0; BLOCK_BYTES as usize];
        index
            .read_exact_at(&mut block, SUPERBLOCK_AT)
            .map_err(|source| CheckError::Read { at: SUPERBLOCK_AT, source })?;
        let geometry = Geometry {
            root_nid: u16_at(&block, 14).into(),
            index_blocks,
            tar_blocks,
            shared_xattr_block: u32_at(&block, 44),
            metadata_block: u32_at(&block, 40),
        };
        geometry.check(&block).map_or(Ok(geometry), |problem| Err(wrong(problem)))
    }

    pub fn index_bytes(&self) -> u64 {
        u64::from(self.index_blocks) * BLOCK_BYTES
    }

    pub fn metadata_start(&self) -> u64 {
        u64::from(self.metadata_block) * BLOCK_BYTES
    }

    pub fn shared_xattr_start(&self) -> u64 {
        u64::from(self.shared_xattr_block) * BLOCK_BYTES
    }

    /// Whether `count` blocks from `block` on are copied data of sparse files: between superblock and attributes.
    pub fn is_copied_data(&self, block: u32, count: u64) -> bool {
        block >= FIRST_FREE_BLOCK && u64::from(block) + count <= u64::from(self.shared_xattr_block)
    }

    /// Every field is either fixed or must agree with the two files.
    fn check(&self, block: &[u8]) -> Option<&'static str> {
        let checks: [(bool, &'static str); 14] = [
            (u32_at(block, 0) == 0xe0f5_e1e2, "not an EROFS image"),
            (u32_at(block, 4) == checksum(block), "the checksum does not match"),
            // Checksum and time.
            (u32_at(block, 8) == 0x3, "unexpected compatible features"),
            // Chunked files and a device table.
            (u32_at(block, 80) == 0xc, "unexpected incompatible features"),
            (block.get(12) == Some(&9), "blocks that do not have 512 bytes"),
            (block.get(13) == Some(&0), "a longer superblock"),
            (u32_at(block, 36) == self.index_blocks, "another length than the index has"),
            (
                FIRST_FREE_BLOCK <= self.shared_xattr_block
                    && self.shared_xattr_block <= self.metadata_block
                    && self.metadata_block < self.index_blocks,
                "metadata outside of the image",
            ),
            (u16_at(block, 84) == 0, "compression"),
            (u16_at(block, 86) == 1 && u16_at(block, 88) == 9, "other devices than the tar"),
            // Directory blocks, name prefixes, packed inode, filter, and what is not assigned yet.
            (is_zero(block, 90..SLOT_AT), "features that are not used here"),
            (u32_at(block, SLOT_AT + 64) == self.tar_blocks, "another length than the tar has"),
            (u32_at(block, SLOT_AT + 68) == self.index_blocks, "the tar does not follow the index"),
            (is_zero(block, SLOT_AT + 72..BLOCK_BYTES as usize), "data behind the device slot"),
        ];
        let build_time = (u64_at(block, 24) == 0 && u32_at(block, 32) == 0, "a time of building");
        checks.into_iter().chain([build_time]).find(|(holds, _)| !holds).map(|(_, problem)| problem)
    }
}

/// CRC-32C of the block, its own field taken as zero; begun with all ones and not inverted.
fn checksum(block: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let bytes = block.iter().enumerate().map(|(at, byte)| if (4..8).contains(&at) { 0 } else { *byte });
    bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (REVERSED_POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    })
}
