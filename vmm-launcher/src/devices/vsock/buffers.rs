//! A descriptor chain as a list of guest memory slices, bounded and independent of how the guest cut it.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory, GuestMemoryMmap, VolatileSlice};

use super::packet::HEADER_BYTES;

/// Descriptors of one chain: a header and 64 KiB in pages need 18; the rest is room for odd drivers.
pub const MAX_DESCRIPTORS: usize = 64;

/// The part of a chain that the device reads, or the part that it writes.
pub struct Buffers<'a> {
    slices: Vec<VolatileSlice<'a>>,
}

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    FromGuest,
    ToGuest,
}

impl<'a> Buffers<'a> {
    /// Collects the slices of `chain` that run in `direction`.
    ///
    /// # Errors
    /// A descriptor of the other direction, one outside guest memory, or too many.
    pub fn collect<M>(
        memory: &'a GuestMemoryMmap,
        chain: DescriptorChain<M>,
        direction: Direction,
    ) -> Result<Buffers<'a>, ChainError>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let mut slices = Vec::with_capacity(2);
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(ChainError::TooManyDescriptors);
            }
            if descriptor.is_write_only() != (direction == Direction::ToGuest) {
                return Err(ChainError::Direction);
            }
            let slice = memory.get_slice(descriptor.addr(), descriptor.len() as usize).map_err(|_| {
                ChainError::OutsideMemory { addr: descriptor.addr().0, len: descriptor.len() }
            })?;
            if !slice.is_empty() {
                slices.push(slice);
            }
        }
        Ok(Buffers { slices })
    }

    /// Bytes in all.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.slices.iter().map(VolatileSlice::len).fold(0, usize::saturating_add)
    }

    /// Splits the header's bytes off the front.
    ///
    /// # Errors
    /// There are fewer.
    pub fn split_header(mut self) -> Result<(Buffers<'a>, Buffers<'a>), ChainError> {
        let mut wanted = HEADER_BYTES;
        let mut header = Vec::with_capacity(1);
        while wanted > 0 {
            let Some(first) = self.slices.first().copied() else {
                return Err(ChainError::ShorterThanHeader);
            };
            let part = wanted.min(first.len());
            let (Ok(front), Ok(back)) = (first.subslice(0, part), first.offset(part)) else {
                return Err(ChainError::ShorterThanHeader);
            };
            header.push(front);
            if back.is_empty() {
                self.slices.remove(0);
            } else if let Some(slot) = self.slices.first_mut() {
                *slot = back;
            }
            wanted -= part;
        }
        Ok((Buffers { slices: header }, self))
    }

    /// Copies the first bytes out; the guest may change its memory meanwhile, so they are read once.
    #[must_use]
    pub fn read_header(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut done = 0;
        for slice in &self.slices {
            let Some(rest) = bytes.get_mut(done..) else { break };
            done += slice.read(rest, 0).unwrap_or(0);
        }
        bytes
    }

    /// Copies a header in.
    pub fn write_header(&self, bytes: &[u8; HEADER_BYTES]) {
        let mut done = 0;
        for slice in &self.slices {
            let Some(rest) = bytes.get(done..) else { break };
            done += slice.write(rest, 0).unwrap_or(0);
        }
    }

    /// The slices, cut to the first `limit` bytes.
    pub fn first(&self, limit: usize) -> impl Iterator<Item = VolatileSlice<'a>> + '_ {
        let mut left = limit;
        self.slices.iter().map_while(move |slice| {
            let part = left.min(slice.len());
            left -= part;
            if part == 0 { None } else { slice.subslice(0, part).ok() }
        })
    }
}

/// Why a chain cannot hold a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("descriptor chain: more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    #[error("descriptor chain: a descriptor of the wrong direction")]
    Direction,
    #[error("descriptor chain: {len} bytes at {addr:#x} are not guest memory")]
    OutsideMemory { addr: u64, len: u32 },
    #[error("descriptor chain: shorter than a header of {HEADER_BYTES} bytes")]
    ShorterThanHeader,
}
