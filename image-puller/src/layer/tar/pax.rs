use super::super::error::{HeaderProblem, LayerError};
use super::super::limits::Limits;
use super::entry::{Time, Xattr};
use super::sparse::Form;

/// The pax records of one entry that mean something to a layer. A record with an empty value takes an earlier one back.
#[derive(Default)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<Time>,
    pub xattrs: Vec<Xattr>,
    pub sparse: PaxSparse,
    /// Attributes in libarchive's encoding, for those that do not come in star's as well.
    libarchive_xattrs: Vec<Xattr>,
}

/// The `GNU.sparse.*` records.
#[derive(Default)]
pub struct PaxSparse {
    pub name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    size: Option<u64>,
    real_size: Option<u64>,
    segments: Option<u64>,
    map: Vec<u64>,
}

impl Pax {
    /// Reads the records of the header at `at`.
    pub fn parse(data: &[u8], limits: &Limits, at: u64) -> Result<Self, LayerError> {
        let mut pax = Pax::default();
        let mut rest = data;
        while !rest.is_empty() {
            let (key, value, after) =
                record(rest).map_err(|problem| LayerError::Header { offset: at, problem })?;
            pax.apply(key, value, limits, at)?;
            rest = after;
        }
        pax.merge_libarchive_xattrs(limits)?;
        Ok(pax)
    }

    fn apply(&mut self, key: &[u8], value: &[u8], limits: &Limits, at: u64) -> Result<(), LayerError> {
        let wrong = |what| move || LayerError::Header { offset: at, problem: HeaderProblem::PaxValue(what) };
        match key {
            b"path" => self.path = name(value).ok_or_else(wrong("path"))?,
            b"linkpath" => self.link = name(value).ok_or_else(wrong("linkpath"))?,
            b"size" => self.size = optional(value, decimal).ok_or_else(wrong("size"))?,
            b"uid" => self.uid = optional(value, id).ok_or_else(wrong("uid"))?,
            b"gid" => self.gid = optional(value, id).ok_or_else(wrong("gid"))?,
            b"mtime" => self.mtime = optional(value, time).ok_or_else(wrong("mtime"))?,
            _ => {
                if let Some(rest) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.apply(rest, value, limits).ok_or_else(wrong("GNU.sparse"));
                }
                if let Some(xattr) = key.strip_prefix(b"SCHILY.xattr.") {
                    return set_xattr(&mut self.xattrs, xattr.into(), value.into(), limits);
                }
                if let Some(xattr) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let xattr = percent_decoded(xattr).ok_or_else(wrong("LIBARCHIVE.xattr"))?;
                    let value = base64_decoded(value).ok_or_else(wrong("LIBARCHIVE.xattr"))?;
                    return set_xattr(&mut self.libarchive_xattrs, xattr, value, limits);
                }
            }
        }
        Ok(())
    }

    fn merge_libarchive_xattrs(&mut self, limits: &Limits) -> Result<(), LayerError> {
        for (name, value) in std::mem::take(&mut self.libarchive_xattrs) {
            if !self.xattrs.iter().any(|(known, _)| *known == name) {
                set_xattr(&mut self.xattrs, name, value, limits)?;
            }
        }
        Ok(())
    }
}

impl PaxSparse {
    /// Which form of sparse file this is, if it is one. Unknown versions are taken as ordinary files, as Go does.
    pub fn form(&self) -> Option<Form> {
        match (self.major, self.minor) {
            (Some(0), Some(0 | 1)) => Some(Form::InRecords),
            (Some(1), Some(0)) => Some(Form::InData),
            (None, None) if !self.map.is_empty() => Some(Form::InRecords),
            _ => None,
        }
    }

    pub fn size(&self) -> Option<u64> {
        self.size.or(self.real_size)
    }

    /// Offsets and lengths of the versions before 1.0.
    pub fn map(&self) -> Result<Vec<u64>, HeaderProblem> {
        match self.segments {
            Some(segments) if segments.checked_mul(2) == Some(self.map.len() as u64) => Ok(self.map.clone()),
            _ => Err(HeaderProblem::SparseMap("the number of segments is not the one announced")),
        }
    }

    fn apply(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Option<()> {
        match key {
            b"name" => self.name = name(value)?,
            b"major" => self.major = optional(value, decimal)?,
            b"minor" => self.minor = optional(value, decimal)?,
            b"size" => self.size = optional(value, decimal)?,
            b"realsize" => self.real_size = optional(value, decimal)?,
            b"numblocks" => self.segments = optional(value, decimal)?,
            b"offset" if self.map.len().is_multiple_of(2) => self.push(decimal(value)?, limits)?,
            b"numbytes" if self.map.len() % 2 == 1 => self.push(decimal(value)?, limits)?,
            b"offset" | b"numbytes" => return None,
            b"map" => {
                self.map.clear();
                for number in value.split(|byte| *byte == b',').filter(|_| !value.is_empty()) {
                    self.push(decimal(number)?, limits)?;
                }
            }
            _ => {}
        }
        Some(())
    }

    fn push(&mut self, number: u64, limits: &Limits) -> Option<()> {
        self.map.push(number);
        (self.map.len() / 2 <= limits.sparse_segments as usize).then_some(())
    }
}

/// Key and value of a record, and what comes after it.
type Record<'d> = (&'d [u8], &'d [u8], &'d [u8]);

