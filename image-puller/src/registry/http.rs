//! HTTP as a client: one request, one answer with a streaming body, the connection kept if it can be. What is said here of
//! heads and bodies is HTTP/1.1 (RFC 9112); [`super::http2`] makes the same of its frames.
//!
//! Small on purpose: GET and POST, no compression, no upgrade, no pipelining.

use std::io;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::input::{CHUNK_LINE_BYTES_MAX, malformed};
use super::proxy::Proxy;
use super::transport::{Connector, Limit, TransportError, from_io};
use super::url::{Origin, Url};

/// Largest head of an answer in bytes.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most fields of a head.
pub const FIELDS_MAX: usize = 100;
/// Most interim (1xx) answers before the real one.
const INTERIM_MAX: usize = 8;
/// Fewest bytes that the wait for a stalled body must bring in all; who sends less drips on purpose, or is as good as dead.
const DRIP_BYTES_MIN: u64 = 1 << 10;
/// Bytes read at once when the caller reads less.
const BUFFER_BYTES: usize = 16 << 10;

pub struct Request<'a> {
    pub url: &'a Url,
    /// Sent besides `Host` and `User-Agent`.
    pub fields: &'a [(&'static str, String)],
    /// A form to be posted; none is a GET.
    pub form: Option<&'a str>,
    /// The host was declared insecure.
    pub unverified: bool,
}

pub struct Response<'a> {
    pub status: u16,
    pub head: Head,
    pub body: Body<'a>,
}

/// The fields of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    /// Names in lower case, values as text (what is not UTF-8 replaced).
    pub fields: Vec<(String, String)>,
    pub closes: bool,
}

impl Head {
    /// Reads a head; `Ok(None)` if it is not whole yet. Also its length in bytes.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, &'static str> {
        let mut slots = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut slots);
        let length = match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err("head has too many fields"),
            Err(_) => return Err("head is malformed"),
        };
        let fields: Vec<(String, String)> = parsed
            .headers
            .iter()
            .map(|field| {
                (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).trim().to_owned())
            })
            .collect();
        let status = parsed.code.ok_or("head has no status")?;
        let mut head = Self { status, fields, closes: false };
        let connection = head.get("connection").unwrap_or_default().to_ascii_lowercase();
        head.closes = parsed.version != Some(1) || connection.contains("close");
        Ok(Some((head, length)))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.fields.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// How the body is delimited (RFC 9112 section 6.3). What could be read in two ways is refused.
    pub fn framing(&self) -> Result<Framing, &'static str> {
        let mut lengths = self.all("content-length");
        let length = lengths.next();
        match (self.get("transfer-encoding"), length) {
            _ if matches!(self.status, 100..=199 | 204 | 304) => Ok(Framing::Length(0)),
            (Some(_), Some(_)) => Err("head has both Content-Length and Transfer-Encoding"),
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(Framing::Chunked(Chunk::Announced))
            }
            (Some(_), None) => Err("Transfer-Encoding is not chunked"),
            (None, Some(length)) if lengths.all(|other| other == length) => {
                let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
                let length = length.parse().ok().filter(|_| digits);
                length.map(Framing::Length).ok_or("Content-Length is not a number")
            }
            (None, Some(_)) => Err("head has two different Content-Length fields"),
            (None, None) => Ok(Framing::UntilClosed),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Bytes left.
    Length(u64),
    Chunked(Chunk),
    UntilClosed,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// A line with a length comes next.
    Announced,
    /// Bytes left of this chunk, then its line end.
    Data(u64),
}

/// Sends a request and reads the head of its answer. A kept connection that turns out to be closed is replaced once.
pub fn send<'a>(connector: &'a Connector, request: &Request<'_>) -> Result<Response<'a>, TransportError> {
    if let Some(channel) = connector.reuse(&request.url.origin) {
        match exchange(connector, channel, request) {
            Err(TransportError::Closed { .. } | TransportError::Broken { .. }) => {}
            outcome => return outcome,
        }
    }
    let channel = connector.connect(&request.url.origin, request.unverified)?;
    exchange(connector, channel, request)
}

