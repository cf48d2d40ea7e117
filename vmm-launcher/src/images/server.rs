//! A tiny registry on a loopback port of this host: the pull half of the OCI Distribution API, read-only.
//!
//! Other users of this host can reach the port too; they do not know the repository's name, which is 128 random bits.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use nacre_protocols::names::Sha256;
use serde::Deserialize;

use super::source::{Content, ImageFiles, SourceError, blob_path};

/// Most connections at once; the sandbox's puller uses a handful.
const CONNECTIONS_MAX: usize = 32;
/// Longest head of a request, in bytes.
const HEAD_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// A peer that neither sends nor takes anything for so long is cut off.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// Most bytes handed to one sendfile(2).
const CHUNK: u64 = 8 * 1024 * 1024;
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The server; dropped, it closes its port and its connections' next read.
#[derive(Debug)]
pub struct ImageServer {
    port: u16,
    shared: Arc<Shared>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// By repository name.
    images: RwLock<HashMap<String, Arc<ImageFiles>>>,
    connections: AtomicUsize,
    stopped: AtomicBool,
}

impl ImageServer {
    /// Listens on a free port of 127.0.0.1.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let (accepting, state) = (listener.try_clone()?, Arc::clone(&shared));
        let thread =
            std::thread::Builder::new().name("images".into()).spawn(move || accept(&accepting, &state))?;
        Ok(Self { port, shared, listener, thread: Some(thread) })
    }

    /// On the host's loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Serves `image` from now on; returns the repository.
    pub fn add(&self, image: ImageFiles) -> io::Result<String> {
        let mut random = [0u8; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut images = self.shared.images.write().unwrap_or_else(PoisonError::into_inner);
        images.insert(name.clone(), Arc::new(image));
        Ok(name)
    }
}

