//! Connections: a name becomes an address, an address a TCP stream, and that, for https, a TLS session. Every wait has
//! a limit, and ends when the pull is cancelled.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use super::channel::Channel;
use super::dial::{DialError, dial};
use super::dns::{RESOLV_CONF_BYTES_MAX, ResolveError, ResolverConfig};
use super::input::Malformed;
use super::proxy::{Kind, Proxies, Proxy, ProxyError};
use super::tls::{self, Trust};
use super::url::{Origin, Scheme};

/// Connections that are kept for the next request.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// A kept connection older than this is not tried again: servers close them after about a minute.
const IDLE_AGE_MAX: Duration = Duration::from_secs(15);
/// Longest wait between two looks at the cancel flag.
const WAIT_SLICE: Duration = Duration::from_millis(200);

/// What is waited for, at most.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until a TCP connection stands; then as long again for the TLS handshake.
    pub connect: Duration,
    /// From the request to the end of the answer's head.
    pub first_byte: Duration,
    /// Between two reads of a body.
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(10), first_byte: seconds(30), stall: seconds(30) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("the name {host:?} does not resolve: {source}")]
    Resolve { host: String, source: ResolveError },
    #[error("cannot connect to {host} ({address}): {source}")]
    Connect { host: String, address: SocketAddr, source: io::Error },
    #[error("cannot connect to {host}: port {port} is not among those that this pull may connect to")]
    Port { host: String, port: u16 },
    #[error("TLS with {host}: {reason}")]
    Tls { host: String, reason: String },
    #[error("{host} sent nothing for {} s", .after.as_secs_f32())]
    Stalled { host: String, after: Duration },
    #[error("{host} sent {bytes} bytes in {} s, which is as good as nothing", .after.as_secs_f32())]
    Slow { host: String, bytes: u64, after: Duration },
    #[error("proxy {proxy}: {reason}")]
    Proxy { proxy: String, reason: String, passing: bool },
    #[error("connection to {host} broke: {source}")]
    Broken { host: String, source: io::Error },
    #[error("{host} closed the connection in the middle of its answer")]
    Closed { host: String },
    #[error("answer of {host} is not HTTP: {reason}")]
    Malformed { host: String, reason: &'static str },
    #[error("cancelled")]
    Cancelled,
}

impl TransportError {
    /// Whether the same request may well succeed a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Stalled { .. } | Self::Slow { .. } | Self::Broken { .. } | Self::Closed { .. } => true,
            Self::Proxy { passing, .. } => *passing,
            Self::Resolve { source, .. } => {
                matches!(source, ResolveError::NoAnswer(..) | ResolveError::Refused(..))
            }
            Self::Connect { source, .. } => source.kind() != io::ErrorKind::ConnectionRefused,
            _ => false,
        }
    }
}

/// Set once, seen by every wait of a pull.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps; false if it was cancelled meanwhile.
    pub fn sleep(&self, duration: Duration) -> bool {
        let end = Instant::now() + duration;
        while !self.is_set() {
            match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return true,
                left => std::thread::sleep(left.min(WAIT_SLICE)),
            }
        }
        false
    }
}

/// Makes connections and keeps a few.
pub struct Connector {
    pub timeouts: Timeouts,
    pub cancel: Cancel,
    /// Host in lower case to address, asked before any name server.
    pub aliases: HashMap<String, IpAddr>,
    pub resolv_conf: PathBuf,
    pub trust: Trust,
    pub proxies: Proxies,
    /// As `aliases`, for the hosts of proxies.
    pub proxy_aliases: HashMap<String, IpAddr>,
    pub idle: Mutex<Vec<Idle>>,
}

/// A connection between two requests.
pub struct Idle {
    origin: Origin,
    since: Instant,
    channel: Channel,
}

impl Connector {
    pub fn new(trust: Trust, timeouts: Timeouts, cancel: Cancel, resolv_conf: PathBuf) -> Self {
        Self {
            timeouts,
            cancel,
            aliases: HashMap::new(),
            resolv_conf,
            trust,
            proxies: Proxies::default(),
            proxy_aliases: HashMap::new(),
            idle: Mutex::default(),
        }
    }

