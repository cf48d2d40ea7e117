use super::super::error::HeaderProblem;
use super::entry::Time;

pub const BLOCK_BYTES: usize = 512;

/// A place in a header block.
#[derive(Clone, Copy)]
pub struct Field {
    pub name: &'static str,
    at: usize,
    len: usize,
}

const fn field(name: &'static str, at: usize, len: usize) -> Field {
    Field { name, at, len }
}

/// A header block whose checksum holds.
pub struct Header {
    block: [u8; BLOCK_BYTES],
}

#[derive(PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    pub const UID: Field = field("uid", 108, 8);
    pub const GID: Field = field("gid", 116, 8);
    pub const SIZE: Field = field("size", 124, 12);
    pub const DEV_MAJOR: Field = field("devmajor", 329, 8);
    pub const DEV_MINOR: Field = field("devminor", 337, 8);
    pub const GNU_REAL_SIZE: Field = field("realsize", 483, 12);

    const NAME: Field = field("name", 0, 100);
    const MODE: Field = field("mode", 100, 8);
    const MTIME: Field = field("mtime", 136, 12);
    const CHECKSUM: Field = field("checksum", 148, 8);
    const LINK: Field = field("linkname", 157, 100);
    const PREFIX: Field = field("prefix", 345, 155);
    const STAR_PREFIX: Field = field("prefix", 345, 131);
    const GNU_ATIME: Field = field("atime", 345, 12);
    const GNU_CTIME: Field = field("ctime", 357, 12);
    const GNU_SPARSE: usize = 386;
    const GNU_SPARSE_SEGMENTS: usize = 4;
    const GNU_IS_EXTENDED: usize = 482;

    pub fn new(block: [u8; BLOCK_BYTES]) -> Result<Self, HeaderProblem> {
        let header = Header { block };
        let stored = octal(header.bytes(Self::CHECKSUM)).ok_or(HeaderProblem::Checksum)?;
        // The field counts as spaces in the sum. Some old systems summed signed bytes: each from 128 on is 256 less.
        const SPACES: u32 = 8 * b' ' as u32;
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let negative = |bytes: &[u8]| bytes.iter().filter(|byte| !byte.is_ascii()).count() as i64;
        let field = header.bytes(Self::CHECKSUM);
        let unsigned = sum(&block) - sum(field) + SPACES;
        let signed = || i64::from(unsigned) - 256 * (negative(&block) - negative(field));
        if stored == u64::from(unsigned) || i64::try_from(stored) == Ok(signed()) {
            Ok(header)
        } else {
            Err(HeaderProblem::Checksum)
        }
    }

    pub fn type_flag(&self) -> u8 {
        self.block.get(156).copied().unwrap_or(0)
    }

    pub fn path(&self) -> Vec<u8> {
        let name = text(self.bytes(Self::NAME));
        let prefix = match self.dialect() {
            Dialect::Ustar => text(self.bytes(Self::PREFIX)),
            Dialect::Star => text(self.bytes(Self::STAR_PREFIX)),
            Dialect::Gnu => self.misplaced_prefix(),
            Dialect::V7 => &[],
        };
        match prefix.is_empty() {
            true => name.to_vec(),
            false => [prefix, b"/", name].concat(),
        }
    }

    pub fn link(&self) -> Vec<u8> {
        text(self.bytes(Self::LINK)).to_vec()
    }

    pub fn mode(&self) -> Result<u16, HeaderProblem> {
        Ok((self.number(Self::MODE)? & 0o7777) as u16)
    }

    pub fn mtime(&self) -> Result<Time, HeaderProblem> {
        let seconds =
            signed_number(self.bytes(Self::MTIME)).ok_or(HeaderProblem::Number(Self::MTIME.name))?;
        Ok(Time { seconds, nanoseconds: 0 })
    }

    /// A user or group number. The highest one means "none" to the kernel and cannot own a file.
    pub fn id(&self, field: Field) -> Result<u32, HeaderProblem> {
        let id = u32::try_from(self.number(field)?).ok().filter(|id| *id != u32::MAX);
        id.ok_or(HeaderProblem::Number(field.name))
    }

    /// A number that is not negative, in octal or in base 256.
    pub fn number(&self, field: Field) -> Result<u64, HeaderProblem> {
        let number = signed_number(self.bytes(field)).and_then(|number| u64::try_from(number).ok());
        number.ok_or(HeaderProblem::Number(field.name))
    }

    /// Appends offset and length of the segments in an old GNU sparse header; true if a block with more follows.
    pub fn gnu_sparse(&self, numbers: &mut Vec<u64>) -> Result<bool, HeaderProblem> {
        let table = self.block.get(Self::GNU_SPARSE..).unwrap_or_default();
        sparse_table(table, Self::GNU_SPARSE_SEGMENTS, numbers)?;
        Ok(self.block.get(Self::GNU_IS_EXTENDED).is_some_and(|flag| *flag != 0))
    }

    /// Before version 1.8, Go wrote a prefix into GNU headers, where the access and change times belong. Such images
    /// exist, and are told apart as Go does it: those bytes are no times, and are plain text.
    fn misplaced_prefix(&self) -> &[u8] {
        let a_time = |field| {
            let bytes = self.bytes(field);
            bytes.first() == Some(&0) || signed_number(bytes).is_some()
        };
        let prefix = text(self.bytes(Self::PREFIX));
        let times = a_time(Self::GNU_ATIME) && a_time(Self::GNU_CTIME);
        if !times && prefix.is_ascii() { prefix } else { &[] }
    }

    fn dialect(&self) -> Dialect {
        let at = |from, len| self.block.get(from..from + len).unwrap_or_default();
        if at(257, 6) == b"ustar\0" {
            if at(508, 4) == b"tar\0" { Dialect::Star } else { Dialect::Ustar }
        } else if at(257, 8) == b"ustar  \0" {
            Dialect::Gnu
        } else {
            Dialect::V7
        }
    }

    fn bytes(&self, field: Field) -> &[u8] {
        self.block.get(field.at..field.at + field.len).unwrap_or_default()
    }
}

