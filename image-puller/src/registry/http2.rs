//! HTTP/2 (RFC 9113) as a client: one request at a time on a connection, as on one of HTTP/1.1, so that nothing is held for
//! a stream that nobody reads; several layers have several connections. What it offers beyond that is not wanted here.
//!
//! Spoken where the server chooses it in the TLS handshake (ALPN). Our settings allow no dynamic table and no push.

use std::io::{self, Write};

use super::hpack;
use super::http::{FIELDS_MAX, HEAD_BYTES_MAX, Head, Request};
use super::input::{Input, malformed};
use super::transport::Stream;

/// What ALPN calls it.
pub const PROTOCOL: &[u8] = b"h2";
/// Largest frame that either side sends: the smallest limit there is (section 4.2).
const FRAME_BYTES_MAX: usize = 16 << 10;
/// Most frames in a row that bring nothing: no head, no data.
const EMPTY_FRAMES_MAX: u32 = 1000;
/// How much the server may send before it hears from us, in bytes. None of it is held here.
const WINDOW_BYTES: u32 = 16 << 20;
/// What both windows of a new connection are (section 6.9.2).
const FIRST_WINDOW_BYTES: u32 = 65_535;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames (section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Flags of frames.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

/// Settings (section 6.5.2).
const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const INITIAL_WINDOW_SIZE: u16 = 4;

const NO_ERROR: u32 = 0;

/// By its number, section 7.
const ERRORS: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

#[derive(Debug, thiserror::Error)]
#[error("the server {what}: {}", ERRORS.get(*.code as usize).unwrap_or(&"an unknown error"))]
struct Ended {
    what: &'static str,
    code: u32,
}

pub struct Connection {
    pub input: Input,
    /// Of the request under way or the last one; 0 before the first.
    stream: u32,
    /// The server has said all about it.
    ended: bool,
    /// Bytes left of a DATA frame, and of its padding behind them.
    data_left: usize,
    padding_left: usize,
    /// Bytes that came since the server's windows were opened again: this stream's and the connection's.
    stream_received: u32,
    received: u32,
    /// What the server takes of data in all, and of one request.
    send_window: u32,
    first_window: u32,
    empty_frames: u32,
    going_away: bool,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// What a frame brings for the request under way.
enum Event {
    Nothing,
    /// Head or trailer.
    Block(Vec<u8>),
    Data,
}

impl Frame {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes.first_chunk()?;
        Some(Self {
            length: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        })
    }

    /// A frame as it goes over the wire; `payload` is at most [`FRAME_BYTES_MAX`] long.
    fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, l0, l1, l2] = (payload.len() as u32).to_be_bytes();
        let [s0, s1, s2, s3] = stream.to_be_bytes();
        [&[l0, l1, l2, kind, flags, s0, s1, s2, s3], payload].concat()
    }
}

impl Connection {
    pub fn new(stream: Stream) -> Self {
        Self {
            input: Input::new(stream),
            stream: 0,
            ended: true,
            data_left: 0,
            padding_left: 0,
            stream_received: 0,
            received: 0,
            send_window: FIRST_WINDOW_BYTES,
            first_window: FIRST_WINDOW_BYTES,
            empty_frames: 0,
            going_away: false,
        }
    }

    /// Whether another request may follow.
    pub fn is_reusable(&self) -> bool {
        !self.going_away && self.stream < u32::MAX >> 2
    }

