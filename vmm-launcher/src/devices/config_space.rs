//! A device's configuration: what its driver reads, and the host may change while the guest runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clones share the bytes.
#[derive(Clone, Debug, Default)]
pub struct ConfigSpace(Arc<Mutex<Space>>);

#[derive(Debug, Default)]
struct Space {
    bytes: Vec<u8>,
    /// How often they changed: a driver that reads the same number before and after has read one state.
    generation: u32,
    /// The driver has not heard of it yet.
    is_news: bool,
}

impl From<Vec<u8>> for ConfigSpace {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Space { bytes, generation: 0, is_news: false })))
    }
}

impl ConfigSpace {
    /// The bytes from `offset` on; behind the end there are zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let space = self.space();
        let rest = space.bytes.get(offset..).unwrap_or_default();
        data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }

    /// Other bytes. With `news` the driver is to hear of it; who says so interrupts it then.
    pub fn set(&self, bytes: Vec<u8>, news: bool) {
        let mut space = self.space();
        space.generation = space.generation.wrapping_add(1);
        space.is_news |= news;
        space.bytes = bytes;
    }

    pub fn generation(&self) -> u32 {
        self.space().generation
    }

    pub fn is_news(&self) -> bool {
        self.space().is_news
    }

    /// The driver has heard of it.
    pub fn heard(&self) {
        self.space().is_news = false;
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_sees_what_is_there_and_that_it_changed() {
        let space = ConfigSpace::from(vec![1, 2, 3]);
        let mut data = [9; 4];
        for (offset, expected) in [(0, [1, 2, 3, 0]), (2, [3, 0, 0, 0]), (3, [0; 4]), (usize::MAX, [0; 4])] {
            space.read(offset, &mut data);
            assert_eq!(data, expected, "{offset}");
        }
        let device = space.clone();
        device.set(vec![4], false);
        assert_eq!((space.generation(), space.is_news()), (1, false));
        device.set(vec![5], true);
        device.set(vec![6], false);
        assert_eq!((space.generation(), space.is_news()), (3, true));
        space.heard();
        space.read(0, &mut data);
        assert_eq!((data, device.is_news()), ([6, 0, 0, 0], false));
    }
}
