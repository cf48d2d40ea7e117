//! The guest's memory: what is there from the start, and what comes later.

use std::io;
use std::sync::{Arc, PoisonError};

use kvm_ioctls::VmFd;
use nacre_sys::guest_memory;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::config::Pages;
use super::{KvmError, layout};
use crate::devices::growth::{BLOCK_BYTES, Growth, STEP_BYTES};
use crate::devices::vhost_user::Memory;

/// Maps the memory that is there from the start.
pub fn map(vm: &VmFd, mib: u32, pages: Pages) -> Result<GuestMemoryMmap, KvmError> {
    let failed = |error| KvmError::Memory(mib, error);
    let mut regions = Vec::new();
    for (slot, (start, size)) in (0..).zip(layout::memory(u64::from(mib) << 20)) {
        let size = usize::try_from(size).map_err(|e| failed(io::Error::other(e)))?;
        let mapping = guest_memory::map(size, pages == Pages::Latency).map_err(failed)?;
        let region = region(mapping, start).map_err(failed)?;
        guest_memory::give(vm, slot, &region).map_err(|e| KvmError::Kvm("KVM_SET_USER_MEMORY_REGION", e))?;
        regions.push(region);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| failed(io::Error::other(e)))
}

/// A region behind the guest's memory that becomes memory piece by piece, as the host wants it: the guest cannot touch more
/// than [`STEP_BYTES`] beyond that.
pub struct Grower {
    vm: Arc<VmFd>,
    memory: Memory,
    growth: Growth,
    interrupt: EventFd,
    region: MmapRegion,
    start: u64,
    /// How much of it is memory by now.
    given: usize,
    slot: u32,
}

/// What a [`Grower`] begins with.
pub struct Room {
    pub growth: Growth,
    region: MmapRegion,
    start: u64,
}

impl Room {
    /// For memory that may grow from `mib` to `most_mib`. Nothing of it takes memory yet.
    pub fn map(mib: u32, most_mib: u32, pages: Pages) -> Result<Self, KvmError> {
        let failed = |error| KvmError::Memory(most_mib, error);
        let start = layout::growth(u64::from(mib) << 20);
        let bytes = (u64::from(most_mib.saturating_sub(mib)) << 20).next_multiple_of(STEP_BYTES);
        let size = usize::try_from(bytes).map_err(|e| failed(io::Error::other(e)))?;
        let region = guest_memory::map(size, pages == Pages::Latency).map_err(failed)?;
        Ok(Self { growth: Growth::new(start, bytes), region, start })
    }

    pub fn into_grower(self, vm: Arc<VmFd>, memory: Memory, interrupt: EventFd) -> Grower {
        let Self { growth, region, start } = self;
        let slot = u32::try_from(memory.memory().num_regions()).unwrap_or(u32::MAX);
        Grower { vm, memory, growth, interrupt, region, start, given: 0, slot }
    }
}

impl Grower {
    /// Says to the guest how much of the region it should have.
    ///
    /// # Errors
    /// More than the region has, or KVM refuses; then all is as it was.
    pub fn want(&mut self, bytes: u64) -> io::Result<()> {
        let wanted = bytes.next_multiple_of(BLOCK_BYTES);
        let size = usize::try_from(bytes.next_multiple_of(STEP_BYTES)).map_err(io::Error::other)?;
        if size > self.region.size() {
            return Err(io::Error::other(format!("{bytes} bytes more, the limit is {}", self.region.size())));
        }
        if size > self.given {
            let part = guest_memory::part(&self.region, self.given..size)?;
            let part = region(part, self.start + self.given as u64)?;
            guest_memory::give(&self.vm, self.slot, &part)?;
            self.slot += 1;
            self.given = size;
            // Devices first: the guest may use it as soon as it hears of it.
            let all = self.memory.memory().insert_region(Arc::new(part)).map_err(io::Error::other)?;
            self.memory.lock().unwrap_or_else(PoisonError::into_inner).replace(all);
        }
        self.growth.want(wanted, self.given as u64);
        self.interrupt.write(1)
    }

    /// Bytes of the region that the guest has.
    pub fn taken_bytes(&self) -> u64 {
        self.growth.taken_bytes()
    }
}

fn region(mapping: MmapRegion, start: u64) -> io::Result<GuestRegionMmap> {
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| io::Error::other("it ends beyond all addresses"))
}
