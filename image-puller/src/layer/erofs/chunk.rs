use std::io;

use super::super::output::{Appender, WriteAt};
use super::super::sparse::{self, BLOCK_BITS, ChunkMap, Device};

/// `erofs_inode_chunk_index`: two spare bytes, device (16 bits), block (32 bits).
pub const ENTRY_BYTES: u64 = 8;

/// Says "with a table" in an inode's chunk format; its low bits have the size.
const FORMAT_INDEXES: u32 = 0x20;
const HOLE: [u8; 8] = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];

/// `erofs_inode_chunk_info`.
pub fn format(chunk_bits: u32) -> u32 {
    FORMAT_INDEXES | (chunk_bits - BLOCK_BITS)
}

/// One entry for each chunk of a file of `size` bytes.
pub fn write_table<W: WriteAt>(map: &ChunkMap, size: u64, out: &mut Appender<W>) -> io::Result<()> {
    let mut next = 0;
    for extent in &map.extents {
        write_holes(extent.first_chunk - next, out)?;
        let device: u64 = match extent.device {
            Device::Index => 0,
            Device::Tar => 1,
        };
        for chunk in 0..extent.chunks {
            let block = u64::from(extent.block) + (chunk << (map.chunk_bits - BLOCK_BITS));
            out.append(&(device << 16 | block << 32).to_le_bytes())?;
        }
        next = extent.first_chunk + extent.chunks;
    }
    write_holes(sparse::chunks(size, map.chunk_bits) - next, out)
}

fn write_holes<W: WriteAt>(count: u64, out: &mut Appender<W>) -> io::Result<()> {
    (0..count).try_for_each(|_| out.append(&HOLE))
}
