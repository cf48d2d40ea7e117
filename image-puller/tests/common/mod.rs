//! A registry in this process, on loopback, that misbehaves on demand; an indexer that only copies; images by hand.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod http2;
pub mod ports;
pub mod proxy;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nacre_protocols::agent_puller::{Platform, Pull};
use nacre_protocols::fetcher_indexer::{
    Compression, FRAME_MAX, IndexFailureKind, IndexLayer, Reply as IndexReply,
};
use nacre_protocols::frame;
use nacre_protocols::names::Sha256;
use nacre_puller::digest::Digest;
use nacre_puller::index_client::IndexClient;
use nacre_puller::pull::Context;
use nacre_puller::registry::retry::RetryPolicy;
use nacre_puller::registry::transport::Timeouts;
use nacre_puller::store::Store;
use nacre_sys::seqpacket;

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub fields: HashMap<String, String>,
    pub body: String,
    /// How many requests for this target came before.
    pub nth: usize,
}

#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Send so much of the body, then close.
    pub break_after: Option<usize>,
    /// Send so much of the body, then nothing more for a while.
    pub stall_after: Option<usize>,
    /// In chunks of this many bytes.
    pub chunked: Option<usize>,
    /// So many bytes at a time, and the pause behind each.
    pub drip: Option<(usize, Duration)>,
    /// With `break_after`: by a reset, not an orderly end.
    pub reset: bool,
    /// What the head says of the length, true or not.
    pub announced: Option<u64>,
    /// After the body, more and more of this, without end.
    pub endless: bool,
}

impl Reply {
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// Serves until the test ends.
pub struct FakeServer {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Request>>>,
    /// Bytes of blobs' bodies that were written.
    pub sent: Arc<AtomicU64>,
}

impl FakeServer {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, handler)
    }

    pub fn start_tls(
        config: Arc<rustls::ServerConfig>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(config), handler)
    }

    fn listen(
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen_on(ports::listener(), tls, handler)
    }

    pub fn listen_on(
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let sent: Arc<AtomicU64> = Arc::default();
        let (handler, log): (Arc<Handler>, _) = (Arc::new(handler), seen.clone());
        let count = sent.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, log, tls) = (handler.clone(), log.clone(), tls.clone());
                let (count, raw) = (count.clone(), stream.try_clone().unwrap());
                std::thread::spawn(move || match tls {
                    None => serve(stream, &raw, &*handler, &log, &count),
                    Some(config) => {
                        let two = config.alpn_protocols.iter().any(|protocol| protocol == b"h2");
                        let session = rustls::ServerConnection::new(config).unwrap();
                        let stream = rustls::StreamOwned::new(session, stream);
                        match two {
                            true => {
                                http2::serve(stream, &*handler, &log, &count);
                                // Closed with frames unread, what was sent last would not arrive.
                                let _ = raw.shutdown(std::net::Shutdown::Write);
                                let _ = io::copy(&mut &raw, &mut io::sink());
                            }
                            false => serve(stream, &raw, &*handler, &log, &count),
                        }
                    }
                });
            }
        });
        Self { address, seen, sent }
    }

    pub fn count(&self, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|request| request.target.contains(part)).count()
    }
}

fn serve(
    mut stream: impl Read + Write,
    raw: &TcpStream,
    handler: &Handler,
    log: &Mutex<Vec<Request>>,
    sent: &AtomicU64,
) {
    while let Some(mut request) = read_request(&mut stream) {
        {
            let mut log = log.lock().unwrap();
            request.nth = log.iter().filter(|other| other.target == request.target).count();
            log.push(request.clone());
        }
        let mut reply = handler(&request);
        let is_last = request.fields.get("connection").is_some_and(|value| value == "close");
        if is_last {
            reply = reply.with("Connection", "close");
        }
        let uncounted = AtomicU64::new(0);
        let sent = if request.target.contains("/blobs/") { sent } else { &uncounted };
        if write_reply(&mut stream, &reply, sent).is_err() {
            return;
        }
        if reply.reset {
            // What the peer has not taken by then is lost to it.
            rustix::net::sockopt::set_socket_linger(raw, Some(Duration::ZERO)).unwrap();
        }
        if is_last || reply.break_after.is_some() || reply.announced.is_some() {
            return;
        }
    }
}

