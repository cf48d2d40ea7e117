//! The Huffman code of HPACK (RFC 7541 section 5.2 and appendix B). It is canonical: the length of each symbol's code
//! says everything.

/// Bits of the longest code.
const LENGTH_MAX: usize = 30;
/// The end-of-string symbol, which must never be there whole.
const END: u16 = 256;

/// How many codes there are of each length, from one bit on.
const COUNTS: [u16; LENGTH_MAX] =
    [0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 0, 4];

/// Every symbol, by the length of its code and then by its number.
#[rustfmt::skip]
const SYMBOLS: [u16; 257] = [
    // 5 bits
    48, 49, 50, 97, 99, 101, 105, 111, 115, 116,
    // 6 bits
    32, 37, 45, 46, 47, 51, 52, 53, 54, 55, 56, 57, 61, 65, 95, 98, 100, 102, 103, 104, 108, 109, 110, 112, 114, 117,
    // 7 bits
    58, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 89, 106, 107, 113, 118,
    119, 120, 121, 122,
    // 8, 10, 11, 12 bits
    38, 42, 44, 59, 88, 90,
    33, 34, 40, 41, 63,
    39, 43, 124,
    35, 62,
    // 13, 14, 15 bits
    0, 36, 64, 91, 93, 126,
    94, 125,
    60, 96, 123,
    // 19, 20, 21 bits
    92, 195, 208,
    128, 130, 131, 162, 184, 194, 224, 226,
    153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230,
    // 22 bits
    129, 132, 133, 134, 136, 146, 154, 156, 160, 163, 164, 169, 170, 173, 178, 181, 185, 186, 187, 189, 190, 196, 198,
    228, 232, 233,
    // 23 bits
    1, 135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157, 158, 165, 166, 168, 174, 175, 180, 182,
    183, 188, 191, 197, 231, 239,
    // 24, 25, 26 bits
    9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237,
    199, 207, 234, 235,
    192, 193, 200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243, 255,
    // 27 bits
    203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251, 252, 253, 254,
    // 28 bits
    2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 30, 31, 127, 220, 249,
    // 30 bits
    10, 13, 22, END,
];

/// A code that is not finished yet.
#[derive(Default)]
struct Partial {
    bits: usize,
    code: u32,
    /// The first code of this length, and the place of its symbol.
    first: u32,
    symbol: usize,
}

impl Partial {
    /// The symbol that ends with this bit.
    fn take(&mut self, bit: bool) -> Option<u16> {
        let count = u32::from(COUNTS.get(self.bits).copied()?);
        self.bits += 1;
        self.code |= u32::from(bit);
        let found = self.code.checked_sub(self.first).filter(|at| *at < count);
        if let Some(at) = found {
            let symbol = SYMBOLS.get(self.symbol + at as usize).copied();
            *self = Self::default();
            return symbol;
        }
        self.symbol += count as usize;
        self.first = (self.first + count) << 1;
        self.code <<= 1;
        None
    }

    /// What is left over at the end must be up to seven ones.
    fn is_padding(&self) -> bool {
        self.bits < 8 && self.code >> 1 == (1 << self.bits) - 1
    }
}

/// `None` if the bytes are no such code.
pub fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    // Five bits for a byte, at best.
    let mut text = Vec::with_capacity(bytes.len() * 8 / 5);
    let mut partial = Partial::default();
    for byte in bytes {
        for bit in (0..8).rev() {
            match partial.take(byte >> bit & 1 == 1) {
                Some(symbol) => text.push(u8::try_from(symbol).ok()?),
                None if partial.bits >= LENGTH_MAX => return None,
                None => {}
            }
        }
    }
    partial.is_padding().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of each symbol's code and the code itself, by the rule of canonical codes.
    fn codes() -> Vec<(u16, usize, u32)> {
        let (mut code, mut symbols, mut codes) = (0, SYMBOLS.iter(), Vec::new());
        for (length, count) in COUNTS.iter().enumerate().map(|(at, count)| (at + 1, *count)) {
            for _ in 0..count {
                codes.push((*symbols.next().unwrap(), length, code));
                code += 1;
            }
            code <<= 1;
        }
        assert!(symbols.next().is_none());
        codes
    }

    fn encode(text: &[u8]) -> Vec<u8> {
        let codes = codes();
        let mut bits = Vec::new();
        for byte in text {
            let (_, length, code) = codes.iter().find(|(symbol, ..)| *symbol == u16::from(*byte)).unwrap();
            bits.extend((0..*length).rev().map(|at| code >> at & 1 == 1));
        }
        while bits.len() % 8 != 0 {
            bits.push(true);
        }
        bits.chunks(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
    }

    #[test]
    fn the_code_is_whole() {
        let codes = codes();
        let sum: u64 = codes.iter().map(|(_, length, _)| 1 << (LENGTH_MAX - length)).sum();
        assert_eq!(sum, 1 << LENGTH_MAX, "each sequence of bits is the beginning of exactly one code");
        let symbols: std::collections::BTreeSet<_> = codes.iter().map(|(symbol, ..)| *symbol).collect();
        assert_eq!(symbols, (0..=END).collect());
        // As appendix B has them.
        for (symbol, length, code) in [
            (b'0', 5, 0x0),
            (b'a', 5, 0x3),
            (b' ', 6, 0x14),
            (b':', 7, 0x5c),
            (b'&', 8, 0xf8),
            (b'\\', 19, 0x7fff0),
        ] {
            assert!(codes.contains(&(u16::from(symbol), length, code)), "{symbol}");
        }
        assert_eq!(codes.last(), Some(&(END, 30, 0x3fff_ffff)));
    }

    #[test]
    fn what_was_encoded_reads_as_it_was() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)).as_ref(), Some(&all));
        // RFC 7541, C.4.1.
        let example = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&example).as_deref(), Some(&b"www.example.com"[..]));
        assert_eq!(decode(&[]).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn wrong_ends_are_refused() {
        for bytes in [&[0xff][..], &[0xff, 0xff, 0xff, 0xff], &[0x00], &[0x1e], &[0x1f, 0xff]] {
            assert_eq!(decode(bytes), None, "{bytes:x?}");
        }
        assert_eq!(decode(&[0x1f]).as_deref(), Some(&b"a"[..]));
    }
}
