//! A fixed-size on-disk record whose fields are set by their offset, as the format's documentation lists them.

/// `N` bytes, zero at first. Offsets are checked when the program is compiled.
pub struct Record<const N: usize>([u8; N]);

impl<const N: usize> Record<N> {
    pub fn new() -> Self {
        Self([0; N])
    }

    pub fn set<const AT: usize, const LENGTH: usize>(&mut self, value: [u8; LENGTH]) {
        const { assert!(AT + LENGTH <= N, "the field lies outside of the record") };
        self.0[AT..AT + LENGTH].copy_from_slice(&value);
    }

    pub fn byte<const AT: usize>(&mut self, value: u8) {
        self.set::<AT, 1>([value]);
    }

    /// Little-endian, as all of ext4 but its journal.
    pub fn le16<const AT: usize>(&mut self, value: u16) {
        self.set::<AT, 2>(value.to_le_bytes());
    }

    pub fn le32<const AT: usize>(&mut self, value: u32) {
        self.set::<AT, 4>(value.to_le_bytes());
    }

    /// Big-endian, as jbd2.
    pub fn be32<const AT: usize>(&mut self, value: u32) {
        self.set::<AT, 4>(value.to_be_bytes());
    }

    /// All bytes before `END`.
    pub fn before<const END: usize>(&self) -> &[u8] {
        const { assert!(END <= N, "the end lies outside of the record") };
        &self.0[..END]
    }

    pub fn bytes(&self) -> &[u8; N] {
        &self.0
    }
}
