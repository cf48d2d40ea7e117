//! HPACK (RFC 7541), as far as a client needs it that allows no dynamic table (SETTINGS_HEADER_TABLE_SIZE is 0): the static
//! table, literals and Huffman's code. With no state between two blocks, one that nobody wants need not be read.

use super::huffman;

/// Longest integer in bytes behind its prefix: nothing here needs more than 28 bits.
const INTEGER_BYTES_MAX: u32 = 4;

/// Appendix A; the index of the first one is 1.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

type Field = (Vec<u8>, Vec<u8>);

/// The fields of a block, at most `fields_max`.
pub fn decode(block: &[u8], fields_max: usize) -> Result<Vec<Field>, &'static str> {
    let mut reader = Reader { rest: block };
    let mut fields = Vec::new();
    while let Some(first) = reader.rest.first().copied() {
        let field = match first {
            0x80.. => {
                let (name, value) = known(reader.integer(7)?)?;
                (name.as_bytes().to_vec(), value.as_bytes().to_vec())
            }
            // With indexing, which a table of no bytes has no room for.
            0x40..0x80 => reader.literal(6)?,
            0x20..0x40 => match reader.integer(5)? {
                0 => continue,
                _ => return Err("head wants a dynamic table, which was not allowed"),
            },
            // Without indexing, and never indexed.
            _ => reader.literal(4)?,
        };
        if fields.len() >= fields_max {
            return Err("head has too many fields");
        }
        fields.push(field);
    }
    Ok(fields)
}

/// A block of literals that nobody on the way keeps: there are credentials among them.
pub fn encode(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        for text in [name, value] {
            encode_length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// An integer of seven bits and more (section 5.1), without Huffman's mark.
fn encode_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(0x7f) else { return block.push(length as u8) };
    block.push(0x7f);
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

fn known(index: usize) -> Result<(&'static str, &'static str), &'static str> {
    let at = index.checked_sub(1).ok_or("head refers to a field of number 0")?;
    STATIC.get(at).copied().ok_or("head refers to a field of a dynamic table, which was not allowed")
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, &'static str> {
        let (first, rest) = self.rest.split_first().ok_or("head ends inside a field")?;
        self.rest = rest;
        Ok(*first)
    }

    /// The number in the lower `bits` bits of the next byte, and behind it.
    fn integer(&mut self, bits: u32) -> Result<usize, &'static str> {
        let mask = (1u8 << bits) - 1;
        let mut number = usize::from(self.byte()? & mask);
        if number < usize::from(mask) {
            return Ok(number);
        }
        for at in 0..INTEGER_BYTES_MAX {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("head has a number that is too large")
    }

    fn literal(&mut self, bits: u32) -> Result<Field, &'static str> {
        let name = match self.integer(bits)? {
            0 => self.string()?,
            index => known(index)?.0.as_bytes().to_vec(),
        };
        Ok((name, self.string()?))
    }

    fn string(&mut self) -> Result<Vec<u8>, &'static str> {
        let is_huffman = self.rest.first().is_some_and(|byte| byte & 0x80 != 0);
        let length = self.integer(7)?;
        let (text, rest) = self.rest.split_at_checked(length).ok_or("head ends inside a field")?;
        self.rest = rest;
        match is_huffman {
            false => Ok(text.to_vec()),
            true => huffman::decode(text).ok_or("head has a text that is not Huffman's code"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(fields: Vec<Field>) -> Vec<(String, String)> {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        fields.into_iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    #[test]
    fn blocks_without_a_dynamic_table_are_read() {
        let huffman: &[u8] = &[0x0f, 0x0d, 0x81, 0x0b];
        for (block, fields) in [
            (&b"\x88"[..], &[(":status", "200")][..]),
            // RFC 7541, C.2.1, C.2.2 and C.2.3.
            (b"\x40\x0acustom-key\x0dcustom-header", &[("custom-key", "custom-header")]),
            (b"\x04\x0c/sample/path", &[(":path", "/sample/path")]),
            (b"\x10\x08password\x06secret", &[("password", "secret")]),
            // C.6.1's first field: 302.
            (b"\x48\x82\x64\x02", &[(":status", "302")]),
            // A table of no bytes is announced, then content-length as a literal without indexing.
            (b"\x20\x88\x0f\x0d\x0210", &[(":status", "200"), ("content-length", "10")]),
            (b"", &[]),
        ] {
            let fields: Vec<_> = fields.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            assert_eq!(decode(block, 9).map(text), Ok(fields), "{block:?}");
        }
        assert!(decode(huffman, 9).is_err(), "one digit's code and no padding");
    }

    #[test]
    fn what_was_encoded_reads_as_it_was() {
        let long = "x".repeat(70_000);
        let fields = [(":method", "GET"), ("authorization", long.as_str()), ("a", "")];
        let expected: Vec<_> = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        assert_eq!(decode(&encode(&fields), 3).map(text), Ok(expected));
        assert_eq!(decode(&encode(&fields), 2), Err("head has too many fields"));
        for length in [0, 126, 127, 128, 254, 255, 16_383, 16_510, 16_511] {
            let value = "y".repeat(length);
            let fields = decode(&encode(&[("n", &value)]), 1).unwrap();
            assert_eq!(fields[0].1.len(), length);
        }
    }

    #[test]
    fn blocks_that_want_more_than_was_allowed_are_refused() {
        for (block, words) in [
            (&b"\x80"[..], "number 0"),
            (b"\xbe", "dynamic table"),
            (b"\x7e\x01a", "dynamic table"),
            (b"\x3f\xe1\x1f", "dynamic table"),
            (b"\x40\x0acustom", "ends inside"),
            (b"\x40", "ends inside"),
            (b"\xff\x80\x80\x80\x80\x01", "too large"),
            (b"\x00\x7f\xff\xff\xff\xff\x0f", "too large"),
            (b"\x00\x7f\xff\xff\xff\x0fa", "ends inside"),
            (b"\x04\x81\xff", "Huffman"),
        ] {
            let error = decode(block, 9).unwrap_err();
            assert!(error.contains(words), "{block:?}: {error}");
        }
    }
}