    /// A kept connection to this origin.
    pub fn reuse(&self, origin: &Origin) -> Option<Channel> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|kept| kept.since.elapsed() < IDLE_AGE_MAX);
        let at = idle.iter().position(|kept| kept.origin == *origin)?;
        Some(idle.swap_remove(at).channel)
    }

    pub fn keep(&self, origin: Origin, channel: Channel) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(Idle { origin, since: Instant::now(), channel });
        }
    }

    /// A new connection. `unverified` is for hosts declared insecure: their certificate is not looked at.
    pub fn connect(&self, origin: &Origin, unverified: bool) -> Result<Channel, TransportError> {
        let stream = match self.proxy(origin) {
            None => self.connect_tcp(&origin.host, &self.resolve(&origin.host)?, origin.port)?,
            Some(proxy) => self.connect_proxy(proxy, origin)?,
        };
        let stream = match origin.scheme {
            Scheme::Http => stream,
            Scheme::Https => {
                self.handshake(&origin.host, stream, self.trust.settings(origin, unverified).clone())?
            }
        };
        Ok(Channel::new(stream))
    }

    /// The proxy that plain requests to this origin are handed to, whole, instead of being led through.
    pub fn forwarder(&self, origin: &Origin) -> Option<&Proxy> {
        let is_forwarder = |proxy: &&Proxy| matches!(proxy.kind, Kind::Http | Kind::Https);
        self.proxy(origin).filter(is_forwarder).filter(|_| origin.scheme == Scheme::Http)
    }

    /// What has an address of its own for us is no proxy's business.
    fn proxy(&self, origin: &Origin) -> Option<&Proxy> {
        self.proxies.choose(origin).filter(|_| !self.aliases.contains_key(&origin.host))
    }

    fn connect_proxy(&self, proxy: &Proxy, origin: &Origin) -> Result<Stream, TransportError> {
        let name = format!("{}:{}", proxy.host, proxy.port);
        let failed = |reason: String, passing| TransportError::Proxy { proxy: name.clone(), reason, passing };
        let on_the_way = |error: TransportError| match error {
            TransportError::Cancelled => TransportError::Cancelled,
            error => failed(error.to_string(), error.is_passing()),
        };
        let addresses = match self.proxy_aliases.get(&proxy.host) {
            Some(&address) => Ok(vec![address]),
            None => self.resolve(&proxy.host),
        };
        let connected = addresses.and_then(|found| self.connect_tcp(&proxy.host, &found, proxy.port));
        let mut stream = connected.map_err(on_the_way)?;
        if proxy.kind == Kind::Https {
            stream = self.handshake(&proxy.host, stream, self.trust.proxy.clone()).map_err(on_the_way)?;
        }
        if self.forwarder(origin).is_some() {
            return Ok(stream);
        }
        let address = match proxy.kind {
            Kind::Socks5 { resolves: false } => self.resolve(&origin.host)?.first().copied(),
            _ => None,
        };
        stream.limit(Limit::Until(Instant::now() + self.timeouts.first_byte));
        let opened = proxy.open_way(&mut stream, &origin.host, origin.port, address);
        opened.map_err(|error| match error {
            ProxyError::Io(error) => on_the_way(from_io(&proxy.host, error, self.timeouts.first_byte)),
            ProxyError::Refused(reason, passing) => failed(reason, passing),
        })?;
        stream.limit(Limit::Each(self.timeouts.stall));
        Ok(stream)
    }

    fn connect_tcp(&self, host: &str, addresses: &[IpAddr], port: u16) -> Result<Stream, TransportError> {
        let deadline = Instant::now() + self.timeouts.connect;
        let connect = |address, source: io::Error| match source.kind() {
            // What landlock says. A sandbox without a route says otherwise.
            io::ErrorKind::PermissionDenied => TransportError::Port { host: host.to_owned(), port },
            _ => TransportError::Connect { host: host.to_owned(), address, source },
        };
        let tcp = dial(addresses, port, deadline, &self.cancel).map_err(|error| match error {
            DialError::Failed(address, source) => connect(address, source),
            DialError::NoAddress => {
                TransportError::Resolve { host: host.to_owned(), source: ResolveError::NoAddress }
            }
            DialError::Cancelled => TransportError::Cancelled,
        })?;
        set_options(&tcp).map_err(|source| TransportError::Broken { host: host.to_owned(), source })?;
        Ok(Stream::Plain(TimedStream {
            tcp,
            cancel: self.cancel.clone(),
            limit: Cell::new(Limit::Each(self.timeouts.stall)),
        }))
    }

    fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, TransportError> {
        if let Some(&address) = self.aliases.get(host) {
            return Ok(vec![address]);
        }
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        // RFC 6761 section 6.3: this name is never asked for.
        if host == "localhost" {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        // Read each time: the sandbox's network may be set up again while this process idles.
        let mut text = Vec::new();
        let _ = std::fs::File::open(&self.resolv_conf)
            .and_then(|file| file.take(RESOLV_CONF_BYTES_MAX).read_to_end(&mut text));
        let config = ResolverConfig::parse(&String::from_utf8_lossy(&text));
        config
            .lookup(host, tls::random_u16)
            .map_err(|source| TransportError::Resolve { host: host.to_owned(), source })
    }

    fn handshake(
        &self,
        host: &str,
        mut stream: Stream,
        config: Arc<ClientConfig>,
    ) -> Result<Stream, TransportError> {
        let failed = |reason: String| TransportError::Tls { host: host.to_owned(), reason };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
        let mut session = ClientConnection::new(config, name).map_err(|error| failed(error.to_string()))?;
        stream.limit(Limit::Until(Instant::now() + self.timeouts.connect));
        while session.is_handshaking() {
            match session.complete_io(&mut stream) {
                Ok(_) => {}
                Err(error) if self.cancel.is_set() || is_timeout(&error) => {
                    return Err(from_io(host, error, self.timeouts.connect));
                }
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        Ok(Stream::Tls(Box::new(StreamOwned::new(session, stream))))
    }
}

/// What an error of reading or writing means; `after` is what was waited if it was a timeout.
pub fn from_io(host: &str, error: io::Error, after: Duration) -> TransportError {
    let host = host.to_owned();
    if let Some(Malformed(reason)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return TransportError::Malformed { host, reason };
    }
    match error {
        error if error.get_ref().is_some_and(|inner| inner.is::<CancelledMark>()) => {
            TransportError::Cancelled
        }
        error if is_timeout(&error) => TransportError::Stalled { host, after },
        error if error.kind() == io::ErrorKind::UnexpectedEof => TransportError::Closed { host },
        error if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
            TransportError::Tls { host, reason: error.to_string() }
        }
        source => TransportError::Broken { host, source },
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn set_options(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(WAIT_SLICE))?;
    tcp.set_write_timeout(Some(WAIT_SLICE))
}

pub enum Stream {
    Plain(TimedStream),
    /// Over TCP, or inside another session: that with an https proxy.
    Tls(Box<StreamOwned<ClientConnection, Stream>>),
}

impl Stream {
    /// What was agreed on in the TLS handshake.
    pub fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.conn.alpn_protocol(),
        }
    }

    /// What reads and writes from here on may wait.
    pub fn limit(&self, limit: Limit) {
        match self {
            Self::Plain(tcp) => tcp.limit.set(limit),
            Self::Tls(tls) => tls.sock.limit(limit),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(buffer),
            Self::Tls(tls) => tls.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// Each read or write may take so long.
    Each(Duration),
    /// All of them together may take until then.
    Until(Instant),
}

/// A TCP stream whose waits are cut into slices, to look at the cancel flag and the limit between them.
pub struct TimedStream {
    tcp: TcpStream,
    cancel: Cancel,
    limit: Cell<Limit>,
}

impl TimedStream {
    fn wait<T>(&self, mut operation: impl FnMut(&TcpStream) -> io::Result<T>) -> io::Result<T> {
        let deadline = match self.limit.get() {
            Limit::Each(duration) => Instant::now() + duration,
            Limit::Until(deadline) => deadline,
        };
        loop {
            if self.cancel.is_set() {
                return Err(io::Error::other(CancelledMark));
            }
            match operation(&self.tcp) {
                Err(error) if is_timeout(&error) && Instant::now() < deadline => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(io::ErrorKind::TimedOut.into()),
                // What trickles must not stretch a limit that counts for all of it.
                Ok(_) if matches!(self.limit.get(), Limit::Until(end) if Instant::now() >= end) => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                done => return done,
            }
        }
    }
}

impl Read for TimedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(|mut tcp| tcp.read(buffer))
    }
}

impl Write for TimedStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.wait(|mut tcp| tcp.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
struct CancelledMark;
