//! The fake server's HTTP/2: one request after the other on a connection.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nacre_puller::registry::hpack;

use super::{Handler, Reply, Request};

const FRAME: usize = 16 << 10;

pub fn serve(mut stream: impl Read + Write, handler: &Handler, log: &Mutex<Vec<Request>>, sent: &AtomicU64) {
    let mut preface = [0; 24];
    if stream.read_exact(&mut preface).is_err() {
        return;
    }
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    frame(&mut stream, 4, 0, 0, &[]).unwrap();
    while let Some((id, mut request)) = read_request(&mut stream) {
        {
            let mut log = log.lock().unwrap();
            request.nth = log.iter().filter(|other| other.target == request.target).count();
            log.push(request.clone());
        }
        let reply = handler(&request);
        let uncounted = AtomicU64::new(0);
        let sent = if request.target.contains("/blobs/") { sent } else { &uncounted };
        if write_reply(&mut stream, id, &reply, sent).is_err()
            || (reply.break_after.is_some() && !reply.reset)
        {
            return;
        }
    }
}

pub fn frame(stream: &mut impl Write, kind: u8, flags: u8, id: u32, payload: &[u8]) -> io::Result<()> {
    let length = (payload.len() as u32).to_be_bytes();
    stream.write_all(&[&length[1..], &[kind, flags], &id.to_be_bytes(), payload].concat())?;
    stream.flush()
}

pub fn read_frame(stream: &mut impl Read) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).ok()?;
    Some((head[3], head[4], u32::from_be_bytes(head[5..].try_into().unwrap()), payload))
}

fn read_request(stream: &mut (impl Read + Write)) -> Option<(u32, Request)> {
    let (mut block, mut body) = (Vec::new(), Vec::new());
    loop {
        let (kind, flags, id, payload) = read_frame(stream)?;
        match kind {
            0 => body.extend(payload),
            1 | 9 => block.extend(payload),
            4 if flags == 0 => {
                frame(stream, 4, 1, 0, &[]).ok()?;
                continue;
            }
            _ => continue,
        }
        if flags & 1 == 0 || kind == 9 {
            // More comes: data, or more of the head. No test has both.
            if !(kind == 9 && flags & 4 != 0) {
                continue;
            }
        }
        if kind == 1 && flags & 4 == 0 {
            continue;
        }
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let fields = hpack::decode(&block, 100).unwrap().into_iter();
        let fields: HashMap<String, String> = fields.map(|(name, value)| (text(name), text(value))).collect();
        let request = Request {
            method: fields[":method"].clone(),
            target: fields[":path"].clone(),
            body: text(body),
            fields,
            nth: 0,
        };
        return Some((id, request));
    }
}

fn write_reply(stream: &mut impl Write, id: u32, reply: &Reply, sent: &AtomicU64) -> io::Result<()> {
    let status = reply.status.to_string();
    let length = reply.announced.unwrap_or(reply.body.len() as u64).to_string();
    let mut fields = vec![(":status".to_owned(), status)];
    if reply.chunked.is_none() && !reply.endless {
        fields.push(("content-length".to_owned(), length));
    }
    fields.extend(reply.fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
    let fields: Vec<(&str, &str)> =
        fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let block = hpack::encode(&fields);
    let last = block.chunks(FRAME).count() - 1;
    for (at, piece) in block.chunks(FRAME).enumerate() {
        frame(stream, if at == 0 { 1 } else { 9 }, if at == last { 4 } else { 0 }, id, piece)?;
    }
    let end = reply.break_after.or(reply.stall_after).unwrap_or(reply.body.len()).min(reply.body.len());
    let (piece, pause) = reply.drip.unwrap_or((reply.chunked.unwrap_or(FRAME).min(FRAME), Duration::ZERO));
    for piece in reply.body[..end].chunks(piece) {
        frame(stream, 0, 0, id, piece)?;
        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        std::thread::sleep(pause);
    }
    for _ in std::iter::repeat_n((), if reply.endless { usize::MAX } else { 0 }) {
        frame(stream, 0, 0, id, &[b' '; FRAME])?;
        sent.fetch_add(FRAME as u64, Ordering::Relaxed);
    }
    if reply.stall_after.is_some() {
        std::thread::sleep(Duration::from_secs(5));
    }
    match reply.break_after {
        // INTERNAL_ERROR.
        Some(_) if reply.reset => frame(stream, 3, 0, id, &2u32.to_be_bytes()),
        Some(_) => Ok(()),
        None => frame(stream, 0, 1, id, &[]),
    }
}