fn exchange<'a>(
    connector: &'a Connector,
    mut channel: Channel,
    request: &Request<'_>,
) -> Result<Response<'a>, TransportError> {
    let host = &request.url.origin.host;
    let failed = |error| from_io(host, error, connector.timeouts.first_byte);
    let refused = |reason| TransportError::Malformed { host: host.clone(), reason };
    if !request.fields.iter().all(|(_, value)| super::auth::is_field_value(value)) {
        return Err(refused("a field of the request has a character that fields cannot have"));
    }
    channel.limit(Limit::Until(Instant::now() + connector.timeouts.first_byte));
    channel.begin(request, connector.forwarder(&request.url.origin)).map_err(failed)?;
    for _ in 0..INTERIM_MAX {
        let head = channel.head().map_err(failed)?;
        if (100..200).contains(&head.status) {
            continue;
        }
        let framing = head.framing().map_err(refused)?;
        let origin = request.url.origin.clone();
        let is_last = framing == Framing::UntilClosed && matches!(channel, Channel::One(_));
        let body = Body {
            connector,
            origin,
            keep: !head.closes && !is_last,
            framing,
            channel: Some(channel),
            waited: Duration::ZERO,
            brought: 0,
        };
        return Ok(Response { status: head.status, head, body });
    }
    Err(refused("too many interim answers"))
}

const USER_AGENT: &str = concat!("nacre/", env!("CARGO_PKG_VERSION"));
const FORM: &str = "application/x-www-form-urlencoded";

/// A request in HTTP/1.1. A proxy that passes plain requests on is told the whole URL (RFC 9112 section 3.2.2).
pub fn request_head(request: &Request<'_>, forwarder: Option<&Proxy>) -> Vec<u8> {
    let method = if request.form.is_some() { "POST" } else { "GET" };
    let url = request.url;
    let authority = url.origin.authority();
    let base = if forwarder.is_some() { format!("http://{authority}") } else { String::new() };
    let mut head = format!("{method} {base}{} HTTP/1.1\r\nHost: {authority}\r\n", url.target);
    if let Some(authorization) = forwarder.and_then(Proxy::authorization) {
        head.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    let own = request.fields.iter().map(|(name, value)| (*name, value.as_str()));
    for (name, value) in form_fields(request).into_iter().chain(own) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(form) = request.form {
        head.push_str(&format!("Content-Length: {}\r\n\r\n{form}", form.len()));
    } else {
        head.push_str("\r\n");
    }
    head.into_bytes()
}

/// What every request says of itself.
pub fn form_fields(request: &Request<'_>) -> Vec<(&'static str, &'static str)> {
    let form = request.form.map(|_| ("content-type", FORM));
    [("user-agent", USER_AGENT)].into_iter().chain(form).collect()
}

/// The body of an answer, streaming. Read to its end, it gives its connection back.
pub struct Body<'a> {
    connector: &'a Connector,
    origin: Origin,
    keep: bool,
    framing: Framing,
    channel: Option<Channel>,
    /// Spent in reading, and what that brought, since it was last enough.
    waited: Duration,
    brought: u64,
}

