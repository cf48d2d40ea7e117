//! Tars made byte by byte, for what no tool would write.

/// A tar under construction.
#[derive(Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    pub fn new() -> Self {
        Tar::default()
    }

    /// A directory of mode 0755.
    pub fn dir(self, name: &str) -> Self {
        self.header(Block::new(name, b'5').mode(0o755))
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(Block::new(name, b'0'), data)
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.header(Block::new(name, b'2').link(target))
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.header(Block::new(name, b'1').link(target))
    }

    /// A pax header with these records.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.entry(Block::new("pax", b'x'), &data)
    }

    pub fn header(self, block: Block) -> Self {
        self.entry(block, b"")
    }

    /// A header that announces `data`, and the data.
    pub fn entry(self, block: Block, data: &[u8]) -> Self {
        self.raw(&block.size(data.len() as u64).sealed()).padded(data)
    }

    pub fn padded(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// With the end of the archive.
    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }

    /// Without it.
    pub fn bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// One pax record: its length counts itself.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let digits = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap();
    [(rest + digits).to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

/// A header block under construction.
#[derive(Clone)]
pub struct Block {
    bytes: [u8; 512],
}

impl Block {
    pub fn new(name: &str, type_flag: u8) -> Self {
        let mut block = Block { bytes: [0; 512] };
        block.bytes[156] = type_flag;
        block.at(0, name.as_bytes()).mode(0o644).at(257, b"ustar\x0000")
    }

    pub fn at(mut self, at: usize, value: &[u8]) -> Self {
        self.bytes[at..at + value.len()].copy_from_slice(value);
        self
    }

    pub fn gnu(self) -> Self {
        self.at(257, b"ustar  \0")
    }

    pub fn v7(self) -> Self {
        self.at(257, &[0; 8])
    }

    pub fn mode(self, mode: u16) -> Self {
        self.at(100, format!("{mode:07o}\0").as_bytes())
    }

    pub fn size(self, size: u64) -> Self {
        self.at(124, format!("{size:011o}\0").as_bytes())
    }

    pub fn link(self, link: &str) -> Self {
        self.at(157, link.as_bytes())
    }

    /// With its checksum.
    pub fn sealed(self) -> [u8; 512] {
        let block = self.at(148, b"        ");
        let sum: u32 = block.bytes.iter().map(|byte| u32::from(*byte)).sum();
        block.at(148, format!("{sum:06o}\0 ").as_bytes()).bytes
    }
}

/// A file in memory.
#[derive(Default)]
pub struct MemFile {
    bytes: std::cell::RefCell<Vec<u8>>,
}

impl MemFile {
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_inner()
    }
}

impl super::output::WriteAt for MemFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let (mut file, at) = (self.bytes.borrow_mut(), offset as usize);
        let end = file.len().max(at + bytes.len());
        file.resize(end, 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.bytes.borrow_mut().resize(len as usize, 0);
        Ok(())
    }
}
