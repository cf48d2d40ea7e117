use super::super::error::HeaderProblem;
use super::entry::Segment;

/// Where a pax sparse entry keeps its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Versions 0.0 and 0.1.
    InRecords,
    /// Version 1.0.
    InData,
}

/// Pairs of offset and length as segments of a file of `size` bytes, `stored` of them in the tar. They must come in
/// order, lie inside the file and account for every stored byte.
pub fn segments(numbers: &[u64], size: u64, stored: u64) -> Result<Vec<Segment>, HeaderProblem> {
    let problem = |what| Err(HeaderProblem::SparseMap(what));
    if !numbers.len().is_multiple_of(2) {
        return problem("an offset without a length");
    }
    let mut segments = Vec::with_capacity(numbers.len() / 2);
    let (mut end, mut total) = (0u64, 0u64);
    for pair in numbers.chunks_exact(2) {
        let &[offset, len] = pair else { continue };
        let Some(next) = offset.checked_add(len).filter(|next| *next <= size) else {
            return problem("a segment beyond the end of the file");
        };
        if offset < end {
            return problem("segments out of order");
        }
        end = next;
        total += len;
        if len > 0 {
            segments.push(Segment { offset, len });
        }
    }
    if total != stored {
        return problem("segments and data differ in length");
    }
    Ok(segments)
}

/// Collects the decimal lines of a version 1.0 map: the number of segments, then an offset and a length for each.
pub struct MapLines {
    numbers: Vec<u64>,
    /// The count of segments, once its line is through.
    expected: Option<u64>,
    digits: u32,
    number: u64,
    max_segments: u32,
}

impl MapLines {
    /// Decimal digits of 2^64.
    const MAX_DIGITS: u32 = 20;

    pub fn new(max_segments: u32) -> Self {
        MapLines { numbers: Vec::new(), expected: None, digits: 0, number: 0, max_segments }
    }

    pub fn complete(&self) -> bool {
        self.expected.is_some_and(|expected| self.numbers.len() as u64 == expected.saturating_mul(2))
    }

    /// Takes one block. What follows the last line is padding.
    pub fn feed(&mut self, block: &[u8]) -> Result<(), HeaderProblem> {
        for byte in block {
            if self.complete() {
                break;
            }
            match byte {
                b'0'..=b'9' if self.digits < Self::MAX_DIGITS => self.digit(*byte)?,
                b'\n' if self.digits > 0 => self.end_line()?,
                _ => return Err(HeaderProblem::SparseMap("not a decimal number")),
            }
        }
        Ok(())
    }

    pub fn into_numbers(self) -> Vec<u64> {
        self.numbers
    }

    fn digit(&mut self, byte: u8) -> Result<(), HeaderProblem> {
        let next = self.number.checked_mul(10).and_then(|number| number.checked_add(u64::from(byte - b'0')));
        self.number = next.ok_or(HeaderProblem::SparseMap("a number that does not fit"))?;
        self.digits += 1;
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), HeaderProblem> {
        let number = std::mem::take(&mut self.number);
        self.digits = 0;
        if self.expected.is_some() {
            self.numbers.push(number);
        } else if number <= u64::from(self.max_segments) {
            self.expected = Some(number);
        } else {
            return Err(HeaderProblem::SparseMap("more segments than the limit"));
        }
        Ok(())
    }
}