impl Body<'_> {
    /// Bytes that are still to come, if that was said.
    pub fn length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Ended => Some(0),
            Framing::Chunked(_) | Framing::UntilClosed => None,
        }
    }

    /// 0 bytes only at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        let begun = Instant::now();
        if let Some(channel) = &self.channel {
            // For all that one read takes: lines of chunks and frames that bring nothing included.
            channel.limit(Limit::Until(begun + self.connector.timeouts.stall));
        }
        let read = self.read_io(buffer);
        self.waited += begun.elapsed();
        if let Ok(length @ 1..) = read {
            self.brought += length as u64;
            self.check_drip()?;
        }
        read.map_err(|error| from_io(&self.origin.host, error, self.connector.timeouts.stall))
    }

    /// Each byte in time is not enough: all of them must come to something. What the consumer takes does not count.
    fn check_drip(&mut self) -> Result<(), TransportError> {
        let after = self.connector.timeouts.stall;
        let (bytes, was_long) = (self.brought, self.waited >= after);
        if was_long && bytes < DRIP_BYTES_MIN {
            return Err(TransportError::Slow { host: self.origin.host.clone(), bytes, after });
        }
        if was_long || bytes >= DRIP_BYTES_MIN {
            (self.waited, self.brought) = (Duration::ZERO, 0);
        }
        Ok(())
    }

    /// All of it, if it is not longer than `limit` bytes; else as much as `limit` and one more.
    pub fn read_up_to(&mut self, limit: u64) -> Result<Vec<u8>, TransportError> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        while bytes.len() as u64 <= limit {
            match self.read(&mut buffer)? {
                0 => break,
                read => bytes.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            }
        }
        bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1));
        Ok(bytes)
    }

    /// Reads the rest if it is short, so that the connection can be kept.
    pub fn discard(mut self) {
        const WORTH_READING_BYTES_MAX: u64 = 64 << 10;
        let _ = self.read_up_to(WORTH_READING_BYTES_MAX);
    }

    fn read_io(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunked(Chunk::Announced) = self.framing {
            self.framing = self.next_chunk()?;
        }
        let left = match self.framing {
            Framing::Length(0) | Framing::Ended => {
                self.release();
                return Ok(0);
            }
            Framing::Length(left) | Framing::Chunked(Chunk::Data(left)) => left,
            Framing::UntilClosed | Framing::Chunked(Chunk::Announced) => u64::MAX,
        };
        let Some(channel) = &mut self.channel else { return Ok(0) };
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = channel.read(buffer.get_mut(..wanted).unwrap_or_default())?;
        match &mut self.framing {
            Framing::UntilClosed if read == 0 => {
                self.framing = Framing::Ended;
                self.release();
            }
            _ if read == 0 && wanted > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Framing::Length(left) => *left -= read as u64,
            Framing::Chunked(Chunk::Data(left)) => {
                *left -= read as u64;
                if *left == 0 {
                    if !channel.line()?.is_empty() {
                        return Err(bad_chunk());
                    }
                    self.framing = Framing::Chunked(Chunk::Announced);
                }
            }
            _ => {}
        }
        Ok(read)
    }

    fn next_chunk(&mut self) -> io::Result<Framing> {
        let Some(channel) = &mut self.channel else { return Ok(Framing::Ended) };
        let line = channel.line()?;
        match chunk_length(&line).ok_or_else(bad_chunk)? {
            0 => {
                // The trailer: its lines say nothing that is wanted.
                let mut length = 0;
                loop {
                    match channel.line()?.len() {
                        0 => return Ok(Framing::Ended),
                        more if length + more <= CHUNK_LINE_BYTES_MAX => length += more,
                        _ => return Err(bad_chunk()),
                    }
                }
            }
            length => Ok(Framing::Chunked(Chunk::Data(length))),
        }
    }

    fn release(&mut self) {
        if let Some(channel) = self.channel.take()
            && self.keep
            && channel.is_reusable()
        {
            self.connector.keep(self.origin.clone(), channel);
        }
    }
}

/// The length of a chunk in bytes, from the line that announces it; its extensions are passed over.
fn chunk_length(line: &[u8]) -> Option<u64> {
    let digits = line.split(|&byte| byte == b';').next()?.trim_ascii();
    let hexadecimal = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| hexadecimal)?;
    u64::from_str_radix(digits, 16).ok()
}

fn bad_chunk() -> io::Error {
    malformed("chunk is malformed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_how_the_body_ends() {
        for (head, framing) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Ok(Framing::Length(5))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n", Ok(Framing::Length(5))),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Ok(Framing::Chunked(Chunk::Announced))),
            ("HTTP/1.1 200 OK\r\n\r\n", Ok(Framing::UntilClosed)),
            ("HTTP/1.1 204 No\r\n\r\n", Ok(Framing::Length(0))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", Err(())),
            ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", Err(())),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", Err(())),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Err(())),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Err(())),
        ] {
            let (parsed, length) = Head::parse(head.as_bytes()).unwrap().unwrap();
            assert_eq!(parsed.framing().map_err(|_| ()), framing, "{head}");
            assert_eq!(length, head.len());
        }
    }

    #[test]
    fn heads_that_are_not_http_are_refused() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(FIELDS_MAX + 1));
        for head in ["SSH-2.0-x\r\n\r\n", "\x15\x03\x01\x00\x02", "HTTP/1.1 20 OK\r\n\r\n", &many] {
            assert!(Head::parse(head.as_bytes()).is_err(), "{head}");
        }
        assert_eq!(Head::parse(b"HTTP/1.1 200 OK\r\nA: b\r\n"), Ok(None));
    }

    #[test]
    fn chunk_lines_are_hexadecimal() {
        for (line, length) in [
            (&b"0"[..], Some(0)),
            (b"1F;name=value", Some(31)),
            (b"ffffffffffffffff", Some(u64::MAX)),
            (b"", None),
            (b"+1", None),
            (b"0x1", None),
            (b"11112222333344445", None),
        ] {
            assert_eq!(chunk_length(line), length, "{line:?}");
        }
    }
}