fn read_request(stream: &mut impl Read) -> Option<Request> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 || (bytes.is_empty() && byte[0] == 0x16) {
            return None; // The end, or somebody tries TLS.
        }
        bytes.push(byte[0]);
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut lines = text.lines();
    let mut words = lines.next()?.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let fields: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut body = vec![0; fields.get("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    Some(Request { method, target, fields, body: String::from_utf8(body).unwrap(), nth: 0 })
}

fn write_reply(stream: &mut impl Write, reply: &Reply, sent: &AtomicU64) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    for (name, value) in &reply.fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match reply.chunked {
        Some(_) => head.push_str("Transfer-Encoding: chunked\r\n\r\n"),
        None if reply.endless => head.push_str("\r\n"),
        None => {
            let length = reply.announced.unwrap_or(reply.body.len() as u64);
            head.push_str(&format!("Content-Length: {length}\r\n\r\n"));
        }
    }
    stream.write_all(head.as_bytes())?;
    let end = reply.break_after.or(reply.stall_after).unwrap_or(reply.body.len()).min(reply.body.len());
    let body = &reply.body[..end];
    match (reply.chunked, reply.drip) {
        (None, None) => stream.write_all(body)?,
        (None, Some((length, pause))) => {
            for piece in body.chunks(length) {
                stream.write_all(piece)?;
                stream.flush()?;
                std::thread::sleep(pause);
            }
        }
        (Some(length), _) => {
            for chunk in body.chunks(length) {
                stream.write_all(format!("{:x};x=y\r\n", chunk.len()).as_bytes())?;
                stream.write_all(chunk)?;
                stream.write_all(b"\r\n")?;
            }
            if end == reply.body.len() && !reply.endless {
                stream.write_all(b"0\r\nTrailer: x\r\n\r\n")?;
            }
        }
    }
    sent.fetch_add(body.len() as u64, Ordering::Relaxed);
    let more = [b' '; 16 << 10];
    // Until the client has had enough.
    for _ in std::iter::repeat_n((), if reply.endless { usize::MAX } else { 0 }) {
        match reply.chunked {
            None => stream.write_all(&more)?,
            Some(_) => {
                stream.write_all(format!("{:x}\r\n", more.len()).as_bytes())?;
                stream.write_all(&more)?;
                stream.write_all(b"\r\n")?;
            }
        }
        sent.fetch_add(more.len() as u64, Ordering::Relaxed);
    }
    stream.flush()?;
    if reply.stall_after.is_some() {
        std::thread::sleep(Duration::from_secs(5));
    }
    Ok(())
}

/// A small image in pieces, by what a registry serves it under: `manifests/…` and `blobs/…`.
#[derive(Debug, Clone, Default)]
pub struct TestImage {
    pub parts: HashMap<String, (String, Vec<u8>)>,
    pub manifest: String,
    pub layers: Vec<Vec<u8>>,
}

pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

impl TestImage {
    /// Layers as plain tars (the copying indexer does not look into them).
    pub fn new(layers: &[&[u8]]) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
        Self::with_diff_ids(layers, &diff_ids)
    }

    pub fn with_diff_ids(layers: &[&[u8]], diff_ids: &[Digest]) -> Self {
        let quoted: Vec<_> = diff_ids.iter().map(|digest| format!("\"{digest}\"")).collect();
        let config = format!(
            r#"{{"os":"linux","architecture":"amd64","config":{{"Cmd":["/bin/sh"],"Env":["A=b"]}},
            "rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            quoted.join(",")
        );
        let mut image =
            Self { layers: layers.iter().map(|layer| layer.to_vec()).collect(), ..Self::default() };
        let config = image.blob(config.as_bytes());
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| {
                let digest = image.blob(layer);
                let size = layer.len();
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{size}}}"#
                )
            })
            .collect();
        let config_size = image.parts[&format!("blobs/{config}")].1.len();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{{"mediaType":
            "application/vnd.oci.image.config.v1+json","digest":"{config}","size":{config_size}}},"layers":[{}]}}"#,
            descriptors.join(",")
        );
        image.manifest = image.document(MANIFEST_TYPE, &manifest);
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST_TYPE}","digest":"{}","size":{},
            "platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
            image.manifest,
            manifest.len()
        );
        image.document(INDEX_TYPE, &index);
        image.parts.insert("manifests/latest".into(), (INDEX_TYPE.into(), index.into_bytes()));
        image
    }

    pub fn document(&mut self, media_type: &str, json: &str) -> String {
        let digest = Digest::of(json.as_bytes()).to_string();
        self.parts.insert(format!("manifests/{digest}"), (media_type.into(), json.into()));
        digest
    }

    pub fn blob(&mut self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        self.parts.insert(format!("blobs/{digest}"), ("application/octet-stream".into(), bytes.into()));
        digest
    }

    pub fn layer_part(&self, at: usize) -> String {
        format!("blobs/{}", Digest::of(&self.layers[at]))
    }

    /// What a well-behaved registry answers, ranges included.
    pub fn answer(&self, request: &Request) -> Reply {
        let Some((media_type, body)) =
            request.target.strip_prefix("/v2/test/image/").and_then(|part| self.parts.get(part))
        else {
            let error = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            return Reply { status: 404, body: error.into(), ..Reply::default() };
        };
        let begin = request.fields.get("range").map(|range| {
            range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse().unwrap()
        });
        match begin {
            None => Reply::ok(body.clone()).with("Content-Type", media_type),
            Some(begin) => Reply { status: 206, body: body[begin..].to_vec(), ..Reply::default() }
                .with("Content-Range", format!("bytes {begin}-{}/{}", body.len() - 1, body.len())),
        }
    }
}