/// The same as [`Header::gnu_sparse`] for a block that continues the map.
pub fn gnu_sparse_extension(
    block: &[u8; BLOCK_BYTES],
    numbers: &mut Vec<u64>,
) -> Result<bool, HeaderProblem> {
    const SEGMENTS: usize = 21;
    const IS_EXTENDED: usize = 504;
    sparse_table(block, SEGMENTS, numbers)?;
    Ok(block.get(IS_EXTENDED).is_some_and(|flag| *flag != 0))
}

fn sparse_table(table: &[u8], segments: usize, numbers: &mut Vec<u64>) -> Result<(), HeaderProblem> {
    for segment in table.chunks_exact(24).take(segments) {
        // The first unused slot ends the table.
        if segment.first() == Some(&0) {
            break;
        }
        for number in segment.chunks_exact(12) {
            let number = signed_number(number).and_then(|number| u64::try_from(number).ok());
            numbers.push(number.ok_or(HeaderProblem::SparseMap("not a number"))?);
        }
    }
    Ok(())
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// An octal number, or with the highest bit set one in base 256 (GNU's and star's way to larger and negative ones).
fn signed_number(bytes: &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    if first & 0x80 == 0 {
        return octal(bytes).and_then(|number| i64::try_from(number).ok());
    }
    let fill = if first & 0x40 == 0 { 0x00 } else { 0xff };
    // The mark is not part of the number: put the sign's bit into its place.
    let mark_cleared = (first & 0x7f) | (fill & 0x80);
    let (high, low) = bytes.split_at(bytes.len().saturating_sub(8));
    let high_is_sign =
        high.iter().skip(1).all(|byte| *byte == fill) && (high.is_empty() || mark_cleared == fill);
    let mut value: i64 = if fill == 0 { 0 } else { -1 };
    for (at, byte) in low.iter().enumerate() {
        let byte = if high.is_empty() && at == 0 { mark_cleared } else { *byte };
        value = (value << 8) | i64::from(byte);
    }
    let sign_kept = (value < 0) == (fill == 0xff);
    (high_is_sign && sign_kept).then_some(value)
}

/// An octal number between spaces and NULs. Nothing at all is zero.
fn octal(bytes: &[u8]) -> Option<u64> {
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = bytes.iter().position(|byte| !blank(byte)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    text(bytes.get(start..end)?).iter().try_fold(0u64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let cases: [(&[u8], Option<i64>); 15] = [
            (b"0000644\0", Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777 ", Some(0o77777777777)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"12 34\0\0\0", None),
            (b"\x80\0\0\0\xff\xff\xff\xfe", Some(0xffff_fffe)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\xff\0\0\0\0\0\0\0", None),
            (b"", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(signed_number(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn the_largest_file_size_fits() {
        let bytes = b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(signed_number(bytes), Some(i64::MAX));
    }

    #[test]
    fn an_eight_byte_field_keeps_its_mark_out_of_the_number() {
        assert_eq!(signed_number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(signed_number(b"\x81\0\0\0\0\0\0\0"), Some(1 << 56));
    }
}