/// Splits one `LENGTH KEY=VALUE` and a line feed off the front.
fn record(data: &[u8]) -> Result<Record<'_>, HeaderProblem> {
    let take = || {
        let space = data.iter().take(20).position(|byte| *byte == b' ')?;
        let length = usize::try_from(decimal(data.get(..space)?)?).ok()?;
        let body = data.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = body.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (body.get(..equals)?, body.get(equals + 1..)?);
        let key_is_fine = !key.is_empty() && !key.contains(&0);
        key_is_fine.then_some((key, value, data.get(length..)?))
    };
    take().ok_or(HeaderProblem::PaxSyntax)
}

fn set_xattr(
    list: &mut Vec<Xattr>,
    name: Box<[u8]>,
    value: Box<[u8]>,
    limits: &Limits,
) -> Result<(), LayerError> {
    if let Some((_, known)) = list.iter_mut().find(|(known, _)| *known == name) {
        *known = value;
    } else if list.len() < limits.xattrs {
        list.push((name, value));
    } else {
        // Also keeps the search above short.
        return Err(LayerError::limit(&name, "the number of attributes", limits.xattrs as u64, "attributes"));
    }
    Ok(())
}

/// A path: empty for "as the header has it", nothing if it has a NUL.
fn name(value: &[u8]) -> Option<Option<Vec<u8>>> {
    match value {
        b"" => Some(None),
        _ if value.contains(&0) => None,
        _ => Some(Some(value.to_vec())),
    }
}

fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { parse(value).map(Some) }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn id(digits: &[u8]) -> Option<u32> {
    u32::try_from(decimal(digits)?).ok().filter(|id| *id != u32::MAX)
}

/// Seconds with a sign and a fraction; digits after the ninth are cut.
fn time(value: &[u8]) -> Option<Time> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

fn percent_decoded(text: &[u8]) -> Option<Box<[u8]>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            other => *other,
        });
    }
    Some(bytes.into())
}

/// Base 64 (RFC 4648, section 4); libarchive leaves the padding out.
fn base64_decoded(text: &[u8]) -> Option<Box<[u8]>> {
    let text = text.strip_suffix(b"=").map(|text| text.strip_suffix(b"=").unwrap_or(text)).unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    for group in text.chunks(4) {
        let mut bits = 0u32;
        for at in 0..4 {
            bits = bits << 6 | group.get(at).map_or(Some(0), |digit| base64_digit(*digit))?;
        }
        let [_, decoded @ ..] = bits.to_be_bytes();
        bytes.extend_from_slice(decoded.get(..group.len().checked_sub(1)?)?);
    }
    Some(bytes.into())
}

fn base64_digit(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(records: &[u8]) -> Result<Pax, LayerError> {
        Pax::parse(records, &Limits::default(), 0)
    }

    #[test]
    fn times_have_signs_and_nanoseconds() {
        let cases: [(&str, Option<(i64, u32)>); 9] = [
            ("0", Some((0, 0))),
            ("1700000000.123456789", Some((1_700_000_000, 123_456_789))),
            ("1.5", Some((1, 500_000_000))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("1.x", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in cases {
            let got = time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        let cases: [&[u8]; 10] = [
            b"5 a=b\n",
            b"7 a=b\n",
            b"6 a=b ",
            b"6 =bc\n",
            b"0 a=b\n",
            b"99999999999999999999 a=b\n",
            b"a=b\n",
            b"6 abc\n",
            b"-6 a=b\n",
            b"6 a\0b\n",
        ];
        for records in cases {
            assert!(parse(records).is_err(), "{}", records.escape_ascii());
        }
        assert!(parse(b"6 a=b\n").is_ok());
    }

    #[test]
    fn an_empty_value_takes_a_record_back() {
        let pax = parse(b"11 path=ab\n8 path=\n").unwrap();
        assert_eq!(pax.path, None);
    }

    #[test]
    fn libarchive_attributes_are_decoded_unless_star_has_them() {
        let pax = parse(b"38 LIBARCHIVE.xattr.user.a%3db=AAECaw\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.a=b"[..].into(), b"\0\x01\x02k"[..].into())]);
        let pax = parse(b"32 LIBARCHIVE.xattr.user.a=AAEC\n25 SCHILY.xattr.user.a=x\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.a"[..].into(), b"x"[..].into())]);
    }

    #[test]
    fn owners_above_the_last_valid_number_are_refused() {
        assert_eq!(parse(b"18 uid=4294967294\n").unwrap().uid, Some(4_294_967_294));
        assert!(parse(b"18 uid=4294967295\n").is_err());
        assert!(parse(b"10 uid=-1\n").is_err());
    }
}