/// What the contexts below wait for a stalled blob.
pub const SHORT_STALL: Duration = Duration::from_millis(300);

/// A context whose indexer takes plain tars as they are, and whose waits are short.
pub fn context(store: &Path) -> Arc<Context> {
    patient_context(store, SHORT_STALL)
}

/// The same, waiting longer for a stalled blob.
pub fn patient_context(store: &Path, stall: Duration) -> Arc<Context> {
    let (fetcher, indexer) = seqpacket::pair().unwrap();
    std::thread::spawn(move || copying_indexer(&indexer));
    context_with(store, fetcher, stall)
}

pub fn context_with(store: &Path, to_indexer: OwnedFd, stall: Duration) -> Arc<Context> {
    let resolv_conf = store.join("resolv.conf");
    std::fs::write(&resolv_conf, "").unwrap();
    let store = store.join("store");
    std::fs::create_dir_all(&store).unwrap();
    let millis = Duration::from_millis;
    let context = Arc::new(Context {
        store: Store::open(&store, &Default::default()).unwrap(),
        indexer: IndexClient::new(to_indexer),
        timeouts: Timeouts { connect: millis(2000), first_byte: millis(2000), stall },
        retry: RetryPolicy { retries: 3, first_delay: millis(1), longest_delay: millis(5) },
        resolv_conf,
        images: None,
    });
    let answers = context.clone();
    std::thread::spawn(move || answers.indexer.receive());
    context
}

fn copying_indexer(socket: &OwnedFd) {
    let mut buffer = vec![0; FRAME_MAX];
    while let Ok(Some((length, fds))) = seqpacket::receive(socket, &mut buffer) {
        let request: IndexLayer = frame::decode(&buffer[..length], FRAME_MAX).unwrap();
        let [mut pipe, mut tar, mut index] = <[OwnedFd; 3]>::try_from(fds).unwrap().map(File::from);
        let socket = socket.try_clone().unwrap();
        std::thread::spawn(move || {
            assert_eq!(request.compression, Compression::Plain);
            let id = request.id;
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            let written = tar.write_all(&bytes).and_then(|()| index.write_all(b"index"));
            let reply = match written {
                Ok(()) => IndexReply::Done {
                    id,
                    diff_id: Sha256(*Digest::of(&bytes).as_bytes()),
                    tar: bytes.len() as u64,
                    index: 5,
                    entries: 0,
                },
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    IndexReply::Failed { id, kind: IndexFailureKind::DiskFull, message: String::new() }
                }
                Err(error) => panic!("{error}"),
            };
            let _ = seqpacket::send(&socket, &frame::encode(&reply, FRAME_MAX).unwrap(), &[]);
        });
    }
}

/// A request for `test/image` at this registry.
pub fn request(registry: SocketAddr) -> Pull {
    let platform = Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
    Pull::anonymous(format!("{registry}/test/image"), platform)
}

/// Whether nothing is left half done in a store.
pub fn nothing_half_done(store: &Path) -> bool {
    std::fs::read_dir(store.join("store/tmp")).unwrap().count() == 0
}

pub fn connect_refused() -> SocketAddr {
    // Bound and dropped: nothing listens there.
    ports::listener().local_addr().unwrap()
}

pub fn raw_server(serve: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = ports::listener();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    address
}

/// A self-signed certificate for a name, as PEM and as what serves it.
pub fn certify(name: &str) -> (String, std::sync::Arc<rustls::ServerConfig>) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    (certified.cert.pem(), config.into())
}

/// The same, for a server that speaks HTTP/2 and nothing else.
pub fn certify_two(name: &str) -> (String, Arc<rustls::ServerConfig>) {
    let (certificate, config) = certify(name);
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    (certificate, config.into())
}

/// Bytes that no compression or chance makes alike.
pub fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}