    /// Sends a request. What still comes of the one before it is passed over.
    pub fn begin(&mut self, request: &Request<'_>, host_fields: &[(&str, &str)]) -> io::Result<()> {
        let mut bytes = Vec::new();
        if self.stream == 0 {
            bytes.extend_from_slice(PREFACE);
            let settings = [(HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, WINDOW_BYTES)];
            let settings = settings
                .map(|(id, value): (u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
            bytes.extend(Frame::encode(SETTINGS, 0, 0, &settings.concat()));
            let more = WINDOW_BYTES - FIRST_WINDOW_BYTES;
            bytes.extend(Frame::encode(WINDOW_UPDATE, 0, 0, &more.to_be_bytes()));
        }
        self.skip_data()?;
        self.stream = if self.stream == 0 { 1 } else { self.stream + 2 };
        (self.ended, self.stream_received, self.empty_frames) = (false, 0, 0);
        let form = request.form.unwrap_or_default();
        let form_length = u32::try_from(form.len()).unwrap_or(u32::MAX);
        if form_length > self.send_window.min(self.first_window) {
            return match self.stream {
                1 => Err(malformed("it takes no form of this length")),
                // Another connection has its window whole.
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        self.send_window -= form_length;
        let method = if request.form.is_some() { "POST" } else { "GET" };
        let authority = request.url.origin.authority();
        let pseudo = [
            (":method", method),
            (":scheme", "https"),
            (":authority", &authority),
            (":path", &request.url.target),
        ];
        let names: Vec<String> = request.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        let own = names.iter().zip(request.fields).map(|(name, (_, value))| (name.as_str(), value.as_str()));
        let fields: Vec<(&str, &str)> =
            pseudo.into_iter().chain(host_fields.iter().copied()).chain(own).collect();
        let block = hpack::encode(&fields);
        let end = if form.is_empty() { END_STREAM } else { 0 };
        let pieces = block.chunks(FRAME_BYTES_MAX).count();
        for (at, piece) in block.chunks(FRAME_BYTES_MAX).enumerate() {
            let (kind, flags) = if at == 0 { (HEADERS, end) } else { (CONTINUATION, 0) };
            let flags = flags | if at + 1 == pieces { END_HEADERS } else { 0 };
            bytes.extend(Frame::encode(kind, flags, self.stream, piece));
        }
        let pieces = form.as_bytes().chunks(FRAME_BYTES_MAX).count();
        for (at, piece) in form.as_bytes().chunks(FRAME_BYTES_MAX).enumerate() {
            let flags = if at + 1 == pieces { END_STREAM } else { 0 };
            bytes.extend(Frame::encode(DATA, flags, self.stream, piece));
        }
        self.input.stream.write_all(&bytes)?;
        self.input.stream.flush()
    }

    /// The next head of the answer, interim ones among them.
    pub fn head(&mut self) -> io::Result<Head> {
        loop {
            match self.advance()? {
                Event::Block(block) => return read_head(&block, self.ended),
                Event::Data => return Err(malformed("data comes before the head")),
                Event::Nothing if self.ended => return Err(malformed("the answer has no head")),
                Event::Nothing => {}
            }
        }
    }

    /// Bytes of the body; 0 only at its end.
    pub fn read(&mut self, wanted: &mut [u8]) -> io::Result<usize> {
        while self.data_left == 0 {
            self.skip_padding()?;
            if self.ended {
                return Ok(0);
            }
            // A block behind the data is a trailer, which says nothing that is wanted.
            if let Event::Block(_) = self.advance()?
                && !self.ended
            {
                return Err(malformed("a head comes in the middle of the body"));
            }
        }
        let most = wanted.len().min(self.data_left);
        let read = self.input.read(wanted.get_mut(..most).unwrap_or_default())?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data_left -= read;
        if self.data_left == 0 {
            self.open_windows()?;
        }
        Ok(read)
    }

    /// Reads one frame and deals with what is not for the request under way.
    fn advance(&mut self) -> io::Result<Event> {
        self.skip_data()?;
        self.empty_frames += 1;
        if self.empty_frames > EMPTY_FRAMES_MAX {
            return Err(malformed("too many frames in a row bring nothing"));
        }
        let frame = self.frame()?;
        let is_ours = frame.stream == self.stream;
        match frame.kind {
            DATA => self.data(frame, is_ours),
            HEADERS => self.block(frame, is_ours),
            PUSH_PROMISE => Err(malformed("it pushes, which was not allowed")),
            CONTINUATION => Err(malformed("a continuation of nothing")),
            _ => {
                let payload = self.input.exact(frame.length)?.to_vec();
                self.control(frame, is_ours, &payload)
            }
        }
    }

    fn frame(&mut self) -> io::Result<Frame> {
        let frame = Frame::parse(self.input.exact(9)?).ok_or_else(|| malformed("no frame"))?;
        match frame.length <= FRAME_BYTES_MAX {
            true => Ok(frame),
            false => Err(malformed("a frame is larger than 16 KiB")),
        }
    }

    fn data(&mut self, frame: Frame, is_ours: bool) -> io::Result<Event> {
        let length = frame.length as u32;
        self.received += length;
        let padding = match frame.flags & PADDED {
            0 => 0,
            _ => 1 + usize::from(self.input.exact(1.min(frame.length))?.first().copied().unwrap_or(u8::MAX)),
        };
        // The byte that says how much padding there is was read.
        let data =
            frame.length.checked_sub(padding).ok_or_else(|| malformed("padding is longer than its frame"))?;
        if !is_ours || self.ended {
            // Of an earlier request, whose length was reached; of one that has not begun, there is none.
            if frame.stream == 0 || frame.stream > self.stream || is_ours {
                return Err(malformed("data of no request"));
            }
            self.padding_left = data + padding.saturating_sub(1);
            self.skip_padding()?;
            return Ok(Event::Nothing);
        }
        self.stream_received += length;
        (self.data_left, self.padding_left) = (data, padding.saturating_sub(1));
        self.ended = frame.flags & END_STREAM != 0;
        if data > 0 {
            self.empty_frames = 0;
            return Ok(Event::Data);
        }
        self.open_windows().map(|()| Event::Nothing)
    }

    /// A whole block of fields, out of as many frames as it takes.
    fn block(&mut self, frame: Frame, is_ours: bool) -> io::Result<Event> {
        if frame.stream == 0 || frame.stream > self.stream || (is_ours && self.ended) {
            return Err(malformed("a head for no request"));
        }
        let mut block = strip(self.input.exact(frame.length)?, frame.flags)
            .ok_or_else(|| malformed("padding is longer than its frame"))?
            .to_vec();
        let mut flags = frame.flags;
        while flags & END_HEADERS == 0 {
            let next = self.frame()?;
            self.empty_frames += 1;
            if (next.kind, next.stream) != (CONTINUATION, frame.stream)
                || self.empty_frames > EMPTY_FRAMES_MAX
            {
                return Err(malformed("a head has no end"));
            }
            block.extend_from_slice(self.input.exact(next.length)?);
            if block.len() > HEAD_BYTES_MAX {
                return Err(malformed("head is larger than 64 KiB"));
            }
            flags = next.flags;
        }
        if !is_ours {
            return Ok(Event::Nothing);
        }
        self.ended = frame.flags & END_STREAM != 0;
        Ok(Event::Block(block))
    }

    fn control(&mut self, frame: Frame, is_ours: bool, payload: &[u8]) -> io::Result<Event> {
        let number = |at: usize| {
            payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes)
        };
        let wrong_size = || malformed("a frame has a length that its kind cannot have");
        match (frame.kind, payload.len()) {
            (SETTINGS, 0) if frame.flags & ACK != 0 => {}
            (SETTINGS, length) if length % 6 == 0 && frame.flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    if let [i0, i1, value @ ..] = setting
                        && u16::from_be_bytes([*i0, *i1]) == INITIAL_WINDOW_SIZE
                    {
                        self.first_window = value.try_into().map(u32::from_be_bytes).unwrap_or_default();
                    }
                }
                self.reply(&Frame::encode(SETTINGS, ACK, 0, &[]))?;
            }
            (PING, 8) if frame.flags & ACK == 0 => self.reply(&Frame::encode(PING, ACK, 0, payload))?,
            (PING, 8) => {}
            (RST_STREAM, 4) => {
                let code = number(0).unwrap_or_default();
                // After the whole answer, it says that no more of the request is wanted.
                if is_ours && !(self.ended && code == NO_ERROR) {
                    return Err(io::Error::other(Ended { what: "reset the stream", code }));
                }
            }
            (GOAWAY, 8..) => {
                let (last, code) =
                    (number(0).unwrap_or_default() & 0x7fff_ffff, number(4).unwrap_or_default());
                self.going_away = true;
                match code {
                    NO_ERROR if last >= self.stream => {}
                    // This request was not looked at.
                    NO_ERROR => return Err(io::ErrorKind::UnexpectedEof.into()),
                    code => return Err(io::Error::other(Ended { what: "goes away", code })),
                }
            }
            (WINDOW_UPDATE, 4) if frame.stream == 0 => {
                self.send_window = self.send_window.saturating_add(number(0).unwrap_or_default());
            }
            (WINDOW_UPDATE, 4) => {}
            (SETTINGS | PING | RST_STREAM | GOAWAY | WINDOW_UPDATE, _) => return Err(wrong_size()),
            // What is not known is passed over (section 5.5).
            _ => {}
        }
        Ok(Event::Nothing)
    }

    /// What is left of a frame of data that nobody wants.
    fn skip_data(&mut self) -> io::Result<()> {
        self.padding_left += std::mem::take(&mut self.data_left);
        self.skip_padding()
    }

    fn skip_padding(&mut self) -> io::Result<()> {
        if self.padding_left > 0 {
            self.input.exact(std::mem::take(&mut self.padding_left))?;
            self.open_windows()?;
        }
        Ok(())
    }

    /// Lets the server send on, once it is half through.
    fn open_windows(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        let half = WINDOW_BYTES / 2;
        if self.received >= half {
            let received = std::mem::take(&mut self.received);
            bytes.extend(Frame::encode(WINDOW_UPDATE, 0, 0, &received.to_be_bytes()));
        }
        if self.stream_received >= half && !self.ended {
            let received = std::mem::take(&mut self.stream_received);
            bytes.extend(Frame::encode(WINDOW_UPDATE, 0, self.stream, &received.to_be_bytes()));
        }
        if bytes.is_empty() { Ok(()) } else { self.reply(&bytes) }
    }

    fn reply(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.stream.write_all(bytes)?;
        self.input.stream.flush()
    }
}

/// A block without the padding and the priority that its frame may have (section 6.2).
fn strip(payload: &[u8], flags: u8) -> Option<&[u8]> {
    let (padding, payload) = match flags & PADDED {
        0 => (0, payload),
        _ => payload.split_first().map(|(padding, rest)| (usize::from(*padding), rest))?,
    };
    let payload = payload.get(if flags & WITH_PRIORITY == 0 { 0 } else { 5 }..)?;
    payload.get(..payload.len().checked_sub(padding)?)
}

/// Fields as HTTP/1.1 would have them, their names in lower case. `ended`: no body follows.
pub fn read_head(block: &[u8], ended: bool) -> io::Result<Head> {
    let fields = hpack::decode(block, FIELDS_MAX).map_err(malformed)?;
    let mut head = Head::default();
    for (at, (name, value)) in fields.into_iter().enumerate() {
        let is_name = |byte: &u8| matches!(byte, 0x21..=0x40 | 0x5b..=0x7e);
        let (is_pseudo, plain) = match name.strip_prefix(b":") {
            Some(rest) => (true, rest),
            None => (false, name.as_slice()),
        };
        if plain.is_empty() || !plain.iter().all(|byte| is_name(byte) && *byte != b':') {
            return Err(malformed("head has a name that fields cannot have"));
        }
        if value.iter().any(|byte| matches!(byte, b'\0' | b'\r' | b'\n')) {
            return Err(malformed("head has a value that fields cannot have"));
        }
        if is_pseudo {
            let digits = value.len() == 3 && value.iter().all(u8::is_ascii_digit);
            if at != 0 || plain != b"status" || !digits {
                return Err(malformed("head has no status"));
            }
            head.status = value.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
            continue;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        head.fields.push((text(&name), text(&value)));
    }
    match head.status {
        100.. if head.get("transfer-encoding").is_some() => Err(malformed("head has Transfer-Encoding")),
        100..200 if ended => Err(malformed("an interim answer ends the stream")),
        100.. => Ok(head),
        _ => Err(malformed("head has no status")),
    }
}