impl Drop for ImageServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // shutdown(2) of a listening socket wakes its accept(2).
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stopped.load(Ordering::Acquire) {
        let Ok((stream, peer)) = listener.accept() else {
            // Out of descriptors, or stopped; never spin.
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        if shared.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX || !is_loopback(peer) {
            shared.connections.fetch_sub(1, Ordering::AcqRel);
            let _ = stream.shutdown(Shutdown::Both);
            continue;
        }
        let state = Arc::clone(shared);
        let serve = move || {
            // The peer is gone or broke the protocol: either way this connection is over.
            let _ = Connection { stream, shared: &state, buffer: Vec::new() }.serve();
            state.connections.fetch_sub(1, Ordering::AcqRel);
        };
        if std::thread::Builder::new().name("image".into()).spawn(serve).is_err() {
            shared.connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn is_loopback(peer: SocketAddr) -> bool {
    peer.ip().is_loopback()
}

struct Connection<'a> {
    stream: TcpStream,
    shared: &'a Shared,
    /// Bytes read and not yet used.
    buffer: Vec<u8>,
}

/// What of a request matters here.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    method: Method,
    path: String,
    range: Option<String>,
    close: bool,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Method {
    Get,
    Head,
    Other,
}

impl Connection<'_> {
    fn serve(&mut self) -> io::Result<()> {
        self.stream.set_read_timeout(Some(IDLE_MAX))?;
        self.stream.set_write_timeout(Some(IDLE_MAX))?;
        self.stream.set_nodelay(true)?;
        while !self.shared.stopped.load(Ordering::Acquire) {
            match self.read_head()? {
                Ok(None) => break,
                Ok(Some(head)) => {
                    self.answer(&head)?;
                    if head.close {
                        break;
                    }
                }
                Err(problem) => {
                    self.refuse(Method::Get, "400 Bad Request", "UNSUPPORTED", problem)?;
                    break;
                }
            }
        }
        self.stream.shutdown(Shutdown::Both)
    }

    /// The next request; `None` at the end of the connection.
    fn read_head(&mut self) -> io::Result<Result<Option<Head>, &'static str>> {
        loop {
            match parse_head(&self.buffer) {
                Ok(Some((head, length))) => {
                    self.buffer.drain(..length);
                    return Ok(Ok(Some(head)));
                }
                Ok(None) if self.buffer.len() >= HEAD_MAX => return Ok(Err("the request head is too long")),
                Ok(None) => {}
                Err(problem) => return Ok(Err(problem)),
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk)? {
                0 => return Ok(Ok(None)),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    fn answer(&mut self, head: &Head) -> io::Result<()> {
        if head.method == Method::Other {
            return self.refuse(
                head.method,
                "405 Method Not Allowed",
                "UNSUPPORTED",
                "this registry is read-only",
            );
        }
        match self.find(&head.path) {
            Found::Base => self.send_bytes(head, "200 OK", "application/json", None, b"{}"),
            Found::Document { digest, media_type, content } => match content.document("manifest") {
                Ok(bytes) => self.send_bytes(head, "200 OK", &media_type, Some(digest), &bytes),
                Err(error) => self.refuse_source(head.method, &error),
            },
            Found::Blob { digest, content } => self.send_blob(head, digest, &content),
            Found::Nothing => self.refuse(head.method, "404 Not Found", "NAME_UNKNOWN", "no such thing here"),
            Found::Failed(error) => self.refuse_source(head.method, &error),
        }
    }

    fn find(&self, path: &str) -> Found {
        let parts: Vec<_> = path.split('/').collect();
        let (name, kind, digest) = match parts.as_slice() {
            ["", "v2", ""] | ["", "v2"] => return Found::Base,
            ["", "v2", name, kind @ ("manifests" | "blobs"), digest] => (*name, *kind, *digest),
            _ => return Found::Nothing,
        };
        let images = self.shared.images.read().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = images.get(name).map(Arc::clone) else { return Found::Nothing };
        drop(images);
        let Some(digest) = digest.strip_prefix("sha256:").and_then(Sha256::parse) else {
            return Found::Nothing;
        };
        let content = match image.blob(&digest) {
            Ok(content) => content,
            Err(SourceError::Missing { .. }) => return Found::Nothing,
            Err(error) => return Found::Failed(error),
        };
        if kind == "blobs" {
            return Found::Blob { digest, content };
        }
        match content.document(&blob_path(&digest)).and_then(|bytes| media_type(&bytes, &digest)) {
            Ok(media_type) => Found::Document { digest, media_type, content },
            Err(error) => Found::Failed(error),
        }
    }

    fn send_blob(&mut self, head: &Head, digest: Sha256, content: &Content) -> io::Result<()> {
        let total = content.length();
        let (status, start, length, range) =
            match head.range.as_deref().map(|range| parse_range(range, total)) {
                None | Some(Range::Whole) => ("200 OK", 0, total, None),
                Some(Range::Part { start, length }) => {
                    let range = format!("Content-Range: bytes {start}-{}/{total}\r\n", start + length - 1);
                    ("206 Partial Content", start, length, Some(range))
                }
                Some(Range::Outside) => {
                    let range = format!("Content-Range: bytes */{total}\r\n");
                    let text =
                        format!("HTTP/1.1 416 Range Not Satisfiable\r\n{range}Content-Length: 0\r\n\r\n");
                    return self.stream.write_all(text.as_bytes());
                }
            };
        let text = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\
             Accept-Ranges: bytes\r\nDocker-Content-Digest: sha256:{digest}\r\n{}\r\n",
            range.unwrap_or_default()
        );
        self.stream.write_all(text.as_bytes())?;
        if head.method == Method::Head {
            return Ok(());
        }
        match content {
            Content::Bytes(bytes) => self.stream.write_all(&bytes[start as usize..(start + length) as usize]),
            Content::File(extent) => send_file(&self.stream, &extent.file, extent.offset + start, length),
        }
    }

    fn send_bytes(
        &mut self,
        head: &Head,
        status: &str,
        media_type: &str,
        digest: Option<Sha256>,
        bytes: &[u8],
    ) -> io::Result<()> {
        let digest =
            digest.map(|digest| format!("Docker-Content-Digest: sha256:{digest}\r\n")).unwrap_or_default();
        let mut text = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\
             Docker-Distribution-Api-Version: registry/2.0\r\n{digest}\r\n",
            bytes.len()
        )
        .into_bytes();
        if head.method != Method::Head {
            text.extend_from_slice(bytes);
        }
        self.stream.write_all(&text)
    }

    fn refuse_source(&mut self, method: Method, error: &SourceError) -> io::Result<()> {
        self.refuse(method, "500 Internal Server Error", "UNKNOWN", &error.to_string())
    }

    /// The error document of the distribution specification.
    fn refuse(&mut self, method: Method, status: &str, code: &str, message: &str) -> io::Result<()> {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
        let head = Head { method, path: String::new(), range: None, close: true };
        self.send_bytes(&head, status, "application/json", None, body.as_bytes())
    }
}

enum Found {
    Base,
    Document { digest: Sha256, media_type: String, content: Content },
    Blob { digest: Sha256, content: Content },
    Nothing,
    Failed(SourceError),
}

fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("the request head is malformed"),
    };
    let value = |name: &str| {
        let header = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    if value("content-length").is_some_and(|length| length.trim() != "0")
        || value("transfer-encoding").is_some()
    {
        return Err("a request with a body");
    }
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        _ => Method::Other,
    };
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let close = value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
        || request.version == Some(0);
    let range = value("range").map(str::to_owned);
    Ok(Some((Head { method, path, range, close }, length)))
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// No range that we know: the whole, as RFC 9110 section 14.2 allows.
    Whole,
    Part {
        start: u64,
        length: u64,
    },
    Outside,
}

/// One byte range (RFC 9110 section 14.1.2) of `total` bytes.
fn parse_range(text: &str, total: u64) -> Range {
    let Some((first, last)) = text.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Range::Whole;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (start, end) = match (number(first), number(last)) {
        (Some(start), Some(end)) if start <= end => (start, end.saturating_add(1).min(total)),
        (Some(start), None) if last.trim().is_empty() => (start, total),
        (None, Some(suffix)) if first.trim().is_empty() => (total.saturating_sub(suffix), total),
        _ => return Range::Whole,
    };
    if start >= end { Range::Outside } else { Range::Part { start, length: end - start } }
}

/// The media type that a document gives itself, or else shows by its fields.
fn media_type(bytes: &[u8], digest: &Sha256) -> Result<String, SourceError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let path = blob_path(digest);
    let shape: Shape =
        serde_json::from_slice(bytes).map_err(|source| SourceError::Json { path: path.clone(), source })?;
    match shape.media_type {
        Some(own) if own.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(own),
        Some(_) => Err(SourceError::Malformed { path, problem: "its mediaType is not one".into() }),
        None if shape.manifests.is_some() => Ok(OCI_INDEX.into()),
        None => Ok(OCI_MANIFEST.into()),
    }
}

fn send_file(stream: &TcpStream, file: &std::fs::File, mut offset: u64, mut length: u64) -> io::Result<()> {
    while length > 0 {
        match rustix::fs::sendfile(stream, file, Some(&mut offset), length.min(CHUNK) as usize) {
            // The file has shrunk under us; the peer sees a short body.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(sent) => length -= sent as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_has_them() {
        for (text, expected) in [
            ("bytes=0-0", Range::Part { start: 0, length: 1 }),
            ("bytes=2-5", Range::Part { start: 2, length: 4 }),
            ("bytes=2-", Range::Part { start: 2, length: 8 }),
            ("bytes=-3", Range::Part { start: 7, length: 3 }),
            ("bytes=-30", Range::Part { start: 0, length: 10 }),
            ("bytes=5-99999999999999999999", Range::Whole),
            ("bytes=5-18446744073709551615", Range::Part { start: 5, length: 5 }),
            ("bytes=10-", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=5-2", Range::Whole),
            ("lines=1-2", Range::Whole),
            ("bytes=1-2,4-5", Range::Whole),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Range::Outside);
    }

    #[test]
    fn requests_are_read_whole_or_refused() {
        let request = b"HEAD /v2/x/blobs/y?z HTTP/1.1\r\nHost: h\r\nRANGE: bytes=1-\r\n\r\nrest";
        let (head, length) = parse_head(request).unwrap().unwrap();
        assert_eq!(
            (head.method, head.path.as_str(), head.range.as_deref()),
            (Method::Head, "/v2/x/blobs/y", Some("bytes=1-"))
        );
        assert_eq!(&request[length..], b"rest");
        assert!(parse_head(&request[..20]).unwrap().is_none());
        assert!(parse_head(b"\x16\x03\x01\r\n\r\n").is_err());
        assert!(parse_head(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n").is_err());
        assert!(parse_head(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap().unwrap().0.close);
    }
}
